"""Randomized smoothing: radii known in closed form, honest intervals, and nothing certified that an attack breaks."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

from robrep.attacks import L2, PGD
from robrep.book.figures import accuracy_against_radius
from robrep.book.smoothing import CHUNK, Smoothed, certified_accuracy, certify, clopper_pearson_low, votes
from robrep.encoders import MLPHead
from robrep.evaluation import adversarial_images, draws_noise
from robrep.gaussians import Gaussian
from robrep.heads import Classifier
from robrep.random import uniform

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12)


class Plane(nn.Module):
    """Class 1 where w (x - 0.5) > 0: the smoothed model is the same plane, and its radius the distance to it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(1)))

    def score(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5) * self.w).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        return torch.stack([-score, score], 1)

    def distance(self, x: Tensor) -> Tensor:
        return (self.score(x).abs() / self.w.norm()).detach().double()


class Nested(nn.Module):
    """Three classes by the distance to the middle, with a dropout and a batch norm that must not be switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        r = (self.drop(self.norm(x)).flatten(1) - 0.5).square().sum(1, keepdim=True)
        return -(r - torch.tensor([0.3, 0.7, 1.4])).abs() * 8


class Coin(nn.Module):
    """Says class 1 with probability p, whatever it sees."""

    samples = 1

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.seen = p, []

    def forward(self, x: Tensor, *, ids: Tensor, seed: int = 0) -> Tensor:
        u = uniform(seed, ids, (1,))
        self.seen += u.flatten().tolist()
        return torch.cat([torch.zeros_like(u), self.p - u], 1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Gaussian:
        mean = self.layer(x.flatten(1))
        return Gaussian(mean, torch.full_like(mean, 0.3))


# --- the interval ----------------------------------------------------------------------------------------------------


def test_interval_against_scipy() -> None:
    for n in (1, 7, 100, 1000):
        k = torch.tensor(sorted({0, 1, n // 2, n - 1, n}))
        expected = [
            binomtest(int(i), n, alternative="greater").proportion_ci(0.999, method="exact").low for i in k.tolist()
        ]
        torch.testing.assert_close(clopper_pearson_low(k, n, 0.001), torch.tensor(expected, dtype=torch.float64))
    assert clopper_pearson_low(torch.tensor(0), 5).item() == 0
    assert clopper_pearson_low(torch.tensor([[3, 4]]), 5).shape == (1, 2)
    assert clopper_pearson_low(torch.tensor(50), 50, 0.01).item() == pytest.approx(0.01 ** (1 / 50))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.73, 0.99])
@pytest.mark.parametrize("n", [10, 100])
def test_interval_covers(p: float, n: int) -> None:
    """Summed over all outcomes: the bound exceeds the rate with probability at most alpha."""
    k = torch.arange(n + 1)
    over = clopper_pearson_low(k, n, 0.05) > p
    assert binom.pmf(k.numpy(), n, p)[over.numpy()].sum() <= 0.05


# --- the certificate -------------------------------------------------------------------------------------------------


def test_radius_of_a_plane() -> None:
    """A linear two-class model: the true radius is the distance to the plane; certified below it, and near it."""
    model, sigma = Plane(), 0.25
    true = model.distance(X)
    certificate = certify(model, X, sigma, n=20_000, alpha=1e-6)
    sure = certificate.label >= 0
    assert sure.sum() >= 8
    assert (certificate.label == model(X).argmax(1))[sure].all()
    assert (certificate.radius <= true).all()
    near = sure & (true < 0.5)  # two sigma: beyond, hardly a vote is for the other side
    assert near.sum() >= 5 and (certificate.radius > true - 0.05)[near].all()
    assert (certificate.radius <= certificate.largest + 1e-12).all()
    # more votes prove more
    few = certify(model, X, sigma, n=200, alpha=1e-6)
    assert few.radius.sum() < certificate.radius.sum()
    assert few.largest == pytest.approx(sigma * norm.ppf(1e-6 ** (1 / 200)))


def test_abstains() -> None:
    on_plane = torch.full((3, 1, 4, 4), 0.5)
    certificate = certify(Plane(), on_plane, 0.5, n=500)
    assert certificate.label.tolist() == [-1] * 3 and certificate.radius.tolist() == [0.0] * 3
    assert (certificate.low < 0.5).all()
    assert "0 of 3 images certified" in str(certificate)
    curve = certified_accuracy(certificate, torch.zeros(3, dtype=torch.int64), [0.0])
    assert curve["y"] == [0.0] and curve["high"][0] > 0.3
    # with too few votes even unanimity proves nothing
    one = certify(Plane(), X, 0.01, n=5, alpha=0.001)
    assert one.largest == 0 and (one.label == -1).all()


def test_level_holds() -> None:
    """A coin with a known side: at level 0.2 at most a fifth of many certificates claim more than the truth."""
    x = torch.full((400, 1, 1, 1), 0.5)
    low = certify(Coin(0.7), x, 1.0, n=60, alpha=0.2).low
    wrong = int((low > 0.7).sum())
    assert wrong <= binom.ppf(0.999, 400, 0.2)
    assert wrong > 20  # and the bound is no looser than it must be


def test_the_noise_that_selects_a_class_does_not_judge_it() -> None:
    """On the plane itself each vote is a coin. With shared noise the class would have its majority again, always."""
    n = CHUNK
    found = certify(Plane(), torch.full((300, 1, 4, 4), 0.5), 0.5, n0=n, n=n)
    below = (found.low < clopper_pearson_low(torch.tensor(n // 2), n)).double().mean()
    assert 0.3 < below < 0.6  # 0.46 of a fair coin's counts are below the half
    again = certify(Plane(), torch.full((300, 1, 4, 4), 0.5), 0.5, n0=n, n=10 * n)
    below = (again.low < clopper_pearson_low(torch.tensor(5 * n), 10 * n)).double().mean()
    assert 0.4 < below < 0.6, "nor a part of it"


def test_attack_never_contradicts() -> None:
    """PGD on the smoothed model inside the certified radius: the certified class keeps the majority."""
    model = Nested().eval()
    certificate = certify(model, X, 0.2, n=2000)
    sure = certificate.label >= 0
    assert sure.sum() >= 6
    x, label, radius = X[sure], certificate.label[sure], certificate.radius[sure].float()
    x_adv = adversarial_images(Smoothed(model, 0.2, 50), x, label, PGD(20, restarts=2), L2(radius), ids=IDS[sure])
    assert ((x_adv - x).flatten(1).norm(dim=1) <= radius + 1e-6).all()
    assert ((x_adv - x).flatten(1).norm(dim=1) > 0.5 * radius).any()
    share = votes(model, x_adv, 0.2, 4000, seed=9).gather(1, label[:, None]).squeeze(1)
    assert (share > 2000 - 3 * math.sqrt(1000)).all()
    # far outside the attack does win: the test would notice
    far = adversarial_images(Smoothed(model, 0.2, 50), x, label, PGD(20), L2(4 * radius + 1), ids=IDS[sure])
    assert (votes(model, far, 0.2, 1000).argmax(1) != label).any()


# --- random streams --------------------------------------------------------------------------------------------------


def test_batches_do_not_matter() -> None:
    model = Plane()
    together = votes(model, X, 0.3, 250, seed=3)
    assert (together.sum(1) == 250).all() and together.dtype == torch.int64
    for size in (1, 7, 130, 1000):
        assert torch.equal(together, votes(model, X, 0.3, 250, seed=3, batch_size=size))
    some = torch.tensor([7, 2])
    assert torch.equal(together[some], votes(model, X[some], 0.3, 250, ids=some, seed=3))
    assert not torch.equal(together, votes(model, X, 0.3, 250, seed=4))
    # the same image under other names meets other noise; fewer votes are the first of many
    assert len({tuple(row) for row in votes(model, X[:1].expand(9, -1, -1, -1), 0.3, 250).tolist()}) > 1
    assert (votes(model, X, 0.3, CHUNK + 5, seed=3) - votes(model, X, 0.3, CHUNK, seed=3) >= 0).all()
    a, b = certify(model, X, 0.3, n=150), certify(model, X, 0.3, n=150, batch_size=9)
    assert torch.equal(a.label, b.label) and torch.equal(a.radius, b.radius)


def test_noise_is_standard_and_not_clipped() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)[:, :2]

    votes(Spy(), torch.full((2, 1, 4, 4), 0.9), 0.5, 300)
    z = (torch.cat(seen) - 0.9) / 0.5
    assert z.numel() == 2 * 300 * 16 and z.std().item() == pytest.approx(1, abs=0.03)
    assert abs(z.mean().item()) < 0.03 and torch.cat(seen).max() > 1
    assert len(z.flatten(1).unique(dim=0)) == 600


def test_a_model_that_samples() -> None:
    """Each vote of a random model draws anew, and neither batch size nor neighbours change it."""
    coin = Coin(0.5)
    votes(coin, X, 0.1, 120)
    assert len(set(coin.seen)) > 0.999 * len(coin.seen)
    torch.manual_seed(0)
    model = Classifier(Encoder(), MLPHead(8, 3), samples=4).double()
    x = X.double()
    a, b = votes(model, x, 0.2, 130), votes(model, x[3:], 0.2, 130, ids=IDS[3:], batch_size=17)
    assert (a[3:] - b).abs().max() <= 1  # the networks round by batch size
    assert (certify(model, x, 0.2, n=300).label >= 0).any()


def test_side_effects() -> None:
    model = Nested()
    model.norm.eval()
    modes, before = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    first = certify(model, X, 0.2, n=100)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.label, certify(model.eval(), X, 0.2, n=100).label)


# --- the smoothed model ----------------------------------------------------------------------------------------------


def test_smoothed() -> None:
    plane = Plane()
    model = Smoothed(plane, 0.25, 2000)
    assert draws_noise(model)
    with torch.no_grad():
        p = model(X).exp()
        torch.testing.assert_close(p.sum(1), torch.ones(12))
        assert torch.equal(model(X), model(X, ids=IDS, seed=0)) and not torch.equal(model(X), model(X, seed=1))
        torch.testing.assert_close(model(X[5:7], ids=IDS[5:7]), model(X)[5:7])
        # sigmoid of a normal number, by quadrature
        t = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        weight = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi) * (t[1] - t[0])
        score = plane.score(X).double()[:, None] + 0.25 * plane.w.norm() * t
        torch.testing.assert_close(p[:, 1].double(), (torch.sigmoid(2 * score) * weight).sum(1), atol=0.04, rtol=0)
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    cosine = torch.cosine_similarity(grad.flatten(1), plane.w[None], dim=1)
    assert (cosine > 0.999).all()


def test_smoothed_around_a_model_that_samples() -> None:
    torch.manual_seed(0)
    model = Smoothed(Classifier(Encoder(), MLPHead(8, 3), samples=2), 0.1, 5).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X)[4:], model(X[4:], ids=IDS[4:]))


# --- the curve and bad input -----------------------------------------------------------------------------------------


def test_certified_accuracy() -> None:
    model = Plane()
    certificate = certify(model, X, 0.25, n=1000)
    y = model(X).argmax(1)
    y[0] = 1 - y[0]
    radii = [0.0, 0.1, 0.2, 0.4, 10.0]
    curve = certified_accuracy(certificate, y, radii)
    assert curve["x"] == radii and curve["y"] == sorted(curve["y"], reverse=True) and curve["y"][-1] == 0
    for i, r in enumerate(radii):
        right = [
            int(a) == int(b) and float(c) > r for a, b, c in zip(certificate.label, y, certificate.radius, strict=True)
        ]
        assert curve["y"][i] == sum(right) / 12
        assert curve["low"][i] <= curve["y"][i] <= curve["high"][i]
    assert accuracy_against_radius({"certified": curve}).layout.meta["alt"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "sigma is 0.0"),
        ({"sigma": math.nan}, ValueError, "sigma is nan"),
        ({"sigma": "big"}, TypeError, "sigma is 'big'"),
        ({"n0": 0}, ValueError, "n0 is 0"),
        ({"n": 2.5}, TypeError, "n is 2.5"),
        ({"alpha": 0.0}, ValueError, "alpha is 0.0"),
        ({"alpha": 1}, ValueError, "alpha is 1"),
        ({"ids": IDS[:3]}, ValueError, r"ids has shape \(3,\), expected \(12,\)"),
        ({"x": X + 1}, ValueError, "x has values"),
        ({"x": X.double().long()}, TypeError, "x has dtype"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        certify(**({"model": Plane(), "x": X, "sigma": 0.1, "n": 10} | change))


def test_more_bad_input() -> None:
    certificate = certify(Plane(), X, 0.1, n=10)
    with pytest.raises(ValueError, match="y has 3 labels"):
        certified_accuracy(certificate, torch.zeros(3, dtype=torch.int64), [0.1])
    with pytest.raises(ValueError, match="radii is -1"):
        certified_accuracy(certificate, torch.zeros(12, dtype=torch.int64), [-1])
    with pytest.raises(ValueError, match="successes are from 0 to 11"):
        clopper_pearson_low(torch.tensor([0, 11]), 10)
    with pytest.raises(ValueError, match="samples is 0"):
        Smoothed(Plane(), 0.1, 0)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), math.nan)

    with pytest.raises(FloatingPointError, match="not a number"):
        certify(Broken(), X, 0.1)


def test_uint8_images() -> None:
    images = (X * 255).round().to(torch.uint8)
    assert torch.equal(votes(Plane(), images, 0.2, 50), votes(Plane(), images.float() / 255, 0.2, 50))
