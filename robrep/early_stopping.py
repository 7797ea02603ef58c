"""Heads that stop early: the epoch with the best robust accuracy is kept, as judged by images set aside."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Threat, attack_mode
from robrep.evaluation import robust_accuracy
from robrep.heads import AdversarialHead, Classifier, encode, frozen
from robrep.methods import Supervised
from robrep.regularizers import Attack
from robrep.training import Examples, History, fit


def train_head_stopped(
    encoder: nn.Module,
    head: nn.Module,
    x: Examples,
    y: Tensor,
    judged_on: tuple[Examples, Tensor],
    judge: Any,
    threat: Threat,
    *,
    attack: Attack | None = None,
    epochs: int = 20,
    batch_size: int = 256,
    lr: float = 1e-2,
    every: int = 1,
    seed: int = 0,
    progress: str | None = None,
) -> History:
    """Train ``head`` in place, and leave it as it was after the epoch of best robust accuracy.

    Gowal et al. 2021 judge by held-out images. Zhu et al. 2020 call it "E.S."; their released code judges by the *test*
    images, which makes the number a maximum over epochs and no estimate. Give validation images for an estimate; give
    the test images only to reproduce theirs.

    Args:
        encoder: images to codes (N, D); deterministic. Its weights, statistics and mode are left alone.
        head: codes to logits.
        x, y: images and labels to train on.
        judged_on: images and labels that choose the epoch.
        judge, threat: the attack that judges (or a suite of them), and its ball.
        attack: the head is trained at the worst x' in the ball that this attack finds; None for a clean head.
        every: judge after every so many epochs, and after the last.
        epochs, batch_size, lr, seed, progress: as in :func:`robrep.training.fit`.

    Returns:
        The history; judged epochs have ``robust``, and ``kept`` is 1 where the head was the best so far.
    """
    best, kept = -1.0, copy.deepcopy(head.state_dict())

    def look(done: int) -> dict[str, float]:
        nonlocal best, kept
        if done % every and done != epochs:
            return {}
        with attack_mode(encoder, head):
            robust = robust_accuracy(Classifier(encoder, head, 0), *judged_on, judge, threat, seed=seed).value
        better = robust > best
        if better:
            best, kept = robust, copy.deepcopy(head.state_dict())
        return {"robust": robust, "kept": float(better)}

    settings: dict[str, Any] = dict(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, progress=progress)
    with frozen(encoder), attack_mode(encoder):
        method: nn.Module = Supervised(nn.Identity(), head)
        if attack is None:
            inputs: Any = encode(encoder, x)
        else:
            method, inputs = AdversarialHead(encoder, head, attack, threat), x
        history = fit(method, inputs, y, after_epoch=look, **settings)
    with torch.no_grad():
        head.load_state_dict(kept)
    return history
