"""Answers to the exercises on worst-case information: solutions, plausible mistakes, and the faulty code of the bug."""

from __future__ import annotations

import math
from typing import Any

import torch

LOG2 = math.log(2)


def threshold(mean, std, bound, reach, side=min):
    def entropy(t):
        p = 1 - sum(torch.distributions.Normal(m, std).cdf(t) for m in (mean, -mean)) / 2
        return -p * p.log() - (1 - p) * (1 - p).log()

    return entropy(bound) - side(entropy(bound + reach), entropy(bound - reach))


def entropy_of_bit(mean, std, bound):
    return threshold(mean, std, bound, torch.tensor(1e3), side=lambda above, below: 0)


def remove(encoder, x, sigma, eps, steps=20):
    x_adv = x.clone()
    for k in range(steps):
        left = 1 - k / steps  # from 1 to nearly 0
        s = sigma * 3 ** max(0, 1 - 1.25 * k / steps)  # a wide kernel first
        x_adv.requires_grad_()
        z = encoder(x_adv)
        overlap = -(z[:, None] - z).square().sum(2) / (8 * s**2)
        (g,) = torch.autograd.grad(-overlap.logsumexp(1).mean(), x_adv)
        x_adv = x_adv.detach() - 0.5 * eps * left * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv


def descending(objective, steps=20, sign=-1):
    """An attack with fixed steps on an objective of codes and sigma."""

    def attack(encoder, x, sigma, eps):
        x_adv = x.clone()
        for _ in range(steps):
            x_adv.requires_grad_()
            (g,) = torch.autograd.grad(objective(encoder(x_adv), sigma), x_adv)
            x_adv = (x_adv.detach() + sign * 2.5 * eps / steps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        return x_adv

    return attack


def information(z, sigma):
    from robrep.book.exercises.worst_case_mi import noisy_information

    return noisy_information(z, sigma, torch.randn(16, *z.shape, dtype=z.dtype)).mean()


def spread(z, _):
    return (z - z.mean(0)).square().sum()


def best_answer(encoder, critic, x, eps, steps):
    x_adv, best = x.clone(), x.clone()
    lowest = x.new_full((len(x),), math.inf)
    for _ in range(steps + 1):
        x_adv.requires_grad_()
        u = critic(x_adv, encoder(x_adv))[0]
        own = u.diagonal() - u.logsumexp(1) + math.log(len(u))
        (g,) = torch.autograd.grad(own.mean(), x_adv)
        x_adv, own = x_adv.detach(), own.detach()
        better = own < lowest
        best[better], lowest[better] = x_adv[better], own[better]
        x_adv = x_adv - 2.5 * eps / steps * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return best


def best_batch(encoder, critic, x, eps, steps, keep=min):
    x_adv, found = x.clone(), []
    for _ in range(steps + 1):
        x_adv.requires_grad_()
        u = critic(x_adv, encoder(x_adv))[0]
        estimate = (u.diagonal() - u.logsumexp(1)).mean() + math.log(len(u))
        (g,) = torch.autograd.grad(estimate, x_adv)
        x_adv = x_adv.detach()
        found.append((estimate.item(), x_adv))
        x_adv = x_adv - 2.5 * eps / steps * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return keep(found, key=lambda pair: pair[0])[1]


SOLUTIONS: dict[str, Any] = {
    "threshold": threshold,
    "fano": 0.9 * math.log(10) - LOG2,
    "remove": remove,
    "read_gap": "The most robust network of this width has the most information in the worst case, but the critic also "
    "finds more in its clean logits, and the difference of the two hides it.",
    "best": best_batch,
}
GIVEN = {"best": best_answer}
MISTAKES: list[tuple[str, Any, str]] = [
    ("threshold", lambda *a: threshold(*a, side=max), "the other side removes more"),
    ("threshold", lambda *a: threshold(*a, side=lambda above, below: above), "the other side removes more"),
    ("threshold", lambda *a: threshold(*a) / LOG2, "in nats"),
    ("threshold", lambda m, s, b, r: LOG2 - entropy_of_bit(m, s, b) + threshold(m, s, b, r), "less than ln 2"),
    ("threshold", lambda m, s, b, r: entropy_of_bit(m, s, b) - threshold(m, s, b, r), "entropy that is left"),
    ("fano", 0.9 * math.log(10), "less information suffices"),
    ("fano", (0.9 * math.log(10) - LOG2) / LOG2, "in bits"),
    ("fano", "one", "the number itself"),
    ("remove", descending(information), "almost no gradient"),
    ("remove", descending(spread), "no two became alike"),
    ("remove", descending(spread, sign=1), "wrong sign"),
    ("remove", lambda f, x, sigma, eps: x, "almost no gradient"),
    ("remove", descending(spread, steps=21), "20 in all"),
    ("remove", lambda f, x, sigma, eps: remove(f, x, sigma, 2 * eps), "project back"),
    ("read_gap", "It is more vulnerable.", "two or three sentences"),
    ("best", lambda *a: best_batch(*a, keep=lambda found, key: found[-1]), "the last batch"),
    ("best", lambda *a: best_batch(*a, keep=max), "highest estimate"),
    ("best", lambda *a: best_batch(*a, keep=lambda found, key: found[1]), "after one step"),
]
