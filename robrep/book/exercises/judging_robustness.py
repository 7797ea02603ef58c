"""The exercises of the chapter on judging robustness."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robrep.book.exercises.core import Unanswered, Wrong, call, exercise, interpret
from robrep.book.exercises.hidden import DigitClassifier, attack_within, averaged_pgd, drawn_digits, share_right
from robrep.random import generator


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Your function returned a {type(value).__name__}.", f"return one number, {what}.") from None


@exercise(
    "judging_robustness.votes",
    "if all n votes agree, the lower bound p has the property that n votes for one class have probability alpha.",
    "that is p^n = alpha. Which p does the radius ask for?",
    "p = Phi(radius / sigma), so n = log(alpha) / log(p), rounded up.",
    learned="At alpha 0.001 a radius of 1 sigma takes 40 votes, 2 sigma 301, and 4 sigma 218,105.",
)
def _check_votes(answer: Any) -> None:
    """answer(radius, sigma, alpha) -> the smallest number of votes that can certify this radius."""
    from scipy.stats import norm

    for radius, sigma, alpha in ((0.5, 0.25, 0.001), (1.0, 0.5, 0.05), (0.7, 0.25, 0.001), (0.9, 0.3, 0.01)):
        got = _number(call(answer, radius, sigma, alpha), "the number of votes")
        p = float(norm.cdf(radius / sigma))
        exact = math.log(alpha) / math.log(p)
        truth = math.ceil(exact)
        if got == truth:
            continue
        seen = f"For a radius of {radius:g}, sigma {sigma:g} and alpha {alpha:g} you have {got:g}, right is {truth}."
        unscaled, two_sided = math.log(alpha) / math.log(norm.cdf(radius)), math.log(alpha / 2) / math.log(p)
        hints = [
            (exact, "a number of votes is whole: round up."),
            (math.floor(exact), "rounded down, the votes fall just short: round up."),
            (math.ceil(unscaled), "the radius counts in units of sigma: divide first."),
            (math.ceil(two_sided), "a one-sided bound puts all of alpha on its side: do not halve it."),
            (math.ceil(math.log(alpha) / math.log(norm.cdf(radius * sigma))), "divide the radius by sigma."),
            (math.ceil(math.log(1 - alpha) / math.log(p)), "alpha is the probability of being wrong."),
        ]  # fmt: skip
        other = "with all of n votes the bound p solves p^n = alpha."
        raise Wrong(seen, next((text for value, text in hints if math.isclose(got, value, rel_tol=1e-9)), other))


@exercise(
    "judging_robustness.paired",
    "images that both models get right, or both wrong, say nothing about which is better.",
    "of the images on which they differ, how many would either win if each were a fair coin?",
    "with m images that differ and k the smaller count: min(1, 2 P[B <= k]) for B binomial (m, 1/2).",
    learned="Two accuracies whose intervals overlap can still differ clearly on the same images, and the reverse.",
)
def _check_paired(answer: Any) -> None:
    """answer(a, b) -> two-sided p-value of the sign test; a and b are bool (N,): right or not."""
    from scipy.stats import binom, norm

    n = 200
    for case, (only_a, only_b) in {"22 against 6": (22, 6), "3 against 9": (3, 9), "7 against 7": (7, 7),
                                   "no image": (0, 0)}.items():  # fmt: skip
        a = torch.arange(n) < 120
        b = a.clone()
        a[120 : 120 + only_b], b[120 : 120 + only_b] = False, True
        b[:only_a] = False
        order = torch.randperm(n)
        a, b = a[order], b[order]
        got = _number(call(answer, a.clone(), b.clone()), "the p-value")
        m, k = only_a + only_b, min(only_a, only_b)
        tail = float(binom.cdf(k, m, 0.5))
        truth = min(1.0, 2 * tail)
        if math.isclose(got, truth, abs_tol=1e-9):
            continue
        seen = f"Where the models differ on {case}, you have {got:.4g}; right is {truth:.4g}."
        p, q = a.double().mean().item(), b.double().mean().item()
        middle = (p + q) / 2
        unpaired = float(2 * norm.sf(abs(p - q) / math.sqrt(2 * middle * (1 - middle) / n)))
        whole = min(1.0, 2 * float(binom.cdf(min(int(a.sum()), n - int(a.sum())), n, 0.5)))
        chi = float(2 * norm.sf(abs(only_a - only_b) / math.sqrt(m))) if m else 1.0
        hints = [
            (tail, "this is one side: either model could have been the better one, so double it."),
            (2 * tail, "a probability cannot exceed 1."),
            (unpaired, "this compares two independent sets of images: here both models saw the same ones."),
            (whole, "leave out the images on which the models agree."),
            (min(1.0, 2 * float(binom.cdf(k, n, 0.5))), "leave out the images on which the models agree."),
            (chi, "the normal approximation is not asked: count exactly, with the binomial distribution."),
            (1 - truth, "this is 1 minus the p-value."),
            (math.nan, "where the models never differ there is no evidence: the p-value is 1."),
        ]
        other = "count the images on which exactly one model is right, and ask the binomial distribution."
        text = next((t for v, t in hints if math.isclose(got, v, abs_tol=1e-9) or got != got and v != v), other)
        raise Wrong(seen, text)


class _Masked(nn.Module):
    """A classifier behind one of three masks of gradients: "saturated", "rounded" or "rippled"."""

    def __init__(self, model: nn.Module, mask: str, size: float) -> None:
        super().__init__()
        self.model, self.mask, self.size = model, mask, size

    def forward(self, x: Tensor) -> Tensor:
        if self.mask == "saturated":
            return self.size * self.model(x)
        if self.mask == "rounded":
            return self.model((self.size * x).round() / self.size)
        return self.model(x + 0.02 * torch.sin(self.size * x + 2 * math.pi * torch.rand_like(x)))


MASK_CALLS = 200


@exercise(
    "judging_robustness.masks",
    "one attack for all masks: what do they leave alone when you move a pixel by the full radius?",
    "the decisions: so compare logits before and after a large move, and do not ask for a gradient.",
    "random search: change a small square of each image to x ± eps, and keep the change where the margin grew.",
    learned="An attack that asks for no gradient cannot be misled by one.",
    kind="design",
)
def _check_masks(answer: Any, seed: int) -> str:
    """answer(model, x, y, eps) -> attacked images, with 200 calls of a model whose gradients are masked."""
    eps, found = 0.15, []
    g = generator("masks", seed)
    drawn = torch.rand(3, generator=g).tolist()
    sizes = {"saturated": 10 ** (3 + drawn[0]), "rounded": 4.0 + round(drawn[1]), "rippled": 300 + 300 * drawn[2]}
    for number, (mask, size) in enumerate(sizes.items()):
        inside = DigitClassifier(3 * seed + number)
        x, y = drawn_digits(3 * seed + number, 60)
        model = _Masked(inside, mask, size)
        clean, around = (share_right(model, u, y) for u in (x, averaged_pgd(inside, x, y, eps)))
        left = share_right(model, attack_within(answer, MASK_CALLS, model, x, y, eps), y)
        found.append((mask, left, max(0.0, clean - left) / (clean - around), around))
    mask, left, broken, around = min(found, key=lambda case: case[2])
    said = f"Of the digits behind the {mask} mask your attack leaves {left:.0%}, an attack around the mask {around:.0%}"
    said += f" ({', '.join(f'{m}: {b:.0%} of what that breaks' for m, _, b, _ in found)})."
    if broken >= 2 / 3:
        return said
    by = {m: b for m, _, b, _ in found}
    if max(by.values()) < 0.05:
        raise Wrong(said, "it breaks nothing behind any mask: does it move, and does it look for a wrong class?")
    if by["rounded"] < 0.1 and by["saturated"] < 0.1:
        raise Wrong(said, "a gradient of 0 has the sign 0, and a saturated loss or a staircase has no other.")
    if by["rounded"] < 0.1:
        raise Wrong(said, "another loss helps against saturation, but a staircase has no gradient at all: try values.")
    raise Wrong(said, "two thirds are asked behind every mask: keep what helped an image; change less later on.")


class _TwoSides(nn.Module):
    """Logits (N, 2) of one-pixel images: class 0 below 0, class 1 above; at 0 noise votes like a fair coin."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)
        return torch.cat([-pixel, pixel], 1)


