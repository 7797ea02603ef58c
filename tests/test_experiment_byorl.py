"""BYORL's chapter on its experiment: every row runs, every setting is read, and what a run is told is what it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spies import attacked, spied

from robrep.attacks import APGD, PGD
from robrep.book import experiment, reproduce


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBREP_RESULTS", str(tmp_path_factory.mktemp("records")))
        yield reproduce.reproduce("byorl", SCALE="smoke", ROWS="byol,byorl,uat_ft")


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, int, float]]:
    return attacked(monkeypatch)


def test_every_row_runs_and_every_setting_is_read(chapter: dict[str, Any]) -> None:
    exp = chapter["exp"]
    exp.run("byorl", dataset="colour-digits", net="preact", base=8, heads=False)
    assert {(t.row, t.s["share"]) for t in exp.trials.values()} >= {
        ("byol", 1), ("byorl", 1), ("uat_ft", 1), ("uat_ft", 0.1)
    }  # fmt: skip
    assert exp.unread() == []


def test_the_settings_of_a_run_are_those_of_its_training_and_its_tests(chapter, attacks, monkeypatch) -> None:
    fits = spied(monkeypatch, experiment, "fit")
    told = dict(epochs=2, lr=0.01, batch_size=32, eps=0.05, attack_steps=2, test_steps=4, heads=False)
    chapter["exp"].run("byorl", **told)
    assert [(f["epochs"], f["lr"], f["batch_size"]) for f in fits] == [(2, 0.01, 32)]
    assert set(attacks) == {(PGD, 2, 0.05), (APGD, 4, 0.05)}


def test_the_settings_of_a_run_are_those_of_its_heads(chapter, attacks, monkeypatch) -> None:
    heads = spied(monkeypatch, chapter, "train_head_stopped")
    told = dict(eps=0.05, shares=(0.1, 1), head_epochs=2, head_longer=3, head_steps=3, judge_steps=6, test_steps=4)
    chapter["exp"].run("byol", **told, suite_shares=(), transfer=(), test_limits=(1, 1, 5))
    assert [head["epochs"] for head in heads] == [6, 2]
    assert {(PGD, 3, 0.05), (PGD, 6, 0.05), (APGD, 4, 0.05), (APGD, 4, 1.0)} <= set(attacks)
    assert {eps for _, _, eps in attacks} == {0.05, 1.0}


def test_the_settings_of_the_rival_are_what_it_does(chapter, attacks, monkeypatch) -> None:
    teacher, student = (spied(monkeypatch, chapter, name) for name in ("fit", "fit_stopped"))
    told = dict(share=0.3, eps=0.05, attack_steps=2, judge_steps=6, test_steps=4, epochs_supervised=2)
    t = chapter["exp"].run("uat_ft", **told, teacher_longer=(8, 3), lr_supervised=0.02)
    assert [(f["epochs"], f["lr"]) for f in teacher + student] == [(6, 0.02), (2, 0.02)]
    assert set(attacks) == {(PGD, 2, 0.05), (PGD, 6, 0.05), (APGD, 4, 0.05)} and t["right"].value < 1


def test_more_images_change_neither_the_steps_nor_the_labels(chapter, monkeypatch) -> None:
    trainings, heads = spied(monkeypatch, experiment, "fit"), spied(monkeypatch, chapter, "train_head_stopped")
    for size in (100, 128):
        t = chapter["exp"].run("byorl", train_images=size, epoch_images=128, share=10, suite_shares=())
        assert len(t.d.x_train) == size and t["clean"].n == t["clean_clean_head"].n == 20
    few, many = (training["given"][1] for training in trainings)
    assert len(few) == len(many) == 128 and few[100:].equal(few[:28]) and few[:100].equal(many[:100])
    few, many = (head["given"][2] for head in heads)
    assert len(few) == 10 and few.equal(many)


def test_of_records_that_fit_the_one_that_says_most_is_found(chapter, root: Path) -> None:
    """Older records do not state every setting."""
    where = dict(scale="demo", seed=0, folder=root / "book" / "results")
    find = chapter["exp"].find
    assert "robust_1" in find("byorl", dataset="digits", **where).metrics, "the main run, not that of table 4"
    for colours in (0.0, 2.0):
        tinted = find("byorl", dataset="colour-digits", heads=False, colours=colours, **where)
        assert tinted.settings["colours"] == colours
    shares = [find("uat_ft", dataset="digits", share=share, **where)["right"].value for share in (0.01, 0.5, 1)]
    assert shares[0] < shares[1] < shares[2] == 1
