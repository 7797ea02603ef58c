"""Projected gradient ascent, and its single step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robrep.attacks.engine import Best, Objective, Problem, Search
from robrep.attacks.threats import Threat, column
from robrep.checks import nonnegative, one_of


@dataclass(frozen=True)
class PGD(Search):
    """Projected gradient ascent with steps of the norm's own steepest direction (Madry et al. 2018).

    Args:
        steps: number of gradient steps, at least 1.
        step_size: length of a step in pixel units; None for ``relative_step`` * eps.
        restarts: independent runs, of which each example keeps the one with the highest score.
        random_start: start at a random point of the ball. Needed wherever the objective's gradient vanishes at x
            (a divergence between the codes of x and x'); from x itself the first step would be rounding noise.
        keep: "last" returns the last iterate, as the papers do; "best" the iterate with the highest score, the start
            included, at the price of one more forward pass.
        leave_early: an example that the objective calls done (it gives ``(scores, done)``) stays where it is, and
            leaves the batch, so that the rest is faster. The results of the others do not change. On an accelerator
            the host looks every few steps who may leave.
        relative_step: length of a step as a share of eps; None for 2.5 / steps.

    Raises:
        ValueError, TypeError: an argument out of its range, when the attack is made.
    """

    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    keep: Literal["last", "best"] = "last"
    leave_early: bool = False
    relative_step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("keep", self.keep, ("last", "best"))
        if self.step_size is not None:
            nonnegative("step_size", self.step_size)
        if self.relative_step is not None:
            nonnegative("relative_step", self.relative_step)
            if self.step_size is not None:
                raise ValueError(f"step_size is {self.step_size} beside a relative_step, expected one of the two")

    def __str__(self) -> str:
        step = f", step {self.step_size:g}" if self.step_size is not None else ""
        step = f", step {self.relative_step:g} ε" if self.relative_step is not None else step
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        start = "" if self.random_start else ", no random start"
        kept = ", best iterate" if self.keep == "best" else ""
        return f"PGD-{self.steps}{step}{restarts}{start}{kept}{', first success' if self.leave_early else ''}"

    def climb(self, todo: Problem, best: Best, restart: int) -> None:
        x_adv = todo.first(restart, self.random_start)
        for step in range(self.steps):
            score, done, grad = todo.ascent(x_adv, "step", restart, step)
            if self.keep == "best":
                best.see(todo.place, x_adv, score, done)
            if self.leave_early and done is not None:
                best.see_done(todo.place, x_adv, score, done)
                if (stay := todo.staying(best, step)) is not None:
                    todo, x_adv, grad = todo.take(stay), x_adv[stay], grad[stay]
                    if not len(x_adv):
                        return
            x_adv = todo.project(self._step(x_adv, todo.threat.direction(grad), todo))
        if self.keep == "best" or self.restarts > 1 or self.leave_early:
            best.see(todo.place, x_adv, *todo.score(x_adv, "step", restart, self.steps))
        else:
            best.x = x_adv

    def _step(self, x_adv: Tensor, direction: Tensor, todo: Problem) -> Tensor:
        """x' + size * direction."""
        size: float | Tensor | None = self.step_size
        if size is None:
            size = (2.5 / self.steps if self.relative_step is None else self.relative_step) * todo.threat.eps
        if isinstance(size, Tensor):
            return x_adv + direction * column(size, x_adv)
        return torch.add(x_adv, direction, alpha=size)


@dataclass(frozen=True)
class FGSM:
    """One signed (or l2-normalised) gradient step (Goodfellow et al. 2015).

    Args:
        random_start: start at a random point of the ball and step 1.25 * eps (Wong et al. 2020); otherwise start at
            x and step eps.
    """

    random_start: bool = True

    def __str__(self) -> str:
        return f"FGSM{', random start' if self.random_start else ''}"

    def __call__(self, objective: Objective, x: Tensor, threat: Threat, *given: Any, **keywords: Any) -> Tensor:
        """As :meth:`PGD.__call__`."""
        step = PGD(1, random_start=self.random_start, relative_step=1.25 if self.random_start else 1.0)
        return step(objective, x, threat, *given, **keywords)
