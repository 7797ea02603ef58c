"""The exercises of the chapter on CRoPD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.book.exercises.core import Wrong, call, compare, exercise, random_tensor, returned
from robrep.evaluation import Z95


@exercise(
    "cropd.contrast",
    "normalise all vectors; the anchor of the sum is the clean one.",
    "the sum runs over 2 (N - 1) vectors: clean and adversarial ones of the other images, and neither of one's own.",
    "mask the diagonals of p @ p.T and p @ p_adv.T with -inf, put them side by side, and take logsumexp of them / tau.",
    learned="The positive is not in the sum, so the loss has no floor at 0.",
)
def _check_contrast(answer: Any) -> None:
    """answer(p, p_adv, tau) -> (N,): CRoPD's contrastive loss of projected vectors (N, D)."""
    for case, tau in (("tau = 0.5", 0.5), ("tau = 0.1", 0.1)):
        p, q = random_tensor(130, 6, 4), 3 * random_tensor(131, 6, 4)
        u, v = F.normalize(p, dim=1), F.normalize(q, dim=1)
        own = torch.eye(6, dtype=torch.bool)
        clean, adversarial = u @ u.T / tau, u @ v.T / tau
        positive = (u * v).sum(1) / tau
        others = torch.cat([clean.masked_fill(own, -torch.inf), adversarial.masked_fill(own, -torch.inf)], dim=1)
        turned = torch.cat(
            [(v @ u.T / tau).masked_fill(own, -torch.inf), (v @ v.T / tau).masked_fill(own, -torch.inf)], 1
        )
        with_positive = torch.cat([clean.masked_fill(own, -torch.inf), adversarial], dim=1)
        truth = others.logsumexp(1) - positive
        got = returned(call(answer, p.clone(), q.clone(), tau), (6,), "return one number for each image, shape (N,).")
        mistakes = [
            (with_positive.logsumexp(1) - positive, "that is NT-Xent: here the positive is not part of the sum."),
            (
                torch.cat([clean, adversarial], 1).logsumexp(1) - positive,
                "leave an image's own two vectors out of the sum.",
            ),
            (turned.logsumexp(1) - positive, "the anchor of the sum is the clean vector, not the adversarial one."),
            (
                clean.masked_fill(own, -torch.inf).logsumexp(1) - positive,
                "adversarial vectors of the others count, too.",
            ),
            (-truth, "the sign: the loss falls as positives agree."),
            (others.logsumexp(1) - positive * tau, "tau divides the similarity of the positives as well."),
        ]
        compare(got, truth, case, mistakes, "log of the sum over the others, minus the positive, all over tau.")


