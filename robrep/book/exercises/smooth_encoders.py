"""The exercises of the chapter on smooth encoders."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from robrep.book.exercises.core import (
    LinearGaussian,
    Unanswered,
    Wrong,
    attacked_images,
    call,
    compare,
    exercise,
    random_tensor,
    returned,
)
from robrep.gaussians import Gaussian


def _pairs() -> list[tuple[str, Gaussian, Gaussian]]:
    one = Gaussian(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    two = Gaussian(one.mean + 1, one.scale * 2)
    many = (
        Gaussian(random_tensor(70, 5, 3), random_tensor(71, 5, 3).exp()),
        Gaussian(random_tensor(72, 5, 3), random_tensor(73, 5, 3).exp()),
    )
    return [("N(0, 1) and N(1, 2²)", one, two), ("five pairs in three dimensions", *many)]


@exercise(
    "smooth_encoders.w2",
    "a Gaussian with a diagonal covariance is a product of Gaussians on lines: what does it cost to move one of them?",
    "on a line the Monge map is a shift and a stretch: the squared shift plus the squared difference of the scales.",
    "((p.mean - q.mean)**2 + (p.scale - q.scale)**2).sum(-1)",
    learned="In (mean, scale) the 2-Wasserstein distance of diagonal Gaussians is the ordinary distance.",
)
def _check_w2(answer: Any) -> None:
    """answer(p, q) -> (N,): W2^2 of diagonal Gaussians."""
    for case, p, q in _pairs():
        got = returned(call(answer, p, q), (len(p.mean),), "return one number for each pair: sum over the last axis.")
        # E|a - b|^2 when b is the monotone image of a: an integral over the quantiles, here by 400 midpoints
        u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        z = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)).icdf(u)
        z = z / z.square().mean().sqrt()
        moved = (p.mean - q.mean)[..., None] + (p.scale - q.scale)[..., None] * z
        truth = moved.square().mean(-1).sum(-1)
        means, v, w = (p.mean - q.mean).square().sum(-1), p.scale**2, q.scale**2
        mistakes = [
            (truth.sqrt(), "this is W2: the exercise asks for its square."),
            (means, "the scales are missing: stretching costs too."),
            (means + (v - w).square().sum(-1), "take the difference of the standard deviations, not of the variances."),
            (means + (v + w).sum(-1), "this is the cost when the two are independent, not the least cost."),
            (
                means + (v - w).abs().sum(-1),
                "the least cost of the spread is (s - s')², not a difference of variances.",
            ),
            (truth / p.mean.shape[1], "you averaged over the dimensions: sum them."),
        ]
        compare(got, truth, case, mistakes, "shift plus stretch: (m - m')² + (s - s')² in each dimension.")


def _entropic_reference(s: Tensor, s_: Tensor, gamma: float) -> Tensor:
    """psi by bisection on the derivative of gamma/2 E|a - b|^2 - H, in each dimension."""
    low, high = torch.zeros_like(s), s * s_
    for _ in range(200):
        psi = 0.5 * (low + high)
        rising = -gamma + psi / ((s * s_).square() - psi.square()) > 0
        low, high = torch.where(rising, low, psi), torch.where(rising, psi, high)
    return 0.5 * (low + high)


@exercise(
    "smooth_encoders.coupling",
    "write the cost of a covariance psi: -gamma psi - 1/2 ln(S S' - psi²), and set its derivative to zero.",
    "that gives psi² + psi/gamma - S S' = 0, with variances S and S'. Which of its roots keeps S S' - psi² positive?",
    "(sqrt(1 + 4 gamma² S S') - 1) / (2 gamma), where S = p.scale**2.",
    learned="The other root is below -sqrt(S S'), which no covariance can be.",
)
def _check_coupling(answer: Any) -> None:
    """answer(p, q, gamma) -> (N, D): covariances of the optimal coupling."""
    for gamma in (1.0, 0.3, 5.0):
        for case, p, q in _pairs():
            shape = tuple(p.mean.shape)
            got = returned(call(answer, p, q, gamma), shape, "one covariance for each pair and dimension: (N, D).")
            truth = _entropic_reference(p.scale, q.scale, gamma)
            product, v = p.scale * q.scale, (p.scale * q.scale) ** 2
            mistakes = [
                (-(1 + 4 * gamma**2 * v).sqrt() / (2 * gamma) - 1 / (2 * gamma), "this is the other root."),
                (product, "this is the Monge map's covariance, the limit of large gamma."),
                (
                    (1 + 4 * gamma**2 * product).sqrt() / (2 * gamma) - 1 / (2 * gamma),
                    "square the standard deviations.",
                ),
                (truth / product, "this is the correlation: multiply it by both standard deviations."),
                ((1 + 4 * gamma**2 * v).sqrt() - 1, "divide by 2 gamma."),
                ((1 + 4 * gamma**2 * v).sqrt() / (2 * gamma), "the -1 is missing."),
            ]
            other = "solve psi² + psi/gamma = S S' for the positive root, in each dimension."
            compare(got, truth, f"gamma = {gamma:g}, {case}", mistakes, other)


@exercise(
    "smooth_encoders.entropic",
    "put psi from the last exercise into gamma/2 E|a - b|² - H: what is E|a - b|², and what the entropy of the pair?",
    "E|a - b|² = (m - m')² + S + S' - 2 psi, and H = ln(2 pi e) + 1/2 ln(S S' - psi²) in each dimension.",
    "(gamma / 2 * ((m - m')**2 + S + S' - 2 * psi) - math.log(2 * math.pi * math.e) "
    "- 0.5 * torch.log(S * S' - psi**2)).sum(-1)",
    learned="Where gamma is large this form loses its digits; the library's does not.",
)
def _check_entropic(answer: Any) -> None:
    """answer(p, q, gamma) -> (N,): the entropy regularized Wasserstein term."""
    for gamma in (1.0, 0.3, 5.0):
        for case, p, q in _pairs():
            value = call(answer, p, q, gamma)
            got = returned(value, (len(p.mean),), "return one number for each pair: sum over the last axis.")
            v, w, d = p.scale**2, q.scale**2, p.mean.shape[1]
            psi, shift = _entropic_reference(p.scale, q.scale, gamma), (p.mean - q.mean) ** 2
            cost = (shift + v + w - 2 * psi).sum(-1)
            entropy = (math.log(2 * math.pi * math.e) + 0.5 * torch.log(v * w - psi**2)).sum(-1)
            truth = gamma / 2 * cost - entropy
            mistakes = [
                (truth - gamma / 2 * shift.sum(-1), "the means are missing: this is the slip in the paper's summary."),
                (gamma / 2 * cost, "the entropy of the pair is missing."),
                (gamma / 2 * cost + entropy, "the entropy is subtracted: more of it makes the cost smaller."),
                (gamma * cost - entropy, "the cost is weighted by gamma / 2."),
                (
                    truth + d * math.log(2 * math.pi * math.e) / 2,
                    "the pair has two dimensions for each of z: ln(2 pi e).",
                ),
                (truth + d * math.log(2 * math.pi * math.e), "the constant ln(2 pi e) of the entropy is missing."),
                (gamma / 2 * (shift + v + w).sum(-1) - entropy, "the covariance enters the cost as well: - 2 psi."),
            ]
            other = "gamma / 2 times the expected squared distance, minus the entropy of the joint Gaussian."
            compare(got, truth, f"gamma = {gamma:g}, {case}", mistakes, other)


@exercise(
    "smooth_encoders.beta",
    "at gamma = 0 the term WD is minus the two entropies. Which divergence is prior cross-entropy minus entropy?",
    "at x' = x both points have the same code, so the same divergence stands there how often?",
    learned="So the fair baseline for SE is the plain ELBO, and a part of what SE does is the doubled prior.",
)
def _check_beta(answer: Any) -> None:
    """answer: the weight on KL[q || prior] in the SE-ELBO at gamma = 0 and x' = x."""
    if answer is None or answer is ...:
        raise Unanswered
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise Wrong(f"The answer is a {type(answer).__name__}.", "give the number itself.")
    if answer == 1:
        raise Wrong("You say 1, as in a VAE.", "there are two prior terms and two entropies; count both points.")
    if answer != 2:
        raise Wrong(f"You say {answer:g}.", "write the three terms at gamma = 0 with q(z|x') = q(z|x), and collect.")


