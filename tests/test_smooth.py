"""The smooth encoder: its bound against a computation by hand, its selection attack, its networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from robrep import methods
from robrep.attacks import PGD, Adversary, Linf
from robrep.book.smooth_encoders import pair_log_normalizer
from robrep.encoders import ConvDecoder, FlatConvEncoder, MeanCode, MLPDecoder, MLPEncoder, log_variance_code
from robrep.gaussians import Gaussian, entropic_wasserstein, kl, standard_normal_like, wasserstein2
from robrep.losses import negative_elbo, negative_se_elbo, prior_cross_entropy, squared_error
from robrep.methods import GaussianVAE, SmoothEncoder, selection_attack
from robrep.random import fold, noise
from robrep.training import fit

ATTACK, THREAT = PGD(4), Linf(0.2)
SHAPE = (3, 8, 8)
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y, IDS, SEED = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([3, 1, 8, 10, 0]), 11


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def mlp() -> tuple[nn.Module, nn.Module]:
    return MLPEncoder(SHAPE, 6, widths=(16,) * 4).double(), MLPDecoder(SHAPE, 6, widths=(16,) * 4).double()


def conv() -> tuple[nn.Module, nn.Module]:
    encoder = FlatConvEncoder(SHAPE, 6, widths=(8, 8, 8, 8), strides=(1, 2, 2, 1)).double()
    return encoder, ConvDecoder(SHAPE, 6, widths=(8, 8, 8)).double()


def gaussians(n: int = 4, d: int = 3) -> tuple[Gaussian, Gaussian]:
    g = torch.Generator().manual_seed(3)
    draw = [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(4)]
    return Gaussian(draw[0], draw[1].exp()), Gaussian(draw[2], draw[3].exp())


def test_the_bound_from_its_definition() -> None:
    """Each term by torch.distributions, the entropy of the coupled pair by its 2 x 2 determinants."""
    p, q = gaussians()
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    output, gamma, v = torch.rand_like(x), 1.7, 0.3
    terms = negative_se_elbo(x, output, p, q, gamma=gamma, variance=v)
    assert list(terms) == ["reconstruction", "prior", "prior_selected", "transport"]
    pixels = Independent(Normal(output, math.sqrt(v)), 3)
    torch.testing.assert_close(terms["reconstruction"], -pixels.log_prob(x))
    for name, g in (("prior", p), ("prior_selected", q)):
        standard = Independent(Normal(*standard_normal_like(g)), 1)
        entropy = Independent(Normal(*g), 1).entropy()
        torch.testing.assert_close(terms[name], kl_divergence(Independent(Normal(*g), 1), standard) + entropy)
    a, b = p.scale**2, q.scale**2
    psi = (torch.sqrt(1 + 4 * gamma**2 * a * b) - 1) / (2 * gamma)
    cost = ((p.mean - q.mean) ** 2 + a + b - 2 * psi).sum(1)
    entropy = (math.log(2 * math.pi * math.e) + 0.5 * torch.log(a * b - psi**2)).sum(1)
    torch.testing.assert_close(terms["transport"], gamma / 2 * cost - entropy)


def test_elbo_from_its_definition() -> None:
    p, _ = gaussians()
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    output = torch.rand_like(x)
    terms = negative_elbo(x, output, p, variance=0.3)
    torch.testing.assert_close(terms["prior"], kl(p, standard_normal_like(p)))
    torch.testing.assert_close(
        terms["reconstruction"], squared_error(x, output) / 0.6 + 2 * math.log(2 * math.pi * 0.3)
    )


def test_without_coupling_it_is_a_beta_vae_with_beta_2() -> None:
    p, _ = gaussians()
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    smooth, plain = negative_se_elbo(x, x, p, p, gamma=0.0), negative_elbo(x, x, p)
    torch.testing.assert_close(sum(smooth.values()), plain["reconstruction"] + 2 * plain["prior"])


@pytest.mark.parametrize("gamma", [0.1, 1.0, 5.0])
def test_the_bound_is_a_bound(gamma: float) -> None:
    """For a linear decoder log p(x) is known: the bound stays below it for every q(z|x) and q(z|x')."""
    w, v = torch.tensor([0.7, -1.3], dtype=torch.float64), 0.4
    x = torch.tensor([1.2], dtype=torch.float64)
    # p(z_a) under the pairwise prior: precision (1 + 2 g) / (1 + g), so x is Gaussian with variance w^2 / that + v
    marginal = (w.square().sum() * (1 + gamma) / (1 + 2 * gamma) + v).sqrt()
    log_p = Normal(0.0, marginal).log_prob(x)
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        m, s, m_, s_ = (torch.randn(1, 2, generator=g, dtype=torch.float64) * 0.5 for _ in range(4))
        p, q = Gaussian(m, s.exp()), Gaussian(m_, s_.exp())
        error = (x - (m * w).sum(1)).square() + (s.exp() * w).square().sum(1)  # E (x - w z)^2, exactly
        reconstruction = error / (2 * v) + 0.5 * math.log(2 * math.pi * v)
        rest = prior_cross_entropy(p) + prior_cross_entropy(q) + entropic_wasserstein(p, q, gamma)
        assert -(reconstruction + rest + pair_log_normalizer(2, gamma)) <= log_p
        assert -(reconstruction + rest) <= Normal(0.0, (w.square().sum() + v).sqrt()).log_prob(x)  # prior N(0, I)
    assert pair_log_normalizer(3, 0.0) == 0


def test_pair_log_normalizer_by_integration() -> None:
    z = torch.linspace(-8, 8, 801, dtype=torch.float64)
    density = Normal(0.0, 1.0).log_prob(z).exp()
    pairs = torch.exp(-0.85 * (z[:, None] - z[None]) ** 2) * density[:, None] * density[None]
    assert math.log(pairs.sum() * (z[1] - z[0]) ** 2) == pytest.approx(pair_log_normalizer(1, 1.7), abs=1e-9)


@pytest.mark.parametrize("variance", [0.0, -1.0])
def test_variance_is_positive(variance: float) -> None:
    p, q = gaussians()
    with pytest.raises(ValueError, match="variance is"):
        negative_se_elbo(X[:4], X[:4], p, q, variance=variance)


@pytest.mark.parametrize("distance", ["wasserstein", "entropic"])
def test_selection_by_hand(distance: Any) -> None:
    encoder, _ = mlp()
    p = encoder(X)
    x_adv = selection_attack(encoder, X, p, Adversary(ATTACK, THREAT), distance=distance, gamma=2.0, ids=IDS, seed=SEED)
    assert not x_adv.requires_grad and THREAT.distance(x_adv, X).max() <= 0.2 + 1e-9
    assert x_adv.min() >= 0 and x_adv.max() <= 1

    def score(x_: Tensor) -> Tensor:
        q = encoder(x_)
        return wasserstein2(p.detach(), q) if distance == "wasserstein" else entropic_wasserstein(p.detach(), q, 2.0)

    expected = THREAT.start(X, IDS, fold(SEED, "start", 0))
    for _ in range(4):
        leaf = expected.clone().requires_grad_()
        (g,) = torch.autograd.grad(score(leaf).sum(), leaf)
        expected = (expected + 2.5 * 0.2 / 4 * g.sign()).clamp(X - 0.2, X + 0.2).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected)
    assert (score(x_adv) > score(THREAT.start(X, IDS, fold(SEED, "start", 0)))).all()
    assert all(w.grad is None for w in encoder.parameters())


