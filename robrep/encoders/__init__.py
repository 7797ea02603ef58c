"""Networks: an encoder gives a code for each image, a tensor (N, D) or a :class:`~robrep.gaussians.Gaussian`."""

from __future__ import annotations

from robrep.encoders.infomax import Critic, InfoMaxEncoder, InfoMaxHead
from robrep.encoders.mae import MAE_SETTINGS, Halves, LatentCode, MaskedAutoEncoder
from robrep.encoders.preact import NormMLP, PreActResNet
from robrep.encoders.resnets import Projector, ResNetEncoder
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
    "MAE_SETTINGS", "ConvDecoder", "ConvEncoder", "Critic", "FlatConvEncoder", "Halves",
    "InfoMaxEncoder", "InfoMaxHead", "LatentCode", "MLPDecoder", "MLPEncoder", "MLPHead", "MaskedAutoEncoder",
    "MeanCode", "NormMLP", "PooledConv", "PreActResNet", "Projector", "ResNetEncoder", "he_init",
    "log_variance_code", "start_certain",
]  # fmt: skip
