"""What holds for every attack: where the result lies, what is left alone, that the batch does not matter."""

from __future__ import annotations

import copy
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robrep.attacks import APGD, FGSM, L2, PGD, Linf, Square, attack_mode, batch_objective
from robrep.losses import cross_entropy
from robrep.random import fold

QUICK = settings(deadline=None, max_examples=150, database=None, derandomize=True)
NORMS = pytest.mark.parametrize("norm", [Linf, L2])
ATTACKS = [
    PGD(3),
    PGD(3, restarts=2, keep="best"),
    PGD(4, leave_early=True),
    PGD(3, 0.05, restarts=2, keep="best", leave_early=True, random_start=False),
    FGSM(),
    FGSM(random_start=False),
    APGD(6),
    APGD(5, restarts=2, leave_early=True),
    APGD(3, random_start=False),
    Square(6),
    Square(4, restarts=2, leave_early=False),
]
EVERY = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
LEAVING = pytest.mark.parametrize(
    "attack", [PGD(3, leave_early=True), APGD(3, leave_early=True), Square(5)], ids=["PGD", "APGD", "Square"]
)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images that also touch 0 and 1."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(0, 1).to(dtype)


def wavy(x: Tensor, *_: Any) -> Tensor:
    """A score with many maxima, computed element by element so that no row knows of another."""
    w = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype)
    return (torch.sin(9 * x.flatten(1)) * w + torch.cos(17 * x.flatten(1)) * w.flip(0)).sum(1)


