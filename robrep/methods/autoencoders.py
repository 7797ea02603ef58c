"""Auto-encoders, plain and robust: VAE + Urkle, smooth encoders, and their baselines."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from robrep.attacks import Threat
from robrep.checks import nonnegative, one_of
from robrep.gaussians import Gaussian, kl, standard_normal_like
from robrep.losses import negative_elbo, negative_se_elbo, squared_error
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold, noise
from robrep.regularizers import Attack, reconstruction_shift, select, urkle


class AETRADES(nn.Module):
    """An auto-encoder whose reconstruction must not move: the baseline AE + TRADES (Nguyen et al. 2022, eq. 36).

    Args:
        encoder: images to codes (N, D); deterministic.
        decoder: codes to images.
        attack, threat: how and where the worst x' is searched.
        beta: weight of the regularizer, at least 0.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, attack: Attack, threat: Threat, beta: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.attack, self.threat, self.beta = attack, threat, nonnegative("beta", beta)

    @property
    def autoencoder(self) -> nn.Sequential:
        """Images to reconstructions."""
        return nn.Sequential(self.encoder, self.decoder)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        output = self.autoencoder(x)
        worst = reconstruction_shift(self.autoencoder, x, output, self.attack, self.threat, ids=ids, seed=seed)
        return {"reconstruction": squared_error(output, x).mean(), "trades": self.beta * worst.mean()}


class VAE(nn.Module):
    """A variational auto-encoder (Kingma and Welling 2014) with a squared error and a weight on the prior term.

    Args:
        encoder: images to a ``Gaussian``.
        decoder: codes to images.
        beta_vae: weight of KL[p(z|x) || N(0, I)]; 0 in the experiment of Nguyen et al. 2022, which leaves a noisy
            auto-encoder whose latent scale is free.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, beta_vae: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.decoder, self.beta_vae = encoder, decoder, nonnegative("beta_vae", beta_vae)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        return self.negative_elbo(x, self.encoder(x), ids, seed)

    def negative_elbo(self, x: Tensor, p: Gaussian, ids: Tensor, seed: Seed) -> Terms:
        """Reconstruction of ``x`` from one sample of ``p`` = p(z|x), and the prior's term if it has a weight."""
        z = p.sample(noise(fold(seed, "z"), ids, p.mean.shape[1:]))
        terms = {"reconstruction": squared_error(self.decoder(z), x).mean()}
        if self.beta_vae:
            terms["prior"] = self.beta_vae * kl(p, standard_normal_like(p)).mean()
        return terms


class VAEUrkle(VAE):
    """The VAE whose code must not move: eq. 6 of Nguyen et al. 2022.

    Args:
        encoder, decoder, beta_vae: as for :class:`VAE`.
        attack, threat: how and where the x' of largest KL divergence is searched.
        beta_robust: weight of the regularizer, at least 0.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        attack: Attack,
        threat: Threat,
        beta_robust: float = 1.0,
        beta_vae: float = 0.0,
    ) -> None:
        super().__init__(encoder, decoder, beta_vae)
        self.attack, self.threat, self.beta_robust = attack, threat, nonnegative("beta_robust", beta_robust)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        p = self.encoder(x)
        worst = urkle(self.encoder, x, p, self.attack, self.threat, ids=ids, seed=seed)
        return self.negative_elbo(x, p, ids, seed) | {"urkle": self.beta_robust * worst.mean()}


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
        distance: what the selection maximises, see :func:`robrep.regularizers.select`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        attack: Attack,
        threat: Threat,
        gamma: float = 1.0,
        variance: float = 0.1,
        distance: Literal["wasserstein", "entropic"] = "wasserstein",
    ) -> None:
        super().__init__(encoder, decoder, variance)
        self.attack, self.threat, self.gamma = attack, threat, nonnegative("gamma", gamma)
        self.distance: Literal["wasserstein", "entropic"] = distance
        one_of("distance", distance, ("wasserstein", "entropic"))

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        p = self.encoder(x)
        x_adv = select(
            self.encoder, x, p, self.attack, self.threat, distance=self.distance, gamma=self.gamma, ids=ids, seed=seed
        )
        q, output = self.encoder(x_adv), self.reconstruct(p, ids, seed)
        terms = negative_se_elbo(x, output, p, q, gamma=self.gamma, variance=self.variance)
        return {name: term.mean() for name, term in terms.items()}
