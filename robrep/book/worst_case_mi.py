"""The chapter on worst-case mutual information: cases with a known answer, and vulnerability as critics estimate it.

A critic is trained on one part of the data and evaluated on another, so that it cannot score pairs that it has
memorised. Every information is estimated *from below*, up to sampling noise: a better critic finds more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robrep.attacks import Adversary, Attack, Threat, attack_mode
from robrep.checks import nonnegative, one_of, positive_int
from robrep.data import floats
from robrep.heads import device_of, encode, gradients_disabled
from robrep.information import ESTIMATORS, information
from robrep.methods import WorstCaseInfoMax, information_attack
from robrep.random import fold, generator
from robrep.training import Examples, fit

# --- cases with a known answer -------------------------------------------------------------------------------------


def correlated_gaussians(n: int, dim: int, nats: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of standard normal vectors whose mutual information is ``nats``: n draws of x and z, each (n, dim).

    Each coordinate of z is correlated with the same coordinate of x, all by the same rho: I = -dim/2 ln(1 - rho^2).

    Raises:
        TypeError, ValueError: sizes below 1, or a negative information.
    """
    positive_int("n", n)
    rho = math.sqrt(-math.expm1(-2 * nonnegative("nats", nats) / positive_int("dim", dim)))
    x, e = torch.randn(2, n, dim, generator=generator("gaussians", seed, n, dim)).unbind(0)
    return x, rho * x + math.sqrt(1 - rho * rho) * e


def correlated_gaussians_ratio(x: Tensor, z: Tensor, nats: float) -> Tensor:
    """ln p(x_i, z_j) / (p(x_i) p(z_j)) for all pairs of :func:`correlated_gaussians`: the best critic, (N, N)."""
    dim = x.shape[1]
    rho2 = -math.expm1(-2 * nonnegative("nats", nats) / dim)
    square = x.square().sum(1)[:, None] + z.square().sum(1)
    return nats + (math.sqrt(rho2) * (x @ z.mT) - 0.5 * rho2 * square) / (1 - rho2)


def binary_entropy(theta: Tensor) -> Tensor:
    """H2(theta) in nats, 0 at both ends; elementwise."""
    return -(torch.xlogy(theta, theta) + torch.xlogy(1 - theta, 1 - theta))


