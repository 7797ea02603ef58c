"""The exercises on attacks: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from robrep.attacks import L2, Linf
from robrep.book.exercises import EXERCISES, check

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
    "attacks.project_l2": project,
    "attacks.steepest": steepest,
    "attacks.eot": eot,
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


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name: str) -> None:
    assert check(name, SOLUTIONS[name], strict=True).message.startswith(f"✓ {name}: passed.")


@pytest.mark.parametrize(("name", "answer", "words"), MISTAKES, ids=[f"{m[0]}-{m[2]}" for m in MISTAKES])
def test_mistake_gets_the_hint_that_fits(name: str, answer: Any, words: str) -> None:
    verdict = check(f"attacks.{name}", answer)
    assert not verdict and verdict.answered
    assert words in verdict.message, verdict.message
    assert verdict.message.count("\n") == 0


@pytest.mark.parametrize("name", SOLUTIONS)
def test_every_exercise_has_a_solution_two_mistakes_and_hints(name: str) -> None:
    assert set(SOLUTIONS) == {each for each in EXERCISES if each.startswith("attacks.")}
    assert sum(f"attacks.{m[0]}" == name for m in MISTAKES) >= 2
    assert len(EXERCISES[name].hints) >= 2
    assert not check(name, lambda *_: None).answered


def test_library_answers_its_own_exercises() -> None:
    check("attacks.project_l2", lambda u, x, eps: L2(eps).projection(x)(u.clone()), strict=True)
    check("attacks.steepest", lambda g, p: (Linf(1) if p == math.inf else L2(1)).direction(g), strict=True)
