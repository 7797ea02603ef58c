"""What the chapter on worst-case information claims, read from the records behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robrep import data
from robrep.attacks import APGD, Linf
from robrep.book import results
from robrep.book.experiment import Experiment
from robrep.encoders import Critic, InfoMaxEncoder, InfoMaxHead
from robrep.evaluation import accuracy, robust_accuracy
from robrep.heads import Classifier
from robrep.suites import ClassifierAttack

SEEDS = (0, 1, 2)


def run(row: str, seed: int, folder: Path, dataset: str = "digits") -> results.Run:
    """Seeds other than 0 have standard heads only."""
    exp, only = Experiment("worst_case_mi", {"RECORDED": True}), {"kinds": ("standard",)} if seed else {}
    return exp.find(row, scale="demo", dataset=dataset, seed=seed, folder=folder, **only)


def check_gap(plain: results.Run, worst: results.Run) -> None:
    """At least 12 points under the strong attack, with the same head on clean codes; intervals that do not touch."""
    name = "strong_mlp_standard"
    assert plain.settings["eps"] == worst.settings["eps"] == 0.1
    assert worst[name].n == 500
    assert worst[name].value - plain[name].value >= 0.12
    assert worst[name].low > plain[name].high, "the intervals touch"


def check_attacks(one: results.Run) -> None:
    assert one["robust_radius_1"].low <= 0.1
    y = one.curves["radius"]["y"]
    assert len(y) >= 7 and y == sorted(y, reverse=True)
    for kind in one.settings["kinds"]:
        for head in ("mlp", "linear"):
            clean, weak, strong = (one[f"{m}_{head}_{kind}"].value for m in ("clean", "weak", "strong"))
            assert strong <= weak <= clean


@pytest.mark.book
def test_live_demo_run(demo_results: Path) -> None:
    live = {row: run(row, 0, demo_results) for row in ("infomax", "worst_case")}
    check_gap(live["infomax"], live["worst_case"])
    for one in live.values():
        check_attacks(one)


@pytest.mark.parametrize("seed", SEEDS)
def test_recorded_runs(root: Path, seed: int) -> None:
    recorded = {row: run(row, seed, root / "book" / "results") for row in ("infomax", "worst_case")}
    check_gap(recorded["infomax"], recorded["worst_case"])
    for one in recorded.values():
        check_attacks(one)


def test_on_mnist_only_a_robust_head_shows_the_difference(root: Path) -> None:
    """All of MNIST at 0.3: the clean head keeps nothing on either code; the plain code cannot be repaired."""
    folder = root / "book" / "results"
    plain, worst = (
        results.load_run("worst_case_mi", f"lite-mnist-{r}-0", folder=folder) for r in ("infomax", "worst_case")
    )
    for one in (plain, worst):
        check_attacks(one)
        assert one.settings["eps"] == 0.3 and one["strong_mlp_standard"].n == 1000
        assert one["strong_mlp_standard"].value < 0.02
    for metric in ("clean_mlp_robust", "strong_mlp_robust"):
        assert worst[metric].low > plain[metric].high


@pytest.mark.parametrize("dim", [2, 20])
def test_donsker_varadhan_within_ten_percent_up_to_two_nats(root: Path, dim: int) -> None:
    study = run("dv", 0, root / "book" / "results", "gaussians")
    for truth in (0.5, 1.0, 2.0):
        metric = study[f"mean_{dim}_{truth:g}"]
        assert metric.n == 10
        assert abs(metric.value / truth - 1) <= 0.1
    assert study[f"mean_{dim}_4"].value < 4  # it saturates


def test_a_saved_model_gives_its_recorded_numbers(root: Path) -> None:
    record, d = run("worst_case", 0, root / "book" / "results"), data.load("digits")
    s = record.settings
    f = InfoMaxEncoder(d.shape, s["dim"], widths=s["widths"], hidden=s["hidden"])
    t = Critic(d.shape, s["dim"], widths=s["widths"][: s["critic_layers"]], units=s["units"], whole=s["whole"])
    c = InfoMaxHead(s["dim"])
    heads = {f"head_{h}_{k}": torch.nn.Linear(s["dim"], 10) for k in s["kinds"] for h in ("linear",)}
    heads |= {f"head_mlp_{k}": InfoMaxHead(s["dim"]) for k in s["kinds"]} | {"head_mlp_standard": c}
    results.load_weights(record, encoder=f, critic=t, **heads)
    model, x, y = Classifier(f, c), d.x_test[:500], d.y_test[:500]
    assert accuracy(model, x, y).value == pytest.approx(record["clean_mlp_standard"].value, abs=0.005)
    weak = robust_accuracy(model, x, y, "worst-case-mi", Linf(s["eps"]))
    assert weak.value == pytest.approx(record["weak_mlp_standard"].value, abs=0.01)
    harder = ClassifierAttack("APGD-DLR", APGD(60, leave_early=True), "dlr")
    again = robust_accuracy(model, x, y, harder, Linf(s["eps"]))
    assert again.value >= record["strong_mlp_standard"].value - 0.05
