"""Attacks stay where they may search, find what can be found, and leave everything else alone."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robrep import attacks
from robrep.attacks import FGSM, L2, PGD, Linf, attack_mode, random_objective
from robrep.gaussians import Gaussian, kl
from robrep.losses import cross_entropy
from robrep.random import fold, noise, uniform

QUICK = settings(deadline=None, max_examples=60, database=None, derandomize=True)
NORMS = pytest.mark.parametrize("norm", [Linf, L2])


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images that also touch 0 and 1."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(0, 1).to(dtype)


def wavy(x: Tensor, *_: Any) -> Tensor:
    """A score with many maxima, computed element by element so that no row knows of another."""
    w = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype)
    return (torch.sin(9 * x.flatten(1)) * w + torch.cos(17 * x.flatten(1)) * w.flip(0)).sum(1)


def linear(w: Tensor) -> Callable[..., Tensor]:
    return lambda x: (x.flatten(1) * w).sum(1)


def flat_norm(norm: type, d: Tensor) -> Tensor:
    return d.flatten(1).double().norm(dim=1, p=math.inf if norm is Linf else 2)


def network(channels: int = 1, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Everything that an attack could disturb: batch norm, dropout, a frozen layer, modes that differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ).to(dtype)
    net[0].weight.requires_grad_(False)
    net[7].weight.grad = torch.full_like(net[7].weight, 0.25)
    net.train()
    net[4].eval()
    return net


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(module.state_dict()),
        "modes": [m.training for m in module.modules()],
        "tracked": [getattr(m, "track_running_stats", None) for m in module.modules()],
        "needed": [p.requires_grad for p in module.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "autograd": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["state"].keys() == after["state"].keys()
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]), name
    for one, other in zip(before["grads"], after["grads"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert torch.equal(before["torch"], after["torch"])
    assert (before["numpy"] == after["numpy"]).all()
    for name in ("modes", "tracked", "needed", "python", "autograd"):
        assert before[name] == after[name], name


# --- where the result lies ----------------------------------------------------------------------------------------


@st.composite
def attack_calls(draw: st.DrawFn) -> tuple[Any, Tensor, Any, Tensor, int]:
    n, c, h, w = (draw(st.integers(1, k)) for k in (4, 3, 5, 5))
    x = images(n, c, h, w, seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from([torch.float32, torch.float64])))
    radius = st.sampled_from([0.0, 1e-4, 8 / 255, 0.3, 1.0, 3.0])
    eps = draw(radius) if draw(st.booleans()) else torch.tensor([draw(radius) for _ in range(n)])
    size = draw(st.sampled_from([None, 0.0, 0.01, 5.0]))
    pgd = PGD(
        steps=draw(st.integers(1, 4)),
        step_size=size,
        restarts=draw(st.integers(1, 3)),
        random_start=draw(st.booleans()),
        keep=draw(st.sampled_from(["last", "best"])),
    )
    attack = FGSM(random_start=draw(st.booleans())) if draw(st.integers(0, 4)) == 0 else pgd
    ids = torch.tensor(draw(st.lists(st.integers(0, 10**9), min_size=n, max_size=n)))
    return attack, x, draw(st.sampled_from([Linf, L2]))(eps), ids, draw(st.integers(0, 10**6))


@settings(QUICK, max_examples=200)
@given(attack_calls())
def test_stays_in_the_ball_and_in_the_unit_interval(call: tuple[Any, Tensor, Any, Tensor, int]) -> None:
    attack, x, threat, ids, seed = call
    clean = x.clone()
    x_adv = attack(wavy, x, threat, ids=ids, seed=seed)
    assert torch.equal(x, clean), "x was written to"
    assert x_adv.data_ptr() != x.data_ptr()
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert not x_adv.requires_grad and x_adv.grad_fn is None
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    distance = flat_norm(type(threat), x_adv - x)
    assert (distance <= torch.as_tensor(threat.eps) + 1e-6).all()
    torch.testing.assert_close(threat.distance(x_adv, x).double(), distance, rtol=1e-6, atol=1e-7)
    assert torch.equal(attack(wavy, x, threat, ids=ids, seed=seed), x_adv), "the same call gave another result"


@NORMS
def test_radius_zero_leaves_the_image(norm: type) -> None:
    x = images(3, 1, 4, 4)
    for attack in (PGD(3), PGD(3, 0.1, restarts=2, keep="best"), FGSM()):
        assert torch.equal(attack(wavy, x, norm(0)), x)


def test_every_example_has_its_own_radius() -> None:
    x, eps = torch.full((4, 1, 5, 5), 0.5, dtype=torch.float64), torch.tensor([0.0, 0.05, 0.2, 0.4])
    for norm in (Linf, L2):
        together = PGD(30)(linear(torch.ones(25)), x, norm(eps))
        torch.testing.assert_close(flat_norm(norm, together - x), eps.double(), atol=1e-6, rtol=1e-6)
        for i in range(4):
            alone = PGD(30)(linear(torch.ones(25)), x[:1], norm(eps[i].item()), ids=torch.tensor([i]))
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-7, rtol=0)


def test_a_radius_of_numpy() -> None:
    x = images(2, 1, 3, 3)
    for norm, kind in itertools.product((Linf, L2), (np.float32, np.float64)):
        got = PGD(3)(wavy, x, norm(kind(0.1)))
        torch.testing.assert_close(got, PGD(3)(wavy, x, norm(float(kind(0.1)))), atol=1e-6, rtol=0)


@NORMS
def test_start_is_uniform_in_the_ball(norm: type) -> None:
    """In l2 the share of points within r of the centre is (r / eps)^d."""
    n, d, eps = 4000, 3, 0.3
    x = torch.full((n, 1, 1, d), 0.5, dtype=torch.float64)
    delta = (norm(eps).start(x, torch.arange(n), 7) - x).flatten(1)
    distance = flat_norm(norm, delta) / eps
    assert distance.max() <= 1
    # in both norms the ball of radius r has r^d of the volume
    from scipy import stats

    assert stats.kstest((distance**d).numpy(), "uniform").pvalue > 1e-3
    assert (delta.mean(0).abs() < 4 * eps / n**0.5).all()
    if norm is Linf:
        assert stats.kstest((delta.flatten().numpy() / eps + 1) / 2, "uniform").pvalue > 1e-3
    others = norm(eps).start(x, torch.arange(n), 8)
    assert (others != norm(eps).start(x, torch.arange(n), 7)).flatten(1).any(1).all()


# --- what it finds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_objective_is_maximised_exactly(dtype: torch.dtype) -> None:
    w = torch.randn(12, generator=torch.Generator().manual_seed(0)).to(dtype)
    x, eps, score = torch.full((3, 3, 2, 2), 0.5, dtype=dtype), 0.25, linear(w)
    for attack in (PGD(10), PGD(1, 2 * eps), FGSM(random_start=False), PGD(10, restarts=2, keep="best")):
        gain = score(attack(score, x, Linf(eps))) - score(x)
        torch.testing.assert_close(gain, (eps * w.abs().sum()).expand(3), rtol=1e-5, atol=1e-6)
        if dtype == torch.float64:
            torch.testing.assert_close(gain, (eps * w.abs().sum()).expand(3), rtol=1e-12, atol=1e-12)
    # in l2 a step of s eps divides the tangent of half the angle between x' - x and w by 1 + s, or more
    for attack, short in ((PGD(100, eps / 20), 1e-3), (PGD(50, eps / 2), 1e-5)):
        gain = score(attack(score, x, L2(eps))) - score(x)
        torch.testing.assert_close(gain, (eps * w.norm()).expand(3), rtol=short, atol=0)
        assert (gain <= eps * w.norm() + 1e-5).all()
    gain = score(FGSM(random_start=False)(score, x, L2(eps))) - score(x)
    torch.testing.assert_close(gain, (eps * w.norm()).expand(3), rtol=1e-5, atol=0)


def test_linear_objective_at_the_walls_of_the_unit_interval() -> None:
    w = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, eps = images(5, 1, 4, 4), 0.4
    best = torch.where(w > 0, (x.flatten(1) + eps).clamp(max=1), (x.flatten(1) - eps).clamp(min=0))
    torch.testing.assert_close(PGD(10)(linear(w), x, Linf(eps)).flatten(1), best, rtol=0, atol=1e-15)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
@pytest.mark.parametrize("attack", [PGD(3), FGSM(), PGD(2, keep="best", restarts=2)])
def test_a_plain_sum_can_be_attacked(threat: Any, attack: Any) -> None:
    """Its gradient is one number seen from everywhere (stride 0), which must not be written to."""
    x = torch.full((2, 1, 3, 3), 0.4)
    for objective in (lambda v: v.sum((1, 2, 3)), lambda v: v.flatten(1).mean(1), lambda v: v[:, 0, 1, 1]):
        assert (objective(attack(objective, x, threat)) > objective(x)).all()


@NORMS
def test_the_gradient_is_not_written_to(norm: type) -> None:
    """A gradient may be a tensor that the objective owns."""
    weight = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    kept = weight.clone()

    class Dot(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return (x * weight).flatten(1).sum(1)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return weight

    PGD(3)(Dot.apply, torch.full((2, 1, 3, 3), 0.4), norm(0.1))
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("random_start", [False, True])
def test_fgsm_by_hand(random_start: bool) -> None:
    x, y, eps, net = images(4, 1, 5, 5), torch.tensor([0, 1, 2, 0]), 0.07, network(dtype=torch.float64).eval()
    start = x
    if random_start:
        u = uniform(fold(3, "start", 0), torch.arange(4), (1, 5, 5)).double()
        start = (x + eps * (2 * u - 1)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y, reduction="sum"), leaf)
    expected = start + (1.25 * eps if random_start else eps) * g.sign()
    expected = torch.maximum(torch.minimum(expected, x + eps), x - eps).clamp(0, 1)
    got = FGSM(random_start=random_start)(lambda v, y: cross_entropy(net(v), y), x, Linf(eps), y, seed=3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def naive_pgd(
    objective: Callable[[Tensor], Tensor],
    starts: list[Tensor],
    x: Tensor,
    eps: list[float],
    size: list[float],
    steps: int,
    norm: type,
    keep: str,
) -> Tensor:
    """One example, one pixel, one number at a time."""
    result = []
    for i in range(len(x)):
        clean, seen = x[i].flatten().tolist(), []
        for start in starts:
            point = start[i].flatten().tolist()
            for step in range(steps + 1):
                leaf = torch.tensor(point, dtype=torch.float64).view(1, *x.shape[1:]).requires_grad_()
                score = objective(leaf)[0]
                if keep == "best" or step == steps:
                    seen.append((score.item(), point))
                if step == steps:
                    break
                score.backward()
                g = leaf.grad.flatten().tolist()  # type: ignore[union-attr]
                length = 1.0 if norm is Linf else math.sqrt(sum(v * v for v in g))
                move = [math.copysign(1, v) * (v != 0) if norm is Linf else v / length for v in g]
                point = [p + size[i] * m for p, m in zip(point, move, strict=True)]
                if norm is Linf:
                    point = [min(max(p, c - eps[i]), c + eps[i]) for p, c in zip(point, clean, strict=True)]
                else:
                    far = math.sqrt(sum((p - c) ** 2 for p, c in zip(point, clean, strict=True)))
                    shrink = min(1.0, eps[i] / far) if far else 1.0
                    point = [c + shrink * (p - c) for p, c in zip(point, clean, strict=True)]
                point = [min(max(p, 0.0), 1.0) for p in point]
        result.append(max(seen, key=lambda pair: pair[0])[1])
    return torch.tensor(result, dtype=torch.float64).view_as(x)


@NORMS
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("random_start", [True, False])
def test_agrees_with_a_naive_implementation(norm: type, keep: Any, restarts: int, random_start: bool) -> None:
    x, steps = images(3, 2, 3, 2, seed=4), 6
    radii = torch.tensor([0.05, 0.2, 0.5], dtype=torch.float64)
    threat = norm(radii)
    attack = PGD(steps, 0.07, restarts=restarts, random_start=random_start, keep=keep)
    ids = torch.tensor([5, 3, 11])
    starts = [threat.start(x, ids, fold(9, "start", r)) if random_start else x for r in range(restarts)]
    expected = naive_pgd(wavy, starts, x, radii.tolist(), [0.07] * 3, steps, norm, keep)
    torch.testing.assert_close(attack(wavy, x, threat, ids=ids, seed=9), expected, rtol=0, atol=1e-10)
    # and the default step: 2.5 eps / steps, for each example
    expected = naive_pgd(wavy, starts, x, radii.tolist(), (2.5 * radii / steps).tolist(), steps, norm, keep)
    attack = PGD(steps, restarts=restarts, random_start=random_start, keep=keep)
    torch.testing.assert_close(attack(wavy, x, threat, ids=ids, seed=9), expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@NORMS
def test_agrees_with_foolbox(norm: type) -> None:
    foolbox = pytest.importorskip("foolbox", reason="pip install foolbox")
    net = network(3).eval()
    x, y, eps = images(6, 3, 6, 6, dtype=torch.float32), torch.tensor([0, 1, 2, 0, 1, 2]), 0.1 if norm is Linf else 0.7
    kind = foolbox.attacks.LinfPGD if norm is Linf else foolbox.attacks.L2PGD
    theirs = kind(abs_stepsize=eps / 5, steps=15, random_start=False).run(
        foolbox.PyTorchModel(net, bounds=(0, 1)), x, foolbox.criteria.Misclassification(y), epsilon=eps
    )
    ours = PGD(15, eps / 5, random_start=False)(lambda v, y: cross_entropy(net(v), y), x, norm(eps), y)
    assert (ours - x).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@QUICK
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from([Linf, L2]),
    steps=st.integers(1, 5),
    size=st.floats(0.01, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_best_and_restarts_never_lose(seed: int, norm: type, steps: int, size: float, dtype: torch.dtype) -> None:
    x, threat = images(4, 1, 3, 3, seed=seed, dtype=dtype), norm(0.3)

    def score(**settings: Any) -> Tensor:
        return wavy(PGD(steps, size, **settings)(wavy, x, threat, seed=seed))

    start = wavy(threat.start(x, torch.arange(4), fold(seed, "start", 0)))
    best = score(keep="best")
    assert (best >= start).all()
    assert (best >= score()).all()
    assert (score(keep="best", random_start=False) >= wavy(x)).all()
    for keep in ("last", "best"):
        chain = [score(keep=keep, restarts=k) for k in (1, 2, 4)]
        assert (chain[1] >= chain[0]).all() and (chain[2] >= chain[1]).all()
    assert (score(keep="best", restarts=2) >= score(restarts=2)).all()


def test_a_longer_search_is_a_better_one() -> None:
    x = images(50, 1, 4, 4)
    gains = [wavy(PGD(k)(wavy, x, Linf(0.2))).mean().item() for k in (1, 5, 40)]
    assert wavy(x).mean() < gains[0] < gains[1] < gains[2]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@NORMS
def test_the_scale_of_the_objective_does_not_matter(norm: type, scale: float) -> None:
    """Cross-entropy gradients of a sure classifier are tiny, those of a KL with small scales are huge."""
    x = torch.full((2, 1, 3, 3), 0.5)
    w = torch.randn(9, generator=torch.Generator().manual_seed(0))
    attack = PGD(3, 0.01, random_start=False)
    expected = attack(linear(w), x, norm(0.2))
    torch.testing.assert_close(attack(linear(scale * w), x, norm(0.2)), expected, rtol=0, atol=1e-6)


def test_a_divergence_needs_a_random_start() -> None:
    """The gradient of KL[p(x) || p(x')] is exactly zero at x' = x: from there an attack finds nothing."""
    w = torch.randn(6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def encoder(x: Tensor) -> Gaussian:
        code = (x.flatten(1)[:, None] * w).sum(2)
        return Gaussian(code[:, :3].tanh(), nn.functional.softplus(code[:, 3:]) + 0.1)

    x = images(8, 1, 4, 4)
    p = encoder(x)

    def objective(v: Tensor, p: Gaussian) -> Tensor:
        return kl(p, encoder(v))

    _, _, g = attacks.gradient(objective, x, (p,), torch.arange(8), 0)
    assert g.abs().max() < 1e-14
    without = PGD(20, random_start=False)(objective, x, Linf(0.1), p)
    found = PGD(20)(objective, x, Linf(0.1), p)
    assert (g == 0).all() <= torch.equal(without, x)
    assert (objective(found, p) > 0.1).all()
    half = PGD(1, 0.05)
    assert (
        objective(half(objective, x, Linf(0.1), p), p).mean()
        > 2 * objective(PGD(1, 0.05, random_start=False)(objective, x, Linf(0.1), p), p).mean()
    )


# --- each example for itself --------------------------------------------------------------------------------------


@QUICK
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from([Linf, L2]),
    keep=st.sampled_from(["last", "best"]),
    restarts=st.integers(1, 2),
    noisy=st.booleans(),
    data=st.data(),
)
def test_the_result_does_not_depend_on_the_batch(
    seed: int, norm: type, keep: Any, restarts: int, noisy: bool, data: st.DataObject
) -> None:
    @random_objective
    def shaken(x: Tensor, shift: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return wavy(x + 0.1 * noise(seed, ids, x.shape[1:]) + shift.view(-1, 1, 1, 1))

    def shifted(x: Tensor, shift: Tensor) -> Tensor:
        return wavy(x + shift.view(-1, 1, 1, 1))

    objective = shaken if noisy else shifted
    x, ids = images(7, 2, 3, 5, seed=seed), 10 * torch.arange(7) + 3
    radii, shift = torch.linspace(0.05, 0.4, 7), torch.linspace(0, 1, 7, dtype=torch.float64)
    attack = PGD(4, restarts=restarts, keep=keep)
    whole = attack(objective, x, norm(radii), shift, ids=ids, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(7))))
    for part in order.split(data.draw(st.integers(1, 7))):
        got = attack(objective, x[part], norm(radii[part]), shift[part], ids=ids[part], seed=seed)
        assert torch.equal(got, whole[part])


def test_ids_and_seed_name_the_start() -> None:
    x = images(1, 1, 4, 4).expand(4, 1, 4, 4)
    attack = PGD(1, 1e-6)
    default = attack(wavy, x, Linf(0.3))
    assert torch.equal(default, attack(wavy, x, Linf(0.3), ids=torch.arange(4), seed=0))
    assert len(default.flatten(1).unique(dim=0)) == 4, "examples share their noise"
    assert len(attack(wavy, x, Linf(0.3), ids=torch.full((4,), 9)).flatten(1).unique(dim=0)) == 1
    assert not torch.isclose(default, attack(wavy, x, Linf(0.3), seed=1)).all(3).all(2).any()
    restarts = {fold(0, "start", r) for r in range(5)} | {fold(0, "step", 0, s) for s in range(5)}
    assert len(restarts) == 10


def test_scores_are_summed_and_not_averaged() -> None:
    net, x, y = network(dtype=torch.float64).eval(), images(3, 1, 4, 4), torch.tensor([0, 1, 2])
    got = []
    for k in (1, 2, 5):
        score, _, g = attacks.gradient(
            lambda v, y: cross_entropy(net(v), y), x.repeat(k, 1, 1, 1), (y.repeat(k),), torch.arange(3 * k), 0
        )
        assert score.shape == (3 * k,) and not score.requires_grad and not g.requires_grad
        got.append(g[:3])
    for other in got[1:]:
        torch.testing.assert_close(got[0], other, rtol=1e-12, atol=1e-18)


def test_a_random_objective_gets_fresh_noise_in_every_step() -> None:
    calls: list[tuple[int, list[int]]] = []

    @random_objective
    def objective(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        calls.append((seed, ids.tolist()))
        return wavy(x)

    x, ids = images(3, 1, 3, 3), torch.tensor([7, 0, 2])
    attack = PGD(4, restarts=3, keep="best")
    attack(objective, x, Linf(0.1), ids=ids, seed=5)
    assert len(calls) == 3 * (4 + 1) and len({seed for seed, _ in calls}) == len(calls)
    assert all(got == [7, 0, 2] for _, got in calls)
    first = list(calls)
    calls.clear()
    attack(objective, x, Linf(0.1), ids=ids, seed=5)
    assert calls == first
    calls.clear()
    attack(objective, x, Linf(0.1), ids=ids, seed=6)
    assert not {seed for seed, _ in calls} & {seed for seed, _ in first}


def test_a_plain_objective_gets_what_was_given() -> None:
    seen = []

    def objective(*arguments: Any, **keywords: Any) -> Tensor:
        seen.append((arguments[1:], keywords))
        return wavy(arguments[0])

    y, p = torch.arange(2), Gaussian(torch.zeros(2, 1), torch.ones(2, 1))
    PGD(2)(objective, images(2, 1, 2, 2), Linf(0.1), y, p)
    assert len(seen) == 2, "one call for each step, and no more"
    for arguments, keywords in seen:
        assert arguments[0] is y and arguments[1] is p and len(arguments) == 2 and not keywords


# --- what it leaves alone -----------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize("attack", [PGD(3), PGD(2, restarts=2, keep="best"), FGSM()])
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("fails_at", [None, 0, 1])
def test_nothing_else_is_touched(norm: type, attack: Any, batch_norm: Any, fails_at: int | None) -> None:
    net, x, y, calls = network(), images(4, 1, 5, 5, dtype=torch.float32), torch.tensor([0, 1, 2, 0]), itertools.count()
    seen = []

    def objective(v: Tensor, y: Tensor) -> Tensor:
        seen.append([m.training for m in net.modules()])
        if next(calls) == fails_at:
            raise ZeroDivisionError
        return cross_entropy(net(v), y)

    before = snapshot(net)
    with torch.no_grad() if norm is L2 else torch.enable_grad():
        before["autograd"] = torch.is_grad_enabled()
        try:
            with attack_mode(net, None, "no module", batch_norm=batch_norm):
                attack(objective, x, norm(0.1), y)
            raised = False
        except ZeroDivisionError:
            raised = True
        after = snapshot(net)
    assert raised == (fails_at == 0 or (fails_at == 1 and attack != FGSM()))
    assert_same(before, after)
    norms = [isinstance(m, nn.BatchNorm2d) for m in net.modules()]
    assert all(modes == ([False] * len(modes) if batch_norm == "eval" else norms) for modes in seen)


def test_attack_mode_normalises_as_it_says() -> None:
    net, x = network(dtype=torch.float64), images(4, 1, 5, 5)
    reference = copy.deepcopy(net)
    for m in reference.modules():
        m.training = isinstance(m, nn.BatchNorm2d)
    by_batch, by_running = reference(x), copy.deepcopy(net).eval()(x)
    assert not torch.allclose(by_batch, by_running)
    before = snapshot(net)
    with attack_mode(net, batch_norm="batch"):
        torch.testing.assert_close(net(x), by_batch)
        with attack_mode(net[4]):  # nested, and on a part
            assert not net[4][1].training and net[1].training
        torch.testing.assert_close(net(x), by_batch)
    assert_same(before, snapshot(net))
    with attack_mode(net):
        torch.testing.assert_close(net(x), by_running)
    with attack_mode(net, net, net[1]):  # the same module several times
        assert not any(m.training for m in net.modules())
    assert_same(before, snapshot(net))
    with pytest.raises(ValueError, match="batch_norm is 'train', expected one of 'eval', 'batch'"):
        attack_mode(net, batch_norm="train").__enter__()  # type: ignore[arg-type]
    assert_same(before, snapshot(net))


def test_weights_still_learn_after_an_attack_under_autocast() -> None:
    """Autocast keeps cast weights; if one was cast without a graph, the weight would get no gradient."""
    net, x, y = network(), images(4, 1, 5, 5, dtype=torch.float32), torch.tensor([0, 1, 2, 0])
    net[7].weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        with attack_mode(net):
            x_adv = PGD(2, restarts=2, keep="best")(lambda v, y: cross_entropy(net(v), y), x, Linf(0.1), y)
        assert x_adv.dtype == torch.float32
        loss = cross_entropy(net(x_adv), y).mean()
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_x_may_need_a_gradient_or_be_a_view() -> None:
    x = images(2, 1, 4, 4)
    expected = PGD(3)(wavy, x, Linf(0.1))
    assert torch.equal(PGD(3)(wavy, x.clone().requires_grad_(), Linf(0.1)), expected)
    assert torch.equal(PGD(3)(wavy, x[:1].expand(2, 1, 4, 4), Linf(0.1))[:1], expected[:1])
    flipped = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(PGD(3)(wavy, flipped, Linf(0.1)), expected)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        (lambda x: wavy(x)[:, None], ValueError, r"objective gave shape \(2, 1\), expected \(2,\): one score for each"),
        (lambda x: wavy(x).sum(), ValueError, r"objective gave shape \(\)"),
        (lambda x: wavy(x)[:1], ValueError, r"objective gave shape \(1,\)"),
        (lambda x: wavy(x.detach()), ValueError, "objective does not depend on x': its graph is cut"),
        (lambda x: wavy(torch.from_numpy(x.detach().numpy())), ValueError, "does not depend on x'"),
        (lambda x: torch.zeros(2, requires_grad=True) + 0, ValueError, "does not depend on x'"),
        (lambda x: wavy(x) * math.nan, FloatingPointError, "gradient is not finite for at least one image"),
        (lambda x: wavy(x) * torch.tensor([1, math.nan]), FloatingPointError, "gradient is not finite"),
        (lambda x: (x - x.detach()).flatten(1).norm(dim=1) + (x - x.detach()).flatten(1).sum(1).sqrt(),
         FloatingPointError, "gradient is not finite"),
        (lambda x: wavy(x) * math.inf, FloatingPointError, "gradient is not finite"),
    ],
)  # fmt: skip
@NORMS
@pytest.mark.parametrize("settings", [{}, {"keep": "best"}, {"restarts": 2}])
def test_bad_objective(
    objective: Callable[[Tensor], Tensor], error: type[Exception], message: str, norm: type, settings: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        PGD(2, **settings)(objective, images(2, 1, 3, 3), norm(0.1))


@pytest.mark.parametrize("attack", [PGD(2), FGSM()])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.full((1, 1, 2, 2), 1.1),
            ValueError,
            r"x has values from 1.1 to 1.1, expected finite values in \[0, 1\]",
        ),
        (torch.full((1, 1, 2, 2), -0.1), ValueError, "x has values from -0.1"),
        (torch.full((1, 1, 2, 2), math.nan), ValueError, "x has values from nan"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), TypeError, "x has dtype torch.uint8"),
        (torch.zeros(1, 2, 2), ValueError, r"x has shape \(1, 2, 2\), expected N x C x H x W"),
        (torch.zeros(0, 1, 2, 2), ValueError, "expected at least one image"),
        (np.zeros((1, 1, 2, 2)), TypeError, "x is a ndarray"),
    ],
)
def test_bad_images(attack: Any, x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attack(wavy, x, Linf(0.1))


@NORMS
@pytest.mark.parametrize(
    ("eps", "error", "message"),
    [
        (-0.1, ValueError, "eps is -0.1, expected a finite number of at least 0"),
        (math.inf, ValueError, "eps is inf"),
        (math.nan, ValueError, "eps is nan"),
        ("0.1", TypeError, "eps is '0.1', expected a number"),
        (None, TypeError, "eps is None"),
        (True, TypeError, "eps is True"),
        ([0.1], TypeError, r"eps is \[0.1\]"),
        (torch.tensor(0.1), ValueError, r"eps is a tensor of shape \(\), expected \(N,\), finite and at least 0"),
        (torch.tensor([0.1, -0.1]), ValueError, r"eps is a tensor of shape \(2,\)"),
        (torch.tensor([0.1, math.nan]), ValueError, "finite and at least 0"),
        (torch.full((1, 1, 2, 2), 0.1), ValueError, r"shape \(1, 1, 2, 2\)"),
    ],
)
def test_bad_radius(norm: type, eps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        norm(eps)


@NORMS
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("step_size", [None, 0.1])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_wrong_number_of_radii(norm: type, random_start: bool, step_size: float | None, count: int) -> None:
    attack = PGD(2, step_size, random_start=random_start)
    with pytest.raises(ValueError, match=f"eps has {count} rows, expected 3, one for each image"):
        attack(wavy, images(3, 1, 3, 3), norm(torch.full((count,), 0.1)))


@NORMS
@pytest.mark.parametrize("count", [1, 2, 4])
def test_wrong_number_of_ids(norm: type, count: int) -> None:
    with pytest.raises(ValueError, match=f"ids has {count} rows, expected 3, one for each image"):
        PGD(2)(wavy, images(3, 1, 3, 3), norm(0.1), ids=torch.arange(count))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0, expected at least 1"),
        ({"steps": -1}, ValueError, "steps is -1"),
        ({"steps": True}, TypeError, "steps is True, expected an integer"),
        ({"steps": 2.0}, TypeError, "steps is 2.0"),
        ({"restarts": 0}, ValueError, "restarts is 0, expected at least 1"),
        ({"keep": "first"}, ValueError, "keep is 'first', expected one of 'last', 'best'"),
        ({"step_size": -1.0}, ValueError, "step_size is -1.0, expected a finite number of at least 0"),
        ({"step_size": "1"}, TypeError, "step_size is '1'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PGD(**settings)


def test_settings_cannot_be_changed_and_show_themselves() -> None:
    attack, threat = PGD(7, keep="best"), Linf(0.1)
    with pytest.raises(AttributeError):
        attack.steps = 0  # type: ignore[misc]
    with pytest.raises(AttributeError):
        threat.eps = -1  # type: ignore[misc]
    assert eval(repr(attack)) == attack and eval(repr(threat)) == threat


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0])
def test_the_l2_direction_in_half_precision(dtype: torch.dtype, scale: float) -> None:
    """Of length 1, or zero for a zero gradient; never a number that is not one."""
    gradient = (scale * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    direction = L2(0.5).direction(gradient)
    assert direction.dtype == dtype and direction.isfinite().all()
    length = direction.double().flatten(1).norm(dim=1)
    there = gradient.flatten(1).any(1)
    torch.testing.assert_close(length, there.double(), rtol=2e-2, atol=0)
