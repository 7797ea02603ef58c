"""The exercises of the chapter on worst-case mutual information."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    attacked_images,
    call,
    compare,
    exercise,
    random_tensor,
    returned,
)


def _scores() -> list[tuple[str, Tensor]]:
    return [("three pairs", random_tensor(300, 3, 3)), ("eight pairs", 2 * random_tensor(301, 8, 8))]


def _number(answer: Any) -> float:
    if answer is None or answer is ...:
        raise Unanswered
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise Wrong(f"The answer is a {type(answer).__name__}.", "give the number itself.")
    return float(answer)


@exercise(
    "worst_case_mi.dv",
    "the mean of the diagonal, minus the logarithm of the mean of exp over everything else. How many entries is that?",
    "put minus infinity on the diagonal: exp makes it zero, and logsumexp needs no case for it.",
    "u.diagonal().mean() - u.masked_fill(torch.eye(n).bool(), -math.inf).flatten().logsumexp(0) "
    "+ math.log(n * (n - 1))",
    learned="Masked by zero in place of minus infinity, each entry of the diagonal would still count exp(0) = 1.",
)
def _check_dv(answer: Any) -> None:
    """answer(u) -> scalar: Donsker-Varadhan of scores (N, N)."""
    for case, u in _scores():
        got = returned(call(answer, u.clone()), (), "return one number, a tensor without dimensions.")
        n = len(u)
        others = [u[i, j].exp() for i in range(n) for j in range(n) if i != j]
        joint, product = u.diagonal().mean(), torch.stack(others).mean()
        truth = joint - product.log()
        zeroed = (torch.stack(others).sum() + n) / (n * (n - 1))
        mistakes = [
            (joint - zeroed.log(), "the diagonal is zeroed but still counts exp(0) = 1: mask with minus infinity."),
            (joint - u.exp().mean().log(), "the diagonal belongs to the joint distribution: leave it out here."),
            (joint - torch.stack(others).log().mean(), "first the mean of exp, then the logarithm."),
            (joint - torch.stack(others).sum().log(), "a mean, not a sum: add ln of the number of entries."),
            (joint - (torch.stack(others).sum() / n**2).log(), "n (n - 1) entries are left, not n²."),
            (-truth, "this is the loss, minus the estimate."),
            (truth / math.log(2), "natural logarithms: the value is in nats."),
        ]
        compare(got, truth, case, mistakes, "mean of the diagonal minus ln of the mean of exp off the diagonal.")


@exercise(
    "worst_case_mi.nce",
    "for each row, a classifier picks the partner among N by softmax. What is the partner's mean log-probability?",
    "add ln N, so that a critic that knows nothing gets 0.",
    "(u.diagonal() - u.logsumexp(1)).mean() + math.log(len(u))",
    learned="A log-probability is at most 0, so the estimate is at most ln N, whatever the truth.",
)
def _check_nce(answer: Any) -> None:
    """answer(u) -> scalar: InfoNCE of scores (N, N), rows classify."""
    for case, u in _scores():
        got = returned(call(answer, u.clone()), (), "return one number, a tensor without dimensions.")
        n = len(u)
        own = torch.stack([u[i].softmax(0)[i].log() for i in range(n)]).mean()
        off = u.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
        mistakes = [
            (own, "ln N is missing: a critic that knows nothing must get 0."),
            (
                torch.stack([u[:, i].softmax(0)[i].log() for i in range(n)]).mean() + math.log(n),
                "softmax over each row.",
            ),
            (-own, "this is the cross-entropy, the loss."),
            ((u.diagonal() - off.logsumexp(1)).mean() + math.log(n), "the partner itself stands in the denominator."),
        ]
        compare(got, own + math.log(n), case, mistakes, "mean over rows of log-softmax at the diagonal, plus ln N.")


@exercise(
    "worst_case_mi.linear",
    "the adversary changes the side of every x with |w.x| < r. It moves as many as possible to *one* side.",
    "m = (P(0 < s < r) + P(-r < s < 0)) / 2 with s = y w.x, a normal variable; RV = ln 2 - H2(1/2 - m).",
    "N = torch.distributions.Normal(mean, std); m = (N.cdf(reach) - N.cdf(-reach)) / 2; p = 0.5 - m; "
    "math.log(2) + p * p.log() + (1 - p) * (1 - p).log()",
    learned="The adversarial gap is only the first of the two probabilities, which is why RV lies between its bounds.",
)
def _check_linear(answer: Any) -> None:
    """answer(mean, std, reach) -> RV in nats of sgn(w.x), y w.x normal with that mean and std, moved by up to reach."""
    for mean, std, reach in ((0.5, 1.0, 0.4), (1.0, 0.7, 0.9), (0.0, 1.0, 0.2)):
        given = [torch.tensor(v, dtype=torch.float64) for v in (mean, std, reach)]
        value = call(answer, *given)
        got = returned(torch.as_tensor(value, dtype=torch.float64), (), "return one number.")
        s, zero = Normal(given[0], given[1]), torch.zeros((), dtype=torch.float64)

        def drop(m: Tensor) -> Tensor:
            p = 0.5 - m
            return math.log(2) + torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)

        gap, other = s.cdf(given[2]) - s.cdf(zero), s.cdf(zero) - s.cdf(-given[2])
        truth = drop((gap + other) / 2)
        mistakes = [
            (drop(gap.clamp(max=0.5)), "this is F(AG), the upper bound: only half of the images have that sign of y."),
            (drop(gap / 2), "this is F(AG/2), the lower bound: images that are already wrong can be moved, too."),
            (drop((gap + other).clamp(max=0.5)), "each class has probability 1/2: halve the sum."),
            (truth / math.log(2), "natural logarithms: the value is in nats."),
            (math.log(2) - truth, "this is the entropy that is left; RV is what was lost."),
        ]
        case = f"mean {mean:g}, standard deviation {std:g}, reach {reach:g}"
        compare(got, truth, case, mistakes, "ln 2 minus the entropy of a bit with probability 1/2 - m.")


@exercise(
    "worst_case_mi.fano",
    "solve (I + ln 2) / ln C = 0.9 for I.",
    "I = 0.9 ln 10 - ln 2, in nats.",
    learned="A necessary amount, not a sufficient one: information about the writer does not help to read the digit.",
)
def _check_fano(answer: Any) -> None:
    """answer: nats of worst-case information without which no head has 90 % robust accuracy on ten classes."""
    got, truth = _number(answer), 0.9 * math.log(10) - math.log(2)
    if math.isclose(got, truth, abs_tol=5e-3):
        return
    text = "solve (I + ln 2) / ln 10 = 0.9."
    for wrong, hint in (
        (0.9 * math.log(10), "the bound has + ln 2 in its numerator: less information suffices."),
        (truth / math.log(2), "this is in bits; the chapter counts in nats."),
        (0.9 * math.log(10) + math.log(2), "subtract ln 2."),
        (0.1 * math.log(10) - math.log(2), "90 % is the accuracy, not the risk."),
    ):
        if math.isclose(got, wrong, abs_tol=5e-3):
            text = hint
    raise Wrong(f"You say {got:g} nats.", text)


@exercise(
    "worst_case_mi.ceiling",
    "an encoder that gives every image another code, and a data set of m images, each equally likely.",
    "x is then a function of z, so I(x; z) = H(x) = ln m.",
    learned="An estimate below this says what a critic finds, not what the code holds.",
)
def _check_ceiling(answer: Any) -> None:
    """answer: I(x; g(x)) in nats for 500 equally likely images with 500 different codes."""
    got = _number(answer)
    if math.isclose(got, math.log(500), abs_tol=5e-3):
        return
    text = "the code tells which of the 500 images it was: how many nats is that?"
    if math.isclose(got, math.log2(500), abs_tol=5e-2):
        text = "this is in bits; take the natural logarithm."
    elif math.isclose(got, math.log(10), abs_tol=5e-3):
        text = "ln 10 is the information in the labels; the code tells the images apart."
    elif math.isclose(got, 500):
        text = "take the logarithm."
    raise Wrong(f"You say {got:g} nats.", text)


class _Pairs(nn.Module):
    """A bilinear critic."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_tensor(310, 12, 4))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight @ z.mT)[None]


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_tensor(311, 4, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.weight.T)


