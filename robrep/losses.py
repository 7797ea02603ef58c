"""Pure functions, one score for each example: nothing here averages over the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2^2, summed over everything but the first dimension; shapes (N, ...), result (N,)."""
    return (a.float() - b.float()).square().flatten(1).sum(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] for each example; shapes (N, C) and (N,), result (N,)."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def kl_categorical(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL[softmax(p_logits) || softmax(q_logits)]; shapes (N, C), result (N,). As in TRADES (Zhang et al. 2019)."""
    log_p, log_q = p_logits.float().log_softmax(1), q_logits.float().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def bounded_log_softmax(logits: Tensor, bound: float) -> Tensor:
    """Log-probabilities that are never below -``bound``: log(K softmax(logits) + exp(-M)), K = 1 - C exp(-M).

    Args:
        logits: shape (N, C).
        bound: M, the largest loss that a prediction can cost, in nats; at least ln C, else K would be negative.

    Returns:
        Shape (N, C); each row's exponentials sum to 1 and the order of the classes is kept.

    Raises:
        ValueError: ``bound`` is not above ln C.

    Source: Nguyen et al. 2022, footnote to Proposition 1; the condition M > ln C is not in the print.
    """
    classes = logits.shape[1]
    if not bound > math.log(classes):
        raise ValueError(
            f"bound is {bound}, expected more than ln({classes}) = {math.log(classes):.4f}, one floor for each class"
        )
    floor = math.exp(-bound)
    return torch.log((1 - classes * floor) * logits.float().softmax(1) + floor)
