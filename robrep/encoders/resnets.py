"""Residual networks for 32 x 32 images with a Gaussian or a plain code, and the projector of contrastive learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robrep.checks import positive_int
from robrep.gaussians import Gaussian, full_precision

DEPTHS = {18: ("BasicBlock", (2, 2, 2, 2)), 34: ("BasicBlock", (3, 4, 6, 3)), 50: ("Bottleneck", (3, 4, 6, 3))}


class ResNetEncoder(nn.Module):
    """A ResNet (He et al. 2016) of torchvision's blocks, with the stem for small images: 3 x 3, stride 1, no pooling.

    Args:
        depth: 18, 34 or 50.
        gaussian: give a ``Gaussian``: after the average pool a linear layer, in float32, with 2 D outputs, the mean and
            the scale through a softplus. Otherwise the pooled features themselves.
        width: channels of the first stage; 64 is the usual network, less a narrow one. They double from stage to stage.
        dim: D, the dimension of the Gaussian; None for as many as there are features (512 at depths 18 and 34, 2,048 at
            50, for width 64), as in Nguyen et al. 2022. A plain code has the features' dimension.
        channels: channels of the images.
        min_scale: added to the scale, which keeps the KL divergence finite.
        recompute: keep only what goes into each residual block for the backward pass, and compute the rest again there
            (Chen et al. 2016): it keeps less than a third of the numbers, for one more forward pass. Gradients and
            running statistics are the same.

    Attributes:
        dim: dimension of the code.

    Shapes: images (N, channels, H, W) in [0, 1] to codes (N, D), in float32.
    """

    def __init__(
        self,
        depth: int = 18,
        *,
        gaussian: bool = True,
        width: int = 64,
        dim: int | None = None,
        channels: int = 3,
        min_scale: float = 1e-4,
        recompute: bool = False,
    ) -> None:
        from torchvision.models import resnet

        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth is {depth}, expected one of {', '.join(map(str, DEPTHS))}")
        kind, blocks = DEPTHS[depth]
        block: Any = getattr(resnet, kind)
        positive_int("width", width), positive_int("channels", channels)
        stem = nn.Conv2d(channels, width, 3, 1, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        before, stages = width, []
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            stages.append(_stage(block, before, planes, count, stride=1 if stage == 0 else 2))
            before = planes * block.expansion
        self.features = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.recompute = recompute
        for layer in self.features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.gaussian, self.min_scale = gaussian, min_scale
        self.dim = before if dim is None or not gaussian else positive_int("dim", dim)
        self.code = nn.Linear(before, 2 * self.dim) if gaussian else nn.Identity()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Gaussian | Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # what convolutions are fastest with
        features = self._recomputed_features(x) if self.recompute and torch.is_grad_enabled() else self.features(x)
        with full_precision(x):
            features = features.to(next(self.parameters()).dtype)
            if not self.gaussian:
                return features
            mean, raw_scale = self.code(features).chunk(2, dim=1)
            return Gaussian(mean, F.softplus(raw_scale) + self.min_scale)

    def _recomputed_features(self, x: Tensor) -> Tensor:
        for layer in self.features:
            if not isinstance(layer, nn.Sequential):
                x = layer(x)
                continue
            for block in layer:
                norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
                again = lambda norms=norms: (nullcontext(), _statistics_kept(*norms))  # noqa: E731
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=again)
        return x


@contextmanager
def _statistics_kept(*norms: Any) -> Iterator[None]:
    """Batch norm as it is, but that running statistics stay as they are."""
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0  # the same tensors are saved for the backward pass as in the first forward pass
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # in place: a captured step knows it by its address


def _stage(block: Any, before: int, planes: int, count: int, stride: int) -> nn.Sequential:
    """Residual blocks of one width; the first takes the stride and, where shapes change, a 1 x 1 shortcut."""
    after = planes * block.expansion
    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
    return nn.Sequential(block(before, planes, stride, shortcut), *(block(after, planes) for _ in range(count - 1)))


class Projector(nn.Sequential):
    """Linear, ReLU, Linear: what NT-Xent sees of a code (Chen et al. 2020); no batch norm, as in RoCL's released code.

    Args:
        dim: D, the dimension of the code.
        hidden: width between (2,048 in RoCL).
        out: dimension of the projection (128 in RoCL).

    Shapes: codes (N, D) to projections (N, out).
    """

    def __init__(self, dim: int, hidden: int = 2048, out: int = 128) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))
