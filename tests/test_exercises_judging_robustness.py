"""The exercises on judging robustness: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import beta, norm

from robrep.book.exercises import check
from robrep.evaluation import Rate
from robrep.objectives import dlr as library_dlr
from robrep.smoothing import clopper_pearson_low

# --- reference solutions: what the folded cells of the chapter hold ---------------------------------------------------


def dlr(logits, y):
    own = logits.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], -math.inf).amax(1)
    top = logits.topk(3, dim=1).values
    return (other - own) / (top[:, 0] - top[:, 2])


def margin(logits, y):
    return logits.scatter(1, y[:, None], -math.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)


def gap(logits, k):
    top = logits.sort(1, descending=True).values
    return top[:, 0] - top[:, k]


def worst_case(right, clean):
    return (right.flatten(0, 1).all(0) & clean).float().mean().item()


def radius(k, n, sigma, alpha):
    low = beta.ppf(alpha, k, n - k + 1) if k else 0.0
    return max(0.0, sigma * norm.ppf(low)) if low > 0 else 0.0


SOLUTIONS: dict[str, Callable] = {
    "dlr": dlr,
    "worst_case": worst_case,
    "radius": radius,
}

MISTAKES: list[tuple[str, Any, str]] = [
    ("dlr", lambda z, y: -dlr(z, y), "falls as the label loses"),
    ("dlr", margin, "this is the margin: divide it"),
    ("dlr", lambda z, y: margin(z, y) / gap(z, 1), "third largest logit"),
    ("dlr", lambda z, y: (z.amax(1) - z.gather(1, y[:, None])[:, 0]) / gap(z, 2), "leave the label out"),
    ("dlr", lambda z, y: margin(z, y) / (gap(z, 2) + gap(z, 3)) * 2, "the targeted loss"),
    ("worst_case", lambda r, c: r.flatten(0, 1).all(0).double().mean().item(), "wrong without an attack"),
    ("worst_case", lambda r, c: r.double().mean(-1).min().item(), "best single run"),
    ("worst_case", lambda r, c: (r[:, -1].all(0) & c).double().mean().item(), "you kept the last restart"),
    ("worst_case", lambda r, c: (r.flatten(0, 1).any(0) & c).double().mean().item(), "use all()"),
    ("worst_case", lambda r, c: r.all(0), "return one number"),
    ("radius", lambda k, n, s, a: s * norm.ppf(k / n), "the share itself is not a bound"),
    ("radius", lambda k, n, s, a: radius(k, n, s, a / 2), "one-sided"),
    ("radius", lambda k, n, s, a: radius(k, n, 1.0, a), "multiply by sigma"),
    ("radius", lambda k, n, s, a: s * beta.ppf(a, k, n - k + 1), "quantile (norm.ppf) is missing"),
    ("radius", lambda k, n, s, a: s * norm.ppf(beta.ppf(a, k, n - k + 1)), "abstain"),
]  # fmt: skip


def test_library_answers_its_own_exercises() -> None:
    assert check("judging_robustness.dlr", library_dlr)
    assert check("judging_robustness.worst_case", lambda r, c: Rate(r.flatten(0, 1).all(0) & c).value)

    def certified(k: int, n: int, sigma: float, alpha: float) -> float:
        low = clopper_pearson_low(torch.tensor(k), n, alpha)
        return max(0.0, sigma * torch.special.ndtri(low).item()) if low > 0.5 else 0.0

    assert check("judging_robustness.radius", certified)
