"""The exercises of the chapter on worst-case mutual information."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from robrep.attacks import PGD, Linf, batch_objective
from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    attacked_images,
    call,
    close,
    compare,
    exercise,
    interpret,
    random_tensor,
    returned,
)
from robrep.book.exercises.hidden import attack_within


def _number(answer: Any) -> float:
    if answer is None or answer is ...:
        raise Unanswered
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise Wrong(f"The answer is a {type(answer).__name__}.", "give the number itself.")
    return float(answer)


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)


@exercise(
    "worst_case_mi.threshold",
    "the adversary can give the bit any probability between P[s > bound + reach] and P[s > bound - reach].",
    "the entropy of a coin is concave in its probability, so its minimum is at one of the two ends: compare both.",
    "with p(t) the frequency of s > t over both halves: H(p(bound)) - min(H(p(bound + reach)), H(p(bound - reach))).",
    learned="A bit that is rare already has less to lose, and the adversary makes it rarer still.",
)
def _check_threshold(answer: Any) -> None:
    """answer(mean, std, bound, reach) -> RV in nats of the bit s > bound, s normal around mean or -mean."""
    for mean, std, bound, reach in ((0.5, 1.0, 0.6, 0.4), (1.0, 0.7, -0.8, 0.5), (0.3, 1.0, 0.0, 0.3)):
        given = [torch.tensor(v, dtype=torch.float64) for v in (mean, std, bound, reach)]
        value = call(answer, *given)
        got = returned(torch.as_tensor(value, dtype=torch.float64), (), "return one number.")
        sides = [Normal(side * given[0], given[1]) for side in (1, -1)]
        at, up, down = (
            sum(1 - n.cdf(t) for n in sides) / 2 for t in (given[2], given[2] - given[3], given[2] + given[3])
        )
        truth = torch.maximum(_entropy(at) - _entropy(up), _entropy(at) - _entropy(down))
        alone = [1 - sides[0].cdf(t) for t in (given[2], given[2] - given[3], given[2] + given[3])]
        mistakes = [
            (
                _entropy(at) - torch.maximum(_entropy(up), _entropy(down)),
                "here the other side removes more: compare both, and take the smaller entropy.",
            ),
            (math.log(2) - _entropy(at) + truth, "without an attack this bit has less than ln 2: H2 of its frequency."),
            (truth / math.log(2), "natural logarithms: the value is in nats."),
            (_entropy(at) - truth, "this is the entropy that is left; RV is what was lost."),
            (
                _entropy(alone[0]) - torch.minimum(_entropy(alone[1]), _entropy(alone[2])),
                "s is normal around mean for one half of the images, around -mean for the other.",
            ),
        ]
        case = f"mean {mean:g}, standard deviation {std:g}, bound {bound:g}, reach {reach:g}"
        compare(got, truth, case, mistakes, "the entropy of the bit minus its smallest entropy under attack.")


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


# --- design: codes with noise -----------------------------------------------------------------------------------------


class TanhEncoder(nn.Module):
    """Images (N, 1, 6, 6) to codes (N, 6), by two layers that a generator draws and nothing trains."""

    first: Tensor
    second: Tensor

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        for name, shape, gain in (("first", (32, 36), 2.0), ("second", (6, 32), 1.5)):
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_buffer(name, gain * weight / shape[1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T) @ self.second.T


def noisy_information(z: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """I(i; z_i + sigma n) in nats as a mean over i, shape (N,), for codes z (N, D) and draws n (K, N, D)."""
    apart = z[:, None] - z
    exponent = apart.square().sum(2) / sigma + 2 * torch.einsum("ijd,kid->kij", apart, noise)
    return math.log(len(z)) - (-exponent / (2 * sigma)).logsumexp(2).mean(0)


@exercise(
    "worst_case_mi.remove",
    "print the gradient of the information at the clean images. Which images get one, and how large is it?",
    "codes that lie many sigma apart are never confused, so moving them a little closer changes nothing: attack a "
    "quantity that still changes, such as the same sum with a wider kernel.",
    "minus the mean over i of ln sum_j exp(-|z_i - z_j|^2 / (8 s^2)), with s falling from 3 sigma to sigma, and steps "
    "that get shorter.",
    learned="What an attack descends need not be what is reported; it has to slope where the images are.",
    kind="design",
)
def _check_remove(answer: Any, seed: int) -> str:
    """answer(encoder, x, sigma, eps) -> x' with less information about the image in the noisy code."""
    generator, eps, calls = torch.Generator().manual_seed(seed), 0.06, 20
    encoder = TanhEncoder(generator)
    x = torch.rand(24, 1, 6, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(64, 24, 6, generator=generator, dtype=torch.float64)
    sigma = 0.06 * float(_nearest(encoder(x)).median())

    def left(x_: Tensor) -> float:
        with torch.no_grad():
            return float(noisy_information(encoder(x_), sigma, noise).mean())

    def information(x_: Tensor) -> Tensor:
        drawn = torch.randn(64, 24, 6, generator=generator, dtype=torch.float64)
        return -noisy_information(encoder(x_), sigma, drawn)

    def together(x_: Tensor) -> Tensor:
        return -(encoder(x_) - encoder(x_).mean(0)).square().sum(1)

    ball: Any = Linf(eps)
    search, clean = PGD(calls, random_start=False), left(x)
    plain, nearer = (clean - left(search(batch_objective(o), x, ball)) for o in (information, together))
    got = attack_within(answer, calls, encoder, x, sigma, eps)
    removed = clean - left(got)
    found = (
        f"Your attack removed {removed:.3f} of {clean:.2f} nats; as many steps down the information itself remove "
        f"{plain:.3f}, towards the mean of all codes {nearer:.3f}."
    )
    if removed >= 2 * max(plain, nearer):
        return found
    before, after = (float((v - v.mean(0)).square().sum()) for v in (encoder(x), encoder(got)))
    if after > 1.2 * before:
        raise Wrong(found, "the codes moved apart: what you take the gradient of has the wrong sign.")
    if after < 0.8 * before:
        raise Wrong(found, "all codes came closer, but no two became alike: bring near ones together, within sigma.")
    raise Wrong(
        found,
        "codes many sigma apart have almost no gradient: give the attack an objective that slopes there, too.",
    )


def _nearest(z: Tensor) -> Tensor:
    """The distance of each code to the nearest other one."""
    return torch.cdist(z, z).fill_diagonal_(math.inf).amin(1)


interpret(
    "worst_case_mi.read_gap",
    "a vulnerability is a difference of two estimates: read both of them off the other figure, width by width.",
)


# --- bug: the best of a batch -----------------------------------------------------------------------------------------


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
    "worst_case_mi.best",
    "what does the estimate of one image depend on, apart from the image itself?",
    "an image that is kept from one step meets, in the batch that is returned, neighbours from another step.",
    "keep one number, the lowest estimate of a whole batch, and the whole batch that it belongs to.",
    learned="A score over a batch belongs to the batch: its images cannot be chosen one by one.",
    kind="bug",
)
def _check_best(answer: Any) -> None:
    """answer(encoder, critic, x, eps, steps) -> the batch with the lowest InfoNCE among x and all iterates."""
    encoder, critic, eps, steps = _Encoder(), _Pairs(), 0.3, 8
    x = 0.5 + 0.3 * torch.tanh(random_tensor(312, 10, 1, 3, 4))

    def own(x_: Tensor) -> Tensor:
        u = critic(x_, encoder(x_))[0]
        return u.diagonal() - u.logsumexp(1) + math.log(len(u))

    batches, x_adv = [], x
    for _ in range(steps + 1):
        batches.append(x_adv)
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad(own(x_adv).mean(), x_adv)
        x_adv = (x_adv.detach() - 2.5 * eps / steps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    with torch.no_grad():
        each = torch.stack([own(batch) for batch in batches])
    whole, mixed = each.mean(1), torch.stack([batches[k][i] for i, k in enumerate(each.argmin(0).tolist())])
    best = batches[int(whole.argmin())].detach()
    got = attacked_images(call(answer, encoder, critic, x.detach().clone(), eps, steps), x.detach(), eps)
    if close(got, best):
        return
    with torch.no_grad():
        reached = float(own(got).mean())
    seen = f"The batch that comes back has an estimate of {reached:.4f}; one on the way had {float(whole.min()):.4f}."
    if close(got, mixed):
        raise Unanswered(seen)
    for wrong, text in (
        (batches[-1], "this is the last batch, not the best one."),
        (batches[int(whole.argmax())], "this is the batch with the highest estimate."),
        (batches[1], "this is the batch after one step: go on, and keep the best."),
    ):
        if close(got, wrong.detach()):
            raise Wrong(seen, text)
    raise Wrong(seen, "return x or one of the iterates, whole: the one with the lowest mean over its images.")
