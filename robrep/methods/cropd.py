"""CRoPD (Liu et al. 2025): pre-processors for a frozen foundation model, the rival methods, and the robust head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat, attack_mode, batch_objective
from robrep.augmentations import Augmentation
from robrep.checks import nonnegative
from robrep.contrastive import adversarial_contrast
from robrep.encoders import MaskedAutoEncoder
from robrep.losses import cross_entropy, squared_error
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold


def pixel_error(output: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over the pixels and channels of each image; both (N, C, H, W), result (N,)."""
    return squared_error(output, x) / x[0].numel()


class Reconstruction(nn.Module):
    """Train an auto-encoder on reconstruction alone: the paper's Vanilla, which is CRoPD at lambda = 0.

    Args:
        autoencoder: maps images to images of the same shape, for example a
            :class:`~robrep.encoders.MaskedAutoEncoder`.
        augment: ``augment(x, ids, seed)`` returns the view that is both input and target; None uses ``x`` itself.
    """

    def __init__(self, autoencoder: Any, augment: Augmentation | None = None) -> None:
        super().__init__()
        self.autoencoder, self.augment = autoencoder, augment

    def view(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The augmented images, or ``x`` itself without augmentation."""
        return x if self.augment is None else self.augment(x, ids, fold(seed, "view"))

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        return {"reconstruction": pixel_error(self.autoencoder(x), x).mean()}


class CRoPD(Reconstruction):
    r"""Reconstruct clean images, and keep an image's latent vector recognisable under attack.

    .. math:: \frac1n \sum_i \mathrm{MSE}(h(f(x_i)), x_i) + \lambda \max_{x_i' \in A(x_i)} L_i(x_i', x_i)

    where L is :func:`robrep.contrastive.adversarial_contrast` of the projected latent vectors. All images of a batch
    are attacked together, because each attacked image is a negative of the others.

    Args:
        autoencoder: a :class:`~robrep.encoders.MaskedAutoEncoder`.
        projector: maps latent vectors to the vectors of the contrastive loss;
            ``Projector(autoencoder.dim, 2048, 128)`` in the paper.
        attack: the attack of the training, FGSM in the paper. It must start at random, because the gradient of the
            positives' similarity is zero at x.
        threat: the ball that it searches.
        weight: lambda, at least 0. The paper uses 10 for CIFAR-10 and ImagenetTe, 1 for SVHN and CIFAR-100.
        temperature: tau, above 0.
        augment: as for :class:`Reconstruction`.

    Raises:
        ValueError: ``weight`` is negative.

    Source: Liu et al. 2025, Algorithm 1. The reconstruction is a mean over pixels, as its appendix says, where
    Algorithm 1 prints a sum. For a 32 x 32 colour image this is a factor of 3,072 between the two terms.
    """

    def __init__(
        self,
        autoencoder: MaskedAutoEncoder,
        projector: nn.Module,
        attack: Attack,
        threat: Threat,
        *,
        weight: float = 10.0,
        temperature: float = 0.5,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(autoencoder, augment)
        self.projector, self.adversary = projector, Adversary(attack, threat)
        self.weight, self.temperature = nonnegative("weight", weight), temperature

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        x_adv = self.worst(x, ids, seed)
        halves, halves_adv = self.autoencoder.encode(x), self.autoencoder.encode(x_adv)
        p, p_adv = (self.projector(self.autoencoder.latent(h)) for h in (halves, halves_adv))
        return {
            "reconstruction": pixel_error(self.autoencoder.decode(halves), x).mean(),
            "contrast": self.weight * self.contrast(p_adv, p).mean(),
        }

    def project(self, x: Tensor) -> Tensor:
        """The projected latent vectors, (N, D)."""
        return self.projector(self.autoencoder.latent(self.autoencoder.encode(x)))

    def contrast(self, p_adv: Tensor, p: Tensor) -> Tensor:
        """What the attack maximises, and training minimises, (N,)."""
        return adversarial_contrast(p, p_adv, self.temperature)

    def worst(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The attacked images of a batch, of the shape of ``x`` and detached."""
        contrast = batch_objective(lambda x_, p_: self.contrast(self.project(x_), p_))
        with attack_mode(self), torch.no_grad():
            p = self.project(x)
        seed = fold(seed, "adversary")
        return self.adversary.search(contrast, x, p, networks=[self], ids=ids, seed=seed)


class AdversarialReconstruction(Reconstruction):
    r"""ARAE, the adversarially robust auto-encoder: reconstruct the clean image from the attacked one.

    The attack moves the projected latent vector as far as it can, and the loss penalises this distance.

    .. math:: \mathrm{MSE}(h(f(x')), x) + \gamma\, \mathrm{MSE}(p(x'), p(x)),
        \quad x' = \arg\max_{x' \in A(x)} \mathrm{MSE}(p(x'), p(x))

    Args:
        autoencoder, attack, threat: as for :class:`CRoPD`. The attack must start at random, because the gradient of the
            distance is zero at x. The paper trains with FGSM, the authors of ARAE with PGD.
        projector: maps latent vectors to the vectors whose distance counts, as for :class:`CRoPD`.
        gamma: weight of the distance, at least 0; 0.1 in the paper.
        augment: as for :class:`Reconstruction`; the paper trains ARAE without augmentation.

    Raises:
        ValueError: ``gamma`` is negative.

    Source: Salehi et al. 2021; Liu et al. 2025, Table 4 and appendix A.
    """

    def __init__(
        self,
        autoencoder: MaskedAutoEncoder,
        projector: nn.Module,
        attack: Attack,
        threat: Threat,
        *,
        gamma: float = 0.1,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(autoencoder, augment)
        self.projector, self.adversary = projector, Adversary(attack, threat)
        self.gamma = nonnegative("gamma", gamma)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        x_adv = self.worst(x, ids, seed)
        halves = self.autoencoder.encode(x_adv)
        p_adv = self.projector(self.autoencoder.latent(halves))
        return {
            "reconstruction": pixel_error(self.autoencoder.decode(halves), x).mean(),
            "latent": self.gamma * self.distance(p_adv, self.project(x)).mean(),
        }

    def project(self, x: Tensor) -> Tensor:
        """The projected latent vectors, (N, D)."""
        return self.projector(self.autoencoder.latent(self.autoencoder.encode(x)))

    def distance(self, p_adv: Tensor, p: Tensor) -> Tensor:
        """Mean squared difference of the entries of two vectors; both (N, D), result (N,)."""
        return squared_error(p_adv, p) / p.shape[1]

    def worst(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The attacked images of a batch, of the shape of ``x`` and detached."""
        with attack_mode(self), torch.no_grad():
            p = self.project(x)
        return self.adversary.search(
            lambda x_, p_: self.distance(self.project(x_), p_),
            x, p, networks=[self], ids=ids, seed=fold(seed, "adversary"),
        )  # fmt: skip


class MixedHead(nn.Module):
    """Train a classifier half on clean and half on attacked images: the paper's "robust" head.

    Only parameters that require gradients are trained; in a :class:`~robrep.foundation.Chain` these are the head's.

    Args:
        classifier: maps images to logits, deterministically.
        attack, threat: the attack of the training and the ball that it searches; PGD-10 with steps of 0.007 in the
            paper.

    Source: Liu et al. 2025, appendix A ("mix them with natural samples"; equal shares are our reading).
    """

    def __init__(self, classifier: nn.Module, attack: Attack, threat: Threat) -> None:
        super().__init__()
        self.classifier, self.adversary = classifier, Adversary(attack, threat)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x_adv = self.adversary.search(
            lambda x_, y_: cross_entropy(self.classifier(x_), y_), x, y, networks=[self], ids=ids, seed=seed
        )
        clean, adversarial = (cross_entropy(self.classifier(v), y).mean() for v in (x, x_adv))
        return {"clean": 0.5 * clean, "adversarial": 0.5 * adversarial}
