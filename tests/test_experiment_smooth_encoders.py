"""The chapter on smooth encoders at smoke scale: every row runs, by the settings that are recorded and no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from robrep.attacks import PGD
from robrep.book import experiment, reproduce, results


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names of the chapter's experiment, after both encoders and the sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROBREP_RESULTS", "ROBREP_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("smooth") / name))
        yield reproduce.reproduce("smooth_encoders", SCALE="smoke", SWEEP=True)


def test_every_setting_is_read_and_every_run_found(chapter: dict[str, Any]) -> None:
    exp = chapter["exp"]
    assert exp.unread() == []
    for (row, seed, s), t in exp.trials.items():
        tasks = ("digit", "colour") if s.plain()["dataset"] == "colour-digits" else ("digit",)
        kinds = ("clean", "robust", "robust_twice", "robust_radius_1")
        assert set(t.metrics) == {f"{kind}_{task}" for kind in kinds for task in tasks}
        assert {f"radius_{task}" for task in tasks} | {"training_loss"} <= set(t.curves)
        changes = {name: value for name, value in s.plain().items() if name != "dataset"}
        assert exp.find(row, dataset=s.plain()["dataset"], seed=seed, **changes).variant == s.variant()


def test_what_is_asked_for_is_what_runs(chapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Radius, steps, rates and epochs of training and tests, as the attack, the loop and the heads see them."""
    attacked, fits, heads, pgd, fit, train_head = set(), [], [], PGD.__call__, experiment.fit, chapter["train_head"]
    monkeypatch.setattr(PGD, "__call__", lambda self, objective, x, threat, *given, **more: (
        attacked.add((self.steps, threat.eps)), pgd(self, objective, x, threat, *given, **more))[1])  # fmt: skip
    monkeypatch.setattr(
        experiment, "fit", lambda *given, **more: (fits.append((given[0], more)), fit(*given, **more))[1]
    )
    monkeypatch.setitem(chapter, "train_head", lambda *given, **more: (
        heads.append(more), train_head(*given, **more))[1])  # fmt: skip
    asked = dict(eps=0.03, attack_steps=3, test_eps=0.05, test_steps=4, gamma=7.0, variance=0.5, epochs=2, lr=0.001,
                 head_epochs=3, head_lr=0.02, batch_size=200, test_images=10)  # fmt: skip
    t = chapter["exp"].run("se", **asked)
    tests = {(4, 0.05 * share) for share in (0.25, 0.5, 0.75, 1, 1.5, 2, 3)} | {(4, 1.0)}
    assert (3, 0.03) in attacked and attacked & tests and attacked <= tests | {(3, 0.03)}
    ((method, options),) = fits
    assert (method.gamma, method.variance) == (7.0, 0.5)
    assert (options["epochs"], options["lr"], options["batch_size"]) == (2, 0.001, 200) and len(t.history) == 2
    assert [(h["epochs"], h["lr"], h["batch_size"]) for h in heads] == [(3, 0.02, 200)] * 2
    assert t["robust_digit"].attack.endswith("0.05") and t["robust_digit"].n == 10
    (record,) = [r for r in results.runs("smooth_encoders", row="se") if r.variant == t.s.variant()]
    assert asked.items() <= record.settings.items()
    assert {"gamma_mlp", "epochs_mlp", "lr_mlp", "units"}.isdisjoint(record.read or []), "the MLP's"
