"""The optimizers of the papers, with a learning rate that a captured training step can read from the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robrep.checks import one_of

Optimizer = Literal["adamw", "sgd", "lars", "lars-all"]


def make_optimizer(
    name: Optimizer, parameters: Iterable[nn.Parameter], lr: float | Tensor, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of that name, as :func:`robrep.training.fit` explains it.

    Args:
        name: "adamw", "sgd", "lars" or "lars-all".
        parameters: what is trained.
        lr: the learning rate; a float32 tensor without dimensions on the parameters' device is read there in each step.
        weight_decay: as the optimizer means it.

    Raises:
        ValueError: no such optimizer.
    """
    one_of("optimizer", name, get_args(Optimizer))
    parameters = list(parameters)
    kinds = {p.device.type for p in parameters}
    fused = kinds <= {"cpu", "cuda"}  # one kernel for all weights
    if name == "adamw":  # it refuses to be captured unless it is told so
        capturable = kinds == {"cuda"}
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=fused, capturable=capturable)
    if name == "sgd":
        sgd = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused)
        for p in parameters:  # fused, a first step that a loss scaler skips would leave it as it was allocated
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return sgd
    from timm.optim.lars import Lars

    groups: list[dict[str, Any]] = [{"params": parameters, "always_adapt": True}]
    if name == "lars":  # vectors are neither adapted nor decayed
        layers, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [
            {"params": layers, "always_adapt": True},
            {"params": vectors, "always_adapt": False, "weight_decay": 0.0},
        ]
    groups = [g for g in groups if g["params"]]
    return Lars(groups, lr=lr, momentum=0.9, weight_decay=weight_decay, foreach=True)
