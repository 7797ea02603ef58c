"""The chapter on CRoPD at smoke scale: rows and studies run, and what is trained and attacked obeys the settings."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robrep import data, suites
from robrep.book import experiment, results
from robrep.book.cropd import load_cifar10_classifier
from robrep.book.experiment import Experiment
from robrep.book.reproduce import reproduce
from robrep.methods import CRoPD, MixedHead

SUITE = suites.suite
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


def photographs() -> data.Dataset:
    """Noise in the shape of CIFAR-10."""
    draw = torch.Generator().manual_seed(0)
    parts = [(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=draw), torch.arange(n) % 10)
             for n in (40, 20, 20)]  # fmt: skip
    return data.Dataset("cifar10", tuple("abcdefghij"), *(tensor for part in parts for tensor in part))


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar2", 2)])
def test_a_classifier_by_others_keeps_its_weights_and_its_head(
    dataset: str, classes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pyautoattack")
    whole, limited = photographs(), suites.suite("cropd", max_steps=1, max_queries=1)[-1:]
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path))
    monkeypatch.setattr(data, "load", lambda name, **options: whole)
    monkeypatch.setattr(suites, "suite", lambda name, **limits: (*SUITE(name, **limits)[:2], *limited))
    settings = {"foundation": "pyautoattack", "test_images": 4, "few_images": 2, "train_images": 32, "epochs": 1}
    settings |= {"suite": [1, 1, 1], "head_epochs": 1, "robust_epochs": 1, "robust_steps": 1, "eps": 0.01}
    names = reproduce("cropd", SCALE="lite", DATASET=dataset, ROWS="identity,vanilla", SETTINGS=settings)
    theirs, head = load_cifar10_classifier()
    for row in ("identity", "vanilla"):
        t = names["exp"].run(row)
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in t.n.foundation.state_dict().items())
        assert torch.equal(t.n.own_head.weight, head.weight[:classes]) and t.n.head.out_features == classes
        model = names["chain"](t, "own_head")
        x = data.as_float(t.d.x_test)
        with torch.no_grad():
            seen = x if row == "identity" else t.n.autoencoder(x)
            assert torch.allclose(model(x), head(theirs(seen))[:, :classes], atol=1e-4)
        rates = [t[f"{name}_own_head"] for name in ("clean", "pgd10", "pgd20", "worst")]
        assert [r.value for r in rates] == sorted((r.value for r in rates), reverse=True)
        assert t["whole_own_head"].n == 2 and len(t.curves["radius"]["x"]) == 5
        assert t.curves["radius"]["y"][0] == t["clean_own_head"].value


def test_the_classifier_by_others_needs_its_own_images() -> None:
    with pytest.raises(
        ValueError, match="foundation is 'pyautoattack' and dataset 'digits', expected cifar10 or cifar2"
    ):
        reproduce("cropd", SCALE="smoke", ROWS="vanilla", SETTINGS={"foundation": "pyautoattack"})
