"""Square: its schedule, squares of each example's own, black boxes, a budget that is kept, the reference's strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import L2, PGD, Linf, Square, attack_mode
from robrep.attacks.square import share
from robrep.data import load
from robrep.objectives import classifier_objective, margin

NORMS = pytest.mark.parametrize("norm", [Linf, L2])


def images(*shape: int, seed: int = 0) -> Tensor:
    """Images that also touch 0 and 1."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(0, 1)


def wavy(x: Tensor, *_: Any) -> Tensor:
    """A score with many maxima, computed element by element so that no row knows of another."""
    w = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype)
    return (torch.sin(9 * x.flatten(1)) * w + torch.cos(17 * x.flatten(1)) * w.flip(0)).sum(1)


def recorded(trials: list[Tensor], score: Callable[[Tensor], Tensor] = wavy) -> Callable[[Tensor], Tensor]:
    def objective(x: Tensor) -> Tensor:
        trials.append(x.clone())
        return score(x)

    return objective


# --- the search ---------------------------------------------------------------------------------------------------


def test_schedule() -> None:
    halvings = {0: 0, 10: 0, 11: 1, 50: 1, 51: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4001: 7, 6001: 8, 8001: 9, 9999: 9}
    for query, times in halvings.items():
        assert share(query, 10_000) == 0.8 / 2**times
        assert share(query * 5, 50_000) == 0.8 / 2**times  # stretched
    reference = pytest.importorskip("pyautoattack.square", reason="pip install pyautoattack")
    for queries in (100, 1000, 5000):
        theirs = reference.SquareAttack(None, n_queries=queries, eps=0.1)
        assert [share(q, queries) for q in range(queries)] == [theirs.p_selection(q) for q in range(queries)]


@NORMS
def test_every_example_has_squares_of_its_own(norm: type) -> None:
    x, trials = torch.full((6, 2, 9, 9), 0.5, dtype=torch.float64), []  # type: ignore[var-annotated]
    Square(30)(recorded(trials), x, norm(0.1), ids=torch.tensor([0, 1, 2, 3, 3, 4]))
    for trial in trials:
        assert torch.equal(trial[3], trial[4]), "the same id, another square"
    first, last = trials[0], trials[-1]
    assert len(first.flatten(1).unique(dim=0)) == len(last.flatten(1).unique(dim=0)) == 5
    changed = [(after != before).any(1).flatten(1)[:4] for before, after in zip(trials, trials[1:], strict=False)]
    assert sum(len(c.unique(dim=0)) > 1 for c in changed) > 20
    assert not torch.equal(Square(30)(wavy, x, norm(0.1), seed=1), Square(30)(wavy, x, norm(0.1), seed=2))


def test_linf_squares_are_squares() -> None:
    """A trial differs from the best point in one square, where each channel is x + eps or x - eps."""
    x, trials = torch.full((8, 3, 10, 10), 0.5, dtype=torch.float64), []  # type: ignore[var-annotated]
    Square(60)(recorded(trials), x, Linf(0.1))
    best = trials[0].clone()
    assert torch.equal(best[:, :, :1].expand_as(best), best), "the start is made of stripes"
    for query, trial in enumerate(trials[1:]):
        torch.testing.assert_close((trial - x).abs(), torch.full_like(x, 0.1))
        side = min(max(round(math.sqrt(share(query, 60) * 100)), 1), 10)
        for i in range(8):
            place = (trial[i] != best[i]).any(0).nonzero()
            if len(place):
                extent = place.max(0).values - place.min(0).values + 1
                assert (extent <= side).all()
        better = wavy(trial) > wavy(best)
        best[better] = trial[better]
    reached = torch.stack([trials[i] != trials[i - 1] for i in range(1, 60)]).flatten(0, 2).any(0)
    assert reached.all(), "some pixels are never reached"


@pytest.mark.parametrize("channels", [1, 3])
def test_l2_moves_the_budget_and_keeps_it(channels: int) -> None:
    """Far from 0 and 1 every trial uses the whole radius, and changes nothing outside its two windows."""
    x, trials = torch.full((5, channels, 12, 12), 0.5, dtype=torch.float64), []  # type: ignore[var-annotated]
    eps = torch.tensor([0.01, 0.1, 0.2, 0.3, 0.4])
    Square(80)(recorded(trials), x, L2(eps))
    best = trials[0].clone()
    for query, trial in enumerate(trials[1:]):
        torch.testing.assert_close((trial - x).flatten(1).norm(dim=1), eps.double(), rtol=1e-6, atol=0)
        side = max(round(math.sqrt(share(query, 80) * 144)), 3)
        side = min(side + 1 - side % 2, 12)
        moved = ((trial - best).abs() > 1e-12).any(1).flatten(1).sum(1)
        assert (moved <= 2 * side**2).all()
        better = wavy(trial) > wavy(best)
        best[better] = trial[better]


@NORMS
def test_the_best_of_all_trials_is_returned(norm: type) -> None:
    x, trials = images(7, 2, 6, 5), []  # type: ignore[var-annotated]
    found = Square(150, restarts=2)(recorded(trials), x, norm(0.2))
    assert len(trials) == 300
    values = torch.stack([wavy(trial) for trial in trials])
    torch.testing.assert_close(wavy(found), values.amax(0), rtol=0, atol=0)
    assert (wavy(found) > values[0]).all()
    chain = [wavy(Square(40, restarts=k)(wavy, x, norm(0.2))) for k in (1, 2, 4)]
    assert (chain[1] >= chain[0]).all() and (chain[2] >= chain[1]).all() and (chain[2] > chain[0]).any()


