"""The chapter on VAE + Urkle: predictions of bounded loss, which its theory is about."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robrep.gaussians import upcast


def bounded_log_softmax(logits: Tensor, bound: float) -> Tensor:
    """Log-probabilities that are never below -``bound``: log(K softmax(logits) + exp(-M)), K = 1 - C exp(-M).

    Args:
        logits: shape (N, C).
        bound: M, the largest possible loss of a prediction, in nats; above ln C, otherwise K would not be positive.

    Returns:
        Shape (N, C); each row's exponentials sum to 1, and the order of the classes stays.

    Raises:
        ValueError: ``bound`` is not above ln C.

    Source: Nguyen et al. 2022, footnote to Proposition 1; the paper does not state the condition M > ln C.
    """
    classes = logits.shape[1]
    if not bound > math.log(classes):
        raise ValueError(
            f"bound is {bound}, expected more than ln({classes}) = {math.log(classes):.4f}, for {classes} classes"
        )
    log_p = upcast(logits).log_softmax(1) + math.log1p(-classes * math.exp(-bound))
    return torch.logaddexp(log_p, log_p.new_full((), -bound))  # in logarithms: exp(-M) is 0 in float32 from M = 104 on
