"""Mutual information: estimators as functions of a score matrix, and cases in which the truth is known exactly.

A critic gives each pair a score T(x_i, z_j). In the matrix of all scores the diagonal holds pairs of the joint
distribution, everything else pairs of the product of the marginals. All values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robrep.checks import nonnegative, one_of, positive_int
from robrep.gaussians import upcast
from robrep.random import generator

Masked = Literal["excluded", "counted"]


def _square(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores in float32 or wider, their diagonal (..., N), and the mask of the diagonal (N, N)."""
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2] or scores.shape[-1] < 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected (..., N, N) with N at least 2")
    scores = upcast(scores)
    return (
        scores,
        scores.diagonal(dim1=-2, dim2=-1),
        torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device),
    )


def donsker_varadhan(scores: Tensor, masked: Masked = "excluded") -> Tensor:
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

    With a critic of local features it is a mean of *local* informations, I(part of x; z), each at most I(x; z).

    Raises:
        ValueError: an estimator that is none of :data:`ESTIMATORS`, scores of a shape that does not fit.
    """
    return ESTIMATORS[one_of("estimator", estimator, ESTIMATORS)](scores).mean()


# --- cases whose truth is known -------------------------------------------------------------------------------------


def correlated_gaussians(n: int, dim: int, nats: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of standard normal vectors whose mutual information is ``nats``: n draws of x and z, each (n, dim).

    Each coordinate of z is correlated with the same coordinate of x, all by the same rho: I = -dim/2 ln(1 - rho^2).

    Raises:
        TypeError, ValueError: sizes below 1, or a negative information.
    """
    positive_int("n", n)
    rho = math.sqrt(-math.expm1(-2 * nonnegative("nats", nats) / positive_int("dim", dim)))
    x, e = torch.randn(2, n, dim, generator=generator("gaussians", seed, n, dim)).unbind(0)
    return x, rho * x + math.sqrt(1 - rho * rho) * e


def correlated_gaussians_ratio(x: Tensor, z: Tensor, nats: float) -> Tensor:
    """ln p(x_i, z_j) / (p(x_i) p(z_j)) for all pairs of :func:`correlated_gaussians`: the best critic, (N, N)."""
    dim = x.shape[1]
    rho2 = -math.expm1(-2 * nonnegative("nats", nats) / dim)
    square = x.square().sum(1)[:, None] + z.square().sum(1)
    return nats + (math.sqrt(rho2) * (x @ z.mT) - 0.5 * rho2 * square) / (1 - rho2)


def binary_entropy(theta: Tensor) -> Tensor:
    """H2(theta) in nats, 0 at both ends; elementwise."""
    return -(torch.xlogy(theta, theta) + torch.xlogy(1 - theta, 1 - theta))


def entropy_drop(t: Tensor | float) -> Tensor:
    """F(t) = ln 2 - H2(1/2 - t) for t in [0, 1/2]: the integral of H2' from 1/2 - t to 1/2; float64, elementwise.

    Raises:
        ValueError: a t outside [0, 1/2], where the integral of Zhu et al. 2020, theorem 3.2, is not defined.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if not bool(((t >= 0) & (t <= 0.5)).all()):
        raise ValueError(f"t is {t.tolist()}, expected values in [0, 1/2]")
    return math.log(2) - binary_entropy(0.5 - t)


class LinearVulnerability(NamedTuple):
    """The vulnerability of the feature sgn(w.x), exactly, with the bounds of theorem 3.2 as they hold.

    Attributes:
        risk: error of the best of the two classifiers of the feature.
        gap: AG, its adversarial gap: adversarial risk minus risk.
        moved: m, by how much an adversary can move the probability of one value of the feature; at most 1/2.
        value: RV = F(m) in nats.
        low: F(AG / 2), the lower bound. The print has it above.
        high: F(min(AG, 1/2)), the upper bound. The print has it below, without the minimum.
    """

    risk: float
    gap: float
    moved: float
    value: float
    low: float
    high: float


def dual_exponent(p: float) -> float:
    """q with 1/p + 1/q = 1, for p in [1, inf]."""
    if math.isnan(p) or p < 1:
        raise ValueError(f"p is {p}, expected a norm's exponent of at least 1, or infinity")
    return math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)


def linear_vulnerability(
    w: Tensor, theta: Tensor, covariance: Tensor, eps: float, p: float = math.inf
) -> LinearVulnerability:
    """The vulnerability of sgn(w.x) where x is drawn from N(y theta, covariance), y = +-1 with equal chances.

    The adversary moves x by at most eps in the l-p norm, and so w.x by at most r = eps ||w||_q, q the dual exponent.
    The feature is binary and balanced, so its information is an entropy: ln 2, and H2(1/2 - m) after all x with
    0 < w.x < r have changed sides,

    .. math:: m = \\tfrac12 \\big( P[0 < y\\, w^\\top x < r] + P[-r < y\\, w^\\top x < 0] \\big), \\quad
        \\mathrm{AG} = P[0 < y\\, w^\\top x < r] \\;\\; (w^\\top \\theta \\ge 0).

    The second probability is at most the first, so AG/2 <= m <= AG, and F(AG/2) <= RV <= F(min(AG, 1/2)).

    Args:
        w: (d,), not zero.
        theta: (d,), the mean of the class y = 1.
        covariance: (d, d), positive definite.
        eps: the radius, at least 0.
        p: exponent of the norm, from 1 to infinity.

    Raises:
        ValueError: shapes that do not fit, a w that is zero, a variance that is not positive, eps or p out of range.

    Source: Zhu et al. 2020, theorem 3.2, whose print has the two bounds the wrong way round.
    """
    w, theta, covariance = (torch.as_tensor(v, dtype=torch.float64) for v in (w, theta, covariance))
    if w.ndim != 1 or theta.shape != w.shape or covariance.shape != (len(w), len(w)):
        shapes = ", ".join(str(tuple(v.shape)) for v in (w, theta, covariance))
        raise ValueError(f"w, theta, covariance have shapes {shapes}, expected (d,), (d,) and (d, d)")
    variance = float(w @ covariance @ w)
    if not variance > 0:
        raise ValueError(
            f"the variance of w.x is {variance}, expected above 0: w not zero, covariance positive definite"
        )
    mean, reach = abs(float(w @ theta)), nonnegative("eps", eps) * float(torch.linalg.vector_norm(w, dual_exponent(p)))
    at = torch.tensor([-reach, 0.0, reach], dtype=torch.float64)
    below, zero, above = torch.special.ndtr((at - mean) / math.sqrt(variance)).tolist()
    gap, moved = above - zero, min(0.5 * (above - below), 0.5)
    value, low, high = entropy_drop(torch.tensor([moved, gap / 2, min(gap, 0.5)])).tolist()
    return LinearVulnerability(zero, gap, moved, value, low, high)


def fano_accuracy(nats: float, classes: int) -> float:
    """(I + ln 2) / ln C, at most 1: above it no head's accuracy can be, if the labels are uniform over C classes.

    With I = I(X'; g(X')) at the worst X', it bounds the robust accuracy (Zhu et al. 2020, theorem 3.4, there as a lower
    bound of the risk). It holds for the true information: an estimate *from below* put in its place bounds nothing.

    Raises:
        TypeError, ValueError: a negative or infinite information, fewer than two classes.
    """
    if positive_int("classes", classes) < 2:
        raise ValueError(f"classes is {classes}, expected at least 2")
    return min(1.0, (nonnegative("nats", nats) + math.log(2)) / math.log(classes))
