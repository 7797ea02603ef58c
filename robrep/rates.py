"""Rates of images with intervals: Wilson's for one rate, a paired bootstrap for the difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robrep.checks import positive_int
from robrep.random import generator

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a rate (Wilson 1927): (low, high), 95 % for the default ``z``.

    Unlike the bootstrap it has a width at 0 and at n successes.

    Raises:
        ValueError: ``n`` below 1, or ``successes`` outside 0 ... n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} and n is {n}, expected 0 <= successes <= n and n at least 1")
    rate, t = successes / n, z * z / n
    centre = (rate + t / 2) / (1 + t)
    half = z / (1 + t) * math.sqrt(rate * (1 - rate) / n + t / (4 * n))
    # at the ends the exact bound is the end itself; rounding would miss it
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


@dataclass(frozen=True)
class Rate:
    """A share of images with Wilson's 95 % interval, which spans images, not training seeds.

    Attributes:
        correct: bool, shape (N,): which images count.
        attack: the attack and its ball in words; "" for clean images.
    """

    correct: Tensor = field(repr=False)
    attack: str = ""

    def __post_init__(self) -> None:
        if self.correct.dtype != torch.bool or self.correct.ndim != 1 or not len(self.correct):
            came = f"{self.correct.dtype} of shape {tuple(self.correct.shape)}"
            raise ValueError(f"correct is {came}, expected bool of shape (N,), N at least 1")

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.correct)

    @property
    def value(self) -> float:
        """The share in [0, 1]."""
        return int(self.correct.sum()) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(int(self.correct.sum()), self.n)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval[1]

    def of(self, index: Tensor) -> Rate:
        """The rate of the images with these indices."""
        return Rate(self.correct[index], self.attack)

    def to_dict(self) -> dict[str, float | int | str]:
        """What a record keeps: value, low, high, n, attack."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "attack": self.attack}

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.n}"


def curve(x: Sequence[float], rates: Sequence[Rate]) -> dict[str, list[float]]:
    """Rates against ``x``, as records and figures keep them: lists ``x``, ``y``, ``low`` and ``high`` of one length."""
    y, low, high = ([getattr(rate, name) for rate in rates] for name in ("value", "low", "high"))
    return {"x": [float(v) for v in x], "y": y, "low": low, "high": high}


def paired_bootstrap(a: Tensor, b: Tensor, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Difference of two rates measured on the same images: (mean(a) - mean(b), low, high), 95 % by the bootstrap.

    Args:
        a, b: bool or float, shape (N,), in the same order of images.
        draws: number of resampled image sets.
        seed: seed of the resampling.

    Raises:
        ValueError: shapes that differ, or nothing in them.
    """
    positive_int("draws", draws)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}, expected the same (N,), N at least 1")
    d = a.double().cpu() - b.double().cpu()
    index = torch.randint(len(d), (draws, len(d)), generator=generator("bootstrap", seed))
    low, high = torch.quantile(d[index].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return d.mean().item(), low, high
