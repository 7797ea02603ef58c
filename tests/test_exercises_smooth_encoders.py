"""The exercises on smooth encoders: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robrep.book.exercises import check
from robrep.gaussians import wasserstein2


def strength(p, q, rho):
    return rho / (p.scale * q.scale * (1 - rho**2))


def scale(gamma):
    return (1 + gamma) / (1 + 2 * gamma)


def by_the_spread(p):
    return (p.mean.var(0) + p.scale.square().mean(0)).sqrt()


def climb(encoder, x, eps, distance, steps=20, start=1.0, ascend=1, ball=True, box=True):
    """Sign steps up a distance of the codes p and q."""
    with torch.no_grad():
        p = encoder(x)
    x_adv = (x + start * eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (slope,) = torch.autograd.grad(distance(p, encoder(x_adv)).sum(), x_adv)
        x_adv = x_adv.detach() + ascend * 2.5 * eps / 20 * slope.sign()
        x_adv = x_adv.clamp(x - eps, x + eps) if ball else x_adv
        x_adv = x_adv.clamp(0, 1) if box else x_adv
    return x_adv


def in_units(unit):
    return lambda p, q: ((q.mean - p.mean) / unit(p)).square().sum(1)


def unseen_task(encoder, x, eps, **changes):
    return climb(encoder, x, eps, in_units(by_the_spread), **changes)


def draw_pair(p, q, gamma, noise_a, noise_b):
    """Codes z_a and z_b, drawn from the best coupling of p and q."""
    S_a, S_b = p.scale**2, q.scale**2
    u = torch.sqrt(1 + 4 * gamma**2 * S_a * S_b)
    psi = (u - 1) / (2 * gamma)
    rho = psi / (p.scale * q.scale)
    z_a = p.mean + p.scale * noise_a
    mixed = rho * noise_a + (1 - rho) * noise_b
    z_b = q.mean + q.scale * mixed
    return z_a, z_b


def pair(share=lambda rho: (1 - rho**2).sqrt(), follow=lambda rho: rho, own=1.0):
    """``draw_pair`` with other factors on the two noises of z_b."""

    def draw(p, q, gamma, noise_a, noise_b):
        S = p.scale**2 * q.scale**2
        rho = (torch.sqrt(1 + 4 * gamma**2 * S) - 1) / (2 * gamma) / S.sqrt()
        return p.mean + own * p.scale * noise_a, q.mean + q.scale * (follow(rho) * noise_a + share(rho) * noise_b)

    return draw


SOLUTIONS: dict[str, Any] = {
    "strength": strength,
    "scale": scale,
    "unseen_task": unseen_task,
    "read_gamma": "At γ = 1000 the code has lost the fine coordinates that the digits need, even without an attack, "
    "while the colour, which holds most of the variance, is kept and is harder to move than at γ = 100.",
    "pair": pair(),
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("strength", lambda p, q, rho: rho / ((p.scale * q.scale) ** 2 * (1 - rho**2)), "not by the variances"),
    ("strength", lambda p, q, rho: rho / (1 - rho**2) + 0 * p.scale, "scales are missing"),
    ("strength", lambda p, q, rho: rho / (p.scale * q.scale), "without a bound"),
    ("strength", lambda p, q, rho: rho / (p.scale * q.scale * (1 - rho)), "not 1 - rho"),
    ("strength", lambda p, q, rho: rho / ((p.scale * q.scale) ** 2 - rho**2) * p.scale * q.scale, "is a correlation"),
    ("strength", lambda p, q, rho: 1 / strength(p, q, rho), "one over gamma"),
    ("strength", lambda p, q, rho: strength(p, q, rho).sum(-1), "each pair and dimension"),
    ("scale", lambda g: 1.0, "right only without coupling"),
    ("scale", lambda g: scale(g) ** 0.5, "return the variance"),
    ("scale", lambda g: [1], "one number"),
    ("unseen_task", lambda e, x, eps: climb(e, x, eps, wasserstein2), "that react most"),
    ("unseen_task", lambda e, x, eps: climb(e, x, eps, in_units(lambda p: p.scale)), "that react most"),
    ("unseen_task", lambda e, x, eps: climb(e, x, eps, in_units(lambda p: p.mean.std(0))), "noise is large"),
    ("unseen_task", lambda e, x, eps: unseen_task(e, x, eps, start=0.0), "hardly move"),
    ("unseen_task", lambda e, x, eps: unseen_task(e, x, eps, ascend=-1), "hardly move"),
    ("unseen_task", lambda e, x, eps: unseen_task(e, x, eps, steps=2), "hardly move"),
    ("unseen_task", lambda e, x, eps: unseen_task(e, x, eps, steps=40), "21 in all"),
    ("unseen_task", lambda e, x, eps: unseen_task(e, x, eps, ball=False), "project back"),
    ("unseen_task", lambda e, x, eps: unseen_task(e, x, eps, box=False), "left [0, 1]"),
    ("read_gamma", "At 1000 the digits are lost.", "two or three sentences"),
    ("pair", pair(lambda rho: 1.0), "explained by z_a"),
    ("pair", pair(lambda rho: (1 - rho).sqrt()), "not 1 - rho"),
    ("pair", pair(lambda rho: 0 * rho), "does not explain is missing"),
    ("pair", pair(lambda rho: 0 * rho, lambda rho: 1.0), "the Monge map"),
    ("pair", pair(lambda rho: 1.0, lambda rho: 0 * rho), "are independent"),
    ("pair", pair(own=2.0), "z_a was right"),
    ("pair", lambda *given: pair()(*given)[1], "two tensors"),
]  # fmt: skip
GIVEN: dict[str, Any] = {"pair": draw_pair}


@pytest.mark.parametrize("seed", range(2, 10))  # 0 and 1 are those of the general tests
def test_the_hidden_task_separates_the_yardsticks_for_every_seed(seed: int) -> None:
    assert check("smooth_encoders.unseen_task", unseen_task, seed=seed)
    for wrong in [answer for name, answer, _ in MISTAKES if name == "unseen_task"][:3]:
        assert check("smooth_encoders.unseen_task", wrong, seed=seed).state == "wrong"
