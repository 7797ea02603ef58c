"""The chapter on CRoPD: small models that it trains in place of published ones, the VAE of latent diffusion, LoRA."""

from __future__ import annotations

import copy
import hashlib
import io
from importlib.resources import files
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robrep.augmentations import Augmentation
from robrep.checks import nonnegative, optional, positive_int
from robrep.encoders import ResNetEncoder
from robrep.foundation import Prepare, ViTMAE, fetch
from robrep.gaussians import Gaussian, kl, standard_normal_like
from robrep.methods import Reconstruction, Terms, pixel_error
from robrep.random import Seed, fold, noise, uniform

# --- foundation models --------------------------------------------------------------------------------------------

#: SHA-256 of the file of :func:`load_cifar10_classifier`.
CIFAR10_CLASSIFIER = "399f52da9f914c323fa5a6096d60f460a3449a59b64a6405200c1e629f8425a7"


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
    """A small, untrained ``transformers.ViTMAEForPreTraining``, for :class:`MaskedPretraining`.

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


def load_cifar10_classifier() -> tuple[ResNetEncoder, nn.Linear]:
    """A ResNet-18 that others trained on CIFAR-10: the example model of the package pyautoattack. It is not robust.

    Returns:
        The encoder, in evaluation mode, from images (N, 3, 32, 32) in [0, 1] to codes (N, 512); and its own linear
        head, from codes to logits (N, 10).

    Raises:
        ImportError: pyautoattack is not installed.
        ValueError: the package holds another file than the one that was looked at.
    """
    path = files(optional("pyautoattack", "autoattack")).joinpath("examples", "model_test.pt")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != CIFAR10_CLASSIFIER:
        raise ValueError(f"{path.name} of pyautoattack has the hash {found}, expected {CIFAR10_CLASSIFIER}")
    theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    encoder, head = ResNetEncoder(18, gaussian=False), nn.Linear(512, 10)
    for module, values in ((encoder, [*theirs.values()][:-2]), (head, [*theirs.values()][-2:])):
        module.load_state_dict(dict(zip(module.state_dict(), values, strict=True)))  # other names, the same order
    return encoder.eval(), head.eval()


class MaskedPretraining(nn.Module):
    """Pre-train a small foundation model: predict the pixels of hidden patches from the visible ones (He et al. 2022).

    (seed, id) decides which patches are hidden.

    Args:
        model: a ``transformers.ViTMAEForPreTraining``, for example from :func:`new_vit_mae`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.prepare = Prepare(model.config.image_size, model.config.num_channels)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        patches = self.model.vit.embeddings.patch_embeddings.num_patches
        order = uniform(fold(seed, "mask"), ids, (patches,)).to(x.device)
        return {"masked": self.model(self.prepare(x), noise=order).loss}

    def foundation(self, token: Literal["cls", "mean"] = "cls", mask_ratio: float = 0.0) -> ViTMAE:
        """A copy of the encoder as a foundation model; later training does not change it."""
        return ViTMAE(copy.deepcopy(self.model.vit), token=token, mask_ratio=mask_ratio).eval()


def with_lora(vit: ViTMAE, rank: int = 8, alpha: float = 16.0) -> ViTMAE:
    """A copy of a ViT-MAE with low-rank adaptation (LoRA, Hu et al. 2022) of its queries and values.

    Only the small matrices that LoRA adds are trainable.

    Args:
        vit: the model.
        rank: rank of the added matrices. The paper gives no settings for its rows "+ LoRA".
        alpha: the added matrices are scaled by alpha / rank.

    Raises:
        ImportError: peft is not installed.
        TypeError: ``vit`` is not a :class:`~robrep.foundation.ViTMAE`.
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


# --- the pre-processor VAE ----------------------------------------------------------------------------------------


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
        name, local_only: as for :func:`robrep.foundation.load_vit_mae`.

    Raises:
        ImportError: diffusers is not installed.
        OSError: the model is neither on this machine nor can it be downloaded.
    """
    kind = optional("diffusers", "vae").AutoencoderKL
    return LatentDiffusionVAE(fetch(kind, "AutoencoderKL", name, local_only)).eval()


def new_diffusion_vae(
    channels: int = 3, widths: tuple[int, ...] = (16, 32, 32), latent_channels: int = 4
) -> LatentDiffusionVAE:
    """A small, untrained :class:`LatentDiffusionVAE`, for :class:`VariationalReconstruction`.

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


class VariationalReconstruction(Reconstruction):
    r"""Reconstruct the image from a noisy code with a very small weight on the prior, as the VAE of a latent diffusion.

    .. math:: \mathrm{MSE}(h(z), x) + \frac{\beta}{d} \mathrm{KL}[p(z|x) \,\|\, N(0, I)], \quad z \sim p(z|x)

    with d the number of values in an image. As a pre-processor the auto-encoder decodes the mean code.

    Args:
        autoencoder: a :class:`LatentDiffusionVAE`.
        weight: beta, at least 0.
        augment: as for :class:`robrep.methods.Reconstruction`.

    Raises:
        ValueError: ``weight`` is negative.

    Source: Rombach et al. 2022, whose "KL-reg." has a weight of about 1e-6. Their further terms, a perceptual loss and
    a discriminator, are left out.
    """

    def __init__(
        self, autoencoder: LatentDiffusionVAE, *, weight: float = 1e-6, augment: Augmentation | None = None
    ) -> None:
        super().__init__(autoencoder, augment)
        self.weight = nonnegative("weight", weight)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        x = self.view(x, ids, seed)
        p = self.autoencoder.posterior(x)
        z = p.sample(noise(fold(seed, "z"), ids, p.mean.shape[1:]))
        flat = Gaussian(p.mean.flatten(1), p.scale.flatten(1))
        return {
            "reconstruction": pixel_error(self.autoencoder.decode(z), x).mean(),
            "prior": self.weight * kl(flat, standard_normal_like(flat)).mean() / x[0].numel(),
        }
