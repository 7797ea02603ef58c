"""Heads on a frozen encoder: trained clean or adversarially, averaged over samples of the code; pseudo-labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat, attack_mode, random_objective
from robrep.checks import check_labels, positive_int
from robrep.data import floats
from robrep.gaussians import Gaussian, upcast
from robrep.losses import cross_entropy
from robrep.objectives import fitting, own_ids, with_noise
from robrep.random import fold, noise
from robrep.training import Examples, History, fit

Code = Gaussian | Tensor


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters and buffers; the CPU if it has none.

    Raises:
        ValueError: they are on several; the message names the parts and their devices.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    devices = {t.device for _, t in tensors}
    if len(devices) > 1:
        told = ", ".join(dict.fromkeys(f"{name.split('.')[0]} on {t.device}" for name, t in tensors))
        raise ValueError(f"{type(module).__name__} has {told}, expected all of it on one device")
    return devices.pop() if devices else torch.device("cpu")


@torch.no_grad()
def encode(encoder: nn.Module, x: Examples, batch_size: int = 500) -> Code:
    """The codes of all examples, computed in evaluation mode and in batches, on the encoder's device.

    Args:
        encoder: images to a tensor (N, D) or a ``Gaussian``.
        x: uint8 or float images, N x C x H x W.
        batch_size: images in a pass.

    Returns:
        A tensor (N, D) or a ``Gaussian`` of such tensors, as the encoder gives.
    """
    device, codes, call = device_of(encoder), [], with_noise(encoder)
    with attack_mode(encoder):
        for ids in torch.arange(len(x)).split(positive_int("batch_size", batch_size)):
            codes.append(call(floats(x[ids]).to(device), ids=ids.to(device)))
    if isinstance(codes[0], Gaussian):
        return Gaussian.cat(codes)
    return torch.cat(codes)


class Classifier(nn.Module):
    """An encoder with a head; with a Gaussian encoder the probabilities are averaged over samples of the code.

    .. math:: \\log \\tfrac1S \\sum_s \\mathrm{softmax}\\, c(z_s), \\quad z_s \\sim p(z|x)

    Averaging probabilities, not logits, is eq. 1 of Nguyen et al. 2022. The samples come from (seed, id), so an image
    meets the same noise in every batch.

    Args:
        encoder: images to a tensor (N, D) or a ``Gaussian``.
        head: codes (N, D) to logits (N, C).
        samples: S, at least 1; 0 classifies the mean of the code. A deterministic encoder makes it 0: at once if it
            says so (``gaussian`` is False), else at the first pass, by what it gives.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, samples: int = 20) -> None:
        super().__init__()
        if samples:
            positive_int("samples", samples)
        self.encoder, self.head = encoder, head
        self.samples = samples if getattr(encoder, "gaussian", True) else 0

    @property
    def mean_code(self) -> Classifier:
        """The same networks, classifying the mean of the code."""
        return Classifier(self.encoder, self.head, samples=0)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Logits (N, C): log-probabilities where samples are averaged.

        Args:
            x: images (N, C, H, W) in [0, 1].
            ids: int64 (N,), naming the images' noise; 0 ... N - 1 if None.
            seed: seed of the noise.
        """
        code = self.encoder(x)
        if not isinstance(code, Gaussian):
            if self.samples:
                self.samples = 0  # nothing to sample: attacks and evaluations see that the model is deterministic
            return self.head(fitting(self.head, code))
        if not self.samples:
            return self.head(fitting(self.head, code.mean))
        ids = own_ids(ids, x)
        n, d = code.mean.shape
        z = code.sample(noise(seed, ids, (self.samples, d)).transpose(0, 1))
        logits = self.head(fitting(self.head, z.reshape(self.samples * n, d))).view(self.samples, n, -1)
        return upcast(logits).log_softmax(-1).logsumexp(0) - math.log(self.samples)


class _HeadOnCodes(nn.Module):
    """Cross-entropy of a head on codes computed once: (N, D), or (N, 2, D) for means and scales, then sampled."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, code: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
        if code.ndim == 3:
            p = Gaussian(*code.unbind(1))
            code = p.sample(noise(fold(seed, "z"), ids, p.mean.shape[1:]))
        return {"cross_entropy": cross_entropy(self.head(code), y).mean()}


