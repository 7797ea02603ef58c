"""The exercises of the chapter on smooth encoders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import PGD, Linf
from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    call,
    close,
    compare,
    exercise,
    interpret,
    one_number,
    random_tensor,
    returned,
)
from robrep.book.exercises.hidden import attack_within
from robrep.gaussians import Gaussian, wasserstein2


def _pairs() -> list[tuple[str, Gaussian, Gaussian]]:
    one = Gaussian(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    two = Gaussian(one.mean + 1, one.scale * 2)
    many = (
        Gaussian(random_tensor(70, 5, 3), random_tensor(71, 5, 3).exp()),
        Gaussian(random_tensor(72, 5, 3), random_tensor(73, 5, 3).exp()),
    )
    return [("N(0, 1) and N(1, 2²)", one, two), ("five pairs in three dimensions", *many)]


def _entropic_reference(s: Tensor, s_: Tensor, gamma: float | Tensor) -> Tensor:
    """psi by bisection on the derivative of gamma/2 E|a - b|^2 - H, in each dimension."""
    low, high = torch.zeros_like(s), s * s_
    for _ in range(60):
        psi = 0.5 * (low + high)
        rising = -gamma + psi / ((s * s_).square() - psi.square()) > 0
        low, high = torch.where(rising, low, psi), torch.where(rising, psi, high)
    return 0.5 * (low + high)


# --- warm-ups ---------------------------------------------------------------------------------------------------------


@exercise(
    "smooth_encoders.strength",
    "the correlation is psi / (s s'). Which equation does the best psi solve?",
    "psi² + psi / gamma = S S'. Put psi = rho s s' into it, and solve for gamma.",
    "rho / (p.scale * q.scale * (1 - rho**2))",
    learned="The same gamma couples wide codes tightly and narrow ones hardly: its unit is one over a variance.",
)
def _check_strength(answer: Any) -> None:
    """answer(p, q, rho) -> (N, D): the coupling strength at which the correlation is rho."""
    for rho in (0.5, 0.1, 0.95):
        for case, p, q in _pairs():
            shape = tuple(p.mean.shape)
            got = returned(call(answer, p, q, rho), shape, "one strength for each pair and dimension: (N, D).")
            low, high = torch.full(shape, -12.0).double(), torch.full(shape, 12.0).double()  # of ln(gamma)
            for _ in range(50):
                middle = 0.5 * (low + high)
                more = _entropic_reference(p.scale, q.scale, middle.exp()) > rho * p.scale * q.scale
                low, high = torch.where(more, low, middle), torch.where(more, middle, high)
            truth, product = (0.5 * (low + high)).exp(), p.scale * q.scale
            mistakes = [
                (truth / product, "divide by the two standard deviations, not by the variances."),
                (truth * product, "the scales are missing: gamma multiplies a squared distance."),
                (truth * (1 - rho**2), "as rho comes near 1, gamma has to grow without a bound."),
                (truth * (1 + rho), "the entropy of the pair contains 1 - rho², not 1 - rho."),
                (
                    rho * product / (product.square() - rho**2),
                    "rho is a correlation: the covariance is rho times both standard deviations.",
                ),
                (1 / truth, "that is one over gamma."),
            ]
            other = "put psi = rho s s' into the equation that the best covariance solves."
            compare(got, truth, f"rho = {rho:g}, {case}", mistakes, other)


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
        got, low, high = float(one_number(call(answer, gamma))), 1e-6, 4.0

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


# --- design -----------------------------------------------------------------------------------------------------------

EPS, CALLS = 0.1, 21  # one for the clean codes, 20 for gradients
TINT, TASK, EMPTY = slice(0, 2), slice(2, 4), slice(4, 8)  # coordinates of the hidden codes


class HiddenEncoder(nn.Module):
    """Images (N, 1, 8, 8) to Gaussian codes (N, 8): gain * tanh(pattern . (x - 1/2)), with a fixed noise.

    Two coordinates hold a tint (strong), two the task (faint), and four are empty: next to no signal, noise of scale 1.

    Args:
        patterns: (64, 8) with orthonormal columns.
    """

    patterns: Tensor
    gain: Tensor
    noise: Tensor

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns)
        self.register_buffer("gain", patterns.new_tensor([3.0] * 2 + [1.0] * 2 + [0.05] * 4))
        self.register_buffer("noise", patterns.new_tensor([0.1] * 4 + [1.0] * 4))

    def forward(self, x: Tensor) -> Gaussian:
        mean = self.gain * torch.tanh((x.flatten(1) - 0.5) @ self.patterns)
        return Gaussian(mean, self.noise.expand_as(mean))


def _hidden_task(seed: int) -> tuple[HiddenEncoder, Tensor, Tensor, nn.Linear]:
    """An encoder, 180 images, their labels (nine classes), and a linear classifier on codes (N, 8)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    encoder = HiddenEncoder(torch.linalg.qr(normal(64, 8)).Q)

    def images(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 9
        amounts = 0.02 * normal(count, 8)
        amounts[:, TINT] += 0.6 * normal(count, 2).clamp(-2, 2)
        amounts[:, TASK] += 0.3 * torch.stack([y // 3 - 1, y % 3 - 1], 1)
        return (0.5 + amounts @ encoder.patterns.T).clamp(0, 1).view(count, 1, 8, 8), y

    x, y = images(900)  # the classifier: linear discriminants of samples of the code
    p = encoder(x)
    z = p.mean + p.scale * normal(900, 8)
    means = torch.stack([z[y == k].mean(0) for k in range(9)])
    around, head = z - means[y], nn.Linear(8, 9).double().requires_grad_(False)
    head.weight.copy_(torch.linalg.solve(around.T @ around / len(z), means.T).T)
    head.bias.copy_(-0.5 * (means * head.weight).sum(1))
    return encoder, *images(180), head


@exercise(
    "smooth_encoders.unseen_task",
    "print how far each coordinate moves under W2², and how far the images of the batch lie apart in it.",
    "a faint coordinate can hold a task: measure a move in units of the spread of the codes over the batch.",
    "the spread of an empty coordinate is its noise: unit = (p.mean.var(0) + p.scale.square().mean(0)).sqrt()",
    "climb (((q.mean - p.mean) / unit) ** 2).sum(1) from a random start, 20 sign steps of 2.5 * eps / 20.",
    learned="The yardstick decides which coordinates an attack finds; W2² alone misses the faint ones.",
    kind="design",
)
def _check_unseen_task(answer: Any, seed: int) -> str:
    """answer(encoder, x, eps) -> x': images whose codes a linear classifier, not shown, gets wrong."""
    encoder, x, y, head = _hidden_task(seed)
    p = encoder(x)

    def left(x_: Tensor) -> float:
        return (head(encoder(x_).mean).argmax(1) == y).double().mean().item()

    def distance(x_: Tensor, p_: Gaussian) -> Tensor:
        return wasserstein2(p_, encoder(x_))

    ball: Any = Linf(EPS)
    reference = left(PGD(CALLS - 1)(distance, x, ball, p))
    got = attack_within(answer, CALLS, encoder, x, EPS)
    found = left(got)
    seen = f"Your attack left {100 * found:.0f} % of the hidden task right; PGD on W2² left {100 * reference:.0f} %."
    if found <= reference / 3:
        return seen
    move = ((encoder(got).mean - p.mean) / encoder.gain).square().mean(0)  # in the units in which images differ
    tint, task, empty = (move[part].sum().item() for part in (TINT, TASK, EMPTY))
    if move.sum() < 1.5 * len(move) * EPS**2:  # random signs move each coordinate by EPS
        text = "the codes hardly move: start at random, add step * sign(gradient), and keep x' from step to step."
    elif empty > max(tint, task):
        text = "you move coordinates in which the images hardly differ and the noise is large: no task can read them."
    elif tint > task:
        text = "you move the coordinates that react most; a task may read one that reacts little and differs little."
    else:
        text = "you move the right coordinates, but not far enough: take 20 sign steps of 2.5 * eps / 20."
    raise Wrong(seen, text)


# --- a figure, and a bug ----------------------------------------------------------------------------------------------

interpret(
    "smooth_encoders.read_gamma",
    "go from γ = 100 to γ = 1000 in both panels, at radius 0 and to the right of the dashed line.",
)


@exercise(
    "smooth_encoders.pair",
    "feed the two noises one at a time, as ones and as zeros: which variance has each code, and which covariance?",
    "independent parts add their variances, not their standard deviations.",
    "mixed = rho * noise_a + torch.sqrt(1 - rho**2) * noise_b",
    learned="A coupling has to keep both marginals, whatever its strength.",
    kind="bug",
)
def _check_pair(answer: Any) -> None:
    """answer(p, q, gamma, noise_a, noise_b) -> (z_a, z_b): one draw for each pair, linear in the noises."""
    for gamma in (1.0, 0.3, 5.0):
        for case, p, q in _pairs():
            zero, one, shape = torch.zeros_like(p.mean), torch.ones_like(p.mean), tuple(p.mean.shape)

            def draw(*noises: Tensor, p: Gaussian = p, q: Gaussian = q, gamma: float = gamma) -> Tensor:
                value = call(answer, p, q, gamma, *noises)
                if not isinstance(value, tuple | list) or len(value) != 2:
                    raise Wrong(f"Your function returned a {type(value).__name__}.", "return two tensors, z_a and z_b.")
                return torch.stack([returned(z, noises[0].shape, "both codes have the noises' shape.") for z in value])

            mean = draw(zero, zero)
            by_a, by_b = draw(one, zero) - mean, draw(zero, one) - mean  # what each noise adds to (z_a, z_b)
            v, covariance = by_a.square() + by_b.square(), by_a.prod(0) + by_b.prod(0)
            S, psi = torch.stack([p.scale, q.scale]).square(), _entropic_reference(p.scale, q.scale, gamma)
            rho = psi / (p.scale * q.scale)
            at = f"gamma = {gamma:g}, {case}"
            if close(v[0], S[0]) and close(covariance, psi) and close(v[1], S[1] * (rho**2 + (1 - rho) ** 2)):
                few, right = v[1].flatten()[0], S[1].flatten()[0]
                raise Unanswered(f"In the given code, z_b has variance {few:.3g} for {at}, where q has {right:.3g}.")
            compare(mean, torch.stack([p.mean, q.mean]), f"the means, {at}", [], "add q.mean to z_b, p.mean to z_a.")
            compare(v[0], S[0], f"the variance of z_a, {at}", [], "z_a was right: a draw from p.")
            mistakes = [
                (S[1] * (1 + rho**2), "noise_b still has its whole variance: a part of it is explained by z_a."),
                (S[1] * (1 - rho + rho**2), "what z_a leaves of the variance is 1 - rho², not 1 - rho."),
                (S[1] * rho**2, "the part of z_b that z_a does not explain is missing."),
            ]
            compare(v[1], S[1], f"the variance of z_b, {at}", mistakes, "its two parts are independent: variances add.")
            mistakes = [
                (p.scale * q.scale, "this is the Monge map, the limit of large gamma."),
                (torch.zeros(shape).double(), "the two codes are independent: z_b has to use noise_a as well."),
            ]
            compare(covariance, psi, f"the covariance, {at}", mistakes, "z_b follows noise_a with the factor rho.")
