"""What design tasks are judged on: classifiers that a seed draws, and a budget of calls.

An answer may run in another process, so whatever it gets is a module that can be pickled by its class's name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robrep import data
from robrep.book.exercises.core import Wrong, attacked_images, call
from robrep.objectives import cross_entropy
from robrep.random import generator

ROUNDING = 1e-6  # of an answer that draws its steps in float32


class DigitClassifier(nn.Module):
    """Logits (N, 10) of 8 x 8 digits: a linear layer, fitted by least squares, on random waves of the image.

    Without training by gradients it classifies about 96 % of the test images correctly, and PGD at radius 0.15 leaves
    almost none of them.

    Args:
        seed: draws the waves.
        width: how many.
    """

    def __init__(self, seed: int, width: int = 200) -> None:
        super().__init__()
        g = generator("waves", seed)
        digits = data.load("digits")
        self.waves = nn.Buffer(torch.randn(64, width, generator=g, dtype=torch.float64) / 2)
        self.phases = nn.Buffer(2 * math.pi * torch.rand(width, generator=g, dtype=torch.float64))
        h = self.features(digits.images("train").double())
        wanted = nn.functional.one_hot(digits.y_train, 10).double() - 0.1
        self.weight = nn.Buffer(10 * torch.linalg.solve(h.T @ h + torch.eye(width).double(), h.T @ wanted))

    def features(self, x: Tensor) -> Tensor:
        return torch.sin(x.flatten(1) @ self.waves + self.phases)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.weight


def drawn_digits(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Test images (count, 1, 8, 8), float64 in [0, 1], and their labels, drawn by a seed."""
    digits = data.load("digits")
    i = torch.randperm(len(digits.y_test), generator=generator("images", seed))[:count]
    return digits.images("test")[i].double(), digits.y_test[i]


class Budget(nn.Module):
    """A model that answers a number of calls, each for ``rows`` images or a part of them, and then refuses."""

    def __init__(self, model: nn.Module, calls: int, rows: int) -> None:
        super().__init__()
        self.model, self.calls, self.rows, self.spent = model, calls, rows, 0

    def forward(self, x: Tensor) -> Any:
        self.spent += len(x)
        if self.spent > self.calls * self.rows:
            raise RuntimeError(f"the budget of {self.calls} calls of the model is spent")
        return self.model(x)


def call_within(answer: Any, calls: int, model: nn.Module, x: Tensor, *more: Any) -> Any:
    """``answer(model, x, *more)`` with a budget of calls of the model on all of ``x``; with its own hint."""
    given = [value.clone() if isinstance(value, Tensor) else value for value in (x, *more)]
    try:
        return call(answer, Budget(model, calls, len(x)), *given)
    except Wrong as wrong:
        if "the budget of" not in wrong.seen:
            raise
        hint = f"every call of the model on all images counts, with a gradient or without: {calls} in all."
        raise Wrong(wrong.seen, hint) from None


def attack_within(answer: Any, calls: int, model: nn.Module, x: Tensor, *more: Any) -> Tensor:
    """The images that ``answer(model, x, *more)`` finds within a budget of calls; ``more`` ends with the radius.

    They are checked to be in the ball around ``x`` and in [0, 1].
    """
    return attacked_images(call_within(answer, calls, model, x, *more), x, more[-1] + ROUNDING)


def averaged_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int = 20, step: float = 0.125, samples: int = 1
) -> Tensor:
    """PGD on the cross-entropy in the l-infinity ball, from a random start: the reference of design tasks.

    Each gradient averages the probabilities of ``samples`` calls; a step is ``step`` times eps long.
    """
    u = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        u = u.detach().requires_grad_()
        log_p = torch.stack([-cross_entropy(model(u), y) for _ in range(samples)]).logsumexp(0)
        (g,) = torch.autograd.grad(-log_p.sum(), u)
        u = (u + step * eps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return u.detach()


def share_right(model: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> float:
    """Accuracy in [0, 1]; of a model that draws noise, by the probabilities averaged over ``draws`` calls."""
    with torch.no_grad():
        p = torch.stack([model(x).softmax(1) for _ in range(draws)]).mean(0)
    return (p.argmax(1) == y).double().mean().item()
