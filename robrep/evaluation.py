"""Clean and robust accuracy with intervals, judged by noise that the attack has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Threat, attack_mode, random_objective
from robrep.checks import check_images, check_labels, positive_int
from robrep.data import as_float
from robrep.heads import device_of
from robrep.losses import cross_entropy
from robrep.progress import Progress
from robrep.randomness import fold, generator
from robrep.regularizers import Attack
from robrep.training import Examples

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

    def to_dict(self) -> dict[str, float | int | str]:
        """What a record keeps: value, low, high, n, attack."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "attack": self.attack}

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.n}"


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


def predict(model: nn.Module, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
    """``model(x)``, with ids and seed if it draws noise (a :class:`~robrep.heads.Classifier` or its like)."""
    return model(x, ids=ids, seed=seed) if draws_noise(model) else model(x)


def draws_noise(model: Any) -> bool:
    """Whether ``model`` takes ``ids`` and ``seed``: it has a number of ``samples``, as a ``Classifier`` has."""
    return hasattr(model, "samples")


def _batches(model: nn.Module, x: Examples, y: Tensor, batch_size: int) -> Any:
    """(images, labels, ids) on the model's device; images as floats in [0, 1]."""
    check_labels(y, len(x))
    device = device_of(model)
    for ids in torch.arange(len(x)).split(positive_int("batch_size", batch_size)):
        batch = x[ids]
        images = as_float(batch) if batch.dtype == torch.uint8 else check_images(batch)
        yield images.to(device), y[ids].to(device), ids.to(device)


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, seed: int) -> Tensor:
    """Which images of a batch are classified right, with noise that no attack has seen."""
    logits = predict(model, images, ids=ids, seed=fold(seed, "verdict"))
    check_labels(labels, len(images), logits.shape[1])
    return logits.argmax(1) == labels


@torch.no_grad()
def accuracy(model: nn.Module, x: Examples, y: Tensor, *, seed: int = 0, batch_size: int = 500) -> Rate:
    """Share of images classified right.

    Args:
        model: images to logits, in whatever mode; evaluated in evaluation mode.
        x: uint8 images, or floats in [0, 1].
        y: class indices (N,).
        seed: seed of the noise of a model that samples.
        batch_size: images in a pass.
    """
    right = []
    with attack_mode(model):
        for images, labels, ids in _batches(model, x, y, batch_size):
            right.append(_right(model, images, labels, ids, seed))
    return Rate(torch.cat(right).cpu())


def adversarial_images(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, threat: Threat, *, ids: Tensor | None = None, seed: int = 0
) -> Tensor:
    """x' in A(x) that makes the cross-entropy of ``model`` large: one batch, shape of ``x``.

    A model that samples is attacked through its average: each gradient is that of -log of the mean probability over
    the model's own number of samples, with fresh noise in every step.

    Args:
        model: images to logits; attacked in evaluation mode.
        x: images in [0, 1].
        y: class indices (N,).
        attack, threat: such as ``PGD(100)`` and ``Linf(0.1)``.
        ids, seed: name the random streams.
    """
    if draws_noise(model):

        @random_objective
        def objective(x_: Tensor, y_: Tensor, *, ids: Tensor, seed: int) -> Tensor:
            return cross_entropy(model(x_, ids=ids, seed=seed), y_)

    else:

        def objective(x_: Tensor, y_: Tensor) -> Tensor:  # type: ignore[misc]
            return cross_entropy(model(x_), y_)

    with attack_mode(model):
        return attack(objective, x, threat, y, ids=ids, seed=fold(seed, "attack"))


def robust_accuracy(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 500,
    progress: str | None = None,
) -> Rate:
    """Share of images classified right both as they are and at the x' that the attack finds.

    Images that are wrong already are not attacked. The verdict draws noise that the attack has not seen.

    Args:
        model: images to logits; a ``Classifier`` that samples is attacked through its average.
        x: uint8 images, or floats in [0, 1].
        y: class indices (N,).
        attack, threat: such as ``PGD(100)`` and ``Linf(0.1)``.
        seed: seed of the attack's and of the model's random streams.
        batch_size: images in a pass; it does not change the result, up to rounding.
        progress: a name for the evaluation, shown with the number of images done; None for silence.

    Returns:
        The robust accuracy against this attack, an upper bound of the true one.
    """
    right = torch.zeros(len(x), dtype=torch.bool)
    with Progress(progress or "", len(x), "image", show=progress is not None) as bar, attack_mode(model):
        for images, labels, ids in _batches(model, x, y, batch_size):
            alive = _right(model, images, labels, ids, seed)
            bar.update(len(ids))
            if not alive.any():
                continue
            images, labels, ids = images[alive], labels[alive], ids[alive]
            x_adv = adversarial_images(model, images, labels, attack, threat, ids=ids, seed=seed)
            right[ids.cpu()] = _right(model, x_adv, labels, ids, seed).cpu()
    averaged = f", gradients averaged over {model.samples} samples" if getattr(model, "samples", 0) else ""
    return Rate(right, f"{attack} in {threat}{averaged}")


def against_radius(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attack: Attack,
    threat: Callable[[float], Threat],
    radii: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int = 500,
) -> dict[str, list[float]]:
    """Robust accuracy against the attack's radius, as a curve that a record and a figure understand.

    Args:
        model, x, y, attack, seed, batch_size: as for :func:`robust_accuracy`.
        threat: the kind of ball, such as ``Linf``.
        radii: its radii; at 0 the images stay as they are.

    Returns:
        Lists ``x`` (the radii), ``y``, ``low`` and ``high`` (Wilson's interval) of one length.
    """
    rates = [
        robust_accuracy(model, x, y, attack, threat(eps), seed=seed, batch_size=batch_size)
        if eps
        else accuracy(model, x, y, seed=seed, batch_size=batch_size)
        for eps in radii
    ]
    return {
        "x": list(radii),
        "y": [rate.value for rate in rates],
        "low": [rate.low for rate in rates],
        "high": [rate.high for rate in rates],
    }
