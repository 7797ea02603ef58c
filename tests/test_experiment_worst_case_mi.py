"""The chapter on worst-case information on its experiment: every row runs, and what a run is told is what it does."""

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
    rows = "infomax,worst_case,supervised,at,codes,zoo,units"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBREP_RESULTS", str(tmp_path_factory.mktemp("records")))
        yield reproduce.reproduce("worst_case_mi", SCALE="smoke", ROWS=rows, SETTINGS={"test_images": 10})


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, int, float]]:
    return attacked(monkeypatch)


def test_every_row_runs_and_every_setting_is_read(chapter: dict[str, Any]) -> None:
    exp = chapter["exp"]
    for estimator in chapter["READING"]:
        t = exp.run(estimator, dataset="gaussians")
        assert t.s["epochs"] == 1 and t.metrics.keys() == {
            f"{what}_2_{nats}" for what in ("mean", "deviation") for nats in ("0.5", "4")
        }
    exp.run("units", trained=0.1)
    with pytest.raises(ValueError, match="dataset is 'digits', expected one of 'gaussians'"):
        exp.run("dv", dataset="digits")
    assert {row for row, _, _ in exp.trials} == set(exp.titles) and exp.unread() == []


def test_the_settings_of_a_run_are_those_of_its_training_and_its_tests(chapter, attacks, monkeypatch) -> None:
    fits, heads = spied(monkeypatch, experiment, "fit"), spied(monkeypatch, chapter, "train_head")
    told = dict(eps=0.05, attack_steps=3, test_steps=4, epochs=2, lr=0.01, head_epochs=3, robust_epochs=1, lr_head=0.02)
    chapter["exp"].run("worst_case", **told, kinds=("standard", "robust"))
    assert [(f["epochs"], f["lr"]) for f in fits] == [(2, 0.01)]
    assert [(h["epochs"], h["lr"], "attack" in h) for h in heads] == 2 * [(3, 0.02, False)] + 2 * [(1, 0.02, True)]
    paper, radii = (PGD, 7, 0.05), {(PGD, 4, 0.05 * share) for share in (0, 0.25, 0.5, 0.75, 1, 1.5, 2)}
    assert set(attacks) - radii == {paper, (PGD, 3, 0.05), (APGD, 4, 0.05), (PGD, 4, 1.0)}


def test_the_settings_of_a_vulnerability_are_those_of_its_critics(chapter, attacks, monkeypatch) -> None:
    critics, zoo = spied(monkeypatch, chapter, "representation_vulnerability"), spied(monkeypatch, experiment, "fit")
    told = dict(trained=0.02, zoo_steps=3, eps=0.05, critic_epochs=2, critic_steps=5, reading_steps=6)
    chapter["exp"].run("zoo", **told)
    assert [c["epochs"] for c in critics] == [2] and [f["epochs"] for f in zoo] == [1]
    assert {(PGD, 3, 0.02), (PGD, 5, 0.05), (PGD, 6, 0.05)} <= set(attacks)
    assert {(kind, steps) for kind, steps, eps in attacks if eps == 0.02} == {(PGD, 3)}


def test_a_code_is_that_of_the_row_with_the_same_settings(chapter: dict[str, Any]) -> None:
    exp = chapter["exp"]
    t = exp.run("codes", code_of="worst_case", hidden=8)
    of = exp.run("worst_case", hidden=8)
    assert t["clean_head"].value == of["clean_mlp_standard"].value and "hidden" in t.s.was_read
    assert len([1 for row, _, s in exp.trials if row == "worst_case" and s["hidden"] == 8]) == 1


def test_records_from_before_are_found(chapter: dict[str, Any], root: Path) -> None:
    where = dict(scale="demo", seed=0, folder=root / "book" / "results")
    find = chapter["exp"].find
    zoo = [find("zoo", dataset="digits", widths=(8, 16), trained=eps, **where) for eps in (0.0, 0.03, 0.1)]
    assert [r.settings["widths"] for r in zoo] == 3 * [[8, 16]]
    assert zoo[0]["strong_head"].value < zoo[1]["strong_head"].value < zoo[2]["strong_head"].value
    assert find("js", dataset="gaussians", **where)["mean_2_0.5"].n == 10
