"""Contrastive learning: NT-Xent over any number of views, CRoPD's loss, and two measures of learnt codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from robrep.checks import above_zero, one_of
from robrep.gaussians import full_precision, upcast

Denominator = Literal["all_but_self", "negatives_only"]
DENOMINATORS = ("all_but_self", "negatives_only")


def nt_xent(
    views: Sequence[Tensor],
    temperature: float = 0.5,
    *,
    denominator: Denominator = "all_but_self",
) -> Tensor:
    r"""The normalized temperature-scaled cross-entropy of n views of N images; one value for each image, shape (N,).

    .. math:: \frac{1}{n(n-1)} \sum_{v} \sum_{w \ne v}
        \Big[-\frac{\mathrm{sim}(g_v, g_w)}{\tau} + \ln \sum_{k \in D} e^{\mathrm{sim}(g_v, k)/\tau}\Big]

    with the cosine similarity sim. Two views give SimCLR's loss, three RoCL's, four that of SimCLR + Urkle. If several
    processes train together, each returns the values of its own images, and D holds the vectors of all processes.
    Gradients flow back to all of them, so the mean over processes is the loss of one process with the whole batch.

    Args:
        views: at least two tensors (N, D), row i of each a vector of image i; computed in float32 or wider.
        temperature: tau, above 0.
        denominator: which vectors D holds. "all_but_self" leaves out only the anchor g_v (SimCLR, RoCL);
            "negatives_only" leaves out all vectors of the anchor's image, its positives too (eq. 9 of Nguyen et al.).

    Raises:
        ValueError: fewer than two views or images, shapes that differ, or a temperature that is not above 0.

    Source: Chen et al. 2020, eq. 1; Nguyen et al. 2022, eq. 9, with the minus-log that is missing there.
    """
    one_of("denominator", denominator, DENOMINATORS)
    above_zero("temperature", temperature)
    shapes = [tuple(v.shape) for v in views]
    if len(views) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"views has shapes {shapes}, expected at least two of one shape (N, D)")
    with full_precision(views[0]):
        anchors = F.normalize(torch.stack([upcast(v) for v in views]), dim=2)  # n x N x D
        keys, first = _gathered("views", anchors)
        n, size, total = len(views), len(views[0]), keys.shape[1]
        scores = (anchors.flatten(0, 1) @ keys.flatten(0, 1).T / temperature).view(n, size, n, total)
    row = torch.arange(size, device=scores.device)
    of_image = scores[:, row, :, first + row]  # N x n x n: a view against all views of its image
    positive = (of_image.sum(2) - of_image.diagonal(dim1=1, dim2=2)).T / (n - 1)
    same_image = torch.arange(total, device=scores.device) == first + row[:, None]
    left_out = same_image[None, :, None, :].expand_as(scores)
    if denominator == "all_but_self":
        left_out = left_out & torch.eye(n, dtype=torch.bool, device=scores.device)[:, None, :, None]
    compared = scores.masked_fill(left_out, -torch.inf).flatten(2).logsumexp(2)
    return (compared - positive).mean(0)


def adversarial_contrast(clean: Tensor, adversarial: Tensor, temperature: float = 0.5) -> Tensor:
    r"""CRoPD's contrastive loss of images and their adversaries; one value for each image, shape (N,).

    .. math:: -\frac{\mathrm{sim}(p_i', p_i)}{\tau} + \ln \sum_{v \in N_i} e^{\mathrm{sim}(p_i, v)/\tau}

    with the cosine similarity sim, p_i the vector of image i, p_i' that of its adversary, and N_i the clean and the
    adversarial vectors of all other images. Unlike in NT-Xent, only clean vectors are anchors of the sum, and the sum
    leaves the positive out, so the loss can be below 0. If several processes train together, N_i holds the vectors of
    all processes, as in :func:`nt_xent`.

    Args:
        clean: vectors of the images, (N, D); computed in float32 or wider.
        adversarial: vectors of their adversaries, row by row, (N, D).
        temperature: tau, above 0. The paper does not state its value.

    Raises:
        ValueError: shapes that differ, fewer than two images, or a temperature that is not above 0.

    Source: Liu et al. 2025, eq. 1 and below. A parenthesis in its appendix is misplaced: tau divides the similarity.
    """
    above_zero("temperature", temperature)
    if clean.ndim != 2 or clean.shape != adversarial.shape:
        came = f"{tuple(clean.shape)} and {tuple(adversarial.shape)}"
        raise ValueError(f"clean and adversarial have shapes {came}, expected one shape (N, D)")
    with full_precision(clean):
        pair = F.normalize(torch.stack([upcast(clean), upcast(adversarial)]), dim=2)  # 2 x N x D
        keys, first = _gathered("clean", pair)
        size, total = len(clean), keys.shape[1]
        scores = (pair[0] @ keys.flatten(0, 1).T / temperature).view(size, 2, total)
        positive = (pair[0] * pair[1]).sum(1) / temperature
    row = torch.arange(size, device=scores.device)
    own = torch.arange(total, device=scores.device) == first + row[:, None]
    return scores.masked_fill(own[:, None], -torch.inf).flatten(1).logsumexp(1) - positive


def _gathered(name: str, anchors: Tensor) -> tuple[Tensor, int]:
    """The vectors of all processes, n x M x D, with gradients, and the place of this process's first image."""
    first = 0
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        first = dist.get_rank() * anchors.shape[1]
        anchors = torch.cat(all_gather(anchors.contiguous()), dim=1)
    if anchors.shape[1] < 2:
        raise ValueError(
            f"{name} has {anchors.shape[1]} image, expected at least two: an image is compared with others"
        )
    return anchors, first


@torch.no_grad()
def effective_rank(codes: Tensor) -> float:
    """How many dimensions codes (N, D) use: exp of the entropy of their normalised singular values, 1 ... min(N, D).

    The codes are centred first. Codes that are all equal, as a collapsed encoder gives them, have rank 0.

    Source: Roy and Vetterli 2007.
    """
    centred = codes.double() - codes.double().mean(0)
    s = torch.linalg.svdvals(centred)
    if s.max() <= 1e-12 * codes.double().abs().max().clamp(min=1e-30) * len(codes) ** 0.5:
        return 0.0
    p = s / s.sum()
    return torch.special.entr(p).sum().exp().item()


@torch.no_grad()
def nearest(codes: Tensor, bank: Tensor, k: int = 1) -> Tensor:
    """The rows of ``bank`` (M, D) with the largest cosine to each of ``codes`` (N, D), best first; int64, (N, k).

    Raises:
        ValueError: ``k`` is not in 1 ... M.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, expected 1 ... {len(bank)}, the rows of bank")
    return (F.normalize(upcast(codes), dim=1) @ F.normalize(upcast(bank), dim=1).T).topk(k, dim=1).indices
