"""Every notebook runs from top to bottom at smoke scale, under nbmake, from its own folder, leaving records alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_smoke(path: Path, tmp_path: Path) -> None:
    """The cell metadata ``nbmake.mock`` of the parameters cell sets SCALE to smoke (test_layout holds it to that)."""
    environment = {**os.environ, "ROBREP_RESULTS": str(tmp_path / "results"), "JUPYTER_PREFER_ENV_PATH": "1"}
    for name in ("JPY_SESSION_NAME", "PLOTLY_RENDERER", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "--nbmake", "--nbmake-timeout=300"]
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT), *plugins, str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "1 passed" in done.stdout