@exercise(
    "worst_case_mi.attack",
    "one number for the whole batch: the estimate from critic(x', encoder(x')). Take its gradient in all images.",
    "make it *small*: subtract step * sign(gradient), then back into the ball and into [0, 1].",
    "g = torch.autograd.grad(dv(critic(x_adv, encoder(x_adv))[0]), x_adv)[0]; "
    "x_adv = (x_adv - 2.5 * eps / steps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)",
    learned="The gradient does not vanish at x itself, so here a random start is a choice and no necessity.",
)
def _check_attack(answer: Any) -> None:
    """answer(encoder, critic, x, eps, steps) -> x': images in the ball with a small estimate for the batch."""
    encoder, critic, eps = _Encoder(), _Pairs(), 0.1
    x = 0.5 + 0.3 * torch.tanh(random_tensor(312, 10, 1, 3, 4))
    x[0] = 0.0
    value = call(answer, encoder, critic, x.clone(), eps, 10)
    if isinstance(value, Tensor) and value.ndim == 0:
        raise Wrong("Your function returned one number.", "return the images x', not the estimate.")
    got = attacked_images(value, x, eps)

    def estimate(x_: Tensor) -> float:
        with torch.no_grad():
            u = critic(x_, encoder(x_))[0]
        n = len(u)
        off = u.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
        return float(u.diagonal().mean() - off.flatten().logsumexp(0) + math.log(n * (n - 1)))

    clean, reached = estimate(x), estimate(got)
    if reached > clean + 1e-9:
        raise Wrong(f"The estimate rose from {clean:.3f} to {reached:.3f}.", "descend: subtract the gradient's sign.")
    signs = (2 * torch.rand(x.shape, dtype=torch.float64) - 1).sign()
    chance = min(estimate((x + eps * s).clamp(0, 1)) for s in (signs, -signs))
    if clean - reached < 1.5 * max(clean - chance, 0.0) + 0.1:
        raise Wrong(
            f"The estimate fell from {clean:.3f} to {reached:.3f}; random signs reach {chance:.3f}.",
            "take all the steps, and keep the moved x' from step to step.",
        )
