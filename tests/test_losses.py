"""Losses of each example, and the bounded softmax with the proposition it was made for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from robrep.book.vae_urkle import bounded_log_softmax
from robrep.gaussians import Gaussian, kl
from robrep.losses import cross_entropy, kl_categorical, squared_error

QUICK = settings(deadline=None, max_examples=40, database=None, derandomize=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_squared_error() -> None:
    a, b = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    pairs = zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True)
    expected = [sum((u - v) ** 2 for u, v in zip(row, other, strict=True)) for row, other in pairs]
    assert squared_error(a, b).tolist() == pytest.approx(expected, rel=1e-12)
    assert squared_error(normal(3, 4), normal(3, 4)).shape == (3,)
    assert (squared_error(a, a) == 0).all()


def test_cross_entropy() -> None:
    logits, y = normal(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = torch.stack([row.exp().sum().log() - row[k] for row, k in zip(logits, y, strict=True)])
    torch.testing.assert_close(cross_entropy(logits, y), expected, rtol=1e-12, atol=1e-12)


def test_kl_categorical() -> None:
    a, b = normal(5, 4), normal(5, 4, seed=1)
    expected = kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(kl_categorical(a, b), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(kl_categorical(a, b), kl_categorical(b, a))
    torch.testing.assert_close(kl_categorical(a + 3, b - 2), expected)  # logits are known up to a constant
    extreme = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert kl_categorical(extreme, extreme.flip(0)).isfinite().all()


def test_gradients() -> None:
    y = torch.tensor([0, 2, 1])
    a, b = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: cross_entropy(a, y), a)
    assert torch.autograd.gradcheck(kl_categorical, (a, b))
    assert torch.autograd.gradcheck(squared_error, (a, b))
    assert torch.autograd.gradcheck(lambda a: bounded_log_softmax(a, 3.0), a)


def test_precision() -> None:
    y = torch.tensor([0, 2, 1])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        a, b = normal(3, 4, dtype=dtype), normal(3, 4, seed=1, dtype=dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float64):
            losses = (squared_error(a, b), cross_entropy(a, y), kl_categorical(a, b), bounded_log_softmax(a, 3.0))
        assert {loss.dtype for loss in losses} == {expected}, dtype
        # the squared error must be taken of widened numbers, not widened afterwards
        torch.testing.assert_close(losses[0].double(), (a.double() - b.double()).square().sum(1), rtol=1e-6, atol=1e-6)


def test_every_example_stands_alone() -> None:
    """Doubling the batch changes no value and no gradient: nothing is averaged."""
    y = torch.tensor([0, 2, 1])
    b = normal(3, 4, seed=1)
    for loss in (
        lambda a, b, y: squared_error(a, b),
        lambda a, b, y: cross_entropy(a, y),
        lambda a, b, y: kl_categorical(a, b),
        lambda a, b, y: bounded_log_softmax(a, 3.0)[:, 0],
    ):
        grads = []
        for k in (1, 2):
            a = normal(3, 4).repeat(k, 1).requires_grad_()
            grads.append(torch.autograd.grad(loss(a, b.repeat(k, 1), y.repeat(k)).sum(), a)[0][:3])
        torch.testing.assert_close(*grads)


# --- bounded softmax ----------------------------------------------------------------------------------------------


@QUICK
@given(
    classes=st.integers(2, 100),
    above=st.floats(1e-3, 50),
    spread=st.floats(0, 500),
    seed=st.integers(0, 10**6),
)
def test_bounded_log_softmax(classes: int, above: float, spread: float, seed: int) -> None:
    bound = math.log(classes) + above
    logits = spread * normal(4, classes, seed=seed, dtype=torch.float32)
    log_p = bounded_log_softmax(logits, bound)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(4))
    assert log_p.min() >= -bound * (1 + 1e-6) and log_p.max() <= 1e-6
    k = 1 - classes * math.exp(-bound)
    expected = (k * logits.double().softmax(1) + math.exp(-bound)).log()
    torch.testing.assert_close(log_p.double(), expected, rtol=1e-5, atol=1e-5)
    in_order = log_p.gather(1, logits.argsort(1))
    assert (in_order.diff(dim=1) >= -1e-6).all(), "the order of the classes changed"
    assert (log_p.gather(1, logits.argmax(1, keepdim=True)).squeeze(1) == log_p.amax(1)).all()


def test_floor_is_reached() -> None:
    log_p = bounded_log_softmax(torch.tensor([[200.0, 0.0, -200.0]]), 3.0)
    torch.testing.assert_close(log_p, torch.tensor([[math.log(1 - 2 * math.exp(-3)), -3.0, -3.0]]))


def test_a_high_bound_is_kept_too() -> None:
    """exp(-M) is no number of float32 beyond M = 103, yet no loss may exceed M."""
    log_p = bounded_log_softmax(torch.tensor([[0.0, -1e4], [0.0, -50.0]]), 200.0)
    torch.testing.assert_close(log_p, torch.tensor([[0.0, -200.0], [0.0, -50.0]]))
    x = torch.tensor([[0.0, -1e4]], requires_grad=True)
    assert torch.autograd.grad(bounded_log_softmax(x, 200.0).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_bound_too_low(classes: int) -> None:
    logits = torch.zeros(1, classes)
    for bound in (math.log(classes), math.log(classes) - 0.1, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"bound is .*, expected more than ln\({classes}\) = "):
            bounded_log_softmax(logits, bound)
    assert bounded_log_softmax(logits, math.log(classes) + 1e-3).isfinite().all()


@pytest.mark.parametrize("bound", [1.5, 3.0, 6.0])
def test_proposition_1(bound: float) -> None:
    """loss at x' <= loss at x + M / sqrt(2) * sqrt(KL), for any head, with expectations by quadrature."""
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tightest = -math.inf
    for trial in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial)
            head = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 3)).double().requires_grad_(False)
            head[2].weight.mul_(50)
        loss = -bounded_log_softmax(head(grid[:, None]), bound)[:, 0]
        assert loss.max() <= bound * (1 + 1e-6) and loss.min() >= 0

        def density(p: Gaussian) -> Tensor:
            return torch.distributions.Normal(*(t.squeeze() for t in p)).log_prob(grid).exp()

        draw = torch.rand(4, generator=generator, dtype=torch.float64).view(4, 1, 1)
        p, q = Gaussian(2 * draw[0], 0.3 + draw[1]), Gaussian(2 * draw[2], 0.3 + draw[3])
        clean, attacked = (torch.trapezoid(density(g) * loss, grid).item() for g in (p, q))
        allowed = bound / math.sqrt(2) * math.sqrt(kl(p, q).item())
        assert attacked - clean <= allowed
        tightest = max(tightest, (attacked - clean) / allowed)
    assert tightest > 0.2, "a test that no loss comes near would not notice a wrong constant"
