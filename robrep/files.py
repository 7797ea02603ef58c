"""Files that are never half written, folders that are found again, and the hashes that caches are keyed on."""

from __future__ import annotations

import atexit
import csv
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any failure it is removed.

    The folder is made if missing. The temporary file keeps the suffix, since writers look at it.

    Raises:
        OSError: the folder cannot be made or written (read-only, full disk); ``path`` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a shared cache needs the usual rights
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table as a CSV file, whole or not at all (see :func:`atomic_write`)."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def user_cache() -> Path:
    """``$ROBREP_CACHE`` if set, else this user's cache folder (``$XDG_CACHE_HOME/robrep`` or its like)."""
    if root := os.environ.get("ROBREP_CACHE"):
        return Path(root)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "robrep"


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


def set_aside(path: Path, why: object) -> Path:
    """Rename a damaged file of a cache to ``<name>.damaged`` and warn, so that what it held is made anew.

    Args:
        path: the file.
        why: what is wrong with it, for the warning.

    Returns:
        Its new path; one that was set aside before is replaced.
    """
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    warnings.warn(f"{path} is damaged ({why}); it is set aside as {aside.name} and made anew", stacklevel=3)
    return aside


def cache_root() -> Path:
    """Where data sets are kept: ``$ROBREP_DATA`` if set (it may be read-only), else :func:`user_cache`."""
    return Path(os.environ["ROBREP_DATA"]) if os.environ.get("ROBREP_DATA") else user_cache()


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of the order of keys.

    Raises:
        TypeError: the value is not JSON-able.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


@cache
def code_hash(*, kit: bool = False) -> str:
    """A 12-digit hash of robrep's own sources, so that a cache notices a change of the library.

    The pages' kit, ``robrep.book``, cannot change what the library computes and is left out unless ``kit``; then all of
    it counts but what builds the site and the lab, which no chapter runs.
    """
    root = Path(__file__).parent
    left_out = ["book/site/", "book/lab/"] if kit else ["book/"]
    h = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        name = source.relative_to(root).as_posix()
        if not name.startswith(tuple(left_out)):
            h.update(name.encode() + b"\0" + source.read_bytes() + b"\0")
    return h.hexdigest()[:12]