@exercise(
    "judging_robustness.certify",
    "certify images of which you know the truth: at a pixel of 0 neither class has more than half of all votes.",
    "which class is chosen, and from which votes? How likely is it that the winner of these has many of them?",
    "choose the class with votes of its own; then draw n new ones and count that class among them.",
    learned="The bound holds for a class that was fixed before its votes were counted.",
    kind="bug",
)
def _check_certify(answer: Any) -> None:
    """answer(model, x, sigma, n, alpha) -> (labels (N,), radii (N,)) of the smoothed classifier."""
    from scipy.stats import norm

    sigma, n, alpha, count = 0.25, 100, 0.05, 4000

    def certified(x: Tensor) -> tuple[Tensor, Tensor]:
        value = call(answer, _TwoSides(), x, sigma, n, alpha)
        shape = (len(x),)
        if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)):
            raise Wrong(f"Your function returned a {type(value).__name__}.", "return a pair of tensors: labels, radii.")
        label, radius = value
        if label.shape != shape or radius.shape != shape:
            raise Wrong(f"The shapes are {tuple(label.shape)} and {tuple(radius.shape)}.", "one of each for an image.")
        return label.detach(), radius.detach().double()

    far = torch.tensor([-9.0, 9.0, 9.0], dtype=torch.float64).view(3, 1, 1, 1)
    label, radius = certified(far)
    if label.tolist() != [0, 1, 1]:
        raise Wrong(f"Images far on either side get the labels {label.tolist()}.", "choose the class with most votes.")
    most = sigma * float(norm.ppf(alpha ** (1 / n)))
    if not torch.allclose(radius, torch.full_like(radius, most), atol=1e-6):
        seen = f"Where all {n} votes agree the radius is {radius[0]:.4f}; with n votes and this alpha it is {most:.4f}."
        text = "count n votes, at the level alpha."
        if radius[0] > most and radius[0] < sigma * norm.ppf((alpha / 2) ** (1 / (4 * n))):
            text = "more votes than n were counted: count only the n that came after the choice."
        elif math.isclose(radius[0].item(), sigma * norm.ppf((alpha / 2) ** (1 / n)), abs_tol=1e-6):
            text = "a smaller alpha hides the bias and does not remove it: give the choice votes of its own."
        elif radius[0] < most:
            text = "all n votes belong to the count; the choice takes others, drawn before."
        raise Wrong(seen, text)
    even = certified(torch.zeros(count, 1, 1, 1, dtype=torch.float64))[1]
    if (even < 0).any():
        raise Wrong("Some radii are negative.", "a radius of 0 says that the model abstains.")
    share = (even > 0).double().mean().item()
    seen = f"Of {count:,} images whose votes are split evenly, {share:.1%} are certified; at most {alpha:.0%} may be."
    if 0.075 < share < 0.105:
        raise Unanswered(seen)
    if share > 0.066:
        raise Wrong(seen, "the winner of the votes that are counted was known before the count.")
    if share < 0.02:
        raise Wrong(seen, "so few: an honest count at this level certifies a little over 4 %. Is the choice one class?")


interpret(
    "judging_robustness.read_bounds",
    "at which radii does the lower curve end because of the model, and at which because of the number of votes?",
)
