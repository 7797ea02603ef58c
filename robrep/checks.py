"""Checks of arguments: each failure is one sentence that names the argument, what came and what was expected."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_looking: ContextVar[bool | None] = ContextVar("looking", default=None)


@contextmanager
def looking(yes: bool) -> Iterator[None]:
    """Within, checks look at the values of all tensors, or of none.

    Training looks in its first step, and not again: to look at a value, the host waits for the device.
    """
    token = _looking.set(yes)
    try:
        yield
    finally:
        _looking.reset(token)


def may_look(t: Tensor) -> bool:
    """Whether a check may look at the values of ``t``: as :func:`looking` says, else on the CPU alone.

    On a CPU a look costs nothing. On an accelerator the host would wait, in every step of every attack.
    """
    wanted = _looking.get()
    return not t.is_meta and (t.device.type == "cpu" if wanted is None else wanted)


def one_of(name: str, value: str, options: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``options``.

    Raises:
        ValueError: naming ``name``, the value, the options and the closest of them.
    """
    options = list(options)
    if value in options:
        return value
    close = difflib.get_close_matches(str(value), options, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, options))}{hint}")


def positive_int(name: str, value: Any) -> int:
    """Return ``value`` as an ``int`` if it is an integer of at least 1, of Python, numpy or torch.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below 1.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and may_look(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}, expected an integer of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return int(value)


def nonnegative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number of at least 0.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, infinite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, expected a number of at least 0")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
    return float(value)


def above_zero(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above 0.

    Raises:
        TypeError: it is not a number.
        ValueError: it is 0, negative, infinite or not a number.
    """
    if nonnegative(name, value) == 0:
        raise ValueError(f"{name} is {value}, expected a number above 0")
    return float(value)


def check_images(x: Tensor, name: str = "x") -> Tensor:
    """Return ``x`` if it is a batch of images: floating point, N x C x H x W, N at least 1, finite, in [0, 1].

    The values are looked at where :func:`may_look` allows it.

    Raises:
        TypeError: it is not a tensor, or not of floating point (divide uint8 images by 255, or use ``data.as_float``).
        ValueError: wrong number of dimensions, an empty batch, or values outside [0, 1] or not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor of images, N x C x H x W")
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}, expected floating point in [0, 1] (see robrep.data.as_float)")
    if x.ndim != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected N x C x H x W")
    if x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected at least one image")
    if not may_look(x):
        return x
    low, high = (v.item() for v in x.detach().aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"{name} has values from {low:.4g} to {high:.4g}, expected finite values in [0, 1]")
    return x


def check_labels(y: Tensor, n: int | None = None, classes: int | None = None, name: str = "y") -> Tensor:
    """Return ``y`` if it is a vector of N class indices; the values are looked at where :func:`may_look` allows it.

    Args:
        y: int64 tensor of shape (N,).
        n: number of labels expected.
        classes: labels must be in 0 ... classes - 1.
        name: name of the argument, for messages.

    Raises:
        TypeError: it is not a tensor, or not of dtype int64.
        ValueError: wrong shape or length, empty, or a label out of range.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} is a {type(y).__name__}, expected a torch.Tensor of class indices")
    if y.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {y.dtype}, expected torch.int64")
    if y.ndim != 1 or y.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(y.shape)}, expected a vector of at least one class index")
    if n is not None and len(y) != n:
        raise ValueError(f"{name} has {len(y)} labels, expected {n}, one for each image")
    if not may_look(y):
        return y
    low, high = (int(v) for v in y.aminmax())
    if low < 0 or (classes is not None and high >= classes):
        expected = f"in 0 ... {classes - 1}" if classes is not None else "of at least 0"
        raise ValueError(f"{name} has labels from {low} to {high}, expected labels {expected}")
    return y


def optional(package: str, extra: str) -> ModuleType:
    """Import a package that only an extra of robrep installs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} cannot be imported ({error}), expected it to be installed: pip install 'robrep[{extra}]'"
        ) from error
