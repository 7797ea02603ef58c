"""Files that are never half written, folders that are found again, and the hashes that caches are keyed on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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


def user_cache() -> Path:
    """``$ROBREP_CACHE`` if set, else ``$XDG_CACHE_HOME/robrep``, else ``~/.cache/robrep``."""
    if root := os.environ.get("ROBREP_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "robrep"


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
