"""Regularizers: an attack, then a divergence; nothing of the attack stays behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from robrep.attacks import L2, PGD, Adversary, Linf
from robrep.encoders import ConvEncoder
from robrep.gaussians import Gaussian
from robrep.losses import cross_entropy, kl_categorical, squared_error
from robrep.methods import urkle

IDS, SEED = torch.tensor([4, 9, 2]), 7
ATTACK, THREAT = PGD(3), Linf(0.1)
ADVERSARY = Adversary(ATTACK, THREAT)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def swapped_cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    return cross_entropy(logits, y)


def images(n: int = 3, c: int = 1, side: int = 6) -> Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def encoder(gaussian: bool = True) -> ConvEncoder:
    return ConvEncoder(1, 3, gaussian=gaussian, widths=(4, 4, 4), groups=2).double()


def classifier() -> nn.Module:
    """With batch norm and dropout, in training mode: what an attack must switch off and put back."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(3)
    ).double()


def by_hand(score: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, steps: int = 3) -> Tensor:
    """The x' of PGD, from the threat model's own start."""
    from robrep.random import fold

    x_adv, was = THREAT.start(x, IDS, fold(SEED, "start", 0)), model.training
    model.eval()
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        (g,) = torch.autograd.grad(score(leaf).sum(), leaf)
        x_adv = (x_adv + 2.5 * 0.1 / steps * g.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    model.train(was)
    return x_adv


def test_urkle_by_hand() -> None:
    model, x = encoder(), images()
    p = model(x)

    def divergence(v: Tensor, fixed: bool) -> Tensor:
        reference = p.detach() if fixed else p
        return kl_divergence(Independent(Normal(*reference), 1), Independent(Normal(*model(v)), 1))

    x_adv = by_hand(lambda v: divergence(v, True), model, x)
    got, expected = urkle(model, x, p, ADVERSARY, ids=IDS, seed=SEED), divergence(x_adv, False)
    assert got.shape == (3,)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    weights = list(model.parameters())
    one = torch.autograd.grad(got.mean(), weights, retain_graph=True)
    other = torch.autograd.grad(expected.mean(), weights)
    for a, b in zip(one, other, strict=True):  # through both arguments
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_trades_by_hand() -> None:
    model, x = classifier().eval(), images()
    logits = model(x)
    x_adv = by_hand(
        lambda v: kl_divergence(Categorical(logits=logits.detach()), Categorical(logits=model(v))), model, x
    )
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=model(x_adv)))
    got = ADVERSARY.worst_case(kl_categorical, model, x, logits, ids=IDS, seed=SEED)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_reconstruction_shift_by_hand() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1)).double(), images()
    output = model(x)
    x_adv = by_hand(lambda v: (output.detach() - model(v)).square().sum((1, 2, 3)), model, x)
    expected = (output - model(x_adv)).square().sum((1, 2, 3))
    got = ADVERSARY.worst_case(squared_error, model, x, output, ids=IDS, seed=SEED)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_adversarial_cross_entropy_by_hand() -> None:
    model, x, y = classifier().eval(), images(), torch.tensor([2, 0, 1])
    model(x)

    def loss(v: Tensor) -> Tensor:
        return -model(v).log_softmax(1)[torch.arange(3), y]

    expected = loss(by_hand(loss, model, x))
    got = ADVERSARY.worst_case(swapped_cross_entropy, model, x, y, ids=IDS, seed=SEED)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert (got > loss(x)).all()


@pytest.mark.parametrize("eps", [0.05, 0.2])
@pytest.mark.parametrize("norm", [Linf, L2])
def test_urkle_of_a_linear_encoder_is_known(eps: float, norm: type) -> None:
    """Mean w x, scale 1: the maximum of the KL is (eps ||w||_*)^2 / 2, with the dual norm."""
    w = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(x: Tensor) -> Gaussian:
        mean = (x.flatten(1) * w).sum(1, keepdim=True)
        return Gaussian(mean, torch.ones_like(mean))

    x = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    got = urkle(model, x, model(x), Adversary(PGD(60, eps / 10), norm(eps)), ids=IDS, seed=SEED)
    dual = w.abs().sum() if norm is Linf else w.norm()
    exact = (eps * dual).square() / 2
    torch.testing.assert_close(got, exact.expand(3), rtol=1e-12 if norm is Linf else 1e-3, atol=0)
    assert (got <= exact + 1e-12).all()


