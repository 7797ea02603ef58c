"""The exercises on attacks: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from robrep.attacks import L2
from robrep.book.exercises import check

# --- reference solutions: what the folded cells of the chapter hold ---------------------------------------------------


def linear(W, b, x, y, p):
    z = x @ W.T + b
    gap = z.gather(1, y[:, None]) - z
    slope = (W[y][:, None] - W).norm(1 if p == math.inf else 2, dim=2)
    ratio = (gap / slope).scatter(1, y[:, None], math.inf)
    return ratio.amin(1).clamp(min=0)


def nearest(u, x, eps):
    low = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype)
    high = torch.ones_like(low)
    for _ in range(60):
        s = (low + high) / 2
        delta = (x + s * (u - x)).clamp(0, 1) - x
        inside = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) <= eps
        low, high = torch.where(inside, s, low), torch.where(inside, high, s)
    return (x + low * (u - x)).clamp(0, 1)


def noisy(model, x, y, eps):
    u, total = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1), 0
    for _ in range(60):
        u = u.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(u), y, reduction="sum")
        total = total + torch.autograd.grad(loss, u)[0]
        u = (u + 0.1 * eps * total.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return u.detach()


def restarts(objective, x, eps, steps, tries):
    best, top = x, torch.full((len(x),), -math.inf)
    for _ in range(tries):
        u = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            u = u.detach().requires_grad_()
            (g,) = torch.autograd.grad(objective(u).sum(), u)
            u = (u + eps / 4 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        score = objective(u).detach()
        better = score > top
        best = torch.where(better.view(-1, 1, 1, 1), u.detach(), best)
        top = torch.where(better, score, top)
    return best


SOLUTIONS: dict[str, Any] = {
    "linear": linear,
    "nearest": nearest,
    "noisy": noisy,
    "restarts": restarts,
    "read_noise": "Fresh noise reaches the same accuracy with a third of the samples, because errors of different "
    "steps are independent and cancel in part, while kept noise bends every step in the same direction.",
}


# --- the faulty code of the chapter -----------------------------------------------------------------------------------


def restarts_answer(objective, x, eps, steps, tries):
    best, top = x, -math.inf
    for _ in range(tries):
        u = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            u = u.detach().requires_grad_()
            (g,) = torch.autograd.grad(objective(u).sum(), u)
            u = (u + eps / 4 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        score = objective(u).mean().item()
        if score > top:
            best, top = u.detach(), score
    return best


GIVEN = {"restarts": restarts_answer}


# --- plausible mistakes -----------------------------------------------------------------------------------------------


def unclipped(W, b, x, y, p, slope=None, q=None):
    z = x @ W.T + b
    slope = (W[y][:, None] - W) if slope is None else slope
    ratio = (z.gather(1, y[:, None]) - z) / slope.norm(q or (1 if p == math.inf else 2), dim=2)
    return ratio.scatter(1, y[:, None], math.inf).amin(1)


def runner_up(W, b, x, y, p):
    z = x @ W.T + b
    gap = (z.gather(1, y[:, None]) - z).scatter(1, y[:, None], math.inf)
    j = gap.argmin(1)
    return (gap.amin(1) / (W[y] - W[j]).norm(1 if p == math.inf else 2, dim=1)).clamp(min=0)


def norms(g):
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def shrunk(change, eps):
    return change * (eps / norms(change).clamp(min=1e-30)).clamp(max=1)


def in_turn(u, x, eps):
    for _ in range(500):
        u = x + shrunk(u.clamp(0, 1) - x, eps)
    return u


def ascent(steps=60, samples=1, step=2.5 / 60, sign=1, memory=0.0, keep=None):
    """The attack of ``noisy`` with other choices."""

    def run(model, x, y, eps):
        u, total = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1), 0
        for _ in range(steps):
            u = u.detach().requires_grad_()
            if keep is not None:
                torch.manual_seed(keep)
            log_p = torch.stack([model(u).log_softmax(1) for _ in range(samples)]).logsumexp(0)
            loss = torch.nn.functional.nll_loss(log_p, y, reduction="sum")
            total = memory * total + torch.autograd.grad(loss, u)[0]
            u = (u + sign * step * eps * total.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        return u.detach()

    return run


def last_restart(objective, x, eps, steps, tries):
    for _ in range(tries):
        u = restarts(objective, x, eps, steps, 1)
    return u


def at_the_image(objective, x, eps, steps, tries):
    u = x
    for _ in range(steps):
        u = u.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(u).sum(), u)
        u = (u + eps / 4 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return u.detach()


MISTAKES: list[tuple[str, Any, str]] = [
    ("linear", unclipped, "needs no change"),
    ("linear", lambda W, b, x, y, p: unclipped(W, b, x, y, p, q=p).clamp(min=0), "the *dual* norm"),
    ("linear", lambda W, b, x, y, p: unclipped(W, b, x, y, p, q=2).clamp(min=0), "gains the l1 norm"),
    ("linear", lambda W, b, x, y, p: unclipped(W, b, x, y, p, W.expand(len(x), -1, -1)).clamp(min=0), "falls too"),
    ("linear", lambda W, b, x, y, p: unclipped(W, b, x, y, p, W[y][:, None]).clamp(min=0), "rises too"),
    ("linear", runner_up, "the runner-up"),
    ("linear", lambda W, b, x, y, p: linear(W, b, x, y, p).min(), "one radius for each"),
    ("nearest", lambda u, x, e: (x + shrunk(u - x, e)).clamp(0, 1), "the chapter's projection"),
    ("nearest", lambda u, x, e: x + shrunk(u.clamp(0, 1) - x, e), "shrunk again"),
    ("nearest", lambda u, x, e: x + shrunk(u - x, e), "leaves [0, 1]"),
    ("nearest", lambda u, x, e: u.clamp(0, 1), "further than eps"),
    ("nearest", in_turn, "projecting in turn|shrunk again"),
    ("nearest", lambda u, x, e: nearest(u, x, e) - x, "add it to x"),
    ("noisy", lambda model, x, y, eps: x, "does it move"),
    ("noisy", ascent(sign=-1), "make the loss large"),
    ("noisy", ascent(), "mostly ripple"),
    ("noisy", ascent(keep=5), "mostly ripple|does it move"),
    ("noisy", ascent(steps=20, samples=3, step=0.125), "half of that is asked"),
    ("noisy", ascent(steps=61), "counts, with a gradient or without"),
    ("noisy", lambda model, x, y, eps: x + 2 * eps, "project back"),
    ("restarts", last_restart, "the best of all"),
    ("restarts", at_the_image, "start at random"),
    ("read_noise", "Fresh noise is better.", "has 4 words"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2, 5))
def test_the_design_task_can_be_told_from_its_mistakes_on_other_seeds(seed: int) -> None:
    assert check("attacks.noisy", noisy, seed=seed)
    assert check("attacks.noisy", ascent(steps=20, samples=3, step=0.125), seed=seed).state == "wrong"


def test_a_part_of_the_batch_costs_a_part_of_a_call() -> None:
    def halves(model, x, y, eps):
        for _ in range(60):
            model(x[: len(x) // 2]), model(x[len(x) // 2 :])
        return x

    assert "breaks nothing" in check("attacks.noisy", halves).message


def test_the_nearest_point_is_nearer_than_the_librarys_projection() -> None:
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best, quick = nearest(u, x, 1.0), L2(1.0).projection(x)(u.clone())
    assert (norms(best - u) <= norms(quick - u) + 1e-9).all() and norms(best - u).sum() < norms(quick - u).sum() - 0.1
