"""Threat models and attacks: find the input inside the ball that makes an objective largest.

All attacks share one call shape::

    x_adv = attack(objective, x, threat, *given, ids=None, seed=0, start=None)

``objective(x', *given)`` gives one score for each example, to be made large, or (scores, done), where ``done`` says
which examples need no more. ``given`` are tensors with one row for each example, or tuples of them (a clean
``Gaussian``, labels). Random numbers come from (seed, id), so what happens to an example is independent of the rest of
its batch. No attack touches parameters' gradients, batch-norm running statistics, train/eval mode or the global random
state; wrap the call in :func:`attack_mode` to attack a model in evaluation mode. :class:`Adversary` does that, and is
what training methods hold.
"""

from __future__ import annotations

from robrep.attacks.adversary import Adversary
from robrep.attacks.apgd import APGD
from robrep.attacks.engine import Attack, Objective, attack_mode, batch_objective, gradient, random_objective, scores
from robrep.attacks.pgd import FGSM, PGD
from robrep.attacks.square import Square
from robrep.attacks.threats import L2, Linf, Threat

__all__ = [
    "APGD", "Adversary", "Attack", "FGSM", "L2", "PGD", "Linf", "Objective", "Square", "Threat", "attack_mode",
    "batch_objective", "gradient", "random_objective", "scores",
]  # fmt: skip
