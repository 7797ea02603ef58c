"""The benchmark of the training step: the floor makes the step's own passes, and what is kept is what is printed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def benchmark() -> Any:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "training_step.py"
    spec = importlib.util.spec_from_file_location("benchmark_training_step", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_the_floor_makes_the_passes_of_the_step(benchmark: Any) -> None:
    """As many images, in the same modes, with and without a graph, forward and backward."""
    x, ids = torch.rand(4, 3, 32, 32), torch.arange(4)
    for name, method in benchmark.methods(4, 3).items():
        seen: list[tuple] = []

        def look(module: Any, inputs: Any, output: Any, seen: list = seen) -> None:
            seen.append((len(inputs[0]), module.training, torch.is_grad_enabled(), inputs[0].requires_grad))

        method.encoder.register_forward_hook(look)
        benchmark.floor(method, x, 3)
        floor, seen[:] = list(seen), []
        benchmark.step(method, x, ids, 0)
        assert floor == seen and len(seen) == 5, name
        assert all(p.grad is None for p in method.parameters())


def test_what_is_kept_is_what_is_printed(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "keep_memory", lambda: False)
    file = tmp_path / "new" / "step.json"
    benchmark.main(["--batch", "2", "--runs", "2", "--steps", "1", "--width", "4", "--json", str(file)])
    printed = capsys.readouterr().out
    facts = json.loads(file.read_text())
    assert [(r["method"], r["precision"]) for r in facts["rows"]] == [
        (m, p) for p in ("fp32", "bf16") for m in ("RoCL", "SimCLR + Urkle")
    ]
    for row in facts["rows"]:
        assert row["ratio"]["minimum"] == pytest.approx(row["seconds"]["minimum"] / row["floor"]["minimum"])
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"]["minimum"])
    assert all(len(v) == 2 and all(0 < x < 10 for x in v) for v in facts["start"]["losses"].values())
    assert 0 < facts["megabytes_kept"]["bf16"] < facts["megabytes_kept"]["fp32"]
    benchmark.main(["--show", str(file)])
    assert capsys.readouterr().out == printed and "ResNet-18 of width 4" in printed
