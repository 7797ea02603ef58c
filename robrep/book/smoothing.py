"""Certified accuracy by randomized smoothing with Gaussian noise: what no attack, known or unknown, can take away.

An attack shows that an image *can* be broken; where it fails it proves nothing. Randomized smoothing (Lecuyer et al.
2019; Cohen, Rosenfeld and Kolter 2019) proves: the class that a model says most often about x + sigma n, n standard
normal, is the same for every x' with ||x' - x||_2 < sigma Phi^-1(p), where p is a lower bound of that class's share.

The statement is about the *smoothed* model, which votes over noisy images, never about the model itself, and about l2.
It holds for any model, also for one that draws noise of its own, as long as it draws anew for each vote. The noisy
images leave [0, 1] and are not clipped: clipping first is a part of the model if one wants it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor, nn

from robrep.attacks import attack_mode
from robrep.checks import above_zero, check_labels, nonnegative, positive_int
from robrep.gaussians import upcast
from robrep.heads import device_of
from robrep.objectives import as_logits, check_model, own_ids, with_noise
from robrep.passes import Batches, images_of
from robrep.progress import Progress
from robrep.random import as_seed, fold, noise
from robrep.rates import Rate, curve
from robrep.training import Examples

ABSTAIN = -1
CHUNK = 100  # votes drawn at a time from one stream; another number means other noise


def _level(alpha: float) -> float:
    if not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha!r}, expected a number between 0 and 1, such as 0.001")
    return float(alpha)


def clopper_pearson_low(successes: Tensor, n: int, alpha: float = 0.001) -> Tensor:
    """One-sided lower bound of a rate, right with probability at least 1 - alpha (Clopper and Pearson 1934).

    Args:
        successes: integers in 0 ... n, any shape.
        n: number of trials, at least 1.
        alpha: probability that the bound lies above the rate, in (0, 1).

    Returns:
        The bounds, float64, of the shape of ``successes``; 0 where nothing succeeded.

    Raises:
        ValueError, TypeError: ``n`` below 1, ``successes`` outside 0 ... n, or ``alpha`` outside (0, 1).
    """
    from scipy.stats import beta

    positive_int("n", n)
    _level(alpha)
    low, high = (int(v) for v in successes.aminmax()) if successes.numel() else (0, 0)
    if low < 0 or high > n:
        raise ValueError(f"successes are from {low} to {high}, expected 0 ... n = {n}")
    k = successes.cpu().double()
    bound = torch.as_tensor(beta.ppf(alpha, k.clamp(min=1).numpy(), (n - k + 1).numpy()), dtype=torch.float64)
    return torch.where(k == 0, 0.0, bound.reshape(k.shape))


def _logits(model: nn.Module, noisy: Tensor, ids: Tensor, seed: int, batches: Batches | None = None) -> Tensor:
    """Logits (N, K, C) of noisy images (N, K, C, H, W); a model that samples draws anew for every one of them."""
    n, k = noisy.shape[:2]
    streams = (ids[:, None] * k + torch.arange(k, device=ids.device)).flatten()
    call, flat, seed = with_noise(model), noisy.flatten(0, 1), fold(seed, "model")

    def work(rows: Tensor) -> Tensor:
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        return as_logits(call(flat[part], ids=streams[part], seed=seed), len(rows))

    rows = torch.arange(n * k, device="cpu")
    parts = [work(rows)] if batches is None else [part for _, part in batches.run(rows, work)]
    return torch.cat(parts).unflatten(0, (n, k))


class Smoothed(nn.Module):
    """The smoothed model as something an attack can climb: probabilities averaged over Gaussian noise on the image.

    .. math:: \\log \\tfrac1S \\sum_s \\mathrm{softmax}\\, f(x + \\sigma n_s), \\quad n_s \\sim N(0, I)

    It is called as a :class:`~robrep.heads.Classifier` that samples, so that every attack and every evaluation here
    takes it. Averaged probabilities are the differentiable stand-in for the votes that :func:`certify` counts (Salman
    et al. 2019).

    Args:
        model: images to logits (N, C); may itself draw noise.
        sigma: standard deviation of the noise, in pixel units of [0, 1], above 0.
        samples: S, at least 1.

    Raises:
        ValueError, TypeError: ``sigma`` or ``samples`` out of range.
    """

    def __init__(self, model: nn.Module, sigma: float, samples: int = 20) -> None:
        super().__init__()
        self.model, self.sigma, self.samples = model, above_zero("sigma", sigma), positive_int("samples", samples)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Log-probabilities (N, C).

        Args:
            x: images (N, C, H, W).
            ids: int64 (N,), naming the images' noise; 0 ... N - 1 if None.
            seed: seed of the noise.
        """
        ids = own_ids(ids, x)
        noisy = x[:, None] + self.sigma * noise(fold(seed, "smoothing"), ids, (self.samples, *x.shape[1:])).to(x)
        logits = _logits(self.model, noisy, ids, seed)
        return upcast(logits).log_softmax(-1).logsumexp(1) - math.log(self.samples)