def wavy_done(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    score = wavy(x)
    return score, score.detach() > 1


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(module.state_dict()),
        "modes": [m.training for m in module.modules()],
        "needed": [p.requires_grad for p in module.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[union-attr,index,call-overload]
        "python": random.getstate(),
        "autograd": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    states = before.pop("state"), after.pop("state")
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert before == after


# --- where the result lies ----------------------------------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    n, h, w = (draw(st.integers(1, k)) for k in (4, 7, 7))
    radius = st.sampled_from([0.0, 1e-4, 8 / 255, 0.3, 1.0, 3.0])
    eps = draw(radius) if draw(st.booleans()) else torch.tensor([draw(radius) for _ in range(n)])
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return {
        "attack": draw(st.sampled_from(ATTACKS)),
        "x": images(n, draw(st.integers(1, 4)), h, w, seed=draw(st.integers(0, 99)), dtype=dtype),
        "threat": draw(st.sampled_from([Linf, L2]))(eps),
        "ids": torch.tensor(draw(st.lists(st.integers(0, 10**9), min_size=n, max_size=n))),
        "seed": draw(st.integers(0, 10**6)),
        "begin": draw(st.booleans()),
        "says": draw(st.booleans()),
    }


@QUICK
@given(calls())
def test_in_the_ball_in_the_unit_interval_and_again(call: dict[str, Any]) -> None:
    attack, x, threat, ids, seed = (call[k] for k in ("attack", "x", "threat", "ids", "seed"))
    clean, start = x.clone(), images(*x.shape, seed=5, dtype=x.dtype) if call["begin"] else None
    objective = wavy_done if call["says"] else wavy
    x_adv = attack(objective, x, threat, ids=ids, seed=seed, start=start)
    assert torch.equal(x, clean) and x_adv.data_ptr() != x.data_ptr(), "x was written to"
    assert start is None or torch.equal(start, images(*x.shape, seed=5, dtype=x.dtype)), "start was written to"
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    distance = (x_adv - x).double().flatten(1).norm(dim=1, p=math.inf if isinstance(threat, Linf) else 2)
    assert (distance <= torch.as_tensor(threat.eps) + 1e-6).all()
    assert torch.equal(attack(objective, x, threat, ids=ids, seed=seed, start=start), x_adv), "another result"


@settings(QUICK, max_examples=80)
@given(calls())
def test_never_below_the_start(call: dict[str, Any]) -> None:
    x, threat, ids, seed = (call[k] for k in ("x", "threat", "ids", "seed"))
    start = images(*x.shape, seed=5, dtype=x.dtype)
    inside = threat.projection(x)(start.clone())
    best_keeping = (PGD(3, 0.2, keep="best"), APGD(4, restarts=2), Square(5))
    for attack in best_keeping:
        found = wavy(attack(wavy, x, threat, ids=ids, seed=seed, start=start))
        assert (found >= wavy(inside)).all()
    for attack in best_keeping[:2]:
        first = threat.start(x, ids, fold(seed, "start", 0))
        assert (wavy(attack(wavy, x, threat, ids=ids, seed=seed)) >= wavy(first)).all()
        still = type(attack)(3, random_start=False, **({"keep": "best"} if isinstance(attack, PGD) else {}))
        assert (wavy(still(wavy, x, threat)) >= wavy(x)).all()


@EVERY
@NORMS
def test_radius_zero_leaves_the_image(attack: Any, norm: type) -> None:
    for x in (images(3, 2, 4, 5), images(3, 1, 1, 1, dtype=torch.float32)):
        assert torch.equal(attack(wavy, x, norm(0)), x)
        mixed = attack(wavy, x, norm(torch.tensor([0.0, 0.1, 0.0])))
        assert torch.equal(mixed[::2], x[::2]) and not torch.equal(mixed[1], x[1])


# --- each example for itself --------------------------------------------------------------------------------------


class Rowwise(nn.Module):
    """A network computed without matrix products, in float64: an image's result is the same in any batch."""

    def __init__(self, pixels: int, classes: int = 4) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.a = nn.Parameter(torch.randn(6, pixels, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(classes, 6, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1) - 0.5).unsqueeze(1) * self.a).sum(2).tanh()
        return (hidden.unsqueeze(1) * self.b).sum(2)


@EVERY
@NORMS
def test_alone_or_in_any_batch_bit_for_bit(attack: Any, norm: type) -> None:
    model, x = Rowwise(2 * 5 * 4), images(64, 2, 5, 4)
    y, ids, radii = model(x).argmax(1), 3 * torch.arange(64) + 1, torch.linspace(0.01, 0.2, 64)

    def objective(v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(v)
        return cross_entropy(logits, y), logits.detach().argmax(1) != y

    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for seed in (4, 5, 7):
        whole = attack(objective, x, norm(radii), y, ids=ids, seed=seed)
        done = objective(whole, y)[1]
        assert 0 < done.sum() < 64
        for part in (*order.split(7), *order[:8].split(1)):
            got = attack(objective, x[part], norm(radii[part]), y[part], ids=ids[part], seed=seed)
            assert torch.equal(got, whole[part])


@NORMS
def test_a_start_has_the_same_bits_in_every_batch(norm: type) -> None:
    """Also its length in the l2 ball, a power, whose last bits depend on where in a batch it is computed."""
    x, ids = images(300, 2, 5, 4), torch.arange(300)
    whole = norm(0.1).start(x, ids, 4)
    assert all(torch.equal(norm(0.1).start(x[i : i + 1], ids[i : i + 1], 4)[0], whole[i]) for i in range(300))


# --- what it leaves alone -----------------------------------------------------------------------------------------


def network() -> nn.Module:
    """Everything that an attack could disturb: batch norm, dropout, a frozen layer, gradients, modes that differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(100, 3),
        )
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.full_like(net[5].weight, 0.25)
    net.train()
    net[1].eval()
    return net


@EVERY
@pytest.mark.parametrize("fails_at", [None, 1])
def test_nothing_else_is_touched(attack: Any, fails_at: int | None) -> None:
    net, x, y, count = network(), images(4, 1, 5, 5, dtype=torch.float32), torch.tensor([0, 1, 2, 0]), itertools.count()

    def objective(v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert not any(m.training for m in net.modules())
        if next(count) == fails_at:
            raise ZeroDivisionError
        logits = net(v)
        return cross_entropy(logits, y), torch.zeros(len(v), dtype=torch.bool)

    for grad, norm in ((True, Linf), (False, L2)):
        with torch.set_grad_enabled(grad):
            before = snapshot(net)
            try:
                with attack_mode(net):
                    attack(objective, x, norm(0.1), y)
            except ZeroDivisionError:
                assert fails_at is not None
            assert_same(before, snapshot(net))


# --- leaving early ------------------------------------------------------------------------------------------------


@LEAVING
def test_nobody_can_leave_a_batch_that_hangs_together(attack: Any) -> None:
    x, net = images(4, 1, 5, 5, dtype=torch.float32), network()
    coupled = batch_objective(lambda v: wavy(v) - wavy(v).mean())
    with pytest.raises(ValueError, match="leave_early is True, expected False: .* the objective couples it"):
        attack(coupled, x, Linf(0.1))
    with (
        attack_mode(net, batch_norm="batch"),
        pytest.raises(ValueError, match="leave_early is True, expected False: .* batch norm uses the batch's"),
    ):
        attack(wavy, x, Linf(0.1))
    with attack_mode(nn.Linear(2, 2), batch_norm="batch"):  # no batch norm in it
        attack(wavy, x, Linf(0.1))
    attack(wavy, x, Linf(0.1))
    stays = type(attack)(3, leave_early=False)
    stays(coupled, x, Linf(0.1))
    with attack_mode(net, batch_norm="batch"):
        stays(lambda v, y: cross_entropy(net(v), y), x, Linf(0.1), torch.tensor([0, 1, 2, 0]))


@LEAVING
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([0, 1, 2], TypeError, "given holds a list, expected tensors or tuples of them: examples leave the batch"),
        ((torch.arange(3), {}), TypeError, "given holds a dict"),
        (torch.arange(5), ValueError, r"given holds a tensor of shape \(5,\), expected 3 rows, one for each image"),
        (torch.tensor(1.0), ValueError, r"given holds a tensor of shape \(\), expected 3 rows"),
    ],
)
def test_what_cannot_be_cut_is_refused_when_it_must_be(
    attack: Any, given: Any, error: type[Exception], message: str
) -> None:
    x = images(3, 1, 4, 4)
    attack(wavy, x, Linf(0.1), given)  # nobody leaves
    with pytest.raises(error, match=message):
        attack(lambda v, g: (wavy(v), torch.arange(len(v)) == 0), x, Linf(0.1), given)


# --- bad input ----------------------------------------------------------------------------------------------------


@EVERY
def test_bad_calls(attack: Any) -> None:
    x = images(3, 1, 4, 4)
    for objective, message in (
        (lambda v: wavy(v)[:, None], r"objective gave shape \(3, 1\), expected \(3,\): one score for each example"),
        (lambda v: [1.0], "objective gave a list"),
        (lambda v: (wavy(v), torch.zeros(2, dtype=torch.bool)), r"says who is done by torch.bool of shape \(2,\)"),
        (lambda v: (wavy(v), torch.zeros(3)), r"says who is done by torch.float32 of shape \(3,\), expected bool"),
        (lambda v: (wavy(v), None, None), "objective gave a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(objective, x, Linf(0.1))
    for change, error, message in (
        ({"start": x[:2]}, ValueError, r"start has shape \(2, 1, 4, 4\), expected \(3, 1, 4, 4\), that of x"),
        ({"start": x + 1}, ValueError, "start has values from"),
        ({"start": (255 * x).to(torch.uint8)}, TypeError, "start has dtype torch.uint8"),
        ({"ids": torch.arange(2)}, ValueError, "ids has 2 rows, expected 3, one for each image"),
    ):
        with pytest.raises(error, match=message):
            attack(wavy, x, Linf(0.1), **change)
    for wrong, error, message in (
        (x + 1, ValueError, "x has values from"),
        (x[0], ValueError, r"x has shape \(1, 4, 4\)"),
        (x[:0], ValueError, "expected at least one image"),
        ((255 * x).to(torch.uint8), TypeError, "x has dtype torch.uint8"),
    ):
        with pytest.raises(error, match=message):
            attack(wavy, wrong, Linf(0.1))
    for norm in (Linf, L2):
        with pytest.raises(ValueError, match="eps has 2 rows, expected 3, one for each image"):
            attack(wavy, x, norm(torch.tensor([0.1, 0.1])))