@exercise(
    "smooth_encoders.scale",
    "with both codes N(0, S) the cost is S + ln(2 pi) plus WD. Differentiate in S, or search.",
    "the derivative is 1 + gamma - (1 + u) / (2 S), u = sqrt(1 + 4 gamma² S²): where it vanishes, u is linear in S.",
    "(1 + gamma) / (1 + 2 * gamma)",
    learned="From 1, the prior's variance, at gamma = 0 down to 1/2: coupled codes lean on each other.",
)
def _check_scale(answer: Any) -> None:
    """answer(gamma) -> the variance S of an unused dimension at which prior terms and WD are least."""
    for gamma in (0.5, 1.0, 10.0):
        value = call(answer, gamma)
        if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number.")
        got, low, high = float(value), 1e-6, 4.0

        def slope(v: float, gamma: float = gamma) -> float:
            psi = float(_entropic_reference(*(torch.tensor([v], dtype=torch.float64).sqrt(),) * 2, gamma))
            return 1 + gamma - gamma * v / psi  # psi is optimal, so its own change costs nothing to first order

        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if slope(middle) > 0 else (middle, high)
        if math.isclose(got, low, rel_tol=1e-3):
            continue
        text = "set the derivative in S to zero; at gamma = 0 the answer is 1."
        if math.isclose(got, math.sqrt(low), rel_tol=1e-3):
            text = "this is the standard deviation: return the variance."
        elif math.isclose(got, 1.0):
            text = "1 is right only without coupling: the entropy of the pair grows more slowly than the two alone."
        raise Wrong(f"For gamma = {gamma:g} you have {got:.4g}, right is {low:.4g}.", text)


