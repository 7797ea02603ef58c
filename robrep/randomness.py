"""Random numbers that depend on a seed and on the example, never on the batch it came in.

Every draw comes from a generator of its own, seeded by a hash of (seed, example id), on the CPU. An example thus meets
the same noise alone, in a batch of 7 and on another device, and the global random state is never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fold(*parts: int | str) -> int:
    """Hash integers and strings to one seed in 0 ... 2**63 - 1; any change of a part gives an unrelated seed."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by ``fold(*parts)``."""
    return torch.Generator().manual_seed(fold(*parts))


def permutation(seed: int, n: int) -> Tensor:
    """A random order of 0 ... n - 1 that depends on ``seed`` and ``n`` alone. Shape (n,), int64."""
    return torch.randperm(n, generator=generator("permutation", seed, n))


def _mix(seed: int, ids: Sequence[int]) -> list[int]:
    """One well-mixed 63-bit seed for each id (splitmix64's finalizer over the seed's hash plus the id)."""
    base, mask = fold("rows", seed), (1 << 64) - 1
    out = []
    for i in ids:
        h = (base + (i + 1) * 0x9E3779B97F4A7C15) & mask
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & mask
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & mask
        out.append((h ^ (h >> 31)) >> 1)
    return out


def _rows(draw: Callable[..., Tensor], seed: int, ids: Tensor, shape: Sequence[int]) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
        came = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids is {came}, expected an int64 tensor of shape (N,)")
    out = torch.empty(len(ids), *shape, dtype=torch.float32, device="cpu")
    stream = torch.Generator("cpu")
    for row, row_seed in zip(out, _mix(seed, ids.tolist()), strict=True):
        draw(row, generator=stream.manual_seed(row_seed))
    return out.to(ids.device)


def noise(seed: int, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, shape (N, *shape), float32, on the device of ``ids``.

    Args:
        seed: any integer.
        ids: int64 tensor of shape (N,); row i depends only on ``seed``, ``ids[i]`` and ``shape``.
        shape: shape of one example's noise.

    Raises:
        TypeError: ``ids`` is no int64 vector.
    """
    return _rows(Tensor.normal_, seed, ids, shape)


def uniform(seed: int, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers uniform in [0, 1), shape (N, *shape), float32; arguments and errors as for :func:`noise`."""
    return _rows(Tensor.uniform_, seed, ids, shape)
