"""Diagonal Gaussians as a pair of tensors, and the divergences between them.

Everything is computed in float32 or wider: under bfloat16 the KL divergence near x' = x loses most of its digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    r"""KL[p || q], summed over dimensions, in nats; shape (N,).

    .. math:: \tfrac12 \sum_k \left[\ln\frac{s'^2_k}{s^2_k} + \frac{s^2_k + (\mu_k-\mu'_k)^2}{s'^2_k} - 1\right]

    Source: Nguyen et al. 2022, the closed form behind Urkle (clean distribution first). With r = s/s', the terms
    r^2 - 1 - 2 ln r are computed from r - 1, so that the result keeps its digits where q is close to p.
    """
    s, s_ = _wide(p.scale), _wide(q.scale)
    d = (s - s_) / s_  # r - 1
    m = (_wide(p.mean) - _wide(q.mean)) / s_
    # ln r: by log1p where r >= 1/2; below, r - 1 has lost its digits and the rest of ln r is taken from r itself
    log_r = torch.log1p(d.clamp(min=-0.5)) + torch.log(2 * (s / s_).clamp(max=0.5))
    return (0.5 * (d * (d + 2) + m * m) - log_r).sum(-1)


def standard_normal_like(p: Gaussian) -> Gaussian:
    """N(0, I) of the shape of ``p``, the prior of a VAE."""
    return Gaussian(torch.zeros_like(p.mean), torch.ones_like(p.scale))
