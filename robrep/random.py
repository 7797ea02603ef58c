"""Random numbers as a function of (seed, id, place): the same bits in every batch and on every device.

This is a counter-based generator (Salmon et al. 2011): there is no state, and any number can be computed without those
before it. SplitMix64 (Steele et al. 2014) adds multiples of a constant to a seed and hashes the sum. Here a hash of
(seed, id) is the seed of an example's own stream, and the place inside the example counts along it. Everything is
integer arithmetic in tensor operations on the device of ``ids``; the global random state is neither read nor written.

A seed is an integer or an int64 tensor without dimensions, and both give the same numbers. A tensor lets a captured
training step be replayed with another seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

Seed = int | Tensor

WORD = (1 << 64) - 1  # integers here are modulo 2**64, as int64 tensors wrap around
INCREMENT = 0x9E3779B97F4A7C15  # of SplitMix64
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # its finalizer: shifts and factors


def _signed(word: int) -> int:
    """The number that an int64 tensor holds for these 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def _hash(word: int) -> int:
    """SplitMix64's finalizer: a bijection of 0 ... 2**64 - 1 in which every input bit moves every output bit."""
    for shift, factor in ROUNDS:
        word = (word ^ word >> shift) * factor & WORD
    return word


def _hash_(words: Tensor) -> Tensor:
    """The same, in place, for an int64 tensor. Its right shift copies the sign, which is masked out."""
    shifted = torch.empty_like(words)
    for shift, factor in ROUNDS:
        torch.bitwise_right_shift(words, shift, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            words.mul_(_signed(factor))
    return words


@cache
def _text(part: str) -> int:
    return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")


def as_seed(value: Any, name: str = "seed") -> Seed:
    """Return ``value`` as a Python integer, or as an int64 tensor if it is a tensor.

    Raises:
        TypeError: it is neither an integer (of any type) nor an integer tensor without dimensions.
        ValueError: it does not fit into 64 bits.
    """
    expected = "expected an integer in -2**63 ... 2**63 - 1, or an int64 tensor without dimensions"
    if isinstance(value, Tensor):
        if value.ndim or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} is a {value.dtype} tensor of shape {tuple(value.shape)}, {expected}")
        return value.long()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}, {expected}")
    value = int(value)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{name} is {value}, {expected}")
    return value


def fold(*parts: Seed | str) -> Any:
    """Hash integers, strings and integer tensors to one seed in 0 ... 2**63 - 1.

    Any change of a part gives an unrelated seed. The result is an int64 tensor if one of the parts is a tensor, and it
    holds the number that integers of the same values give.

    Raises:
        TypeError, ValueError: a part that is neither text nor a seed (see :func:`as_seed`).
    """
    state: Seed = _text("")
    for part in parts:
        if isinstance(part, str):
            added: Seed = _text(part)
        else:
            seed = as_seed(part, "a part of the seed")
            added = (seed + 1) * (_signed(INCREMENT) if isinstance(seed, Tensor) else INCREMENT)
        if isinstance(state, Tensor) or isinstance(added, Tensor):
            state, added = (v if isinstance(v, Tensor) else _signed(v & WORD) for v in (state, added))
            state = _hash_(state + added)  # type: ignore[arg-type]
        else:
            state = _hash(state + added & WORD)
    if isinstance(state, Tensor):
        return state.bitwise_right_shift_(1).bitwise_and_((1 << 63) - 1)
    return state >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by ``fold(*parts)``, for torch's own functions."""
    return torch.Generator().manual_seed(fold(*parts))


def _words(seed: Seed, ids: Tensor, count: int) -> Tensor:
    """``count`` random int64 words for each id: SplitMix64's streams, seeded by a hash of (seed, id); (N, count)."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
        came = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids is {came}, expected an int64 tensor of shape (N,)")
    step = _signed(INCREMENT)
    streams = _hash_((ids + 1) * step + fold("ids", as_seed(seed)))
    places = torch.arange(1, count + 1, device=ids.device) * step
    return _hash_(streams[:, None] + places)


def uniform(seed: Seed, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers uniform in [0, 1), multiples of 2**-24; shape (N, *shape), float32, on the device of ``ids``.

    Args:
        seed: an integer in -2**63 ... 2**63 - 1, or an int64 tensor without dimensions.
        ids: int64 tensor of shape (N,); row i depends only on ``seed``, ``ids[i]`` and ``shape``.
        shape: shape of one example's numbers.

    Raises:
        TypeError, ValueError: ``seed`` is not such a number, ``ids`` is not an int64 vector.
    """
    count = math.prod(shape)
    bits = _words(seed, ids, (count + 1) // 2).view(torch.int32)  # two numbers from each word
    bits = bits[:, :count].bitwise_right_shift_(8)  # 24 bits: -2**23 ... 2**23 - 1
    return bits.to(torch.float32).mul_(2.0**-24).add_(0.5).reshape(len(ids), *shape)


def noise(seed: Seed, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, shape (N, *shape), float32, on the device of ``ids``; arguments as for :func:`uniform`.

    Box and Muller's transform of 32 bits each, at most 6.8 in size. It is computed in float64, so that after rounding
    to float32 the numbers agree on all devices (up to one in about 2**28, where two logarithms round differently).
    """
    count = math.prod(shape)
    words = _words(seed, ids, (count + 1) // 2)  # two numbers from each
    angle = words.bitwise_and(0xFFFFFFFF).to(torch.float64).mul_(2 * math.pi * 2.0**-32)  # from the low halves
    high = words.bitwise_right_shift_(32).to(torch.float64).add_(2.0**31 + 0.5).mul_(2.0**-32)  # in (0, 1)
    radius = high.log_().mul_(-2).sqrt_()
    both = torch.empty(len(ids), 2, words.shape[1], device=ids.device, dtype=torch.float32)
    both[:, 0] = angle.cos().mul_(radius)
    both[:, 1] = angle.sin_().mul_(radius)
    return both.flatten(1)[:, :count].reshape(len(ids), *shape)


def permutation(seed: Seed, n: int, device: torch.device | str = "cpu") -> Tensor:
    """A random order of 0 ... n - 1 that depends on ``seed`` and ``n`` alone; shape (n,), int64, on ``device``.

    It sorts n different random words: the hash is a bijection, so no two are equal.
    """
    return _words(fold("permutation", seed, n), torch.arange(n, device=device), 1).squeeze(1).argsort()
