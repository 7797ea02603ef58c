"""Fixtures for the tests that need the demo run or the built site, and the order in which tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BEFORE = dict(os.environ)
os.environ["ROBREP_ACCELERATOR"] = "cpu"  # what is compared bit for bit is trained there; tests marked gpu ask for cuda
for name in ("ROBREP_RESULTS", "ROBREP_CACHE", "ROBREP_BATCH", "JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD"):
    os.environ.pop(name, None)  # a test sets what it needs; where the tests are started decides nothing
os.environ.setdefault("OMP_NUM_THREADS", "1")  # with two workers on two cores, more threads only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the run or the site, and run it last: a broken unit test should be seen first.

    Within each part the order is random (pytest-randomly), so that no test comes to depend on another.
    """
    for item in items:
        if {"demo_results", "site"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("book")
    items.sort(key=lambda item: [bool(item.get_closest_marker(name)) for name in ("book", "notebook")])


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """After a failure, say how to run the tests in the same order again."""
    if exitstatus and (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"The same order again: pytest -p randomly --randomly-seed={seed}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


def command(*arguments: str) -> None:
    """Run ``python -m robrep.book.site``, and fail with what it said."""
    line = [sys.executable, "-m", "robrep.book.site", *arguments]
    done = subprocess.run(line, cwd=ROOT, env=BEFORE, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(
            f"python -m robrep.book.site {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}", pytrace=False
        )


@pytest.fixture(scope="session")
def demo_results(root: Path) -> Path:
    """The folder of the records that the chapters wrote at demo scale (run now unless unchanged)."""
    command("run")
    return root / "_build" / "results"


@pytest.fixture(scope="session")
def site(root: Path, demo_results: Path) -> Path:
    """The folder of the built site (built now unless unchanged)."""
    command("build")
    return root / "_build" / "html"
