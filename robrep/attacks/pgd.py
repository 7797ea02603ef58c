"""Projected gradient ascent, and its single step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from robrep.attacks.engine import Best, Objective, Problem, runs
from robrep.attacks.threats import Threat, check_count, check_radius, column, text
from robrep.checks import nonnegative, one_of, positive_int
from robrep.random import Seed


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent with steps of the norm's own steepest direction (Madry et al. 2018).

    Args:
        steps: number of gradient steps, at least 1.
        step_size: length of a step in pixel units (or one for each example); None for ``relative_step`` * eps.
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
    step_size: float | Tensor | None = None
    restarts: int = 1
    random_start: bool = True
    keep: Literal["last", "best"] = "last"
    leave_early: bool = False
    relative_step: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        one_of("keep", self.keep, ("last", "best"))
        if self.step_size is not None:
            check_radius(self.step_size, "step_size")
        if self.relative_step is not None:
            nonnegative("relative_step", self.relative_step)
            if self.step_size is not None:
                raise ValueError(f"step_size is {self.step_size} beside a relative_step, expected one of the two")

    def __str__(self) -> str:
        step = f", step {text(self.step_size)}" if self.step_size is not None else ""
        step = f", step {text(self.relative_step)} ε" if self.relative_step is not None else step
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        start = "" if self.random_start else ", no random start"
        kept = ", best iterate" if self.keep == "best" else ""
        return f"PGD-{self.steps}{step}{restarts}{start}{kept}{', first success' if self.leave_early else ''}"

    def __call__(
        self,
        objective: Objective,
        x: Tensor,
        threat: Threat,
        *given: Any,
        ids: Tensor | None = None,
        seed: Seed = 0,
        start: Tensor | None = None,
    ) -> Tensor:
        """Search A(x) for the input that makes the objective largest.

        Args:
            objective: ``objective(x', *given)`` -> scores, shape (N,), or (scores, done) with a bool (N,) that says
                which examples need no more; see :func:`random_objective` for noise.
            x: images in [0, 1], shape (N, C, H, W).
            threat: the ball.
            given: tensors with N rows, or tuples of them, passed on to the objective.
            ids: int64, shape (N,), naming the examples' random streams; 0 ... N - 1 if None.
            seed: seed of the random streams.
            start: images to begin the first run from (brought back into the ball) in place of a random start.

        Returns:
            x', detached, of the shape and dtype of ``x``, inside the ball (to 1e-6) and in [0, 1].

        Raises:
            TypeError, ValueError: ``x`` is not a batch of images in [0, 1], or the objective's result is malformed.
            FloatingPointError: the objective's gradient is not finite. On an accelerator, and in training after the
                first step, nothing is raised: the host would have to wait. Such an image comes back as NaN.
        """
        problem = Problem.of(objective, x, threat, given, ids, seed, start, self.leave_early)
        if isinstance(self.step_size, Tensor):
            check_count("step_size", self.step_size, problem.x)
        best = None
        if self.keep == "best" or self.restarts > 1 or self.leave_early:
            best = Best(problem.x, first=self.leave_early)
        for restart, todo, given_start in runs(problem, best, self.restarts, start, self.leave_early):
            last = self._climb(todo, todo.first(given_start, self.random_start, "start", restart), best, restart)
        return problem.finite(last if best is None else best.x)

    def _size(self, problem: Problem) -> float | Tensor:
        if self.step_size is None:
            return (2.5 / self.steps if self.relative_step is None else self.relative_step) * problem.threat.eps
        return self.step_size[problem.place] if isinstance(self.step_size, Tensor) else self.step_size

    def _climb(self, todo: Problem, x_adv: Tensor, best: Best | None, restart: int) -> Tensor:
        """One run from ``x_adv``, which it may write to: the last iterate; ``best`` sees what counts."""
        project, size = todo.threat.projection(todo.x), self._size(todo)
        for step in range(self.steps):
            score, done, grad = todo.ascent(x_adv, "step", restart, step)
            if best is not None and self.keep == "best":
                best.see(todo.place, x_adv, score, done)
                x_adv = x_adv.clone()  # the steps below write in place
            if best is not None and self.leave_early and done is not None:
                best.see_done(todo.place, x_adv, score, done)
                if (stay := todo.leaving(best, step)) is not None:
                    todo, x_adv, grad = todo.take(stay), x_adv[stay], grad[stay]
                    if not len(x_adv):
                        return x_adv
                    project, size = todo.threat.projection(todo.x), self._size(todo)
            x_adv = project(_step(x_adv, todo.threat.direction(grad), size))
        if best is not None:
            best.see(todo.place, x_adv, *todo.score(x_adv, "step", restart, self.steps))
        return x_adv


def _step(x_adv: Tensor, direction: Tensor, size: float | Tensor) -> Tensor:
    """x' + size * direction, written into ``x_adv``."""
    if isinstance(size, Tensor):
        return x_adv.add_(direction.mul_(column(size, x_adv)))
    return x_adv.add_(direction, alpha=size)


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

    def __call__(
        self,
        objective: Objective,
        x: Tensor,
        threat: Threat,
        *given: Any,
        ids: Tensor | None = None,
        seed: Seed = 0,
        start: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`PGD.__call__`."""
        step = PGD(1, random_start=self.random_start, relative_step=1.25 if self.random_start else 1.0)
        return step(objective, x, threat, *given, ids=ids, seed=seed, start=start)
