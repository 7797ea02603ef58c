"""Losses as pure functions: one value for each example, in float32 or wider, never averaged over the batch."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from robrep.checks import above_zero, check_labels
from robrep.gaussians import Gaussian, entropic_wasserstein, kl, standard_normal_like, upcast


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2^2, summed over everything but the first dimension; shapes (N, ...), result (N,)."""
    return (upcast(a) - upcast(b)).square().flatten(1).sum(1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 - 2 cos(a, b) = || a / |a| - b / |b| ||_2^2, in 0 ... 4; shapes (N, D), result (N,).

    Source: Grill et al. 2020, eq. 2.
    """
    return 2 - 2 * F.cosine_similarity(upcast(a), upcast(b), dim=1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] for each example; shapes (N, C) and (N,), result (N,).

    Raises:
        TypeError, ValueError: ``y`` is not an int64 vector of N labels in 0 ... C - 1.
    """
    check_labels(y, len(logits), logits.shape[1])
    return F.cross_entropy(upcast(logits), y, reduction="none")


def kl_categorical(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL[softmax(p_logits) || softmax(q_logits)]; shapes (N, C), result (N,). As in TRADES (Zhang et al. 2019)."""
    log_p, log_q = upcast(p_logits).log_softmax(1), upcast(q_logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def gaussian_nll(output: Tensor, x: Tensor, variance: float) -> Tensor:
    """-log N(x; output, variance I), summed over everything but the first dimension, in nats; result (N,).

    Raises:
        ValueError: ``variance`` is not above 0.
    """
    above_zero("variance", variance)
    pixels = x[0].numel()
    return squared_error(output, x) / (2 * variance) + 0.5 * pixels * math.log(2 * math.pi * variance)


def prior_cross_entropy(p: Gaussian) -> Tensor:
    """E over z of p of -log N(z; 0, I), in nats; shape (N,)."""
    d = p.mean.shape[-1]
    return 0.5 * (upcast(p.mean).square() + upcast(p.scale).square()).sum(-1) + 0.5 * d * math.log(2 * math.pi)


def negative_elbo(x: Tensor, output: Tensor, p: Gaussian, *, variance: float = 0.1) -> dict[str, Tensor]:
    """Minus the evidence lower bound (ELBO) of a variational auto-encoder, in two terms of shape (N,), in nats.

    Args:
        x: images, (N, C, H, W).
        output: the decoder's mean for one sample z of ``p``, of the same shape.
        p: q(z|x).
        variance: v of the decoder N(output, v I), above 0.

    Returns:
        ``reconstruction`` (-log p(x|z)) and ``prior`` (KL[q(z|x) || N(0, I)]).
    """
    return {"reconstruction": gaussian_nll(output, x, variance), "prior": kl(p, standard_normal_like(p))}


def negative_se_elbo(
    x: Tensor, output: Tensor, p: Gaussian, q: Gaussian, *, gamma: float = 1.0, variance: float = 0.1
) -> dict[str, Tensor]:
    """Minus the smooth encoder's bound (SE-ELBO), in four terms of shape (N,), in nats; their sum is minimised.

    Args:
        x: images, (N, C, H, W).
        output: the decoder's mean for one sample z of ``p``, of the same shape; x' is never decoded.
        p: q(z|x).
        q: q(z|x'), the code of the point that the selection picked.
        gamma: strength of the coupling of the two codes, at least 0.
        variance: v of the decoder N(output, v I), above 0.

    Returns:
        ``reconstruction`` (-log p(x|z)), ``prior`` and ``prior_selected`` (-log p(z) expected under p and under q) and
        ``transport`` (:func:`robrep.gaussians.entropic_wasserstein`). Their sum lies above -log p(x) of the decoder
        with the prior N(0, I). The pairwise prior is not normalised: with -D/2 ln(1 + 2 gamma) added,
        the sum lies above that of the coupled model, in which a code has the marginal
        N(0, (1 + gamma) / (1 + 2 gamma) I).

    Source: Cemgil et al. 2019, eq. 6-7 and section 6, with mu_a - mu_b where the paper prints mu_a - mu_a.
    """
    return {
        "reconstruction": gaussian_nll(output, x, variance),
        "prior": prior_cross_entropy(p),
        "prior_selected": prior_cross_entropy(q),
        "transport": entropic_wasserstein(p, q, gamma),
    }
