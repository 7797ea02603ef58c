"""CRoPD (Liu et al. 2025): auto-encoders that clean images before a frozen foundation model; its rivals and heads."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat, attack_mode, batch_objective
from robrep.augmentations import Augmentation
from robrep.checks import nonnegative, one_of
from robrep.contrastive import adversarial_contrast
from robrep.encoders import MaskedAutoEncoder
from robrep.foundation import LatentDiffusionVAE, Prepare, ViTMAE
from robrep.gaussians import Gaussian, kl, standard_normal_like
from robrep.losses import cross_entropy, squared_error
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold, noise, uniform


def pixel_error(output: Tensor, x: Tensor) -> Tensor:
    """The mean squared error over an image's pixels and channels; shapes (N, C, H, W), result (N,)."""
    return squared_error(output, x) / x[0].numel()


class Reconstruction(nn.Module):
    """Reconstruct the image, no more: the paper's Vanilla, CRoPD at lambda 0.

    Args:
        autoencoder: images to images of the same shape, such as a :class:`~robrep.encoders.MaskedAutoEncoder`.
        augment: ``augment(x, ids, seed)``; its view is what goes in and what has to come out. None for none.
    """

    def __init__(self, autoencoder: Any, augment: Augmentation | None = None) -> None:
        super().__init__()
        self.autoencoder, self.augment = autoencoder, augment

    def view(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The augmented images."""
        return x if self.augment is None else self.augment(x, ids, fold(seed, "view"))

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        return {"reconstruction": pixel_error(self.autoencoder(x), x).mean()}


class CRoPD(Reconstruction):
    r"""Reconstruct the image, with a latent vector by which its worst neighbour in the ball is still known for it.

    .. math:: \frac1n \sum_i \mathrm{MSE}(h(f(x_i)), x_i) + \lambda \max_{x_i' \in A(x_i)} L_i(x_i', x_i)

    where L is :func:`robrep.contrastive.adversarial_contrast` of the projected latent vectors. The adversaries of a
    batch are sought together, for each is a negative of the others.

    Args:
        autoencoder: a :class:`~robrep.encoders.MaskedAutoEncoder`.
        projector: latent vectors to what the contrastive loss sees; ``Projector(autoencoder.dim, 2048, 128)`` in the
            paper.
        attack: how the adversaries are sought, FGSM in the paper. It must start at random: the gradient of the
            positives' similarity is zero at x.
        threat: where.
        weight: lambda, at least 0. The paper has 10 for CIFAR-10 and ImagenetTe, 1 for SVHN and CIFAR-100.
        temperature: tau, above 0.
        negatives: what the attack counts as negatives. "both" takes the clean and the adversarial vectors, so that it
            climbs on the loss that is trained; "clean" takes clean ones, as the paper's recipe begins. They do not
            depend on x', so only the similarity of x' and x is left to climb on.
        augment: as for :class:`Reconstruction`.

    Source: Liu et al. 2025, Algorithm 1. The reconstruction is a mean over pixels, as its appendix says, where
    Algorithm 1 prints a sum: in a 32 x 32 colour image a factor of 3,072 between the two terms.
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
        negatives: Literal["both", "clean"] = "both",
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(autoencoder, augment)
        self.projector, self.adversary = projector, Adversary(attack, threat)
        self.weight, self.temperature = nonnegative("weight", weight), temperature
        self.negatives = one_of("negatives", negatives, ("both", "clean"))

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        x_adv = self.worst(x, ids, seed)
        halves, halves_adv = self.autoencoder.encode(x), self.autoencoder.encode(x_adv)
        p, p_adv = (self.projector(self.autoencoder.latent(h)) for h in (halves, halves_adv))
        return {
            "reconstruction": pixel_error(self.autoencoder.decode(halves), x).mean(),
            "contrast": self.weight * adversarial_contrast(p, p_adv, self.temperature).mean(),
        }

    def project(self, x: Tensor) -> Tensor:
        """The projected latent vectors, (N, D)."""
        return self.projector(self.autoencoder.latent(self.autoencoder.encode(x)))

    def contrast(self, p_adv: Tensor, p: Tensor) -> Tensor:
        """What the attack makes large: the loss, or with clean negatives the part of it that depends on x'; (N,)."""
        if self.negatives == "clean":
            return -torch.cosine_similarity(p_adv, p, dim=1) / self.temperature
        return adversarial_contrast(p, p_adv, self.temperature)

    def worst(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The worst x' that the attack finds around each image of the batch, detached."""
        contrast = batch_objective(lambda x_, p_: self.contrast(self.project(x_), p_))
        with attack_mode(self), torch.no_grad():
            p = self.project(x)
        return self.adversary.search(contrast, x, p, networks=[self], ids=ids, seed=fold(seed, "adversary"))


class AdversarialReconstruction(Reconstruction):
    r"""Reconstruct the clean image from the x' in the ball whose latent vector lies farthest (Salehi et al. 2021).

    .. math:: \mathrm{MSE}(h(f(x')), x) + \gamma\, \mathrm{MSE}(p(x'), p(x)),
        \quad x' = \arg\max_{x' \in A(x)} \mathrm{MSE}(p(x'), p(x))

    Args:
        autoencoder, attack, threat: as for :class:`CRoPD`. The distance's gradient is zero at x, so the attack must
            start at random. The paper trains with FGSM, ARAE's authors with PGD.
        projector: latent vectors to those whose distance counts; as for :class:`CRoPD`.
        gamma: weight of the distance, at least 0; 0.1 in the paper.
        augment: as for :class:`Reconstruction`; the paper trains ARAE without.

    Source: Liu et al. 2025, Table 4 and appendix A.
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
        """The mean squared difference of the vectors' entries; shapes (N, D), result (N,)."""
        return squared_error(p_adv, p) / p.shape[1]

    def worst(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        """The x' that the attack finds farthest from each image, detached."""
        with attack_mode(self), torch.no_grad():
            p = self.project(x)
        return self.adversary.search(
            lambda x_, p_: self.distance(self.project(x_), p_),
            x, p, networks=[self], ids=ids, seed=fold(seed, "adversary"),
        )  # fmt: skip


class VariationalReconstruction(Reconstruction):
    r"""Reconstruct the image from a noisy code, held to the prior by very little: as the VAE of a latent diffusion.

    .. math:: \mathrm{MSE}(h(z), x) + \frac{\beta}{d} \mathrm{KL}[p(z|x) \,\|\, N(0, I)], \quad z \sim p(z|x)

    with d the numbers of an image. As a pre-processor it decodes the mean.

    Args:
        autoencoder: a :class:`~robrep.foundation.LatentDiffusionVAE`.
        weight: beta, at least 0.
        augment: as for :class:`Reconstruction`.

    Source: Rombach et al. 2022, whose "KL-reg." has a weight of about 1e-6 and whose further terms (a perceptual loss
    and a discriminator) are left out.
    """

    def __init__(
        self, autoencoder: LatentDiffusionVAE, *, weight: float = 1e-6, augment: Augmentation | None = None
    ) -> None:
        super().__init__(autoencoder, augment)
        self.weight = nonnegative("weight", weight)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        p = self.autoencoder.posterior(x)
        z = p.sample(noise(fold(seed, "z"), ids, p.mean.shape[1:]))
        flat = Gaussian(p.mean.flatten(1), p.scale.flatten(1))
        return {
            "reconstruction": pixel_error(self.autoencoder.decode(z), x).mean(),
            "prior": self.weight * kl(flat, standard_normal_like(flat)).mean() / x[0].numel(),
        }


class MixedHead(nn.Module):
    """A classifier's cross-entropy, half on clean images and half on the worst x': the paper's "robust" head.

    Only what still needs a gradient is trained; a :class:`~robrep.foundation.Chain` leaves its head alone.

    Args:
        classifier: images to logits, deterministic.
        attack, threat: how and where the worst x' is sought; PGD-10 with steps of 0.007 in the paper.

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


class MaskedPretraining(nn.Module):
    """Pre-train a small foundation model: guess the hidden patches' pixels from those left (He et al. 2022).

    Which patches are hidden comes from (seed, id).

    Args:
        model: a ``transformers.ViTMAEForPreTraining``, such as :func:`robrep.foundation.new_vit_mae` gives.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.prepare = Prepare(model.config.image_size, model.config.num_channels)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        patches = self.model.vit.embeddings.patch_embeddings.num_patches
        order = uniform(fold(seed, "mask"), ids, (patches,)).to(x.device)
        return {"masked": self.model(self.prepare(x), noise=order).loss}

    def foundation(self, token: Literal["cls", "mean"] = "cls", mask_ratio: float = 0.0) -> ViTMAE:
        """A copy of the encoder as a foundation model, which later training does not change."""
        return ViTMAE(copy.deepcopy(self.model.vit), token=token, mask_ratio=mask_ratio).eval()
