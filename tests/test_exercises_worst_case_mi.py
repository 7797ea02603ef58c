"""The exercises on worst-case information: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from robrep.book.exercises import check
from robrep.information import donsker_varadhan, info_nce

LOG2 = math.log(2)


def dv(u):
    n = len(u)
    off = u.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
    return u.diagonal().mean() - off.flatten().logsumexp(0) + math.log(n * (n - 1))


def nce(u):
    return (u.diagonal() - u.logsumexp(1)).mean() + math.log(len(u))


def moved(mean, std, reach):
    s = torch.distributions.Normal(mean, std)
    return s.cdf(reach) - s.cdf(torch.zeros(())), s.cdf(torch.zeros(())) - s.cdf(-reach)


def drop(m):
    p = 0.5 - m
    return LOG2 + p * p.log() + (1 - p) * (1 - p).log()


def linear(mean, std, reach):
    return drop(sum(moved(mean, std, reach)) / 2)


def attack(encoder, critic, x, eps, steps, sign=-1, ball=True, box=True, count=None):
    x_adv = x.clone()
    for _ in range(count or steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(dv(critic(x_adv, encoder(x_adv))[0]), x_adv)
        x_adv = x_adv + sign * 2.5 * eps / steps * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps) if ball else x_adv
        x_adv = x_adv.clamp(0, 1) if box else x_adv
    return x_adv.detach()


SOLUTIONS: dict[str, Any] = {
    "dv": dv, "nce": nce, "linear": linear, "attack": attack,
    "fano": 0.9 * math.log(10) - LOG2, "ceiling": math.log(500),
}  # fmt: skip


def counted(u):
    n = len(u)
    off = u.masked_fill(torch.eye(n, dtype=torch.bool), 0.0)
    return u.diagonal().mean() - off.flatten().logsumexp(0) + math.log(n * (n - 1))


MISTAKES: list[tuple[str, Callable | Any, str]] = [
    ("dv", counted, "minus infinity"),
    ("dv", lambda u: u.diagonal().mean() - u.exp().mean().log(), "leave it out"),
    ("dv", lambda u: -dv(u), "this is the loss"),
    ("dv", lambda u: dv(u) - math.log(len(u) * (len(u) - 1)), "not a sum"),
    ("dv", lambda u: u, "one number"),
    ("nce", lambda u: nce(u) - math.log(len(u)), "ln N is missing"),
    ("nce", lambda u: nce(u.T), "over each row"),
    ("nce", lambda u: math.log(len(u)) - nce(u), "cross-entropy"),
    ("linear", lambda a, b, r: drop(moved(a, b, r)[0].clamp(max=0.5)), "upper bound"),
    ("linear", lambda a, b, r: drop(moved(a, b, r)[0] / 2), "lower bound"),
    ("linear", lambda a, b, r: linear(a, b, r) / LOG2, "in nats"),
    ("linear", lambda a, b, r: LOG2 - linear(a, b, r), "entropy that is left"),
    ("fano", 0.9 * math.log(10), "less information suffices"),
    ("fano", (0.9 * math.log(10) - LOG2) / LOG2, "in bits"),
    ("fano", "one", "the number itself"),
    ("ceiling", math.log2(500), "natural logarithm"),
    ("ceiling", math.log(10), "in the labels"),
    ("ceiling", 1.0, "which of the 500"),
    ("attack", lambda *a: attack(*a, sign=1), "descend"),
    ("attack", lambda *a: attack(*a, ball=False), "project back"),
    ("attack", lambda *a: attack(*a, box=False), "left [0, 1]"),
    ("attack", lambda f, t, x, eps, n: x, "random signs"),
    ("attack", lambda f, t, x, eps, n: dv(t(x, f(x))[0]), "return the images"),
    ("attack", lambda *a: attack(*a).requires_grad_(), "detach"),
]


def test_library_answers_its_own_exercises() -> None:
    for name, answer in (("dv", donsker_varadhan), ("nce", info_nce)):
        assert check(f"worst_case_mi.{name}", answer)
