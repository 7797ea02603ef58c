"""The chapter on VAE + Urkle at smoke scale: every row runs, by the settings that are recorded and no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from spies import attacked, spied

from robrep.attacks import APGD, FGSM, PGD, Linf
from robrep.book import experiment, reproduce, results
from robrep.evaluation import robust_accuracy

ROWS = ("standard", "at", "trades", "ae_trades", "vae", "vae_urkle")


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names of the chapter's experiment, after all rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROBREP_RESULTS", "ROBREP_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("vae") / name))
        yield reproduce.reproduce("vae_urkle", SCALE="smoke", SETTINGS={"few_images": 10})


def test_every_setting_is_read_and_every_run_found(chapter: dict[str, Any]) -> None:
    exp = chapter["exp"]
    assert tuple(chapter["trained"]) == ROWS and exp.unread() == []
    for row, t in chapter["trained"].items():
        found = exp.find(row)
        checks = {"robust_few", "robust_strong", "clean_mean_code", "robust_mean_code", "robust_radius_1"}
        assert {"clean", "robust"} | checks <= set(found.metrics) == set(t.metrics) and "radius" in found.curves
        assert ("bound_left" in found.metrics) == row.startswith("vae")
        assert ("clean_10_labels" in found.metrics) == (row not in ("standard", "at", "trades"))


def test_what_is_asked_for_is_what_runs(chapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Radius, steps, rates, weights and epochs, as the attacks, the loop and the heads see them."""
    attacks, fits = attacked(monkeypatch), spied(monkeypatch, experiment, "fit")
    heads = spied(monkeypatch, chapter, "train_head")
    eps = 0.05
    asked = dict(eps=eps, attack_steps=4, test_steps=3, suite_steps=5, beta_robust=0.7, beta_vae=0.2, epochs_vae=2,
                 lr=0.001, batch_size=100, head_epochs=3, head_lr=0.02)  # fmt: skip
    t = chapter["exp"].run("vae_urkle", seed=1, **asked)
    tests = {(PGD, 3, eps * share) for share in (0.5, 0.75, 1, 1.5, 2, 3)} | {(PGD, 3, 1.0)}
    assert (PGD, 4, eps) in attacks and set(attacks) <= {(PGD, 4, eps), (APGD, 5, eps)} | tests
    (options,) = fits
    method, *_ = options["given"]
    assert (method.beta_robust, method.beta_vae) == (0.7, 0.2)
    assert (options["epochs"], options["lr"], options["batch_size"], options["seed"]) == (2, 0.001, 100, 1)
    assert [(len(head["given"][3]), head["epochs"], head["lr"]) for head in heads] == [
        (len(t.d.x_train), 3, 0.02), (10, 30, 0.02), (100, 30, 0.02)]  # fmt: skip
    (record,) = results.runs("vae_urkle", scale="smoke", row="vae_urkle", seed=1)
    assert {name: record.settings[name] for name in asked} == asked
    assert record.weights is None and {"beta_trades", "epochs_supervised"}.isdisjoint(record.read or [])


def test_weaker_attacks_meet_the_recorded_networks(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROBREP_RESULTS", "ROBREP_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("weaker") / name))
        names = reproduce.reproduce("vae_urkle", SCALE="smoke", ROWS="at,trades,vae_urkle,weaker")
        exp = names["exp"]
        t = exp.trials["weaker", 0, exp.settings]
        assert len(t.metrics) == 6
        for row in ("at", "trades", "vae_urkle"):
            made = names["classifier"](exp.run(row)).eval()
            for kind, attack in (("fgsm", FGSM(random_start=False)), ("pgd", PGD(t.s.attack_steps))):
                again = robust_accuracy(made, t.d.x_test, t.d.y_test, attack, Linf(t.s.eps))
                assert again.value == t[f"{kind}_{row}"].value and t[f"{kind}_{row}"].n == len(t.d.x_test)


def test_the_radius_of_training_is_one_of_its_own(chapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = attacked(monkeypatch)
    chapter["exp"].run("at", seed=2, training_radius=2.0, judged_on="val", eps=0.05)
    assert set(attacks) == {(PGD, 1, 0.1), (PGD, 2, 0.05)}
    (record,) = results.runs("vae_urkle", scale="smoke", row="at", seed=2)
    assert record.data["split"] == "val" and set(record.metrics) == {"clean", "robust"}


def test_unknown_images_are_refused_before_the_training(
    chapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = spied(monkeypatch, experiment, "fit")
    with pytest.raises(ValueError, match="judged_on is 'valid', expected one of 'val', 'test'"):
        chapter["exp"].run("at", judged_on="valid")
    assert fits == []
