"""Checkpoints of a training: whole or not at all, refused by name when they are damaged or belong to another run."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robrep.files import atomic_write
from robrep.identity import identity

CHECKPOINT_VERSION = 2


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


def save(path: Path, settings: dict[str, Any], history: list[dict[str, float]], **parts: Any) -> None:
    """Write settings, history and the state of ``parts`` (whatever has ``state_dict``).

    Raises:
        OSError: it cannot be written; the previous file is then intact.
    """
    state = {"version": CHECKPOINT_VERSION, "settings": settings, "history": list(history)}
    state |= {name: part.state_dict() for name, part in parts.items()}
    try:
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
    except RuntimeError as error:  # what torch makes of a disk that is full
        raise OSError(f"checkpoint {path} cannot be written: {error}") from error


def _entries(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested settings, by dotted names."""
    for k, v in settings.items():
        if isinstance(v, dict):
            yield from _entries(v, f"{prefix}{k}.")
        else:
            yield prefix + k, v


def resume(path: Path, settings: dict[str, Any], **parts: Any) -> list[dict[str, float]]:
    """Load a checkpoint into ``parts`` (whatever has ``load_state_dict``), and return its history.

    Raises:
        Damaged: it is cut short, or not a checkpoint.
        ValueError: it is of another version, or of another run than ``settings`` describe.
    """
    broken = (RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError)
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, found, now = state["version"], dict(_entries(state["settings"])), dict(_entries(settings))
    except (*broken, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise Damaged(f"checkpoint {path} is cut short or not a checkpoint of robrep: {error}") from error
    if version != CHECKPOINT_VERSION:
        raise ValueError(f"checkpoint {path} has version {version}, expected {CHECKPOINT_VERSION}")
    differ = sorted(k for k in now.keys() | found.keys() if now.get(k) != found.get(k))
    if differ:
        came = ", ".join(f"{k} = {found.get(k)!r:.80}, now {now.get(k)!r:.80}" for k in differ)
        raise ValueError(f"checkpoint {path} is from other settings ({came}); remove it or name another")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["history"]
