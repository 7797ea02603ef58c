"""The exercises on CRoPD: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from robrep.book.exercises import check
from robrep.contrastive import adversarial_contrast, nt_xent


def averaged(logits, y):
    log_p = logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
    return -log_p[torch.arange(len(y)), y]


def losses(logits, y):
    return torch.stack([F.cross_entropy(part, y, reduction="none") for part in logits]).mean(0)


def size(rate, half):
    return 1.96**2 * rate * (1 - rate) / half**2


SOLUTIONS: dict[str, Any] = {
    "contrast": adversarial_contrast,
    "order": lambda own, hidden: torch.cat([own, hidden]).argsort(),
    "worst_case": lambda rights: rights.all(0).double().mean(),
    "sample_size": size,
    "straight_through": lambda m, x: x + (m(x) - x).detach(),
    "averaged": averaged,
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("contrast", lambda p, q, tau: adversarial_contrast(q, p, tau), "the anchor of the sum is the clean vector"),
    ("contrast", lambda p, q, tau: -adversarial_contrast(p, q, tau), "the sign"),
    ("contrast", lambda p, q, tau: nt_xent((p, q), tau), "log of the sum over the others"),
    ("contrast", lambda p, q, tau: adversarial_contrast(p, q, tau).mean(), "one number for each image"),
    ("order", lambda own, hidden: torch.cat([own, hidden]), "invert it"),
    ("order", lambda own, hidden: torch.cat([hidden, own]).argsort(), "other half's order"),
    ("order", lambda own, hidden: torch.cat([own, hidden]).argsort().double(), "an index is int64"),
    ("worst_case", lambda rights: rights.double().mean(1).min(), "strongest single attack"),
    ("worst_case", lambda rights: rights.double().mean(), "mean over the attacks"),
    ("worst_case", lambda rights: rights.any(0).double().mean(), "all, not any"),
    ("sample_size", lambda p, h: p * (1 - p) / h**2, "1.96 standard errors"),
    ("sample_size", lambda p, h: size(p, 2 * h), "do not halve it again"),
    ("sample_size", lambda p, h: size(p, h) * h, "squared"),
    ("straight_through", lambda m, x: m(x), "no gradient reaches x|m's own gradient"),
    ("straight_through", lambda m, x: m(x).detach(), "detach the difference"),
    ("straight_through", lambda m, x: x, "the value is not m(x)"),
    ("averaged", losses, "inside the logarithm"),
    ("averaged", lambda z, y: F.cross_entropy(z.mean(0), y, reduction="none"), "averages logits"),
    ("averaged", lambda z, y: averaged(z, y) - math.log(len(z)), "divide the sum"),
]  # fmt: skip


def test_the_gradient_of_a_preprocessor_that_is_no_step_must_not_get_through() -> None:
    """The true m(x) has the right value, and its own gradient."""

    def leaky(m, x):
        return m(x) if isinstance(m, torch.nn.Linear) else x + (m(x) - x).detach()

    assert "m's own gradient still gets through" in check("cropd.straight_through", leaky).message
