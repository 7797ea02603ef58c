"""The exercises of the chapter on VAE + Urkle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from robrep.book.exercises.core import (
    LinearGaussian,
    Unanswered,
    Wrong,
    call,
    close,
    compare,
    exact_kl,
    exercise,
    interpret,
    random_tensor,
    returned,
)
from robrep.gaussians import Gaussian
from robrep.random import generator


def _pinsker(p: Gaussian, q: Gaussian) -> Tensor:
    return (exact_kl(p, q).sum(1) / 2).sqrt()


@exercise(
    "vae_urkle.variation",
    "two Gaussians of one spread differ along one line only: the one through their means.",
    "on this line, in units of the spread, it is N(0, 1) against N(d, 1): which of them is larger on which side?",
    "with d = |(m - m') / scale| over all dimensions: 2 Phi(d / 2) - 1, and torch.special.ndtr is Phi.",
    learned="Pinsker's bound is d / 2 here. At d = 2 it allows everything, where the total variation is 0.68.",
)
def _check_variation(answer: Any) -> None:
    """answer(p, q) -> (N,): total variation of diagonal Gaussians with equal scales."""
    n, d = 6, 4
    p = Gaussian(random_tensor(0, n, d), 0.7 + random_tensor(1, n, d).abs())
    q = Gaussian(p.mean + 0.8 * p.scale * random_tensor(2, n, d), p.scale)
    got = returned(call(answer, p, q), (n,), "one number for each pair, shape (N,).")
    away = (q.mean - p.mean) / p.scale
    phi = torch.special.ndtr

    def known(distance: Tensor) -> Tensor:
        return 2 * phi(distance / 2) - 1

    truth = known(away.norm(dim=1))
    mistakes = [
        (_pinsker(p, q), "this is Pinsker's bound, d / 2: the exact value is smaller."),
        (known((away * p.scale).norm(dim=1)), "measure the distance of the means in units of the scale."),
        (known((away / p.scale).norm(dim=1)), "the scale is a standard deviation already: divide by it once."),
        (known(2 * away.norm(dim=1)), "the two densities cross half way between the means: Phi(d / 2)."),
        (2 * truth, "this is the integral of |p - q|: the total variation is half of it."),
        (phi(away.norm(dim=1) / 2), "Phi(d / 2) is the mass of p on its own side: subtract what q has there."),
        (known(away.abs()).sum(1), "dimensions do not add up: their squared distances do."),
        (known(away.abs()).amax(1), "all dimensions together separate the two better than the best one does."),
        (known(away.square().sum(1)), "d is the root of the sum of squares."),
    ]
    compare(got, truth, f"{d} dimensions", mistakes, "2 Phi(d / 2) - 1, where d is the distance in units of scale.")


@exercise(
    "vae_urkle.wilson",
    "ask which rates p would make the share seen unsurprising: |share - p| <= z sqrt(p (1 - p) / n), z = 1.96.",
    "the standard error is taken at p, not at the share: that makes a quadratic equation for the two ends.",
    "with t = z² / n: centre (share + t/2) / (1 + t), half width z / (1 + t) * sqrt(share (1 - share) / n + t/(4 n)).",
    learned="0 right of 500 still leaves a rate of up to 0.76 % possible.",
)
def _check_wilson(answer: Any) -> None:
    """answer(k, n) -> (low, high): the 95 % interval of a rate, in [0, 1]."""
    z = 1.959963984540054
    for k, n in ((50, 500), (3, 10), (0, 500), (500, 500)):
        value = call(answer, k, n)
        try:
            low, high = (float(v) for v in value)
        except (TypeError, ValueError):
            raise Wrong(f"Your function returned {value!r}.", "return a pair: low, high.") from None
        # the ends solve (share - p)^2 = z^2 p (1 - p) / n
        share = k / n
        a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        truth = ((-b - root) / (2 * a), (-b + root) / (2 * a))

        def same(pair: tuple[float, float], low: float = low, high: float = high) -> bool:
            return all(math.isclose(u, v, abs_tol=2e-4) for u, v in zip((low, high), pair, strict=True))

        if same(truth):
            continue
        seen = f"For {k} of {n} you have [{low:.4g}, {high:.4g}], right is [{truth[0]:.4g}, {truth[1]:.4g}]."
        wald = z * math.sqrt(share * (1 - share) / n)
        text = "solve the quadratic (share - p)² = z² p (1 - p) / n for p."
        if low == high == share:
            text = "a share of 0 is no proof of 0: one more image could be right."
        elif same((share - wald, share + wald)) or same((max(0.0, share - wald), min(1.0, share + wald))):
            text = "this is share ± z standard errors, which has no width at 0: take the error at p, not at the share."
        elif same(truth[::-1]):
            text = "the lower end comes first."
        elif same((100 * truth[0], 100 * truth[1])):
            text = "return rates in [0, 1], not percent."
        elif 0 < low < truth[0] + 0.05 and truth[1] - 0.05 < high and high - low < truth[1] - truth[0]:
            text = "too narrow: 95 % on both sides together needs z = 1.96."
        raise Wrong(seen, text)


PAIRS, SAMPLES = 30, 8000


def _codes(seed: int) -> tuple[Gaussian, Gaussian]:
    """Pairs of codes in a few dimensions, up to four spreads apart and of different spreads."""
    g = generator("codes", seed)
    d = int(torch.randint(4, 17, (), generator=g))
    normal = torch.randn(4, PAIRS, d, generator=g, dtype=torch.float64)
    share = torch.rand(2, PAIRS, 1, generator=g, dtype=torch.float64)
    p = Gaussian(normal[0], (normal[1] / 2 - 1).exp())
    shift = normal[2] / normal[2].norm(dim=1, keepdim=True) * (0.3 + 3.7 * share[0])
    return p, Gaussian(p.mean + p.scale * shift, p.scale * (0.3 * share[1] * normal[3]).exp())


def _total_variation(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """E_p[(1 - q(z) / p(z))+] from samples, and its standard error; each of shape (N,)."""
    z = p.mean + p.scale * torch.randn(SAMPLES, *p.mean.shape, dtype=torch.float64)
    ratio = Normal(q.mean, q.scale).log_prob(z) - Normal(p.mean, p.scale).log_prob(z)
    value = (1 - ratio.sum(2).exp()).clamp(min=0)
    return value.mean(0), value.std(0) / math.sqrt(SAMPLES)


@exercise(
    "vae_urkle.tighter",
    "which other divergences of two Gaussians have a closed form, and bound the total variation?",
    "the overlap B, the integral of sqrt(p q), is a product over dimensions, and TV is at most sqrt(1 - B²).",
    "log B = sum of 1/2 log(2 s s' / (s² + s'²)) - (m - m')² / (4 (s² + s'²)). The smaller of two bounds is a bound.",
    learned="Put in the place of Pinsker's step, it tightens the proposition without another training.",
    kind="design",
)
def _check_tighter(answer: Any, seed: int) -> str:
    """answer(p, q) -> (N,): upper bounds of the total variation, closer to it than Pinsker's."""
    p, q = _codes(seed)
    bound = returned(call(answer, p, q), (PAIRS,), "one bound for each pair, shape (N,).")
    true, error = _total_variation(p, q)
    broken = ~(bound >= true - 4 * error - 1e-6)
    if broken.any():
        i = int((true - bound).nan_to_num(math.inf).argmax())
        seen = f"For {int(broken.sum())} of {PAIRS} pairs your bound is too low, once {bound[i]:.3f} for {true[i]:.3f}."
        alike = torch.special.ndtr(((p.mean - q.mean) / p.scale).norm(dim=1) / 2) * 2 - 1
        text = "a bound has to hold for every pair: prove it before you compute it."
        if close(bound, alike) or (bound <= alike + 1e-9).all():
            text = "this is exact where the scales are equal, and too low where they are not."
        raise Wrong(seen, text)
    ours, usual = (((b - true).mean().item()) for b in (bound, _pinsker(p, q).clamp(max=1)))
    said = f"Your bound lies {ours:.3f} above the total variation on average, Pinsker's {usual:.3f}."
    if ours <= 0.7 * usual:
        return said
    text = "70 % of that is asked. Both orders of KL together are not enough: look for another divergence."
    if ours >= usual * (1 + 1e-6):
        text = "that is further away than Pinsker's, capped at 1. Is a probability ever more than 1?"
    elif math.isclose(ours, usual, rel_tol=1e-6):
        text = "this is Pinsker's bound: start from another divergence than KL."
    raise Wrong(said, text)


