"""Networks with batch norm, as BYOL needs them: pre-activation ResNets, and a projector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robrep.checks import positive_int
from robrep.gaussians import upcast


class PreActResNet(nn.Module):
    """A pre-activation ResNet (He et al. 2016b) of basic blocks, timm's, with the stem for 32 x 32 images.

    The stem is one 3 x 3 convolution of stride 1, without pooling; after the last block come batch norm, ReLU and the
    average pool.

    Args:
        blocks: basic blocks in each stage; (3, 4, 6, 3) are the 34 layers of Gowal et al. 2021.
        width: factor on all channels: 1, 2 and 4 in the paper.
        base: channels of the first stage at width 1. They double from stage to stage.
        channels: channels of the images.

    Attributes:
        dim: dimension of the code: 512 x width for the 34 layers. (The paper says 2,048 at width 1; basic blocks have
            that many at width 4.)

    Shapes: images (N, channels, H, W) in [0, 1] to codes (N, dim), in float32.
    """

    gaussian = False

    def __init__(
        self, blocks: Sequence[int] = (3, 4, 6, 3), *, width: int = 1, base: int = 64, channels: int = 3
    ) -> None:
        from timm.layers import BatchNormAct2d, create_conv2d
        from timm.models.resnetv2 import ResNetV2

        super().__init__()
        positive_int("width", width), positive_int("base", base), positive_int("channels", channels)
        if base % 8:
            raise ValueError(f"base is {base}, expected a multiple of 8")  # timm would round it
        self.features = ResNetV2(
            layers=list(blocks),
            channels=tuple(base * 2**stage for stage in range(len(blocks))),
            num_classes=0,
            in_chans=channels,
            width_factor=width,
            stem_chs=base,
            basic=True,
            bottle_ratio=1.0,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
        )
        stem = nn.Conv2d(channels, base * width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.features.stem = nn.Sequential(stem)
        self.dim = base * 2 ** (len(blocks) - 1) * width
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return upcast(self.features(x.contiguous(memory_format=torch.channels_last)))


class NormMLP(nn.Sequential):
    """Linear, batch norm, ReLU, Linear: the projector and the predictor of BYOL (Grill et al. 2020).

    As in BYOL's released code the last layer has no bias.

    Args:
        dim: dimension of what comes in.
        hidden: width between (4,096 in the paper).
        out: dimension of what goes out (256 in the paper).

    Shapes: (N, dim) to (N, out).
    """

    def __init__(self, dim: int, hidden: int = 4096, out: int = 256) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out, bias=False)
        )
