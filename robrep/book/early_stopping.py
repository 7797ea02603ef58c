"""Early stopping: what is kept is the epoch with the best robust accuracy, as judged by images set aside."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Attack, Threat, attack_mode
from robrep.checks import positive_int
from robrep.evaluation import robust_accuracy
from robrep.heads import AdversarialHead, Classifier, device_of, encode, gradients_disabled
from robrep.identity import identity
from robrep.methods import Supervised
from robrep.training import Examples, History, fit


class _WithBest(nn.Module):
    """A method and the best epoch so far, in one state: a training that was cut short goes on with both."""

    best: Tensor

    def __init__(self, method: nn.Module, kept: nn.Module, judge: str) -> None:
        super().__init__()
        self.method, self.judge = method, judge  # the judge is a part of what tells one training from another
        self.kept = copy.deepcopy(kept).requires_grad_(False)
        self.register_buffer("best", torch.tensor(-1.0))
        if hasattr(method, "after_step"):
            self.after_step = method.after_step

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
        return self.method(x, y, ids, seed)


def fit_stopped(
    method: nn.Module,
    model: nn.Module,
    x: Examples,
    y: Tensor,
    judged_on: tuple[Examples, Tensor],
    judge: Any,
    threat: Threat,
    *,
    kept: nn.Module | None = None,
    every: int = 1,
    seed: int = 0,
    **settings: Any,
) -> History:
    """Train ``method`` as :func:`robrep.training.fit` does, and leave ``model`` as it was after its best epoch.

    Best is the epoch of highest robust accuracy. Gowal et al. 2021 judge by held-out images. Zhu et al. 2020 call it
    "E.S."; their released code judges by the *test* images, which makes the number a maximum over epochs and no
    estimate. Give validation images for an estimate; give the test images only to reproduce theirs.

    Args:
        method: as for ``fit``.
        model: the classifier that ``method`` trains; it is judged in evaluation mode.
        x, y: images (or codes) and labels to train on.
        judged_on: images and labels that choose the epoch.
        judge, threat: the attack that judges (or a suite of them), and its ball.
        kept: the part of ``model`` that is trained and put back; None for all of it.
        every: judge after every so many epochs, and after the last.
        seed, settings: as in ``fit``; with a ``cache`` a training that was cut short goes on to the same result.

    Returns:
        The history; judged epochs have ``robust``, and ``kept`` is 1 where the epoch was the best so far.
    """
    kept, every, epochs = model if kept is None else kept, positive_int("every", every), settings["epochs"]
    against = f"{judge} in {threat}, every {every}, {', '.join(identity(part) for part in judged_on)}"
    both = _WithBest(method, kept, against)

    def look(done: int) -> dict[str, float]:
        if done % every and done != epochs:
            return {}
        with attack_mode(model):
            robust = robust_accuracy(model, *judged_on, judge, threat, seed=seed).value
        better = robust > both.best.item() + 1e-6  # the best one is kept in single precision
        if better:
            both.best.fill_(robust)
            both.kept.load_state_dict(kept.state_dict())
        return {"robust": robust, "kept": float(better)}

    history = fit(both, x, y, after_epoch=look, seed=seed, **settings)
    kept.load_state_dict(both.kept.state_dict())
    return history


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
    **settings: Any,
) -> History:
    """Train ``head`` in place, and leave it as it was after the epoch of best robust accuracy (:func:`fit_stopped`).

    The head is moved to the encoder's device, and trained there.

    Args:
        encoder: images to codes (N, D); deterministic. Its weights, statistics and mode are left alone.
        head: codes to logits.
        x, y: images and labels to train on.
        judged_on, judge, threat: as for :func:`fit_stopped`.
        attack: the head is trained at the worst x' in the ball that this attack finds; None for a clean head.
        epochs, batch_size, lr, settings: as for :func:`fit_stopped`.

    Returns:
        The history, as of :func:`fit_stopped`.
    """
    settings |= dict(kept=head, epochs=epochs, batch_size=batch_size, lr=lr, accelerator=device_of(encoder).type)
    with gradients_disabled(encoder), attack_mode(encoder):
        if attack is None:
            method: nn.Module = Supervised(nn.Identity(), head)
            inputs: Examples = encode(encoder, x)  # type: ignore[assignment]
        else:
            method, inputs = AdversarialHead(encoder, head, attack, threat), x
        return fit_stopped(method, Classifier(encoder, head, 0), inputs, y, judged_on, judge, threat, **settings)
