"""The exercises on BYORL: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from robrep.losses import cosine_distance
from robrep.methods import ema_rate


def adversary(predict, v, z, eps, steps, sign=1, ball=True, box=True, detach=True):
    v_adv = (v + eps * (2 * torch.rand_like(v) - 1)).clamp(0, 1)
    for _ in range(steps):
        v_adv.requires_grad_()
        (slope,) = torch.autograd.grad((2 - 2 * F.cosine_similarity(predict(v_adv), z)).sum(), v_adv)
        v_adv = v_adv.detach() + sign * 2.5 * eps / steps * slope.sign()
        v_adv = v_adv.clamp(v - eps, v + eps) if ball else v_adv
        v_adv = v_adv.clamp(0, 1) if box else v_adv
    return v_adv if detach else v_adv.requires_grad_()


def known(logits, y, labelled):
    made = logits.argmax(1)
    made[labelled] = y[labelled]
    return made


def variance(z):
    return F.normalize(z, dim=1).var(0, unbiased=False)


SOLUTIONS: dict[str, Any] = {
    "distance": cosine_distance,
    "rate": ema_rate,
    "target": lambda xi, theta, tau: [tau * x + (1 - tau) * t.detach() for x, t in zip(xi, theta, strict=True)],
    "adversary": adversary,
    "pseudo_labels": known,
    "spread": lambda z: variance(z).sum(),
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("distance", lambda q, z: (q - z).square().sum(1), "normalise both"),
    ("distance", lambda q, z: -F.cosine_similarity(q, z), "2 - 2 cos"),
    ("distance", lambda q, z: cosine_distance(q, z).mean(), "one number for each"),
    ("rate", lambda k, n, base: base, "does not stay"),
    ("rate", lambda k, n, base: base + (1 - base) * k / n, "straight line"),
    ("rate", lambda k, n, base: [base], "one number"),
    ("target", lambda xi, theta, tau: [(1 - tau) * x + tau * t.detach() for x, t in zip(xi, theta, strict=True)],
     "weight of the old target"),
    ("target", lambda xi, theta, tau: [tau * x + (1 - tau) * t for x, t in zip(xi, theta, strict=True)], "detach"),
    ("target", lambda xi, theta, tau: xi, "did not move"),
    ("adversary", lambda *a: adversary(*a, sign=-1), "as eq. 6 is printed"),
    ("adversary", lambda p, v, z, eps, n: adversary(p, v, z, eps / 20, n), "where the last one ended"),
    ("adversary", lambda *a: adversary(*a, ball=False), "project back"),
    ("adversary", lambda *a: adversary(*a, box=False), "left [0, 1]"),
    ("adversary", lambda *a: adversary(*a, detach=False), "detach"),
    ("pseudo_labels", lambda logits, y, labelled: logits.argmax(1), "known labels are kept"),
    ("pseudo_labels", lambda logits, y, labelled: y, "may not be looked at"),
    ("pseudo_labels", lambda logits, y, labelled: logits.softmax(1), "class indices"),
    ("spread", lambda z: z.var(0, unbiased=False).sum(), "normalise each"),
    ("spread", lambda z: variance(z).mean(), "not their mean"),
    ("spread", lambda z: variance(z).sqrt().sum(), "not standard deviations"),
]  # fmt: skip
