"""The chapter on attacks as an experiment: every setting is read, and what a run was asked for is what it did."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robrep.attacks import PGD
from robrep.book import experiment, results
from robrep.book.reproduce import reproduce


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBREP_RESULTS", str(tmp_path_factory.mktemp("records")))
        yield SimpleNamespace(**reproduce("attacks", SCALE="smoke"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Every attack by PGD as (steps, threat), in training and in tests, and the options of every training."""
    seen: dict[str, list[Any]] = {"training": [], "test": [], "fit": []}
    call, fit, where = PGD.__call__, experiment.fit, ["test"]

    def watched_call(self: PGD, objective: Any, x: Any, threat: Any, *given: Any, **options: Any) -> Any:
        seen[where[-1]].append((self.steps, threat))
        return call(self, objective, x, threat, *given, **options)

    def watched_fit(*given: Any, **options: Any) -> Any:
        seen["fit"].append(options)
        where.append("training")
        try:
            return fit(*given, **options)
        finally:
            where.pop()

    monkeypatch.setattr(PGD, "__call__", watched_call)
    monkeypatch.setattr(experiment, "fit", watched_fit)
    return seen


def test_every_row_is_recorded_and_every_setting_read(chapter: SimpleNamespace) -> None:
    exp = chapter.exp
    assert list(chapter.trained) == ["standard", "at", "trades"] and exp.unread() == []
    for row, t in chapter.trained.items():
        again = exp.load(row)
        assert again.metrics == t.metrics and again.record.variant == ""
        for name in ("encoder", "head"):
            kept, trained = getattr(again.n, name).state_dict(), getattr(t.n, name).state_dict()
            assert all(torch.equal(value, trained[key]) for key, value in kept.items())
    assert "radius" in exp.find("trades").curves
    assert len(results.runs("attacks", scale="smoke", variant="")) == 3


@pytest.mark.parametrize("row", ["at", "trades"])
def test_training_and_tests_use_the_settings_of_their_run(
    chapter: SimpleNamespace, seen: dict[str, list[Any]], row: str
) -> None:
    t = chapter.exp.run(row, eps=0.05, train_steps=2, test_steps=3, epochs_at=1, lr=0.02, batch_size=64)
    assert {(steps, threat.eps) for steps, threat in seen["training"]} == {(2, 0.05)}
    (options,) = seen["fit"]
    assert (options["epochs"], options["lr"], options["batch_size"]) == (1, 0.02, 64)
    pgd = [(steps, threat.eps) for steps, threat in seen["test"] if steps != 1]  # one step: FGSM
    assert {steps for steps, _ in pgd} == {3}
    assert {round(eps, 6) for _, eps in pgd} == {0.025, 0.05, 0.075, 0.1, 0.15, 1.0}
    assert {threat.eps for steps, threat in seen["test"] if steps == 1} == {0.05}
    assert "after_pgd_3" in t.metrics and t.curves["radius"]["x"][2] == 0.05


def test_the_weight_of_trades_is_that_of_its_run(chapter: SimpleNamespace) -> None:
    exp = chapter.exp
    for beta in (0.5, 6.0):
        s = exp.settings.changed({"beta_trades": beta})
        assert exp.methods["trades"](chapter.trained["trades"].n, s).beta == beta
