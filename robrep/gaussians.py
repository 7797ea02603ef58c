"""Gaussians as pairs of tensors, and the divergences between them.

Everything is computed in float32 or wider, because in bfloat16 the KL divergence near x' = x loses most of its digits.
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


def wasserstein2(p: Gaussian, q: Gaussian) -> Tensor:
    """The squared 2-Wasserstein distance W2^2, in squared units of z; shape (N,).

    It is the squared distance of the means plus the squared distance of the scales.

    Source: Cemgil et al. 2019, eq. 12, for diagonal covariances.
    """
    (m, s), (m_, s_) = p, q
    return ((upcast(m) - upcast(m_)).square() + (upcast(s) - upcast(s_)).square()).sum(-1)


def entropic_wasserstein(p: Gaussian, q: Gaussian, gamma: float = 1.0) -> Tensor:
    r"""The entropy regularized Wasserstein term WD of the smooth encoder, in nats; shape (N,).

    .. math:: \min_Q\; \tfrac{\gamma}{2}\,\mathbb E_Q\lVert z_a-z_b\rVert^2 - H[Q]

    over all joint densities Q of (z_a, z_b) with the marginals p and q. It is not a distance: it can be negative, and
    its minimum is not at q = p. At gamma = 0 it equals minus the sum of the two entropies; as gamma grows, 2/gamma
    times it approaches W2^2. With t = 2 gamma s_a s_b and u = sqrt(1 + t^2), each dimension contributes

    .. math:: \tfrac{\gamma}{2}\big[(\mu_a-\mu_b)^2+(s_a-s_b)^2\big] + \tfrac12\Big[1-\frac{1}{t+u}\Big]
        + \tfrac12\ln(1+u) - \tfrac12\ln(2 s_a^2 s_b^2) - \ln(2\pi) - 1,

    which is the paper's closed form without its difference of large numbers.

    Args:
        p, q: of the same shape.
        gamma: strength of the coupling, at least 0.

    Raises:
        ValueError: a negative ``gamma``.

    Source: Cemgil et al. 2019, eqs. 18-24 (the summary in their section 6 prints a mean term that is always zero).
    """
    nonnegative("gamma", gamma)
    s, s_ = upcast(p.scale), upcast(q.scale)
    # ln s + ln s' and not ln (s s'): the product of two tiny scales is 0 in float32
    return 0.5 * gamma * wasserstein2(p, q) + entropic_part(s * s_, s.log() + s_.log(), gamma).sum(-1)


def entropic_part(product: Tensor, log_product: Tensor, gamma: float) -> Tensor:
    """What WD adds to gamma/2 W2^2 in each dimension, given the products s_a s_b of the scales and their logarithms."""
    t = 2 * gamma * product
    u = torch.hypot(torch.ones_like(t), t)
    constant = 1 + 0.5 * math.log(2) + math.log(2 * math.pi)
    return 0.5 * (1 - 1 / (t + u)) + 0.5 * torch.log1p(u) - log_product - constant
