"""The exercises on smooth encoders: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from robrep.book.exercises import check
from robrep.gaussians import entropic_wasserstein, optimal_coupling, wasserstein2


def w2(p, q):
    return ((p.mean - q.mean) ** 2 + (p.scale - q.scale) ** 2).sum(-1)


def coupling(p, q, gamma):
    product = p.scale**2 * q.scale**2
    return (torch.sqrt(1 + 4 * gamma**2 * product) - 1) / (2 * gamma)


def entropic(p, q, gamma):
    a, b, psi = p.scale**2, q.scale**2, coupling(p, q, gamma)
    cost = (p.mean - q.mean) ** 2 + a + b - 2 * psi
    return (gamma / 2 * cost - math.log(2 * math.pi * math.e) - 0.5 * torch.log(a * b - psi**2)).sum(-1)


def scale(gamma):
    return (1 + gamma) / (1 + 2 * gamma)


def select(encoder, x, eps, steps, start=1.0, ball=True, box=True, ascend=1):
    p = encoder(x)
    x_adv = x + start * eps * (2 * torch.rand_like(x) - 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(w2(p.detach(), encoder(x_adv)).sum(), x_adv)
        x_adv = x_adv + ascend * 2.5 * eps / steps * g.sign()
        x_adv = x_adv.clamp(x - eps, x + eps) if ball else x_adv
        x_adv = x_adv.clamp(0, 1) if box else x_adv
    return x_adv.detach()


SOLUTIONS: dict[str, Any] = {
    "w2": w2, "coupling": coupling, "entropic": entropic, "beta": 2, "scale": scale, "select": select,
}  # fmt: skip
MISTAKES: list[tuple[str, Callable | Any, str]] = [
    ("w2", lambda p, q: w2(p, q).sqrt(), "asks for its square"),
    ("w2", lambda p, q: (p.mean - q.mean).square().sum(-1), "stretching costs too"),
    ("w2", lambda p, q: ((p.mean - q.mean) ** 2 + (p.scale**2 - q.scale**2) ** 2).sum(-1), "not of the variances"),
    ("w2", lambda p, q: ((p.mean - q.mean) ** 2 + p.scale**2 + q.scale**2).sum(-1), "independent"),
    ("w2", lambda p, q: (p.mean - q.mean) ** 2, "sum over the last axis"),
    ("coupling", lambda p, q, g: -coupling(p, q, g) - 1 / g, "the other root"),
    ("coupling", lambda p, q, g: p.scale * q.scale, "Monge"),
    ("coupling", lambda p, q, g: coupling(p, q, g) / (p.scale * q.scale), "correlation"),
    ("coupling", lambda p, q, g: coupling(p, q, g) * 2 * g, "divide by 2 gamma"),
    ("entropic", lambda p, q, g: entropic(p, q, g) - g / 2 * ((p.mean - q.mean) ** 2).sum(-1), "slip in the paper"),
    ("entropic", lambda p, q, g: g / 2 * w2(p, q), "gamma / 2 times"),
    ("entropic", lambda p, q, g: entropic(p, q, g) + p.mean.shape[1] * math.log(2 * math.pi * math.e), "constant"),
    ("beta", 1, "count both points"),
    ("beta", 3.0, "collect"),
    ("beta", "two", "the number itself"),
    ("scale", lambda g: 1.0, "right only without coupling"),
    ("scale", lambda g: scale(g) ** 0.5, "return the variance"),
    ("scale", lambda g: [1], "one number"),
    ("select", lambda e, x, eps, n: select(e, x, eps, n, start=0.0), "start at random"),
    ("select", lambda e, x, eps, n: select(e, x, eps, n, ball=False), "project back"),
    ("select", lambda e, x, eps, n: select(e, x, eps, n, box=False), "left [0, 1]"),
    ("select", lambda e, x, eps, n: select(e, x, eps, n, ascend=-1), "ascend"),
    ("select", lambda e, x, eps, n: w2(e(x), e(select(e, x, eps, n))), "return the images"),
    ("select", lambda e, x, eps, n: select(e, x, eps, n).requires_grad_(), "detach"),
]  # fmt: skip


def test_library_answers_its_own_exercises() -> None:
    for name, answer in (("w2", wasserstein2), ("coupling", optimal_coupling), ("entropic", entropic_wasserstein)):
        assert check(f"smooth_encoders.{name}", answer)
