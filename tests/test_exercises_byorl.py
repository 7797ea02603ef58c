"""The exercises on BYORL: each passes with its solution and meets mistakes with the fitting hint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from robrep.book.exercises import check
from robrep.contrastive import effective_rank
from robrep.methods import ema_rate


def rates(steps, base):
    return [1 - (1 - base) * (math.cos(math.pi * k / steps) + 1) / 2 for k in range(steps + 1)]


def memory(steps, base):
    return math.prod(rates(steps, base)[1:])


def known(logits, y, labelled):
    made = logits.argmax(1)
    made[labelled] = y[labelled]
    return made


def meter(a, b):
    scores = -(torch.cdist(a, b) ** 2) / (2 * (a - b).square().mean())
    return scores.log_softmax(1).diagonal().mean()


def spread(a, b):
    return 1 - F.normalize(a, dim=1).mean(0).square().sum()


def most_robust_epoch(models, x, y, eps):
    """The index of the epoch whose classifier is best under attack."""
    x_adv = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(models[-1](x_adv), y)
    (slope,) = torch.autograd.grad(loss, x_adv)
    x_adv = (x + eps * slope.sign()).clamp(0, 1)
    right = []
    for model in models:
        said = model(x_adv).argmax(1)
        right.append((said == y).double().mean())
    return int(torch.stack(right).argmax())


def best_epoch(models, x, y, eps, ascend=1, made_for=None, best=torch.argmax):
    right = []
    for model in models:
        x_adv = x.clone().requires_grad_()
        loss = F.cross_entropy((model if made_for is None else models[made_for])(x_adv), y)
        (slope,) = torch.autograd.grad(loss, x_adv)
        x_adv = (x + ascend * eps * slope.sign()).clamp(0, 1)
        right.append((model(x_adv).argmax(1) == y).double().mean())
    return int(best(torch.stack(right)))


SOLUTIONS: dict[str, Any] = {
    "memory": memory,
    "pseudo_labels": known,
    "meter": meter,
    "read_few_steps": "The spreads of BYORL fall within two epochs and stay low, those of BYOL recover, so only the "
    "first collapsed; the rank was low from the first epoch on in both.",
    "best_epoch": best_epoch,
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("memory", lambda n, base: base**n, "follows the schedule"),
    ("memory", lambda n, base: math.prod(rates(n, base)[:-1]), "steps are 1 to K"),
    ("memory", lambda n, base: 1 - memory(n, base), "asked for the rest"),
    ("memory", lambda n, base: math.prod(1 - t for t in rates(n, base)[1:]), "what was there before"),
    ("memory", lambda n, base: (sum(rates(n, base)[1:]) / n) ** n, "power of their mean"),
    ("memory", lambda n, base: math.prod(base + (1 - base) * k / n for k in range(1, n + 1)), "straight line"),
    ("memory", lambda n, base: rates(n, base)[-1], "the last step alone"),
    ("memory", lambda n, base: [base], "one number"),
    ("pseudo_labels", lambda logits, y, labelled: logits.argmax(1), "known labels are kept"),
    ("pseudo_labels", lambda logits, y, labelled: y, "may not be looked at"),
    ("pseudo_labels", lambda logits, y, labelled: logits.softmax(1), "class indices"),
    ("meter", spread, "noise fills directions"),
    ("meter", lambda a, b: effective_rank(a), "noise fills directions"),
    ("meter", lambda a, b: F.cosine_similarity(a, b).mean(), "always have a large cosine"),
    ("meter", lambda a, b: -meter(a, b), "turn the sign round"),
    ("meter", lambda a, b: a.var(0).sum(), "how far the views of one image lie apart"),
    ("meter", lambda a, b: 1.0, "how far the views of one image lie apart"),
    ("meter", lambda a, b: math.nan, "not finite"),
    ("read_few_steps", "BYORL has collapsed.", "two or three sentences"),
    ("best_epoch", lambda *given: best_epoch(*given, made_for=0), "made for one epoch"),
    ("best_epoch", lambda *given: best_epoch(*given, ascend=0), "without an attack"),
    ("best_epoch", lambda *given: best_epoch(*given, best=torch.argmin), "the least robust"),
    ("best_epoch", lambda *given: 7, "counted from 0"),
]  # fmt: skip
GIVEN: dict[str, Any] = {"best_epoch": most_robust_epoch}


def test_library_answers_its_own_exercise() -> None:
    assert check("byorl.memory", lambda n, base: math.prod(ema_rate(k, n, base).item() for k in range(1, n + 1)))


@pytest.mark.parametrize("seed", range(2, 10))  # 0 and 1 are those of the general tests
def test_the_hidden_codes_separate_the_meters_for_every_seed(seed: int) -> None:
    assert check("byorl.meter", meter, seed=seed)
    for wrong in [answer for name, answer, _ in MISTAKES if name == "meter"][:3]:
        assert check("byorl.meter", wrong, seed=seed).state == "wrong"
