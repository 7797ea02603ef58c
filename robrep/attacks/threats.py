"""Threat models: the set A(x) that an attack may search, a ball around the image within [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from robrep.checks import may_look, nonnegative
from robrep.random import Seed, fold, noise, uniform


def check_count(name: str, value: Any, n: int) -> None:
    """Refuse a tensor of other than ``n`` rows."""
    if isinstance(value, Tensor) and len(value) != n:
        raise ValueError(f"{name} has {len(value)} rows, expected {n}, one for each image")


def column(value: Tensor, x: Tensor) -> Tensor:
    """A vector (N,) shaped to be multiplied with images N x C x H x W."""
    return value.to(x).view(-1, *[1] * (x.ndim - 1))


def rows(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number as it is, one value for each image as a column."""
    check_count("eps", value, len(x))
    return column(value, x) if isinstance(value, Tensor) else value


def _norm(d: Tensor) -> Tensor:
    return torch.linalg.vector_norm(d.flatten(1), dim=1)


class Threat(Protocol):
    """What an attack needs to know of the set it may search: A(x) = ball of radius eps around x, within [0, 1]."""

    eps: float | Tensor

    def start(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """A random point of A(x), another for each example and seed."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent direction of the norm, of length 1 for each example; a new tensor."""

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that brings a point back to A(x); it may write into its argument."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The norm of a - b for each example, shape (N,)."""

    def take(self, index: Tensor) -> Threat:
        """The threat model of some of the examples: a radius of each example goes with its example."""


@dataclass(frozen=True)
class Ball:
    """What the balls of all norms share."""

    eps: float | Tensor
    norm: ClassVar[str]

    def __post_init__(self) -> None:
        eps = self.eps
        if not isinstance(eps, Tensor):
            nonnegative("eps", eps)
        elif eps.ndim != 1 or (may_look(eps) and not ((eps >= 0) & eps.isfinite()).all()):
            raise ValueError(f"eps is a tensor of shape {tuple(eps.shape)}, expected (N,), finite and at least 0")

    def take(self, index: Tensor) -> Self:
        return replace(self, eps=self.eps[index.to(self.eps.device)]) if isinstance(self.eps, Tensor) else self

    def __str__(self) -> str:
        radius = "varying with the image" if isinstance(self.eps, Tensor) else f"{self.eps:g}"
        return f"{self.norm} ball of radius {radius}"


@dataclass(frozen=True)
class Linf(Ball):
    """max_i |x'_i - x_i| <= eps and x' in [0, 1].

    Args:
        eps: the radius in pixel units of [0, 1], or one radius for each example, shape (N,).

    Raises:
        ValueError: the radius is negative or not finite.
        TypeError: it is not a number.
    """

    norm = "l-inf"

    def start(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        u = uniform(seed, ids, x.shape[1:]).to(x)
        return u.mul_(2).sub_(1).mul_(rows(self.eps, x)).add_(x).clamp_(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        eps = rows(self.eps, x)
        low, high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
        return lambda x_adv: x_adv.clamp_(low, high)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).amax(1)


@dataclass(frozen=True)
class L2(Ball):
    """||x' - x||_2 <= eps and x' in [0, 1]; arguments and errors as for :class:`Linf`."""

    norm = "l2"

    def start(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        direction = noise(fold(seed, "direction"), ids, x.shape[1:]).to(x)
        u = uniform(fold(seed, "length"), ids, ())
        # uniform in a d-dimensional ball: the radius is u^(1/d), not u. The last bits of a power depend on its place in
        # the batch: computed in float64 and kept in float32, it is the same everywhere.
        length = (u.double() ** (1 / x[0].numel())).float().to(x) / _norm(direction).clamp(min=1e-12)
        return (x + direction * rows(length, x) * rows(self.eps, x)).clamp_(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # not in half precision
        peak = g.abs().flatten(1).amax(1)  # first to size 1: squares of very small or large numbers are lost
        unit = g / column(peak.clamp(min=torch.finfo(g.dtype).tiny), g)
        return unit.div_(column(_norm(unit).clamp(min=1e-30), unit)).to(gradient.dtype)

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        eps = rows(self.eps, x)

        def project(x_adv: Tensor) -> Tensor:
            delta = x_adv.sub_(x)
            shrink = (eps / column(_norm(delta).clamp(min=1e-30), x)).clamp(max=1)
            # x is in [0, 1], so clipping only brings x' closer to it and never leaves the ball
            return delta.mul_(shrink).add_(x).clamp_(0, 1)

        return project

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return _norm(a - b)
