"""The adversary of a robust method: an attack, and the ball in which it searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from robrep.attacks.engine import Attack, Objective, attack_mode
from robrep.attacks.threats import Threat
from robrep.random import Seed


@dataclass(frozen=True)
class Adversary:
    """An attack and a threat model, with which every robust method finds its worst inputs.

    Args:
        attack: how the maximum is searched, such as ``PGD(10)``.
        threat: where, such as ``Linf(0.1)``.
    """

    attack: Attack
    threat: Threat

    def search(
        self,
        objective: Objective,
        x: Tensor,
        *given: Any,
        networks: Sequence[Any],
        ids: Tensor,
        seed: Seed,
        batch_norm: Literal["eval", "batch"] = "eval",
    ) -> Tensor:
        """The x' in A(x) at which the attack finds ``objective(x', *given)`` largest; like ``x``, detached.

        Args:
            objective, given: see :mod:`robrep.attacks`; gradients stop at ``given`` if you detach it.
            x: clean images in [0, 1], (N, C, H, W).
            networks: what the objective calls, or a module that holds it; :func:`attack_mode` sets their mode during
                the search.
            ids: int64 (N,), naming the examples' random streams.
            seed: seed of the random streams.
            batch_norm: see :func:`attack_mode`.
        """
        with attack_mode(*networks, batch_norm=batch_norm):
            return self.attack(objective, x, self.threat, *given, ids=ids, seed=seed)

    def worst_case(
        self,
        divergence: Callable[[Any, Any], Tensor],
        model: Callable[[Tensor], Any],
        x: Tensor,
        reference: Any,
        *,
        ids: Tensor,
        seed: Seed,
    ) -> Tensor:
        """max over x' in A(x) of divergence(reference, model(x')): a regularizer for any training loop.

        The attack sees the model in evaluation mode and the reference as a constant. The value is computed once more at
        the x' found, in the model's own mode, with gradients through both arguments.

        Args:
            divergence: ``divergence(reference, output)`` to scores, shape (N,).
            model: images (N, C, H, W) to outputs.
            x: clean images in [0, 1].
            reference: what the output at x' is compared with, most often ``model(x)``: a tensor or ``Gaussian`` of N
                rows.
            ids, seed: as for :meth:`search`.

        Returns:
            The divergence at the x' found, a lower bound of the maximum, shape (N,).
        """
        x_adv = self.search(
            lambda x_, reference_: divergence(reference_, model(x_)),
            x, reference.detach(), networks=[model], ids=ids, seed=seed,
        )  # fmt: skip
        return divergence(reference, model(x_adv))
