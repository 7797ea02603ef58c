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
from torch.distributions import Normal, kl_divergence

from robrep import gaussians
from robrep.book import exercises
from robrep.book.exercises import EXERCISES, check, hint
from robrep.evaluation import wilson as library_wilson
from robrep.losses import bounded_log_softmax

# --- reference solutions: what the folded cells of the chapters hold --------------------------------------------------


def kl(p, q):
    v1, v2 = p.scale**2, q.scale**2
    return 0.5 * (torch.log(v2 / v1) + (v1 + (p.mean - q.mean) ** 2) / v2 - 1).sum(-1)


def project(x_adv, x, eps):
    return x_adv.clamp(x - eps, x + eps).clamp(0, 1)


def gradient(encoder, x, delta):
    p = encoder(x).detach()
    delta.requires_grad_()
    return torch.autograd.grad(kl(p, encoder(x + delta)).sum(), delta)[0]


def bounded(logits, M):
    classes = logits.shape[-1]
    K = 1 - classes * math.exp(-M)
    return torch.log(K * logits.softmax(-1) + math.exp(-M)), math.log(classes)


def urkle(encoder, x, eps, steps):
    p = encoder(x)
    x_adv = project(x + eps * (2 * torch.rand_like(x) - 1), x, eps)
    for _ in range(steps):
        x_adv.requires_grad_()
        g = torch.autograd.grad(kl(p.detach(), encoder(x_adv)).sum(), x_adv)[0]
        x_adv = project(x_adv.detach() + 2.5 * eps / steps * g.sign(), x, eps)
    return kl(p, encoder(x_adv))


def predict(head, p, noise):
    return head(p.mean + p.scale * noise).softmax(-1).mean(0)


def wilson(k, n, z=1.96):
    share, t = k / n, z**2 / n
    half = z / (1 + t) * math.sqrt(share * (1 - share) / n + t / (4 * n))
    centre = (share + t / 2) / (1 + t)
    return centre - half, centre + half


SOLUTIONS: dict[str, Callable] = {
    "kl": kl,
    "project": project,
    "random_start": gradient,
    "bounded_softmax": bounded,
    "urkle": urkle,
    "predict": predict,
    "wilson": wilson,
}


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
    return kl(encoder(x), encoder(project(x_adv + eps * x_adv.grad.sign(), x, eps)))


def shifted_both(encoder, x, delta):
    delta = delta.requires_grad_()
    p = encoder(x + delta)
    return torch.autograd.grad(kl(p, p).sum() + 0 * delta.sum(), delta)[0]


def of(change: Callable[[Any], Any]) -> Callable:
    return lambda encoder, x, delta: change(gradient(encoder, x, delta))


def swapped_gradient(encoder, x, delta):
    delta = delta.requires_grad_()
    return torch.autograd.grad(kl(encoder(x + delta), encoder(x).detach()).sum(), delta)[0]


def wald(k, n):
    share = k / n
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    return share - half, share + half


def in_place(x_adv, x, eps):
    x_adv.copy_(project(x_adv, x, eps))
    return x_adv


G = gaussians.Gaussian


def shrunk(x_adv, x, eps):
    delta = x_adv - x
    return (x + delta * (eps / delta.abs().amax((1, 2, 3), keepdim=True)).clamp(max=1)).clamp(0, 1)


def wrong_k(logits, M):
    return torch.log((1 - math.exp(-M)) * logits.softmax(1) + math.exp(-M)), math.log(logits.shape[1])


