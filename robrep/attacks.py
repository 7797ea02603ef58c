"""Threat models and attacks: find the input inside the ball that makes an objective largest.

All attacks share one call shape::

    x_adv = attack(objective, x, threat, *given, ids=None, seed=0)

``objective(x', *given)`` gives one score for each example, to be made large. ``given`` are tensors with one row for
each example, or tuples of them (a clean ``Gaussian``, labels). Random numbers come from (seed, id), so what happens to
an example does not hang on the batch it is in. No attack touches parameters' gradients, batch-norm running statistics,
train/eval mode or the global random state; wrap the call in :func:`attack_mode` to attack a model in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robrep.checks import check_images, nonnegative, one_of, positive_int
from robrep.randomness import fold, noise, uniform

Objective = Callable[..., Tensor]
F = TypeVar("F", bound=Callable[..., Any])


# --- threat models ------------------------------------------------------------------------------------------------


def _radius(value: float | Tensor, name: str = "eps") -> None:
    if not isinstance(value, Tensor):
        nonnegative(name, value)
    elif value.ndim != 1 or not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}, expected (N,), finite and at least 0")


def _count(name: str, value: Tensor, x: Tensor) -> None:
    if len(value) != len(x):
        raise ValueError(f"{name} has {len(value)} rows, expected {len(x)}, one for each image")


def _column(value: Tensor, x: Tensor) -> Tensor:
    """A vector (N,) shaped to be multiplied with images N x C x H x W."""
    return value.to(x).view(-1, *[1] * (x.ndim - 1))


def _rows(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number as it is, one value for each image as a column."""
    if not isinstance(value, Tensor):
        return value
    _count("eps", value, x)
    return _column(value, x)


def _text(value: float | Tensor) -> str:
    return "varying with the image" if isinstance(value, Tensor) else f"{value:g}"


def _norm(d: Tensor) -> Tensor:
    return torch.linalg.vector_norm(d.flatten(1), dim=1)


class Threat(Protocol):
    """What an attack needs to know of the set it may search: A(x) = ball of radius eps around x, within [0, 1]."""

    eps: float | Tensor

    def start(self, x: Tensor, ids: Tensor, seed: int) -> Tensor:
        """A random point of A(x), another for each example and seed."""
        ...

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Move ``size`` along the steepest ascent direction of the norm; may write into ``x_adv``."""
        ...

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that brings a point back to A(x); it may write into its argument."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The norm of a - b for each example, shape (N,)."""
        ...


@dataclass(frozen=True)
class Linf:
    """max_i |x'_i - x_i| <= eps and x' in [0, 1].

    Args:
        eps: the radius in pixel units of [0, 1], or one radius for each example, shape (N,).

    Raises:
        ValueError: the radius is negative or not finite.
        TypeError: it is no number.
    """

    eps: float | Tensor

    def __post_init__(self) -> None:
        _radius(self.eps)

    def start(self, x: Tensor, ids: Tensor, seed: int) -> Tensor:
        u = uniform(seed, ids, x.shape[1:]).to(x)
        return u.mul_(2).sub_(1).mul_(_rows(self.eps, x)).add_(x).clamp_(0, 1)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        if isinstance(size, Tensor):
            return x_adv.add_(gradient.sign().mul_(_rows(size, x_adv)))
        return x_adv.add_(gradient.sign(), alpha=size)

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        eps = _rows(self.eps, x)
        low, high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
        return lambda x_adv: x_adv.clamp_(low, high)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).amax(1)

    def __str__(self) -> str:
        return f"l-inf ball of radius {_text(self.eps)}"


