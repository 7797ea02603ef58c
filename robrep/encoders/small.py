"""Networks for small images: convolutions and perceptrons of the chapters on auto-encoders, and their heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.checks import positive_int
from robrep.gaussians import Gaussian, full_precision, upcast


def he_init(network: nn.Module) -> None:
    """Draw the weights of all layers so that a ReLU network keeps the scale of its input (He et al. 2015).

    With PyTorch's default a signal shrinks by about 0.4 a layer, all images get nearly the same code, and an
    auto-encoder stays for many epochs at the mean image. Biases are set to zero.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            inputs = layer.in_channels * math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose2d):  # how many of these reach one output pixel
                spread = layer.kernel_size if layer.padding == (0, 0) else layer.stride
                inputs //= math.prod(spread)
        elif isinstance(layer, nn.Linear):
            inputs = layer.in_features
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _convolutions(channels: int, widths: Sequence[int], strides: Sequence[int], groups: int = 0) -> list[nn.Module]:
    """3 x 3 convolutions with a ReLU after each, and a GroupNorm of so many groups after that (0 for none)."""
    if len(widths) != len(strides):
        raise ValueError(f"strides has {len(strides)} values, expected {len(widths)}, one for each of widths")
    layers: list[nn.Module] = []
    for before, after, stride in zip([positive_int("channels", channels), *widths], widths, strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
        layers += [nn.GroupNorm(groups, after)] if groups else []
    return layers


class PooledConv(nn.Conv2d):
    """A 3 x 3 convolution (stride 1, padding 1) followed by global average pooling, in float32; (N, C, H, W) -> (N, K).

    Both are linear, so the order can be turned round: the mean over all positions of a convolution is the kernel
    applied to the nine means of the shifted input. That is the same function for 1/(H W) of the multiplications, and
    cheap enough to be computed in float32 under mixed precision, where the codes need their digits.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            x = x.to(self.weight.dtype) / (x.shape[2] * x.shape[3])
            for dim in (2, 3):  # sums over the window's three positions: without the last line, all, without the first
                total = x.sum(dim, keepdim=True)
                x = torch.cat([total - x.narrow(dim, -1, 1), total, total - x.narrow(dim, 0, 1)], dim)
            return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)


class ConvEncoder(nn.Module):
    """Four 3 x 3 convolutions and a global average: the representation network of Nguyen et al. 2022 for MNIST.

    The paper gives the number of layers, the kernels and the width of the last; widths, strides and normalisation are
    ours to choose. The last convolution is linear, so a code may take any value.

    Args:
        channels: channels of the images.
        dim: D, the dimension of the code (128 in the paper).
        gaussian: give a ``Gaussian`` (the last layer has 2 D outputs: the mean, and the scale through a softplus),
            else a tensor (N, D).
        widths: channels of the convolutions before the last (three in the paper).
        strides: their strides.
        groups: groups of the GroupNorm after each of their ReLUs; 0 for none. No batch norm, so an example's code
            is independent of the rest of the batch.
        min_scale: added to the scale, which keeps the KL divergence finite.

    Shapes: images (N, channels, H, W) in [0, 1] to codes (N, D), in float32.

    Raises:
        ValueError: as many strides as widths are needed.
    """

    def __init__(
        self,
        channels: int = 1,
        dim: int = 128,
        *,
        gaussian: bool = True,
        widths: Sequence[int] = (64, 128, 128),
        strides: Sequence[int] = (1, 2, 1),
        groups: int = 8,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.dim, self.gaussian, self.min_scale = positive_int("dim", dim), gaussian, min_scale
        self.features = nn.Sequential(*_convolutions(channels, widths, strides, groups))
        self.code = PooledConv(widths[-1], 2 * dim if gaussian else dim)
        he_init(self)

    def forward(self, x: Tensor) -> Gaussian | Tensor:
        code = self.code(self.features(x))
        if not self.gaussian:
            return code
        mean, raw_scale = code.chunk(2, dim=1)
        return Gaussian(mean, F.softplus(raw_scale) + self.min_scale)


class ConvDecoder(nn.Module):
    """Four transposed convolutions from a code to an image, mirroring :class:`ConvEncoder` (Nguyen et al. 2022).

    The first one spreads the code, which has no extent, over a quarter of the image's side; two double it; the last
    draws the pixels. The output is not bounded: reconstruction is a squared error.

    Args:
        shape: (C, H, W) of the images; H and W multiples of 4.
        dim: D, the dimension of the code.
        widths: channels between the layers.

    Shapes: codes (N, D) to images (N, C, H, W).

    Raises:
        ValueError: H or W is no multiple of 4.
    """

    def __init__(self, shape: tuple[int, int, int], dim: int = 128, *, widths: Sequence[int] = (128, 64, 32)) -> None:
        super().__init__()
        channels, height, width = shape
        if height % 4 or width % 4:
            raise ValueError(f"shape is {tuple(shape)}, expected a height and width that are multiples of 4")
        a, b, c = widths
        self.net = nn.Sequential(
            nn.ConvTranspose2d(dim, a, (height // 4, width // 4)),
            nn.ReLU(),
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(b, c, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(c, channels, 3, padding=1),
        )
        he_init(self)

    def forward(self, z: Tensor) -> Tensor:
        return upcast(self.net(z[:, :, None, None]))


class MeanCode(nn.Module):
    """The mean of a Gaussian encoder's code as the code itself: a deterministic encoder, images to (N, D)."""

    gaussian = False

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).mean


