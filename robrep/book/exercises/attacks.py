"""The exercises of the chapter on attacks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robrep.book.exercises.core import Wrong, call, compare, exercise, random_tensor, returned


def _norms(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@exercise(
    "attacks.project_l2",
    "shrink the change of an image only if it is too long, and then all its pixels by one factor.",
    "the norm runs over all of an image's pixels: (x_adv - x).flatten(1).norm(dim=1), one for each image.",
    "factor = (eps / norm).clamp(max=1), shaped (N, 1, 1, 1); then (x + (x_adv - x) * factor).clamp(0, 1).",
    learned="Clipping comes last and is safe: x is in [0, 1], so each clipped pixel moves towards it.",
)
def _check_project_l2(answer: Any) -> None:
    """answer(x_adv, x, eps) -> the point of the l2 ball and of [0, 1]."""
    eps = 0.5
    x = 0.5 + 0.1 * random_tensor(40, 4, 1, 3, 3).clamp(-2, 2)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.02, 0.99
    delta = 0.4 * random_tensor(41, 4, 1, 3, 3)
    delta[0, 0, 0, 0], delta[1, 0, 0, 0] = -0.6, 0.7
    delta[3] = 0.02 * delta[3]
    value = call(answer, x + delta, x.clone(), eps)
    got = returned(value, x.shape, "return an image of the shape of x.")
    norm = _norms(delta)
    truth = (x + delta * (eps / norm).clamp(max=1)).clamp(0, 1)
    whole = delta.norm()
    mistakes = [
        (x + delta * (eps / norm).clamp(max=1), "this stays in the ball but leaves [0, 1]."),
        ((x + delta * eps / norm).clamp(0, 1), "a point that is inside the ball already must stay where it is."),
        (x + delta * eps / norm, "a point that is inside the ball already must stay; and clip to [0, 1]."),
        ((x + delta.clamp(-eps, eps)).clamp(0, 1), "this is the l-infinity ball: here all pixels share one budget."),
        (
            (x + delta * (eps / whole).clamp(max=1)).clamp(0, 1),
            "you took one norm over the whole batch: each image has its own.",
        ),
        (truth - x, "you returned the change: add it to x."),
        (
            (x + delta * (eps / delta.flatten(1).abs().sum(1).view(-1, 1, 1, 1)).clamp(max=1)).clamp(0, 1),
            "this is the l1 norm: take the square root of the sum of squares.",
        ),
        (
            (x + delta * (eps / norm**2).clamp(max=1)).clamp(0, 1),
            "the square root is missing from the norm.",
        ),
        (
            (x + ((x + delta).clamp(0, 1) - x) * (eps / _norms((x + delta).clamp(0, 1) - x)).clamp(max=1)),
            "you clipped first: allowed, but the equation shrinks first, and gives another point.",
        ),
    ]
    compare(got, truth, "the worst pixel", mistakes, "shrink by min(1, eps / norm), then clip to [0, 1].")
    still = returned(call(answer, x.clone(), x.clone(), eps), x.shape, "return an image of the shape of x.")
    compare(still, x, "x' = x", [], "where nothing changed the norm is 0: guard the division.")


@exercise(
    "attacks.steepest",
    "l-infinity lets every pixel move by the full length, so only the signs matter; l2 keeps the proportions.",
    "for p = 2 divide each image's gradient by its own norm, and keep the norm away from 0.",
    "g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)",
    learned="With it, the objective rises to first order by eps times the dual norm: l1 for l-infinity, l2 for l2.",
)
def _check_steepest(answer: Any) -> None:
    """answer(g, p) -> directions of length 1 in the norm p, shape of g."""
    g = random_tensor(42, 3, 2, 3, 3) * torch.tensor([1.0, 1e-6, 30.0], dtype=torch.float64).view(3, 1, 1, 1)
    g[0, 0, 0, 0] = 0
    for p in (math.inf, 2):
        got = returned(call(answer, g.clone(), p), g.shape, "return a tensor of the shape of g.")
        norm = _norms(g)
        truth = g.sign() if p == math.inf else g / norm
        peak = g.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
        mistakes = [
            (g, "this is the gradient itself: its length must not matter."),
            (-truth, "the objective is to be made large: do not turn the gradient round."),
            (g / g.norm(), "you took one norm over the whole batch: each image has its own."),
            (g / norm**2, "divide by the norm, not by its square."),
            (g / peak, "this has largest component 1: it is neither the l-infinity nor the l2 direction."),
            (g / norm if p == math.inf else g.sign(), "the two norms are the wrong way round."),
            (g / g.flatten(1).abs().sum(1).view(-1, 1, 1, 1), "this divides by the l1 norm."),
        ]
        compare(got, truth, f"p = {p}", mistakes, "the direction has length 1 in its own norm, for each image.")
        zero = returned(call(answer, torch.zeros_like(g), p), g.shape, "return a tensor of the shape of g.")
        compare(zero.nan_to_num(nan=1.0), torch.zeros_like(g), "a gradient of zero", [], "0 / 0 is NaN: guard it.")


@exercise(
    "attacks.eot",
    "average what: logits, log-probabilities, probabilities or losses? The equation says it.",
    "the probability of the label, averaged over s, then minus its logarithm.",
    "logits.log_softmax(-1).logsumexp(0) - log S is the log of the averaged probabilities.",
    learned="logsumexp averages probabilities without ever leaving the logarithm.",
)
def _check_eot(answer: Any) -> None:
    """answer(logits, y) -> (N,): minus the log of the averaged probability of the label."""
    samples, n, classes = 7, 4, 5
    z, y = 2 * random_tensor(44, samples, n, classes), torch.tensor([0, 4, 2, 1])
    got = returned(call(answer, z.clone(), y.clone()), (n,), "one loss for each image, shape (N,).")
    index = y.expand(samples, n)[..., None]
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    truth = -p.mean(0).gather(1, y[:, None])[:, 0].log()
    mistakes = [
        (-truth, "this is the log-probability: an attack makes the *loss* large."),
        (-log_p.gather(2, index)[..., 0].mean(0), "you averaged losses: average probabilities, then the log."),
        (-z.mean(0).log_softmax(-1).gather(1, y[:, None])[:, 0], "you averaged logits: take each softmax first."),
        (-p.sum(0).gather(1, y[:, None])[:, 0].log(), "divide by the number of samples."),
        (p.mean(0).gather(1, y[:, None])[:, 0], "this is the averaged probability: minus its logarithm is the loss."),
        (-log_p[0].gather(1, y[:, None])[:, 0], "this is one sample: average over all of them."),
        (-log_p.gather(2, index)[..., 0].sum(0), "you added the samples' losses: average their probabilities."),
    ]
    compare(got, truth, f"{samples} samples", mistakes, "softmax, mean over the first axis, minus log of the label's.")
    big = torch.zeros(2, 1, 3, dtype=torch.float64)
    big[:, 0, 1] = 1000.0
    got = returned(call(answer, big, torch.tensor([0])), (1,), "one loss for each image, shape (N,).")
    if not torch.isfinite(got).all():
        raise Wrong(
            "With logits of 1,000 the loss is not finite.",
            "a softmax underflows to 0: stay in logarithms with log_softmax and logsumexp.",
        )
    compare(got, torch.tensor([1000.0], dtype=torch.float64), "logits of 1,000", [], "stay in logarithms throughout.")
