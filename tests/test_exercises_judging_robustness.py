"""The exercises on judging robustness: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import beta, binom, binomtest, norm

from robrep.attacks import Linf, Square
from robrep.book.exercises import check
from robrep.book.smoothing import clopper_pearson_low

# --- reference solutions: what the folded cells of the chapter hold ---------------------------------------------------


def votes(radius, sigma, alpha):
    return math.ceil(math.log(alpha) / math.log(norm.cdf(radius / sigma)))


def paired(a, b):
    only_a, only_b = (a & ~b).sum().item(), (b & ~a).sum().item()
    tail = binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    return min(1.0, 2 * tail)


def masks(model, x, y, eps):
    def margin(u):
        z = model(u).detach()
        other = z.scatter(1, y[:, None], -math.inf).amax(1)
        return other - z.gather(1, y[:, None]).squeeze(1)

    best = (x + eps * torch.randn(len(x), 1, 1, 8).sign()).clamp(0, 1)
    top = margin(best)
    for k in range(199):
        size = 3 if k < 40 else 2 if k < 100 else 1
        i, j = torch.randint(9 - size, (2,)).tolist()
        square = (..., slice(i, i + size), slice(j, j + size))
        u, sign = best.clone(), torch.randn(len(x), 1, 1, 1).sign()
        u[square] = (x[square] + eps * sign).clamp(0, 1)
        score = margin(u)
        better = score > top
        best[better], top[better] = u[better], score[better]
    return best


def certify(model, x, sigma, n, alpha):
    def said(count):
        noisy = x + sigma * torch.randn(count, *x.shape, dtype=x.dtype)
        return model(noisy.flatten(0, 1)).argmax(1).view(count, len(x))

    label = said(n).mode(0).values
    k = (said(n) == label).sum(0).numpy()
    low = beta.ppf(alpha, k.clip(1), n - k + 1) * (k > 0)
    radius = sigma * norm.ppf(low)
    return label, torch.from_numpy(radius).clamp(min=0)


SOLUTIONS: dict[str, Any] = {
    "votes": votes,
    "paired": paired,
    "masks": masks,
    "certify": certify,
    "read_bounds": "Between the curves nothing is known: the certificate ends where the votes end, the attack where it "
    "is too weak, and neither of the two says what a better attack or more votes would find.",
}


# --- the faulty code of the chapter -----------------------------------------------------------------------------------


def certify_answer(model, x, sigma, n, alpha):
    noisy = x + sigma * torch.randn(n, *x.shape, dtype=x.dtype)
    said = model(noisy.flatten(0, 1)).argmax(1).view(n, len(x))
    label = said.mode(0).values
    k = (said == label).sum(0).numpy()
    low = beta.ppf(alpha, k, n - k + 1)
    radius = sigma * norm.ppf(low)
    return label, torch.from_numpy(radius).clamp(min=0)


GIVEN = {"certify": certify_answer}


# --- plausible mistakes -----------------------------------------------------------------------------------------------


def tail(a, b):
    only_a, only_b = (a & ~b).sum().item(), (b & ~a).sum().item()
    return binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)


def unpaired(a, b):
    p, q, n = a.double().mean().item(), b.double().mean().item(), len(a)
    middle = (p + q) / 2
    return 2 * norm.sf(abs(p - q) / math.sqrt(2 * middle * (1 - middle) / n))


def approximate(a, b):
    only_a, only_b = (a & ~b).sum().item(), (b & ~a).sum().item()
    return 2 * norm.sf(abs(only_a - only_b) / math.sqrt(only_a + only_b))


def ascent(loss, steps=100):
    """PGD on the gradients of the masked model."""

    def run(model, x, y, eps):
        u = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            u = u.detach().requires_grad_()
            (g,) = torch.autograd.grad(loss(model(u), y).sum(), u)
            u = (u + eps / 8 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        return u.detach()

    return run


def cross_entropy(z, y):
    return torch.nn.functional.cross_entropy(z, y, reduction="none")


def margin(z, y):
    return z.scatter(1, y[:, None], -math.inf).amax(1) - z.gather(1, y[:, None]).squeeze(1)


def guesses(model, x, y, eps):
    """The best of random corners of the ball."""
    best, top = x, margin(model(x), y)
    for _ in range(199):
        u = (x + eps * torch.randn_like(x).sign()).clamp(0, 1)
        score = margin(model(u), y)
        best = torch.where((score > top).view(-1, 1, 1, 1), u, best)
        top = torch.maximum(score, top)
    return best


def half_alpha(model, x, sigma, n, alpha):
    return certify_answer(model, x, sigma, n, alpha / 2)


def pooled(model, x, sigma, n, alpha):
    return certify_answer(model, x, sigma, 2 * n, alpha)


def halves(model, x, sigma, n, alpha):
    return certify(model, x, sigma, n // 2, alpha)


MISTAKES: list[tuple[str, Any, str]] = [
    ("votes", lambda r, s, a: votes(r, s, a) - 1, "rounded down"),
    ("votes", lambda r, s, a: votes(r, 1.0, a), "units of sigma"),
    ("votes", lambda r, s, a: votes(r, s, a / 2), "do not halve it"),
    ("votes", lambda r, s, a: math.log(a) / math.log(norm.cdf(r / s)), "is whole"),
    ("votes", lambda r, s, a: votes(r, s, 1 - a), "being wrong"),
    ("paired", tail, "this is one side"),
    ("paired", lambda a, b: 2 * tail(a, b), "cannot exceed 1"),
    ("paired", unpaired, "independent sets"),
    ("paired", approximate, "count exactly"),
    ("paired", lambda a, b: 1 - paired(a, b), "1 minus"),
    ("paired", lambda a, b: paired(a, b) if (a != b).any() else math.nan, "no evidence"),
    ("paired", lambda a, b: a, "return one number"),
    ("masks", lambda model, x, y, eps: x, "does it move"),
    ("masks", ascent(cross_entropy), "a saturated loss"),
    ("masks", ascent(margin), "no gradient at all"),
    ("masks", guesses, "behind every mask"),
    ("masks", ascent(margin, steps=201), "counts, with a gradient or without"),
    ("certify", half_alpha, "does not remove it"),
    ("certify", pooled, "more votes than n"),
    ("certify", halves, "all n votes"),
    ("certify", lambda *given: certify(*given)[1], "return a pair"),
]  # fmt: skip
MISTAKES += [("read_bounds", "The attack is weak.", "has 4 words")]


@pytest.mark.parametrize("seed", range(2, 4))
def test_the_design_task_can_be_told_from_its_mistakes_on_other_seeds(seed: int) -> None:
    assert check("judging_robustness.masks", masks, seed=seed)
    assert check("judging_robustness.masks", guesses, seed=seed).state == "wrong"


def test_library_answers_its_own_exercises() -> None:
    def square(model, x, y, eps):
        return Square(199)(lambda u, y_: margin(model(u), y_), x, Linf(eps), y, ids=torch.arange(len(x)), seed=0)

    assert check("judging_robustness.masks", square)
    for radius, sigma, alpha in ((0.5, 0.25, 0.001), (0.2, 0.25, 0.01)):
        n = votes(radius, sigma, alpha)
        reached = [sigma * norm.ppf(clopper_pearson_low(torch.tensor(m), m, alpha).item()) for m in (n - 1, n)]
        assert reached[0] < radius <= reached[1]


@pytest.mark.parametrize(("only_a", "only_b"), [(22, 6), (3, 9), (5, 5), (1, 0)])
def test_paired_solution_against_scipy(only_a: int, only_b: int) -> None:
    a = torch.tensor([True] * only_a + [False] * only_b + [True, False])
    b = torch.tensor([False] * only_a + [True] * only_b + [True, False])
    assert paired(a, b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, abs=1e-12)
