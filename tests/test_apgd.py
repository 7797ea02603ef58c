"""AutoPGD: the reference's iterates, an implementation that knows nothing of batches, restarts, early leaving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import APGD, L2, PGD, Linf, random_objective
from robrep.attacks.apgd import checkpoints
from robrep.gaussians import Gaussian, kl
from robrep.losses import cross_entropy
from robrep.random import fold, noise

NORMS = pytest.mark.parametrize("norm", [Linf, L2])
# 20 steps: intervals of 4, 3, 2, 1, 1, ...
LOOKS = {100: [22, 41, 57, 70, 80, 87, 93, 99], 20: [4, 7, *range(9, 21)]}


def images(*shape: int, seed: int = 0) -> Tensor:
    """Images that also touch 0 and 1."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(0, 1)


def wavy(x: Tensor, *_: Any) -> Tensor:
    """A score with many maxima, computed element by element so that no row knows of another."""
    w = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype)
    return (torch.sin(9 * x.flatten(1)) * w + torch.cos(17 * x.flatten(1)) * w.flip(0)).sum(1)


def above(level: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """``wavy``, done above a level."""
    return lambda x, *given: (wavy(x), wavy(x).detach() > level)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        ).double()


# --- the algorithm ------------------------------------------------------------------------------------------------


def test_checkpoints() -> None:
    for steps, looks in LOOKS.items():
        assert checkpoints(steps) == looks
    for steps in range(1, 300):
        looks = checkpoints(steps)
        assert looks == sorted(set(looks)) and looks[0] == max(int(0.22 * steps), 1) and looks[-1] <= steps
        gaps = np.diff(looks)
        assert (np.diff(gaps) <= 0).all() and (gaps >= max(int(0.06 * steps), 1)).all()