@torch.no_grad()
def votes(
    model: nn.Module,
    x: Examples,
    sigma: float,
    n: int,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: str | None = None,
) -> Tensor:
    """How often the model says each class about x + sigma n, evaluated in evaluation mode.

    Args:
        model: images to logits; one that samples draws noise of its own anew for each vote.
        x: uint8 images, or floats in [0, 1], N x C x H x W.
        sigma: standard deviation of the noise, in pixel units of [0, 1], above 0. The noisy images are not clipped.
        n: votes for each image.
        ids: int64 (N,), naming the images' random streams; 0 ... N - 1 if None.
        seed: seed of the streams.
        batch_size: noisy images in a pass; None for 500 on a CPU and 2,048 on a GPU. It does not change the
            result, up to the model's own rounding.
        progress: a name for the count, shown with the number of images done; None for silence.

    Returns:
        Counts (N, C), int64, on the CPU; each row sums to ``n``. The votes of a smaller ``n`` are the first of these.

    Raises:
        ValueError, TypeError: an argument out of its range.
        FloatingPointError: the model gives what is not a number.
    """
    sigma, n, seed = above_zero("sigma", sigma), positive_int("n", n), int(as_seed(seed))
    check_model(model)
    ids = torch.arange(len(x)) if ids is None else ids
    if ids.shape != (len(x),):
        raise ValueError(f"ids has shape {tuple(ids.shape)}, expected ({len(x)},), one for each image")
    device, counts = device_of(model), []
    batches = Batches(device, batch_size)
    with Progress(progress or "", len(x), "image", show=progress is not None) as bar, attack_mode(model):
        for at in torch.arange(len(x)).split(max(1, batches.size // CHUNK)):
            images = images_of(x, at).to(device)
            total: Tensor | int = 0
            for chunk in range(math.ceil(n / CHUNK)):
                stream, keep = fold(seed, "votes", chunk), min(CHUNK, n - chunk * CHUNK)
                # always a whole chunk of noise, so that a vote's noise is independent of their number
                noisy = noise(stream, ids[at].cpu(), (CHUNK, *images.shape[1:]))
                noisy = noisy.to(images).mul_(sigma).add_(images[:, None])
                said = _logits(model, noisy, ids[at].to(device), stream, batches)[:, :keep]
                if said.isnan().any():
                    raise FloatingPointError("the model's logits are not a number for at least one noisy image")
                total = total + nn.functional.one_hot(said.argmax(-1), said.shape[-1]).sum(1)
            counts.append(torch.as_tensor(total).cpu())
            bar.update(len(at))
    return torch.cat(counts)


@dataclass(frozen=True)
class Certificate:
    """What was proven about each image, each statement wrong with probability at most ``alpha``.

    Attributes:
        label: the smoothed model's class, int64 (N,); -1 where it abstains.
        radius: float64 (N,): no x' nearer than this in l2 is given another class; 0 where it abstains.
        low: float64 (N,): lower bound of the share of votes for the class selected first.
        sigma: standard deviation of the noise.
        n0: votes that selected the class.
        n: fresh votes that bounded its share.
        alpha: probability that a statement is wrong, over the noise.
    """

    label: Tensor
    radius: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    sigma: float
    n0: int
    n: int
    alpha: float

    @property
    def largest(self) -> float:
        """The radius of an image whose every vote agrees: none can be certified further with this ``n``."""
        low = clopper_pearson_low(torch.tensor(self.n), self.n, self.alpha)
        return max(0.0, self.sigma * float(torch.special.ndtri(low)))

    def __str__(self) -> str:
        abstained = int((self.label == ABSTAIN).sum())
        return (
            f"randomized smoothing, sigma {self.sigma:g}, {self.n} votes, alpha {self.alpha:g}: "
            f"{len(self.label) - abstained} of {len(self.label)} images certified, median l2 radius "
            f"{self.radius.median():.3g} of at most {self.largest:.3g}"
        )


def certify(
    model: nn.Module,
    x: Examples,
    sigma: float,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    ids: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: str | None = None,
) -> Certificate:
    """Certify each image's class and l2 radius for the smoothed model (Cohen et al. 2019, CERTIFY).

    ``n0`` votes select the class; ``n`` fresh ones bound its share from below by p (Clopper-Pearson, level ``alpha``).
    With p above 1/2 the radius is sigma Phi^-1(p), else the model abstains. A larger ``n`` allows larger radii, at most
    sigma Phi^-1(alpha^(1/n)); a larger ``sigma`` too, for a model that can still see through the noise.

    Args:
        model: images to logits; a :class:`~robrep.heads.Classifier` that samples is a legal base.
        x: uint8 images, or floats in [0, 1], N x C x H x W.
        sigma: standard deviation of the noise, in pixel units of [0, 1]. The noisy images are not clipped.
        n0, n: votes for selection and for estimation.
        alpha: probability, for each image, that its statement is wrong.
        ids, seed, batch_size, progress: as for :func:`votes`.

    Returns:
        Labels, radii and bounds; see :class:`Certificate`.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """
    alpha, seed = _level(alpha), int(as_seed(seed))
    n0, n = positive_int("n0", n0), positive_int("n", n)
    # one noise for selection, another for estimation: else the class would be chosen to fit the noise that judges it
    first = votes(model, x, sigma, n0, ids=ids, seed=fold(seed, "select"), batch_size=batch_size).argmax(1)
    counts = votes(model, x, sigma, n, ids=ids, seed=fold(seed, "estimate"), batch_size=batch_size, progress=progress)
    low = clopper_pearson_low(counts.gather(1, first[:, None]).squeeze(1), n, alpha)
    sure = low > 0.5
    radius = torch.where(sure, sigma * torch.special.ndtri(low), 0.0)
    return Certificate(torch.where(sure, first, ABSTAIN), radius, low, float(sigma), n0, n, alpha)


def certified_accuracy(certificate: Certificate, y: Tensor, radii: Sequence[float]) -> dict[str, list[float]]:
    """Share of images whose class is right and proven so beyond a radius, for each radius.

    Args:
        certificate: of N images.
        y: class indices (N,).
        radii: l2 radii, at least 0; at 0 every image counts that is right and not abstained on.

    Returns:
        Lists ``x`` (the radii), ``y``, ``low`` and ``high`` (Wilson's interval over images), as
        :func:`~robrep.evaluation.against_radius` gives them.

    Raises:
        ValueError, TypeError: labels that do not fit, or a radius below 0.
    """
    check_labels(y, len(certificate.label))
    right = certificate.label == y.cpu()
    return curve(radii, [Rate(right & (certificate.radius > nonnegative("radii", r))) for r in radii])
