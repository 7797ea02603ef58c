"""The exercises on SimCLR + Urkle: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from robrep.book.exercises import check
from robrep.contrastive import effective_rank, nt_xent


def two(a, b, tau, length=True, own=False):
    z = F.normalize(torch.cat([a, b]), dim=1) if length else torch.cat([a, b])
    s, n = z @ z.T / tau, len(a)
    s = s if own else s.fill_diagonal_(-torch.inf)
    losses = F.cross_entropy(s, (torch.arange(2 * n) + n) % (2 * n), reduction="none")
    return losses.view(2, n).mean(0)


def tuples(views, tau, mean=True):
    z = torch.cat([F.normalize(v, dim=1) for v in views])
    n, size = len(views), len(views[0])
    s = z @ z.T / tau
    below = s.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf).logsumexp(1).view(n, size)
    own = torch.arange(size)
    s = s.view(n, size, n, size)
    above = torch.stack([sum(s[v, own, w, own] for w in range(n) if w != v) for v in range(n)])
    if mean:
        return (below - above / (n - 1)).mean(0)
    return ((n - 1) * below - above).mean(0)


def rank(z, centre=True, power=1):
    p = torch.linalg.svdvals(z - z.mean(0) if centre else z) ** power
    p = p / p.sum()
    return torch.exp(-(p * p.log()).sum())


def adversary(project, x, other, eps, steps, tau, ascend=1, ball=True, box=True):
    g, x_adv = project(other).detach(), (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (slope,) = torch.autograd.grad(nt_xent((project(x_adv), g), tau).sum(), x_adv)
        x_adv = x_adv.detach() + ascend * 2.5 * eps / steps * slope.sign()
        x_adv = x_adv.clamp(x - eps, x + eps) if ball else x_adv
        x_adv = x_adv.clamp(0, 1) if box else x_adv
    return x_adv.detach()


SOLUTIONS: dict[str, Any] = {
    "nt_xent": two,
    "tuples": tuples,
    "collapse": lambda n, size: math.log(n * size - 1),
    "rank": rank,
    "adversary": adversary,
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("nt_xent", lambda a, b, tau: two(a, b, tau, own=True), "compared with itself"),
    ("nt_xent", lambda a, b, tau: two(a, b, tau, length=False), "lengths first"),
    ("nt_xent", lambda a, b, tau: two(a, b, 1.0), "temperature is missing"),
    ("nt_xent", lambda a, b, tau: nt_xent((a, b), tau, denominator="negatives_only"), "belong into the denominator"),
    ("nt_xent", lambda a, b, tau: two(a, b, tau).mean(), "one number for each image"),
    ("tuples", lambda v, tau: tuples(v, tau, mean=False), "not their sum"),
    ("tuples", lambda v, tau: -tuples(v, tau), "turned round"),
    ("collapse", lambda n, size: math.log(n * size), "itself is left out"),
    ("collapse", lambda n, size: math.log(n * (size - 1)), "printed denominator"),
    ("collapse", lambda n, size: [1], "one number"),
    ("rank", lambda z: rank(z, centre=False), "centre"),
    ("rank", lambda z: rank(z).log(), "exponential"),
    ("rank", lambda z: rank(z, power=2), "not of their squares"),
    ("adversary", lambda *a: adversary(*a, ascend=-1), "ascend"),
    ("adversary", lambda *a: adversary(*a, ball=False), "project back"),
    ("adversary", lambda *a: adversary(*a, box=False), "left [0, 1]"),
    ("adversary", lambda *a: adversary(*a).requires_grad_(), "detach"),
]


def test_library_answers_its_own_exercises() -> None:
    assert check("simclr_urkle.nt_xent", lambda a, b, tau: nt_xent((a, b), tau))
    assert check("simclr_urkle.tuples", nt_xent)
    assert check("simclr_urkle.rank", effective_rank)
