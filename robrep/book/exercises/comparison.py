"""The exercises of the chapter that compares all methods."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from robrep.book.exercises.core import Wrong, call, compare, exercise, random_tensor, returned


def _number(value: Any) -> Tensor:
    if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
        raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number.")
    return torch.tensor([float(value)], dtype=torch.float64)


@exercise(
    "comparison.passes",
    "each step of the attack is forward and back through the encoder; so is each image of the training step.",
    "two views: 2 K for their attacks, two forwards by the target, and two images in the step.",
    learned="The target's two forwards cost as much as one more image in the step.",
)
def _check_passes(answer: Any) -> None:
    """answer(K) -> BYORL's passes for one image and step."""
    for steps in (3, 1, 40):
        got = _number(call(answer, steps))
        numbers = [2 * steps + 3, steps + 3, 2 * steps + 2, 2 * steps + 4, 2 * steps + 5, 4 * steps + 3, steps + 2]
        truth, one_view, no_target, whole, clean, twice, both = (
            torch.tensor([float(v)], dtype=torch.float64) for v in numbers
        )
        mistakes = [
            (one_view, "both views are attacked."),
            (no_target, "the target looks at both views, too: forward only, half a pass each."),
            (whole, "nothing goes back through the target: its two forwards are half a pass each."),
            (clean, "the step is taken at the attacked views alone, two images."),
            (twice, "a gradient is one forward and one back: one pass for each step and view."),
            (both, "count both views, and the target."),
        ]
        compare(got, truth, f"K = {steps}", mistakes, "2 K + 3.")


@exercise(
    "comparison.moved",
    "measure both lengths first: how far each code moves, and how far class means lie apart.",
    "(z_adv - z).norm(dim=1).mean() / torch.pdist(means).mean(), with one mean for each class in y.",
    learned="The scale of the code and its dimension cancel: two encoders can be compared.",
)
def _check_moved(answer: Any) -> None:
    """answer(z, z_adv, y) -> the mean distance moved, in mean distances between class means."""
    y = torch.arange(30) % 3
    z = random_tensor(210, 30, 4) + 3 * torch.eye(4, dtype=torch.float64)[y]
    z_adv = z + random_tensor(211, 30, 4)
    got = _number(call(answer, z, z_adv, y))
    means = torch.stack([z[y == k].mean(0) for k in range(3)])
    far, apart = (z_adv - z).norm(dim=1), torch.pdist(means).mean()
    truth = (far.mean() / apart).reshape(1)
    mistakes = [
        (far.mean().reshape(1), "divide by the distance between classes."),
        ((z_adv - z).square().sum(1).mean().reshape(1) / apart, "a length, not its square."),
        ((z_adv.mean(0) - z.mean(0)).norm().reshape(1) / apart, "average the lengths, not the moves: they cancel."),
        (
            far.mean().reshape(1) / torch.pdist(z).mean(),
            "the distance of class means, not of images.",
        ),
        (far.mean().reshape(1) / torch.cdist(means, means).mean(), "a class's distance to itself, 0, does not count."),
        (apart / far.mean().reshape(1), "the other way round: what moved, over the unit."),
    ]
    compare(got, truth, "30 codes of 3 classes", mistakes, "mean length of the moves / mean distance of class means.")


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
        got = _number(call(answer, a, b))

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


@exercise(
    "comparison.seeds",
    "subtract seed by seed before you look at the spread.",
    "d = a - b; return d.mean(), d.min(), d.max()",
    learned="Rows that share seeds share labels and starting weights: their difference scatters less than they do.",
)
def _check_seeds(answer: Any) -> None:
    """answer(a, b) -> mean, lowest and highest difference of two rows over the same seeds, a tensor (3,)."""
    b = random_tensor(214, 5)
    a = b + 0.3 + 0.1 * random_tensor(215, 5)
    value = call(answer, a, b)
    if isinstance(value, list | tuple):
        value = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in value])
    got = returned(value, (3,), "return three numbers: mean, lowest, highest.")
    d = a - b
    mistakes = [
        (torch.stack([d.mean(), a.min() - b.min(), a.max() - b.max()]), "pair the seeds first."),
        (torch.stack([d.mean(), a.min() - b.max(), a.max() - b.min()]), "pair the seeds first."),
        (torch.stack([-d.mean(), -d.max(), -d.min()]), "the first row minus the second."),
        (torch.stack([d.mean(), d.max(), d.min()]), "the lowest before the highest."),
        (torch.stack([d.mean(), d.mean() - d.std(), d.mean() + d.std()]), "the range, not the standard deviation."),
    ]
    compare(got, torch.stack([d.mean(), d.min(), d.max()]), "five seeds", mistakes, "of the differences, seed by seed.")
