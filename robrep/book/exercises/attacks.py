"""The exercises of the chapter on attacks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    attacked_images,
    call,
    compare,
    exercise,
    interpret,
    random_tensor,
    returned,
)
from robrep.book.exercises.hidden import DigitClassifier, attack_within, averaged_pgd, drawn_digits, share_right
from robrep.random import generator


def _norms(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@exercise(
    "attacks.linear",
    "how fast can the difference of two logits fall when the image moves by a length of 1?",
    "by the dual norm of the difference of their weights: l1 for l-infinity, l2 for l2. Then divide, class by class.",
    "gap = z_y - z_j, slope = |w_y - w_j| in the dual norm; the smallest gap / slope over j, and at least 0.",
    learned="For a linear classifier this radius is exact, so an attack and a proof meet in it.",
)
def _check_linear(answer: Any) -> None:
    """answer(W, b, x, y, p) -> (N,): the radius at which an image's class can first be changed."""
    n, d, classes = 6, 8, 4
    w, b, x = random_tensor(40, classes, d), random_tensor(41, classes), random_tensor(42, n, d)
    w = w * torch.tensor([1.0, 0.3, 2.0, 5.0], dtype=torch.float64)[:, None]
    z = x @ w.T + b
    y = z.argmax(1)
    y[0] = z[0].argmin()  # wrong before the attack
    own = nn.functional.one_hot(y, classes).bool()
    gap = (z.gather(1, y[:, None]) - z).masked_fill(own, math.inf)
    difference = w[y][:, None] - w  # (N, C, d)

    def radius(norm: float, change: Tensor = difference) -> Tensor:
        return (gap / change.norm(norm, dim=2)).amin(1)

    for p, dual in ((math.inf, 1), (2, 2)):
        got = returned(call(answer, w.clone(), b.clone(), x.clone(), y.clone(), p), (n,), "one radius for each image.")
        truth = radius(dual).clamp(min=0)
        second = gap.argmin(1)
        logits_first = gap.amin(1) / difference[torch.arange(n), second].norm(dual, dim=1)
        mistakes = [
            (radius(dual), "an image that is wrong already needs no change: its radius is 0."),
            (radius(p).clamp(min=0), "the slope of a linear function over a ball is the *dual* norm of its weights."),
            (radius(2).clamp(min=0), "over the l-infinity ball the steepest change gains the l1 norm of the weights."),
            (gap.amin(1).clamp(min=0), "this is the gap of the logits: divide it by how fast it can fall."),
            (radius(dual, w.expand(n, -1, -1)).clamp(min=0), "the label's logit falls too: w_y - w_j is the slope."),
            (radius(dual, w[y][:, None]).clamp(min=0), "the other logit rises too: w_y - w_j is the slope."),
            (logits_first.clamp(min=0), "the runner-up need not be reached first: take the minimum of the ratios."),
        ]
        compare(got, truth, f"p = {p}", mistakes, "the smallest ratio of gap to slope over the other classes.")


@exercise(
    "attacks.nearest",
    "write down the conditions of a constrained minimum: the ball has one multiplier, each pixel has its own limits.",
    "with the multiplier fixed, each pixel is clip(x + s (u - x)) with one s in [0, 1] for the whole image.",
    "the distance of clip(x + s (u - x)) from x grows with s: find the largest s that keeps it within eps, by halving "
    "an interval.",
    learned="A pixel that is clipped spends less of the budget, and the others may spend what it leaves.",
)
def _check_nearest(answer: Any) -> None:
    """answer(u, x, eps) -> the point of the l2 ball and of [0, 1] that is nearest to u."""
    eps = 0.5
    x = 0.5 + 0.2 * random_tensor(40, 4, 1, 3, 3).clamp(-2, 2)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.02, 0.99
    delta = 0.5 * random_tensor(41, 4, 1, 3, 3)
    delta[0, 0, 0, 0], delta[1, 0, 0, 0] = -0.9, 0.8
    delta[3] = 0.02 * delta[3]
    u = x + delta

    def shrunk(change: Tensor) -> Tensor:
        return change * (eps / _norms(change).clamp(min=1e-30)).clamp(max=1)

    truth, ball, box = u, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(2000):  # projections in turn, each corrected by its last change: they end at the nearest point
        inside = x + shrunk(truth + ball - x)
        ball = truth + ball - inside
        truth = (inside + box).clamp(0, 1)
        box = inside + box - truth
    got = returned(call(answer, u.clone(), x.clone(), eps), x.shape, "return images of the shape of x.")
    there = x + shrunk(u - x)
    for _ in range(2000):
        there = x + shrunk(there.clamp(0, 1) - x)
    mistakes = [
        ((x + shrunk(u - x)).clamp(0, 1), "this is the chapter's projection: it is in the set, but not nearest to u."),
        (x + shrunk(u.clamp(0, 1) - x), "clip, then shrink: this is in the set, but clipped pixels are shrunk again."),
        (x + shrunk(u - x), "this stays in the ball but leaves [0, 1]."),
        (u.clamp(0, 1), "this is an image, but it is further than eps from x."),
        (there, "projecting in turn ends in the set, but not at its nearest point."),
        (truth - x, "you returned the change: add it to x."),
    ]
    compare(got, truth, "the worst pixel", mistakes, "one factor s for all pixels before clipping, as large as eps "
            "allows.")  # fmt: skip
    still = returned(call(answer, x.clone(), x.clone(), eps), x.shape, "return images of the shape of x.")
    compare(still, x, "u = x", [], "a point that is already in the set must not move; mind a division by zero.")


