"""The library and every chapter on a pretend GPU: what would mix devices on a real one fails here, without one.

A process that has the pretend GPU counts as one with an accelerator, for torch too. So these tests run in processes of
their own: ``on_a_pretend_gpu.py`` holds those of the library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def run(command: list[str], folder: Path, results: Path) -> None:
    """A Python process that sees this checkout, and fails with what it said."""
    environment = {**os.environ, "ROBREP_RESULTS": str(results), "PYTHONPATH": str(ROOT)}
    for name in [n for n in environment if n.startswith("PYTEST_")] + ["JPY_SESSION_NAME", "PLOTLY_RENDERER"]:
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


def test_the_library(tmp_path: Path) -> None:
    file = ROOT / "tests" / "on_a_pretend_gpu.py"
    run(["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(file)], ROOT, tmp_path / "results")


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_chapter(path: Path, tmp_path: Path) -> None:
    """As a plain script, at smoke scale, on the pretend GPU and without IPython."""
    run([str(ROOT / "tests" / "pretend_gpu.py"), str(path)], path.parent, tmp_path / "results")
