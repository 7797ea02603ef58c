"""The benchmark of a worst-case InfoMax step runs at a small size, and what it keeps is what it prints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch


def test_information_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "information_step.py"
    spec = importlib.util.spec_from_file_location("benchmark_information_step", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads, file = torch.get_num_threads(), tmp_path / "new" / "step.json"
    try:
        module.main(
            ["--batch", "4", "--runs", "2", "--threads", "1", "--steps", "2", "--sizes", "digits", "--json", str(file)]
        )
    finally:
        torch.set_num_threads(threads)
    printed, (row,) = capsys.readouterr().out, json.loads(file.read_text())["rows"]
    assert row["ratio"]["minimum"] == pytest.approx(row["seconds"]["minimum"] / row["floor"]["minimum"])
    assert 0 < row["seconds"]["minimum"] <= row["seconds"]["median"]
    module.main(["--show", str(file)])
    assert capsys.readouterr().out == printed
