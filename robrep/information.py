"""Mutual information: estimators as functions of a score matrix.

A critic gives each pair a score T(x_i, z_j). In the matrix of all scores the diagonal holds pairs of the joint
distribution, everything else pairs of the product of the marginals. All values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robrep.checks import one_of
from robrep.gaussians import upcast


def _square(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores in float32 or wider, their diagonal (..., N), and the mask of the diagonal (N, N)."""
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2] or scores.shape[-1] < 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected (..., N, N) with N at least 2")
    diagonal = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return upcast(scores), upcast(scores).diagonal(dim1=-2, dim2=-1), diagonal


def donsker_varadhan(scores: Tensor, masked: Literal["excluded", "counted"] = "excluded") -> Tensor:
    """E_joint[T] - ln E_product[exp T]: a lower bound of the mutual information for every T, up to sampling.

    Tight at T = ln p(x, z) / (p(x) p(z)) plus any constant. Adding a constant to all scores changes nothing.

    Args:
        scores: (..., N, N), the diagonal from the joint distribution.
        masked: what becomes of the diagonal in the second term. "excluded" leaves it out. "counted" is what the
            released code of Zhu et al. 2020 computes: the diagonal is multiplied by zero before the exponential, so
            that each of its N entries still counts exp(0) = 1. That value is never above the other one by more than
            rounding, and it is not invariant: a critic that gives large scores hides the slip.

    Returns:
        Shape (...).

    Raises:
        ValueError: scores that are not square, fewer than two pairs, an unknown ``masked``.

    Source: Donsker and Varadhan 1983; Belghazi et al. 2018, eq. 5; Zhu et al. 2020, section 4.
    """
    scores, joint, diagonal = _square(scores)
    n = scores.shape[-1]
    fill = {"excluded": -math.inf, "counted": 0.0}[one_of("masked", masked, ("excluded", "counted"))]
    product = scores.masked_fill(diagonal, fill).flatten(-2).logsumexp(-1) - math.log(n * (n - 1))
    return joint.mean(-1) - product


def info_nce(scores: Tensor) -> Tensor:
    """ln N + mean_i ln softmax_j(T(x_i, z_j))_i: how well the partner of x_i is picked among N; (..., N, N) to (...).

    A lower bound of the mutual information that can never exceed ln N (van den Oord et al. 2018).

    Raises:
        ValueError: scores that are not square, or fewer than two pairs.
    """
    scores, joint, _ = _square(scores)
    return (joint - scores.logsumexp(-1)).mean(-1) + math.log(scores.shape[-1])


def jensen_shannon(scores: Tensor) -> Tensor:
    """2 ln 2 - E_joint[softplus(-T)] - E_product[softplus(T)]; (..., N, N) to (...).

    A lower bound of *twice the Jensen-Shannon divergence* of joint and product (Nowozin et al. 2016; Hjelm et al.
    2019, eq. 4), which grows with the mutual information and never exceeds 2 ln 2. It is tight at the same T as
    :func:`donsker_varadhan` (there without the free constant), so a critic trained by it can be read off by that.

    Raises:
        ValueError: scores that are not square, or fewer than two pairs.
    """
    scores, joint, diagonal = _square(scores)
    n = scores.shape[-1]
    product = F.softplus(scores).masked_fill(diagonal, 0.0).sum((-2, -1)) / (n * (n - 1))
    return 2 * math.log(2) - F.softplus(-joint).mean(-1) - product


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "dv": donsker_varadhan,
    "dv-counted": lambda scores: donsker_varadhan(scores, "counted"),
    "nce": info_nce,
    "js": jensen_shannon,
}


def information(scores: Tensor, estimator: str = "dv") -> Tensor:
    """The estimate of a critic's scores (L, N, N), averaged over the L locations; a scalar.

    With a critic of local features it is a mean of *local* information values, I(part of x; z), each at most I(x; z).

    Raises:
        ValueError: an estimator that is none of :data:`ESTIMATORS`, scores of a shape that does not fit.
    """
    return ESTIMATORS[one_of("estimator", estimator, ESTIMATORS)](scores).mean()
