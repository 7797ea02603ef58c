"""Networks: an encoder gives a code for each image, a tensor (N, D) or a :class:`~robrep.gaussians.Gaussian`."""

from __future__ import annotations

from robrep.encoders.small import (
    ConvDecoder,
    ConvEncoder,
    FlatConvEncoder,
    MeanCode,
    MLPDecoder,
    MLPEncoder,
    MLPHead,
    PooledConv,
    he_init,
    log_variance_code,
    start_certain,
)

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "FlatConvEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "MLPHead",
    "MeanCode",
    "PooledConv",
    "he_init",
    "log_variance_code",
    "start_certain",
]
