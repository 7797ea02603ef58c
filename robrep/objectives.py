"""What an attack on a classifier makes large: functions of (logits, labels), one score for each example.

Each is above (or large) where the label loses. ``classifier_objective`` turns a model and one of them into the
objective that every attack takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Objective, random_objective
from robrep.checks import check_labels, may_look, one_of, positive_int
from robrep.gaussians import wide
from robrep.losses import cross_entropy


def _label_and_others(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit (N,) and all logits with the label's at minus infinity (N, C)."""
    logits = wide(logits)
    if logits.shape[1] < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, expected at least 2 classes")
    check_labels(y, len(logits), logits.shape[1])
    own = logits.gather(1, y[:, None])
    return own.squeeze(1), logits.scatter(1, y[:, None], -torch.inf)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's (Carlini and Wagner 2017); above 0 where the prediction is wrong.

    Shapes: (N, C) and (N,), result (N,).

    Raises:
        TypeError, ValueError: ``y`` is no int64 vector of N labels in 0 ... C - 1, or there is one class.
    """
    own, others = _label_and_others(logits, y)
    return others.amax(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over the gap between the largest and the third largest logit.

    Scaling or shifting all logits changes nothing, so a model cannot hide its gradient by large logits (Croce and Hein
    2020, eq. 6, with the sign that makes it grow as the label loses). With two classes there is no third logit, and
    the plain :func:`margin` is returned.
    """
    own, others = _label_and_others(logits, y)
    if logits.shape[1] < 3:
        return others.amax(1) - own
    top = wide(logits).topk(3, dim=1).values
    return (others.amax(1) - own) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's, shape (N,) (MultiTargeted attack, Gowal et al. 2019).

    Raises:
        TypeError, ValueError: as for :func:`margin`, for ``target`` too, which must be another class than the label.
    """
    own, others = _label_and_others(logits, y)
    check_labels(target, len(logits), logits.shape[1], "target")
    if may_look(target) and (target == y).any():
        raise ValueError(f"target is the label of {int((target == y).sum())} images, expected another class")
    return others.gather(1, target[:, None]).squeeze(1) - own


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's, over z_1 - (z_3 + z_4) / 2 of the sorted logits.

    With three classes the denominator is z_1 - z_3; with two the plain difference is returned. Source: Croce and Hein
    2020, eq. 7.
    """
    difference = targeted_margin(logits, y, target)
    if logits.shape[1] < 3:
        return difference
    top = wide(logits).topk(min(4, logits.shape[1]), dim=1).values
    return difference / (top[:, 0] - top[:, 2:].mean(1) + 1e-12)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "targeted_margin": targeted_margin,
    "targeted_dlr": targeted_dlr,
}


def likely_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` wrong classes with the largest logits, the largest first; int64 (N, at most C - 1)."""
    _, others = _label_and_others(logits, y)
    return others.topk(min(positive_int("count", count), logits.shape[1] - 1), dim=1).indices


def draws_noise(model: Any) -> bool:
    """Whether ``model`` takes ``ids`` and ``seed``: its ``samples``, as a ``Classifier`` has them, are above 0."""
    return getattr(model, "samples", 0) > 0


def predict(model: nn.Module, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
    """``model(x)``, with ids and seed if it draws noise (a :class:`~robrep.heads.Classifier` or its like)."""
    return model(x, ids=ids, seed=seed) if draws_noise(model) else model(x)


def classifier_objective(model: nn.Module, loss: str | Callable[..., Tensor] = "cross_entropy") -> Objective:
    """``objective(x', y)``, or ``objective(x', y, target)`` for a targeted loss: what makes ``model`` wrong.

    A deterministic model's objective also says which examples are misclassified, so that they can leave early. A model
    that samples is attacked through its average, with fresh noise in every step; whether it is wrong is then for a
    verdict with unseen noise to say.

    Args:
        model: images to logits (N, C).
        loss: a name of ``LOSSES``, or a function of (logits, y) or (logits, y, target) to scores (N,).

    Raises:
        ValueError: an unknown name.
    """
    score = LOSSES[one_of("loss", loss, LOSSES)] if isinstance(loss, str) else loss
    if draws_noise(model):

        @random_objective
        def averaged(x_: Tensor, y_: Tensor, *target: Tensor, ids: Tensor, seed: int) -> Tensor:
            return score(model(x_, ids=ids, seed=seed), y_, *target)

        return averaged

    def objective(x_: Tensor, y_: Tensor, *target: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x_)
        return score(logits, y_, *target), logits.detach().argmax(1) != y_

    return objective
