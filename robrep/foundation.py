"""Foundation models: load them, prepare their input, freeze them behind a pre-processor, and adapt them by LoRA."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.checks import one_of, optional, positive_int
from robrep.gaussians import Gaussian, upcast
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
    model = _fetch(optional("transformers", "foundation").ViTMAEModel, "ViT-MAE", name, local_only)
    return ViTMAE(model, **options).eval()


def _fetch(kind: Any, what: str, name: str, local_only: bool) -> Any:
    """``kind.from_pretrained``, with an error in one sentence if it fails."""
    try:
        return kind.from_pretrained(name, local_files_only=local_only)
    except Exception as error:  # from OSError to a client library's own, and each version has others
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OSError(
            f"name is {name!r}, expected a folder with a {what} (config and safetensors), or a model that is in the "
            f"Hugging Face cache or can be downloaded: {reason}"
        ) from error


def new_vit_mae(
    image_size: int = 32,
    channels: int = 3,
    *,
    patch: int = 4,
    width: int = 96,
    depth: int = 4,
    heads: int = 3,
    decoder_width: int = 48,
) -> Any:
    """A small, untrained ``transformers.ViTMAEForPreTraining``, for :class:`robrep.methods.MaskedPretraining`.

    Args:
        image_size: height and width of the images, in pixels; a multiple of ``patch``.
        channels: number of channels of the images.
        patch: height and width of a patch, in pixels.
        width, depth, heads: of the encoder; its MLPs are 4 times as wide. The fixed sine-cosine positions require a
            width that is a multiple of 4.
        decoder_width: of the decoder, one block with as many heads as the encoder.

    Raises:
        ImportError: transformers is not installed.
        ValueError: ``image_size`` is not a multiple of ``patch``, or a width not one of 4 and of ``heads``.
    """
    transformers = optional("transformers", "foundation")
    if image_size % positive_int("patch", patch):
        raise ValueError(f"image_size is {image_size}, expected a multiple of patch, {patch}")
    for name, value in (("width", width), ("decoder_width", decoder_width)):
        if positive_int(name, value) % 4 or value % positive_int("heads", heads):
            raise ValueError(f"{name} is {value}, expected a multiple of 4 and of heads, {heads}")
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=image_size,
            num_channels=channels,
            patch_size=patch,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * decoder_width,
        )
    )


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


def with_lora(vit: ViTMAE, rank: int = 8, alpha: float = 16.0) -> ViTMAE:
    """A copy of a ViT-MAE with low-rank adaptation (LoRA, Hu et al. 2022) of its queries and values.

    Only the small matrices that LoRA adds are trainable.

    Args:
        vit: the model.
        rank: rank of the added matrices. The paper gives no settings for its rows "+ LoRA".
        alpha: the added matrices are scaled by alpha / rank.

    Raises:
        ImportError: peft is not installed.
        TypeError: ``vit`` is not a :class:`ViTMAE`.
    """
    peft = optional("peft", "lora")
    if not isinstance(vit, ViTMAE):
        raise TypeError(f"vit is a {type(vit).__name__}, expected a ViTMAE, whose queries and values are adapted")
    vit = copy.deepcopy(vit)
    last = {name.rsplit(".", 1)[-1] for name, _ in vit.model.named_modules()}
    targets = ["q_proj", "v_proj"] if "q_proj" in last else ["query", "value"]  # transformers 5, and before
    config = peft.LoraConfig(r=positive_int("rank", rank), lora_alpha=alpha, target_modules=targets)
    vit.model = peft.inject_adapter_in_model(config, vit.model)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return vit


class LatentDiffusionVAE(nn.Module):
    """The paper's pre-processor "VAE", a variational auto-encoder for latent diffusion; it decodes the mean code.

    Args:
        model: a ``diffusers.AutoencoderKL``.

    Shapes: images (N, C, H, W) in [0, 1] to images of the same shape, which are not clamped. That of Stable Diffusion
    requires C = 3, and H and W that are multiples of 8.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.posterior(x).mean)

    def posterior(self, x: Tensor) -> Gaussian:
        """p(z|x), whose mean and scale have the shape (N, latent channels, h, w)."""
        found = self.model.encode(2 * x - 1).latent_dist
        return Gaussian(found.mean, found.std)

    def decode(self, z: Tensor) -> Tensor:
        """Codes (N, latent channels, h, w) to images (N, C, H, W)."""
        return (self.model.decode(z).sample + 1) / 2


def load_diffusion_vae(name: str = "stabilityai/sd-vae-ft-mse", *, local_only: bool = False) -> LatentDiffusionVAE:
    """Load the auto-encoder of Stable Diffusion through diffusers, by default the paper's.

    Args:
        name, local_only: as for :func:`load_vit_mae`.

    Raises:
        ImportError: diffusers is not installed.
        OSError: the model is neither on this machine nor can it be downloaded.
    """
    diffusers = optional("diffusers", "vae")
    return LatentDiffusionVAE(_fetch(diffusers.AutoencoderKL, "AutoencoderKL", name, local_only)).eval()


def new_diffusion_vae(
    channels: int = 3, widths: tuple[int, ...] = (16, 32, 32), latent_channels: int = 4
) -> LatentDiffusionVAE:
    """A small, untrained :class:`LatentDiffusionVAE`, for :class:`robrep.methods.VariationalReconstruction`.

    Args:
        channels: number of channels of the images.
        widths: number of channels at each level, multiples of 8; each level but the last halves height and width.
        latent_channels: number of channels of the code; Stable Diffusion has 4.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: ``widths`` is empty, or a width is not a multiple of 8.
    """
    diffusers = optional("diffusers", "vae")
    if not widths or any(positive_int("widths", width) % 8 for width in widths):
        raise ValueError(f"widths is {widths}, expected at least one width, each a multiple of 8")
    levels = len(widths)
    model = diffusers.AutoencoderKL(
        in_channels=positive_int("channels", channels),
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(widths),
        norm_num_groups=8,
        latent_channels=positive_int("latent_channels", latent_channels),
    )
    return LatentDiffusionVAE(model)
