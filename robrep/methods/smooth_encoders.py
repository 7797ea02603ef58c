"""Smooth encoders (Cemgil et al. 2019): a VAE whose codes of x and of a selected x' are coupled, and the plain VAE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat
from robrep.checks import nonnegative, one_of
from robrep.gaussians import Gaussian, entropic_wasserstein, wasserstein2
from robrep.losses import negative_elbo, negative_se_elbo
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold, noise

Distance = Literal["wasserstein", "entropic"]


def selection_attack(
    encoder: Callable[[Tensor], Gaussian],
    x: Tensor,
    p: Gaussian,
    adversary: Adversary,
    *,
    distance: Distance = "wasserstein",
    gamma: float = 1.0,
    ids: Tensor,
    seed: Seed,
) -> Tensor:
    """The smooth encoder's selection: the x' in A(x) whose code is farthest from that of x; like ``x``, detached.

    Args:
        encoder, x: as for :func:`robrep.methods.urkle`.
        p: ``encoder(x)``, which counts as a constant.
        adversary: how and where x' is searched.
        distance: the paper says "the Wasserstein distance": "wasserstein" reads it as W2^2, "entropic" as the term WD
            of the bound, whose gradient does not vanish at x' = x.
        gamma: strength of the coupling, for "entropic".
        ids, seed: name the random streams.

    Source: Cemgil et al. 2019, section 2.1 and section 7.
    """
    distances: dict[str, Callable[[Gaussian, Gaussian], Tensor]] = {
        "wasserstein": wasserstein2,
        "entropic": partial(entropic_wasserstein, gamma=gamma),
    }
    measure = distances[one_of("distance", distance, distances)]
    return adversary.search(
        lambda x_, p_: measure(p_, encoder(x_)), x, p.detach(), networks=[encoder], ids=ids, seed=seed
    )


class GaussianVAE(nn.Module):
    """A variational auto-encoder with a Gaussian decoder of variance v, trained by its ELBO (Kingma and Welling 2014).

    Args:
        encoder: images to a ``Gaussian``.
        decoder: codes to images, the mean of p(x|z).
        variance: v, which sets the balance of reconstruction and prior; above 0.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, variance: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.decoder, self.variance = encoder, decoder, nonnegative("variance", variance)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        p = self.encoder(x)
        terms = negative_elbo(x, self.reconstruct(p, ids, seed), p, variance=self.variance)
        return {name: term.mean() for name, term in terms.items()}

    def reconstruct(self, p: Gaussian, ids: Tensor, seed: Seed) -> Tensor:
        """The decoder's mean for one sample of ``p``."""
        return self.decoder(p.sample(noise(fold(seed, "z"), ids, p.mean.shape[1:])))


class SmoothEncoder(GaussianVAE):
    """The smooth encoder (SE): the code of x and that of an attacked x' are coupled (Cemgil et al. 2019).

    The decoder is trained by x alone; x' counts as a constant of the outer step.

    Args:
        encoder, decoder, variance: as for :class:`GaussianVAE`.
        attack, threat: how and where x' is selected.
        gamma: strength of the coupling, at least 0. At 0 and x' = x the sum is a VAE's with twice the weight on the
            prior, not the ordinary ELBO.
        distance: what the selection maximises, see :func:`selection_attack`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        attack: Attack,
        threat: Threat,
        gamma: float = 1.0,
        variance: float = 0.1,
        distance: Distance = "wasserstein",
    ) -> None:
        super().__init__(encoder, decoder, variance)
        self.adversary, self.gamma = Adversary(attack, threat), nonnegative("gamma", gamma)
        one_of("distance", distance, get_args(Distance))
        self.distance = distance

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        p = self.encoder(x)
        x_adv = selection_attack(
            self.encoder, x, p, self.adversary, distance=self.distance, gamma=self.gamma, ids=ids, seed=seed
        )
        q, output = self.encoder(x_adv), self.reconstruct(p, ids, seed)
        terms = negative_se_elbo(x, output, p, q, gamma=self.gamma, variance=self.variance)
        return {name: term.mean() for name, term in terms.items()}
