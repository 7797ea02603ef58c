"""Checkpoints of a training: whole or not at all, refused by name when they are damaged or belong to another run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robrep.files import atomic_write, code_hash, digest, set_aside
from robrep.identity import identity

CHECKPOINT_VERSION = 2
BROKEN = (RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError)


class Damaged(ValueError):
    """A file that is cut short, or not a checkpoint."""


def describe(method: nn.Module) -> dict[str, Any]:
    """What distinguishes a method: class, plain attributes, modules, and a hash of all it is, code and weights too.

    Raises:
        TypeError: it holds something that cannot be identified (see :func:`robrep.identity.identity`).
    """
    plain = (bool, int, float, str, type(None))
    attributes = {
        f"{name}.{k}".removeprefix("."): repr(v)
        for name, module in method.named_modules()
        for k, v in sorted(vars(module).items())
        if not k.startswith("_") and k != "training" and (isinstance(v, plain) or dataclasses.is_dataclass(v))
    }
    return {
        "class": type(method).__name__,
        "attributes": attributes,
        "modules": repr(method),
        "identity": identity(method, "method"),
    }


def fingerprint(value: Any, name: str = "x") -> str:
    """A hash of a tensor's type, shape and bytes; of anything else, its own ``fingerprint``.

    Raises:
        TypeError: it has none.
    """
    if not isinstance(value, Tensor):
        if not isinstance(known := getattr(value, "fingerprint", None), str):
            raise TypeError(
                f"{name} is a {type(value).__name__} without a fingerprint, expected a tensor, or a container with an "
                "attribute `fingerprint`: text that changes with its contents"
            )
        return known
    content = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


def _entries(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested settings, by dotted names."""
    for k, v in settings.items():
        if isinstance(v, dict):
            yield from _entries(v, f"{prefix}{k}.")
        else:
            yield prefix + k, v


def keeping_place(
    checkpoint: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None,
    settings: dict[str, Any],
    method: nn.Module,
    x: Any,
    y: Tensor,
) -> Path | None:
    """Where :func:`robrep.training.fit` keeps a training, if anywhere: ``checkpoint``, else a file in ``cache``.

    What distinguishes the training (its code, data and method) is added to ``settings``.

    Raises:
        TypeError: there is a ``checkpoint``, and the method or the data cannot be identified. A cache is then left
            alone, with a warning.
    """
    if checkpoint is None and cache is None:
        return None
    settings["code"] = code_hash()
    try:
        settings |= {"data": fingerprint(x), "labels": fingerprint(y), "method": describe(method)}
    except TypeError as error:  # one run could be taken for another
        if checkpoint is not None:
            raise
        warnings.warn(f"fit keeps nothing in the cache: {error}", stacklevel=3)
        return None
    return Path(checkpoint) if checkpoint is not None else Path(cache or "") / f"{digest(settings)[:24]}.pt"


class Keeper:
    """Saves a training now and then, and resumes it.

    Args:
        path: the file; None to keep nothing.
        settings: what distinguishes the training.
        parts: what has a state (``state_dict``, ``load_state_dict``), by name.
        every: least time between two checkpoints, in seconds.
        writes: False for a process that leaves the writing to another.
    """

    def __init__(
        self, path: Path | None, settings: dict[str, Any], parts: dict[str, Any], *, every: float, writes: bool = True
    ) -> None:
        self.path, self.settings, self.parts, self.every, self.writes = path, settings, parts, every, writes
        self.saved = time.monotonic()

    def save(self, history: list[dict[str, float]], *, last: bool) -> None:
        """Write settings, history and the state of all parts, if it is time or the training has ended.

        Raises:
            OSError: it cannot be written; the previous file is then intact.
        """
        if self.path is None or not self.writes or not (last or time.monotonic() - self.saved >= self.every):
            return
        state = {"version": CHECKPOINT_VERSION, "settings": self.settings, "history": list(history)}
        state |= {name: part.state_dict() for name, part in self.parts.items()}
        try:
            with atomic_write(self.path) as temporary:
                torch.save(state, temporary)
        except RuntimeError as error:  # what torch makes of a disk that is full
            raise OSError(f"checkpoint {self.path} cannot be written: {error}") from error
        self.saved = time.monotonic()

    def resume(self, *, anew: bool) -> list[dict[str, float]]:
        """Load the checkpoint into all parts, and return its history; an empty one if there is no checkpoint.

        Args:
            anew: set a damaged file aside, with a warning, and begin anew.

        Raises:
            Damaged: the file is cut short, or not a checkpoint.
            ValueError: it is of another version, or of another training.
        """
        if self.path is None or not self.path.exists():
            return []
        try:
            state = _load(self.path)
        except Damaged as error:
            if not anew:
                raise
            set_aside(self.path, str(error))
            return []
        found, now = dict(_entries(state["settings"])), dict(_entries(self.settings))
        differ = sorted(k for k in now.keys() | found.keys() if now.get(k) != found.get(k))
        if differ:
            came = ", ".join(f"{k} = {found.get(k)!r:.80}, now {now.get(k)!r:.80}" for k in differ)
            raise ValueError(f"checkpoint {self.path} is from other settings ({came}); remove it or name another")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["history"]


def _load(path: Path) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        Damaged: it is cut short, or not a checkpoint.
        ValueError: it is of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, _ = state["version"], dict(_entries(state["settings"]))
    except (*BROKEN, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise Damaged(f"checkpoint {path} is cut short or not a checkpoint of robrep: {error}") from error
    if version != CHECKPOINT_VERSION:
        raise ValueError(f"checkpoint {path} has version {version}, expected {CHECKPOINT_VERSION}")
    return state
