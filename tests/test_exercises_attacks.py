"""The exercises on attacks: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import beta, norm

from robrep.attacks import L2, Linf
from robrep.book.exercises import EXERCISES, check
from robrep.evaluation import Rate
from robrep.objectives import dlr as library_dlr
from robrep.smoothing import clopper_pearson_low

# --- reference solutions: what the folded cells of the chapter hold ---------------------------------------------------


def norms(g):
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def project(x_adv, x, eps):
    delta = x_adv - x
    return (x + delta * (eps / norms(delta).clamp(min=1e-12)).clamp(max=1)).clamp(0, 1)


def steepest(g, p):
    return g.sign() if p == math.inf else g / norms(g).clamp(min=1e-30)


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


def eot(logits, y):
    log_p = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -log_p.gather(1, y[:, None]).squeeze(1)


def worst_case(right, clean):
    return (right.flatten(0, 1).all(0) & clean).float().mean().item()


def radius(k, n, sigma, alpha):
    low = beta.ppf(alpha, k, n - k + 1) if k else 0.0
    return max(0.0, sigma * norm.ppf(low)) if low > 0 else 0.0


SOLUTIONS: dict[str, Callable] = {
    "attacks.project_l2": project,
    "attacks.steepest": steepest,
    "attacks.dlr": dlr,
    "attacks.eot": eot,
    "attacks.worst_case": worst_case,
    "attacks.radius": radius,
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
    ("dlr", lambda z, y: -dlr(z, y), "falls as the label loses"),
    ("dlr", margin, "this is the margin: divide it"),
    ("dlr", lambda z, y: margin(z, y) / gap(z, 1), "third largest logit"),
    ("dlr", lambda z, y: (z.amax(1) - z.gather(1, y[:, None])[:, 0]) / gap(z, 2), "leave the label out"),
    ("dlr", lambda z, y: margin(z, y) / (gap(z, 2) + gap(z, 3)) * 2, "the targeted loss"),
    ("eot", lambda z, y: -eot(z, y), "makes the *loss* large"),
    ("eot", lambda z, y: -z.log_softmax(-1).mean(0).gather(1, y[:, None])[:, 0], "you averaged losses"),
    ("eot", lambda z, y: -z.mean(0).log_softmax(-1).gather(1, y[:, None])[:, 0], "you averaged logits"),
    ("eot", lambda z, y: -z.softmax(-1).mean(0).gather(1, y[:, None])[:, 0].log(), "stay in logarithms"),
    ("eot", lambda z, y: eot(z, y).mean(), "one loss for each image"),
    ("worst_case", lambda r, c: r.flatten(0, 1).all(0).double().mean().item(), "wrong without an attack"),
    ("worst_case", lambda r, c: r.double().mean(-1).min().item(), "best single run"),
    ("worst_case", lambda r, c: (r[:, -1].all(0) & c).double().mean().item(), "you kept the last restart"),
    ("worst_case", lambda r, c: (r.flatten(0, 1).any(0) & c).double().mean().item(), "use all()"),
    ("worst_case", lambda r, c: r.all(0), "return one number"),
    ("radius", lambda k, n, s, a: s * norm.ppf(k / n), "the share itself is no bound"),
    ("radius", lambda k, n, s, a: radius(k, n, s, a / 2), "one-sided"),
    ("radius", lambda k, n, s, a: radius(k, n, 1.0, a), "multiply by sigma"),
    ("radius", lambda k, n, s, a: s * beta.ppf(a, k, n - k + 1), "quantile (norm.ppf) is missing"),
    ("radius", lambda k, n, s, a: s * norm.ppf(beta.ppf(a, k, n - k + 1)), "abstain"),
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
    check("attacks.dlr", library_dlr, strict=True)
    check("attacks.worst_case", lambda r, c: Rate(r.flatten(0, 1).all(0) & c).value, strict=True)

    def certified(k: int, n: int, sigma: float, alpha: float) -> float:
        low = clopper_pearson_low(torch.tensor(k), n, alpha)
        return max(0.0, sigma * torch.special.ndtri(low).item()) if low > 0.5 else 0.0

    check("attacks.radius", certified, strict=True)
