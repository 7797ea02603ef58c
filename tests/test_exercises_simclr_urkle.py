"""The exercises on SimCLR + Urkle: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from robrep.book.exercises import check
from robrep.contrastive import effective_rank


def floor(n, size, tau, cosine=None, positives=None):
    cosine = -1 / (size - 1) if cosine is None else cosine
    same = (n - 1 if positives is None else positives) * math.exp(1 / tau)
    return math.log(same + n * (size - 1) * math.exp(cosine / tau)) - 1 / tau


def rank(z, centre=True, power=1):
    p = torch.linalg.svdvals(z - z.mean(0) if centre else z) ** power
    p = p / p.sum()
    return torch.exp(-(p * p.log()).sum())


def cosines(a, b):
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def margin(bank, count=None):
    """The largest cosine outside the clean code's nearest ``count`` minus the largest inside; None for a tenth."""

    def of(clean):
        near = torch.zeros(len(clean), len(bank), dtype=torch.bool)
        near.scatter_(1, cosines(clean, bank).topk(count or len(bank) // 10, dim=1).indices, True)

        def objective(z):
            s = cosines(z, bank)
            return s.masked_fill(near, -torch.inf).amax(1) - s.masked_fill(~near, -torch.inf).amax(1)

        return objective

    return of


def climb(encoder, x, eps, of, steps=20, ascend=1, ball=True):
    """Sign steps up the objective ``of(clean codes)``, a function of codes."""
    with torch.no_grad():
        objective = of(encoder(x))
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (slope,) = torch.autograd.grad(objective(encoder(x_adv)).sum(), x_adv)
        x_adv = x_adv.detach() + ascend * 2.5 * eps / 20 * slope.sign()
        x_adv = (x_adv.clamp(x - eps, x + eps) if ball else x_adv).clamp(0, 1)
    return x_adv


def turn_search(encoder, x, bank, eps, count=None, **changes):
    return climb(encoder, x, eps, margin(bank, count), **changes)


def away(clean):
    return lambda z: 1 - F.cosine_similarity(z, clean)


def to_the_farthest(bank):
    return lambda clean: lambda z: F.cosine_similarity(z, bank[cosines(clean, bank).argmin(1)])


def search_accuracy(codes, queries, y):
    """The fraction of queries whose nearest other image shows their digit.

    codes (N, D): one for each image. queries (N, D): codes of the
    same images, attacked or not. y (N,): the digits.
    """
    bank = torch.nn.functional.normalize(codes, dim=1)
    cosine = torch.nn.functional.normalize(queries, dim=1) @ bank.T
    first, second = cosine.topk(2, dim=1).indices.T  # the first is the image itself
    return (y[second] == y).double().mean()


def leave_one_out(codes, queries, y, fill=-torch.inf, length=True, whole=False):
    cosine = cosines(queries, codes) if length else queries @ codes.T
    out = y[:, None] == y if whole else torch.eye(len(y), dtype=torch.bool)
    return (y[cosine.masked_fill(out, fill).argmax(1)] == y).double().mean()


SOLUTIONS: dict[str, Any] = {
    "floor": floor,
    "rank": rank,
    "turn_search": turn_search,
    "read_radius": "RoCL is ahead at small radii and SimCLR + Urkle from the radius of the training on, so the order "
    "depends on the radius; where their bands touch, three seeds do not decide it.",
    "leave_one_out": leave_one_out,
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("floor", lambda n, size, tau: floor(n, size, tau, -1), "opposite to each other"),
    ("floor", lambda n, size, tau: floor(n, size, tau, 0), "slightly better"),
    ("floor", lambda n, size, tau: floor(n, size, tau, positives=0), "in the denominator"),
    ("floor", lambda n, size, tau: floor(n, size, tau, positives=n), "not compared with itself"),
    ("floor", lambda n, size, tau: floor(n, size, tau, positives=1), "n - 1 positives"),
    ("floor", lambda n, size, tau: math.log(n * size - 1), "best possible"),
    ("floor", lambda n, size, tau: [1], "one number"),
    ("rank", lambda z: rank(z, centre=False), "centre"),
    ("rank", lambda z: rank(z).log(), "exponential"),
    ("rank", lambda z: rank(z, power=2), "not of their squares"),
    ("turn_search", lambda e, x, bank, eps: climb(e, x, eps, away), "in which the bank holds no image"),
    ("turn_search", lambda e, x, bank, eps: turn_search(e, x, bank, eps, count=1), "not one neighbour"),
    ("turn_search", lambda e, x, bank, eps: climb(e, x, eps, to_the_farthest(bank)), "climb exactly this difference"),
    ("turn_search", lambda *given: turn_search(*given, ascend=-1), "hardly move"),
    ("turn_search", lambda *given: turn_search(*given, steps=21), "21 in all"),
    ("turn_search", lambda *given: turn_search(*given, ball=False), "project back"),
    ("turn_search", lambda *given: turn_search(*given).requires_grad_(), "detach"),
    ("read_radius", "RoCL is better.", "two or three sentences"),
    ("leave_one_out", lambda *given: leave_one_out(*given, length=False), "not product"),
    ("leave_one_out", lambda codes, queries, y: (y[cosines(queries, codes).argmax(1)] == y).double().mean(), "itself"),
    ("leave_one_out", lambda *given: leave_one_out(*given, fill=0.0), "can be negative"),
    ("leave_one_out", lambda *given: leave_one_out(*given, whole=True), "not its whole digit"),
    ("leave_one_out", lambda codes, queries, y: y, "one number"),
]  # fmt: skip
GIVEN: dict[str, Any] = {"leave_one_out": search_accuracy}


def test_library_answers_its_own_exercise() -> None:
    assert check("simclr_urkle.rank", effective_rank)


@pytest.mark.parametrize("seed", range(2, 10))  # 0 and 1 are those of the general tests
def test_the_hidden_search_separates_the_objectives_for_every_seed(seed: int) -> None:
    assert check("simclr_urkle.turn_search", turn_search, seed=seed)
    for wrong in [answer for name, answer, _ in MISTAKES if name == "turn_search"][:3]:
        assert check("simclr_urkle.turn_search", wrong, seed=seed).state == "wrong"
