"""Wasserstein distances of Gaussians: anchors, limits, independent computations, digits and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize
from torch import Tensor

from robrep.book.smooth_encoders import (
    FullGaussian,
    entropic_wasserstein,
    matrix_sqrt,
    optimal_coupling,
    wasserstein2,
)
from robrep.gaussians import Gaussian, kl, standard_normal_like

QUICK = settings(deadline=None, max_examples=60, database=None, derandomize=True)
GAMMAS = (1e-4, 1e-2, 0.3, 1.0, 20.0, 1e3, 1e4)
# difference of the means, variances, gamma, WD, psi (computed by others from the paper's formulas)
ANCHORS = [
    (0.0, 1.0, 1.0, 1.0, -2.215305, 0.618034),
    (0.8, 0.7, 1.3, 1.0, -1.819982, 0.577033),
    (1.0, 0.25, 0.5, 2.0, -0.258229, 0.183013),
]


def scalar(mean: float, variance: float, dtype: torch.dtype = torch.float64) -> Gaussian:
    return Gaussian(torch.tensor([[mean]], dtype=dtype), torch.tensor([[math.sqrt(variance)]], dtype=dtype))


def diagonal(n: int, d: int, seed: int) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    return Gaussian(
        torch.randn(n, d, generator=g, dtype=torch.float64),
        0.2 + 2 * torch.rand(n, d, generator=g, dtype=torch.float64),
    )


def full(n: int, d: int, seed: int) -> FullGaussian:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, d, generator=g, dtype=torch.float64)
    cov = a @ a.mT / d + 0.2 * torch.eye(d, dtype=torch.float64)
    return FullGaussian(torch.randn(n, d, generator=g, dtype=torch.float64), cov)


def objective(p: FullGaussian, q: FullGaussian, psi: np.ndarray, gamma: float) -> float:
    """F[Q] of eq. 13 for the joint Gaussian with cross-covariance psi, from its definition; one pair."""
    (m, a), (m_, b) = ((t[0].numpy() for t in g) for g in (p, q))
    joint = np.block([[a, psi], [psi.T, b]])
    sign, logdet = np.linalg.slogdet(joint)
    if sign <= 0 or np.linalg.eigvalsh(joint)[0] <= 0:
        return np.inf
    cost = ((m - m_) ** 2).sum() + np.trace(a + b - psi - psi.T)
    return 0.5 * gamma * cost - 0.5 * logdet - 0.5 * len(joint) * math.log(2 * math.pi * math.e)


def printed(p: Gaussian, q: Gaussian, gamma: float) -> Tensor:
    """The closed form as it is printed (with the means' difference put right), in extended precision."""
    m, s, m_, s_ = (np.asarray(t.double().numpy(), dtype=np.longdouble) for t in (*p, *q))
    a, b = s**2, s_**2
    u = np.sqrt(1 + 4 * np.longdouble(gamma) ** 2 * a * b)
    terms = gamma / 2 * ((m - m_) ** 2 + a + b) - (u - 1) / 2 + np.log(u + 1) / 2 - np.log(2 * a * b) / 2
    return torch.from_numpy((terms - math.log(2 * math.pi) - 1).sum(-1).astype(np.float64))


@pytest.mark.parametrize(("shift", "a", "b", "gamma", "value", "psi"), ANCHORS)
def test_anchors(shift: float, a: float, b: float, gamma: float, value: float, psi: float) -> None:
    p, q = scalar(0, a), scalar(shift, b)
    assert entropic_wasserstein(p, q, gamma).item() == pytest.approx(value, abs=5e-7)
    assert optimal_coupling(p, q, gamma).item() == pytest.approx(psi, abs=5e-7)
    assert wasserstein2(p, q).item() == pytest.approx(shift**2 + (math.sqrt(a) - math.sqrt(b)) ** 2, abs=1e-12)


@QUICK
@given(n=st.integers(1, 4), d=st.integers(1, 6), seed=st.integers(0, 10**6), gamma=st.sampled_from(GAMMAS))
def test_stable_form_is_the_printed_one(n: int, d: int, seed: int, gamma: float) -> None:
    p, q = diagonal(n, d, seed), diagonal(n, d, seed + 1)
    torch.testing.assert_close(entropic_wasserstein(p, q, gamma), printed(p, q, gamma), rtol=1e-10, atol=1e-10)


@QUICK
@given(n=st.integers(1, 4), d=st.integers(1, 6), seed=st.integers(0, 10**6), gamma=st.sampled_from((0.0, *GAMMAS)))
def test_matrix_form_is_the_diagonal_form(n: int, d: int, seed: int, gamma: float) -> None:
    p, q = diagonal(n, d, seed), diagonal(n, d, seed + 1)
    a, b = FullGaussian.of(p), FullGaussian.of(q)
    torch.testing.assert_close(wasserstein2(a, b), wasserstein2(p, q), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        entropic_wasserstein(a, b, gamma), entropic_wasserstein(p, q, gamma), rtol=1e-10, atol=1e-9
    )
    psi = torch.diag_embed(optimal_coupling(p, q, gamma))
    torch.testing.assert_close(optimal_coupling(a, b, gamma), psi, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_against_the_minimum_over_all_couplings(seed: int) -> None:
    """No cross-covariance matrix does better, and a general optimiser finds the same value."""
    gamma, p, q = (0.4, 1.0, 3.0, 0.1, 10.0)[seed], full(1, 2, seed), full(1, 2, seed + 50)
    value = entropic_wasserstein(p, q, gamma).item()
    psi = optimal_coupling(p, q, gamma)[0].numpy()
    assert objective(p, q, psi, gamma) == pytest.approx(value, abs=1e-10)
    start = np.zeros(4)
    found = optimize.minimize(
        lambda v: objective(p, q, v.reshape(2, 2), gamma), start, method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20_000, "maxfev": 20_000},
    )  # fmt: skip
    assert found.fun == pytest.approx(value, abs=1e-8)
    assert found.x.reshape(2, 2) == pytest.approx(psi, abs=1e-4)
    for noise in np.random.default_rng(seed).normal(scale=0.02, size=(50, 2, 2)):
        assert objective(p, q, psi + noise, gamma) >= value


@pytest.mark.parametrize(("shift", "a", "b", "gamma", "value", "psi"), ANCHORS)
def test_against_sinkhorn_on_a_grid(shift: float, a: float, b: float, gamma: float, value: float, psi: float) -> None:
    """The coupling is not assumed to be Gaussian here: POT's Sinkhorn on densities cut into cells."""
    ot = pytest.importorskip("ot", reason="POT, a dependency of the tests: pip install pot")
    grids = [np.linspace(m - 7 * math.sqrt(v), m + 7 * math.sqrt(v), 281) for m, v in ((0, a), (shift, b))]
    weights = [np.exp(-((z - m) ** 2) / (2 * v)) for z, m, v in zip(grids, (0, shift), (a, b), strict=True)]
    weights = [w / w.sum() for w in weights]
    cost = (grids[0][:, None] - grids[1][None]) ** 2
    plan = ot.sinkhorn(*weights, gamma / 2 * cost, 1.0, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
    cell = (grids[0][1] - grids[0][0]) * (grids[1][1] - grids[1][0])
    positive = plan > 0
    entropy = -(plan[positive] * np.log(plan[positive] / cell)).sum()
    assert gamma / 2 * (plan * cost).sum() - entropy == pytest.approx(value, abs=1e-6)
    centred = (plan * np.outer(grids[0], grids[1] - shift)).sum()
    assert centred == pytest.approx(psi, abs=1e-6)


def test_no_coupling_at_gamma_0() -> None:
    """gamma -> 0: minus the two entropies, so the bound is a beta-VAE's with beta 2."""
    p, q = diagonal(3, 4, 0), diagonal(3, 4, 1)
    entropies = sum(torch.distributions.Normal(*g).entropy().sum(1) for g in (p, q))
    torch.testing.assert_close(entropic_wasserstein(p, q, 0), -entropies)
    torch.testing.assert_close(entropic_wasserstein(p, q, 1e-9), -entropies)
    assert not optimal_coupling(p, q, 0).any() and not optimal_coupling(full(2, 3, 0), full(2, 3, 1), 0).any()
    prior = sum(0.5 * (g.mean.square() + g.scale.square() + math.log(2 * math.pi)).sum(1) for g in (p, p))
    torch.testing.assert_close(prior + entropic_wasserstein(p, p, 0), 2 * kl(p, standard_normal_like(p)))


def test_large_gamma_gives_w2_and_the_monge_map() -> None:
    p, q = full(2, 3, 3), full(2, 3, 4)
    gamma = 1e9
    torch.testing.assert_close(2 / gamma * entropic_wasserstein(p, q, gamma), wasserstein2(p, q), rtol=1e-6, atol=1e-7)
    psi = optimal_coupling(p, q, gamma)
    # the joint density is degenerate: z_b is a linear function of z_a, and Psi A^-1 Psi^T = B transposed round
    torch.testing.assert_close(psi.mT @ torch.linalg.solve(p.covariance, psi), q.covariance, rtol=1e-6, atol=1e-6)
    cost = (p.mean - q.mean).square().sum(1) + sum(
        c.diagonal(dim1=1, dim2=2).sum(1) for c in (p.covariance, q.covariance, -2 * psi)
    )
    torch.testing.assert_close(cost, wasserstein2(p, q), rtol=1e-6, atol=1e-6)


def test_w2_against_scipys_square_root() -> None:
    p, q = full(4, 5, 7), full(4, 5, 8)
    for i in range(4):
        a, b = p.covariance[i].numpy(), q.covariance[i].numpy()
        root = linalg.sqrtm(b)
        bures = np.trace(a + b - 2 * np.real(linalg.sqrtm(root @ a @ root)))
        shift = (p.mean[i] - q.mean[i]).square().sum().item()
        assert wasserstein2(p, q)[i].item() == pytest.approx(shift + bures, rel=1e-9)
        assert matrix_sqrt(p.covariance)[i].numpy() == pytest.approx(np.real(linalg.sqrtm(a)), abs=1e-10)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_riccati_equation(gamma: float) -> None:
    p, q = full(3, 4, 11), full(3, 4, 12)
    psi, a, b = optimal_coupling(p, q, gamma), p.covariance, q.covariance
    residual = a - (psi + torch.eye(4, dtype=torch.float64) / gamma) @ torch.linalg.solve(b, psi.mT)
    assert residual.abs().max() < 1e-9
    if gamma == 1:
        assert (psi - psi.mT).abs().max() > 1e-3, "the optimal cross-covariance is not symmetric"


def test_variance_of_least_cost() -> None:
    """With both codes N(0, S), prior terms and WD are least at S = (1 + g) / (1 + 2 g), with value ln(1 + 2 g) / 2."""
    for g in (0.3, 1.0, 7.0):
        best = (1 + g) / (1 + 2 * g)

        def total(s: float, g: float = g) -> float:
            return s + math.log(2 * math.pi) + entropic_wasserstein(scalar(0, s), scalar(0, s), g).item()

        assert total(best) == pytest.approx(0.5 * math.log(1 + 2 * g), abs=1e-10)
        assert total(best) <= min(total(best * 1.01), total(best * 0.99))


def test_it_is_no_distance() -> None:
    p = scalar(0, 1).mean, torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    q = Gaussian(p[0], torch.ones(1, 1, dtype=torch.float64, requires_grad=True))
    value = entropic_wasserstein(Gaussian(*p), q, 1.0)
    assert value.item() < 0
    assert torch.autograd.grad(value, q.scale)[0].abs().item() > 0.1, "at x' = x the gradient in S_b is not zero"
    assert torch.autograd.grad(wasserstein2(Gaussian(*p), q), q.scale)[0].item() == 0


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
def test_float32_keeps_its_digits(gamma: float) -> None:
    """Tiny, huge and equal variances: within 1e-4 of float64, and of what the printed form needs float128 for."""
    scales = torch.tensor([1e-6, 1e-3, 0.1, 1.0, 1.4142, 30.0, 1e3], dtype=torch.float64)
    s, s_ = (t.reshape(-1, 1) for t in torch.meshgrid(scales, scales * 1.0005, indexing="ij"))
    for shift in (0.0, 0.01, 3.0):
        p, q = Gaussian(0 * s, s), Gaussian(0 * s + shift, s_)
        small = [Gaussian(*(t.float() for t in g)) for g in (p, q)]
        exact = [Gaussian(*(t.double() for t in g)) for g in small]  # the same numbers, so only arithmetic differs
        value, reference = entropic_wasserstein(*small, gamma), entropic_wasserstein(*exact, gamma)
        assert value.dtype == torch.float32
        assert ((value - reference).abs() <= 1e-4 * reference.abs().clamp(min=0.05)).all()
        torch.testing.assert_close(reference, printed(*exact, gamma), rtol=1e-6, atol=1e-6)
        assert ((optimal_coupling(*small, gamma) / optimal_coupling(*exact, gamma) - 1).abs().nan_to_num() < 1e-4).all()
        assert ((wasserstein2(*small) / wasserstein2(*exact) - 1).abs() < 1e-4).all()


def test_the_case_that_breaks_the_printed_form() -> None:
    p, q = scalar(0, 2, torch.float32), scalar(0.01, 2.001, torch.float32)
    exact = entropic_wasserstein(*(Gaussian(*(t.double() for t in g)) for g in (p, q)), 1e4).item()
    assert entropic_wasserstein(p, q, 1e4).item() == pytest.approx(exact, rel=1e-5)
    a, b, g = p.scale**2, q.scale**2, 1e4
    u = torch.sqrt(1 + 4 * g * g * a * b)
    naive = g / 2 * (1e-4 + a + b) - (u - 1) / 2 + torch.log(u + 1) / 2 - torch.log(2 * a * b) / 2
    naive = naive - math.log(2 * math.pi) - 1
    assert abs(naive.item() - exact) > 1e-4


def pieces(kind: str) -> tuple[Tensor, ...]:
    p, q = (diagonal if kind == "diagonal" else full)(2, 3, 5), (diagonal if kind == "diagonal" else full)(2, 3, 6)
    return tuple(t.clone().requires_grad_() for t in (*p, *q))


@pytest.mark.parametrize("kind", ["diagonal", "full"])
@pytest.mark.parametrize("gamma", [None, 0.0, 1e-2, 1.0, 1e2])
def test_gradients_against_finite_differences(kind: str, gamma: float | None) -> None:
    make = Gaussian if kind == "diagonal" else FullGaussian

    def value(m: Tensor, s: Tensor, m_: Tensor, s_: Tensor) -> Tensor:
        if kind == "full":
            s, s_ = 0.5 * (s + s.mT), 0.5 * (s_ + s_.mT)
        p, q = make(m, s), make(m_, s_)
        return wasserstein2(p, q) if gamma is None else entropic_wasserstein(p, q, gamma)

    assert torch.autograd.gradcheck(value, pieces(kind), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gamma", [None, 1e-2, 1.0, 1e2])
def test_gradients_at_repeated_eigenvalues(gamma: float | None) -> None:
    """At S = I, where the gradient of an eigendecomposition is not a number."""
    eye = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    parts = [torch.zeros(2, 3, dtype=torch.float64), eye.clone(), torch.ones(2, 3, dtype=torch.float64), 2 * eye]
    parts = [t.clone().requires_grad_() for t in parts]

    def value(m: Tensor, a: Tensor, m_: Tensor, b: Tensor) -> Tensor:
        p, q = FullGaussian(m, 0.5 * (a + a.mT)), FullGaussian(m_, 0.5 * (b + b.mT))
        return wasserstein2(p, q) if gamma is None else entropic_wasserstein(p, q, gamma)

    assert torch.autograd.gradcheck(value, parts, atol=1e-5, rtol=1e-4)
    assert torch.autograd.gradcheck(lambda a: matrix_sqrt(0.5 * (a + a.mT)), (parts[1],), atol=1e-6)
    if gamma is not None:

        def psi(a: Tensor, b: Tensor) -> Tensor:
            half = [0.5 * (t + t.mT) for t in (a, b)]
            return optimal_coupling(FullGaussian(parts[0], half[0]), FullGaussian(parts[2], half[1]), gamma)

        assert torch.autograd.gradcheck(psi, (parts[1], parts[3]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1e-4, 1.0, 1e4])
def test_gradients_are_finite_in_float32(gamma: float) -> None:
    scales = torch.tensor([[1e-6, 1e-2, 1.0, 1e3]], requires_grad=True)
    p, q = Gaussian(torch.zeros(1, 4), scales), Gaussian(torch.ones(1, 4), scales.detach().flip(1).requires_grad_())
    for g in torch.autograd.grad(entropic_wasserstein(p, q, gamma).sum(), (scales, q.scale)):
        assert g.isfinite().all()


def test_two_of_a_kind() -> None:
    p = diagonal(2, 3, 0)
    for function in (wasserstein2, lambda a, b: entropic_wasserstein(a, b, 1.0)):
        with pytest.raises(TypeError, match="p is a Gaussian and q a FullGaussian, expected both Gaussian"):
            function(p, FullGaussian.of(p))
    with pytest.raises(ValueError, match="gamma is -1"):
        entropic_wasserstein(p, p, -1)
    with pytest.raises(ValueError, match="gamma is -1"):
        optimal_coupling(p, p, -1)
    bad = FullGaussian(p.mean, -torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    with pytest.raises(torch.linalg.LinAlgError):
        wasserstein2(bad, bad)