@dataclass(frozen=True)
class L2:
    """||x' - x||_2 <= eps and x' in [0, 1]; arguments and errors as for :class:`Linf`."""

    eps: float | Tensor

    def __post_init__(self) -> None:
        _radius(self.eps)

    def start(self, x: Tensor, ids: Tensor, seed: int) -> Tensor:
        direction = noise(fold(seed, "direction"), ids, x.shape[1:]).to(x)
        u = uniform(fold(seed, "length"), ids, (1,)).to(x).squeeze(1)
        # uniform in a d-dimensional ball: the radius is u^(1/d), not u
        length = u ** (1 / x[0].numel()) / _norm(direction).clamp(min=1e-12)
        return (x + direction * _rows(length, x) * _rows(self.eps, x)).clamp_(0, 1)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        peak = gradient.abs().flatten(1).amax(1)  # first to size 1: squares of very small or large numbers are lost
        unit = gradient / _column(peak.clamp(min=torch.finfo(gradient.dtype).tiny), gradient)
        unit.div_(_column(_norm(unit).clamp(min=1e-30), unit))
        return x_adv.add_(unit.mul_(_rows(size, x_adv)))

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        eps = _rows(self.eps, x)

        def project(x_adv: Tensor) -> Tensor:
            delta = x_adv.sub_(x)
            shrink = (eps / _column(_norm(delta).clamp(min=1e-30), x)).clamp(max=1)
            # x is in [0, 1], so clipping only brings x' closer to it and never leaves the ball
            return delta.mul_(shrink).add_(x).clamp_(0, 1)

        return project

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return _norm(a - b)

    def __str__(self) -> str:
        return f"l2 ball of radius {_text(self.eps)}"


# --- objectives and modes -----------------------------------------------------------------------------------------


def random_objective(objective: F) -> F:
    """Mark an objective that draws noise: the attack calls it as ``objective(x', *given, ids=ids, seed=seed)``.

    The seed changes with every restart and step, so the gradient is averaged over fresh noise (expectation over
    transformation, Athalye et al. 2018); how many samples each call averages is the objective's own affair.
    """
    objective.random = True  # type: ignore[attr-defined]
    return objective


@contextmanager
def attack_mode(*modules: Any, batch_norm: Literal["eval", "batch"] = "eval") -> Iterator[None]:
    """Put modules in evaluation mode for the time of an attack and restore each submodule's own mode afterwards.

    Args:
        modules: anything; what is no ``nn.Module`` is left alone.
        batch_norm: "eval" normalises with the running statistics; "batch" with the batch's own, without updating the
            running ones (as BYORL attacks; Gowal et al. 2021).
    """
    one_of("batch_norm", batch_norm, ("eval", "batch"))
    everything = [m for module in modules if isinstance(module, nn.Module) for m in module.modules()]
    before = [m.training for m in everything]
    norms = [m for m in everything if isinstance(m, _BatchNorm)] if batch_norm == "batch" else []
    tracked = [m.track_running_stats for m in norms]
    try:
        for m in everything:
            m.training = False
        for m in norms:
            m.training, m.track_running_stats = True, False
        yield
    finally:
        for m, training in zip(everything, before, strict=True):
            m.training = training
        for m, track in zip(norms, tracked, strict=True):
            m.track_running_stats = track