interpret(
    "vae_urkle.read_bound",
    "which of the bars would you want to be short, and what makes the bound short at the largest weight?",
)


class _OnePixel(nn.Module):
    """A Gaussian encoder of one pixel whose scale depends on it, so that the order inside KL matters."""

    def forward(self, x: Tensor) -> Gaussian:
        pixel = x.flatten(1)
        return Gaussian(3 * pixel, 0.3 + pixel)


@exercise(
    "vae_urkle.urkle",
    "the value is right, so the search is. What does training do with the value?",
    "the value depends on the weights through both codes. Through which of them does its gradient flow?",
    "detach p inside the search only: kl(p.detach(), encoder(x_adv)) there, and kl(p, encoder(x_adv)) at the end.",
    learned="For a linear encoder the maximum is (eps ||w||_1)² / 2, and now its gradient is right as well.",
    kind="bug",
)
def _check_urkle(answer: Any) -> None:
    """answer(encoder, x, eps, steps) -> (N,): KL[p(z|x) || p(z|x')] at the worst x' found in the l-infinity ball."""
    eps, steps, n = 0.1, 20, 3  # an odd number, so that wrong gradients of both signs cannot cancel
    w = random_tensor(20, 1, 9)
    middle = torch.full((n, 1, 3, 3), 0.5, dtype=torch.float64)
    exact = (eps * w.abs().sum()).square().item() / 2
    encoder = LinearGaussian(w.clone())
    value = call(answer, encoder, middle.clone(), eps, steps)
    if encoder.weight.grad is not None:
        raise Wrong(
            "The attack left gradients in the encoder's parameters.",
            "use torch.autograd.grad(score, x_adv) instead of score.backward().",
        )
    if isinstance(value, Tensor) and value.ndim == 0:
        raise Wrong("The result is one number.", "return one value for each image; the training loss averages them.")
    got = returned(value, (n,), "one value for each image, shape (N,).")
    found = f"On a linear encoder you find {got.min():.4g} to {got.max():.4g}; the maximum is {exact:.4g}."
    if (got > exact * (1 + 1e-6)).any():
        raise Wrong(found, "more than the maximum: x' has left the ball. Project after every step, and last of all.")
    if (got.abs() < 1e-9).all():
        raise Wrong(found, "nothing moved: at delta = 0 the gradient is exactly zero, so start at a random point.")
    if (got < 0.98 * exact).any():
        low = got.min().item() < 0.02 * exact
        raise Wrong(
            found,
            "so little: do you ascend (x + step), and keep the moved x' from step to step?" if low
            else "the attack stops early: steps of 2.5 eps / steps along the gradient's sign reach the ball's edge.",
        )  # fmt: skip

    if not value.requires_grad:
        raise Wrong(
            "The value has no gradient.", "detach inside the attack only: the last KL is what training minimises."
        )
    value.sum().backward()
    length, slope = eps * w.abs().sum(), encoder.weight.grad
    both = n * eps * length * w.sign()
    if slope is None or not close(slope, both, 1e-5):
        if slope is not None and any(close(slope, both + length * side / 2, 1e-5) for side in (-3, -1, 1, 3)):
            raise Unanswered(  # the gradient through p(z|x') alone: x' = 1/2 ± eps sign(w), for n = 3 images
                f"On a linear encoder the value is right, but in the first weight its gradient is {slope[0, 0]:.4g}, "
                f"where the slope of the value is {both[0, 0]:.4g}."
            )
        raise Wrong(
            "The value's gradient in the encoder's weights is not that of KL.",
            "let it flow through both p(z|x) and p(z|x'), at an image x' that is held fixed.",
        )

    thrice = LinearGaussian(w.repeat(3, 1))
    got = returned(call(answer, thrice, middle.clone(), eps, steps), (n,), "one value for each image.")
    if close(got, torch.full_like(got, exact), 0.02):
        raise Wrong("With three equal outputs KL must be three times as large.", "sum over the dimensions of z.")
    if not close(got, torch.full_like(got, 3 * exact), 0.02):
        raise Wrong(f"With three equal outputs you find {got.mean():.4g}, right is {3 * exact:.4g}.", "sum over z.")

    up, down = eps * w.clamp(min=0).sum(), eps * (-w).clamp(min=0).sum()  # from a black image pixels can only rise
    ends = torch.stack([up, down]).square() / 2
    black = torch.zeros(n, 1, 3, 3, dtype=torch.float64)
    got = returned(call(answer, LinearGaussian(w.clone()), black, eps, steps), (n,), "one value for each image.")
    seen = f"Around a black image you find up to {got.max():.4g}; the maximum is {ends.max():.4g}."
    if (got > ends.max() * (1 + 1e-6)).any():
        raise Wrong(seen, "x' has left [0, 1]: no pixel can be darker than black.")
    if (got < 0.98 * ends.min()).any():
        raise Wrong(seen, "clip to [0, 1] after each step, but let the attack go on from there.")

    pixel, one = torch.linspace(0.3, 0.7, 8, dtype=torch.float64).view(8, 1, 1, 1), _OnePixel()
    got = returned(call(answer, one, pixel.clone(), eps, steps), (8,), "one value for each image.")
    p, sides = one(pixel), [one(pixel - eps), one(pixel + eps)]

    def at_an_end(values: list[Tensor]) -> bool:
        return bool(torch.stack([(got - v).abs() <= 0.01 * v for v in values]).any(0).all())

    if not at_an_end([exact_kl(p, q).sum(1) for q in sides]):
        swapped = at_an_end([exact_kl(q, p).sum(1) for q in sides])
        raise Wrong(
            "Where the scale depends on the image, the value is not KL at an end of the interval.",
            "you computed KL[p' || p]: the clean distribution comes first." if swapped
            else "the attack must climb KL[p(z|x) || p(z|x')] itself, not another distance.",
        )  # fmt: skip
