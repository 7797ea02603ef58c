"""Foundation models: load them, prepare their input, and freeze them behind a pre-processor."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.checks import one_of, optional, positive_int
from robrep.gaussians import upcast
from robrep.objectives import own_ids
from robrep.random import fold, uniform

#: Mean and standard deviation of the channels of ImageNet, for images in [0, 1], as in the configuration of ViT-MAE.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Prepare(nn.Module):
    """Resize images bilinearly and normalise them for a network; gradients pass through.

    Three channels are normalised with ImageNet's mean and standard deviation, any other number with 0.5 and 0.5.

    Args:
        image_size: height and width after resizing, in pixels.
        channels: number of channels that the network expects; a grey image is repeated in each of them.

    Shapes: images (N, C, H, W) in [0, 1] to (N, channels, image_size, image_size).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, channels: int = 3) -> None:
        super().__init__()
        self.image_size, self.channels = positive_int("image_size", image_size), positive_int("channels", channels)
        for name, imagenet in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = imagenet if channels == 3 else (0.5,) * channels
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, self.channels):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, {self.channels}, H, W), or one grey channel")
        x = x.expand(-1, self.channels, -1, -1)
        if tuple(x.shape[2:]) != (self.image_size, self.image_size):
            x = F.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False)
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class ViTMAE(nn.Module):
    """The encoder of a ViT-MAE, a vision transformer pre-trained as a masked auto-encoder, with all patches visible.

    The model of the transformers library hides 75 % of the patches in *every* forward pass, even in evaluation mode,
    and draws them from the global random state, so each pass evaluates a different model. Here the mask ratio is 0 and
    the patches keep their order by default, and (seed, id) decides every mask.

    Args:
        model: a ``transformers.ViTMAEModel``. The mask ratio in its configuration is overwritten.
        token: which token is the code: "cls", the first of the last layer, or "mean", the mean of all others. The paper
            does not say which one its head uses.
        mask_ratio: fraction of patches to hide, drawn anew for each image and seed; for experiments.

    Attributes:
        dim: dimension of the code.
        random: whether masks are drawn; a :class:`Chain` then averages over ``samples`` of them.

    Shapes: images (N, C, H, W) in [0, 1], of any size, to codes (N, dim).

    Raises:
        TypeError: ``model`` is not a ViTMAEModel.
        ValueError: ``mask_ratio`` is not in [0, 1), or leaves no patch visible.

    Source: He et al. 2022; Liu et al. 2025, appendix A.
    """

    gaussian = False

    def __init__(self, model: Any, *, token: Literal["cls", "mean"] = "cls", mask_ratio: float = 0.0) -> None:
        super().__init__()
        if not hasattr(model, "embeddings"):
            raise TypeError(f"model is a {type(model).__name__}, expected a ViTMAEModel (the .vit of a larger model)")
        self.patches = int(model.embeddings.patch_embeddings.num_patches)
        if not 0 <= mask_ratio < 1 or int(self.patches * (1 - mask_ratio)) < 1:
            raise ValueError(
                f"mask_ratio is {mask_ratio}, expected one in [0, 1) that leaves one of {self.patches} patches visible"
            )
        self.token, self.random = one_of("token", token, ("cls", "mean")), mask_ratio > 0
        model.config.mask_ratio = float(mask_ratio)
        self.prepare = Prepare(model.config.image_size, model.config.num_channels)
        self.model, self.dim = model, int(model.config.hidden_size)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Codes (N, dim).

        Args:
            x: images.
            ids: int64 (N,), which with ``seed`` decide the masks; None for 0 to N - 1. Without masks they have no
                effect.
            seed: seed of the masks.
        """
        if self.random:
            ids = own_ids(ids, x)
            order = uniform(fold(seed, "mask"), ids, (self.patches,)).to(x.device)
        else:  # otherwise the library shuffles the patches, which changes the rounding
            order = torch.arange(self.patches, device=x.device, dtype=torch.float32).expand(len(x), -1)
        tokens = self.model(self.prepare(x), noise=order).last_hidden_state
        return tokens[:, 0] if self.token == "cls" else tokens[:, 1:].mean(1)


def load_vit_mae(name: str = "facebook/vit-mae-large", *, local_only: bool = False, **options: Any) -> ViTMAE:
    """Load a pre-trained ViT-MAE through transformers, by default the paper's, with 303.3 million parameters.

    Args:
        name: a model of the Hugging Face hub, or a folder with ``config.json`` and ``model.safetensors``.
        local_only: use only files on this machine, without any download.
        options: ``token`` and ``mask_ratio`` of :class:`ViTMAE`.

    Raises:
        ImportError: transformers is not installed.
        OSError: the model is neither on this machine nor can it be downloaded.
    """
    model = fetch(optional("transformers", "foundation").ViTMAEModel, "ViT-MAE", name, local_only)
    return ViTMAE(model, **options).eval()


def fetch(kind: Any, what: str, name: str, local_only: bool) -> Any:
    """``kind.from_pretrained``, with an error in one sentence if it fails.

    Args:
        kind: a class of transformers or diffusers.
        what: what it loads, in words.
        name, local_only: as for :func:`load_vit_mae`.

    Raises:
        OSError: the model is neither on this machine nor can it be downloaded.
    """
    try:
        return kind.from_pretrained(name, local_files_only=local_only)
    except Exception as error:  # from OSError to a client library's own, and each version has others
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OSError(
            f"name is {name!r}, expected a folder with a {what} (config and safetensors), or a model that is in the "
            f"Hugging Face cache or can be downloaded: {reason}"
        ) from error


class FrozenFoundation(nn.Module):
    """A pre-processor and a foundation model as one frozen encoder, always in evaluation mode.

    Gradients pass through both to the image. They are disabled for all parameters.

    Args:
        preprocessor: maps images to images of the same shape; None for no pre-processor (the paper's Identity).
        foundation: maps images to codes (N, D): a :class:`ViTMAE` or any other encoder.
    """

    gaussian = False

    def __init__(self, preprocessor: nn.Module | None, foundation: nn.Module) -> None:
        super().__init__()
        self.preprocessor = nn.Identity() if preprocessor is None else preprocessor
        self.foundation, self.random = foundation, bool(getattr(foundation, "random", False))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenFoundation:
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Codes (N, D); ``ids`` and ``seed`` decide the masks of a foundation model that draws masks."""
        x = self.preprocessor(x)
        return self.foundation(x, ids=ids, seed=seed) if self.random else self.foundation(x)


class Chain(nn.Module):
    """The whole defended classifier: pre-processor, foundation model and head, of which only the head is trainable.

    If the foundation model draws masks, the probabilities are averaged over ``samples`` of them.

    Args:
        encoder: a :class:`FrozenFoundation`.
        head: maps codes (N, D) to logits (N, C).
        samples: number of masks to average over, at least 1. The attribute is 0 if no masks are drawn, which tells
            attacks and evaluations that the model is deterministic.

    Shapes: images (N, C, H, W) in [0, 1] to logits (N, C), or to log-probabilities where masks are averaged.
    """

    def __init__(self, encoder: FrozenFoundation, head: nn.Module, samples: int = 1) -> None:
        super().__init__()
        positive_int("samples", samples)
        self.encoder, self.head, self.samples = encoder, head, samples if encoder.random else 0

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Logits (N, C); ``ids``, int64 (N,), and ``seed`` decide the masks."""
        if not self.samples:
            return self.head(self.encoder(x))
        log_p = [
            upcast(self.head(self.encoder(x, ids=ids, seed=fold(seed, "sample", s)))).log_softmax(1)
            for s in range(self.samples)
        ]
        return torch.stack(log_p).logsumexp(0) - math.log(self.samples)
