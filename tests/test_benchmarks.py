"""The benchmarks run at a small size, and what they keep is what they print."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts find their neighbours, as when they are run, and the threads are put back."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_attacks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = benchmark("attacks")
    monkeypatch.setattr(attacks, "keep_memory", lambda: False)  # the rest of the suite keeps the C library's habits
    absent = ("foolbox", "art", "pyautoattack")
    for name in {*absent, *(name for name in sys.modules if name.partition(".")[0] in absent)}:
        monkeypatch.setitem(sys.modules, name, None)  # modules that another test has imported, too
    file = tmp_path / "new" / "attacks.json"
    attacks.main(["--batch", "2", "--runs", "2", "--threads", "1", "--json", str(file)])
    printed = capsys.readouterr().out
    facts = json.loads(file.read_text())
    rows = {(row["network"], row["attack"], row["library"]): row for row in facts["rows"]}
    for network in ("small", "large"):
        for attack in ("PGD-20", "APGD-CE-100"):
            assert rows[network, attack, "floor"]["ratio"] == {"minimum": 1.0, "median": 1.0}
            row = rows[network, attack, "robrep"]
            assert 0 < row["seconds"]["minimum"] <= row["seconds"]["median"]
            floor = rows[network, attack, "floor"]["seconds"]["minimum"]
            assert row["ratio"]["minimum"] == pytest.approx(row["seconds"]["minimum"] / floor)
        assert rows[network, "PGD-20", "random start"]["seconds"]["minimum"] > 0
        assert rows[network, "APGD-CE-100", "pyautoattack"]["version"] is None
    assert printed.count("not installed") == 2 * 4
    assert rows["small", "PGD-20", "floor"]["parameters"] == 24_234
    attacks.main(["--show", str(file)])
    assert capsys.readouterr().out == printed
    assert facts["table"]["rows"][0][3] in printed and len(facts["table"]["rows"]) == len(facts["rows"])


def test_peers_do_the_same_work() -> None:
    """Every attack ends in the ball and at about the same loss."""
    attacks = benchmark("attacks")
    torch.manual_seed(0)
    model, x = attacks.small(), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        y = model(x).argmax(1)
    works = attacks.ours(model, x, y)
    for make, _ in attacks.PEERS.values():
        try:
            works |= make(model, x, y)
        except ImportError:
            continue
    loss = {}
    for (attack, library), work in works.items():
        x_adv = torch.as_tensor(np.asarray(work()))
        assert (x_adv - x).abs().max() <= attacks.EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        with torch.no_grad():
            loss[attack, library] = torch.nn.functional.cross_entropy(model(x_adv), y).item()
    with torch.no_grad():
        clean = torch.nn.functional.cross_entropy(model(x), y).item()
    best = max(loss.values())
    assert all(value - clean > 0.8 * (best - clean) for value in loss.values()), loss


def test_autoattack(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from robrep import data, suites

    shape = {"train": 40, "val": 10, "test": 12}
    draw = np.random.default_rng(0)
    images = {k: torch.from_numpy(draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)) for k, n in shape.items()}
    labels = {k: torch.from_numpy(draw.integers(0, 10, n)) for k, n in shape.items()}
    small = data.Dataset("cifar10", tuple("0123456789"), *(p[k] for k in shape for p in (images, labels)))
    module = benchmark("autoattack")
    monkeypatch.setattr(module, "load", lambda name: small)
    monkeypatch.setattr(module, "suite", lambda name: suites.suite(name, max_steps=2, max_queries=3)[:2])
    monkeypatch.setenv("ROBREP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "autoattack.json"
    sizes = ["--images", "12", "--verdicts", "12", "--epochs", "1", "--threads", "1"]
    module.main([*sizes, "--alone", "--json", str(file)])
    printed, facts = capsys.readouterr().out, json.loads(file.read_text())
    assert [(r["norm"], r["attack"]) for r in facts["rows"]] == [
        (norm, attack) for norm in ("linf", "l2") for attack in ("APGD-CE", "APGD-T")
    ]
    assert facts["verdicts"]["linf"]["n"] == 12 and "verdicts differ" in printed and "l2 128/255" in printed
    assert all(row["pyautoattack"] is None and row["robrep"]["n"] == 12 for row in facts["rows"])
    assert len(list((tmp_path / "cache" / "benchmarks").glob("*.pt"))) == 1


@pytest.mark.parametrize(("name", "passes"), [("RoCL", 5), ("SimCLR + Urkle", 5), ("BYORL, PGD", 8),
                                             ("BYORL, AutoPGD", 10)])  # fmt: skip
def test_the_floor_makes_the_passes_of_a_training_step(name: str, passes: int) -> None:
    """As many images, in the same modes, with and without a graph, forward and backward."""
    module = benchmark("training_step")
    x, ids, method = torch.rand(4, 3, 32, 32), torch.arange(4), module.make(name, 8, 3)
    seen: list[tuple] = []

    def look(module: Any, inputs: Any, output: Any) -> None:
        seen.append((len(inputs[0]), module.training, torch.is_grad_enabled(), inputs[0].requires_grad))

    method.encoder.register_forward_hook(look)
    module.floor(method, x, 3)
    floor, seen[:] = list(seen), []
    module.step(method, x, ids, 0)
    assert floor == seen and len(seen) == passes
    assert all(p.grad is None for p in method.parameters())


def test_training_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("training_step")
    monkeypatch.setattr(module, "keep_memory", lambda: False)
    file = tmp_path / "new" / "step.json"
    module.main(["--batch", "2", "--runs", "2", "--steps", "1", "--width", "8", "--json", str(file)])
    printed = capsys.readouterr().out
    facts = json.loads(file.read_text())
    assert [(r["method"], r["precision"]) for r in facts["rows"]] == [
        (m, p) for p in ("fp32", "bf16") for m in module.METHODS
    ]
    for row in facts["rows"]:
        assert row["ratio"]["minimum"] == pytest.approx(row["seconds"]["minimum"] / row["floor"]["minimum"])
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"]["minimum"])
    module.main(["--show", str(file)])
    assert capsys.readouterr().out == printed and "8 channels in the first stage" in printed


def test_information_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, file = benchmark("information_step"), tmp_path / "new" / "step.json"
    sizes = ["--batch", "4", "--runs", "2", "--threads", "1", "--steps", "2", "--sizes", "digits"]
    module.main([*sizes, "--json", str(file)])
    printed, (row,) = capsys.readouterr().out, json.loads(file.read_text())["rows"]
    assert row["ratio"]["minimum"] == pytest.approx(row["seconds"]["minimum"] / row["floor"]["minimum"])
    assert 0 < row["seconds"]["minimum"] <= row["seconds"]["median"]
    module.main(["--show", str(file)])
    assert capsys.readouterr().out == printed