def test_unknown_distance_is_refused() -> None:
    encoder, decoder = mlp()
    with pytest.raises(ValueError, match="distance is 'euclid'"):
        SmoothEncoder(encoder, decoder, ATTACK, THREAT, distance="euclid")  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [mlp, conv])
def test_method_by_hand(pair: Any) -> None:
    encoder, decoder = pair()
    method = SmoothEncoder(encoder, decoder, ATTACK, THREAT, gamma=1.5, variance=0.2)
    terms = method(X, Y, IDS, SEED)
    p = encoder(X)
    z = p.sample(noise(fold(SEED, "z"), IDS, (6,)))
    q = encoder(selection_attack(encoder, X, p, Adversary(ATTACK, THREAT), ids=IDS, seed=SEED))
    expected = negative_se_elbo(X, decoder(z), p, q, gamma=1.5, variance=0.2)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term.mean())
    plain = GaussianVAE(encoder, decoder, 0.2)(X, Y, IDS, SEED)
    torch.testing.assert_close(plain["reconstruction"], terms["reconstruction"])
    torch.testing.assert_close(plain["prior"], kl(p, standard_normal_like(p)).mean())


def test_the_encoder_learns_from_both_codes() -> None:
    """The gradient goes through the code of x and through that of x', which alone is a constant of the step."""
    encoder, decoder = mlp()

    def attack(objective: Any, x: Tensor, threat: Any, *given: Any, **more: Any) -> Tensor:
        return (x + 0.2).clamp(0, 1)

    method = SmoothEncoder(encoder, decoder, attack, THREAT, gamma=3.0, variance=0.2)
    weights = list(encoder.parameters())
    got = torch.autograd.grad(sum(method(X, Y, IDS, SEED).values()), weights)  # type: ignore[arg-type]
    by_hand = []
    for detached in (False, True):
        p, q = encoder(X), encoder((X + 0.2).clamp(0, 1))
        q = Gaussian(q.mean.detach(), q.scale.detach()) if detached else q
        terms = negative_se_elbo(X, method.reconstruct(p, IDS, SEED), p, q, gamma=3.0, variance=0.2)
        by_hand.append(torch.autograd.grad(sum(term.mean() for term in terms.values()), weights))
    for one, expected in zip(got, by_hand[0], strict=True):
        torch.testing.assert_close(one, expected)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(*by_hand, strict=True)), "a detached code would be noticed"


