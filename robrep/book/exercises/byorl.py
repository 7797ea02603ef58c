"""The exercises of the chapter on BYORL."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robrep.book.exercises.core import Wrong, attacked_images, call, compare, exercise, random_tensor, returned


@exercise(
    "byorl.distance",
    "divide both vectors by their lengths first; what is the inner product then?",
    "2 - 2 * (q * z).sum(1) of the unit vectors; the same as their squared distance.",
    learned="From 0, one direction, over 2, at right angles, to 4, opposite.",
)
def _check_distance(answer: Any) -> None:
    """answer(q, z) -> (N,): BYOL's loss of N predictions and targets, one way."""
    q, z = random_tensor(110, 6, 4), 2 * random_tensor(111, 6, 4)
    cosine = F.cosine_similarity(q, z)
    got = returned(call(answer, q, z), (6,), "return one number for each image, shape (N,).")
    mistakes = [
        (2 - 2 * (q * z).sum(1), "divide by the lengths: only directions count."),
        ((q - z).square().sum(1), "normalise both vectors before you take the distance."),
        ((F.normalize(q, dim=1) - F.normalize(z, dim=1)).norm(dim=1), "the distance is squared."),
        (-cosine, "that is the cosine alone: the loss is 2 - 2 cos."),
        (cosine, "that is the cosine: a loss falls as the two agree."),
        (1 - cosine, "that is half of it."),
        (2 + 2 * cosine, "the sign is turned round."),
    ]
    compare(got, 2 - 2 * cosine, "random vectors", mistakes, "2 - 2 cos(q, z).")


@exercise(
    "byorl.rate",
    "it starts at the base and ends at 1: half a cosine lies between.",
    "1 - (1 - base) * (math.cos(math.pi * k / K) + 1) / 2",
    learned="At the end the target stands still.",
)
def _check_rate(answer: Any) -> None:
    """answer(k, K, base) -> tau at step k of K."""
    for k, steps, base in ((0, 10, 0.9), (3, 10, 0.9), (10, 10, 0.5), (25, 100, 0.996)):
        value = call(answer, k, steps, base)
        if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number.")
        wave = (math.cos(math.pi * k / steps) + 1) / 2
        numbers = [1 - (1 - base) * wave, base * wave, 1 - (1 - base) * math.cos(math.pi * k / steps),
                   base + (1 - base) * wave, base, base + (1 - base) * k / steps]  # fmt: skip
        truth, falling, whole, turned, constant, linear = (torch.tensor([v], dtype=torch.float64) for v in numbers)
        mistakes = [
            (falling, "this falls to 0: tau rises from the base to 1."),
            (whole, "the wave runs from 1 to -1: add 1 and halve it."),
            (turned, "that begins at 1 and ends at the base: the other way round."),
            (linear, "that is a straight line: follow half a cosine."),
            (constant, "tau does not stay where it begins."),
        ]
        got = torch.tensor([float(value)], dtype=torch.float64)
        compare(got, truth, f"k = {k}, K = {steps}, base = {base}", mistakes, "base at k = 0, and 1 at k = K.")


@exercise(
    "byorl.target",
    "tau is the share of the old target that stays.",
    "[tau * x + (1 - tau) * t for x, t in zip(xi, theta)]",
    learned="No gradient ever reaches the target.",
)
def _check_target(answer: Any) -> None:
    """answer(xi, theta, tau) -> the target's new parameters, a list of tensors."""
    xi, theta = [random_tensor(k, 3, 2) for k in (112, 113)], [random_tensor(k, 3, 2) for k in (114, 115)]
    for tensor in theta:
        tensor.requires_grad_()
    value = call(answer, [x.clone() for x in xi], theta, 0.9)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Wrong("Your function did not return a list of two tensors.", "return one new tensor for each in xi.")
    for got, x, t in zip(value, xi, theta, strict=True):
        if isinstance(got, Tensor) and got.requires_grad:
            raise Wrong("The new target carries a gradient.", "detach the online parameters: the target never learns.")
        made, online = returned(got, x.shape, "keep the shapes."), t.detach()
        mistakes = [
            (0.1 * x + 0.9 * online, "tau is the weight of the old target, not of the online network."),
            (x + 0.1 * online, "the two weights sum to 1."),
            (online, "that copies the online network: tau = 0."),
            (x, "the target did not move."),
        ]
        compare(made, 0.9 * x + 0.1 * online, "tau = 0.9", mistakes, "tau xi + (1 - tau) theta.")


