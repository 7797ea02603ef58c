"""The exercises of the chapter on SimCLR + Urkle."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robrep.book.exercises.core import Wrong, attacked_images, call, compare, exercise, random_tensor, returned
from robrep.contrastive import effective_rank, nt_xent

ONE_EACH = "return one number for each image, shape (N,)."


def _variants(views: list[Tensor], tau: float) -> tuple[Tensor, list[tuple[Tensor, str]]]:
    """NT-Xent, and what the usual mistakes give in its place."""
    n, z = len(views), [F.normalize(v, dim=1) for v in views]
    scores = torch.stack([torch.stack([a @ b.T for b in z]) for a in z]) / tau  # view, view, image, image
    truth = nt_xent(views, tau)
    others = [[w for w in range(n) if w != v] for v in range(n)]
    own = torch.arange(len(views[0]))
    positive = torch.stack([scores[v, others[v]][:, own, own].mean(0) for v in range(n)]).mean(0)
    everything = torch.stack([torch.cat(list(scores[v]), 1).logsumexp(1) for v in range(n)]).mean(0)
    raw = torch.stack([torch.stack([a @ b.T for b in views]) for a in views]) / tau
    for v in range(n):
        raw[v, v, own, own] = -torch.inf
    below = torch.stack([torch.cat(list(raw[v]), 1).logsumexp(1) for v in range(n)])
    lengths = (below - torch.stack([raw[v, others[v]][:, own, own].mean(0) for v in range(n)])).mean(0)
    mistakes = [
        (everything - positive, "the anchor is compared with itself, too: leave that one entry out of the sum."),
        (nt_xent(views, tau, denominator="negatives_only"), "the positives belong into the denominator here."),
        (lengths, "sim is the cosine: divide the vectors by their lengths first."),
        (nt_xent(views, 1.0), "the temperature is missing."),
        (nt_xent(views, 1 / tau), "divide by the temperature."),
        (-truth, "the sign is turned round: a loss falls as positives come closer."),
        ((truth * (n - 1)), "take the mean over an anchor's positives, not their sum."),
        (truth * n, "take the mean over the views of an image, not their sum."),
    ]
    return truth, mistakes


@exercise(
    "simclr_urkle.nt_xent",
    "it is a cross-entropy: the logits are cosines over tau, the right class of an anchor is its other view.",
    "stack both views to 2N vectors of length 1, take all products, set the diagonal to -inf, then log-softmax.",
    "z = normalize(cat([a, b])); s = (z @ z.T / tau).fill_diagonal_(-inf); the targets are (i + N) modulo 2N; "
    "the mean of F.cross_entropy(s, targets, reduction='none') over an image's two rows.",
    learned="A classification among 2N - 1 vectors whose labels cost nothing.",
)
def _check_nt_xent(answer: Any) -> None:
    """answer(a, b, tau) -> (N,): SimCLR's loss."""
    for n, tau in ((5, 0.5), (3, 0.2)):
        views = [random_tensor(90, n, 4), random_tensor(91, n, 4) * 2]
        got = returned(call(answer, *views, tau), (n,), ONE_EACH)
        truth, mistakes = _variants(views, tau)
        compare(got, truth, f"{n} images, tau = {tau:g}", mistakes, "-sim / tau plus the log of the sum of the others.")


@exercise(
    "simclr_urkle.tuples",
    "nothing changes in the denominator but its length; an anchor now has n - 1 positives.",
    "for each view v: the logsumexp over everything but the anchor, minus the mean score of the other n - 1 views.",
    "mean over v of [logsumexp - mean over w != v of sim(g_v, g_w) / tau]",
    learned="Two views give SimCLR, three RoCL, four SimCLR + Urkle.",
)
def _check_tuples(answer: Any) -> None:
    """answer(views, tau) -> (N,): NT-Xent over a list of n views."""
    for n, tau in ((2, 0.5), (3, 0.5), (4, 0.3)):
        views = [random_tensor(92 + v, 5, 4) for v in range(n)]
        got = returned(call(answer, views, tau), (5,), ONE_EACH)
        truth, mistakes = _variants(views, tau)
        compare(got, truth, f"{n} views of 5 images", mistakes, "each of the n views of an image is an anchor once.")


