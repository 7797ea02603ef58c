"""What every attack needs: the objective's contract, modes, gradients, examples that leave, the best point so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from robrep.attacks.threats import Threat, check_count, column
from robrep.checks import check_images, may_look, one_of, positive_int
from robrep.random import Seed, fold

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LEAVE_EVERY = 5  # steps after which examples may leave on an accelerator; on a CPU they may after each

Objective = Callable[..., Any]  # (x', *given) -> scores (N,), or (scores (N,), done (N,))
Attack = Callable[..., Tensor]  # (objective, x, threat, *given, ids, seed) -> x'
F = TypeVar("F", bound=Callable[..., Any])

# --- objectives and modes -----------------------------------------------------------------------------------------


def random_objective(objective: F) -> F:
    """Mark an objective that draws noise: the attack calls it as ``objective(x', *given, ids=ids, seed=seed)``.

    The seed changes with every restart and step, so the gradient is averaged over fresh noise (expectation over
    transformation, Athalye et al. 2018); how many samples each call averages is the objective's own affair.
    """
    objective.random = True  # type: ignore[attr-defined]
    return objective


def batch_objective(objective: F) -> F:
    """Mark an objective in which an example's score depends on the others (NT-Xent, mutual information).

    No example may leave its batch early then; an attack that is asked for it refuses.
    """
    objective.batch = True  # type: ignore[attr-defined]
    return objective


_batch_statistics: ContextVar[bool] = ContextVar("batch_statistics", default=False)


@contextmanager
def attack_mode(*modules: Any, batch_norm: Literal["eval", "batch"] = "eval") -> Iterator[None]:
    """Put modules in evaluation mode for the time of an attack and restore each submodule's own mode afterwards.

    Args:
        modules: anything; objects that are not modules are ignored.
        batch_norm: "eval" normalises with the running statistics; "batch" with the batch's own, without updating the
            running ones (as BYORL attacks; Gowal et al. 2021). No example can leave such a batch early.
    """
    one_of("batch_norm", batch_norm, ("eval", "batch"))
    everything = [m for module in modules if isinstance(module, nn.Module) for m in module.modules()]
    before = [m.training for m in everything]
    norms = [m for m in everything if isinstance(m, BATCH_NORMS)] if batch_norm == "batch" else []
    tracked = [m.track_running_stats for m in norms]
    token = _batch_statistics.set(_batch_statistics.get() or bool(norms))
    try:
        for m in everything:
            m.training = False
        for m in norms:
            m.training, m.track_running_stats = True, False
        yield
    finally:
        _batch_statistics.reset(token)
        for m, training in zip(everything, before, strict=True):
            m.training = training
        for m, track in zip(norms, tracked, strict=True):
            m.track_running_stats = track


def scores(
    objective: Objective, x_adv: Tensor, given: tuple[Any, ...], ids: Tensor, seed: Seed, *at: int | str
) -> tuple[Tensor, Tensor | None]:
    """``objective(x', *given)``: one score for each example, (N,), and who is done, bool (N,), if it says so.

    An objective that draws noise also gets ids and seed, folded with ``at``, which names the place in the attack.

    Raises:
        ValueError: the objective gives anything else.
    """
    noise = {"ids": ids, "seed": fold(seed, *at) if at else seed} if getattr(objective, "random", False) else {}
    result = objective(x_adv, *given, **noise)
    score, done = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    n = len(x_adv)
    if not isinstance(score, Tensor) or score.shape != (n,):
        came = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else f"a {type(score).__name__}"
        raise ValueError(f"objective gave {came}, expected ({n},): one score for each example")
    if done is not None and not (isinstance(done, Tensor) and done.shape == (n,) and done.dtype == torch.bool):
        came = f"{done.dtype} of shape {tuple(done.shape)}" if isinstance(done, Tensor) else f"a {type(done).__name__}"
        raise ValueError(f"objective says who is done by {came}, expected bool of shape ({n},)")
    return score, done


def gradient(
    objective: Objective, x_adv: Tensor, given: tuple[Any, ...], ids: Tensor, seed: Seed, *at: int | str
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As :func:`scores`, and the gradient of their sum with respect to x' alone, of the shape of ``x_adv``.

    The scores are summed, never averaged: a mean would shrink each example's gradient with the batch size, down to
    zero in half precision.

    Raises:
        ValueError: as for :func:`scores`, or the objective does not depend on x'.
    """
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        score, done = scores(objective, x_adv, given, ids, seed, *at)
        grad = torch.autograd.grad(score.sum(), x_adv, allow_unused=True)[0] if score.requires_grad else None
        if grad is None:
            raise ValueError("objective does not depend on x': its graph is cut (a detach, no_grad or numpy inside?)")
    return score.detach(), done, grad


def replace_rows(kept: Tensor, new: Tensor, rows: Tensor) -> None:
    """kept[rows] = new[rows] for a mask (N,), in one pass: with weights 0 and 1 a linear interpolation is exact.

    On a CPU it takes a tenth of the time of an assignment by mask or index. A NaN in ``new`` gets into its row of
    ``kept``, chosen or not.
    """
    kept.lerp_(new, column(rows, new))


# --- the examples under attack, and the best of what was found ------------------------------------------------------


def _take(value: Any, index: Tensor) -> Any:
    """Rows of a tensor by a mask, of each part of a tuple (a ``Gaussian`` stays one), or None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.shape[:1] != index.shape:
            raise ValueError(
                f"given holds a tensor of shape {tuple(value.shape)}, expected {len(index)} rows, one for each image"
            )
        return value[index]
    if isinstance(value, tuple):
        parts = [_take(part, index) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    raise TypeError(
        f"given holds a {type(value).__name__}, expected tensors or tuples of them: examples leave the batch"
    )


@dataclass(frozen=True)
class Problem:
    """The examples that one call of an attack works on; ``take`` gives some of them.

    Attributes:
        objective, x, threat, given, ids, seed, start: as the attack's caller gave them, cut to these examples.
        leave_early: whether examples that are done may leave.
        place: int64 (N,), the examples' rows in the caller's batch.
        sums: of all gradients seen, one for each row of the caller's batch: finite only if all of them were.
    """

    objective: Objective
    x: Tensor
    threat: Threat
    given: tuple[Any, ...]
    ids: Tensor
    seed: Seed
    start: Tensor | None
    leave_early: bool
    place: Tensor
    sums: Tensor

    def take(self, index: Tensor) -> Problem:
        """Some of the examples, by a mask."""
        return replace(
            self,
            x=self.x[index],
            threat=self.threat.take(index),
            given=tuple(_take(g, index) for g in self.given),
            ids=self.ids[index],
            start=_take(self.start, index),
            place=self.place[index],
        )

    def runs(self, best: Best, restarts: int) -> Iterator[tuple[int, Problem]]:
        """The runs of an attack: each one's number, and the examples it works on.

        Where examples may leave, a run works on what the runs before it left; there is none when nothing is left.
        """
        for restart in range(restarts):
            if not self.leave_early or not best.done.any():
                yield restart, self
            elif not best.done.all():
                yield restart, self.take(~best.done)

    def first(self, restart: int, random_start: bool) -> Tensor:
        """Where a run begins: the first one at the caller's ``start`` if there is one; else at a random point, or x."""
        if restart == 0 and self.start is not None:
            return self.project(self.start.detach().to(self.x, copy=True))
        if random_start:
            return self.threat.start(self.x, self.ids, fold(self.seed, "start", restart))
        return self.x.clone()

    @cached_property
    def project(self) -> Callable[[Tensor], Tensor]:
        """The function that brings a point back to A(x); it may write into its argument."""
        return self.threat.projection(self.x)

    @torch.no_grad()
    def score(self, x_adv: Tensor, *at: int | str) -> tuple[Tensor, Tensor | None]:
        """Scores (N,) at x', and who is done if the objective says so; ``at`` names the noise it may draw."""
        return scores(self.objective, x_adv, self.given, self.ids, self.seed, *at)

    def ascent(self, x_adv: Tensor, *at: int | str) -> tuple[Tensor, Tensor | None, Tensor]:
        """Scores, who is done, and the gradient of the summed scores with respect to x'."""
        score, done, grad = gradient(self.objective, x_adv, self.given, self.ids, self.seed, *at)
        # row by row: the threads of a CPU that share one large sum wait for each other, for longer than the sum takes
        sums = grad.flatten(1).sum(1, dtype=self.sums.dtype)
        if len(sums) == len(self.sums):
            self.sums.add_(sums)
        else:
            self.sums.index_add_(0, self.place, sums)
        return score, done, grad

    def staying(self, best: Best, step: int) -> Tensor | None:
        """The mask (N,) of the examples that stay, if some are done and may leave after this step; else None."""
        if not self.leave_early or (step + 1) % (1 if self.x.device.type == "cpu" else LEAVE_EVERY):
            return None
        stay = ~best.done[self.place]
        return None if stay.all() else stay

    def finite(self, x_adv: Tensor) -> Tensor:
        """The result ``x_adv`` of the whole batch, if all gradients were finite.

        Where their values may not be looked at (see :func:`robrep.checks.may_look`), an image whose gradients were
        not becomes NaN, so that whatever is computed from it shows it.

        Raises:
            FloatingPointError: a gradient was infinite or not a number.
        """
        if not may_look(self.sums):
            return x_adv + column(0 * self.sums, x_adv)
        if not self.sums.isfinite().all():
            raise FloatingPointError("the objective's gradient is not finite for at least one image")
        return x_adv


class Best:
    """For each example of the caller's batch the best point seen: one that is done before one that is not, then the
    higher score.

    Args:
        x: the batch.
        first: an example that is done stays where it is.

    Attributes:
        x: the points, shape of the batch.
        score: (N,).
        done: (N,) bool.
    """

    def __init__(self, x: Tensor, first: bool = False) -> None:
        self.x, self.first = x.clone(), first
        self.score = torch.full((len(x),), -torch.inf, device=x.device)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def see(self, place: Tensor, x_adv: Tensor, score: Tensor, done: Tensor | None = None) -> None:
        """Keep what is better among points for the examples at ``place``."""
        if score.dtype != self.score.dtype:  # float64 scores keep their digits
            self.score = self.score.to(torch.promote_types(score.dtype, self.score.dtype))
        known, reached = self.done[place], self.score[place]
        done = torch.zeros_like(known) if done is None else done
        better = (done & ~known) | ((done == known) & (score > reached))
        if self.first:
            better = better & ~known
        mask = column(better, x_adv).bool()
        if len(place) == len(self.x):  # everyone is here, in order: no scattering
            self.x = torch.where(mask, x_adv, self.x)
        else:
            self.x[place] = torch.where(mask, x_adv, self.x[place])
        self.score[place] = torch.where(better, score.to(reached), reached)
        self.done[place] = known | done

    def see_done(self, place: Tensor, x_adv: Tensor, score: Tensor, done: Tensor) -> None:
        """Keep the points of the examples that are done, and none of the others."""
        if may_look(done) and not done.any():
            return
        self.see(place, x_adv, torch.where(done, score, -torch.inf), done)


class Search:
    """An attack: runs from several starts, of which each example keeps its best.

    Attributes:
        restarts: number of runs.
        leave_early: whether examples that the objective calls done leave the batch.
    """

    restarts: int
    leave_early: bool

    def __post_init__(self) -> None:
        for name in ("steps", "queries", "restarts"):
            if hasattr(self, name):
                object.__setattr__(self, name, positive_int(name, getattr(self, name)))

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
            TypeError, ValueError: ``x`` is not a batch of images in [0, 1], ``ids`` or ``start`` do not fit it, the
                objective's result is malformed, or early leaving is asked for where the batch's examples depend on each
                other.
            FloatingPointError: the objective's gradient is not finite. On an accelerator, and in training after the
                first step, nothing is raised: the host would have to wait. Such an image comes back as NaN.
        """
        x = check_images(x).detach()
        place = torch.arange(len(x), device=x.device)
        ids = place if ids is None else ids.to(x.device)
        check_count("ids", ids, len(x))
        if start is not None and check_images(start, "start").shape != x.shape:
            raise ValueError(f"start has shape {tuple(start.shape)}, expected {tuple(x.shape)}, that of x")
        if self.leave_early and (getattr(objective, "batch", False) or _batch_statistics.get()):
            why = "batch norm uses the batch's statistics" if _batch_statistics.get() else "the objective couples it"
            raise ValueError(f"leave_early is True, expected False: no example can leave this batch, {why}")
        sums = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        problem = Problem(objective, x, threat, given, ids, seed, start, self.leave_early, place, sums)
        best = Best(problem.x, first=self.leave_early)
        for restart, todo in problem.runs(best, self.restarts):
            self.climb(todo, best, restart)
        return problem.finite(best.x)

    def climb(self, todo: Problem, best: Best, restart: int) -> None:
        """One run on the examples of ``todo``; ``best`` sees the points that count."""
        raise NotImplementedError