@exercise(
    "cropd.order",
    "the sequence holds the tokens of own and then those of hidden: where did token 0 of the image go?",
    "a permutation is undone by its argsort.",
    "torch.cat([own, hidden]).argsort()",
    learned="Each half needs its own: with the other's, every token of the half lands on a wrong field.",
)
def _check_order(answer: Any) -> None:
    """answer(own, hidden) -> int64 (T,): the index that puts a half's tokens, and masks behind them, in place."""
    board = torch.arange(16).view(4, 4)
    colour = (board // 4 + board % 4) % 2
    white, black = board[colour == 0], board[colour == 1]
    for case, own, hidden in (("the white half", white, black), ("the black half", black, white)):
        value = call(answer, own.clone(), hidden.clone())
        if isinstance(value, Tensor) and value.is_floating_point():
            raise Wrong("The index is a floating-point tensor.", "an index is int64; argsort gives one.")
        got = returned(value, (16,), "return one place for each of the T tokens, shape (T,).")
        sequence = torch.cat([own, hidden])
        mistakes = [
            (sequence.double(), "that is the permutation itself: invert it."),
            (
                torch.cat([hidden, own]).argsort().double(),
                "that is the other half's order: its tokens come first here.",
            ),
            (torch.arange(16).double(), "the tokens do not stand in the image's order."),
        ]
        compare(got, sequence.argsort().double(), case, mistakes, "sequence[index] has to be 0, 1, 2, ...")


@exercise(
    "cropd.worst_case",
    "an image is robust if no attack broke it.",
    "rights.all(dim=0) over the attacks, then the mean over the images.",
    learned="An ensemble can never be above one of its parts.",
)
def _check_worst_case(answer: Any) -> None:
    """answer(rights) -> the pointwise worst case of bool (A, N): whether attack a left image n right."""
    for case, seed in (("3 attacks on 40 images", 132), ("5 attacks on 200 images", 133)):
        shape = (3, 40) if seed == 132 else (5, 200)
        rights = random_tensor(seed, *shape) > -0.5
        value = call(answer, rights.clone())
        got = returned(torch.as_tensor(value, dtype=torch.float64), (), "return one number.").view(1)
        share = rights.double()
        mistakes = [
            (share.mean(1).min().view(1), "that is the strongest single attack: another may break other images."),
            (share.mean().view(1), "that is the mean over the attacks: an attacker takes the best one for each image."),
            (rights.any(0).double().mean().view(1), "one attack is enough to break an image: all, not any."),
            (rights.all(0).double().sum().view(1), "divide by the number of images."),
        ]
        compare(got, rights.all(0).double().mean().view(1), case, mistakes, "the share of images that no attack broke.")


@exercise(
    "cropd.sample_size",
    "the standard error of a rate p over n images is the square root of p (1 - p) / n.",
    "half = 1.96 * (rate * (1 - rate) / n) ** 0.5, solved for n.",
    learned="A table with intervals tells how many images stand behind it.",
)
def _check_sample_size(answer: Any) -> None:
    """answer(rate, half) -> n: how many images a 95 % interval rate ± half implies; both in [0, 1]."""
    for rate, half in ((0.5, 0.01), (0.034, 0.006), (0.9, 0.02)):
        value = call(answer, rate, half)
        got = returned(torch.as_tensor(value, dtype=torch.float64), (), "return one number.").view(1)
        truth = torch.tensor([Z95**2 * rate * (1 - rate) / half**2], dtype=torch.float64)
        if abs(got - truth) <= 0.01 * truth:  # 1.96, or a number of images that was rounded
            continue
        mistakes = [
            (truth / Z95**2, "the interval is 1.96 standard errors to each side."),
            (truth / 4, "`half` is the half width: do not halve it again."),
            (truth * 4, "the half width is given, not the whole."),
            (truth * half, "the half width comes in squared."),
            (truth / (1 - rate), "the variance is p (1 - p)."),
        ]
        near = [(got, text) for wrong, text in mistakes if abs(got - wrong) <= 0.01 * wrong]
        compare(got, truth, f"{rate} ± {half}", near, "n = 1.96² p (1 - p) / half².")


class _Steps(nn.Module):
    """A pre-processor whose gradient says nothing: it rounds."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


@exercise(
    "cropd.straight_through",
    "the value has to be m(x), the gradient that of x.",
    "what is detached counts as a constant: x plus a constant that happens to be m(x) - x.",
    "x + (m(x) - x).detach()",
    learned="An attack must not depend on the defender's gradients alone.",
)
def _check_straight_through(answer: Any) -> None:
    """answer(m, x) -> m(x), with the gradient of x."""
    weight = random_tensor(134, 12, 12)
    linear = nn.Linear(12, 12, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(weight)
    for case, m in (("a pre-processor that rounds", _Steps()), ("a linear pre-processor", linear)):
        x = random_tensor(135, 5, 12).requires_grad_()
        value = call(answer, m, x)
        got = returned(value, (5, 12), "return images of the shape of x.")
        compare(
            got, m(x).detach(), case, [(x.detach(), "the value is not m(x): add what m changes.")], "the value is m(x)."
        )
        if not value.requires_grad:
            raise Wrong(f"For {case} no gradient reaches x.", "detach the difference m(x) - x only.")
        slope = torch.autograd.grad((value * random_tensor(136, 5, 12)).sum(), x, allow_unused=True)[0]
        if slope is None or not torch.allclose(slope, random_tensor(136, 5, 12)):
            raise Wrong(f"For {case} the gradient is not that of x.", "m's own gradient still gets through: detach it.")


@exercise(
    "cropd.averaged",
    "average probabilities, not losses and not logits.",
    "-(logits.softmax(2).mean(0)) of the label, as a logarithm.",
    "log_p = logits.log_softmax(2).logsumexp(0) - log(S); take -log_p at the label.",
    learned="Its gradient is what an attack on a model with random masks has to follow.",
)
def _check_averaged(answer: Any) -> None:
    """answer(logits, y) -> (N,): -log of the mean probability of the label over S passes; logits (S, N, C)."""
    logits, y = 3 * random_tensor(137, 7, 5, 4), torch.tensor([0, 3, 1, 2, 2])
    p = logits.softmax(2).mean(0)[torch.arange(5), y]
    got = returned(call(answer, logits.clone(), y.clone()), (5,), "return one number for each image, shape (N,).")
    losses = torch.stack([F.cross_entropy(part, y, reduction="none") for part in logits])
    mistakes = [
        (losses.mean(0), "that is the mean of the losses: the mean goes inside the logarithm."),
        (F.cross_entropy(logits.mean(0), y, reduction="none"), "that averages logits: probabilities are averaged."),
        (p, "that is the probability: take minus its logarithm."),
        (losses[0], "that is one pass."),
        (-losses.neg().logsumexp(0), "divide the sum by the number of passes."),
    ]
    compare(
        got, -p.log(), "7 passes over 5 images", mistakes, "-log of the mean over passes of the label's probability."
    )
