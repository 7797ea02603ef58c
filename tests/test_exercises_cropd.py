"""Answers to the exercises on CRoPD: solutions, plausible mistakes, and the faulty code of the bug."""

from __future__ import annotations

import math
from typing import Any

import torch

from robrep.book.exercises.cropd import cropd_loss


def floor(N, tau):
    return math.log(2 * N - 2) - (1 + 1 / (N - 1)) / tau


def objective(m, f, x, eps):
    code = f(x)

    def apart(x_):
        return (f(m(x_)) - code).square().mean()

    x_adv = x + eps * (2 * torch.rand_like(x) - 1)
    for _ in range(2):
        x_adv = x_adv.clamp(0, 1).requires_grad_()
        (g,) = torch.autograd.grad(apart(x_adv), x_adv)
        x_adv = (x_adv.detach() + eps * g.sign()).clamp(x - eps, x + eps)
    return (m(x) - x).square().mean() + 10 * apart(x_adv.clamp(0, 1))


def constant(m, f, x, eps):
    """No reconstruction, and a target that moves along: any constant image will do."""
    x_adv = x + eps * (2 * torch.rand_like(x) - 1)
    return 100 * (f(m(x_adv)) - f(m(x))).square().mean() + 100 * m(x).var(0).mean()


def from_x(m, f, x, eps):
    """One step from x itself, where the distance of f(m(x')) and f(m(x)) has no gradient."""
    x_ = x.clone().requires_grad_()
    seen = f(m(x)).detach()
    (g,) = torch.autograd.grad((f(m(x_)) - seen).square().mean(), x_)
    x_adv = (x + eps * g.sign()).clamp(0, 1)
    return (m(x) - x).square().mean() + 10 * (f(m(x_adv)) - f(m(x))).square().mean()


def step_answer(project, x, start, eps, tau):
    with torch.no_grad():
        p = torch.nn.functional.normalize(project(x))
    x_adv = start.clone().requires_grad_()
    similarity = torch.cosine_similarity(project(x_adv), p).sum()
    (g,) = torch.autograd.grad(similarity, x_adv)
    x_adv = (start - eps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    p_adv = torch.nn.functional.normalize(project(x_adv))
    own = torch.eye(len(x), dtype=torch.bool)
    scores = [(p @ v.T / tau).masked_fill(own, -torch.inf) for v in (p, p_adv)]
    others = torch.cat(scores, dim=1).logsumexp(1)
    return (others - (p * p_adv).sum(1) / tau).mean()


def step_solution(project, x, start, eps, tau, sign=1, detach=None):
    p = torch.nn.functional.normalize(project(x))
    x_adv = start.clone().requires_grad_()
    similarity = torch.cosine_similarity(project(x_adv), p.detach()).sum()
    (g,) = torch.autograd.grad(similarity, x_adv)
    x_adv = (start - sign * eps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    p_adv = torch.nn.functional.normalize(project(x_adv))
    p_adv = p_adv.detach() if detach else p_adv
    own = torch.eye(len(x), dtype=torch.bool)
    scores = [(p @ v.T / tau).masked_fill(own, -torch.inf) for v in (p, p_adv)]
    others = torch.cat(scores, dim=1).logsumexp(1)
    return (others - (p * p_adv).sum(1) / tau).mean()


SOLUTIONS: dict[str, Any] = {
    "floor": floor,
    "order": lambda own, hidden: torch.cat([own, hidden]).argsort(),
    "objective": objective,
    "read_trade_off": "A clean head behind a pre-processor with a weight of 0.1 is better on both axes than a robust "
    "head without the loss, so the head cannot replace it.",
    "step": step_solution,
}
GIVEN = {"step": step_answer}
MISTAKES: list[tuple[str, Any, str]] = [
    ("floor", lambda n, tau: math.log(2 * n - 2) - 1 / tau, "at right angles"),
    ("floor", lambda n, tau: math.log(2 * n - 2) - 2 / tau, "opposite|at right angles|2 (N - 1)"),
    ("floor", lambda n, tau: floor(n, tau) - math.log(2), "2 (N - 1) of them"),
    ("floor", lambda n, tau: floor(n, tau) + math.log(n / (n - 1)), "own two vectors"),
    ("floor", lambda n, tau: floor(n, 1), "tau divides"),
    ("order", lambda own, hidden: torch.cat([own, hidden]), "invert it"),
    ("order", lambda own, hidden: torch.cat([hidden, own]).argsort(), "other half's order"),
    ("order", lambda own, hidden: torch.cat([own, hidden]).argsort().double(), "an index is int64"),
    ("objective", lambda m, f, x, eps: (m(x) - x).square().mean(), "see attacked images"),
    ("objective", cropd_loss, "does not need"),
    ("objective", constant, "clean accuracy is gone"),
    ("objective", from_x, "must not start where its gradient is 0"),
    ("objective", lambda m, f, x, eps: (m(x) - x).square().mean(1), "one number"),
    ("objective", lambda m, f, x, eps: (m(x) - x).square().mean().detach(), "do not detach"),
    ("read_trade_off", "It gets better.", "two or three sentences"),
    ("step", lambda *a: step_solution(*a, sign=-1), "subtract the sign"),
    ("step", lambda *a: step_solution(*a, sign=0), "take the step"),
    ("step", lambda *a: step_solution(*a, detach=True), "both need their gradient"),
    ("step", lambda *a: step_answer(*a).detach(), "without gradients"),
]