@exercise(
    "byorl.adversary",
    "climb the loss 2 - 2 cos, or descend the cosine: the same thing. Eq. 6 of the paper prints the opposite.",
    "start at a random point of the ball: where prediction and target agree, the gradient is zero.",
    "v_adv + step * grad.sign(), with the gradient of (2 - 2 cos).sum(); clamp to v - eps ... v + eps and to 0 ... 1.",
    learned="One sign decides whether training meets its worst case or its best.",
)
def _check_adversary(answer: Any) -> None:
    """answer(predict, v, z, eps, steps) -> v': the view whose prediction disagrees most with z."""
    weight, eps, steps = random_tensor(116, 12, 5), 0.1, 10
    v = (0.5 + 0.2 * random_tensor(117, 8, 1, 3, 4)).clamp(0, 1)
    v[0], v[1] = 0.0, 1.0

    def predict(v_: Tensor) -> Tensor:
        return torch.tanh(v_.flatten(1) @ weight + 0.3)

    def loss(v_: Tensor, z: Tensor) -> float:
        return (2 - 2 * F.cosine_similarity(predict(v_), z)).mean().item()

    chance = (v + eps * (torch.rand(v.shape, dtype=torch.float64) * 2 - 1).sign()).clamp(0, 1)
    for case, z in (("another view's target", predict((v + 0.2).clamp(0, 1))), ("a target that agrees", predict(v))):
        value = call(answer, predict, v.clone(), z.detach(), eps, steps)
        got = attacked_images(value, v, eps, "v")
        clean, reached, luck = loss(v, z), loss(got, z), loss(chance, z)
        seen = f"For {case} the loss is {reached:.3g} at your v', {clean:.3g} at v, {luck:.3g} after random signs."
        if reached < clean:
            raise Wrong(seen, "this raises the cosine, as eq. 6 is printed: go the other way.")
        if reached <= max(clean, luck) * 1.1:
            raise Wrong(seen, "take every step from where the last one ended.")


@exercise(
    "byorl.pseudo_labels",
    "the model labels only what has no label.",
    "made = logits.argmax(1); made[labelled] = y[labelled]",
    learned="With every label known this is adversarial training; with few, the model's mistakes are taught too.",
)
def _check_pseudo_labels(answer: Any) -> None:
    """answer(logits, y, labelled) -> int64 (N,): UAT-FT's targets."""
    logits, y, labelled = random_tensor(118, 30, 4), torch.arange(30) % 4, torch.tensor([0, 5, 6, 17])
    value = call(answer, logits.clone(), y.clone(), labelled)
    if isinstance(value, Tensor) and value.is_floating_point():
        raise Wrong("The labels are floating-point numbers.", "class indices are integers: argmax, not softmax or max.")
    got = returned(value, (30,), "return one class index for each image, shape (N,).")
    made = logits.argmax(1)
    truth = made.clone()
    truth[labelled] = y[labelled]
    swapped = y.clone()
    swapped[labelled] = made[labelled]
    mistakes = [
        (made.double(), "known labels are kept, whatever the model thinks of them."),
        (y.double(), "labels outside `labelled` may not be looked at."),
        (swapped.double(), "the two are exchanged: known labels where they are known."),
    ]
    compare(got, truth.double(), "30 images, 4 of them labelled", mistakes, "known labels, and the argmax elsewhere.")


@exercise(
    "byorl.spread",
    "lengths do not count: a collapsed network gives every image the same direction.",
    "u = F.normalize(z, dim=1); u.var(0, unbiased=False).sum()",
    learned="0 says that all directions are one; 1 that they have no common part.",
)
def _check_spread(answer: Any) -> None:
    """answer(z) -> one minus the squared length of the mean unit vector: their total variance."""
    for case, z in (
        ("random vectors", random_tensor(119, 40, 6)),
        ("one direction, many lengths", random_tensor(120, 40, 1).abs() * random_tensor(121, 1, 6)),
        ("a narrow bundle", 5 + random_tensor(122, 40, 6)),
    ):
        u = F.normalize(z, dim=1)
        truth = 1 - u.mean(0).square().sum()
        got = returned(torch.as_tensor(call(answer, z), dtype=torch.float64), (), "return one number.")
        mistakes = [
            (z.var(0, unbiased=False).sum().view(1), "normalise each vector first."),
            (u.var(0, unbiased=False).mean().view(1), "add the variances of all coordinates, not their mean."),
            (u.std(0, unbiased=False).sum().view(1), "variances, not standard deviations."),
            (u.mean(0).square().sum().view(1), "that is what all have in common: one minus it."),
        ]
        compare(got.view(1), truth.view(1), case, mistakes, "the summed variance of the unit vectors.")