MISTAKES: list[tuple[str, Callable | Any, str]] = [
    ("kl", lambda p, q: kl(q, p), "you computed KL[p' || p]"),
    ("kl", lambda p, q: kl(p, q) / p.mean.shape[1], "averaged over the dimensions"),
    ("kl", lambda p, q: kl(G(p.mean, p.scale.sqrt()), G(q.mean, q.scale.sqrt())), "scale as the variance"),
    ("kl", lambda p, q: 2 * kl(p, q), "factor 1/2"),
    ("kl", lambda p, q: kl(p, q) + p.mean.shape[1] / 2, "-1 in each dimension"),
    ("kl", lambda p, q: kl(p, q).mean(), "keep the batch"),
    ("kl", lambda p, q: kl_divergence(Normal(*p), Normal(*q)), "sum over the dimensions"),
    ("kl", lambda p, q: kl(p, G(p.mean, q.scale)), "distance of the means"),
    ("kl", lambda p, q: kl(p, q) * math.nan, "term"),
    ("kl", lambda p, q: [0.4], "returned a list"),
    ("kl", lambda p: p, "raised TypeError"),
    ("kl", 0.44, "pass the function itself"),
    ("project", lambda x_adv, x, eps: x_adv.clamp(x - eps, x + eps), "leaves [0, 1]"),
    ("project", lambda x_adv, x, eps: x_adv.clamp(0, 1), "further than eps"),
    ("project", lambda x_adv, x, eps: project(x_adv, x, eps) - x, "add it to x"),
    ("project", lambda x_adv, x, eps: (x + eps * (x_adv - x).sign()).clamp(0, 1), "inside"),
    ("project", shrunk, "as for an l2 ball"),
    ("project", in_place, "in place"),
    ("random_start", 6, "never negative"),
    ("random_start", shifted_both, "p must come from x alone"),
    ("random_start", lambda encoder, x, delta: torch.zeros_like(delta), "p must come from x alone"),
    ("random_start", of(lambda g: g / 3), "averaged over the batch"),
    ("random_start", of(torch.sign), "not its sign"),
    ("random_start", of(lambda g: (g,)), "returns a tuple"),
    ("random_start", swapped_gradient, "clean distribution comes first"),
    ("random_start", of(lambda g: g + 1e-3 * (g.abs().max() < 1e-9)), "minimum"),
    ("bounded_softmax", wrong_k, "each of the C classes"),
    ("bounded_softmax", lambda s, M: (s.log_softmax(1).clamp(min=-M), 0), "no longer sum to 1"),
    ("bounded_softmax", lambda s, M: (s.log_softmax(1), 0), "no bound"),
    ("bounded_softmax", lambda s, M: (bounded(s, M)[0].exp(), 0), "return their logarithm"),
    ("bounded_softmax", lambda s, M: (bounded(s, M)[0], math.log(10)), "10 classes only"),
    ("bounded_softmax", lambda s, M: (bounded(s, M)[0], M), "smallest"),
    ("bounded_softmax", lambda s, M: bounded(s, M)[0], "return a pair"),
    ("urkle", attack(start=False), "start at a random point"),
    ("urkle", attack(ball=False), "left the ball"),
    ("urkle", attack(ascend=-1), "do you ascend"),
    ("urkle", attack(keep=False), "keep the moved x'"),
    ("urkle", attack(cut=4), "stops early"),
    ("urkle", attack(box=False), "left [0, 1]"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n).mean(), "one value for each image"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n) / e(x).mean.shape[1], "sum over the dimensions"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n).detach(), "detach inside the attack only"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n, value=lambda p, q: kl(p.detach(), q)), "through both"),
    ("urkle", lambda e, x, eps, n: attack()(e, x, eps, n, value=lambda p, q: kl(q, p)), "KL[p' || p]"),
    ("urkle", with_backward, "torch.autograd.grad"),
    ("predict", lambda head, p, noise: head(p.sample(noise)).mean(0).softmax(-1), "averaged logits"),
    ("predict", lambda head, p, noise: head(p.mean).softmax(-1), "the mean only"),
    ("predict", lambda head, p, noise: head(p.mean + p.scale**2 * noise).softmax(-1).mean(0), "deviation already"),
    ("predict", lambda head, p, noise: predict(head, p, noise).log(), "log-probabilities"),
    ("predict", lambda head, p, noise: head(p.sample(noise)).log_softmax(-1).mean(0).exp(), "log-probabilities"),
    ("predict", lambda head, p, noise: head(p.sample(noise)).softmax(-1), "average over the samples"),
    ("wilson", wald, "no width at 0"),
    ("wilson", lambda k, n: tuple(min(1.0, max(0.0, v)) for v in wald(k, n)), "no width at 0"),
    ("wilson", lambda k, n: (0.0, 0.0) if k == 0 else wilson(k, n), "no proof of 0"),
    ("wilson", lambda k, n: tuple(100 * v for v in wilson(k, n)), "not percent"),
    ("wilson", lambda k, n: wilson(k, n, z=1.645), "too narrow"),
    ("wilson", lambda k, n: wilson(k, n)[::-1], "lower end comes first"),
    ("wilson", lambda k, n: wilson(k, n)[0], "return a pair"),
]  # fmt: skip


def test_number_answers_the_question_about_the_random_start() -> None:
    assert check("vae_urkle.random_start", 0)


def test_unfinished_pair_is_unanswered() -> None:
    assert not check("vae_urkle.bounded_softmax", lambda s, M: (bounded(s, M)[0], ...)).answered


def test_library_answers_its_own_exercises() -> None:
    assert check("vae_urkle.kl", gaussians.kl)
    assert check("vae_urkle.wilson", library_wilson)
    assert check("vae_urkle.predict", lambda head, p, noise: head(p.sample(noise)).softmax(-1).mean(0))
    s = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bounded_log_softmax(s, 5.0), bounded(s, 5.0)[0])


@pytest.mark.parametrize(("k", "n"), [(0, 500), (3, 10), (250, 500), (500, 500)])
def test_wilson_solution_against_scipy(k: int, n: int) -> None:
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n, z=1.959963984540054) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_bounded_solution_keeps_its_bound() -> None:
    log_p, least = bounded(torch.tensor([[1000.0, 0.0, -1000.0]], dtype=torch.float64), 2.0)
    assert log_p.exp().sum().item() == pytest.approx(1) and log_p.min() >= -2.0 - 1e-12
    assert least == pytest.approx(1.0986, abs=1e-4)


def test_check_leaves_the_random_state_alone_and_is_deterministic() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = check("vae_urkle.urkle", attack(keep=False)).message
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert check("vae_urkle.urkle", attack(keep=False)).message == first


def test_hints_are_printed_one_at_a_time(capsys: pytest.CaptureFixture) -> None:
    hint("vae_urkle.kl")
    hint("vae_urkle.kl", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Hint 1 of 3: in each dimension") and lines[1].startswith("Hint 3 of 3: 0.5 * (log")
    with pytest.raises(ValueError, match="hints 1 to 3"):
        hint("vae_urkle.kl", 4)


def test_unknown_exercise_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="exercise is 'vae_urkle.kll'.*did you mean 'vae_urkle.kl'"):
        check("vae_urkle.kll", kl)


def test_later_chapters_register_their_own() -> None:
    @exercises.exercise("test.even", "a number you can halve.")
    def _check(answer: Any) -> None:
        if answer % 2:
            raise exercises.Wrong(f"{answer} is odd.", "halve it.")

    try:
        assert check("test.even", 4) and "3 is odd. Hint: halve it." in check("test.even", 3).message
    finally:
        del EXERCISES["test.even"]