@exercise(
    "simclr_urkle.collapse",
    "if all vectors are equal, every cosine is 1: what is the ratio of one exponential to the sum of k of them?",
    "the anchor is left out: how many vectors are there in all?",
    "math.log(n * N - 1)",
    learned="A loss that stays at this number says that the encoder has collapsed.",
)
def _check_collapse(answer: Any) -> None:
    """answer(n, N) -> the loss of an encoder that gives every image the same code."""
    for n, size in ((2, 128), (4, 128), (3, 10)):
        value = call(answer, n, size)
        if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number.")
        got = torch.tensor([float(value)], dtype=torch.float64)
        truth = torch.tensor([math.log(n * size - 1)], dtype=torch.float64)
        mistakes = [
            (torch.log(torch.exp(truth) + 1), "the anchor itself is left out."),
            (torch.tensor([math.log(n * (size - 1))], dtype=torch.float64), "that is the printed denominator's value."),
            (torch.tensor([math.log(size)], dtype=torch.float64), "each image comes with n views."),
            (torch.exp(truth), "take the logarithm."),
        ]
        compare(got, truth, f"n = {n}, N = {size}", mistakes, "count the terms of the sum; all are equal.")


@exercise(
    "simclr_urkle.rank",
    "a direction counts by its share of all singular values.",
    "centre the codes, take torch.linalg.svdvals, divide by their sum: what is the entropy of that?",
    "p = svdvals(z - z.mean(0)); p = p / p.sum(); exp(-(p * p.log()).sum())",
    learned="A collapsed encoder is perfectly robust, and its rank says so.",
)
def _check_rank(answer: Any) -> None:
    """answer(codes) -> the effective rank."""
    flat = random_tensor(98, 40, 6) * torch.tensor([1, 1, 1, 0.1, 0.01, 0.001], dtype=torch.float64) + 5
    for case, codes in (("random codes", random_tensor(97, 40, 6)), ("flat codes, not centred", flat)):
        value = call(answer, codes)
        got = returned(torch.as_tensor(value, dtype=torch.float64), (), "return one number.").view(1)
        s = torch.linalg.svdvals(codes - codes.mean(0))
        p, q = s / s.sum(), s.square() / s.square().sum()
        raw = torch.linalg.svdvals(codes)
        raw = raw / raw.sum()
        mistakes = [
            (torch.special.entr(raw).sum().exp().view(1), "centre the codes first: a common mean is no dimension."),
            (torch.special.entr(p).sum().view(1), "that is the entropy: the rank is its exponential."),
            (
                torch.special.entr(q).sum().exp().view(1),
                "take the shares of the singular values, not of their squares.",
            ),
            (torch.tensor([6.0], dtype=torch.float64), "that is the ordinary rank, blind to how small a direction is."),
        ]
        truth = torch.tensor([effective_rank(codes)], dtype=torch.float64)
        compare(got, truth, case, mistakes, "exp of the entropy of the normalised singular values.")


@exercise(
    "simclr_urkle.adversary",
    "it is PGD once more; what it climbs couples the batch, so sum the values before you differentiate.",
    "project the other view once and detach it; climb nt_xent((project(x'), g_other), tau).sum().",
    "return x_adv.detach(), after a random start and a projection to the ball and to [0, 1] in each step.",
    learned="RoCL makes the pair hard to tell; Urkle makes the code move. No label in either.",
)
def _check_adversary(answer: Any) -> None:
    """answer(project, x, other, eps, steps, tau) -> x': RoCL's instance-wise attack."""
    weight, eps, steps, tau = random_tensor(99, 12, 5), 0.1, 10, 0.5
    x = (0.5 + 0.2 * random_tensor(100, 8, 1, 3, 4)).clamp(0, 1)
    x[0], x[1] = 0.0, 1.0
    other = (x + 0.05 * random_tensor(101, 8, 1, 3, 4)).clamp(0, 1)

    def project(x_: Tensor) -> Tensor:
        return torch.tanh(x_.flatten(1) @ weight)

    value = call(answer, project, x.clone(), other.clone(), eps, steps, tau)
    got = attacked_images(value, x, eps)

    def loss(x_: Tensor) -> float:
        return nt_xent((project(x_), project(other)), tau).mean().item()

    clean, reached = loss(x), loss(got)
    chance = loss((x + eps * (torch.rand(x.shape, dtype=torch.float64) * 2 - 1).sign()).clamp(0, 1))
    if reached < max(clean, chance) + 0.1:
        seen = f"NT-Xent is {reached:.3g} at your x', {clean:.3g} at x and {chance:.3g} after random signs."
        raise Wrong(seen, "ascend: add step * sign(gradient of nt_xent), and keep the moved x' from step to step.")
