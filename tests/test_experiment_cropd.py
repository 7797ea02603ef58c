"""The chapter on CRoPD at smoke scale: rows and studies run, and what is trained and attacked obeys the settings."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

from robrep.book import experiment, results
from robrep.book.experiment import Experiment
from robrep.book.reproduce import reproduce
from robrep.methods import CRoPD, MixedHead

STUDIES = ("encoder_only", "masking", "cost")
ROWS = ("identity", "vanilla", "arae", "cropd", *(["vae"] if importlib.util.find_spec("diffusers") else []))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The namespace of the chapter's cells after they were run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBREP_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield reproduce("cropd", SCALE="smoke", ROWS=",".join((*ROWS, *STUDIES)), SEEDS=[0, 4])


@pytest.fixture
def exp(names: dict[str, Any]) -> Experiment:
    return names["exp"]


@pytest.fixture
def seen(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """The calls of trainings and attacks, each with its arguments."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def spied(name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append((name, args, options))
            return real(*args, **options)

        return call

    for name in ("fit", "train_head", "evaluate", "robust_accuracy"):
        monkeypatch.setitem(names, name, spied(name, names[name]))
    monkeypatch.setattr(experiment, "fit", spied("t.fit", experiment.fit))
    return calls


def test_every_row_and_study_runs_and_every_setting_is_read(
    exp: Experiment, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = []
    monkeypatch.setitem(names, "with_lora", lambda vit, rank: ranks.append(rank) or copy.deepcopy(vit))
    lora = exp.run("lora")  # with a stand-in, whose adapters are none: the head is trained
    assert lora.s.foundation == "mae" and not lora.main and ranks == [exp.settings.lora[0]] * 2
    exp.run("cropd", foundation="rocl")
    assert {t.row for t in exp.trials.values()} == {*ROWS, *STUDIES, "lora"} and exp.seeds == (0, 4)
    assert set(exp.unread()) == ({"vae"} if "vae" not in ROWS else set())
    for row in ROWS:
        t = exp.run(row)
        assert {"clean", "pgd10", "pgd20", "worst", "worst_robust_head", "radius_1"} <= t.metrics.keys()
        assert ("bare" in t.metrics) == ("through" in t.metrics) == ("gain" in t.metrics) == (row != "identity")


def test_radius_steps_rates_and_epochs_are_those_of_the_run(exp: Experiment, seen: list[Any]) -> None:
    changes = {"eps": 0.05, "lr": 2e-3, "epochs": 2, "foundation_epochs": 2, "foundation_lr": 1e-4, "head_epochs": 3}
    changes |= {"head_lr": 0.02, "robust_epochs": 2, "robust_steps": 4, "robust_step_size": 0.01, "suite": (3, 1, 5)}
    exp.run("cropd", **changes, weight=7.0)
    (cropd,) = [(a[0], o) for name, a, o in seen if name == "t.fit"]
    assert isinstance(cropd[0], CRoPD) and cropd[0].weight == 7.0 and cropd[0].adversary.threat.eps == 0.05
    assert cropd[1]["epochs"] == 2 and cropd[1]["lr"] == 2e-3
    simclr, mixed = [(a[0], o) for name, a, o in seen if name == "fit"]
    assert simclr[1]["epochs"] == 2 and simclr[1]["lr"] == 1e-4
    assert isinstance(mixed[0], MixedHead) and mixed[0].adversary.threat.eps == 0.05 and mixed[1]["epochs"] == 2
    assert (mixed[0].adversary.attack.steps, mixed[0].adversary.attack.step_size, mixed[1]["lr"]) == (4, 0.01, 0.02)
    heads = [o for name, _, o in seen if name == "train_head"]
    assert len(heads) == 2 and all(o["epochs"] == 3 and o["lr"] == 0.02 for o in heads)  # of the row, and of Identity
    attacked = [a for name, a, _ in seen if name in ("evaluate", "robust_accuracy")]
    assert sorted(a[4].eps for a in attacked) == [0.05] * 4 + [1.0]
    searches = [attack for a in attacked for attack in (a[3] if isinstance(a[3], tuple) else (a[3],))]
    steps = {getattr(getattr(s, "attack", s), "steps", None) for s in searches}
    assert steps == {3, None}, "Square counts queries"


def test_a_preprocessor_is_trained_once_for_all_foundation_models(exp: Experiment, seen: list[Any]) -> None:
    exp.run("cropd", foundation="rocl", head_epochs=2)
    assert not [name for name, *_ in seen if name == "t.fit"]
    exp.run("cropd", weight=0.5)
    assert [name for name, *_ in seen].count("t.fit") == 1


def test_a_sweep_is_brief_but_for_the_chapters_own_settings(exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exp, "sweeping", True)
    exp.sweep("cropd", seeds=[4], weight=[0.1, 1.0])
    exp.sweep("cropd", seeds=[4], below=5)
    brief, whole = exp.run("cropd", 4, weight=0.1), exp.run("cropd", 4)
    assert "worst" not in brief.metrics and "pgd20_robust_head" in brief.metrics and "radius" not in brief.curves
    assert exp.run("cropd", 4, below=5).metrics.keys() == brief.metrics.keys() - {
        "clean_robust_head",
        "pgd20_robust_head",
    }
    assert {"worst", "alone_PGD-20", "until_Square"} <= whole.metrics.keys() and len(whole.curves["radius"]["x"]) == 9


def test_the_whole_suite_attacks_the_recorded_networks(exp: Experiment, names: dict[str, Any], seen: list[Any]) -> None:
    t = exp.run("harder")
    del exp.trials["harder", 0, t.s]  # it counts as reading all settings
    assert t["limited"].n == t["whole"].n == exp.settings.few_images and t["whole"].value <= t["limited"].value
    kept, made = names["chain"](exp.load("cropd")), names["chain"](exp.run("cropd"))
    assert all(tensor.equal(made.state_dict()[name]) for name, tensor in kept.state_dict().items())
    assert [a[0].state_dict().keys() for name, a, _ in seen if name == "evaluate"] == [kept.state_dict().keys()] * 2


def test_a_record_without_weights_gives_no_networks(exp: Experiment) -> None:
    with pytest.raises(FileNotFoundError, match="smoke-digits-encoder_only-0 was recorded without weights"):
        assert exp.load("encoder_only").n


def test_what_came_with_the_book_is_found(names: dict[str, Any], exp: Experiment) -> None:
    """Whatever this run's scale and settings are; records of all sweeps that the page shows."""
    for changes in ({}, {"below": 5}, {"share": 0.1}, {"weight": 10.0}, {"foundation": "rocl"}):
        for seed in range(3):
            run = exp.find("cropd", scale="demo", seed=seed, folder=results.recorded_folder(), **changes)
            assert run.seed == seed and run.settings | changes == run.settings
    lora = exp.find("lora", scale="lite", seed=0, folder=results.recorded_folder())
    assert lora.variant == "foundation=mae"
