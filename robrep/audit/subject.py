"""The model under audit: what it says about its images, evaluated so that nothing of it is changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robrep.attacks import L2, Attack, Linf, attack_mode, gradient
from robrep.heads import device_of
from robrep.objectives import LOSSES, classifier_objective, predict
from robrep.random import fold, noise

PASS = 500  # images in a pass
CALLS = 8  # over which a model that does not repeat itself is averaged


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of an audit; modes, buffers and the global random states are put back afterwards."""
    kept = [(m, name, b, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    states = random.getstate(), np.random.get_state()
    cuda = [device_of(model)] if device_of(model).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda), attack_mode(model):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)
                setattr(module, name, buffer)


class Subject:
    """A model with its images, which the checks name by their rows.

    Attributes:
        sampled: whether the model draws noise from ids and seed.
        unrepeatable: whether the same call gives another answer.
        infinite: whether an attack met a gradient that is not finite.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, threat: Linf | L2, seed: int) -> None:
        self.model, self.x, self.y, self.threat, self.seed = model, x, y, threat, seed
        self.rows = torch.arange(len(x), device=x.device)
        self.sampled = self.unrepeatable = self.infinite = False

    def logits(self, x: Tensor, rows: Tensor, seed: int) -> Tensor:
        """Logits (N, C) of images that stand for ``rows``."""
        with torch.no_grad():
            parts = zip(x.split(PASS), rows.split(PASS), strict=True)
            return torch.cat([predict(self.model, a, ids=i, seed=seed) for a, i in parts])

    def right(self, x: Tensor, rows: Tensor) -> Tensor:
        """Bool (N,), by noise that no attack has seen; a model that does not repeat itself is judged by its average."""
        logits = self.logits(x, rows, fold(self.seed, "verdict"))
        if self.unrepeatable:
            calls = [self.logits(x, rows, self.seed).softmax(1) for _ in range(CALLS - 1)]
            logits = torch.stack([logits.softmax(1), *calls]).mean(0)
        return logits.argmax(1) == self.y[rows]

    def score(self, x: Tensor, rows: Tensor, seed: int, loss: str = "margin") -> Tensor:
        """What an attack would make large, (N,)."""
        return LOSSES[loss](self.logits(x, rows, seed), self.y[rows])

    def gradient(self, x: Tensor, rows: Tensor, seed: int, loss: str = "margin") -> Tensor:
        """Its gradient, of the shape of ``x``.

        Raises:
            ValueError, RuntimeError: the graph is cut.
        """
        objective = classifier_objective(self.model, loss)
        parts = zip(x.split(PASS), rows.split(PASS), strict=True)
        return torch.cat([gradient(objective, a, (self.y[i],), i, seed)[2] for a, i in parts])

    def broken(
        self, rows: Tensor, attack: Attack, objective: Callable[..., Any], name: str, threat: Linf | L2
    ) -> Tensor:
        """Which of these images, all right as they are, an attack breaks: bool, shape of ``rows``."""
        out = [torch.zeros_like(rows[:0], dtype=torch.bool)]
        for some in rows.split(PASS) if len(rows) else ():
            seed = fold(self.seed, "audit", name)
            try:
                x_adv = attack(objective, self.x[some], threat.take(some), self.y[some], ids=some, seed=seed)
            except FloatingPointError:
                self.infinite, x_adv = True, self.x[some]
            out.append(~self.right(x_adv, some))
        return torch.cat(out)

    def random_directions(self, rows: Tensor, name: str) -> Tensor:
        """Steps of length 1 in the threat's norm that know nothing of the model."""
        return self.threat.direction(noise(fold(self.seed, "direction", name), rows, self.x.shape[1:]).to(self.x))


def of(count: float, n: int) -> str:
    """A count in words."""
    return f"{round(count)} of {n} image{'s' if n != 1 else ''}"
