"""The Gaussian KL divergence: against the definition, against torch.distributions, and where digits are scarce."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from robrep.gaussians import Gaussian, kl, standard_normal_like

QUICK = settings(deadline=None, max_examples=60, database=None, derandomize=True)


def gaussian(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, d, generator=g, dtype=torch.float64)
    return Gaussian(mean.to(dtype), (0.2 + 2 * torch.rand(n, d, generator=g, dtype=torch.float64)).to(dtype))


def definition(p: Gaussian, q: Gaussian) -> Tensor:
    """The closed form as it is printed, with variances, in extended precision."""
    m, s, m_, s_ = (np.asarray(t.detach().double().numpy(), dtype=np.longdouble) for t in (*p, *q))
    terms = np.log(s_**2 / s**2) + (s**2 + (m - m_) ** 2) / s_**2 - 1
    return torch.from_numpy((0.5 * terms.sum(-1)).astype(np.float64))


def test_anchor() -> None:
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    value = kl(Gaussian(zero, one), Gaussian(one, 2 * one)).item()  # N(0, 1) and N(1, variance 4)
    assert value == pytest.approx(math.log(2) + (1 + 1) / 8 - 0.5, abs=1e-15)
    assert value == pytest.approx(0.443147, abs=5e-7)
    # the other direction is another number: the order of the arguments is tested
    assert kl(Gaussian(one, 2 * one), Gaussian(zero, one)).item() == pytest.approx(0.5 * (4 + 1 - 1) - math.log(2))


@QUICK
@given(n=st.integers(1, 5), d=st.integers(1, 7), seed=st.integers(0, 10**6))
def test_agrees_with_torch(n: int, d: int, seed: int) -> None:
    p, q = gaussian(n, d, seed), gaussian(n, d, seed + 1)
    expected = kl_divergence(Independent(Normal(*p), 1), Independent(Normal(*q), 1))
    assert kl(p, q).shape == (n,)
    torch.testing.assert_close(kl(p, q), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl(p, q), definition(p, q), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("m", "s", "m_", "s_"), [(0, 1, 1, 2), (0.3, 0.2, -0.5, 0.4), (0, 1, 0, 0.5), (1, 0.7, 1, 0.7)]
)
def test_agrees_with_numerical_integration(m: float, s: float, m_: float, s_: float) -> None:
    p, q = stats.norm(m, s), stats.norm(m_, s_)
    expected, _ = integrate.quad(lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), m - 12 * s, m + 12 * s, epsabs=1e-12)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert kl(Gaussian(m * one, s * one), Gaussian(m_ * one, s_ * one)).item() == pytest.approx(expected, abs=1e-9)


def test_agrees_with_samples() -> None:
    p, q = gaussian(1, 3, 5), gaussian(1, 3, 6)
    z = p.sample(torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    log_ratio = (Normal(*p).log_prob(z) - Normal(*q).log_prob(z)).sum(1)
    assert abs(log_ratio.mean() - kl(p, q)) < 4 * log_ratio.std() / len(z) ** 0.5


def test_is_summed_over_dimensions_and_not_averaged() -> None:
    p, q = gaussian(4, 6, 1), gaussian(4, 6, 2)
    columns = zip(*(t.split(1, dim=1) for t in (*p, *q)), strict=True)
    parts = [kl(Gaussian(m, s), Gaussian(m_, s_)) for m, s, m_, s_ in columns]
    torch.testing.assert_close(kl(p, q), torch.stack(parts).sum(0))
    double = Gaussian(*(torch.cat([t, t], 1) for t in p)), Gaussian(*(torch.cat([t, t], 1) for t in q))
    torch.testing.assert_close(kl(*double), 2 * kl(p, q))


# At 1/2 the formula changes from one expression of ln r to another.
RATIOS = [1e-3, 0.3, 0.499, 0.5, 0.501, 0.9, 1.0, 1.1, 2.0, 30.0]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_gradients(ratio: float, shift: float) -> None:
    """The derivatives in closed form, of all four arguments, and by finite differences."""
    m, s_ = torch.tensor([[0.2, -0.4]], dtype=torch.float64), torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    s, m_ = ratio * s_, m + shift
    inputs = [t.clone().requires_grad_() for t in (m, s, m_, s_)]
    got = torch.autograd.grad(kl(Gaussian(*inputs[:2]), Gaussian(*inputs[2:])).sum(), inputs)
    expected = [(m - m_) / s_**2, s / s_**2 - 1 / s, (m_ - m) / s_**2, 1 / s_ - (s**2 + (m - m_) ** 2) / s_**3]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    if ratio > 0.1:  # finite differences need room
        assert torch.autograd.gradcheck(lambda *a: kl(Gaussian(*a[:2]), Gaussian(*a[2:])), inputs, atol=1e-5)


@QUICK
@given(n=st.integers(1, 3), d=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_gradcheck(n: int, d: int, seed: int) -> None:
    inputs = [t.requires_grad_() for t in (*gaussian(n, d, seed), *gaussian(n, d, seed + 1))]
    assert torch.autograd.gradcheck(lambda a, b, c, e: kl(Gaussian(a, b), Gaussian(c, e)), inputs)


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("dims", ["both", "scale"])
def test_keeps_its_digits_near_equality(size: float, dims: str) -> None:
    """At a distance h float32 keeps about 1e-7 / h of a value of about h^2; the printed form keeps none at 1e-4."""
    g = torch.Generator().manual_seed(0)
    p = gaussian(200, 32, dtype=torch.float32)
    mean = p.mean + size * torch.randn(200, 32, generator=g) if dims == "both" else p.mean
    q = Gaussian(mean, p.scale * (1 + size * torch.randn(200, 32, generator=g)))
    expected = definition(p, q)
    error = ((kl(p, q).double() - expected) / expected).abs().max().item()
    assert error < 1e-6 + 3e-7 / size


def test_zero_and_stationary_at_equality() -> None:
    for dtype in (torch.float32, torch.float64):
        p = gaussian(5, 64, dtype=dtype)
        q = Gaussian(p.mean.clone().requires_grad_(), p.scale.clone().requires_grad_())
        value = kl(p, q)
        assert (value == 0).all()
        for grad in torch.autograd.grad(value.sum(), list(q)):
            assert grad.abs().max() <= 4 * torch.finfo(dtype).eps


@QUICK
@given(seed=st.integers(0, 10**6), d=st.integers(1, 4))
def test_never_negative(seed: int, d: int) -> None:
    assert (kl(gaussian(3, d, seed), gaussian(3, d, seed + 1)) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_ratios_of_scales(dtype: torch.dtype) -> None:
    scales = torch.logspace(-6, 6, 25, dtype=torch.float64).to(dtype)
    s, s_ = torch.meshgrid(scales, scales, indexing="ij")
    p = Gaussian(torch.zeros_like(s).view(-1, 1), s.reshape(-1, 1))
    q = Gaussian(torch.full_like(p.mean, 1e-3).requires_grad_(), s_.reshape(-1, 1).requires_grad_())
    value = kl(p, q)
    assert value.isfinite().all() and (value >= 0).all()
    different = (s / s_ - 1).abs().flatten() > 1e-3
    torch.testing.assert_close(value.detach().double()[different], definition(p, q)[different], rtol=1e-5, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), list(q)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    p, q = gaussian(4, 8, 1, dtype), gaussian(4, 8, 2, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = kl(p, q)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), definition(p, q), rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing() -> None:
    p, q = gaussian(4, 8, 1, torch.float32), gaussian(4, 8, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kl(p, q), kl(p, q)) and kl(p, q).dtype == torch.float32
        inside = kl(p, q)
    assert torch.equal(inside, kl(p, q))
    assert kl(gaussian(2, 2), gaussian(2, 2)).dtype == torch.float64


def test_sample() -> None:
    p = gaussian(3, 4)
    mean, scale = (t.clone().requires_grad_() for t in p)
    e = torch.randn(7, 3, 4, dtype=torch.float64)
    z = Gaussian(mean, scale).sample(e)
    assert z.shape == (7, 3, 4)
    torch.testing.assert_close(z, p.mean + p.scale * e)
    grads = torch.autograd.grad(z.sum(), [mean, scale])
    torch.testing.assert_close(grads[0], torch.full((3, 4), 7.0, dtype=torch.float64))
    torch.testing.assert_close(grads[1], e.sum(0))


def test_detach_and_prior() -> None:
    p = Gaussian(*(t.requires_grad_() for t in gaussian(3, 4)))
    assert not any(t.requires_grad for t in p.detach())
    assert all(t.data_ptr() == u.data_ptr() for t, u in zip(p, p.detach(), strict=True))
    prior = standard_normal_like(p)
    assert prior.mean.shape == prior.scale.shape == (3, 4) and prior.mean.dtype == torch.float64
    assert (prior.mean == 0).all() and (prior.scale == 1).all()
    expected = 0.5 * (p.mean**2 + p.scale**2 - 1 - 2 * p.scale.log()).sum(1)
    torch.testing.assert_close(kl(p, prior), expected)


def test_parts_are_cut_and_joined() -> None:
    p = Gaussian(torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2) + 1)
    first, second = p.chunk(2)
    assert torch.equal(first.mean, p.mean[:2]) and torch.equal(second.scale, p.scale[2:])
    again = Gaussian.cat([first, second])
    assert isinstance(again, Gaussian) and torch.equal(again.mean, p.mean) and torch.equal(again.scale, p.scale)
