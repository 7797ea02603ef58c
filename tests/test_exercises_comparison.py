"""Answers to the exercises on the comparison: solutions, plausible mistakes, and the faulty code of the bug."""

from __future__ import annotations

from typing import Any

import torch

from robrep.book.exercises.comparison import moved


def spearman(a, b):
    ranks = torch.stack([a, b]).argsort(1).argsort(1).double()
    return torch.corrcoef(ranks)[0, 1]


def meter(f, x, y, eps):
    with torch.no_grad():
        z = f(x)
    means = torch.stack([z[y == k].mean(0) for k in range(4)])
    within = (z - means[y]).T.cov()
    unit = torch.linalg.cholesky(torch.linalg.inv(within))  # lengths of z @ unit are in units of that scatter
    distance = torch.cdist(z @ unit, means @ unit)
    distance[range(len(y)), y] = torch.inf
    way = (means[distance.argmin(1)] - means[y]) @ unit  # to the nearest other class
    x_adv = x.clone()
    for k in range(20):
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad((f(x_adv) @ unit * way).sum(), x_adv)
        x_adv = (x_adv.detach() + eps * (1 - k / 20) * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    with torch.no_grad():
        covered = ((f(x_adv) - z) @ unit * way).sum(1) / way.square().sum(1)
    return covered.mean().item()


def by_noise(f, x, y, eps):
    with torch.no_grad():
        z, z_noise = f(x), f((x + eps * torch.randn_like(x).sign()).clamp(0, 1))
    means = torch.stack([z[y == k].mean(0) for k in range(4)])
    return ((z_noise - z).norm(dim=1).mean() / torch.pdist(means).mean()).item()


def without_unit(f, x, y, eps):
    with torch.no_grad():
        z = f(x)
    x_adv = x + eps * (2 * torch.rand_like(x) - 1)
    for _ in range(20):
        x_adv = x_adv.clamp(0, 1).requires_grad_()
        (g,) = torch.autograd.grad((f(x_adv) - z).square().sum(), x_adv)
        x_adv = (x_adv.detach() + eps / 8 * g.sign()).clamp(x - eps, x + eps)
    with torch.no_grad():
        return (f(x_adv.clamp(0, 1)) - z).norm(dim=1).mean().item()


def difference_answer(right_a, right_b, draws=1000):
    n = len(right_a)
    a, b = right_a.double(), right_b.double()
    differences = []
    for _ in range(draws):
        sample_a = a[torch.randint(n, (n,))]
        sample_b = b[torch.randint(n, (n,))]
        differences.append(sample_a.mean() - sample_b.mean())
    d = torch.stack(differences)
    return torch.stack([a.mean() - b.mean(), d.quantile(0.025), d.quantile(0.975)])


def paired_difference(right_a, right_b, draws=1000, outside=0.05):
    n = len(right_a)
    a, b = right_a.double(), right_b.double()
    differences = []
    for _ in range(draws):
        i = torch.randint(n, (n,))
        differences.append(a[i].mean() - b[i].mean())
    d = torch.stack(differences)
    return torch.stack([a.mean() - b.mean(), d.quantile(outside / 2), d.quantile(1 - outside / 2)])


SOLUTIONS: dict[str, Any] = {
    "passes": lambda K, R: R * K + R / 2 + 0.5 + 2,
    "rank": spearman,
    "meter": meter,
    "read_seconds": "The rows that are attacked in training take less time because they see fewer epochs, so they "
    "would gain if all rows had the same seconds.",
    "difference": paired_difference,
}
GIVEN = {"difference": difference_answer}
MISTAKES: list[tuple[str, Any, str]] = [
    ("passes", lambda K, R: R * K + R / 2 + 2, "the target looks at one view"),
    ("passes", lambda K, R: R * K + 2.5, "looked at once more"),
    ("passes", lambda K, R: R * K + R + 2.5, "takes no gradient"),
    ("passes", lambda K, R: 2 * R * K + R / 2 + 2.5, "only one of the two"),
    ("passes", lambda K, R: [K], "one number"),
    ("rank", lambda a, b: torch.corrcoef(torch.stack([a, b]))[0, 1], "not the numbers"),
    ("rank", lambda a, b: torch.corrcoef(torch.stack([a, b]).argsort(1).double())[0, 1], "its own argsort"),
    ("rank", lambda a, b: -spearman(a, b), "same way round"),
    ("rank", lambda a, b: a, "one number"),
    ("meter", lambda f, x, y, eps: moved(f, x, y, eps), "where no class lies"),
    ("meter", by_noise, "where no class lies"),
    ("meter", without_unit, "grows with the scale"),
    ("meter", lambda *given: -meter(*given), "turn it round"),
    ("meter", lambda f, x, y, eps: [meter(f, x, y, eps) for _ in range(2)], "22 in all"),
    ("read_seconds", "They are faster.", "two or three sentences"),
    ("difference", lambda a, b: paired_difference(b, a), "not b minus a"),
    ("difference", lambda a, b: paired_difference(a, b, outside=0.1), "2.5 %"),
    ("difference", lambda a, b: paired_difference(a, b)[[0, 2, 1]], "comes first"),
    ("difference", lambda a, b: paired_difference(a, b)[:2], "three numbers"),
]
