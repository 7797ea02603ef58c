"""Networks that maximise mutual information: the encoder of Deep InfoMax, the critics that score pairs, the head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robrep.checks import positive_int

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Normalize(nn.Module):
    """(x - mean) / std for each channel, so that attacks see pixels in [0, 1]; images (N, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _features(shape: Sequence[int], widths: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Convolutions of kernel 4, stride 2, padding 1 with batch norm and ReLU, and how many positions their map has."""
    channels, height, width = shape
    n = len(widths)
    if min(height, width) >> n < 1:
        raise ValueError(f"shape is {tuple(shape)}, expected sides of at least {2**n} pixels for {n} convolutions")
    layers: list[nn.Module] = [Normalize(CIFAR_MEAN, CIFAR_STD)] if tuple(shape) == (3, 32, 32) else []
    for before, after in zip([channels, *widths[:-1]], widths, strict=True):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers), (height >> n) * (width >> n)


class InfoMaxEncoder(nn.Module):
    """The encoder of Deep InfoMax, cut at its code: "Baseline-H" of Zhu et al. 2020.

    Convolutions of kernel 4 and stride 2 with batch norm and ReLU, a hidden layer with the same, and a linear code. The
    defaults are the paper's for 32 x 32 (4,096 values after the convolutions) and 28 x 28 (2,304).

    Args:
        shape: (C, H, W) of the images. Colour images of 32 x 32 are normalised with CIFAR-10's mean and deviation in
            the first layer, others are taken as they are, as in the released code.
        dim: D, the dimension of the code.
        widths: channels of the convolutions.
        hidden: units of the hidden layer.

    Shapes: images (N, C, H, W) in [0, 1] to codes (N, D).

    Raises:
        ValueError: images too small for so many convolutions.

    Source: Hjelm et al. 2019, section 4; Zhu et al. 2020, section 6.2 and the released code.
    """

    gaussian = False

    def __init__(
        self, shape: tuple[int, int, int], dim: int = 64, *, widths: Sequence[int] = (64, 128, 256), hidden: int = 1024
    ) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.features, places = _features(shape, widths)
        wide = nn.Linear(widths[-1] * places, hidden)
        self.code = nn.Sequential(nn.Flatten(), wide, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.features(x))


class ResidualUnits(nn.Module):
    """Linear, batch norm, ReLU, linear, plus a linear shortcut, then layer norm: rows (M, inputs) to (M, units).

    On rows of a feature map these are the 1 x 1 convolutions of Deep InfoMax. The shortcut starts as the identity on
    the first units and small uniform numbers elsewhere.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, units)
        )
        self.shortcut, self.norm = nn.Linear(inputs, units), nn.LayerNorm(units)
        same = min(inputs, units)
        with torch.no_grad():
            self.shortcut.weight.uniform_(-0.01, 0.01)
            self.shortcut.weight[:same, :same].fill_diagonal_(1.0)

    def forward(self, rows: Tensor) -> Tensor:
        return self.norm(self.deep(rows) + self.shortcut(rows))


class Critic(nn.Module):
    """Encode and dot product: T_l(x, z) = <a(x)_l, b(z)> at each location l of a small feature map of x.

    a is a copy of the encoder's first convolutions (its own weights) and a block of 1 x 1 convolutions, b the same
    block on the code. One matrix product scores all pairs of a batch.

    Args:
        shape: (C, H, W) of the images.
        dim: D, of the codes.
        widths: channels of the convolutions of a (two in the paper, which leaves 8 x 8 or 7 x 7 locations).
        units: length of a(x)_l and b(z) (2048 in the paper).
        whole: flatten the map first: one location, information about the whole image in place of local information.

    Shapes: images (N, C, H, W) and codes (M, D) to scores (L, N, M).

    Source: Hjelm et al. 2019, fig. 4 and appendix; Zhu et al. 2020, section 6 and the released code.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dim: int = 64,
        *,
        widths: Sequence[int] = (64, 128),
        units: int = 2048,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.features, places = _features(shape, widths)
        self.locations, inputs = (1, widths[-1] * places) if whole else (places, widths[-1])
        self.image, self.code = ResidualUnits(inputs, units), ResidualUnits(positive_int("dim", dim), units)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        maps = self.features(x).flatten(2).transpose(1, 2)  # (N, locations, channels)
        a = self.image(maps.reshape(len(x) * self.locations, -1)).view(len(x), self.locations, -1)
        return torch.einsum("nlu,mu->lnm", a, self.code(z))


class InfoMaxHead(nn.Sequential):
    """The MLP head of Zhu et al. 2020: linear, dropout, batch norm, ReLU, linear; codes (N, D) to logits (N, C).

    Args:
        dim: D, the dimension of the code.
        classes: number of classes C.
        hidden: units of the hidden layer.
        dropout: share of the hidden units that is dropped.
    """

    def __init__(self, dim: int = 64, classes: int = 10, *, hidden: int = 200, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.Dropout(dropout), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )
