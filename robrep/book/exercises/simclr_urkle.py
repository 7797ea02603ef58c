"""The exercises of the chapter on SimCLR + Urkle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.attacks import PGD, Linf
from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    call,
    compare,
    exercise,
    interpret,
    one_number,
    random_tensor,
    returned,
)
from robrep.book.exercises.hidden import attack_within
from robrep.contrastive import effective_rank, nearest, nt_xent

# --- warm-ups ---------------------------------------------------------------------------------------------------------


@exercise(
    "simclr_urkle.floor",
    "all views of an image should agree. How far apart can N directions be, if every two are equally far apart?",
    "the N unit vectors sum to zero: 0 = N + N (N - 1) c gives their cosine c.",
    "the best cosine of two images is -1 / (N - 1); the sum has n - 1 positives and n (N - 1) negatives.",
    "-1 / tau + math.log((n - 1) * math.exp(1 / tau) + n * (N - 1) * math.exp(-1 / tau / (N - 1)))",
    learned="In a large batch the best negatives are at right angles: only half of the range 2 / tau can be used.",
)
def _check_floor(answer: Any) -> None:
    """answer(n, N, tau) -> the least NT-Xent of n views of N images, in as many dimensions as one likes."""
    for n, size, tau in ((2, 2, 0.5), (2, 8, 0.5), (4, 8, 0.2), (3, 64, 0.5)):
        got = one_number(call(answer, n, size, tau))
        corners = torch.eye(size, dtype=torch.float64) - 1 / size  # a regular simplex around 0
        truth = nt_xent([corners] * n, tau).mean().view(1)

        def at(cosine: float, n: int = n, size: int = size, tau: float = tau, positives: int = -1) -> Tensor:
            """NT-Xent where all cosines between images are the same."""
            same = (n - 1 if positives < 0 else positives) * math.exp(1 / tau)
            return torch.tensor([math.log(same + n * (size - 1) * math.exp(cosine / tau)) - 1 / tau]).double()

        best = -1 / (size - 1)
        mistakes = [
            (at(-1.0), "more than two directions cannot all be opposite to each other."),
            (at(0.0), "right angles are not the best: N directions can do slightly better."),
            (at(best, positives=0), "the positives are in the denominator, too."),
            (at(best, positives=n), "the anchor is not compared with itself."),
            (at(best, positives=1), "an anchor has n - 1 positives, and each is in the sum."),
            (at(-1 / size), "N unit vectors that sum to zero: 0 = N + N (N - 1) c."),
            (truth + 1 / tau, "the positive's own score is missing: its cosine is 1."),
        ]
        compare(got, truth, f"n = {n}, N = {size}, tau = {tau:g}", mistakes, "which cosines are the best possible?")


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


# --- design -----------------------------------------------------------------------------------------------------------

EPS, CALLS = 0.1, 21  # one for the clean codes, 20 for gradients
DIGITS, FREE = slice(0, 6), slice(6, 9)  # coordinates of the hidden codes


class HiddenEncoder(nn.Module):
    """Images (N, 1, 8, 8) to codes (N, 9): gain * tanh(pattern . (x - 1/2)).

    Six coordinates separate the digits. The encoder reacts most in the other three, in which images hardly differ.

    Args:
        patterns: (64, 9) with orthonormal columns.
    """

    patterns: Tensor
    gain: Tensor

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns)
        self.register_buffer("gain", patterns.new_tensor([1.0] * 6 + [4.0] * 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.tanh((x.flatten(1) - 0.5) @ self.patterns)


def _hidden_search(seed: int) -> tuple[HiddenEncoder, Tensor, Tensor, Tensor, Tensor]:
    """An encoder; 200 queries with their labels; the codes and labels of 300 images to search among. Ten classes."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    encoder = HiddenEncoder(torch.linalg.qr(normal(64, 9)).Q)
    centres = F.normalize(normal(10, 6), dim=1)
    for _ in range(200):  # they repel each other
        apart = centres[:, None] - centres
        push = apart / apart.norm(dim=2, keepdim=True).pow(3).clamp_min(1e-9)
        centres = F.normalize(centres + 0.05 * push.sum(1), dim=1)

    def images(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 10
        amounts = normal(count, 9) * torch.tensor([0.06] * 6 + [0.02] * 3)
        amounts[:, DIGITS] += 0.6 * centres[y]
        return (0.5 + amounts @ encoder.patterns.T).clamp(0, 1).view(count, 1, 8, 8), y

    (x, y), (x_bank, y_bank) = images(200), images(300)
    return encoder, x, y, encoder(x_bank), y_bank


@exercise(
    "simclr_urkle.turn_search",
    "the search returns the largest cosine in the bank. Which two cosines have to change places?",
    "a tenth of the bank shows the query's digit, and for a clean query it is the nearest tenth.",
    "climb the largest cosine among all other codes minus the largest among the clean query's nearest tenth.",
    "s = cosines(encoder(x_adv), bank); s.masked_fill(near, -inf).amax(1) - s.masked_fill(~near, -inf).amax(1)",
    learned="Judge a search by an attack on its answer: a code can turn a long way and still find the same digit.",
    kind="design",
)
def _check_turn_search(answer: Any, seed: int) -> str:
    """answer(encoder, x, bank, eps) -> x': queries whose nearest code in the bank is another digit's."""
    encoder, x, y, bank, y_bank = _hidden_search(seed)
    with torch.no_grad():
        clean = encoder(x)

    def left(x_: Tensor) -> float:
        return (y_bank[nearest(encoder(x_), bank)[:, 0]] == y).double().mean().item()

    def away(x_: Tensor, z: Tensor) -> Tensor:
        return 1 - torch.cosine_similarity(encoder(x_), z)

    ball: Any = Linf(EPS)
    reference = left(PGD(CALLS - 1)(away, x, ball, clean))
    got = attack_within(answer, CALLS, encoder, x, bank, EPS)
    found, move = left(got), (encoder(got) - clean).abs() / encoder.gain
    seen = f"Your attack left {100 * found:.0f} % of the answers right, turning codes away {100 * reference:.0f} %."
    if found <= reference / 4:
        return seen
    if move.mean() < 0.5 * EPS:
        text = "the codes hardly move: start at random, add step * sign(gradient), and keep x' from step to step."
    elif move[:, FREE].mean() > move[:, DIGITS].mean():
        text = "your codes turn into directions in which the bank holds no image; push them to codes that it does hold."
    elif found > reference:
        text = "the next code in the bank shows the same digit: leave out the whole nearest tenth, not one neighbour."
    else:
        text = "the answer changes where another digit's code becomes the nearest; climb exactly this difference."
    raise Wrong(seen, text)


# --- a figure, and a bug ----------------------------------------------------------------------------------------------

interpret(
    "simclr_urkle.read_radius",
    "follow only two lines, RoCL and SimCLR + Urkle, and look where they cross. Where do their bands touch?",
)


def _searches() -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, codes, queries and labels; all codes lie on a circle, or are multiples of such codes."""

    def circle(*angles: float) -> Tensor:
        angle = torch.tensor(angles, dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin()], 1)

    pairs, y = circle(0.0, 0.1, 1.5, 1.6, 3.0, 3.1), torch.tensor([0, 0, 1, 1, 2, 2])
    longer = pairs * torch.tensor([1, 1, 30, 30, 1, 1]).view(6, 1)
    star = circle(0.0, 2 * math.pi / 3, -2 * math.pi / 3)
    return [
        ("clean queries", pairs, pairs, y),
        ("codes of different lengths", longer, longer, y),
        ("neighbours that show other digits", pairs, pairs, torch.arange(6)),
        ("three codes with negative cosines", star, star, torch.arange(3)),
        ("six queries, two of them attacked", pairs, circle(0.85, 0.83, 1.5, 1.6, 3.0, 3.1), y),
    ]


@exercise(
    "simclr_urkle.leave_one_out",
    "which image is the nearest to an attacked query? Is it always the image that the query was made from?",
    "the code leaves out a rank. It should leave out an image: entry i of row i.",
    "cosine.fill_diagonal_(-torch.inf), and then the largest of each row.",
    learned="The given code is right on clean queries and hides the success of an attack: test a measure on both.",
    kind="bug",
)
def _check_leave_one_out(answer: Any) -> None:
    """answer(codes, queries, y) -> the fraction of queries whose nearest code of another image has their label."""
    for case, codes, queries, y in _searches():
        got = one_number(call(answer, codes.clone(), queries.clone(), y.clone()))

        def share(scores: Tensor, rank: int = 0, y: Tensor = y) -> Tensor:
            return (y[scores.argsort(1, descending=True)[:, rank]] == y).double().mean().view(1)

        cosine = F.normalize(queries, dim=1) @ F.normalize(codes, dim=1).T
        itself = torch.eye(len(y), dtype=torch.bool)
        truth = share(cosine.masked_fill(itself, -torch.inf))
        if "attacked" in case and torch.equal(got, share(cosine, 1)):
            raise Unanswered(
                f"Of {case} so far that another digit's code is the nearest, the given code counts "
                f"{len(y) * got.item():.0f} as right; it should be {len(y) * truth.item():.0f}."
            )
        mistakes = [
            (share((queries @ codes.T).masked_fill(itself, -torch.inf)), "take the largest cosine, not product."),
            (share(cosine.masked_fill(itself, 0.0)), "a cosine can be negative, and then 0 is the largest of the row."),
            (share(cosine), "an image finds itself: leave out entry i of row i."),
            (share(cosine.masked_fill(y[:, None] == y, -torch.inf)), "leave out the image, not its whole digit."),
        ]
        compare(got, truth, case, mistakes, "the largest cosine of each row, the image itself left out.")