def entropy_drop(t: Tensor | float) -> Tensor:
    """F(t) = ln 2 - H2(1/2 - t) for t in [0, 1/2]: the integral of H2' from 1/2 - t to 1/2; float64, elementwise.

    Raises:
        ValueError: a t outside [0, 1/2], where the integral of Zhu et al. 2020, theorem 3.2, is not defined.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if not bool(((t >= 0) & (t <= 0.5)).all()):
        raise ValueError(f"t is {t.tolist()}, expected values in [0, 1/2]")
    return math.log(2) - binary_entropy(0.5 - t)


class LinearVulnerability(NamedTuple):
    """The vulnerability of the feature sgn(w.x), exactly, with the corrected bounds of theorem 3.2.

    Attributes:
        risk: error of the best of the two classifiers of the feature.
        gap: AG, its adversarial gap: adversarial risk minus risk.
        moved: m, by how much an adversary can move the probability of one value of the feature; at most 1/2.
        value: RV = F(m) in nats.
        low: F(AG / 2), the lower bound. The paper prints it as the upper one.
        high: F(min(AG, 1/2)), the upper bound. The paper prints it as the lower one, without the minimum.
    """

    risk: float
    gap: float
    moved: float
    value: float
    low: float
    high: float


def dual_exponent(p: float) -> float:
    """q with 1/p + 1/q = 1, for p in [1, inf]."""
    if math.isnan(p) or p < 1:
        raise ValueError(f"p is {p}, expected a norm's exponent of at least 1, or infinity")
    return math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)


def linear_vulnerability(
    w: Tensor, theta: Tensor, covariance: Tensor, eps: float, p: float = math.inf
) -> LinearVulnerability:
    """The vulnerability of sgn(w.x) where x is drawn from N(y theta, covariance), y = +-1 with equal chances.

    The adversary moves x by at most eps in the l-p norm, and so w.x by at most r = eps ||w||_q, q the dual exponent.
    The feature is binary and balanced, so its information is an entropy: ln 2, and H2(1/2 - m) after all x with
    0 < w.x < r have changed sides,

    .. math:: m = \\tfrac12 \\big( P[0 < y\\, w^\\top x < r] + P[-r < y\\, w^\\top x < 0] \\big), \\quad
        \\mathrm{AG} = P[0 < y\\, w^\\top x < r] \\;\\; (w^\\top \\theta \\ge 0).

    The second probability is at most the first, so AG/2 <= m <= AG, and F(AG/2) <= RV <= F(min(AG, 1/2)).

    Args:
        w: (d,), not zero.
        theta: (d,), the mean of the class y = 1.
        covariance: (d, d), positive definite.
        eps: the radius, at least 0.
        p: exponent of the norm, from 1 to infinity.

    Raises:
        ValueError: shapes that do not fit, a w that is zero, a variance that is not positive, eps or p out of range.

    Source: Zhu et al. 2020, theorem 3.2, which is printed with the two bounds exchanged.
    """
    w, theta, covariance = (torch.as_tensor(v, dtype=torch.float64) for v in (w, theta, covariance))
    if w.ndim != 1 or theta.shape != w.shape or covariance.shape != (len(w), len(w)):
        shapes = ", ".join(str(tuple(v.shape)) for v in (w, theta, covariance))
        raise ValueError(f"w, theta, covariance have shapes {shapes}, expected (d,), (d,) and (d, d)")
    variance = float(w @ covariance @ w)
    if not variance > 0:
        raise ValueError(
            f"the variance of w.x is {variance}, expected above 0: w not zero, covariance positive definite"
        )
    mean, reach = abs(float(w @ theta)), nonnegative("eps", eps) * float(torch.linalg.vector_norm(w, dual_exponent(p)))
    at = torch.tensor([-reach, 0.0, reach], dtype=torch.float64)
    below, zero, above = torch.special.ndtr((at - mean) / math.sqrt(variance)).tolist()
    gap, moved = above - zero, min(0.5 * (above - below), 0.5)
    value, low, high = entropy_drop(torch.tensor([moved, gap / 2, min(gap, 0.5)])).tolist()
    return LinearVulnerability(zero, gap, moved, value, low, high)


def fano_accuracy(nats: float, classes: int) -> float:
    """(I + ln 2) / ln C, at most 1: an upper bound on every head's accuracy if the C classes are equally likely.

    With I = I(X'; g(X')) at the worst X', it bounds the robust accuracy (Zhu et al. 2020, theorem 3.4, there as a lower
    bound of the risk). It holds for the true information: with an estimate *from below* in its place it bounds nothing.

    Raises:
        TypeError, ValueError: a negative or infinite information, fewer than two classes.
    """
    if positive_int("classes", classes) < 2:
        raise ValueError(f"classes is {classes}, expected at least 2")
    return min(1.0, (nonnegative("nats", nats) + math.log(2)) / math.log(classes))


# --- estimates ----------------------------------------------------------------------------------------------------


class _Stacked(nn.Module):
    """Independent linear layers side by side: (S, N, inputs) to (S, N, outputs)."""

    def __init__(self, copies: int, inputs: int, outputs: int) -> None:
        super().__init__()
        limit = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(copies, inputs, outputs).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(copies, 1, outputs).uniform_(-limit, limit))

    def forward(self, rows: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, rows, self.weight)


class VectorCritic(nn.Module):
    """Two perceptrons with linear shortcuts and a dot product, T(x, z) = <a(x), b(z)>, for vectors.

    Args:
        dim_x, dim_z: lengths of x and z.
        units: length of a(x) and b(z).
        width: units of the hidden layers.
        copies: S, independent critics trained side by side, each on pairs of its own (a study over seeds in one go).

    Shapes: (N, dim_x) and (M, dim_z), or (N, S, dim_x) and (M, S, dim_z), to scores (S, N, M).
    """

    def __init__(self, dim_x: int, dim_z: int, *, units: int = 32, width: int = 128, copies: int = 1) -> None:
        super().__init__()
        self.copies, self.scale = positive_int("copies", copies), math.sqrt(positive_int("units", units))

        def net(dim: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for inputs, outputs in ((dim, width), (width, width)):
                layers += [_Stacked(copies, inputs, outputs), nn.ReLU()]
            return nn.Sequential(*layers, _Stacked(copies, width, units))

        self.a, self.b = net(positive_int("dim_x", dim_x)), net(positive_int("dim_z", dim_z))
        self.skip_a, self.skip_b = _Stacked(copies, dim_x, units), _Stacked(copies, dim_z, units)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x, z = (v.reshape(len(v), self.copies, -1).transpose(0, 1) for v in (x, z))
        a, b = self.a(x) + self.skip_a(x), self.b(z) + self.skip_b(z)
        return a @ b.mT / self.scale


class CriticOf(nn.Module):
    """The neural estimator of mutual information (MINE): only the critic learns, on pairs (x, z) that stay as they are.

    Args:
        critic: x and z to scores (L, N, N).
        z: (M, D), the partner of each example, by its id.
        estimator: a name of :data:`robrep.information.ESTIMATORS`.

    Source: Belghazi et al. 2018, algorithm 1, without its moving average.
    """

    z: Tensor

    def __init__(self, critic: nn.Module, z: Tensor, estimator: str = "dv") -> None:
        super().__init__()
        self.critic, self.estimator = critic, one_of("estimator", estimator, ESTIMATORS)
        self.register_buffer("z", z.detach().clone())

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
        return {"minus_information": -information(self.critic(x, self.z[ids]), self.estimator)}


class WorstCaseCriticOf(WorstCaseInfoMax):
    """MINE at the worst x' for a *given* encoder: the alternating minimisation of Zhu et al. 2020, section 4.

    Each step attacks the batch through encoder and critic as they are, then moves the critic on the attacked batch. The
    encoder stays as it is, in evaluation mode. Arguments as for :class:`WorstCaseInfoMax`.
    """

    def train(self, mode: bool = True) -> WorstCaseCriticOf:
        super().train(mode)
        self.encoder.eval()
        return self

    def information(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.encoder(x)
        return information(self.critic(x, z), self.estimator)


@torch.no_grad()
def read_off(critic: nn.Module, x: Tensor, z: Tensor, estimator: str = "dv", batch_size: int = 500) -> float:
    """The estimate of a trained critic on the pairs (x, z), in evaluation mode: a mean over batches, in nats.

    Args:
        critic: x and z to scores (L, N, N).
        x: (N, ...), z: (N, D), row by row from the joint distribution.
        estimator: a name of :data:`robrep.information.ESTIMATORS`.
        batch_size: pairs in a matrix of scores. The estimators depend on it: a lower bound from N pairs is
            unreliable beyond ln N. A last batch of another size is left out, unless it is the only one.
    """
    device, kept = device_of(critic), []
    with attack_mode(critic):
        for ids in torch.arange(len(x)).split(min(batch_size, len(x))):
            if len(ids) == min(batch_size, len(x)):
                scores = critic(floats(x[ids]).to(device), z[ids.to(z.device)].to(device))
                kept.append(information(scores, estimator).item())
    return sum(kept) / len(kept)


def estimate_information(
    critic: nn.Module,
    x: Tensor,
    z: Tensor,
    held_out: tuple[Tensor, Tensor],
    *,
    estimator: str = "dv",
    reading: str | None = None,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    progress: str | None = None,
) -> float:
    """Mutual information of paired samples by a trained critic (MINE), evaluated on unseen pairs, in nats.

    Args:
        critic: x and z to scores (L, N, N); trained in place.
        x, z: (N, ...) and (N, D), the pairs to train on.
        held_out: other pairs (x, z), on which the estimate is evaluated.
        estimator: what the critic maximises, a name of :data:`robrep.information.ESTIMATORS`.
        reading: the estimator that is evaluated; the same if None. After training with "js", use "dv".
        epochs, batch_size, lr, seed, progress: as in :func:`robrep.training.fit`.

    Source: Belghazi et al. 2018.
    """
    reading = one_of("reading", estimator if reading is None else reading, ESTIMATORS)
    labels = torch.zeros(len(x), dtype=torch.int64)
    settings: dict[str, Any] = dict(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, progress=progress)
    fit(CriticOf(critic, z, estimator), x, labels, **settings)
    return read_off(critic, *held_out, estimator=reading)


@dataclass(frozen=True)
class Vulnerability:
    """The estimated RV of an encoder.

    Attributes:
        normal: J1, the estimate of I(x; g(x)) on held-out images, in nats.
        worst: J2, the same at the worst x' found, by a critic trained against the attack.
    """

    normal: float
    worst: float

    @property
    def value(self) -> float:
        """J1 - J2. The difference of two estimates from below is neither an upper nor a lower bound."""
        return self.normal - self.worst


def representation_vulnerability(
    encoder: nn.Module,
    make_critic: Callable[[], nn.Module],
    x: Examples,
    held_out: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    reading_attack: Attack | None = None,
    estimator: str = "dv",
    detached: bool = True,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    reading_batch: int = 500,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: str | None = None,
) -> Vulnerability:
    """RV = I(x; g(x)) - min over x' of I(x'; g(x')), each term by a critic of its own (Zhu et al. 2020, section 4).

    The critic of the second term and the attack alternate: attack the batch, update the critic, next batch. Both
    critics are then evaluated on held-out images, the second one under ``reading_attack``.

    Args:
        encoder: images to codes (N, D); unchanged, in evaluation mode throughout.
        make_critic: returns a new critic; called twice, with the same random numbers.
        x: images to train the critics on.
        held_out: images on which the estimates are evaluated.
        attack, threat: the search that reduces the second term, and its ball.
        reading_attack: the attack on the held-out images; ``attack`` if None.
        estimator: a name of :data:`robrep.information.ESTIMATORS`.
        detached: see :func:`robrep.methods.information_attack`.
        epochs, batch_size, lr, seed, cache, progress: as in :func:`robrep.training.fit`.
        reading_batch: images in a matrix of scores on the held-out images.
    """
    positive_int("reading_batch", reading_batch)
    images, device = floats(held_out), device_of(encoder)
    settings: dict[str, Any] = dict(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, cache=cache)
    labels = torch.zeros(len(x), dtype=torch.int64)
    critics = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            torch.default_generator.manual_seed(fold(seed, "critic"))
            critics.append(make_critic().to(device))
    codes: Any = encode(encoder, x)
    clean, worst = CriticOf(critics[0], codes, estimator), None
    fit(clean, x, labels, **settings, progress=progress)
    normal = read_off(critics[0], images, encode(encoder, images), estimator, reading_batch)  # type: ignore[arg-type]
    with gradients_disabled(encoder), attack_mode(encoder):
        worst = WorstCaseCriticOf(encoder, critics[1], attack, threat, estimator, detached)
        fit(worst, x, labels, **settings, progress=progress and f"{progress}, attacked")
        found = torch.cat([
            information_attack(
                encoder, critics[1], images[ids].to(device), Adversary(reading_attack or attack, threat.take(ids)),
                estimator=estimator, detached=detached, ids=ids.to(device), seed=fold(seed, "reading"),
            ).cpu()
            for ids in torch.arange(len(images)).split(reading_batch)
        ])  # fmt: skip
    return Vulnerability(normal, read_off(critics[1], found, encode(encoder, found), estimator, reading_batch))  # type: ignore[arg-type]


class Neuron(nn.Module):
    """One unit of a network as a code of dimension 1: images to (N, 1).

    Args:
        network: images to (N, K, ...); a map of positions is averaged, unless ``position`` names one.
        index: which of the K units.
        position: row and column of one position of the map.
    """

    gaussian = False

    def __init__(self, network: nn.Module, index: int, position: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network, self.index, self.position = network, index, position

    def forward(self, x: Tensor) -> Tensor:
        unit = self.network(x)[:, self.index]
        if self.position is not None:
            return unit[:, self.position[0], self.position[1], None]
        return unit.flatten(1).mean(1, keepdim=True)


def feature_vulnerability(
    network: nn.Module,
    indices: list[int],
    make_critic: Callable[[], nn.Module],
    x: Examples,
    held_out: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    position: tuple[int, int] | None = None,
    **options: Any,
) -> list[Vulnerability]:
    """The vulnerability of single units, each as a representation of dimension 1 (Zhu et al. 2020, fig. 3).

    Args:
        network: images to (N, K, ...), such as an encoder's first layers.
        indices: which units.
        make_critic: returns a new critic for codes of dimension 1.
        position: see :class:`Neuron`.
        x, held_out, attack, threat, options: as for :func:`representation_vulnerability`.
    """
    return [
        representation_vulnerability(
            Neuron(network, index, position), make_critic, x, held_out, attack, threat, **options
        )
        for index in indices
    ]