class _Rippled(nn.Module):
    """A classifier that sees its images through a steep ripple of random phase, drawn anew in each call."""

    def __init__(self, model: nn.Module, height: float, frequency: float) -> None:
        super().__init__()
        self.model, self.height, self.frequency = model, height, frequency

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.height * torch.sin(self.frequency * x + 2 * math.pi * torch.rand_like(x)))


NOISY_CALLS, DRAWS = 60, 30


@exercise(
    "attacks.noisy",
    "the sign of one noisy gradient is mostly noise. What can be averaged before the sign is taken?",
    "gradients of earlier steps point roughly the right way too: they cost nothing more.",
    "add the gradients up, v = v + g, and step along the sign of the sum; or spend all samples on very few steps.",
    learned="The sign is taken after the average: a pixel that has moved the wrong way costs a whole step.",
    kind="design",
)
def _check_noisy(answer: Any, seed: int) -> str:
    """answer(model, x, y, eps) -> attacked images, with 60 calls of a random model."""
    eps, left, usual, clean = 0.15, [], [], []
    for case in range(2):
        g = generator("noisy", seed, case)
        height, frequency = 0.018 + 0.004 * torch.rand(2, generator=g)[0].item(), 280 + 60 * torch.rand((), generator=g)
        model = _Rippled(DigitClassifier(2 * seed + case), height, frequency.item())
        x, y = drawn_digits(2 * seed + case, 100)
        found = attack_within(answer, NOISY_CALLS, model, x, y, eps)
        left.append(share_right(model, found, y, DRAWS))
        usual.append(share_right(model, averaged_pgd(model, x, y, eps, samples=3), y, DRAWS))
        clean.append(share_right(model, x, y, DRAWS))
    ours, theirs, before = (sum(values) / len(values) for values in (left, usual, clean))
    said = f"Your attack leaves {ours:.0%} of the images; 20 steps that average three samples each leave {theirs:.0%}."
    if ours >= before - 0.02:
        raise Wrong(said, "it breaks nothing: does it move, and does it make the loss large?")
    if ours > 0.5:
        text = "each step follows the sign of a gradient that is mostly ripple: average before you take a sign, and "
        raise Wrong(said, text + "over fresh noise.")
    if ours > theirs / 2:
        raise Wrong(said, "half of that is asked: put more of the 60 samples behind each sign, old ones included.")
    return said


class _TwoHills(nn.Module):
    """Scores (N,): a high hill where an image is brighter than 1/2 on average, a low one where it is darker."""

    HIGH, LOW = 3.0, 1.0

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        t = (x.flatten(1).mean(1) - 0.5) / self.eps
        return self.HIGH * t.clamp(min=0) + self.LOW * (-t).clamp(min=0)


@exercise(
    "attacks.restarts",
    "attack one image alone, and then in a batch. Does it get the same?",
    "which of the restarts is kept, and for whom?",
    "scores has one entry for each image: keep a restart where its score is larger, with torch.where.",
    learned="A mean over the batch hides that each image has a best restart of its own.",
    kind="bug",
)
def _check_restarts(answer: Any) -> None:
    """answer(objective, x, eps, steps, tries) -> x', with the best restart for each image."""
    eps, steps, tries, n = 0.1, 10, 24, 16
    hills = _TwoHills(eps)

    def reached(rows: int) -> Tensor:
        x = torch.full((rows, 1, 2, 2), 0.5, dtype=torch.float64)
        return hills(attacked_images(call(answer, hills, x, eps, steps, tries), x, eps))

    together, alone = reached(n), torch.cat([reached(1) for _ in range(n)])
    high, low = 0.99 * hills.HIGH, 0.99 * hills.LOW
    if (together >= high).all() and (alone >= high).all():
        return
    seen = f"Of {n} images in one batch {int((together >= high).sum())} reach the higher hill; alone, "
    seen += f"{int((alone >= high).sum())} of them do."
    if (alone >= high).all() and (together >= low).all():
        raise Unanswered(seen)
    if (together < low).any():
        raise Wrong(seen, "not every image reaches a hill: do you start at random, ascend, and keep the moved image?")
    raise Wrong(seen, "one restart in two finds the higher hill: is the best of all of them kept, or the last?")


interpret(
    "attacks.read_noise",
    "compare points at equal heights of the two curves of the rippled model: how far apart are they along S?",
)
