"""The plain VAE, and the smooth encoder (Cemgil et al. 2019), which couples the codes of x and of an attacked x'."""

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
    """The smooth encoder's selection: search A(x) for the x' whose code is furthest from that of x.

    Args:
        encoder, x: as for :func:`robrep.methods.urkle`.
        p: ``encoder(x)``; no gradient passes through it.
        adversary: the attack and the ball A(x) that it searches.
        distance: what the search maximises. The paper says only "the Wasserstein distance": "wasserstein" takes W2^2,
            "entropic" takes the term WD of the bound, whose gradient does not vanish at x' = x.
        gamma: coupling strength of WD, at least 0; used by "entropic" only.
        ids, seed: name the random streams, see :func:`robrep.random.noise`.

    Returns:
        x', detached, of the shape of ``x``.

    Raises:
        ValueError: ``distance`` is neither "wasserstein" nor "entropic", or ``gamma`` is negative with "entropic".

    Source: Cemgil et al. 2019, sections 2.1 and 7.
    """
    distances: dict[str, Callable[[Gaussian, Gaussian], Tensor]] = {
        "wasserstein": wasserstein2,
        "entropic": partial(entropic_wasserstein, gamma=gamma),
    }
    measure = distances[one_of("distance", distance, distances)]

    def moved(x_: Tensor, p_: Gaussian) -> Tensor:
        return measure(p_, encoder(x_))

    return adversary.search(moved, x, p.detach(), networks=[encoder], ids=ids, seed=seed)


class GaussianVAE(nn.Module):
    """A variational auto-encoder (VAE) with a Gaussian decoder of variance v (Kingma and Welling 2014).

    It is trained by the evidence lower bound (ELBO). Called as a module, it returns the two terms of the negative ELBO,
    ``reconstruction`` and ``prior``, each a mean over the batch, in nats.

    Args:
        encoder: maps images to a :class:`~robrep.gaussians.Gaussian`.
        decoder: maps codes to images, the mean of p(x|z).
        variance: v, above 0; a larger value gives the prior more weight against the reconstruction.

    Raises:
        ValueError: ``variance`` is negative; at 0, the first call raises it.
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
    """The smooth encoder (SE), which couples the code of x and that of an attacked x' (Cemgil et al. 2019).

    Called as a module, it returns the four terms of the negative SE-ELBO, see :func:`robrep.losses.negative_se_elbo`,
    each a mean over the batch, in nats. The decoder is trained on x alone, and no gradient passes through the search
    for x'.

    Args:
        encoder, decoder, variance: as for :class:`GaussianVAE`.
        attack, threat: how x' is searched, and in which ball around x.
        gamma: coupling strength, at least 0. At gamma = 0 and x' = x the sum is the loss of a VAE with twice the
            weight on the prior, not the negative ELBO.
        distance: what the search maximises, see :func:`selection_attack`.

    Raises:
        ValueError: ``gamma`` or ``variance`` is negative, or ``distance`` is unknown.
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
        search = partial(selection_attack, distance=self.distance, gamma=self.gamma)
        x_adv = search(self.encoder, x, p, self.adversary, ids=ids, seed=seed)
        q, output = self.encoder(x_adv), self.reconstruct(p, ids, seed)
        terms = negative_se_elbo(x, output, p, q, gamma=self.gamma, variance=self.variance)
        return {name: term.mean() for name, term in terms.items()}
