"""The exercises on attacks: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from robrep.attacks import L2, Linf
from robrep.book.exercises import check

# --- reference solutions: what the folded cells of the chapter hold ---------------------------------------------------


def norms(g):
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def project(x_adv, x, eps):
    delta = x_adv - x
    return (x + delta * (eps / norms(delta).clamp(min=1e-12)).clamp(max=1)).clamp(0, 1)


def steepest(g, p):
    return g.sign() if p == math.inf else g / norms(g).clamp(min=1e-30)


def eot(logits, y):
    log_p = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -log_p.gather(1, y[:, None]).squeeze(1)


SOLUTIONS: dict[str, Callable] = {
    "project_l2": project,
    "steepest": steepest,
    "eot": eot,
}

MISTAKES: list[tuple[str, Any, str]] = [
    ("project_l2", lambda u, x, e: x + (u - x) * (e / norms(u - x)).clamp(max=1), "leaves [0, 1]"),
    ("project_l2", lambda u, x, e: (x + (u - x) * e / norms(u - x)).clamp(0, 1), "must stay where it is"),
    ("project_l2", lambda u, x, e: (x + (u - x).clamp(-e, e)).clamp(0, 1), "l-infinity ball"),
    ("project_l2", lambda u, x, e: (x + (u - x) * (e / (u - x).norm()).clamp(max=1)).clamp(0, 1), "one norm over the"),
    ("project_l2", lambda u, x, e: project(u, x, e) - x, "you returned the change"),
    ("project_l2", lambda u, x, e: (x + (u - x) / norms(u - x) * norms(u - x).clamp(max=e)).clamp(0, 1), "guard the"),
    ("project_l2", lambda u, x, e: project(u, x, e).flatten(1), "return an image"),
    ("steepest", lambda g, p: g, "its length must not matter"),
    ("steepest", lambda g, p: -steepest(g, p), "do not turn the gradient round"),
    ("steepest", lambda g, p: g.sign() if p == math.inf else g / g.norm(), "one norm over the whole batch"),
    ("steepest", lambda g, p: steepest(g, 2 if p == math.inf else math.inf), "the wrong way round"),
    ("steepest", lambda g, p: g.sign() if p == math.inf else g / norms(g), "0 / 0 is NaN"),
    ("eot", lambda z, y: -eot(z, y), "makes the *loss* large"),
    ("eot", lambda z, y: -z.log_softmax(-1).mean(0).gather(1, y[:, None])[:, 0], "you averaged losses"),
    ("eot", lambda z, y: -z.mean(0).log_softmax(-1).gather(1, y[:, None])[:, 0], "you averaged logits"),
    ("eot", lambda z, y: -z.softmax(-1).mean(0).gather(1, y[:, None])[:, 0].log(), "stay in logarithms"),
    ("eot", lambda z, y: eot(z, y).mean(), "one loss for each image"),
]  # fmt: skip


def test_library_answers_its_own_exercises() -> None:
    assert check("attacks.project_l2", lambda u, x, eps: L2(eps).projection(x)(u.clone()))
    assert check("attacks.steepest", lambda g, p: (Linf(1) if p == math.inf else L2(1)).direction(g))
