"""A masked auto-encoder that sees all of an image in two halves: the pre-processor of CRoPD, on timm's ViT blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.checks import one_of, positive_int

#: Named settings of :class:`MaskedAutoEncoder`. "low_resolution" and "high_resolution" are the paper's (appendix A, for
#: 32 x 32 and 224 x 224 images); "cpu" is for 32 x 32 images and "digits" for 8 x 8 images on a CPU.
MAE_SETTINGS: dict[str, dict[str, int]] = {
    "digits": {"patch": 2, "width": 24, "depth": 2, "decoder_depth": 1, "heads": 3},
    "cpu": {"patch": 4, "width": 96, "depth": 4, "decoder_depth": 1, "heads": 3},
    "low_resolution": {"patch": 2, "width": 192, "depth": 8, "decoder_depth": 2, "heads": 3},
    "high_resolution": {"patch": 14, "width": 768, "depth": 8, "decoder_depth": 2, "heads": 3},
}


class Halves(NamedTuple):
    """What the encoder makes of an image's two halves: each a CLS token and then the half's tokens, (N, 1 + t, width).

    Attributes:
        first: of the patches on the white fields of the checkerboard.
        second: of those on the black fields.
    """

    first: Tensor
    second: Tensor


def checkerboard(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The patches on the white and on the black fields of a board, as numbers in row-major order, ascending; int64."""
    fields = [[i for i in range(rows * columns) if (i // columns + i % columns) % 2 == colour] for colour in (0, 1)]
    return torch.tensor(fields[0], dtype=torch.int64), torch.tensor(fields[1], dtype=torch.int64)


def places(own: Tensor, hidden: Tensor) -> Tensor:
    """Where CLS and the tokens of places 0, 1, ... stand in the sequence (CLS, tokens of own, tokens of hidden).

    The inverse permutation that brings a half's tokens, and mask tokens behind them, back to their places; (1 + T,).
    """
    order = torch.cat([own, hidden]).argsort() + 1
    return torch.cat([order.new_zeros(1), order])


class MaskedAutoEncoder(nn.Module):
    """A ViT-MAE without chance: both complementary halves of an image are encoded, decoded and averaged.

    The patches of a checkerboard's white and black fields form the halves, so a mask of 50 % that is always the same.
    Each half goes with a CLS token through the same encoder; the decoder fills the other half's places with mask
    tokens; the two decoded sequences are averaged, and a convolution along the embedding, with the tokens as channels,
    makes a patch's pixels of it. Where the code this derives from (Zhou et al. 2023) puts the second half back in the
    first half's order, so that its tokens land on the wrong places, each half here has its own inverse permutation.

    Args:
        image_size: H = W, or (H, W), in pixels; a multiple of ``patch``.
        channels: channels of the images.
        patch: side of a patch, in pixels.
        width: dimension of a token; a multiple of ``heads``, and at least as large as a patch has numbers.
        depth: transformer blocks of the encoder, pre-norm, MLP ratio 4.
        decoder_depth: transformer blocks of the decoder.
        heads: attention heads.
        pool: tokens, neighbours in row-major order, that are averaged for the latent vector. The paper says "a pooling
            factor of 8" only; pooled along the embedding there would be as many numbers.

    Attributes:
        dim: dimension of the latent vector: tokens times width over ``pool``.

    Shapes: images (N, channels, H, W) to images of that shape, which are not clamped to [0, 1].

    Raises:
        ValueError: sizes that do not fit each other.

    Source: Liu et al. 2025, section 4.1 and appendix A. Its low-resolution setting has 5,599,232 parameters here and
    18.45 million together with ``Projector(model.dim, 2048, 128)``.
    """

    gaussian = False
    white: Tensor
    black: Tensor
    white_places: Tensor
    black_places: Tensor

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        channels: int = 3,
        *,
        patch: int = 2,
        width: int = 192,
        depth: int = 8,
        decoder_depth: int = 2,
        heads: int = 3,
        pool: int = 8,
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        sizes = {"patch": patch, "width": width, "depth": depth, "decoder_depth": decoder_depth, "heads": heads}
        for name, value in {"channels": channels, "pool": pool, **sizes}.items():
            positive_int(name, value)
        height, breadth = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        if min(height, breadth) < patch or height % patch or breadth % patch:
            raise ValueError(f"image_size is {image_size}, expected a multiple of patch, {patch}")
        self.grid, self.patch, self.channels = (height // patch, breadth // patch), patch, channels
        tokens, pixels = self.grid[0] * self.grid[1], channels * patch**2
        if tokens < 2:
            raise ValueError(f"image_size is {image_size}, expected at least two patches of side {patch}")
        if width % heads or width < pixels:
            raise ValueError(
                f"width is {width}, expected a multiple of heads, {heads}, and at least {pixels}, a patch's numbers"
            )
        if tokens % pool:
            raise ValueError(f"pool is {pool}, expected a divisor of the {tokens} tokens that are pooled")
        self.pool, self.dim = pool, tokens * width // pool

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width, heads, mlp_ratio=4, qkv_bias=True) for _ in range(count)))

        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        self.encoder, self.norm = blocks(depth), nn.LayerNorm(width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_position = nn.Parameter(torch.empty(1, 1 + tokens, width))
        self.decoder = blocks(decoder_depth)
        stride = width // pixels  # kernel and stride 16 for 192 numbers to 12; else the kernel takes up what is left
        self.head = nn.Conv1d(tokens, tokens, width - (pixels - 1) * stride, stride)
        for parameter in (self.cls_token, self.position, self.mask_token, self.decoder_position):
            nn.init.trunc_normal_(parameter, std=0.02)
        white, black = checkerboard(*self.grid)
        for name, own, other in (("white", white, black), ("black", black, white)):
            self.register_buffer(name, own, persistent=False)
            self.register_buffer(f"{name}_places", places(own, other), persistent=False)

    @classmethod
    def named(
        cls, setting: str, image_size: int | tuple[int, int], channels: int = 3, **others: Any
    ) -> MaskedAutoEncoder:
        """The model of a setting of :data:`MAE_SETTINGS`; ``others`` go before it.

        Raises:
            ValueError: an unknown setting, or an image size that does not fit it.
        """
        return cls(image_size, channels, **(MAE_SETTINGS[one_of("setting", setting, MAE_SETTINGS)] | others))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Halves:
        """Images (N, C, H, W) to the tokens of their two halves.

        Raises:
            ValueError: images of another shape than this model is for.
        """
        expected = (self.channels, self.grid[0] * self.patch, self.grid[1] * self.patch)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, {', '.join(map(str, expected))})")
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        cls_token = self.cls_token.expand(len(x), -1, -1)
        halves = [torch.cat([cls_token, tokens[:, own]], dim=1) for own in (self.white, self.black)]
        if halves[0].shape == halves[1].shape:  # one pass through the shared encoder
            return Halves(*self.norm(self.encoder(torch.cat(halves))).chunk(2))
        return Halves(*(self.norm(self.encoder(half)) for half in halves))

    def decode(self, halves: Halves) -> Tensor:
        """The tokens of the two halves to one image, (N, C, H, W)."""
        filled = torch.cat([self._fill(halves.first, self.white_places), self._fill(halves.second, self.black_places)])
        one, other = self.decoder(filled + self.decoder_position)[:, 1:].chunk(2)
        patches, (rows, columns), side = self.head((one + other) / 2), self.grid, self.patch
        patches = patches.view(-1, rows, columns, self.channels, side, side).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(-1, self.channels, rows * side, columns * side)

    def latent(self, halves: Halves) -> Tensor:
        """The tokens of both halves, back at their places and average-pooled, as one vector: (N, dim), without CLS."""
        tokens = torch.cat([halves.first, halves.second[:, 1:]], dim=1)[:, self.white_places][:, 1:]
        return F.avg_pool1d(tokens.transpose(1, 2), self.pool).flatten(1)

    def _fill(self, half: Tensor, places: Tensor) -> Tensor:
        """CLS and the half's tokens, each at its own place, and mask tokens between them: (N, 1 + T, width)."""
        missing = len(places) - half.shape[1]
        return torch.cat([half, self.mask_token.expand(len(half), missing, -1)], dim=1)[:, places]


class LatentCode(nn.Module):
    """The latent vector of a :class:`MaskedAutoEncoder` as an encoder: images (N, C, H, W) to codes (N, dim).

    With a head on it and :class:`~robrep.methods.AdversarialTraining` it is the paper's encoder-only rival (Table 8).

    Args:
        autoencoder: the model whose encoder is used; it is shared, not copied.
    """

    gaussian = False

    def __init__(self, autoencoder: MaskedAutoEncoder) -> None:
        super().__init__()
        self.autoencoder, self.dim = autoencoder, autoencoder.dim

    def forward(self, x: Tensor) -> Tensor:
        return self.autoencoder.latent(self.autoencoder.encode(x))
