"""The exercises of the chapter that compares all methods."""

from __future__ import annotations

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
from robrep.book.exercises.hidden import call_within
from robrep.objectives import cross_entropy


@exercise(
    "comparison.passes",
    "a gradient is one pass, whatever it is for; a look without a gradient is half a pass.",
    "half a pass for the target, R K for the attacks, R / 2 to choose among their ends, and two images in the step.",
    "R * K + R / 2 + 0.5 + 2",
    learned="Restarts cost as many passes as they take steps; choosing among them adds half a pass each.",
)
def _check_passes(answer: Any) -> None:
    """answer(K, R) -> passes for one image and step of a method with R attacks of K steps on one of two views."""
    for steps, restarts in ((3, 2), (1, 1), (10, 4)):
        got = one_number(call(answer, steps, restarts))
        attack = steps * restarts
        numbers = (2.5, 2.0, 2.5, 3.0, 2.5, 1.5, 3.5)
        looks = (restarts / 2, restarts / 2, 0, restarts / 2, restarts, restarts / 2, restarts / 2)
        truth, no_target, no_choice, whole, dear, one, clean = (
            torch.tensor([attack + look + number], dtype=torch.float64)
            for look, number in zip(looks, numbers, strict=True)
        )
        mistakes = [
            (no_target, "the target looks at one view: half a pass."),
            (no_choice, "the ends of the R attacks are looked at once more, to choose one."),
            (whole, "nothing goes back through the target: half a pass."),
            (dear, "to choose among the ends takes no gradient: half a pass each."),
            (one, "the training step has two images: a view, and the other one attacked."),
            (clean, "the clean second view is no part of the training step."),
            (torch.tensor([steps + restarts / 2 + 2.5], dtype=torch.float64), "each of the R attacks takes K steps."),
            (2 * truth - 5 - restarts, "a gradient is one forward and one back: one pass."),
            (truth + attack, "only one of the two views is attacked."),
        ]
        compare(got, truth, f"K = {steps}, R = {restarts}", mistakes, "count every image forward and back, and halve.")


@exercise(
    "comparison.rank",
    "replace each number by its place in the order of its column; then correlate the places.",
    "ranks = v.argsort().argsort(): the first gives the order, the second each element's place in it.",
    "torch.corrcoef(torch.stack([ranks of a, ranks of b]).double())[0, 1]",
    learned="Any increasing function of a column leaves it as it is: a log axis, a square, another unit.",
)
def _check_rank(answer: Any) -> None:
    """answer(a, b) -> Spearman's rank correlation of two columns (N,) without ties."""
    for case, curved in (("nine methods", lambda v: -v.exp()), ("nine methods in random order", lambda v: 0 * v)):
        a = 2 * random_tensor(212, 9)
        b = curved(a) + 1.5 * random_tensor(213, 9)
        got = one_number(call(answer, a, b))

        def correlation(u: Tensor, v: Tensor) -> Tensor:
            return torch.corrcoef(torch.stack([u.double(), v.double()]))[0, 1].reshape(1)

        ranks = [v.argsort().argsort() for v in (a, b)]
        n = len(a)
        truth = 1 - 6 * (ranks[0] - ranks[1]).double().square().sum().reshape(1) / (n * (n * n - 1))  # without ties
        signs = torch.sign(a[:, None] - a) * torch.sign(b[:, None] - b)
        mistakes = [
            (correlation(a, b), "correlate the ranks, not the numbers."),
            (correlation(a.argsort(), b.argsort()), "argsort gives the order; its own argsort gives the ranks."),
            (-truth, "both columns are ranked the same way round."),
            (signs.sum().reshape(1) / (n * (n - 1)), "that is Kendall's; correlate the ranks."),
        ]
        compare(got, truth, case, mistakes, "the correlation of the ranks.")


# --- design: a meter for codes ----------------------------------------------------------------------------------------

CLASSES, EPS, MODELS, HADAMARD = 4, 0.08, 12, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
BALL: Any = Linf(EPS)


