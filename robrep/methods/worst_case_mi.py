"""Worst-case mutual information (Zhu et al. 2020): maximise an estimate of I(x'; g(x')) at the worst x'.

The baseline, Deep InfoMax, maximises it at x.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat, batch_objective
from robrep.checks import one_of
from robrep.information import ESTIMATORS, information
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold


def information_attack(
    encoder: Callable[[Tensor], Tensor],
    critic: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    adversary: Adversary,
    *,
    estimator: str = "dv",
    detached: bool = True,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """The x' in A(x), for the whole batch, at which the estimate of I(x'; g(x')) is smallest; like ``x``, detached.

    The estimate belongs to the batch, so every image has the same score: an attack that keeps its best iterate keeps
    one for all images. Encoder and critic are in evaluation mode during the search.

    Args:
        encoder: images to codes (N, D).
        critic: images and codes to scores (L, N, N).
        x: images in [0, 1].
        adversary: how and where the minimum is searched.
        estimator: a name of :data:`robrep.information.ESTIMATORS`.
        detached: the critic's image input counts as a constant, so that the gradient reaches x' only through its code,
            as in the released code; False lets it through both.
        ids: int64 (N,), naming the examples' random streams.
        seed: seed of the random streams.

    Source: Zhu et al. 2020, eq. 4.3.
    """

    @batch_objective
    def objective(x_: Tensor) -> Tensor:
        scores = critic(x_.detach() if detached else x_, encoder(x_))
        return -information(scores, estimator).expand(len(x_))

    return adversary.search(objective, x, networks=[encoder, critic], ids=ids, seed=seed)


class InfoMax(nn.Module):
    """Deep InfoMax without its prior and its global term: encoder and critic together maximise the estimate (eq. 5.1).

    Args:
        encoder: images to codes (N, D).
        critic: images and codes to scores (L, N, N), such as :class:`robrep.encoders.Critic`.
        estimator: a name of :data:`robrep.information.ESTIMATORS`.
        augment: ``augment(x, ids, seed)`` to images in [0, 1], applied before everything else; None for none.

    Source: Hjelm et al. 2019; Zhu et al. 2020, eq. 5.1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        critic: nn.Module,
        estimator: str = "dv",
        augment: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.critic, self.augment = encoder, critic, augment
        self.estimator = one_of("estimator", estimator, ESTIMATORS)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        return {"minus_information": -self.information(self.augmented(x, ids, seed))}

    def augmented(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The images that this step sees, before any attack."""
        return x if self.augment is None else self.augment(x, ids, fold(seed, "augment"))

    def information(self, x: Tensor) -> Tensor:
        """The estimate of I(x; g(x)) on the batch, a scalar."""
        return information(self.critic(x, self.encoder(x)), self.estimator)


class WorstCaseInfoMax(InfoMax):
    """Encoder and critic maximise the estimate at the worst x' in the ball: eq. 5.4 of Zhu et al. 2020, beta = 1.

    After the attack one simultaneous step of both, on the attacked batch alone; x' counts as a constant.

    Args:
        encoder, critic, estimator, augment: as for :class:`InfoMax`.
        attack, threat: how and where the estimate is made small. The released code takes PGD without a random start
            and keeps the best iterate; the gradient does not vanish at x, so that is possible here.
        detached: see :func:`information_attack`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        critic: nn.Module,
        attack: Attack,
        threat: Threat,
        estimator: str = "dv",
        detached: bool = True,
        augment: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    ) -> None:
        super().__init__(encoder, critic, estimator, augment)
        self.adversary, self.detached = Adversary(attack, threat), detached

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x_adv = information_attack(
            self.encoder, self.critic, self.augmented(x, ids, seed), self.adversary,
            estimator=self.estimator, detached=self.detached, ids=ids, seed=seed,
        )  # fmt: skip
        return {"minus_information": -self.information(x_adv)}
