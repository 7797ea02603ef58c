"""Foundation models, trained by others: loaded, fed in their own units, put behind a pre-processor and left frozen."""

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

#: Mean and standard deviation of ImageNet's channels, in [0, 1]: what ViT-MAE's own configuration says.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Prepare(nn.Module):
    """Images as a network wants them, inside the graph: scaled up bilinearly and normalised.

    Args:
        image_size: side to scale to.
        channels: channels that the network wants; grey images are repeated where it wants three.
        mean, std: of the channels; None for ImageNet's with three channels, else 0.5 each.

    Shapes: images (N, C, H, W) in [0, 1] to (N, channels, image_size, image_size).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int,
        channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.channels = positive_int("image_size", image_size), positive_int("channels", channels)
        for name, given, imagenet in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
            values = given or (imagenet if channels == 3 else (0.5,) * channels)
            if len(values) != channels:
                raise ValueError(f"{name} has {len(values)} values, expected {channels}, one for each channel")
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, self.channels):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, {self.channels}, H, W), or one grey channel")
        x = x.expand(-1, self.channels, -1, -1)
        if tuple(x.shape[2:]) != (self.image_size, self.image_size):
            x = F.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False)
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class ViTMAE(nn.Module):
    """The encoder of a transformers ViT-MAE, which by itself masks 75 % of the patches in *every* forward pass.

    It does so in evaluation mode too, and from the global random state: a model evaluated that way is another one in
    every pass. Here the mask ratio is 0 and the patches keep their order unless asked otherwise, and what is random
    comes from (seed, id).

    Args:
        model: a ``transformers.ViTMAEModel``. It is taken over: the mask ratio in its configuration is set.
        token: what the code is: "cls", the first token of the last layer, or "mean", the mean of the others. The paper
            does not say which its head sees.
        mask_ratio: share of patches that are hidden, another choice for each image and seed; for experiments.
        mean, std: as for :class:`Prepare`.

    Attributes:
        dim: dimension of the code.
        random: whether a mask is drawn; then ``samples`` of a :class:`Chain` are averaged.

    Shapes: images (N, C, H, W) in [0, 1], of any size, to codes (N, dim).

    Raises:
        TypeError: the model is another one.
        ValueError: a mask ratio that is not in [0, 1) or hides everything.

    Source: He et al. 2022; Liu et al. 2025, appendix A.
    """

    gaussian = False

    def __init__(
        self,
        model: Any,
        *,
        token: Literal["cls", "mean"] = "cls",
        mask_ratio: float = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(model, "embeddings"):
            raise TypeError(f"model is a {type(model).__name__}, expected a ViTMAEModel (the .vit of a larger model)")
        self.patches = int(model.embeddings.patch_embeddings.num_patches)
        if not 0 <= mask_ratio < 1 or int(self.patches * (1 - mask_ratio)) < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}, expected at least 0, and one of {self.patches} patches left")
        self.token, self.random = one_of("token", token, ("cls", "mean")), mask_ratio > 0
        model.config.mask_ratio = float(mask_ratio)
        self.prepare = Prepare(model.config.image_size, model.config.num_channels, mean, std)
        self.model, self.dim = model, int(model.config.hidden_size)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Codes (N, dim).

        Args:
            x: images.
            ids: int64 (N,), naming the images' masks; 0 ... N - 1 if None. Without masks it does not matter.
            seed: seed of the masks.
        """
        if self.random:
            ids = own_ids(ids, x)
            order = uniform(fold(seed, "mask"), ids, (self.patches,)).to(x.device)
        else:  # without it the library shuffles the patches, and the rounding with them
            order = torch.arange(self.patches, device=x.device, dtype=torch.float32).expand(len(x), -1)
        tokens = self.model(self.prepare(x), noise=order).last_hidden_state
        return tokens[:, 0] if self.token == "cls" else tokens[:, 1:].mean(1)


def load_vit_mae(
    name: str = "facebook/vit-mae-large",
    *,
    token: Literal["cls", "mean"] = "cls",
    mask_ratio: float = 0.0,
    local_only: bool = False,
) -> ViTMAE:
    """Load a pre-trained ViT-MAE through transformers, by default the paper's, with 303.3 million parameters.

    Args:
        name: a model of the Hugging Face hub, or a folder with ``config.json`` and ``model.safetensors``.
        token, mask_ratio: as for :class:`ViTMAE`.
        local_only: use what is on this machine and ask no server.

    Raises:
        OSError: it is not here and cannot be fetched.
    """
    model = _fetch(optional("transformers", "foundation").ViTMAEModel, "ViT-MAE", name, local_only)
    return ViTMAE(model, token=token, mask_ratio=mask_ratio).eval()


