"""Supervised training, standard and adversarial: the references of every chapter."""

from __future__ import annotations

from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat
from robrep.augmentations import Augmentation
from robrep.checks import nonnegative
from robrep.losses import cross_entropy, kl_categorical
from robrep.random import Seed, fold

Terms = dict[str, Tensor]


class Supervised(nn.Module):
    """Standard training: the cross-entropy of a head on an encoder's code.

    Args:
        encoder: images to codes (N, D); deterministic.
        head: codes to logits (N, C).
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    @property
    def classifier(self) -> nn.Sequential:
        """Images to logits."""
        return nn.Sequential(self.encoder, self.head)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        return {"cross_entropy": cross_entropy(self.classifier(x), y).mean()}


class AdversarialTraining(Supervised):
    """The cross-entropy at the worst x' in the ball (Madry et al. 2018).

    Args:
        encoder, head: as for :class:`Supervised`.
        attack, threat: how and where the worst x' is searched.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, attack: Attack, threat: Threat) -> None:
        super().__init__(encoder, head)
        self.adversary = Adversary(attack, threat)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        worst = self.adversary.worst_case(
            lambda y_, logits: cross_entropy(logits, y_), self.classifier, x, y, ids=ids, seed=seed
        )
        return {"cross_entropy": worst.mean()}


class TRADES(AdversarialTraining):
    """Clean cross-entropy plus beta times max over x' of KL[softmax f(x) || softmax f(x')] (Zhang et al. 2019).

    Args:
        encoder, head, attack, threat: as for :class:`AdversarialTraining`.
        beta: weight of the regularizer (1 / lambda in that paper), at least 0.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, attack: Attack, threat: Threat, beta: float = 6.0) -> None:
        super().__init__(encoder, head, attack, threat)
        self.beta = nonnegative("beta", beta)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        logits = self.classifier(x)
        worst = self.adversary.worst_case(kl_categorical, self.classifier, x, logits, ids=ids, seed=seed)
        return {"cross_entropy": cross_entropy(logits, y).mean(), "trades": self.beta * worst.mean()}


class Augmented(nn.Module):
    """A supervised method that sees augmented images.

    Args:
        method: what is trained.
        augment: ``augment(x, ids, seed)`` gives images of the same shape; for example
            :class:`robrep.augmentations.Augment`.
    """

    def __init__(self, method: nn.Module, augment: Augmentation) -> None:
        super().__init__()
        self.method, self.augment = method, augment

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        return self.method(self.augment(x, ids, fold(seed, "views")), y, ids, seed)
