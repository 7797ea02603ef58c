"""SimCLR + Urkle (Nguyen et al. 2022), contrastive learning of a robust code, and its baselines SimCLR and RoCL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat, attack_mode, batch_objective
from robrep.augmentations import Augmentation
from robrep.checks import nonnegative
from robrep.contrastive import Denominator, nt_xent
from robrep.gaussians import Gaussian, kl
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold, noise


class SimCLR(nn.Module):
    """Contrastive learning: NT-Xent of two augmented views of each image (Chen et al. 2020).

    Args:
        encoder: maps images to codes, a tensor (N, D) or a ``Gaussian``, which is sampled once for each view.
        projector: maps codes to the vectors that NT-Xent compares.
        augment: ``augment(x, ids, seed)``, see :mod:`robrep.augmentations`.
        temperature, denominator: as for :func:`robrep.contrastive.nt_xent`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        augment: Augmentation,
        *,
        temperature: float = 0.5,
        denominator: Denominator = "all_but_self",
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.augment = encoder, projector, augment
        self.temperature, self.denominator = temperature, denominator

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        views, view_ids = self.views(x, ids, seed)
        return {"nt_xent": self.contrast(self.encoder(views), view_ids, seed, n=2).mean()}

    def views(self, x: Tensor, ids: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """All first views, then all second ones, (2 N, C, H, W), and the ids of their random streams, (2 N,)."""
        view_ids = torch.cat([2 * ids, 2 * ids + 1])
        return self.augment(torch.cat([x, x]), view_ids, fold(seed, "views")), view_ids

    def sample(self, code: Gaussian | Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """One sample of each code; a deterministic code is returned as it is."""
        return code.sample(noise(fold(seed, "z"), ids, code.mean.shape[1:])) if isinstance(code, Gaussian) else code

    def contrast(self, code: Gaussian | Tensor, ids: Tensor, seed: Seed, n: int) -> Tensor:
        """NT-Xent of n views, from their codes, view by view: (n N, D) to (N,)."""
        return self.nt_xent(self.projector(self.sample(code, ids, seed)).chunk(n))

    def nt_xent(self, views: tuple[Tensor, ...]) -> Tensor:
        """NT-Xent with this method's settings: n views of shape (N, D) to (N,)."""
        return nt_xent(views, self.temperature, denominator=self.denominator)


class RoCL(SimCLR):
    """Robust contrastive learning: the third of three views is an adversary of the first (Kim et al. 2020).

    The adversary maximises NT-Xent with the second view. A further, small term is NT-Xent of the adversary and the
    second view alone.

    Args:
        encoder, projector, augment: as for :class:`SimCLR`.
        attack, threat: the search for the adversary, and the set in which it stays.
        weight: weight of the further term, at least 0. RoCL's code has 1 / 256 beside a loss that is summed over an
            anchor's two positives; beside their mean, that is 1 / 512.
        settings: ``temperature`` and ``denominator`` of :class:`SimCLR`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        augment: Augmentation,
        attack: Attack,
        threat: Threat,
        *,
        weight: float = 1 / 512,
        **settings: Any,
    ) -> None:
        super().__init__(encoder, projector, augment, **settings)
        self.adversary, self.weight = Adversary(attack, threat), nonnegative("weight", weight)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x_1, x_2 = self.views(x, ids, seed)[0].chunk(2)
        x_adv = self.worst(x_1, x_2, ids, seed)
        three_ids = torch.cat([3 * ids, 3 * ids + 1, 3 * ids + 2])
        code = self.encoder(torch.cat([x_1, x_2, x_adv]))
        g_1, g_2, g_adv = self.projector(self.sample(code, three_ids, seed)).chunk(3)
        return {
            "nt_xent": self.nt_xent((g_1, g_2, g_adv)).mean(),
            "adversarial": self.weight * self.nt_xent((g_adv, g_2)).mean(),
        }

    def worst(self, x_1: Tensor, x_2: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The x' around x_1 that is hardest to match to x_2, the other view, among all images of the batch.

        A ``Gaussian`` code is compared by its mean. Source: Kim et al. 2020, the instance-wise attack.
        """
        contrast = batch_objective(lambda x_, g_2: self.nt_xent((self.project(x_), g_2)))
        with attack_mode(self), torch.no_grad():
            g_2 = self.project(x_2)
        return self.adversary.search(contrast, x_1, g_2, networks=[self], ids=ids, seed=seed)

    def project(self, x: Tensor) -> Tensor:
        """The projected codes that NT-Xent compares, (N, P); of a ``Gaussian``, the mean is projected."""
        code = self.encoder(x)
        return self.projector(code.mean if isinstance(code, Gaussian) else code)


class SimCLRUrkle(SimCLR):
    """SimCLR with the regularizer Urkle on its code: eq. 12 of Nguyen et al. 2022.

    Each of the two views has its own adversary, the image in its ball whose code diverges most. NT-Xent compares all
    four views, the regularizer both pairs. Batch norm sees the four views as one batch.

    Args:
        encoder: maps images to a ``Gaussian``.
        projector, augment: as for :class:`SimCLR`.
        attack, threat: the search for the adversaries, and the set in which each stays.
        beta_robust: weight of the regularizer, at least 0.
        settings: ``temperature`` and ``denominator`` of :class:`SimCLR`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        augment: Augmentation,
        attack: Attack,
        threat: Threat,
        *,
        beta_robust: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(encoder, projector, augment, **settings)
        self.adversary, self.beta_robust = Adversary(attack, threat), nonnegative("beta_robust", beta_robust)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        views, view_ids = self.views(x, ids, seed)
        code = self.encoder(torch.cat([views, self.worst(views, view_ids, seed)]))
        p, p_adv = code.chunk(2)
        four_ids = torch.cat([2 * view_ids, 2 * view_ids + 1])
        return {
            "nt_xent": self.contrast(code, four_ids, seed, n=4).mean(),
            "urkle": self.beta_robust * kl(p, p_adv).mean(),
        }

    def worst(self, views: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The image of largest KL[p(z|v) || p(z|v')] in the ball around each view v; like ``views``, detached.

        The clean code is computed in evaluation mode, like every code during an attack: with batch norm, training mode
        is a different function.
        """
        with attack_mode(self), torch.no_grad():
            p = self.encoder(views)
        return self.adversary.search(
            lambda v_, p_: kl(p_, self.encoder(v_)), views, p, networks=[self], ids=ids, seed=seed
        )
