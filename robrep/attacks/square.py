"""Square: random search that needs no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robrep.attacks.engine import Best, Problem, Search
from robrep.attacks.threats import L2, Linf, column, rows
from robrep.random import Seed, fold, uniform

CHUNK = 100  # queries whose random numbers are drawn at once


def share(query: int, queries: int) -> float:
    """Share of the image's pixels that a square covers: 0.8, halved at nine times of a schedule made for 10,000
    queries, which is stretched to ``queries``."""
    at = query * 10_000 / queries
    return 0.8 / 2 ** sum(at > time for time in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


@dataclass(frozen=True)
class Square(Search):
    """Square attack: tries random squares and keeps those that raise the score (Andriushchenko et al. 2020).

    A black-box attack: it calls the objective and never its gradient, so that it also works where gradients are
    masked. In l-inf a square takes the values x + eps or x - eps in each channel; in l2 the budget of two windows is
    moved into one of them. Each example has squares of its own (the reference draws their place for the whole batch).

    Args:
        queries: calls of the objective for each example, the first included; at least 1.
        restarts: independent runs; each example keeps its best.
        leave_early: an example that the objective calls done leaves the batch.

    Raises:
        ValueError, TypeError: an argument out of its range, when the attack is made.
    """

    queries: int = 5000
    restarts: int = 1
    leave_early: bool = True

    def __str__(self) -> str:
        return f"Square-{self.queries}{f', {self.restarts} restarts' if self.restarts > 1 else ''}"

    def climb(self, todo: Problem, best: Best, restart: int) -> None:
        if not isinstance(todo.threat, Linf | L2):
            raise TypeError(f"threat is a {type(todo.threat).__name__}, expected Linf or L2")
        begin, propose = (_stripes, _square) if isinstance(todo.threat, Linf) else (_tiles, _window)
        given = restart == 0 and todo.start is not None
        x_adv = todo.first(restart, False) if given else begin(todo, fold(todo.seed, "square", restart))
        score, done = todo.score(x_adv, "query", restart, 0)
        is_done = torch.zeros_like(score, dtype=torch.bool) if done is None else done
        drawn: Tensor | None = None
        for query in range(1, self.queries):
            if self.leave_early and done is not None:
                best.see_done(todo.place, x_adv, score, is_done)
                if (stay := todo.staying(best, query - 1)) is not None:
                    todo, x_adv, score, is_done = todo.take(stay), x_adv[stay], score[stay], is_done[stay]
                    drawn = drawn[stay] if drawn is not None else None
                    if not len(x_adv):
                        return
            if drawn is None or (query - 1) % CHUNK == 0:
                chunk = fold(todo.seed, "squares", restart, (query - 1) // CHUNK)
                drawn = uniform(chunk, todo.ids, (CHUNK, 5 + x_adv.shape[1]))
            trial = propose(todo, x_adv, drawn[:, (query - 1) % CHUNK], share(query - 1, self.queries))
            new_score, done = todo.score(trial, "query", restart, query)
            better = new_score > score
            if done is not None:
                better = (better & (done | ~is_done)) | (done & ~is_done)
                if self.leave_early:  # an example that is done and still here stays where it is
                    better = better & ~is_done
                is_done = is_done | done
            x_adv = torch.where(column(better, x_adv).bool(), trial, x_adv)
            score = torch.where(better, new_score, score)
        best.see(todo.place, x_adv, score, is_done)


def _signs(u: Tensor, x: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0).to(x)


def _side(x: Tensor, p: float, least: int) -> int:
    """The square's side, of ``p`` of the pixels, at least ``least`` and at most the image's."""
    height, width = x.shape[2:]
    return min(max(round(math.sqrt(p * height * width)), least), height, width)


def _corner(u: Tensor, extent: int, side: int) -> Tensor:
    """A position 0 ... extent - side from u in [0, 1)."""
    return (u * (extent - side + 1)).long().clamp(max=extent - side)


def _stripes(todo: Problem, seed: Seed) -> Tensor:
    """x + eps or x - eps in each column and channel."""
    x = todo.x
    signs = _signs(uniform(seed, todo.ids, (x.shape[1], 1, x.shape[3])), x)
    return (x + signs * rows(todo.threat.eps, x)).clamp_(0, 1)


def _square(todo: Problem, best: Tensor, u: Tensor, p: float) -> Tensor:
    """``best`` with x + eps or x - eps (a sign for each channel) in one square."""
    x, (height, width) = todo.x, todo.x.shape[2:]
    side = _side(x, p, 1)
    top, left = _corner(u[:, 0], height, side), _corner(u[:, 1], width, side)
    inside = _between(top, height, side)[:, None, :, None] & _between(left, width, side)[:, None, None, :]
    signs = _signs(u[:, 5:], x)[:, :, None, None]
    return torch.where(inside, (x + signs * rows(todo.threat.eps, x)).clamp_(0, 1), best)


def _between(first: Tensor, extent: int, side: int) -> Tensor:
    """Which of 0 ... extent - 1 lie in [first, first + side), shape (N, extent)."""
    at = torch.arange(extent, device=first.device)
    return (at >= first[:, None]) & (at < first[:, None] + side)


def _bump(side: int, x: Tensor, upright: Tensor) -> Tensor:
    """The l2 attack's pattern, of norm 1: a positive and a negative hill side by side, one above the other where
    ``upright``; shape (N, 1, side, side)."""

    def hill(height: int, width: int) -> Tensor:
        total = torch.zeros(height, width)
        top, left = height // 2, width // 2
        for ring in range(max(height // 2, width // 2) + 1):
            rows_, columns = slice(max(top - ring, 0), top + ring + 1), slice(max(left - ring, 0), left + ring + 1)
            total[rows_, columns] += 1 / (ring + 1) ** 2
        return total / total.norm()

    half = side // 2
    pattern = torch.cat([hill(half, side), -hill(side - half, side)]) if half else torch.ones(1, 1)
    pattern = (pattern / pattern.norm()).to(x)
    return torch.where(upright[:, None, None, None], pattern, pattern.T)


def _tiles(todo: Problem, seed: Seed) -> Tensor:
    """Bumps of random sign on a grid of fifths of the image, scaled to the whole radius."""
    x, (height, width) = todo.x, todo.x.shape[2:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    u = uniform(seed, todo.ids, (x.shape[1] + 1, down, across))
    bumps = _bump(side, x, u[:, -1].flatten() < 0.5).view(len(x), 1, down, across, side, side)
    tiles = (bumps * _signs(u[:, :-1], x)[..., None, None]).transpose(3, 4)  # in the order of the pixels
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta = torch.zeros_like(x)
    delta[..., top : top + down * side, left : left + across * side] = tiles.flatten(4).flatten(2, 3)
    return _at_radius(todo, delta)


def _at_radius(todo: Problem, delta: Tensor) -> Tensor:
    """x + delta, scaled to the radius and clipped to [0, 1]."""
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp(min=1e-12)
    return (todo.x + delta / column(length, delta) * rows(todo.threat.eps, todo.x)).clamp_(0, 1)


def _window(todo: Problem, best: Tensor, u: Tensor, p: float) -> Tensor:
    """``best`` with the budget of two windows, and what is left of the radius, moved into the first of them."""
    x, (height, width) = todo.x, todo.x.shape[2:]
    n, channels = x.shape[:2]
    side = _side(x, p, min(3, height, width))
    side = min(side + 1 - side % 2, height, width)
    delta = best - x
    across = torch.arange(side, device=x.device)

    def window(v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        i = _corner(v, height, side)[:, None] + across
        j = _corner(w, width, side)[:, None] + across
        example, channel = torch.arange(n, device=x.device), torch.arange(channels, device=x.device)
        return example[:, None, None, None], channel[None, :, None, None], i[:, None, :, None], j[:, None, None, :]

    first, second = window(u[:, 0], u[:, 1]), window(u[:, 2], u[:, 3])
    mask = torch.zeros_like(x)
    mask[first], mask[second] = 1.0, 1.0

    def norm(t: Tensor, dims: tuple[int, ...]) -> Tensor:
        return torch.linalg.vector_norm(t, dim=dims, keepdim=True)

    spent = norm(delta, (1, 2, 3))
    in_windows = norm(delta * mask, (2, 3))
    old = delta[first]
    new = _bump(side, x, u[:, 4] < 0.5) * _signs(u[:, 5:], x)[:, :, None, None]
    new = new + old / norm(old, (2, 3)).clamp(min=1e-12)
    eps = rows(todo.threat.eps, x)
    budget = ((eps**2 - spent**2).clamp(min=0) / channels + in_windows**2).sqrt()
    new = new / norm(new, (2, 3)).clamp(min=1e-12) * budget
    delta = delta.clone()
    delta[second] = 0.0
    delta[first] = new
    return _at_radius(todo, delta)