def test_more_steps_and_larger_radii_find_more() -> None:
    model, x = encoder(), images(20)
    ids = torch.arange(20)

    def value(steps: int, eps: float) -> float:
        return urkle(model, x, model(x), Adversary(PGD(steps), Linf(eps)), ids=ids, seed=0).mean().item()

    values = [value(10, eps) for eps in (0, 0.01, 0.05, 0.2)]
    assert values[0] == pytest.approx(0, abs=1e-20) and values == sorted(values)
    assert value(1, 0.1) < value(20, 0.1)


def all_regularizers(model: nn.Module, x: Tensor, attack: Any = ATTACK) -> list[tuple[str, Callable[[], Tensor]]]:
    y, keywords, adversary = torch.tensor([2, 0, 1]), dict(ids=IDS, seed=SEED), Adversary(attack, THREAT)

    def codes(v: Tensor) -> Gaussian:
        return Gaussian(model(v), nn.functional.softplus(model(v)) + 0.1)

    gaussian = nn.Module()
    gaussian.model, gaussian.forward = model, codes  # type: ignore[assignment]
    return [
        ("urkle", lambda: urkle(gaussian, x, gaussian(x), adversary, **keywords)),
        ("trades", lambda: adversary.worst_case(kl_categorical, model, x, model(x), **keywords)),
        ("shift", lambda: adversary.worst_case(squared_error, model, x, model(x), **keywords)),
        ("ce", lambda: adversary.worst_case(swapped_cross_entropy, model, x, y, **keywords)),
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_gradients_are_left_alone(which: int, fails: bool) -> None:
    model, x, seen = classifier(), images(), []
    model(x)
    model.train()
    model[3].eval()
    modes = [m.training for m in model.modules()]
    watched = model[0].register_forward_hook(lambda m, *_: seen.append([s.training for s in model.modules()]))

    def attack(objective: Any, x: Tensor, threat: Any, *given: Any, ids: Tensor, seed: int) -> Tensor:
        assert not any(t.requires_grad for g in given for t in (g if isinstance(g, tuple) else (g,)))
        seen.clear()
        x_adv = ATTACK(objective, x, threat, *given, ids=ids, seed=seed)
        assert all(not any(s) for s in seen), "attacked in training mode"
        assert all(p.grad is None for p in model.parameters())
        if fails:
            raise ZeroDivisionError
        return x_adv

    name, run = all_regularizers(model, x, attack)[which]
    before = [p.clone() for p in model.parameters()]
    try:
        value = run()
        assert not fails
        assert seen[-1] == modes, "the divergence at x' is computed in the model's own mode"
        value.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), name
        assert any(p.grad.abs().max() > 0 for p in model.parameters())
    except ZeroDivisionError:
        assert fails
    watched.remove()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_attack_moves_no_running_statistics() -> None:
    """Only the two passes of the training step itself do: the clean one and the one at x'."""
    model, x = classifier(), images()
    model(x)
    norm = model[1]
    for steps in (1, 5):
        norm.reset_running_stats()
        Adversary(PGD(steps), THREAT).worst_case(kl_categorical, model, x, model(x), ids=IDS, seed=SEED)
        assert norm.num_batches_tracked == 2


def test_examples_are_independent_of_each_other() -> None:
    model, x = encoder(), images()
    whole = urkle(model, x, model(x), ADVERSARY, ids=IDS, seed=SEED)
    for i in range(3):
        one = slice(i, i + 1)
        alone = urkle(model, x[one], model(x[one]), ADVERSARY, ids=IDS[one], seed=SEED)
        torch.testing.assert_close(alone, whole[one], rtol=1e-9, atol=1e-12)


def test_worst_case_with_a_divergence_of_ones_own() -> None:
    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return 1 - nn.functional.cosine_similarity(a, b)

    model, x = encoder(gaussian=False), images()
    value = Adversary(PGD(10), Linf(0.2)).worst_case(cosine, model, x, model(x), ids=IDS, seed=SEED)
    assert value.shape == (3,) and (value > 1e-6).all()
    assert not math.isnan(value.sum().item())