@NORMS
def test_a_tie_is_not_accepted(norm: type) -> None:
    """On a plateau the search stays where it is: what it returns is the first trial, and each trial starts there."""
    x, trials = images(4, 1, 6, 6), []  # type: ignore[var-annotated]
    found = Square(60)(recorded(trials, lambda t: t.new_zeros(len(t))), x, norm(0.2))
    assert torch.equal(found, trials[0])
    assert any(not torch.equal(trial, trials[0]) for trial in trials[1:])


@NORMS
def test_it_begins_where_it_is_told(norm: type) -> None:
    x, trials = images(7, 1, 6, 5), []  # type: ignore[var-annotated]
    start = PGD(10)(wavy, x, norm(0.2))
    found = Square(20, restarts=2)(recorded(trials), x, norm(0.2), start=start)
    torch.testing.assert_close(trials[0], start, rtol=0, atol=1e-9)
    assert (wavy(found) >= wavy(start) - 1e-9).all() and not torch.equal(trials[20], trials[0])


def test_a_linear_score_is_maximised() -> None:
    """With w of one sign in each column and channel, the best start has the value of the exact maximum."""
    w = torch.randn(1, 2, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(1, 2, 5, 4)

    def score(x: Tensor) -> Tensor:
        return (x * w).flatten(1).sum(1)

    x = torch.full((6, 2, 5, 4), 0.5, dtype=torch.float64)
    gain = score(Square(800)(score, x, Linf(0.1))) - score(x)
    torch.testing.assert_close(gain, (0.1 * w.abs().sum()).expand(6), rtol=1e-9, atol=0)
    gain = score(Square(800)(score, x, L2(0.1))) - score(x)
    assert (gain > 0.6 * 0.1 * w.norm()).all() and (gain <= 0.1 * w.norm() + 1e-9).all()


# --- black boxes --------------------------------------------------------------------------------------------------


@NORMS
def test_no_gradient_is_asked_for(norm: type) -> None:
    """numpy, rounding and no graph at all: a gradient attack refuses, this one works."""
    grads = []

    def objective(x: Tensor, scale: Tensor) -> Tensor:
        grads.append(x.requires_grad or torch.is_grad_enabled())
        pixels = np.round(8 * x.numpy()) / 8
        return scale * torch.from_numpy(np.sin(5 * pixels).sum((1, 2, 3)))

    x, scale = images(6, 1, 6, 6), torch.linspace(0.5, 2, 6, dtype=torch.float64)
    found = Square(200)(objective, x, norm(0.3), scale)
    assert (objective(found, scale) > objective(x, scale)).all()
    assert not any(grads[:200])
    with pytest.raises(ValueError, match="objective does not depend on x'"):
        PGD(2)(lambda v, s: objective(v.detach(), s), x, norm(0.3), scale)


@NORMS
@pytest.mark.parametrize("leave", [True, False])
def test_who_is_done_stays_there(norm: type, leave: bool) -> None:
    sizes: list[int] = []

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(x))
        return wavy(x), wavy(x) > (9 if norm is Linf else 4)

    x = images(30, 1, 6, 6)
    found = Square(60, leave_early=leave)(objective, x, norm(0.1))
    done = objective(found)[1]
    assert 0 < done.sum() < 30
    assert (sizes[-2] < 30) == leave and sizes[0] == 30
    other = Square(60, leave_early=not leave)(objective, x, norm(0.1))
    assert torch.equal(objective(other)[1], done) and torch.equal(other[~done], found[~done])


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small trained model, and 200 test images that it classifies right."""
    data = load("digits")
    x, y = data.images("train"), data.labels("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        adam = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(120):
            adam.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            adam.step()
    x, y = data.images("test"), data.labels("test")
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:200]
    assert len(right) == 200
    return model.eval(), x[right], y[right]


@pytest.mark.parametrize("threat", [Linf(0.12), L2(0.7)])
def test_as_strong_as_the_reference(digits: tuple[nn.Module, Tensor, Tensor], threat: Any) -> None:
    reference = pytest.importorskip("pyautoattack.square", reason="pip install pyautoattack")
    model, x, y = digits
    theirs = reference.SquareAttack(model, norm=type(threat).__name__, n_queries=300, eps=threat.eps, device="cpu")
    theirs.init_hyperparam(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        broken = model(theirs.perturb(x, y)).argmax(1) != y
    with attack_mode(model):
        found = Square(301)(classifier_objective(model, "margin"), x, threat, y)
    ours = model(found).argmax(1) != y
    assert torch.equal(ours, margin(model(found), y) > 0)
    assert 0.2 < broken.double().mean() < 0.9, "nothing to compare"
    assert ours.double().mean() > broken.double().mean() - 0.04


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"queries": 0}, ValueError, "queries is 0, expected at least 1"),
        ({"queries": 1.5}, TypeError, "queries is 1.5"),
        ({"restarts": 0}, ValueError, "restarts is 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Square(**settings)


def test_a_threat_model_it_does_not_know() -> None:
    class Cube(Linf):
        pass

    class Other:
        eps = 0.1

    Square(3)(wavy, images(2, 1, 3, 3), Cube(0.1))
    with pytest.raises(TypeError, match="threat is a Other, expected Linf or L2"):
        Square(3)(wavy, images(2, 1, 3, 3), Other())  # type: ignore[arg-type]


def test_it_shows_itself() -> None:
    assert str(Square(7, restarts=2)) == "Square-7, 2 restarts" and eval(repr(Square(7))) == Square(7)
