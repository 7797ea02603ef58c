"""The chapter on SimCLR + Urkle at smoke scale: every row runs, by the settings that are recorded and no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from robrep.attacks import APGD, PGD
from robrep.book import experiment, reproduce, results

ROWS = ("standard", "at", "trades", "simclr", "rocl", "simclr_urkle")


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names of the chapter's experiment, after all rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROBREP_RESULTS", "ROBREP_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("simclr") / name))
        yield reproduce.reproduce("simclr_urkle", SCALE="smoke", ROWS=",".join(ROWS))


class Spy:
    """What attacks, the loop and the heads were called with; all do their work."""

    def __init__(self, chapter: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        self.attacked: set[tuple[Any, ...]] = set()
        self.fits: list[tuple[Any, dict[str, Any]]] = []
        self.heads: list[tuple[int, dict[str, Any]]] = []
        fit, train_head = experiment.fit, chapter["train_head"]
        for kind in (PGD, APGD):
            patch.setattr(kind, "__call__", self.noted(kind.__call__))
        patch.setattr(experiment, "fit", lambda *g, **more: (self.fits.append((g[0], more)), fit(*g, **more))[1])
        patch.setitem(chapter, "train_head", lambda f, c, x, y, **more: (
            self.heads.append((len(y), more)), train_head(f, c, x, y, **more))[1])  # fmt: skip

    def noted(self, call: Any) -> Any:
        def noting(attack: Any, objective: Any, x: Any, threat: Any, *given: Any, **more: Any) -> Any:
            self.attacked.add((type(attack), attack.steps, getattr(attack, "relative_step", None), threat.eps))
            return call(attack, objective, x, threat, *given, **more)

        return noting


def test_every_setting_is_read_and_every_run_found(chapter: dict[str, Any]) -> None:
    exp = chapter["exp"]
    exp.run("simclr", net="resnet18")
    tried = exp.run("simclr_urkle", beta_robust=0.02, judged_on="val")
    found = exp.find("simclr_urkle", beta_robust=0.02, judged_on="val")
    assert set(tried.metrics) == set(found.metrics) == {"clean", "robust"} and found.data["split"] == "val"
    assert exp.unread() == []
    few = {f"{kind}_{n}_labels" for kind in ("clean", "robust", "robust_twice") for n in (40, 20)}
    for row in ROWS:
        t, found = exp.run(row), exp.find(row)
        gaussian = {"robust_mean_code", "scale"} if row == "simclr_urkle" else set()
        kinds = {"clean", "robust", "robust_twice", "robust_few", "robust_strong", "robust_radius_1", "rank"}
        assert set(t.metrics) == set(found.metrics) == kinds | few | gaussian
        watched = {"watched_clean", "watched_robust", "watched_rank"} & set(found.curves)
        assert len(watched) == (0 if row in ("standard", "at", "trades") else 3) and "radius" in found.curves
        assert (found.weights is None) == (row in ("standard", "at", "trades"))


def test_what_is_asked_for_is_what_runs(chapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Radius, steps, weight, rates and epochs, as the attacks, the loop and the heads see them."""
    spy, eps = Spy(chapter, monkeypatch), 0.03
    asked = dict(eps=eps, attack_steps=2, attack_step=0.4, test_steps=3, test_step=0.2, watch_steps=4, watch_epochs=6,
                 beta_robust=0.7, temperature=0.9, epochs=2, lr=0.001, batch_size=50, head_epochs=3, head_lr=0.02,
                 few_labels=(30,), few_head_epochs=5, samples=3, suite_steps=5, start_scale=-1.0)  # fmt: skip
    t = chapter["exp"].run("simclr_urkle", **asked)
    training, harder = {(PGD, 2, 0.4, eps)}, {(APGD, 5, None, eps)}
    tests = {(PGD, 3, 0.2, radius) for radius in (*(eps * share for share in (0.5, 1, 1.5, 2, 3)), 1.0)}
    watch = {(PGD, 4, None, eps)}
    assert training | watch <= spy.attacked and spy.attacked & tests
    assert spy.attacked <= training | watch | tests | harder
    ((method, options),) = spy.fits
    assert (method.beta_robust, method.temperature) == (0.7, 0.9)
    assert (options["epochs"], options["lr"], options["batch_size"]) == (2, 0.001, 50)
    assert [(n, h["epochs"], h["lr"]) for n, h in spy.heads] == [
        (128, 6, 0.02), (128, 6, 0.02), (128, 3, 0.02), (30, 15, 0.02)]  # fmt: skip
    (record,) = [r for r in results.runs("simclr_urkle", row="simclr_urkle") if r.variant == t.s.variant()]
    assert record.settings["few_labels"] == [30] and record.settings["eps"] == eps
    assert {"beta_trades", "epochs_supervised", "lr_supervised"}.isdisjoint(record.read or [])


def test_a_supervised_row_has_a_new_network_for_few_labels(
    chapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(chapter, monkeypatch)
    t = chapter["exp"].run("at", eps=0.03, epochs_supervised=2, few_epochs=3, lr_supervised=0.001, few_labels=(30, 20))
    assert [options["epochs"] for _, options in spy.fits] == [2, 6, 6] and not spy.heads
    assert {options["lr"] for _, options in spy.fits} == {0.001} and len(t.history) == 2
    assert len({id(method) for method, _ in spy.fits}) == 3
    assert {attack[3] for attack in spy.attacked if attack[1] == 1} == {0.03}, "attack_steps is 1"
