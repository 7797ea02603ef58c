"""Pure functions, one score for each example, in float32 or wider: nothing here averages over the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from robrep.checks import check_labels
from robrep.gaussians import wide


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2^2, summed over everything but the first dimension; shapes (N, ...), result (N,)."""
    return (wide(a) - wide(b)).square().flatten(1).sum(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] for each example; shapes (N, C) and (N,), result (N,).

    Raises:
        TypeError, ValueError: ``y`` is no int64 vector of N labels in 0 ... C - 1 (looked at on the CPU only: on a GPU
            the look would cost a synchronisation in every step).
    """
    if not y.is_cuda:
        check_labels(y, len(logits), logits.shape[1])
    return F.cross_entropy(wide(logits), y, reduction="none")


def kl_categorical(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL[softmax(p_logits) || softmax(q_logits)]; shapes (N, C), result (N,). As in TRADES (Zhang et al. 2019)."""
    log_p, log_q = wide(p_logits).log_softmax(1), wide(q_logits).log_softmax(1)
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
    log_p = wide(logits).log_softmax(1) + math.log1p(-classes * math.exp(-bound))
    return torch.logaddexp(log_p, log_p.new_tensor(-bound))  # in logarithms: exp(-M) is 0 in float32 from M = 104 on