def gradient(
    objective: Objective, x_adv: Tensor, given: tuple[Any, ...], ids: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """The scores at x' and the gradient of their sum with respect to x' alone; shapes (N,) and of ``x_adv``.

    The scores are summed, never averaged: a mean would shrink each example's gradient with the batch size, down to
    zero in half precision.

    Raises:
        ValueError: the objective gives anything but one score for each example, or does not depend on x'.
    """
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        score = scores(objective, x_adv, given, ids, seed)
        grad = torch.autograd.grad(score.sum(), x_adv, allow_unused=True)[0] if score.requires_grad else None
        if grad is None:
            raise ValueError("objective does not depend on x': its graph is cut (a detach, no_grad or numpy inside?)")
    return score.detach(), grad


def scores(objective: Objective, x_adv: Tensor, given: tuple[Any, ...], ids: Tensor, seed: int) -> Tensor:
    """``objective(x', *given)``, with ids and seed if it draws noise; checked to be one score for each example."""
    keywords = {"ids": ids, "seed": seed} if getattr(objective, "random", False) else {}
    score = objective(x_adv, *given, **keywords)
    if score.shape != (len(x_adv),):
        raise ValueError(
            f"objective gave shape {tuple(score.shape)}, expected ({len(x_adv)},): one score for each example"
        )
    return score


# --- attacks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent with steps of the norm's own steepest direction (Madry et al. 2018).

    Args:
        steps: number of gradient steps, at least 1.
        step_size: length of a step in pixel units (or one for each example); None for 2.5 * eps / steps.
        restarts: independent runs, of which each example keeps the one with the highest score.
        random_start: start at a random point of the ball. Needed wherever the objective's gradient vanishes at x
            (a divergence between the codes of x and x'); from x itself the first step would be rounding noise.
        keep: "last" returns the last iterate, as the papers do; "best" the iterate with the highest score, the start
            included, at the price of one more forward pass.

    Raises:
        ValueError, TypeError: an argument out of its range, when the attack is made.
    """

    steps: int = 20
    step_size: float | Tensor | None = None
    restarts: int = 1
    random_start: bool = True
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)
        positive_int("restarts", self.restarts)
        one_of("keep", self.keep, ("last", "best"))
        if self.step_size is not None:
            _radius(self.step_size, "step_size")

    def __str__(self) -> str:
        step = f", step {_text(self.step_size)}" if self.step_size is not None else ""
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        start = "" if self.random_start else ", no random start"
        return f"PGD-{self.steps}{step}{restarts}{start}{', best iterate' if self.keep == 'best' else ''}"

    def __call__(
        self, objective: Objective, x: Tensor, threat: Threat, *given: Any, ids: Tensor | None = None, seed: int = 0
    ) -> Tensor:
        """Search A(x) for the input that makes the objective largest.

        Args:
            objective: ``objective(x', *given)`` -> scores, shape (N,); see :func:`random_objective` for noise.
            x: images in [0, 1], shape (N, C, H, W).
            threat: the ball.
            given: tensors with N rows, or tuples of them, passed on to the objective.
            ids: int64, shape (N,), naming the examples' random streams; 0 ... N - 1 if None.
            seed: seed of the random streams.

        Returns:
            x', detached, of the shape and dtype of ``x``, inside the ball (to 1e-6) and in [0, 1].

        Raises:
            TypeError, ValueError: ``x`` is no batch of images in [0, 1], or the objective's result is malformed.
            FloatingPointError: the objective's gradient is not finite.
        """
        x = check_images(x).detach()
        ids = torch.arange(len(x), device=x.device) if ids is None else ids
        _count("ids", ids, x)
        if isinstance(self.step_size, Tensor):
            _count("step_size", self.step_size, x)
        project = threat.projection(x)
        size = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        best, best_score = x, torch.full((len(x),), -torch.inf, device=x.device)
        judged, wide = self.keep == "best" or self.restarts > 1, torch.promote_types(x.dtype, torch.float32)

        def judge(x_adv: Tensor, score: Tensor) -> None:
            nonlocal best, best_score
            better = score > best_score
            best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x_adv, best)
            best_score = torch.where(better, score, best_score)

        for restart in range(self.restarts):
            x_adv = threat.start(x, ids, fold(seed, "start", restart)) if self.random_start else x.clone()
            total: float | Tensor = 0.0
            for step in range(self.steps):
                score, grad = gradient(objective, x_adv, given, ids, fold(seed, "step", restart, step))
                total = total + grad.sum(dtype=wide)  # what is not finite stays so; looked at once, after the steps
                if self.keep == "best":
                    judge(x_adv, score)
                    x_adv = x_adv.clone()  # the steps below write in place
                x_adv = project(threat.step(x_adv, grad, size))
            if not math.isfinite(total):
                raise FloatingPointError("the objective's gradient is not finite for at least one image")
            if judged:
                with torch.no_grad():
                    judge(x_adv, scores(objective, x_adv, given, ids, fold(seed, "step", restart, self.steps)))
        return best if judged else x_adv


@dataclass(frozen=True)
class FGSM:
    """One signed (or l2-normalised) gradient step (Goodfellow et al. 2015).

    Args:
        random_start: start at a random point of the ball and step 1.25 * eps (Wong et al. 2020); otherwise start at
            x and step eps.
    """

    random_start: bool = True

    def __call__(
        self, objective: Objective, x: Tensor, threat: Threat, *given: Any, ids: Tensor | None = None, seed: int = 0
    ) -> Tensor:
        """As :meth:`PGD.__call__`."""
        size = 1.25 * threat.eps if self.random_start else threat.eps
        return PGD(1, size, random_start=self.random_start)(objective, x, threat, *given, ids=ids, seed=seed)
