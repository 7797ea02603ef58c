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


def wide(t: Tensor) -> Tensor:
    """``t`` in float32, or in float64 if it is so already."""
    return t if t.dtype == torch.float64 else t.float()


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    r"""KL[p || q], summed over dimensions, in nats; shape (N,).

    .. math:: \tfrac12 \sum_k \left[\ln\frac{s'^2_k}{s^2_k} + \frac{s^2_k + (\mu_k-\mu'_k)^2}{s'^2_k} - 1\right]

    Source: Nguyen et al. 2022, the closed form behind Urkle (clean distribution first). With r = s/s', the terms
    r^2 - 1 - 2 ln r are computed from r - 1, so that the result keeps its digits where q is close to p.
    """
    s, s_ = wide(p.scale), wide(q.scale)
    d = (s - s_) / s_  # r - 1
    m = (wide(p.mean) - wide(q.mean)) / s_
    r = s / s_
    # ln r: by log1p near 1; below 1/2, r - 1 has lost its digits. The clamps only keep the unused branch finite.
    log_r = torch.where(r > 0.5, torch.log1p(d.clamp(min=-0.9)), torch.log(r.clamp(max=1)))
    return (0.5 * (d * (d + 2) + m * m) - log_r).sum(-1)


def standard_normal_like(p: Gaussian) -> Gaussian:
    """N(0, I) of the shape of ``p``, the prior of a VAE."""
    return Gaussian(torch.zeros_like(p.mean), torch.ones_like(p.scale))
