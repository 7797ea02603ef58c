"""VAE + Urkle (Nguyen et al. 2022), which penalises the KL divergence of codes; the baselines VAE and AE + TRADES."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat
from robrep.checks import nonnegative
from robrep.gaussians import Gaussian, kl, standard_normal_like
from robrep.losses import squared_error
from robrep.methods.supervised import Terms
from robrep.random import Seed, fold, noise


def urkle(
    encoder: Callable[[Tensor], Gaussian], x: Tensor, p: Gaussian, adversary: Adversary, *, ids: Tensor, seed: Seed
) -> Tensor:
    """max over x' of KL[p(z|x) || p(z|x')]: Unsupervised Robustness with KL divergencE, in nats, shape (N,).

    Pass ``encoder(x)`` as ``p``. The other arguments are those of :meth:`robrep.attacks.Adversary.worst_case`.
    Source: Nguyen et al. 2022, the regularizer of Proposition 1 and eq. 6.
    """
    return adversary.worst_case(kl, encoder, x, p, ids=ids, seed=seed)


class VAE(nn.Module):
    """A variational auto-encoder (Kingma and Welling 2014): a squared error plus a weighted prior term.

    Args:
        encoder: maps images to a ``Gaussian``.
        decoder: maps codes to images.
        beta_vae: weight of KL[p(z|x) || N(0, I)], at least 0. With 0, as in the experiment of Nguyen et al. 2022, the
            model is a noisy auto-encoder, and the scale of its latent space is free.

    Raises:
        ValueError: a negative ``beta_vae``.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, beta_vae: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.decoder, self.beta_vae = encoder, decoder, nonnegative("beta_vae", beta_vae)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        return self.negative_elbo(x, self.encoder(x), ids, seed)

    def negative_elbo(self, x: Tensor, p: Gaussian, ids: Tensor, seed: Seed) -> Terms:
        """The error of ``x`` rebuilt from one sample of ``p`` = p(z|x), and the prior term if ``beta_vae`` is not 0."""
        z = p.sample(noise(fold(seed, "z"), ids, p.mean.shape[1:]))
        terms = {"reconstruction": squared_error(self.decoder(z), x).mean()}
        if self.beta_vae:
            terms["prior"] = self.beta_vae * kl(p, standard_normal_like(p)).mean()
        return terms


class VAEUrkle(VAE):
    """A VAE that also minimises :func:`urkle`: eq. 6 of Nguyen et al. 2022.

    Args:
        encoder, decoder, beta_vae: as for :class:`VAE`.
        attack: searches for the x' of largest KL divergence, such as ``PGD(10)``.
        threat: the set that is searched, such as ``Linf(0.1)``.
        beta_robust: weight of the regularizer, at least 0.

    Raises:
        ValueError: a negative ``beta_robust`` or ``beta_vae``.
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
        self.adversary, self.beta_robust = Adversary(attack, threat), nonnegative("beta_robust", beta_robust)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        p = self.encoder(x)
        worst = urkle(self.encoder, x, p, self.adversary, ids=ids, seed=seed)
        return self.negative_elbo(x, p, ids, seed) | {"urkle": self.beta_robust * worst.mean()}


class AETRADES(nn.Module):
    """An auto-encoder that also minimises how far an attack moves its reconstruction.

    This is the baseline AE + TRADES of Nguyen et al. 2022, eq. 36.

    Args:
        encoder: maps images to codes (N, D); deterministic.
        decoder: maps codes to images.
        attack: searches for the x' whose reconstruction moves farthest, such as ``PGD(10)``.
        threat: the set that is searched, such as ``Linf(0.1)``.
        beta: weight of the regularizer, at least 0.

    Raises:
        ValueError: a negative ``beta``.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, attack: Attack, threat: Threat, beta: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.adversary, self.beta = Adversary(attack, threat), nonnegative("beta", beta)

    @property
    def autoencoder(self) -> nn.Sequential:
        """Maps images to their reconstructions."""
        return nn.Sequential(self.encoder, self.decoder)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Seed) -> Terms:
        output = self.autoencoder(x)
        worst = self.adversary.worst_case(squared_error, self.autoencoder, x, output, ids=ids, seed=seed)
        return {"reconstruction": squared_error(output, x).mean(), "trades": self.beta * worst.mean()}
