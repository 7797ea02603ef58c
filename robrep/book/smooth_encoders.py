"""The chapter on smooth encoders: Wasserstein terms and the optimal coupling of Gaussians with full covariances.

The functions take diagonal Gaussians, too, for which they are the library's. Those of full covariance matrices compute
in float64, whatever the precision of their arguments.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robrep import gaussians
from robrep.checks import nonnegative
from robrep.gaussians import Gaussian, entropic_part, upcast


class FullGaussian(NamedTuple):
    """A batch of Gaussians N(mean, covariance) with full covariance matrices.

    Attributes:
        mean: shape (N, D).
        covariance: symmetric and positive definite, shape (N, D, D).
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, p: Gaussian) -> FullGaussian:
        """The same diagonal Gaussians, with the variances on the diagonal of a matrix."""
        return cls(p.mean, torch.diag_embed(p.scale.square()))


def wasserstein2(p: Gaussian | FullGaussian, q: Gaussian | FullGaussian) -> Tensor:
    r"""The squared 2-Wasserstein distance W2^2, in squared units of z; shape (N,).

    .. math:: \lVert\mu_a-\mu_b\rVert^2
        + \mathrm{Tr}\big(\Sigma_a+\Sigma_b-2(\Sigma_b^{1/2}\Sigma_a\Sigma_b^{1/2})^{1/2}\big)

    For full matrices the second term is the smallest squared distance between a root of one covariance and a rotated
    root of the other. This form is never negative and has a gradient wherever both are positive definite, also at
    repeated eigenvalues.

    Args:
        p, q: both ``Gaussian`` or both :class:`FullGaussian`, of the same shape.

    Raises:
        TypeError: one argument is a ``Gaussian`` and the other a :class:`FullGaussian`.
        torch.linalg.LinAlgError: a covariance matrix that is not positive definite.

    Source: Cemgil et al. 2019, eq. 12.
    """
    if not _full(p, q):
        return gaussians.wasserstein2(p, q)  # type: ignore[arg-type]
    means, roots, _ = _pair(p, q)
    return (means + roots).to(upcast(p.mean).dtype)


def entropic_wasserstein(p: Gaussian | FullGaussian, q: Gaussian | FullGaussian, gamma: float = 1.0) -> Tensor:
    """:func:`robrep.gaussians.entropic_wasserstein`; for full matrices, the singular values of S_b^(1/2) S_a^(1/2)
    replace the products s_a s_b of the scales. Arguments and errors as for :func:`wasserstein2`.

    Source: Cemgil et al. 2019, eqs. 18-24.
    """
    if not _full(p, q):
        return gaussians.entropic_wasserstein(p, q, gamma)  # type: ignore[arg-type]
    means, roots, product = _pair(p, q)
    part = entropic_part(product, product.log(), nonnegative("gamma", gamma)).sum(-1)
    return (0.5 * gamma * (means + roots) + part).to(upcast(p.mean).dtype)


def optimal_coupling(p: Gaussian | FullGaussian, q: Gaussian | FullGaussian, gamma: float) -> Tensor:
    r"""Cross-covariance Psi of z_a and z_b in the joint Gaussian that attains :func:`entropic_wasserstein`.

    It solves the paper's matrix Riccati equation. For diagonal Gaussians it is diagonal, psi = (u - 1) / (2 gamma). At
    gamma = 0 the two are independent; as gamma grows, Psi approaches that of the Monge map. For full matrices the
    optimal Psi is not symmetric, and the lower left block of the joint covariance is its transpose.

    Args:
        p, q: as for :func:`entropic_wasserstein`; the result is independent of their means.
        gamma: strength of the coupling, at least 0.

    Returns:
        Shape (N, D) for ``Gaussian``, (N, D, D) for :class:`FullGaussian`.

    Source: Cemgil et al. 2019, eqs. 18 and 24.
    """
    nonnegative("gamma", gamma)
    if not _full(p, q):
        product = upcast(p.scale) * upcast(q.scale)  # type: ignore[union-attr]
        t = 2 * gamma * product
        return product * (t / (1 + torch.hypot(torch.ones_like(t), t)))  # (u - 1) / (2 gamma) without the difference
    a, b = p.covariance.double(), q.covariance.double()  # type: ignore[union-attr]
    root, one = matrix_sqrt(a), torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    inner = root @ b @ root
    # (M^(1/2) - I / (2 gamma)) = inner (M^(1/2) + I / (2 gamma))^-1, M = inner + I / (4 gamma^2): no difference either
    middle = torch.linalg.solve(matrix_sqrt(one + 4 * gamma**2 * inner) + one, 2 * gamma * inner)
    return torch.linalg.solve(root, root @ middle, left=False).to(upcast(p.mean).dtype)


class _MatrixSqrt(torch.autograd.Function):
    """The symmetric square root; Sylvester's equation gives its gradient, also at repeated eigenvalues."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(a)
        roots = values.clamp(min=0).sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors * roots.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        inner = vectors.mT @ (0.5 * (grad + grad.mT)) @ vectors
        return vectors @ (inner / (roots.unsqueeze(-1) + roots.unsqueeze(-2))) @ vectors.mT


def matrix_sqrt(a: Tensor) -> Tensor:
    """The symmetric square root of symmetric positive semidefinite matrices, in float64; shape (..., D, D).

    It can be differentiated (once) wherever ``a`` is positive definite, also at repeated eigenvalues, where the
    gradient of an eigendecomposition is NaN.
    """
    a = a.double()
    return _MatrixSqrt.apply(0.5 * (a + a.mT))


def _full(p: Any, q: Any) -> bool:
    full = isinstance(p, FullGaussian), isinstance(q, FullGaussian)
    if full[0] != full[1]:
        raise TypeError(
            f"p is a {type(p).__name__} and q a {type(q).__name__}, expected both Gaussian or both FullGaussian"
        )
    return full[0]


def _pair(p: Any, q: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of two full Gaussians: squared distances of the means and of the aligned roots, (N,), and singular values (N, D).

    With A = L L^T and B = K K^T, the singular values of K^T L are the roots of the eigenvalues of A B. Its singular
    vectors give the rotation that brings K closest to L. At this minimum the rotation has no first-order effect, so the
    vectors are treated as constants and no gradient passes through the decomposition.
    """
    left, right = (torch.linalg.cholesky(0.5 * (g.covariance + g.covariance.mT).double()) for g in (p, q))
    product = right.mT @ left
    u, _, vt = torch.linalg.svd(product.detach())
    roots = (left - right @ (u @ vt)).square().sum((-2, -1))
    values = torch.einsum("...ij,...ik,...jk->...k", product, u, vt.mT)
    means = (p.mean.double() - q.mean.double()).square().sum(-1)
    return means, roots, values


def pair_log_normalizer(dim: int, gamma: float) -> float:
    """ln of the integral of N(a; 0, I) N(b; 0, I) exp(-gamma/2 ||a - b||^2), which is -D/2 ln(1 + 2 gamma)."""
    return -0.5 * dim * math.log1p(2 * nonnegative("gamma", gamma))