class MixedEncoder(nn.Module):
    """Images (N, 1, 4, 6) to codes (N, 16): half of the directions tell of the class, half of the last 8 pixels.

    Args:
        fragile: how much it relies on pixels 8 to 15, whose signal an attack can hide.
        idle: how much of the last 8 pixels, which have nothing to do with the class, it writes into the code.
        scale: of the whole code.
        generator: draws the rest.
    """

    first: Tensor
    second: Tensor
    other: Tensor
    turn: Tensor

    def __init__(self, fragile: float, idle: float, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        shapes = ((32, 8), (32, 8), (8, 32), (8, 8), (16, 16))
        robust, weak, out, other, turn = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        self.register_buffer("first", torch.cat([0.6 * robust, fragile * weak], 1))
        self.register_buffer("second", out / 32**0.5)
        self.register_buffer("other", idle * torch.linalg.qr(other)[0])
        self.register_buffer("turn", scale * torch.linalg.qr(turn)[0])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) - 0.5
        telling = torch.tanh(x[:, :16] @ self.first.T) @ self.second.T
        return torch.cat([telling, x[:, 16:] @ self.other.T], 1) @ self.turn.T


class Bench:
    """Twelve encoders and images of four classes, drawn by a generator, and what attacks do to linear heads."""

    def __init__(self, generator: torch.Generator) -> None:
        def spread(low: float, high: float) -> list[float]:
            share = (torch.randperm(MODELS, generator=generator) + 0.5) / MODELS
            return (low * (high / low) ** share).tolist()

        def signs(*shape: int) -> Tensor:
            return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1

        corners = torch.kron(HADAMARD, torch.kron(HADAMARD, HADAMARD))
        robust = corners[torch.randperm(8, generator=generator)[:CLASSES]] * signs(8)
        means = torch.cat([0.2 * robust, 0.05 * signs(CLASSES, 8), torch.zeros(CLASSES, 8, dtype=torch.float64)], 1)
        width = torch.tensor([0.1] * 8 + [0.02] * 8 + [0.2] * 8, dtype=torch.float64)
        y = torch.randint(CLASSES, (900,), generator=generator)
        x = 0.5 + means[y] + width * torch.randn(900, 24, generator=generator, dtype=torch.float64)
        self.x, self.few, self.x_test = x.clamp(0, 1).view(900, 1, 4, 6).split([500, 100, 300])
        self.y, self.y_few, self.y_test = y.split([500, 100, 300])
        settings = zip(spread(0.15, 1.5), spread(1, 60), spread(0.1, 10), strict=True)
        self.encoders = [MixedEncoder(*setting, generator) for setting in settings]

    def robust(self, f: nn.Module) -> float:
        """Accuracy under PGD-20 of a ridge head on clean codes."""
        with torch.no_grad():
            z = f(self.x)
            middle, unit = z.mean(0), z.std()

        def features(x: Tensor) -> Tensor:
            return F.pad((f(x) - middle) / unit, (0, 1), value=1.0)

        a = features(self.x)
        ridge = 1e-4 * len(a) * torch.eye(a.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(a.T @ a + ridge, a.T @ F.one_hot(self.y).double())
        x_adv = PGD(20)(lambda x_, y_: cross_entropy(10 * features(x_) @ weight, y_), self.x_test, BALL, self.y_test)
        return float(((features(x_adv) @ weight).argmax(1) == self.y_test).double().mean())


def moved(f: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """The reference: how far an attack moves a code, in distances between classes."""
    with torch.no_grad():
        z = f(x)
    means = torch.stack([z[y == k].mean(0) for k in y.unique()])
    ball: Any = Linf(eps)
    x_adv = PGD(20)(lambda x_, z_: (f(x_) - z_).square().sum(1), x, ball, z)
    with torch.no_grad():
        return float((f(x_adv) - z).norm(dim=1).mean() / torch.pdist(means).mean())


@exercise(
    "comparison.meter",
    "which directions of a code does a linear head use, and which can move at no cost?",
    "divide by the scatter within the classes first: the covariance of z minus the mean of its class, S. In the code "
    "z S^(-1/2), directions that say nothing of the class are short.",
    "in that code, attack towards the nearest other class mean, and return the share of the way that is covered.",
    learned="The unit matters as much as the attack: a distance counts only along what a head can use.",
    kind="design",
)
def _check_meter(answer: Any, seed: int) -> str:
    """answer(f, x, y, eps) -> one number for an encoder, the larger the less robust is a linear head on it."""
    bench = Bench(torch.Generator().manual_seed(seed))
    rates = torch.tensor([bench.robust(f) for f in bench.encoders], dtype=torch.float64)
    given = bench.few, bench.y_few, EPS
    theirs = torch.tensor([moved(f, *given) for f in bench.encoders], dtype=torch.float64)
    yours = torch.cat([one_number(call_within(answer, 22, f, *given)) for f in bench.encoders])
    if not yours.isfinite().all():
        raise Wrong("Your meter is not finite for some encoder.", "check divisions, and whether a matrix is singular.")

    def disordered(meter: Tensor) -> float:
        """The share of pairs that differ in robust accuracy by more than 5 points, which the meter turns round."""
        i, j = torch.triu_indices(MODELS, MODELS, 1)
        gap = rates[i] - rates[j]
        return float(((meter[i] - meter[j]) * gap >= 0)[gap.abs() > 0.05].double().mean())

    wrong, reference = disordered(yours), disordered(theirs)
    bar = 0.6 * min(reference, 0.5)  # chance has half of them wrong
    found = (
        f"Your meter has {100 * wrong:.0f} % of the pairs of encoders in the wrong order, the distance moved has "
        f"{100 * reference:.0f} %."
    )
    if wrong <= bar:
        return found
    sizes = torch.tensor([float(f.turn.norm()) for f in bench.encoders], dtype=torch.float64)
    if torch.corrcoef(torch.stack([sizes, yours.abs()]).clamp(min=1e-12).log())[0, 1] > 0.7:
        raise Wrong(found, "your meter grows with the scale of the code, on which no head depends: divide by a unit.")
    if disordered(-yours) <= bar / 2:
        raise Wrong(found, "your meter is large for robust encoders: turn it round.")
    raise Wrong(found, "a code can move far where no class lies: weigh directions by what a head can use.")


interpret(
    "comparison.read_seconds",
    "which rows are on the left, and what do their attacks replace? Then ask which of them could still gain.",
)


# --- bug: an interval for a difference --------------------------------------------------------------------------------


@exercise(
    "comparison.difference",
    "two rows that answer every image alike differ by exactly 0, in every draw. In yours?",
    "an image that is drawn for a has to be drawn for b as well.",
    "one i = torch.randint(n, (n,)) for both, in each draw.",
    learned="Rows under one protocol share their images: the difference of two is known better than either of them.",
    kind="bug",
)
def _check_difference(answer: Any) -> None:
    """answer(right_a, right_b) -> difference of accuracies with the ends of its 95 % interval, (3,)."""
    generator = torch.Generator().manual_seed(220)
    a = torch.rand(400, generator=generator) < 0.6
    b = a ^ (torch.rand(400, generator=generator) < 0.05) & a
    value = call(answer, a.clone(), b.clone())
    if isinstance(value, list | tuple):
        value = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in value])
    got = returned(value, (3,), "return three numbers: difference, lower and upper end.")
    d = a.double() - b.double()
    paired, unpaired = (1.96 * float(v / len(a)) ** 0.5 for v in (d.var(), a.double().var() + b.double().var()))
    middle, half = float(d.mean()), float(got[2] - got[1]) / 2
    if abs(float(got[0]) + middle) < 0.005:
        raise Wrong(f"The difference is {float(got[0]):.3f}.", "a minus b, not b minus a.")
    if abs(float(got[0]) - middle) > 0.005:
        raise Wrong(f"The difference is {float(got[0]):.3f}, not {middle:.3f}.", "accuracy of a minus that of b.")
    if half < 0:
        raise Wrong("The lower end is above the upper one.", "the lower end comes first.")
    seen = f"The interval is ±{half:.3f} wide for two rows that differ in {int(d.abs().sum())} of {len(a)} images."
    if abs(half / unpaired - 1) < 0.15:
        raise Unanswered(seen + " For two rows that are alike in every image it would not shrink to 0.")
    for factor, text in (
        (1.645 / 1.96, "the quantiles are 2.5 % and 97.5 %."),
        (1 / 1.96, "this is one standard error to each side; an interval of 95 % has 1.96."),
        (len(a) ** -0.5, "this is the scatter over the draws, divided once more by the root of n."),
    ):
        if abs(half / paired / factor - 1) < 0.1:
            raise Wrong(seen, text)
    if abs(half / paired - 1) > 0.1:
        raise Wrong(seen, f"draw images, the same for both rows: ±{paired:.3f}.")
    if abs(float(got[1] + got[2]) / 2 - middle) > 0.2 * paired:
        raise Wrong(seen, "the ends are quantiles of the differences over all draws.")
