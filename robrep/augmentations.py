"""Random augmentations, drawn example by example from (seed, id) and applied to a whole batch on its device.

An augmentation is called as ``augment(x, ids, seed)``. Each example has parameters of its own, and what becomes of it
depends on its image, its id and the seed, never on its batch. Geometry is one affine warp, colours are kornia's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robrep.checks import check_images, nonnegative
from robrep.random import Seed, fold, uniform

Augmentation = Callable[[Tensor, Tensor, Seed], Tensor]


def affine(x: Tensor, matrix: Tensor, padding: str = "zeros") -> Tensor:
    """Images (N, C, H, W) read at ``matrix`` (N, 2, 3) times (x, y, 1), bilinearly; coordinates run from -1 to 1.

    Args:
        padding: what lies outside an image: "zeros", "border" or "reflection".
    """
    grid = F.affine_grid(matrix.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def crop_boxes(u: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Boxes of a random resized crop of a square image: half-sizes and centres in -1 ... 1, each (N, 2).

    The area is uniform in ``scale`` and the aspect ratio log-uniform in ``ratio``; of ten tries the first that fits
    into the image counts, and the whole image if none does, as in torchvision.

    Args:
        u: uniform numbers, (N, 22).
    """
    area = scale[0] + (scale[1] - scale[0]) * u[:, :10]
    aspect = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[:, 10:20])
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=2)  # N x 10 x (width, height)
    fits = (sides <= 1).all(2)
    first = sides[torch.arange(len(u), device=u.device), fits.int().argmax(1)]
    half = torch.where(fits.any(1)[:, None], first, torch.ones_like(first))
    return half, (2 * u[:, 20:22] - 1) * (1 - half)


def colour_jitter(x: Tensor, u: Tensor, strengths: tuple[float, float, float, float]) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order; RGB images in [0, 1] to such images.

    Args:
        u: uniform numbers, (N, 4), one for each of the four.
        strengths: (b, c, s, h) as for torchvision's ColorJitter: factors from 1 - b to 1 + b and so on, hue shifted by
            up to h of a full turn.

    There the four come in random order; here in one order for all, so that a batch needs one pass.
    """
    from kornia import enhance

    b, c, s, h = ((2 * u[:, k] - 1) * strength for k, strength in enumerate(strengths))
    x = enhance.adjust_brightness_accumulative(x, (1 + b).clamp(min=0))
    x = enhance.adjust_contrast_with_mean_subtraction(x, (1 + c).clamp(min=0))
    x = enhance.adjust_saturation_with_gray_subtraction(x, (1 + s).clamp(min=0))
    return enhance.adjust_hue(x, 2 * math.pi * h).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """RGB images as grey ones of three equal channels (ITU-R 601 luma)."""
    red, green, blue = x.split(1, dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).expand_as(x)


@dataclass(frozen=True)
class Augment:
    """SimCLR's augmentations for natural images, or, with ``rotate``, ``shift`` and ``zoom``, those for digits.

    Args:
        crop: (smallest, largest) area of a random resized crop; None for no crop.
        flip: mirror half of the images.
        rotate: largest angle, in degrees, either way.
        shift: largest shift as a share of the side, either way, each axis.
        zoom: largest relative change of size, either way.
        jitter: strengths of :func:`colour_jitter`; None for none. Colours need three channels.
        jitter_share: share of images whose colours are jittered.
        grey_share: share of images that turn grey.

    Shapes: images (N, C, H, W) in [0, 1], ids int64 (N,) and a seed to images of that shape in [0, 1].

    Source: Chen et al. 2020; the default strengths are those of RoCL's released code (Kim et al. 2020).
    """

    crop: tuple[float, float] | None = (0.08, 1.0)
    flip: bool = True
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.1)
    jitter_share: float = 0.8
    grey_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("rotate", "shift", "zoom", "jitter_share", "grey_share"):
            nonnegative(name, getattr(self, name))
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {self.crop}, expected two shares of the area with 0 < smallest <= largest <= 1")

    def __call__(self, x: Tensor, ids: Tensor, seed: Seed) -> Tensor:
        check_images(x)
        u = uniform(fold(seed, "augment"), ids, (40,)).to(x)
        if matrix := self._matrix(u):
            x = affine(x, matrix[0], "reflection" if self.crop else "zeros")
        if self.jitter is not None and x.shape[1] == 3:
            x = torch.where(
                (u[:, 30] < self.jitter_share).view(-1, 1, 1, 1), colour_jitter(x, u[:, 31:35], self.jitter), x
            )
        if self.grey_share and x.shape[1] == 3:
            x = torch.where((u[:, 35] < self.grey_share).view(-1, 1, 1, 1), grey(x), x)
        return x.clamp(0, 1)

    def _matrix(self, u: Tensor) -> list[Tensor]:
        """The warp (N, 2, 3) in a list; an empty one if nothing is warped."""
        if self.crop is None and not (self.flip or self.rotate or self.shift or self.zoom):
            return []
        half, centre = torch.ones_like(u[:, :2]), torch.zeros_like(u[:, :2])
        if self.crop is not None:
            half, centre = crop_boxes(u[:, :22], self.crop, (3 / 4, 4 / 3))
        if self.flip:
            mirrored = torch.where(u[:, 22:23] < 0.5, -half[:, :1], half[:, :1])  # the horizontal axis
            half = torch.cat([mirrored, half[:, 1:]], dim=1)
        angle = math.radians(self.rotate) * (2 * u[:, 23] - 1)
        half = half / (1 + self.zoom * (2 * u[:, 24:25] - 1))
        centre = centre + 2 * self.shift * (2 * u[:, 25:27] - 1)
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([half[:, 0] * cos, -half[:, 0] * sin, centre[:, 0]], dim=1),
            torch.stack([half[:, 1] * sin, half[:, 1] * cos, centre[:, 1]], dim=1),
        ]
        return [torch.stack(rows, dim=1)]


def simclr_augmentation() -> Augment:
    """Random resized crop, flip, colour jitter (0.4, 0.4, 0.4, 0.1) with share 0.8, grey with share 0.2; no blur."""
    return Augment()


def digit_augmentation(colours: bool = True) -> Augment:
    """For small handwritten digits: turn, shift and zoom a little, and any tint; no flip, for a mirrored 2 is no digit.

    Args:
        colours: jitter the colours too; without it the tint of an image gives its two views away.
    """
    jitter = (0.4, 0.4, 0.4, 0.5) if colours else None
    return Augment(
        crop=None, flip=False, rotate=15, shift=0.125, zoom=0.15, jitter=jitter, grey_share=0.2 if colours else 0.0
    )