@exercise(
    "smooth_encoders.select",
    "it is the attack of the last chapter with another distance to climb.",
    "the answer is an image: start at random, climb W2², project after each step, and return x'.",
    "climb w2(p.detach(), encoder(x_adv)).sum() by torch.autograd.grad and return x_adv.detach().",
    learned="x' is data for the outer step: no gradient passes through the search.",
)
def _check_select(answer: Any) -> None:
    """answer(encoder, x, eps, steps) -> x': images in the ball whose code is far from that of x."""
    encoder, eps, steps = LinearGaussian(random_tensor(80, 4, 12)), 0.1, 20
    x = 0.5 + 0.02 * random_tensor(81, 6, 1, 3, 4)
    x[0] = 0.0
    value = call(answer, encoder, x.clone(), eps, steps)
    if isinstance(value, Tensor) and value.ndim == 1:
        raise Wrong("Your function returned one number for each image.", "return the images x', not their distance.")
    got = attacked_images(value, x, eps)

    def distance(x_: Tensor) -> Tensor:
        p, q = encoder(x), encoder(x_)
        return ((p.mean - q.mean).square() + (p.scale - q.scale).square()).sum(1).detach()

    shift = torch.rand(x.shape, dtype=torch.float64) * 2 - 1
    chance = distance((x + eps * shift.sign()).clamp(0, 1))
    reached = distance(got)
    if (reached < 1e-12).any():
        raise Wrong("For some image the code has not moved.", "the gradient at x' = x is zero: start at random.")
    if reached.mean() < 1.5 * chance.mean():
        raise Wrong(
            f"The codes move by {reached.mean():.3g} on average; random signs reach {chance.mean():.3g}.",
            "ascend: add step * sign(gradient), many steps long, and keep the moved x' from step to step.",
        )
