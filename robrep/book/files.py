"""Files and folders of the pages' kit: tables as CSV, a reader's records, numba's cache."""

from __future__ import annotations

import atexit
import csv
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robrep.files import atomic_write, user_cache


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table as a CSV file, whole or not at all (see :func:`atomic_write`)."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def user_results() -> Path:
    """This user's folder of recorded runs where there is no checkout, beside other programs' data."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    return base / "robrep" / "results"


def why_not_writable(folder: Path) -> str:
    """What keeps a file from being written in ``folder``, which is made if missing; "" if nothing does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def let_numba_cache(package: str) -> None:
    """Name a folder for what numba compiles for ``package``, where beside the package it cannot be kept.

    In a container whose disk is read-only, home included, numba otherwise refuses to import the package ("no locator
    available"). ``NUMBA_CACHE_DIR``, where it is set, decides.
    """
    found = find_spec(package)
    if os.environ.get("NUMBA_CACHE_DIR") or found is None or os.access(Path(found.origin or "").parent, os.W_OK):
        return
    folder = user_cache() / "numba"
    if why_not_writable(folder):
        folder = Path(tempfile.mkdtemp(prefix="robrep-numba-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if "numba" in sys.modules:  # it has read its environment
        sys.modules["numba"].config.CACHE_DIR = str(folder)
