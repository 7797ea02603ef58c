"""AutoPGD: projected gradient ascent that sets its own step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robrep.attacks.engine import Best, Problem, Search, replace_rows
from robrep.attacks.threats import column


def checkpoints(steps: int) -> list[int]:
    """After how many steps APGD looks back: the first time after 22 % of them, then at intervals that shrink by 3
    points down to 6 % (100 steps: 22, 41, 57, 70, 80, 87, 93, 99)."""
    interval, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    times, at = [], interval
    while at <= steps:
        times.append(at)
        interval = max(interval - shrink, least)
        at += interval
    return times


@dataclass
class _State:
    """What APGD knows of each example still under attack; every field has one row for each."""

    x_adv: Tensor
    previous: Tensor
    direction: Tensor
    best: Tensor  # the point with the highest score, from which the ascent goes on after a step is halved
    best_direction: Tensor
    best_score: Tensor
    size: Tensor
    last_score: Tensor
    progress: Tensor  # steps since the last checkpoint that improved on the step before
    halved: Tensor  # at the last checkpoint
    best_at_checkpoint: Tensor
    done: Tensor  # at some point of this run

    def take(self, index: Tensor) -> _State:
        return _State(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class APGD(Search):
    """AutoPGD: ascent with momentum whose step is halved where it stops helping (Croce and Hein 2020, algorithm 1).

    The first step is 2 eps. A step moves 3/4 along the (projected) gradient step and 1/4 along the last move. At each
    checkpoint an example's step is halved if at most 75 % of the steps since the last checkpoint improved on the step
    before, or if the step was not halved there and the best score has not changed since; it then goes on from its best
    point. As in the reference implementation, the first step counts as an improvement if its score is above 0.

    Args:
        steps: number of gradient steps, at least 1.
        restarts: independent runs from other random points; each example keeps its best.
        random_start: start at a random point of the ball; otherwise at x.
        leave_early: an example that the objective calls done stays where it is and leaves the batch.

    Raises:
        ValueError, TypeError: an argument out of its range, when the attack is made.
    """

    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    leave_early: bool = False

    def __str__(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"APGD-{self.steps}{restarts}{'' if self.random_start else ', no random start'}"

    def climb(self, todo: Problem, best: Best, restart: int) -> None:
        looks, since = set(checkpoints(self.steps)), 0
        s = self._begin(todo, todo.first(restart, self.random_start), best, restart)
        for step in range(1, self.steps + 1):
            if (stay := todo.staying(best, step - 1)) is not None:
                todo, s = todo.take(stay), s.take(stay)
                if not len(s.x_adv):
                    return
            s.x_adv, s.previous = _move(s, todo.project, momentum=step > 1), s.x_adv
            if step < self.steps:
                score, done, grad = todo.ascent(s.x_adv, "step", restart, step)
                s.direction = todo.threat.direction(grad)
            else:  # no step follows the last point
                score, done = todo.score(s.x_adv, "step", restart, step)
            if done is not None:
                best.see_done(todo.place, s.x_adv, score, done & ~s.done)
                s.done = s.done | done
            better = score > s.best_score
            replace_rows(s.best, s.x_adv, better)
            replace_rows(s.best_direction, s.direction, better)
            s.best_score = torch.where(better, score, s.best_score)
            s.progress += score > s.last_score
            s.last_score, since = score, since + 1
            if step in looks:
                stuck = ~s.halved & (s.best_at_checkpoint >= s.best_score)
                s.halved = (s.progress <= 0.75 * since) | stuck
                s.best_at_checkpoint, s.progress, since = s.best_score.clone(), torch.zeros_like(s.progress), 0
                s.size = torch.where(s.halved, s.size / 2, s.size)
                replace_rows(s.x_adv, s.best, s.halved)
                replace_rows(s.direction, s.best_direction, s.halved)
        best.see(todo.place, s.best, s.best_score)  # of those that are not done: a point that is done stays

    def _begin(self, todo: Problem, x_adv: Tensor, best: Best, restart: int) -> _State:
        """The state before the first step."""
        score, done, grad = todo.ascent(x_adv, "step", restart, 0)
        direction, eps = todo.threat.direction(grad), todo.threat.eps
        done = torch.zeros_like(score, dtype=torch.bool) if done is None else done
        best.see_done(todo.place, x_adv, score, done)
        return _State(
            x_adv=x_adv,
            previous=x_adv.clone(),
            direction=direction,
            best=x_adv.clone(),
            best_direction=direction.clone(),
            best_score=score.clone(),
            size=2 * (eps.to(x_adv) if isinstance(eps, Tensor) else x_adv.new_full((len(x_adv),), eps)),
            last_score=torch.zeros_like(score),
            progress=torch.zeros_like(score),
            halved=torch.ones_like(done),
            best_at_checkpoint=score.clone(),
            done=done.clone(),
        )


def _move(s: _State, project: Any, momentum: bool) -> Tensor:
    """The next point: a projected gradient step, mixed with the last move. It takes the memory of ``s.previous``, which
    is not needed any more."""
    ahead = project(torch.addcmul(s.x_adv, s.direction, column(s.size, s.x_adv)))
    if not momentum:
        return ahead
    # x + 3/4 (ahead - x) + 1/4 (x - previous) lies three quarters of the way from 2 x - previous to ahead
    return project(s.previous.lerp_(s.x_adv, 2.0).lerp_(ahead, 0.75))
