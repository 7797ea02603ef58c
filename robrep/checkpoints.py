"""Checkpoints of a training: whole or not at all, and named by everything that distinguishes the training."""

from __future__ import annotations

import os
import pickle
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from robrep.files import atomic_write, code_hash, digest, set_aside
from robrep.identity import identity

BROKEN = (RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError)


def keeping_place(cache: str | os.PathLike[str] | None, settings: dict[str, Any], **objects: Any) -> Path | None:
    """Where in ``cache`` :func:`robrep.training.fit` keeps a training; None if there is no cache.

    What distinguishes the training, its code and the identities of ``objects``, is added to ``settings``. Where an
    object cannot be identified, nothing is kept, with a warning.
    """
    if cache is None:
        return None
    try:
        settings |= {"code": code_hash()} | {name: identity(value, name) for name, value in objects.items()}
    except TypeError as error:  # one run could be taken for another
        warnings.warn(f"fit keeps nothing in the cache: {error}", stacklevel=3)
        return None
    return Path(cache) / f"{digest(settings)[:24]}.pt"


class Keeper:
    """Saves a training now and then, and resumes it.

    Args:
        path: the file; None to keep nothing.
        settings: what distinguishes the training, written into the file to be read there.
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
        state = {"settings": self.settings, "history": list(history)}
        state |= {name: part.state_dict() for name, part in self.parts.items()}
        try:
            with atomic_write(self.path) as temporary:
                torch.save(state, temporary)
        except RuntimeError as error:  # what torch makes of a disk that is full
            raise OSError(f"checkpoint {self.path} cannot be written: {error}") from error
        self.saved = time.monotonic()

    def resume(self) -> list[dict[str, float]]:
        """Load the checkpoint into all parts, and return its history; an empty one if there is no checkpoint.

        A file that is cut short, or not a checkpoint, is set aside, with a warning.
        """
        if self.path is None or not self.path.exists():
            return []
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch.load does not look at the checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            history, states = state["history"], [state[name] for name in self.parts]
        except (*BROKEN, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            set_aside(self.path, f"cut short or not a checkpoint: {error}")
            return []
        for part, of_part in zip(self.parts.values(), states, strict=True):
            part.load_state_dict(of_part)
        return history