class AdversarialHead(nn.Module):
    """Cross-entropy of a head at the worst x' in the ball, through a frozen encoder in evaluation mode.

    Args:
        encoder: images to a tensor (N, D) or a ``Gaussian``, which is sampled once for each image.
        head: codes (N, D) to logits (N, C).
        attack, threat: how and where the worst x' is searched.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, attack: Attack, threat: Threat) -> None:
        super().__init__()
        self.classifier, self.adversary = Classifier(encoder, head, samples=1), Adversary(attack, threat)

    def train(self, mode: bool = True) -> AdversarialHead:
        super().train(mode)
        self.classifier.encoder.eval()
        return self

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
        @random_objective
        def objective(x_: Tensor, y_: Tensor, *, ids: Tensor, seed: int) -> Tensor:
            return cross_entropy(self.classifier(x_, ids=ids, seed=seed), y_)

        x_adv = self.adversary.search(objective, x, y, networks=[self], ids=ids, seed=seed)
        return {"cross_entropy": objective(x_adv, y, ids=ids, seed=fold(seed, "z")).mean()}


def pseudo_labels(classifier: nn.Module, x: Examples, y: Tensor, labelled: Tensor, *, batch_size: int = 500) -> Tensor:
    """The labels of ``labelled`` images, and for all others what ``classifier`` makes of them; int64, (N,).

    UAT-FT, unsupervised adversarial training with fixed targets, then trains adversarially on all images. With every
    image labelled that is plain adversarial training.

    Args:
        classifier: images to logits, seen in evaluation mode.
        x: images, uint8 or float in [0, 1], N x C x H x W.
        y: labels (N,); those of images that are not in ``labelled`` are not looked at.
        labelled: indices of the images whose labels may be used, int64.
        batch_size: images in a pass.

    Raises:
        ValueError: an index out of range.

    Source: Uesato et al. 2019.
    """
    if len(labelled) and (labelled.min() < 0 or labelled.max() >= len(y)):
        raise ValueError(f"labelled runs from {labelled.min()} to {labelled.max()}, expected 0 ... {len(y) - 1}")
    labels = encode(classifier, x, batch_size).argmax(1).cpu()  # type: ignore[union-attr]
    labels[labelled.cpu()] = y.cpu()[labelled.cpu()]
    return labels


@contextmanager
def gradients_disabled(module: nn.Module) -> Iterator[None]:
    """Disable the gradients of all parameters of ``module``; the setting of each is restored afterwards."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for p, needed in before:
            p.requires_grad_(needed)


def train_head(
    encoder: nn.Module,
    head: nn.Module,
    x: Examples,
    y: Tensor,
    *,
    attack: Attack | None = None,
    threat: Threat | None = None,
    epochs: int = 20,
    batch_size: int = 256,
    lr: float = 1e-2,
    **settings: Any,
) -> History:
    """Train ``head`` in place on a frozen encoder's codes: one sample of z for each image and step, cross-entropy.

    Without an attack the codes are computed once, in float32, and the loop never sees an image again. The head is moved
    to the encoder's device, and trained there.

    Args:
        encoder: images to a tensor (N, D) or a ``Gaussian``; its weights, statistics and mode are left alone.
        head: codes (N, D) to logits (N, C).
        x: images, uint8 or float in [0, 1].
        y: class indices (N,), int64.
        attack, threat: given together, the head is trained at the worst x' in the ball (adversarial head).
        epochs, batch_size, lr, settings: as in :func:`robrep.training.fit`.

    Returns:
        The history of the training.

    Raises:
        ValueError: labels that do not fit, or an attack without a threat or the other way round.
    """
    check_labels(y, len(x))
    if (attack is None) != (threat is None):
        missing = "threat" if threat is None else "attack"
        raise ValueError(f"{missing} is None, expected attack and threat together, or neither for a clean head")
    settings |= dict(epochs=epochs, batch_size=batch_size, lr=lr, accelerator=device_of(encoder).type)
    if attack is not None and threat is not None:
        with gradients_disabled(encoder), attack_mode(encoder):  # `fit` sets modes; here they are put back
            return fit(AdversarialHead(encoder, head, attack, threat), x, y, **settings)
    codes = encode(encoder, x)
    inputs = torch.stack(codes, dim=1) if isinstance(codes, Gaussian) else codes
    return fit(_HeadOnCodes(head), inputs, y, **settings)
