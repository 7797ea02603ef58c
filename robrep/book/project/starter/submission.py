"""Our encoder. The judge calls encoder(shape), loads weights.safetensors into it, and fits a linear head to its codes.

A forward pass is a fixed list of PyTorch's operators: no random numbers, no decisions that depend on the images.
"""

from torch import Tensor, nn

from robrep.encoders import ConvEncoder


class MeanCode(nn.Module):
    """A Gaussian encoder whose code is its mean."""

    def __init__(self, gaussian: nn.Module) -> None:
        super().__init__()
        self.gaussian_encoder = gaussian

    def forward(self, x: Tensor) -> Tensor:
        return self.gaussian_encoder(x).mean


def encoder(shape: tuple[int, int, int]) -> nn.Module:
    """Images (N, C, H, W) of this shape, in [0, 1], to codes (N, D)."""
    return MeanCode(ConvEncoder(shape[0], dim=32, widths=(32, 64, 64), strides=(1, 2, 2), groups=0))
