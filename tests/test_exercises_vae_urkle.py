"""Every exercise passes with its solution, and meets each plausible mistake with the hint that fits it.

The reference solutions here are those of the chapters' folded cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch.distributions import Normal

from robrep.book import exercises
from robrep.book.exercises import EXERCISES, check, hint
from robrep.evaluation import wilson as library_wilson
from robrep.gaussians import Gaussian as G
from robrep.gaussians import kl

# --- reference solutions: what the folded cells of the chapters hold --------------------------------------------------


def variation(p, q):
    distance = ((p.mean - q.mean) / p.scale).norm(dim=-1)
    return 2 * torch.special.ndtr(distance / 2) - 1


def wilson(k, n, z=1.96):
    share, t = k / n, z**2 / n
    centre = share + t / 2
    half = z * math.sqrt(share * (1 - share) / n + t / (4 * n))
    return (centre - half) / (1 + t), (centre + half) / (1 + t)


def tighter(p, q):
    spread = p.scale**2 + q.scale**2
    closeness = 0.5 * torch.log(2 * p.scale * q.scale / spread)
    overlap = (closeness - (p.mean - q.mean) ** 2 / (4 * spread)).sum(-1).exp()
    pinsker = torch.sqrt(torch.minimum(kl(p, q), kl(q, p)) / 2)
    return torch.minimum(torch.sqrt(1 - overlap**2), pinsker)


def urkle(encoder, x, eps, steps):
    p = encoder(x)
    x_adv = x + eps * (2 * torch.rand_like(x) - 1)
    x_adv = x_adv.clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad(kl(p.detach(), encoder(x_adv)).sum(), x_adv)
        x_adv = x_adv.detach() + 2.5 * eps / steps * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return kl(p, encoder(x_adv))


SOLUTIONS: dict[str, Any] = {
    "variation": variation,
    "wilson": wilson,
    "tighter": tighter,
    "urkle": urkle,
    "read_bound": "The bound is shortest where the code has collapsed: there the divergence is zero and the clean loss "
    "is that of guessing, so a short bound is no sign of a good model.",
}


# --- the faulty code of the chapter -----------------------------------------------------------------------------------


def urkle_answer(encoder, x, eps, steps):
    p = encoder(x).detach()
    x_adv = x + eps * (2 * torch.rand_like(x) - 1)
    x_adv = x_adv.clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad(kl(p, encoder(x_adv)).sum(), x_adv)
        x_adv = x_adv.detach() + 2.5 * eps / steps * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return kl(p, encoder(x_adv))


GIVEN = {"urkle": urkle_answer}


# --- plausible mistakes, each with words of the hint it must get ------------------------------------------------------


def attack(
    *,
    start: bool = True,
    ascend: int = 1,
    keep: bool = True,
    ball: bool = True,
    box: bool = True,
    cut: int | None = None,
) -> Callable:
    """The attack of ``urkle`` with one thing changed."""

    def run(encoder, x, eps, steps, value=lambda p, q: kl(p, q), objective=lambda p, q: kl(p, q)):
        p = encoder(x)
        x_adv = x + eps * (2 * torch.rand_like(x) - 1) * start
        x_adv = x_adv.clamp(0, 1) if box else x_adv
        for _ in range(steps if cut is None else cut):
            x_adv = x_adv.detach().requires_grad_()
            g = torch.autograd.grad(objective(p.detach(), encoder(x_adv)).sum(), x_adv)[0]
            x_adv = (x_adv if keep else x).detach() + ascend * 2.5 * eps / steps * g.sign()
            x_adv = x_adv.clamp(x - eps, x + eps) if ball else x_adv
            x_adv = x_adv.clamp(0, 1) if box else x_adv
        return value(p, encoder(x_adv.detach()))

    return run


def with_backward(encoder, x, eps, steps):
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_()
    kl(encoder(x).detach(), encoder(x_adv)).sum().backward()
    return kl(encoder(x), encoder((x_adv + eps * x_adv.grad.sign()).clamp(0, 1)))


def wald(k, n):
    share = k / n
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    return share - half, share + half


def away(p, q):
    return (p.mean - q.mean) / p.scale


def pinsker(p, q):
    return torch.sqrt(kl(p, q) / 2)


def sampled(p, q):
    """An unbiased estimate, which is no bound."""
    z = p.mean + p.scale * torch.randn(200, *p.mean.shape, dtype=torch.float64)
    ratio = (Normal(*q).log_prob(z) - Normal(*p).log_prob(z)).sum(2)
    return (1 - ratio.exp()).clamp(min=0).mean(0)


MISTAKES: list[tuple[str, Callable | Any, str]] = [
    ("variation", pinsker, "this is Pinsker's bound"),
    ("variation", lambda p, q: variation(G(p.mean, p.scale**2), G(q.mean, q.scale)), "a standard deviation already"),
    ("variation", lambda p, q: variation(G(p.mean, torch.ones_like(p.scale)), q), "in units of the scale"),
    ("variation", lambda p, q: 2 * variation(p, q), "half of it"),
    ("variation", lambda p, q: (variation(p, q) + 1) / 2, "subtract what q has there"),
    ("variation", lambda p, q: variation(G(2 * p.mean, p.scale), G(2 * q.mean, q.scale)), "half way between"),
    ("variation", lambda p, q: torch.erf(away(p, q).abs() / 8**0.5).sum(1), "do not add up"),
    ("variation", lambda p, q: torch.erf(away(p, q).abs() / 8**0.5), "one number for each pair"),
    ("tighter", pinsker, "ever more than 1"),
    ("tighter", lambda p, q: pinsker(p, q).clamp(max=1), "this is Pinsker's bound"),
    ("tighter", lambda p, q: torch.minimum(pinsker(p, q), pinsker(q, p)).clamp(max=1), "both orders of KL|Both orders"),
    ("tighter", variation, "exact where the scales are equal"),
    ("tighter", sampled, "for every pair"),
    ("tighter", lambda p, q: tighter(p, q).mean(), "one bound for each pair"),
    ("urkle", attack(start=False), "start at a random point"),
    ("urkle", attack(ball=False), "left the ball"),
    ("urkle", attack(ascend=-1), "do you ascend"),
    ("urkle", attack(keep=False), "keep the moved x'"),
    ("urkle", attack(cut=4), "stops early"),
    ("urkle", attack(box=False), "left [0, 1]"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n).mean(), "one value for each image"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n) / e(x).mean.shape[1], "sum over the dimensions"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n).detach(), "detach inside the attack only"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n, value=lambda p, q: kl(p, G(*q).detach())), "through both"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n, value=lambda p, q: kl(q, p)), "KL[p' || p]"),
    ("urkle", with_backward, "torch.autograd.grad"),
    ("wilson", wald, "no width at 0"),
    ("wilson", lambda k, n: tuple(min(1.0, max(0.0, v)) for v in wald(k, n)), "no width at 0"),
    ("wilson", lambda k, n: (0.0, 0.0) if k == 0 else wilson(k, n), "no proof of 0"),
    ("wilson", lambda k, n: tuple(100 * v for v in wilson(k, n)), "not percent"),
    ("wilson", lambda k, n: wilson(k, n, z=1.645), "too narrow"),
    ("wilson", lambda k, n: wilson(k, n)[::-1], "lower end comes first"),
    ("wilson", lambda k, n: wilson(k, n)[0], "return a pair"),
    ("read_bound", "It is loose.", "has 3 words"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2, 5))
def test_the_design_task_can_be_told_from_its_mistakes_on_other_seeds(seed: int) -> None:
    assert check("vae_urkle.tighter", tighter, seed=seed)
    assert check("vae_urkle.tighter", pinsker, seed=seed).state == "wrong"
    assert check("vae_urkle.tighter", variation, seed=seed).state == "wrong"


def test_library_answers_its_own_exercises() -> None:
    assert check("vae_urkle.wilson", library_wilson)


@pytest.mark.parametrize(("k", "n"), [(0, 500), (3, 10), (250, 500), (500, 500)])
def test_wilson_solution_against_scipy(k: int, n: int) -> None:
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n, z=1.959963984540054) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_check_leaves_the_random_state_alone_and_is_deterministic() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = check("vae_urkle.urkle", attack(keep=False)).message
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert check("vae_urkle.urkle", attack(keep=False)).message == first


def test_hints_are_printed_one_at_a_time(capsys: pytest.CaptureFixture) -> None:
    check("vae_urkle.wilson", lambda k, n: (0.0, 0.0))
    capsys.readouterr()
    hint("vae_urkle.wilson")
    hint("vae_urkle.wilson", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Hint 1 of 3: ask which rates") and lines[1].startswith("Hint 3 of 3: with t = ")
    with pytest.raises(ValueError, match="hints 1 to 3"):
        hint("vae_urkle.wilson", 4)


def test_unknown_exercise_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="exercise is 'vae_urkle.wilsen'.*did you mean 'vae_urkle.wilson'"):
        check("vae_urkle.wilsen", wilson)


def test_later_chapters_register_their_own() -> None:
    @exercises.exercise("test.even", "a number you can halve.")
    def _check(answer: Any) -> None:
        if answer % 2:
            raise exercises.Wrong(f"{answer} is odd.", "halve it.")

    try:
        assert check("test.even", 4) and "3 is odd. Hint: halve it." in check("test.even", 3).message
    finally:
        del EXERCISES["test.even"]