def test_the_decoder_learns_from_the_clean_image_alone() -> None:
    """Eq. 7: the selection leaves the gradient of the decoder's weights as it was."""
    encoder, decoder = mlp()
    grads = []
    for method in (GaussianVAE(encoder, decoder), SmoothEncoder(encoder, decoder, ATTACK, THREAT, gamma=3.0)):
        method.zero_grad()
        sum(method(X, Y, IDS, SEED).values()).backward()
        grads.append([w.grad.clone() for w in decoder.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_means_are_pulled_together() -> None:
    """The print's mean term is always zero; the right one pulls the code of x' towards that of x."""
    p = Gaussian(torch.zeros(1, 2), torch.ones(1, 2))
    q = Gaussian(torch.ones(1, 2, requires_grad=True), torch.ones(1, 2))
    (g,) = torch.autograd.grad(entropic_wasserstein(p, q, 2.0).sum(), q.mean)
    torch.testing.assert_close(g, 2.0 * torch.ones(1, 2))


@pytest.mark.parametrize("pair", [mlp, conv])
def test_networks(pair: Any) -> None:
    encoder, decoder = pair()
    p = encoder(X)
    assert p.mean.shape == p.scale.shape == (5, 6) and (p.scale > 0).all()
    assert decoder(p.mean).shape == X.shape
    assert torch.equal(MeanCode(encoder)(X), p.mean) and not MeanCode(encoder).gaussian
    assert 0.15 < p.scale.mean() < 0.3 and p.mean.std() > 0.05, "a code starts with little noise"


def test_paper_sizes() -> None:
    encoder = MLPEncoder((1, 28, 28), 64)
    assert [m.out_features for m in encoder.modules() if isinstance(m, nn.Linear)] == [200] * 4 + [128]
    decoder = MLPDecoder((1, 28, 28), 64)
    assert [m.out_features for m in decoder.modules() if isinstance(m, nn.Linear)] == [200] * 4 + [784]
    network = FlatConvEncoder((1, 28, 28), 32)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [200] * 4
    assert network(torch.rand(2, 1, 28, 28)).mean.shape == (2, 32)
    with pytest.raises(ValueError, match="strides has 1 values, expected 4"):
        FlatConvEncoder((1, 28, 28), 32, strides=(2,))


def test_log_variances_never_overflow() -> None:
    code = log_variance_code(torch.tensor([[0.0, 1.0, -1e4, 1e4]]))
    assert code.mean.tolist() == [[0.0, 1.0]] and code.scale.isfinite().all() and (code.scale > 0).all()
    torch.testing.assert_close(log_variance_code(torch.tensor([[0.0, math.log(4.0)]])).scale, torch.tensor([[2.0]]))


@pytest.mark.parametrize("pair", [mlp, conv])
def test_training_lowers_the_loss(pair: Any) -> None:
    encoder, decoder = pair()
    method = SmoothEncoder(encoder.float(), decoder.float(), PGD(2), THREAT)
    history = fit(method, X.float().repeat(8, 1, 1, 1), Y.repeat(8), epochs=12, batch_size=20, lr=3e-3)
    assert history[-1]["loss"] < history[0]["loss"]
    assert {"reconstruction", "prior", "prior_selected", "transport"} <= set(history[0])
    assert methods.SmoothEncoder is SmoothEncoder
