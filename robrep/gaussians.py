"""Gaussians as pairs of tensors, and the divergences between them.

Everything is computed in float32 or wider, because in bfloat16 the KL divergence near x' = x loses most of its digits.
Functions of full covariance matrices compute in float64, whatever the precision of their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robrep.checks import nonnegative


class Gaussian(NamedTuple):
    """A batch of diagonal Gaussians N(mean, diag(scale**2)).

    Attributes:
        mean: shape (N, D).
        scale: standard deviations (not variances), positive, shape (N, D).
    """

    mean: Tensor
    scale: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + scale * noise (the reparametrisation trick); ``noise`` is standard normal, shape (..., N, D)."""
        return self.mean + self.scale * noise

    def detach(self) -> Gaussian:
        """The same Gaussians without gradients."""
        return Gaussian(self.mean.detach(), self.scale.detach())

    def chunk(self, n: int) -> tuple[Gaussian, ...]:
        """The batch in ``n`` parts, split as by ``Tensor.chunk``."""
        return tuple(Gaussian(*part) for part in zip(self.mean.chunk(n), self.scale.chunk(n), strict=True))

    @staticmethod
    def cat(parts: Sequence[Gaussian]) -> Gaussian:
        """The parts concatenated into one batch."""
        return Gaussian(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


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


def upcast(t: Tensor) -> Tensor:
    """``t`` in float32; float64 stays as it is."""
    return t if t.dtype == torch.float64 else t.float()


def full_precision(t: Tensor) -> Any:
    """A context that turns mixed precision off on the device of ``t``."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    r"""KL[p || q], summed over dimensions, in nats; shape (N,).

    .. math:: \tfrac12 \sum_k \left[\ln\frac{s'^2_k}{s^2_k} + \frac{s^2_k + (\mu_k-\mu'_k)^2}{s'^2_k} - 1\right]

    Source: Nguyen et al. 2022, the closed form behind Urkle (clean distribution first). With r = s/s', the terms
    r^2 - 1 - 2 ln r are computed from r - 1, so that the result stays accurate where q is close to p.
    """
    s, s_ = upcast(p.scale), upcast(q.scale)
    d = (s - s_) / s_  # r - 1
    m = (upcast(p.mean) - upcast(q.mean)) / s_
    r = s / s_
    # ln r by log1p near 1, and by log below 1/2, where r - 1 is inaccurate; the clamps keep the unused branch finite
    log_r = torch.where(r > 0.5, torch.log1p(d.clamp(min=-0.9)), torch.log(r.clamp(max=1)))
    return (0.5 * (d * (d + 2) + m * m) - log_r).sum(-1)


def standard_normal_like(p: Gaussian) -> Gaussian:
    """N(0, I) of the shape of ``p``, the prior of a VAE."""
    return Gaussian(torch.zeros_like(p.mean), torch.ones_like(p.scale))


def wasserstein2(p: Gaussian | FullGaussian, q: Gaussian | FullGaussian) -> Tensor:
    r"""The squared 2-Wasserstein distance W2^2, in squared units of z; shape (N,).

    .. math:: \lVert\mu_a-\mu_b\rVert^2
        + \mathrm{Tr}\big(\Sigma_a+\Sigma_b-2(\Sigma_b^{1/2}\Sigma_a\Sigma_b^{1/2})^{1/2}\big)

    For diagonal Gaussians this is the squared distance of the means plus the squared distance of the scales. For full
    matrices it is the smallest squared distance between a root of one covariance and a rotated root of the other. This
    form is never negative and has a gradient wherever both are positive definite, also at repeated eigenvalues.

    Args:
        p, q: both ``Gaussian`` or both :class:`FullGaussian`, of the same shape.

    Raises:
        TypeError: one argument is a ``Gaussian`` and the other a :class:`FullGaussian`.
        torch.linalg.LinAlgError: a covariance matrix that is not positive definite.

    Source: Cemgil et al. 2019, eq. 12.
    """
    if _full(p, q):
        means, roots, _ = _pair(p, q)
        return (means + roots).to(upcast(p.mean).dtype)
    (m, s), (m_, s_) = p, q
    return ((upcast(m) - upcast(m_)).square() + (upcast(s) - upcast(s_)).square()).sum(-1)  # type: ignore[operator]


def entropic_wasserstein(p: Gaussian | FullGaussian, q: Gaussian | FullGaussian, gamma: float = 1.0) -> Tensor:
    r"""The entropy regularized Wasserstein term WD of the smooth encoder, in nats; shape (N,).

    .. math:: \min_Q\; \tfrac{\gamma}{2}\,\mathbb E_Q\lVert z_a-z_b\rVert^2 - H[Q]

    over all joint densities Q of (z_a, z_b) with the marginals p and q. It is not a distance: it can be negative, and
    its minimum is not at q = p. At gamma = 0 it equals minus the sum of the two entropies; as gamma grows, 2/gamma
    times it approaches W2^2. With t = 2 gamma s_a s_b and u = sqrt(1 + t^2), each dimension contributes

    .. math:: \tfrac{\gamma}{2}\big[(\mu_a-\mu_b)^2+(s_a-s_b)^2\big] + \tfrac12\Big[1-\frac{1}{t+u}\Big]
        + \tfrac12\ln(1+u) - \tfrac12\ln(2 s_a^2 s_b^2) - \ln(2\pi) - 1,

    which is the paper's closed form without its difference of large numbers. For full matrices, the singular values of
    S_b^(1/2) S_a^(1/2) replace the products s_a s_b.

    Args:
        p, q: both ``Gaussian`` or both :class:`FullGaussian`, of the same shape.
        gamma: strength of the coupling, at least 0.

    Raises:
        TypeError: one argument is a ``Gaussian`` and the other a :class:`FullGaussian`.
        ValueError: a negative ``gamma``.
        torch.linalg.LinAlgError: a covariance matrix that is not positive definite.

    Source: Cemgil et al. 2019, eqs. 18-24 (the summary in their section 6 prints a mean term that is always zero).
    """
    nonnegative("gamma", gamma)
    if _full(p, q):
        means, roots, product = _pair(p, q)
        value = 0.5 * gamma * (means + roots) + _entropic_part(product, gamma).sum(-1)
        return value.to(upcast(p.mean).dtype)
    distance = wasserstein2(p, q)
    s, s_ = upcast(p.scale), upcast(q.scale)  # type: ignore[union-attr]
    # ln s + ln s' and not ln (s s'): the product of two tiny scales is 0 in float32
    return 0.5 * gamma * distance + _entropic_part(s * s_, gamma, s.log() + s_.log()).sum(-1)


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


def _entropic_part(product: Tensor, gamma: float, log_product: Tensor | None = None) -> Tensor:
    """What entropic_wasserstein adds to gamma/2 W2^2 in each dimension, given the products s_a s_b of the scales."""
    t = 2 * gamma * product
    u = torch.hypot(torch.ones_like(t), t)
    log_product = product.log() if log_product is None else log_product
    constant = 1 + 0.5 * math.log(2) + math.log(2 * math.pi)
    return 0.5 * (1 - 1 / (t + u)) + 0.5 * torch.log1p(u) - log_product - constant