def _fetch(kind: Any, what: str, name: str, local_only: bool) -> Any:
    """``kind.from_pretrained``, or one sentence saying why not."""
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
    decoder_depth: int = 1,
    mask_ratio: float = 0.75,
) -> Any:
    """A small, untrained ``transformers.ViTMAEForPreTraining``, for :class:`robrep.methods.MaskedPretraining`.

    Args:
        image_size: side of the images that it takes, a multiple of ``patch``.
        channels: channels of these.
        patch: side of a patch.
        width, depth, heads: of the encoder; the MLPs are 4 times as wide. Fixed sine-cosine positions want a width that
            is a multiple of 4.
        decoder_width, decoder_depth: of the decoder, which has the encoder's number of heads.
        mask_ratio: share of patches hidden in pre-training.

    Raises:
        ValueError: sizes that do not fit each other.
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
            decoder_num_hidden_layers=decoder_depth,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * decoder_width,
            mask_ratio=mask_ratio,
        )
    )


class FrozenFoundation(nn.Module):
    """A pre-processor and a foundation model as one encoder that stays as it is: always in evaluation mode.

    Gradients reach the image, through both, and no parameter: they are told to need none, and stay so.

    Args:
        preprocessor: images to images of the same shape; None for none (the paper's Identity).
        foundation: images to codes (N, D), a :class:`ViTMAE` or any other encoder.
    """

    gaussian = False

    def __init__(self, preprocessor: nn.Module | None, foundation: nn.Module) -> None:
        super().__init__()
        self.preprocessor = nn.Identity() if preprocessor is None else preprocessor
        self.foundation, self.random = foundation, bool(getattr(foundation, "random", False))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenFoundation:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Codes (N, D); ``ids`` and ``seed`` name the masks of a foundation model that draws some."""
        x = self.preprocessor(x)
        return self.foundation(x, ids=ids, seed=seed) if self.random else self.foundation(x)


class Chain(nn.Module):
    """The whole defended classifier: pre-processor, foundation model, head; only the head can be trained.

    If the foundation model draws masks, the probabilities are averaged over ``samples`` of them.

    Args:
        encoder: a :class:`FrozenFoundation`.
        head: codes (N, D) to logits (N, C).
        samples: masks to average over, at least 1; it becomes 0 where nothing is drawn, which is how attacks and
            evaluations see that the model is deterministic.

    Shapes: images (N, C, H, W) in [0, 1] to logits (N, C), log-probabilities where masks are averaged.
    """

    def __init__(self, encoder: FrozenFoundation, head: nn.Module, samples: int = 1) -> None:
        super().__init__()
        positive_int("samples", samples)
        self.encoder, self.head, self.samples = encoder, head, samples if encoder.random else 0

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Logits (N, C); ``ids``, int64 (N,), and ``seed`` name the masks."""
        if not self.samples:
            return self.head(self.encoder(x))
        log_p = [
            upcast(self.head(self.encoder(x, ids=ids, seed=fold(seed, "sample", s)))).log_softmax(1)
            for s in range(self.samples)
        ]
        return torch.stack(log_p).logsumexp(0) - math.log(self.samples)


def with_lora(vit: ViTMAE, rank: int = 8, alpha: float = 16.0) -> ViTMAE:
    """A copy of a ViT-MAE of which only low-rank adapters (LoRA, Hu et al. 2022) on queries and values can be trained.

    Args:
        vit: the model.
        rank: of the adapters. The paper gives no settings for its rows "+ LoRA".
        alpha: their scale is alpha / rank.

    Raises:
        ImportError: peft is not installed.
        TypeError: the model is another one.
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
    """The paper's pre-processor "VAE": a diffusers AutoencoderKL, of whose code the mean is decoded, without noise.

    Args:
        model: a ``diffusers.AutoencoderKL``.

    Shapes: images (N, C, H, W) in [0, 1] to such images, which are not clamped. Stable Diffusion's takes C = 3 and
    sides that are a multiple of 8.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.posterior(x).mean)

    def posterior(self, x: Tensor) -> Gaussian:
        """p(z|x), whose mean and scale are maps of shape (N, latent channels, h, w)."""
        found = self.model.encode(2 * x - 1).latent_dist
        return Gaussian(found.mean, found.std)

    def decode(self, z: Tensor) -> Tensor:
        """Maps of the code to images."""
        return (self.model.decode(z).sample + 1) / 2


def load_diffusion_vae(name: str = "stabilityai/sd-vae-ft-mse", *, local_only: bool = False) -> LatentDiffusionVAE:
    """Load the auto-encoder of Stable Diffusion, by default the paper's, in the format that diffusers reads.

    Args:
        name, local_only: as for :func:`load_vit_mae`.

    Raises:
        ImportError: diffusers is not installed.
        OSError: the model is not here and cannot be fetched.
    """
    diffusers = optional("diffusers", "vae")
    return LatentDiffusionVAE(_fetch(diffusers.AutoencoderKL, "AutoencoderKL", name, local_only)).eval()


def new_diffusion_vae(
    channels: int = 3, widths: tuple[int, ...] = (16, 32, 32), latent_channels: int = 4
) -> LatentDiffusionVAE:
    """A small, untrained one, for :class:`robrep.methods.VariationalReconstruction`.

    Args:
        channels: channels of the images.
        widths: channels of the feature maps, multiples of 8; each but the last halves the sides.
        latent_channels: channels of the code; Stable Diffusion has 4.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: a width that is no multiple of 8.
    """
    diffusers = optional("diffusers", "vae")
    if not widths or any(positive_int("widths", width) % 8 for width in widths):
        raise ValueError(f"widths is {widths}, expected at least one, and multiples of 8")
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
