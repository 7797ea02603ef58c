"""The comparison as an experiment: rows cost what the table says, every setting is read and does what it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robrep.attacks import APGD, PGD
from robrep.book import experiment
from robrep.book.comparison import ROWS, Counter, affordable_epochs, passes
from robrep.book.experiment import Trial
from robrep.book.reproduce import reproduce
from robrep.training import fit


def reproduced(folder: Path, **parameters: Any) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBREP_RESULTS", str(folder))
        return SimpleNamespace(folder=folder, **reproduce("comparison", SCALE="smoke", **parameters))


@pytest.fixture(scope="module")
def every_row(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return reproduced(tmp_path_factory.mktemp("records"), ROWS=",".join(ROWS), SETTINGS={"whole": True})


@pytest.fixture(scope="module")
def at_budgets(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return reproduced(tmp_path_factory.mktemp("budgets"), ROWS="at", SEEDS=(0,), BUDGETS=True)


@pytest.fixture
def chapter(every_row: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setenv("ROBREP_RESULTS", str(every_row.folder))
    return every_row


@pytest.fixture
def budgets(at_budgets: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setenv("ROBREP_RESULTS", str(at_budgets.folder))
    return at_budgets


def test_settings_are_tried_on_validation_images(budgets: SimpleNamespace) -> None:
    at, exp = budgets.comparison.TRIED_AT * 4, budgets.exp
    runs = budgets.validated("at", at)
    assert len(runs) == 4 and sorted(p["lr_labels"] for p, _ in runs) == [0.001, 0.002, 0.004, 0.008]
    sums = [r["clean"].value + r["robust"].value for _, r in runs]
    assert sums == sorted(sums, reverse=True)
    for _, r in runs:
        assert set(r.metrics) == {"clean", "robust", "passes", "epochs", "seconds", "parameters", "parameters_training"}
        assert r.data["split"] == "val" and r["clean"].n == r.data["n_test"] == len(exp.data().x_val)
    with pytest.raises(ValueError, match="judged_on is 'train', expected one of 'val'"):
        exp.run("at", judged_on="train")


def test_the_best_of_them_is_run_at_every_budget(budgets: SimpleNamespace) -> None:
    best, _ = budgets.validated("at", budgets.comparison.TRIED_AT * 4)[0]
    for times in budgets.comparison.BUDGETS["at"]:
        r = budgets.exp.find("at", budget=4 * times, brief=True, **best)
        assert r.data["split"] == "test" and r["epochs"].value == affordable_epochs("at", 1, 4 * times)
        assert {"clean", "robust", "clean_colour"} <= set(r.metrics) and "robust_colour" not in r.metrics
    untrained = budgets.exp.find("at", budget=0, brief=True)
    assert "passes" not in untrained.metrics and not untrained.curves


def drawn(chapter: SimpleNamespace, row: str, seed: int = 0, **changes: Any) -> Trial:
    return Trial(chapter.exp, row, seed, chapter.exp.settings.changed(changes))


def test_every_row_is_recorded_and_every_setting_read(chapter: SimpleNamespace) -> None:
    exp = chapter.exp
    assert list(chapter.trained) == list(ROWS)
    for row, t in chapter.trained.items():
        found = exp.find(row)
        assert found.metrics == t.metrics and {"clean_20_labels", "robust_colour", "moved_attack"} <= set(t.metrics)
        assert ("robust_20_alone" in t.metrics) == ("robust_own_head" in t.metrics) == (ROWS[row].group == "labels")
        assert list(found.curves["radius"]["x"])[:1] == [0] and "training_loss" in found.curves
        share = 0.5 if row == "cropd" else 1.0
        assert t["epochs"].value == affordable_epochs(row, 1, share * 4) == len(t.history)
    exp.run("at", net="resnet18", width=4, dim=32, whole=False)
    assert exp.unread() == []


@pytest.mark.parametrize("row", ROWS)
def test_passes_are_those_that_hooks_count(chapter: SimpleNamespace, row: str) -> None:
    t = drawn(chapter, row, attack_steps=3)
    method = t.method()
    with Counter(*chapter.through(method)) as counter:
        fit(method, t.d.x_train[:24], t.d.y_train[:24], epochs=2, batch_size=12)
    assert counter.passes == 2 * 24 * passes(row, 3)


def test_a_formula_that_does_not_fit_stops_the_training(chapter: SimpleNamespace, monkeypatch: Any) -> None:
    monkeypatch.setitem(chapter.spend.__globals__, "passes", lambda row, steps: passes(row, steps) + 0.5)
    with pytest.raises(AssertionError, match="in the formula"):
        chapter.spend(drawn(chapter, "at"), "at")


def test_rows_start_from_the_same_encoder(chapter: SimpleNamespace) -> None:
    plain = [drawn(chapter, row).n.f.state_dict() for row, r in ROWS.items() if not r.gaussian]
    assert all(torch.equal(value, plain[0][key]) for f in plain for key, value in f.items())
    assert not torch.equal(drawn(chapter, "at", seed=1).n.f.features[0].weight, plain[0]["features.0.weight"])
    with pytest.raises(ValueError, match="net is 'vit', expected one of 'conv'"):
        _ = drawn(chapter, "at", net="vit").n


def test_cropd_leaves_the_encoder_that_simclr_trained(chapter: SimpleNamespace) -> None:
    t = drawn(chapter, "cropd")
    chapter.train(t)
    frozen, before = t.n.f.state_dict(), t.drawn().f.state_dict()
    assert t.n.encoder[1].foundation is t.n.f and not any(p.requires_grad for p in t.n.f.parameters())
    assert any(not torch.equal(value, before[key]) for key, value in frozen.items()), "SimCLR had half of the budget"
    kept = {key: value.clone() for key, value in frozen.items()}
    chapter.spend(t, "cropd")
    assert all(torch.equal(value, kept[key]) for key, value in t.n.f.state_dict().items())


def test_a_run_uses_its_settings(chapter: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {"training": [], "test": [], "fit": [], "head": []}
    where, fits, cells = ["test"], experiment.fit, chapter.judge.__globals__
    heads = cells["train_head"]

    def watch(kind: type) -> None:
        call = kind.__call__

        def watched(self: Any, objective: Any, x: Any, threat: Any, *given: Any, **options: Any) -> Any:
            seen[where[-1]].append((kind.__name__, self.steps, threat.eps))
            return call(self, objective, x, threat, *given, **options)

        monkeypatch.setattr(kind, "__call__", watched)

    def watched_fit(*given: Any, **options: Any) -> Any:
        seen["fit"].append(options)
        where.append("training")
        try:
            return fits(*given, **options)
        finally:
            where.pop()

    watch(PGD)
    watch(APGD)
    monkeypatch.setattr(experiment, "fit", watched_fit)
    monkeypatch.setitem(cells, "train_head", lambda *given, **o: seen["head"].append(o) or heads(*given, **o))
    changes = {"eps": 0.05, "attack_steps": 2, "lr_labels": 0.01, "batch_size": 16, "budget": 9, "moved_steps": 4}
    changes |= {"head_epochs": 2, "head_lr": 0.03, "head_batch": 8, "short_limits": (3, None, 5), "whole": False}
    t = chapter.exp.run("at", **changes)
    assert set(seen["training"]) == {("PGD", 2, 0.05)}
    assert set(seen["test"]) == {("APGD", 3, 0.05), ("APGD", 3, 1.0), ("PGD", 4, 0.05)}
    (options,), (head,) = seen["fit"], seen["head"]
    assert (options["epochs"], options["lr"], options["batch_size"]) == (3, 0.01, 16) and t["passes"].value == 9
    assert (head["epochs"], head["lr"], head["batch_size"]) == (2, 0.03, 8)
    assert t.s.differing() == changes


def test_weights_are_of_the_right_rows(chapter: SimpleNamespace) -> None:
    """The recorded networks of the book load into what the chapter draws, with the accuracy of their record."""
    t = chapter.exp.load("vae_urkle", scale="demo", seed=0)
    with torch.no_grad():
        model = chapter.Classifier(t.n.encoder, t.n.head, 0).eval()
        assert chapter.accuracy(model, t.d.x_test, t.d.y_test).value == t["clean"].value
