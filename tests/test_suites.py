"""Suites by name: each runs on a small trained model, and says in one sentence what it cannot take."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import APGD, FGSM, L2, PGD, Linf, Square, attack_mode
from robrep.data import load
from robrep.evaluation import adversarial_images, evaluate
from robrep.heads import Classifier
from robrep.objectives import likely_targets
from robrep.suites import FAB, SUITES, ClassifierAttack, as_suite, suite


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small trained model and 40 test images."""
    data = load("digits")
    x, y = data.images("train"), data.labels("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        adam = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(100):
            adam.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            adam.step()
    model[1].weight.grad = torch.full_like(model[1].weight, 0.25)
    model[3].weight.grad, model[1].bias.grad, model[3].bias.grad = None, None, None
    model[3].bias.requires_grad_(False)
    return model, data.images("test")[:40], data.labels("test")[:40]


def state(model: nn.Module) -> Any:
    return (
        [(p.requires_grad, None if p.grad is None else p.grad.tolist(), p.tolist()) for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[union-attr,index,call-overload]
        random.getstate(),
    )


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("threat", [Linf(0.15), L2(0.8)])
def test_every_suite_runs(digits: tuple[nn.Module, Tensor, Tensor], name: str, threat: Any) -> None:
    model, x, y = digits
    if any(isinstance(attack, FAB) for attack in suite(name)):
        pytest.importorskip("pyautoattack", reason="pip install pyautoattack")
    short = suite(name, max_steps=4, max_restarts=2, max_queries=20)
    assert [attack.name for attack in short] == [attack.name for attack in suite(name)]
    before = state(model)
    result = evaluate(model, x, y, short, threat)
    assert state(model) == before
    assert result.clean.value > 0.9 and result.robust.value < 0.8 < result.clean.value
    assert [stage.name for stage in result.stages] == [attack.name for attack in short]
    assert not any(stage.refused for stage in result.stages)


def test_limits() -> None:
    for name in SUITES:
        assert suite(name) == SUITES[name] == suite(name, max_steps=10**6, max_restarts=10**6, max_queries=10**6)
    ce, targeted, fab, square = suite("autoattack", max_steps=7, max_queries=9)
    assert ce.attack == APGD(7, leave_early=True) and fab == FAB(7)  # type: ignore[attr-defined]
    assert targeted.targets == 9 and square.attack == Square(9)  # type: ignore[attr-defined]
    assert suite("byorl", max_restarts=2)[2].attack.restarts == 2  # type: ignore[attr-defined]
    for argument in ("max_steps", "max_restarts", "max_queries"):
        with pytest.raises(ValueError, match=f"{argument} is 0, expected at least 1"):
            suite("pgd-20", **{argument: 0})


def test_targets_are_ranked_and_who_is_wrong_is_left_alone(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = digits
    right = model(x).argmax(1) == y
    x, y, calls = x[right], y[right], []
    n, radii = len(x), torch.linspace(0, 0.2, int(right.sum()))

    def search(objective: Any, x_: Tensor, threat: Any, *given: Tensor, ids: Tensor, seed: int) -> Tensor:
        found = APGD(3)(objective, x_, threat, *given, ids=ids, seed=seed)
        calls.append((ids, given, seed, threat.eps, model(found).argmax(1) != given[0]))
        return found

    attack = ClassifierAttack("T", search, "targeted_dlr", targets=4)
    with attack_mode(model), torch.no_grad():
        found = attack.run(model, x, y, Linf(radii), ids=torch.arange(n), seed=0)
        ranked = likely_targets(model(x), y, 4)
    left = torch.arange(n)
    for rank, (ids, (labels, targets), _, eps, wrong) in enumerate(calls):
        assert torch.equal(ids, left) and torch.equal(labels, y[left]) and torch.equal(targets, ranked[left, rank])
        assert torch.equal(eps, radii[left])
        left = left[~wrong]
    assert len(calls) == 4 and len({seed for *_, seed, _, _ in calls}) == 4
    assert torch.equal((model(found).argmax(1) == y).nonzero().squeeze(1), left) and 0 < len(left) < n


def test_two_and_three_classes() -> None:
    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for classes in (2, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
        y = model(x).argmax(1)
        attacks = [a for a in suite("autoattack", max_steps=5, max_queries=100) if not isinstance(a, FAB)]
        result = evaluate(model, x, y, attacks, Linf(0.5), individually=True)
        assert all(stage.broken > 0 for stage in result.stages), str(result)


class Two(nn.Module):
    """A linear model of two classes: the nearest wrong image is |score| / ||w|| away, in the dual norm."""

    def __init__(self) -> None:
        super().__init__()
        w = torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = ((x.flatten(1) - 0.5) * self.w).sum(1)
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("attack", [PGD(20), APGD(20), APGD(20, leave_early=True), FAB(20)], ids=repr)
@pytest.mark.parametrize("norm", [Linf, L2])
def test_the_minimal_perturbation_of_a_linear_model(attack: Any, norm: type) -> None:
    """Reached in l-inf (FAB computes in float32), and within 1.25 times in l2; never below it."""
    if isinstance(attack, FAB):
        pytest.importorskip("pyautoattack", reason="pip install pyautoattack")
    model, x = Two(), 0.4 + 0.2 * torch.rand(60, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    score = model(x)[:, 1].detach()
    least = score.abs() / model.w.detach().norm(p=1 if norm is Linf else 2)
    reach = 1.25 if norm is L2 else 1.01 if isinstance(attack, FAB) else 1 + 1e-6
    for factor, broken in ((reach, 60), (1 - 1e-6, 0)):
        radii = factor * least
        if not isinstance(attack, FAB):
            robust = evaluate(model, x, (score > 0).long(), attack, norm(radii)).robust
            assert int((~robust.correct).sum()) == broken
            continue
        for i in range(0, 60, 10):
            found = evaluate(model, x[i : i + 1], (score[i : i + 1] > 0).long(), attack, norm(radii[i].item())).robust
            assert found.value == (broken == 0)


# --- FAB ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf(0.08), L2(0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fab(digits: tuple[nn.Module, Tensor, Tensor], threat: Any, dtype: torch.dtype) -> None:
    pytest.importorskip("pyautoattack", reason="pip install pyautoattack")
    model, x, y = digits
    model, x = (model.double(), x.double()) if dtype == torch.float64 else (model, x)
    try:
        before = state(model)
        found = adversarial_images(model, x, y, FAB(10), threat)
        assert state(model) == before
        assert found.dtype == dtype and not found.requires_grad
        assert (threat.distance(found, x) <= threat.eps + 1e-6).all() and found.min() >= 0 and found.max() <= 1
        assert (model(found).argmax(1) == y).sum() < 0.9 * (model(x).argmax(1) == y).sum()
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        for part in order.split(7):
            again = adversarial_images(model, x[part], y[part], FAB(10), threat, ids=part)
            assert ((model(again).argmax(1) == y[part]) == (model(found).argmax(1) == y)[part]).double().mean() > 0.8
    finally:
        model.float()


def test_fab_refuses() -> None:
    sampling = Classifier(nn.Identity(), nn.Identity(), samples=3)
    assert "sample" in FAB().refuses(sampling, Linf(0.1)) and not FAB().refuses(sampling.mean_code, L2(0.1))
    assert "one radius" in FAB().refuses(nn.Identity(), Linf(torch.ones(3)))
    for change, error in (({"steps": 0}, ValueError), ({"targets": 0}, ValueError), ({"steps": 1.5}, TypeError)):
        with pytest.raises(error, match=f"{next(iter(change))} is"):
            FAB(**change)  # type: ignore[arg-type]


# --- what counts as a suite ---------------------------------------------------------------------------------------


def test_as_suite() -> None:
    assert as_suite("autoattack") == SUITES["autoattack"]
    (one,) = as_suite(PGD(20))
    assert isinstance(one, ClassifierAttack) and (one.name, one.loss, one.targets) == ("PGD-20", "cross_entropy", 0)
    named = ClassifierAttack("mine", FGSM(), "dlr")
    assert as_suite(named) == (named,) and as_suite([named, FAB()]) == (named, FAB())
    assert [a.name for a in as_suite([PGD(2), APGD(3), PGD(2), PGD(2)])] == [
        "PGD-2", "APGD-3", "PGD-2 (run 2)", "PGD-2 (run 3)"
    ]  # fmt: skip
    assert str(named) == "FGSM, random start on dlr" and "9 targets" in str(SUITES["autoattack"][1])


@pytest.mark.parametrize(
    ("attacks", "error", "message"),
    [
        ("pgd20", ValueError, "name is 'pgd20', expected one of .*did you mean 'pgd-20'"),
        ([], ValueError, "attacks are named nothing, expected at least one"),
        ([FAB(), FAB()], ValueError, "attacks are named FAB-T, FAB-T, expected at least one, and each name once"),
        ([ClassifierAttack("a", PGD(1)), ClassifierAttack("a", FGSM())], ValueError, "named a, a, .* each name once"),
        (3, TypeError, "attacks holds a int, expected an attack or the name of a suite"),
        (None, TypeError, "attacks holds a NoneType"),
        ([PGD(2), Linf(0.1)], TypeError, "attacks holds a Linf"),
        (PGD, TypeError, r"attacks holds the class PGD, expected an attack, as PGD\(\)"),
        ([FAB], TypeError, "attacks holds the class FAB"),
    ],
)
def test_what_is_no_suite(attacks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_suite(attacks)
    with pytest.raises(error, match=message):
        evaluate(nn.Flatten(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), attacks, Linf(0.1))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"loss": "targeted_dlr"}, ValueError, "targets is 0 with loss 'targeted_dlr', expected at least 1 with a"),
        ({"targets": 2}, ValueError, "targets is 2 with loss 'cross_entropy', expected 0 without a targeted loss"),
        ({"loss": "targeted_dlr", "targets": -1}, ValueError, "targets is -1, expected at least 1"),
        ({"loss": "cw"}, ValueError, "loss is 'cw', expected one of"),
    ],
)
def test_bad_attacks(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClassifierAttack("a", PGD(2), **settings)