@NORMS
@pytest.mark.parametrize("steps", [10, 20, 100])
@pytest.mark.parametrize("at_random", [False, True])
def test_agrees_with_the_reference(norm: type, steps: int, at_random: bool) -> None:
    base = pytest.importorskip("pyautoattack.autopgd_base", reason="pip install pyautoattack")
    net, x = network(), images(12, 3, 12, 12, seed=1)
    y, threat = net(x).argmax(1), norm(8 / 255 if norm is Linf else 0.5)
    start = threat.start(x, torch.arange(12), 7) if at_random else x
    reference = base.APGDAttack(net, n_iter=steps, eps=threat.eps, norm=norm.__name__, device="cpu")
    reference.init_hyperparam(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # it keeps its scores in the default dtype
    try:
        theirs, right, score, _ = reference.attack_single_run(x, y, x_init=start.clone())
    finally:
        torch.set_default_dtype(before)

    ours = APGD(steps)(lambda v, y: cross_entropy(net(v), y), x, threat, y, start=start)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    torch.testing.assert_close(cross_entropy(net(ours), y), score, rtol=0, atol=1e-8)

    def says_who(v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(v)
        return cross_entropy(logits, y), logits.argmax(1) != y

    for early in (False, True):
        found = APGD(steps, leave_early=early)(says_who, x, threat, y, start=start)
        assert torch.equal(net(found).argmax(1) == y, right.bool())


def naive(
    objective: Callable[[Tensor], Tensor], start: Tensor, clean: Tensor, eps: float, steps: int, norm: type
) -> np.ndarray:
    """One example in numpy, as in the paper: points and gradients are vectors, scores are numbers."""
    x = clean.flatten().numpy()

    def look(point: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(point.copy()).view(1, *clean.shape).requires_grad_()
        score = objective(leaf)[0]
        (g,) = torch.autograd.grad(score, leaf)
        flat = g.flatten().numpy()
        return score.item(), np.sign(flat) if norm is Linf else flat / np.linalg.norm(flat)

    def into(point: np.ndarray) -> np.ndarray:
        delta = point - x
        if norm is Linf:
            delta = np.clip(delta, -eps, eps)
        else:
            delta = delta * min(1.0, eps / max(float(np.linalg.norm(delta)), 1e-30))
        return np.clip(x + delta, 0, 1)

    point = start.flatten().numpy()
    score, step = look(point)
    best, best_score, best_step = point, score, step
    size, previous, last = 2 * eps, point, 0.0
    history: list[float] = [0.0]  # the score before the first step counts as 0
    looked, halved, best_then = 0, True, best_score
    for k in range(1, steps + 1):
        ahead = into(point + size * step)
        move = ahead if k == 1 else into(point + 0.75 * (ahead - point) + 0.25 * (point - previous))
        previous, point = point, move
        last, step = look(point)
        history.append(last)
        if last > best_score:
            best, best_score, best_step = point, last, step
        if k in LOOKS[steps]:
            rises = sum(history[j] > history[j - 1] for j in range(looked + 1, k + 1))
            halve = rises <= 0.75 * (k - looked) or (not halved and best_then == best_score)
            looked, halved, best_then = k, halve, best_score
            if halve:
                size, point, step = size / 2, best, best_step
    return best


@NORMS
@pytest.mark.parametrize("steps", [20, 100])
def test_agrees_with_a_naive_implementation(norm: type, steps: int) -> None:
    x, radii, ids = images(4, 2, 3, 2, seed=4), torch.tensor([0.05, 0.2, 0.5, 0.3]).double(), torch.tensor([5, 3, 9, 0])
    threat = norm(radii)
    for random_start in (True, False):
        start = threat.start(x, ids, fold(9, "start", 0)) if random_start else x
        got = APGD(steps, random_start=random_start)(wavy, x, threat, ids=ids, seed=9)
        expected = [naive(wavy, start[i], x[i], radii[i].item(), steps, norm) for i in range(4)]
        torch.testing.assert_close(got.flatten(1), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-8)


def test_it_climbs_higher_than_pgd() -> None:
    x = images(60, 1, 4, 4)
    for eps in (0.2, 0.5):
        ours, theirs = (wavy(attack(wavy, x, L2(eps))).mean().item() for attack in (APGD(40), PGD(40)))
        assert ours > theirs > wavy(x).mean().item()


@NORMS
def test_no_gradient_at_the_last_point(norm: type) -> None:
    """One call for each step and one for the start, the last without a graph."""
    calls: list[bool] = []

    def objective(x: Tensor) -> Tensor:
        calls.append(x.requires_grad)
        return wavy(x)

    APGD(5, restarts=2)(objective, images(3, 1, 3, 3), norm(0.1))
    assert calls == 2 * [True, True, True, True, True, False]


# --- restarts, starts, leaving ------------------------------------------------------------------------------------


@NORMS
def test_restarts_keep_each_example_s_best(norm: type) -> None:
    x, threat, ids = images(9, 1, 3, 4), norm(0.3), torch.arange(9) + 5
    runs = [
        APGD(15)(wavy, x, threat, ids=ids, seed=3, start=threat.start(x, ids, fold(3, "start", r))) for r in range(4)
    ]
    points, values = torch.stack(runs), torch.stack([wavy(run) for run in runs])
    for count in (1, 2, 4):
        best = values[:count].argmax(0)
        got = APGD(15, restarts=count)(wavy, x, threat, ids=ids, seed=3)
        assert torch.equal(got, points[best, torch.arange(9)])
    assert len(values.argmax(0).unique()) > 1, "one run is best everywhere: nothing is tested"


def test_the_digits_of_float64_scores_count() -> None:
    """The difference between restarts is lost in float32."""

    def objective(x: Tensor) -> Tensor:
        return 1 + 1e-10 * wavy(x)

    x, threat = images(20, 1, 3, 3), Linf(0.3)
    for attack in (APGD, PGD):
        chain = [objective(attack(5, restarts=k)(objective, x, threat)) for k in (1, 2, 5)]
        assert (chain[1] >= chain[0]).all() and (chain[2] >= chain[1]).all() and (chain[2] > chain[0]).any()


@NORMS
@pytest.mark.parametrize("kind", [APGD, PGD])
def test_who_leaves_early_changes_nothing_for_the_others(norm: type, kind: type) -> None:
    x, threat, seen = images(40, 1, 3, 3), norm(0.15), []
    objective = above(4.5)

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(x))
        return objective(x)

    early, late = (kind(20, leave_early=leave)(counted, x, threat, seed=1) for leave in (True, False))
    done = objective(early)[1]
    assert 0 < done.sum() < 40
    assert torch.equal(early[~done], late[~done])
    if kind is APGD:  # in both ways the first point at which an example is done
        assert torch.equal(early, late)
    assert seen[0] == 40 and seen[: len(seen) // 2] == sorted(seen[: len(seen) // 2], reverse=True)
    assert sum(seen[: len(seen) // 2]) < 0.9 * sum(seen[len(seen) // 2 :]), "nobody left"
    # with restarts: the same verdict, the same x' for those that stay
    early, late = (APGD(9, restarts=3, leave_early=leave)(objective, x, threat, seed=1) for leave in (True, False))
    assert torch.equal(objective(early)[1], objective(late)[1])
    stay = ~objective(early)[1]
    assert stay.any() and torch.equal(early[stay], late[stay])


@pytest.mark.parametrize("kind", [APGD, PGD])
def test_who_is_done_at_the_start_stays_there(kind: type) -> None:
    x = images(5, 1, 3, 3)
    start, calls = Linf(0.1).start(x, torch.arange(5), 0), []

    def objective(v: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(v))
        return wavy(v), torch.ones(len(v), dtype=torch.bool)

    assert torch.equal(kind(9, restarts=3, leave_early=True)(objective, x, Linf(0.1), start=start), start)
    assert calls == [5]


def test_a_done_example_is_kept_before_a_higher_score() -> None:
    """Done between two levels: the highest score is not where the example is done."""

    def objective(v: Tensor) -> tuple[Tensor, Tensor]:
        score = v.flatten(1).sum(1)
        return score, (score.detach() > 4.7) & (score.detach() < 5.1)

    x = torch.full((3, 1, 3, 3), 0.5, dtype=torch.float64)
    for early in (False, True):
        found = APGD(30, leave_early=early)(objective, x, Linf(0.3), start=x + 0.03)
        assert objective(found)[1].all()


# --- noise and what is given --------------------------------------------------------------------------------------


def test_a_random_objective_gets_fresh_noise_in_every_step() -> None:
    calls: list[tuple[int, list[int]]] = []

    @random_objective
    def objective(x: Tensor, *, ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        calls.append((seed, ids.tolist()))
        return wavy(x + 0.1 * noise(seed, ids, x.shape[1:])), ids == 0

    x, ids = images(3, 1, 3, 3), torch.tensor([7, 0, 2])
    for leave in (False, True):
        calls.clear()
        got = APGD(4, restarts=3, leave_early=leave)(objective, x, Linf(0.1), ids=ids, seed=5)
        assert len(calls) == len({seed for seed, _ in calls}) == 3 * 5
        assert calls[0][1] == [7, 0, 2] and calls[-1][1] == ([7, 2] if leave else [7, 0, 2])
        alone = APGD(4, restarts=3, leave_early=leave)(objective, x[2:], Linf(0.1), ids=ids[2:], seed=5)
        assert torch.equal(got[2:], alone)


@NORMS
@pytest.mark.parametrize("kind", [APGD, PGD])
def test_a_gaussian_is_cut_with_its_examples(norm: type, kind: type) -> None:
    w = torch.randn(6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def encoder(x: Tensor) -> Gaussian:
        code = (x.flatten(1)[:, None] * w).sum(2)
        return Gaussian(code[:, :3].tanh(), nn.functional.softplus(code[:, 3:]) + 0.1)

    def objective(v: Tensor, p: Gaussian, more: tuple[Tensor, None]) -> tuple[Tensor, Tensor]:
        assert isinstance(p, Gaussian) and len(p.mean) == len(v) == len(more[0]) and more[1] is None
        score = kl(p, encoder(v))
        return score, score.detach() > more[0]

    x = images(12, 1, 4, 4)
    p, levels = encoder(x), torch.linspace(0.01, 3, 12, dtype=torch.float64)
    found = kind(20, leave_early=True)(objective, x, norm(0.1), p, (levels, None))
    done = objective(found, p, (levels, None))[1]
    assert 0 < done.sum() < 12
    whole = kind(20)(lambda v, p: kl(p, encoder(v)), x, norm(0.1), p)
    assert torch.equal(found[~done], whole[~done])


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0, expected at least 1"),
        ({"steps": 2.0}, TypeError, "steps is 2.0"),
        ({"restarts": 0}, ValueError, "restarts is 0"),
        ({"restarts": True}, TypeError, "restarts is True"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        APGD(**settings)


@NORMS
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite(norm: type, factor: float) -> None:
    with pytest.raises(FloatingPointError, match="gradient is not finite for at least one image"):
        APGD(3)(lambda v: wavy(v) * torch.tensor([1, factor]), images(2, 1, 3, 3), norm(0.1))


def test_it_shows_itself() -> None:
    assert str(APGD(7, restarts=2)) == "APGD-7, 2 restarts"
    assert str(APGD(random_start=False)) == "APGD-100, no random start"
    assert eval(repr(APGD(7, leave_early=True))) == APGD(7, leave_early=True)
