"""The exercises on the comparison: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

from typing import Any

import torch

from robrep.book.comparison import passes


def ratio(z, z_adv, y, length=lambda v: v.norm(dim=1)):
    means = torch.stack([z[y == k].mean(0) for k in y.unique()])
    return length(z_adv - z).mean() / torch.pdist(means).mean()


def paired(a, b):
    return torch.stack([(a - b).mean(), (a - b).min(), (a - b).max()])


def spearman(a, b):
    from scipy.stats import spearmanr

    return float(spearmanr(a.numpy(), b.numpy()).statistic)


SOLUTIONS: dict[str, Any] = {
    "passes": lambda steps: passes("byorl", steps),
    "moved": ratio,
    "rank": spearman,
    "seeds": paired,
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("passes", lambda steps: steps + 3, "both views are attacked"),
    ("passes", lambda steps: 2 * steps + 2, "target looks at both"),
    ("passes", lambda steps: [steps], "one number"),
    ("moved", lambda z, z_adv, y: (z_adv - z).norm(dim=1).mean(), "divide by the distance"),
    ("moved", lambda z, z_adv, y: ratio(z, z_adv, y, lambda v: v.square().sum(1)), "not its square"),
    ("moved", lambda z, z_adv, y: 1 / ratio(z, z_adv, y), "other way round"),
    ("rank", lambda a, b: torch.corrcoef(torch.stack([a, b]))[0, 1], "not the numbers"),
    ("rank", lambda a, b: torch.corrcoef(torch.stack([a, b]).argsort(1).double())[0, 1], "its own argsort"),
    ("rank", lambda a, b: -spearman(a, b), "same way round"),
    ("rank", lambda a, b: a, "one number"),
    ("seeds", lambda a, b: torch.stack([(a - b).mean(), a.min() - b.max(), a.max() - b.min()]), "pair the seeds"),
    ("seeds", lambda a, b: paired(b, a), "first row minus"),
    ("seeds", lambda a, b: (a - b).mean(), "three numbers"),
]
