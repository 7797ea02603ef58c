"""``benchmarks/gpu.py`` makes the same calls on a CPU, at smoke scale; a stand-in captures its steps."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from robrep import data, steps
from robrep.book import results

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The script, with its neighbours in reach; the threads are put back, and the caches are its own."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("ROBREP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "results"))
    spec = importlib.util.spec_from_file_location("benchmark_gpu", FOLDER / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("captures", [True, False])
def test_every_row(
    captures: bool, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if captures:  # a graph of this stand-in calls what it captured
        monkeypatch.setitem(steps.CAPTURE, "cpu", lambda body: body)
    if not captures:
        monkeypatch.setitem(sys.modules, "pyautoattack", None)
        monkeypatch.setattr(gpu, "ROWS", {"vae_urkle": ("vae", "no such row"), "cropd": ("cropd",)})
    file, load = tmp_path / "new" / "gpu.json", data.load
    status = gpu.main(["--device", "cpu", "--small", "--threads", "1", "--json", str(file)])
    printed, facts = capsys.readouterr().out, json.loads(file.read_text())
    assert data.load is load and not list((tmp_path / "results").rglob("*")), "nothing is recorded"
    assert {"hardware", "versions", "commit", "date", "code", "minutes"} <= facts.keys()
    assert facts["hardware"]["device"] == "cpu" and facts["settings"]["small"] is True

    rows = {(row["chapter"], row["row"]): row for row in facts["rows"]}
    assert list(rows) == [(chapter, row) for chapter, named in gpu.ROWS.items() for row in named]
    failed = {row: facts["error"] for (_, row), facts in rows.items() if "error" in facts}
    assert failed.keys() == (set() if captures else {"no such row"}) and status == (not captures)
    for (_, name), row in rows.items():
        if name in failed:
            continue
        assert row["launched"]["seconds"]["minimum"] > 0 and row["parameters"] > 0 and row["passes"]["trained"] > 0
        assert row["launched"]["ratio"]["minimum"] == pytest.approx(
            row["launched"]["seconds"]["minimum"] / row["launched"]["floor"]["minimum"]
        )
        assert row["how"].startswith("captured" if captures else "step by step: a device of type cpu")
        assert (row["captured"] is not None) == captures and row["precision"] == "float32"
    assert printed.count("| smoke |") == len(rows)

    assert [row["attack"] for row in facts["attacks"]] == ["PGD-20", "random start", "APGD-CE-100"]
    (first,) = facts["autoattack"]["rows"]
    assert first["attack"] == "APGD-CE" and first["robrep"]["n"] == 8
    assert (first["pyautoattack"] is not None) == captures
    assert ("pyautoattack" in facts["versions"]) == captures

    assert gpu.main(["--show", str(file)]) == 0
    assert capsys.readouterr().out == printed
    assert results.Table(**facts["table"]).columns[2] == "row"


def test_settings_are_those_of_the_chapters(gpu: ModuleType) -> None:
    """What a row hands to ``fit`` at full scale, without building anything twice."""
    exp = gpu.declared("vae_urkle", "full")
    found = gpu.training(exp, "vae_urkle")
    assert found.method.adversary.attack.steps == exp.settings.attack_steps == 40
    assert found.options["batch_size"] == exp.settings.batch_size and found.options["precision"] == "auto"
    assert found.x.dtype == torch.uint8 and found.x.shape[1:] == (1, 28, 28)
    with pytest.raises(KeyError):
        gpu.training(exp, "no such row")
    exp.training(lambda t: None)
    with pytest.raises(ValueError, match="row is 'vae', expected one that vae_urkle trains"):
        gpu.training(exp, "vae")


class Attacked(nn.Module):
    """One forward pass without gradients, two under attack, one to train."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.net(x)
        self.net.eval()
        for _ in range(2):
            x = x.detach().requires_grad_()
            x = x + torch.autograd.grad(self.net(x).sum(), x)[0]
        self.net.train()
        return self.net(x.detach()).sum()


def test_the_floor_makes_the_same_passes(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = Attacked(), []
    real = torch.autograd.grad

    def watched(outputs: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        seen.append(("backward", len(inputs) if isinstance(inputs, list) else 1))
        return real(outputs, inputs, *more, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    with gpu.Passes(method) as passes:
        method(torch.rand(3, 4)).backward()
    assert passes.counts == {"forward": 3, "attack": 6, "trained": 3} and seen == [("backward", 1)] * 2
    assert not method.net._forward_hooks and not method.net[0]._forward_pre_hooks
    method.net.register_forward_hook(
        lambda m, x, y: seen.append((m.training, torch.is_grad_enabled(), x[0].requires_grad))
    )
    seen.clear()
    method.net.eval()
    passes.again()
    attack = [(False, True, True), ("backward", 1)]
    assert seen == [(True, False, False), *attack, *attack, (True, True, False), ("backward", 4)]
    assert not method.net.training and all(p.grad is not None for p in method.parameters()), "left as they were"


def test_what_fails_is_said_and_the_rest_goes_on(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("no room\nfor details")

    monkeypatch.setattr(gpu, "compare_autoattack", fails)
    monkeypatch.setattr(gpu, "measure_attacks", lambda *arguments: [])
    monkeypatch.setattr(gpu, "ROWS", {"vae_urkle": ("vae",)})
    file = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--threads", "1", "--json", str(file)]) == 1
    facts = json.loads(file.read_text())
    assert facts["autoattack"] == {"error": "RuntimeError: no room"} and facts["tables"].keys() == {"attacks"}
    assert facts["rows"][0]["launched"]["seconds"]["minimum"] > 0
    assert "AutoAttack: RuntimeError: no room" in capsys.readouterr().err


def test_rounds_end_with_the_time(gpu: ModuleType) -> None:
    works: dict[str, Any] = {"a": lambda: None, "b": lambda: None}
    assert {len(v) for v in gpu.take_turns(works, 50, until=time.monotonic() - 1).values()} == {1}
    assert {len(v) for v in gpu.take_turns(works, 5, until=time.monotonic() + 60).values()} == {5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "minutes is 0, expected at least 1"),
        (["--minutes", "a"], "argument --minutes: invalid int value: 'a'"),
        (["--runs", "-1", "--device", "cpu"], "runs is -1, expected at least 1"),
        (["--images", "513", "--device", "cpu"], "images is 513, expected at most 512"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(arguments)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and message in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_gpu(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "device is 'cuda', expected 'cpu': there is no CUDA device here" in capsys.readouterr().err
