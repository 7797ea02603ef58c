"""Bootstrap Your Own Robust Latents (BYORL, Gowal et al. 2021), and its counterpart without an attack, BYOL."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat
from robrep.augmentations import Augmentation
from robrep.losses import cosine_distance
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold


def ema_rate(step: int | Tensor, steps: int, base: float = 0.996) -> Tensor:
    """The rate tau of the moving average after ``step`` of ``steps``, as a float64 scalar.

    It rises along half a cosine, from ``base`` at the first step to 1 at the end. ``step`` is a number or a scalar
    tensor.

    Source: Grill et al. 2020, 1 - (1 - base) (cos(pi k / K) + 1) / 2.
    """
    progress = torch.as_tensor(step).double() / steps
    return 1 - (1 - base) * ((math.pi * progress).cos() + 1) / 2


class BYOL(nn.Module):
    """Predict, from one view of an image, the target network's projection of the other view (Grill et al. 2020).

    The target is a slow copy of the online encoder and projector. It gets no gradient; its parameters are an
    exponential moving average of the online ones (``after_step``), and its batch norm has statistics of its own.
    Evaluate the *online* encoder.

    Args:
        encoder: images to codes (N, D); deterministic.
        projector: codes to projections (N, P).
        predictor: projections to predictions (N, P). With ``nn.Identity()`` there is no predictor, and the
            projections may collapse.
        augment: ``augment(x, ids, seed)``, see :mod:`robrep.augmentations`.
        base_rate: tau of the moving average at the first step, in 0 ... 1; see :func:`ema_rate`.

    Raises:
        ValueError: ``base_rate`` is not in 0 ... 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        augment: Augmentation,
        *,
        base_rate: float = 0.996,
    ) -> None:
        super().__init__()
        if not 0 <= base_rate <= 1:
            raise ValueError(f"base_rate is {base_rate}, expected a number in 0 ... 1")
        self.encoder, self.projector, self.predictor, self.augment = encoder, projector, predictor, augment
        self.base_rate = base_rate
        self.target = copy.deepcopy(nn.Sequential(encoder, projector)).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        v_1, v_2 = self.views(x, ids, seed)
        z_1, z_2 = self.project(v_1), self.project(v_2)
        return {"byol": (self.distance(v_1, z_2) + self.distance(v_2, z_1)).mean()}

    def views(self, x: Tensor, ids: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """Two views of each image, each of the shape of ``x``."""
        seed = fold(seed, "views")
        return self.augment(x, 2 * ids, seed), self.augment(x, 2 * ids + 1, seed)

    def predict(self, v: Tensor) -> Tensor:
        """The online network's prediction q(g(f(v))), (N, P)."""
        return self.predictor(self.projector(self.encoder(v)))

    @torch.no_grad()
    def project(self, v: Tensor) -> Tensor:
        """The target network's projection g(f(v)), (N, P), without a gradient."""
        return self.target(v)

    def distance(self, v: Tensor, z: Tensor) -> Tensor:
        """2 - 2 cos of the prediction at the view ``v`` and the target's projection ``z``, (N,), in 0 ... 4."""
        return cosine_distance(self.predict(v), z)

    @torch.no_grad()
    def after_step(self, step: int | Tensor, steps: int) -> None:
        """Move the target's parameters by 1 - tau towards the online ones; its batch statistics are not changed."""
        online = nn.Sequential(self.encoder, self.projector)
        move = 1 - ema_rate(step, steps, self.base_rate)
        for xi, theta in zip(self.target.parameters(), online.parameters(), strict=True):
            xi.lerp_(theta.to(xi), move.to(xi))


class BYORL(BYOL):
    """BYOL trained on the worst image in the ball around each online view (Gowal et al. 2021, eq. 5 and 7).

    The attack passes through the online network only; the target's projection is fixed. During the attack, batch norm
    uses the statistics of the batch and does not update its running averages. The attack *lowers* the cosine, which
    raises the loss; the step printed in eq. 6 of the paper raises the cosine.

    Args:
        encoder, projector, predictor, augment, base_rate: as for :class:`BYOL`.
        attack: ``PGD`` or ``APGD``, with a random start: at the centre of the ball the gradient is rounding noise
            if prediction and target agree.
        threat: the ball around each view.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        augment: Augmentation,
        attack: Attack,
        threat: Threat,
        *,
        base_rate: float = 0.996,
    ) -> None:
        super().__init__(encoder, projector, predictor, augment, base_rate=base_rate)
        self.adversary = Adversary(attack, threat)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        v_1, v_2 = self.views(x, ids, seed)
        z_1, z_2 = self.project(v_1), self.project(v_2)
        v_1 = self.worst(v_1, z_2, 2 * ids, seed)
        v_2 = self.worst(v_2, z_1, 2 * ids + 1, seed)
        return {"byorl": (self.distance(v_1, z_2) + self.distance(v_2, z_1)).mean()}

    def worst(self, v: Tensor, z: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The image in A(v) whose prediction disagrees most with the target ``z`` of the other view; like ``v``."""
        search = self.adversary.search
        return search(self.distance, v, z, networks=[self], ids=ids, seed=seed, batch_norm="batch")