class MLPHead(nn.Sequential):
    """Three fully connected layers with batch norm and ReLU between: the classifier of Nguyen et al. 2022 for MNIST.

    Args:
        dim: D, the dimension of the code.
        classes: number of classes C.

    Shapes: codes (N, D) to logits (N, C).
    """

    def __init__(self, dim: int = 128, classes: int = 10) -> None:
        super().__init__(
            nn.Linear(dim, dim // 2),
            nn.BatchNorm1d(dim // 2),
            nn.ReLU(),
            nn.Linear(dim // 2, dim // 4),
            nn.BatchNorm1d(dim // 4),
            nn.ReLU(),
            nn.Linear(dim // 4, classes),
        )


def log_variance_code(output: Tensor, limit: float = 12.0) -> Gaussian:
    """A ``Gaussian`` from means and log-variances side by side, (N, 2 D), in float32.

    The log-variance is kept within +-``limit`` (scales from 0.0025 to 403), so that no exponential overflows.
    """
    mean, log_variance = upcast(output).chunk(2, dim=1)
    return Gaussian(mean, torch.exp(0.5 * log_variance.clamp(-limit, limit)))


def start_certain(code: nn.Linear) -> None:
    """Draw a last layer of means and log-variances so that codes differ between images and carry little noise.

    Means start at unit spread and scales near 0.2. Started at N(0, I) for every image, a deep decoder sees only noise,
    and the prior wins before the reconstruction has begun: an auto-encoder that ends at the mean image.
    """
    dim = code.out_features // 2
    with torch.no_grad():
        code.weight[:dim].normal_(std=math.sqrt(1 / code.in_features))
        code.weight[dim:].normal_(std=0.1 * math.sqrt(1 / code.in_features))
        code.bias[:dim].zero_()
        code.bias[dim:].fill_(-3.0)


class LogVarianceEncoder(nn.Module):
    """A network and a linear layer that gives means and log-variances: images (N, C, H, W) to a ``Gaussian`` (N, D).

    Args:
        net: images to features.
        features: how many there are.
        dim: D, the dimension of the code.
    """

    gaussian = True

    def __init__(self, net: nn.Sequential, features: int, dim: int) -> None:
        super().__init__()
        self.dim, self.net, self.code = positive_int("dim", dim), net, nn.Linear(features, 2 * dim)
        he_init(self)
        start_certain(self.code)

    def forward(self, x: Tensor) -> Gaussian:
        return log_variance_code(self.code(self.net(x)))


class MLPEncoder(LogVarianceEncoder):
    """A multi-layer perceptron with a Gaussian code: the encoder of Cemgil et al. 2019.

    Args:
        shape: (C, H, W) of the images.
        dim: D, the dimension of the code (32, 64 or 128 in the paper).
        widths: units of the ReLU layers (four times 200 in the paper).

    Shapes: images (N, C, H, W) in [0, 1] to a ``Gaussian`` (N, D).
    """

    def __init__(
        self, shape: tuple[int, int, int], dim: int = 32, *, widths: Sequence[int] = (200, 200, 200, 200)
    ) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), *_dense([math.prod(shape), *widths])), widths[-1], dim)


class MLPDecoder(nn.Module):
    """A multi-layer perceptron from a code to an image, with the layers of :class:`MLPEncoder` (Cemgil et al. 2019).

    Shapes: codes (N, D) to images (N, C, H, W), not bounded.
    """

    def __init__(
        self, shape: tuple[int, int, int], dim: int = 32, *, widths: Sequence[int] = (200, 200, 200, 200)
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.net = nn.Sequential(*_dense([dim, *widths]), nn.Linear(widths[-1], math.prod(shape)))
        he_init(self)

    def forward(self, z: Tensor) -> Tensor:
        return upcast(self.net(z)).unflatten(1, self.shape)


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers with a ReLU after each."""
    pairs = zip(widths, widths[1:], strict=False)
    return [layer for before, after in pairs for layer in (nn.Linear(before, after), nn.ReLU())]


class FlatConvEncoder(LogVarianceEncoder):
    """Convolutions with ReLUs and a linear layer on all that is left: the ConvNet encoder of Cemgil et al. 2019.

    The paper gives four layers of 200 units; kernels (3 x 3) and strides are ours. :class:`ConvDecoder` with the widths
    turned round is its partner.

    Args:
        shape: (C, H, W) of the images.
        dim: D, the dimension of the code.
        widths: channels of the convolutions.
        strides: their strides.

    Shapes: images (N, C, H, W) in [0, 1] to a ``Gaussian`` (N, D).

    Raises:
        ValueError: as many strides as widths are needed.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dim: int = 32,
        *,
        widths: Sequence[int] = (200, 200, 200, 200),
        strides: Sequence[int] = (2, 2, 1, 1),
    ) -> None:
        channels, height, width = shape
        net = nn.Sequential(*_convolutions(channels, widths, strides), nn.Flatten())
        for stride in strides:
            height, width = -(-height // stride), -(-width // stride)
        super().__init__(net, widths[-1] * height * width, dim)
