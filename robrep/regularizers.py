"""Regularizers: each is an attack plus a divergence, one value for each example, usable in anyone's training loop.

They are one function, :func:`worst_case`, with four divergences: find the input inside the ball that moves the model's
output most, and return by how much it moved, so that training can make that small.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from robrep.attacks import Threat, attack_mode, batch_objective
from robrep.checks import one_of
from robrep.gaussians import Gaussian, entropic_wasserstein, kl, wasserstein2
from robrep.losses import cross_entropy, kl_categorical, squared_error
from robrep.random import Seed

Attack = Callable[..., Tensor]


def worst_case(
    divergence: Callable[[Any, Any], Tensor],
    model: Callable[[Tensor], Any],
    x: Tensor,
    reference: Any,
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """max over x' in A(x) of divergence(reference, model(x')).

    The attack sees the model in evaluation mode and the reference as a constant; the value returned is computed once
    more at the x' found, in the model's own mode, with gradients through both arguments.

    Args:
        divergence: ``divergence(reference, output)`` to scores, shape (N,).
        model: images (N, C, H, W) to outputs.
        x: clean images in [0, 1].
        reference: what the output at x' is compared with, most often ``model(x)``: a tensor or ``Gaussian`` of N rows.
        attack: how the maximum is searched, such as ``attacks.PGD(10)``.
        threat: where, such as ``attacks.Linf(0.1)``.
        ids: int64 (N,), naming the examples' random streams.
        seed: seed of the random streams.

    Returns:
        The divergence at the x' found, a lower bound of the maximum, shape (N,).
    """
    with attack_mode(model):
        x_adv = attack(
            lambda x_, reference_: divergence(reference_, model(x_)),
            x,
            threat,
            reference.detach(),
            ids=ids,
            seed=seed,
        )
    return divergence(reference, model(x_adv))


def urkle(
    encoder: Callable[[Tensor], Gaussian],
    x: Tensor,
    p: Gaussian,
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """max over x' of KL[p(z|x) || p(z|x')]: Unsupervised Robustness with KL divergencE, in nats, shape (N,).

    ``p`` is ``encoder(x)``; the other arguments are those of :func:`worst_case`.
    Source: Nguyen et al. 2022, the regularizer of Proposition 1 and eq. 6.
    """
    return worst_case(kl, encoder, x, p, attack, threat, ids=ids, seed=seed)


def urkle_adversary(
    encoder: Callable[[Tensor], Gaussian],
    x: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """The x' in A(x) of :func:`urkle` alone, for methods that pass x and x' through the encoder together.

    The clean code is computed once, like all that the attack sees, in evaluation mode: with batch norm, the code of
    training mode is another function's. Arguments as for :func:`urkle`; images like ``x``, detached.
    """
    with attack_mode(encoder):
        with torch.no_grad():
            p = encoder(x)
        return attack(lambda x_, p_: kl(p_, encoder(x_)), x, threat, p, ids=ids, seed=seed)


def contrast_adversary(
    encoder: Callable[[Tensor], Any],
    projector: Callable[[Tensor], Tensor],
    x: Tensor,
    other: Tensor,
    contrast: Callable[[tuple[Tensor, Tensor]], Tensor],
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """The x' in A(x) that is told worst from other images beside the other view of its own: RoCL's attack.

    Args:
        encoder: images to codes, a tensor (N, D) or a ``Gaussian``, of which the mean is taken.
        projector: codes to what ``contrast`` sees.
        x: the views to attack, in [0, 1].
        other: the other views, of the same shape; projected once.
        contrast: two tensors of projections to one value for each image (N,), such as NT-Xent; it couples the batch.
        attack, threat, ids, seed: as for :func:`urkle`.

    Returns:
        Images like ``x``, detached.

    Source: Kim et al. 2020, the instance-wise attack.
    """

    def project(x_: Tensor) -> Tensor:
        code = encoder(x_)
        return projector(code.mean if isinstance(code, Gaussian) else code)

    @batch_objective
    def objective(x_: Tensor, g_other: Tensor) -> Tensor:
        return contrast((project(x_), g_other))

    with attack_mode(encoder, projector):
        with torch.no_grad():
            g_other = project(other)
        return attack(objective, x, threat, g_other, ids=ids, seed=seed)


def trades(
    classifier: Callable[[Tensor], Tensor],
    x: Tensor,
    logits: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """max over x' of KL[softmax f(x) || softmax f(x')], in nats, shape (N,) (TRADES, Zhang et al. 2019).

    ``logits`` is ``classifier(x)``; the other arguments are those of :func:`worst_case`.
    """
    return worst_case(kl_categorical, classifier, x, logits, attack, threat, ids=ids, seed=seed)


def reconstruction_shift(
    autoencoder: Callable[[Tensor], Tensor],
    x: Tensor,
    output: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """max over x' of ||h(f(x)) - h(f(x'))||^2, summed over pixels, shape (N,): TRADES for an auto-encoder.

    ``output`` is ``autoencoder(x)``; the other arguments are those of :func:`worst_case`.
    Source: Nguyen et al. 2022, appendix B.1, eq. 36.
    """
    return worst_case(squared_error, autoencoder, x, output, attack, threat, ids=ids, seed=seed)


def adversarial_cross_entropy(
    classifier: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """max over x' of -log softmax f(x')[y], in nats, shape (N,): adversarial training (Madry et al. 2018).

    ``y`` are class indices (N,); the other arguments are those of :func:`worst_case`.
    """
    return worst_case(lambda y_, f: cross_entropy(f, y_), classifier, x, y, attack, threat, ids=ids, seed=seed)


def select(
    encoder: Callable[[Tensor], Gaussian],
    x: Tensor,
    p: Gaussian,
    attack: Attack,
    threat: Threat,
    *,
    distance: Literal["wasserstein", "entropic"] = "wasserstein",
    gamma: float = 1.0,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """The smooth encoder's selection attack: x' in A(x) whose code is far from that of x; images like ``x``, detached.

    Args:
        distance: the print says "the Wasserstein distance": "wasserstein" reads it as W2^2, "entropic" as the term WD
            of the bound, whose gradient does not vanish at x' = x.
        gamma: strength of the coupling, for "entropic".
        encoder, x, p, attack, threat, ids, seed: as for :func:`urkle`; ``p`` counts as a constant.

    Source: Cemgil et al. 2019, section 2.1 and section 7.
    """
    options: dict[str, Callable[[Gaussian, Gaussian], Tensor]] = {
        "wasserstein": wasserstein2,
        "entropic": partial(entropic_wasserstein, gamma=gamma),
    }
    measure = options[one_of("distance", distance, options)]
    with attack_mode(encoder):
        return attack(lambda x_, p_: measure(p_, encoder(x_)), x, threat, p.detach(), ids=ids, seed=seed)
