"""What the chapter on smooth encoders claims, read from the records behind it: the live run and the committed ones."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from robrep import data
from robrep.attacks import PGD, Linf
from robrep.book import results
from robrep.encoders import FlatConvEncoder, MeanCode
from robrep.evaluation import robust_accuracy
from robrep.heads import Classifier

SEEDS = (0, 1, 2)
# Until the chapter is in the table of contents its sweep may be missing; it is made by
# python -m robrep.book.reproduce smooth_encoders SWEEP=yes
IN_BOOK = "book/smooth_encoders" in (Path(__file__).resolve().parent.parent / "_toc.yml").read_text()
PANELS = {
    "a": ("colour-digits", "", "colour"), "b": ("colour-digits", "", "digit"),
    "c": ("digits", "net=mlp", "digit"), "d": ("digits", "", "digit"),
}  # fmt: skip


def run(row: str, seed: int, folder: Path, dataset: str = "colour-digits", variant: str = "") -> results.Run:
    name = results.run_name("demo", dataset, row, seed, variant)
    if not IN_BOOK and not (folder / "smooth_encoders" / f"{name}.json").is_file():
        pytest.skip(f"{name} is not recorded yet")
    return results.load_run("smooth_encoders", name, folder=folder)


def mean(root: Path, panel: str, row: str, metric: str) -> float:
    dataset, variant, task = PANELS[panel]
    folder = root / "book" / "results"
    return statistics.mean(run(row, s, folder, dataset, variant)[f"{metric}_{task}"].value for s in SEEDS)


def check_gap(plain: results.Run, smooth: results.Run) -> None:
    assert plain.settings["eps"] == smooth.settings["eps"] == 0.1
    assert smooth["robust_digit"].value - plain["robust_digit"].value >= 0.25
    assert smooth["robust_digit"].low > plain["robust_digit"].high, "the intervals touch"
    assert smooth["robust_digit"].n == 500


def check_attacks(one: results.Run) -> None:
    for task, chance in (("digit", 1 / 10), ("colour", 1 / 6)):
        assert one[f"robust_radius_1_{task}"].low <= chance
        assert one[f"robust_twice_{task}"].value <= one[f"robust_{task}"].value <= one[f"clean_{task}"].value
        y = one.curves[f"radius_{task}"]["y"]
        assert len(y) >= 7 and y == sorted(y, reverse=True)


@pytest.mark.book
def test_live_demo_run(demo_results: Path) -> None:
    live = {row: run(row, 0, demo_results) for row in ("vae", "se")}
    check_gap(live["vae"], live["se"])
    for one in live.values():
        check_attacks(one)


@pytest.mark.parametrize("seed", SEEDS)
def test_recorded_runs(root: Path, seed: int) -> None:
    recorded = {row: run(row, seed, root / "book" / "results") for row in ("vae", "se")}
    check_gap(recorded["vae"], recorded["se"])
    for one in recorded.values():
        check_attacks(one)


def test_colour_is_easier_than_the_digit(root: Path) -> None:
    for row in ("vae", "se"):
        assert mean(root, "a", row, "robust") > mean(root, "b", row, "robust")


def test_convolutions_are_more_robust_than_the_mlp(root: Path) -> None:
    for row in ("vae", "se"):
        assert mean(root, "d", row, "robust") > mean(root, "c", row, "robust")


@pytest.mark.slow
def test_a_stronger_attack_changes_little(root: Path) -> None:
    """100 steps and five restarts against 20 steps, on the saved weights."""
    model, s, d = saved(root)
    x, y = d.x_test[:100], d.y_test[:100]
    weak, strong = (robust_accuracy(model, x, y, a, Linf(s["eps"])) for a in (
        PGD(20, leave_early=True), PGD(100, restarts=5, leave_early=True)))  # fmt: skip
    assert 0 <= weak.value - strong.value <= 0.05


def saved(root: Path) -> tuple[Classifier, dict, data.Dataset]:
    """The recorded smooth encoder with its digit head."""
    record = run("se", 0, root / "book" / "results")
    s, d = record.settings, data.load("colour-digits")
    f, c = FlatConvEncoder(d.shape, s["dim"], widths=s["channels"], strides=s["strides"]), torch.nn.Linear(s["dim"], 10)
    results.load_weights(record, encoder=f, head_digit=c)
    return Classifier(MeanCode(f), c), s, d


def test_a_saved_model_gives_its_recorded_number(root: Path) -> None:
    record, (model, s, d) = run("se", 0, root / "book" / "results"), saved(root)
    n, eps = s["test_images"], s["eps"]
    again = robust_accuracy(model, d.x_test[:n], d.y_test[:n], PGD(s["test_steps"], leave_early=True), Linf(eps))
    # the curve counts an image broken at a smaller radius as broken, so it may lie a little lower
    assert record["robust_digit"].value - 0.01 <= again.value <= record["robust_digit"].value + 0.03


LITE = {
    "a": ("colour-mnist", "", "colour"), "b": ("colour-mnist", "", "digit"),
    "c": ("mnist", "net=mlp", "digit"), "d": ("mnist", "", "digit"),
}  # fmt: skip


@pytest.mark.parametrize("panel", LITE)
def test_mnist_runs(root: Path, panel: str) -> None:
    """Four panels on all test images, two seeds: the smooth encoder leads at half the radius on every digit task."""
    dataset, variant, task = LITE[panel]
    runs = {
        row: results.runs("smooth_encoders", scale="lite", dataset=dataset, row=row, variant=variant,
                          folder=root / "book" / "results")
        for row in ("vae", "se")
    }  # fmt: skip
    at_half = {}
    for row, found in runs.items():
        assert [run.seed for run in found] == [0, 1]
        curves = [run.curves[f"radius_{task}"] for run in found]
        assert all(run[f"clean_{task}"].n == 10_000 and run.settings["eps"] == 0.2 for run in found)
        assert all(len(curve["x"]) >= 6 and curve["x"][2] == 0.1 and curve["y"][-1] == 0 for curve in curves)
        at_half[row] = [curve["y"][2] for curve in curves]
    if task == "digit":
        assert min(at_half["se"]) > max(at_half["vae"]) + 0.05


def lite(panel: str, row: str) -> list[results.Run]:
    dataset, variant, _ = LITE[panel]
    folder = Path(__file__).resolve().parent.parent / "book" / "results"
    return results.runs("smooth_encoders", scale="lite", dataset=dataset, row=row, variant=variant, folder=folder)


def mean_at(panel: str, row: str, radius: float) -> float:
    curves = [run.curves[f"radius_{LITE[panel][2]}"] for run in lite(panel, row)]
    return statistics.mean(curve["y"][curve["x"].index(radius)] for curve in curves)


def test_mnist_reverses_a_claim() -> None:
    """Colours of tinted MNIST: lost before the digits by the VAE, given up in part by the smooth encoder."""
    assert mean_at("a", "vae", 0.05) < 0.02 < 0.1 < mean_at("b", "vae", 0.05)
    clean = [run["clean_colour"].value for run in lite("a", "se")]
    assert max(clean) < mean_at("a", "vae", 0.0) and min(clean) < 0.5
    for radius in (0.1, 0.2):
        assert mean_at("d", "se", radius) > mean_at("c", "se", radius), "the ConvNet retains more than the MLP"
    assert all(mean_at(panel, "se", 0.2) < 0.06 for panel in LITE), "almost nothing is left at the training radius"


def test_more_coupling_gives_more_robustness_until_the_code_loses_the_digit(root: Path) -> None:
    folder = root / "book" / "results"
    runs = [run("se", 0, folder, variant=f"gamma={g}") for g in ("0.0", "1.0", "10.0")]
    runs += [run("se", 0, folder), run("se", 0, folder, variant="gamma=1000.0")]
    digits, colours = ([one[f"robust_{task}"].value for one in runs] for task in ("digit", "colour"))
    for task in (digits, colours):
        assert task[:4] == sorted(task[:4]) and task[4] < task[3] - 0.1
    assert digits[4] < digits[3] - 0.2 and runs[4]["clean_digit"].value < 0.6
    assert runs[4]["clean_colour"].value > 0.98  # the colour is still there


def test_the_gain_comes_from_the_coupling(root: Path) -> None:
    folder = root / "book" / "results"
    heavier, uncoupled = run("vae", 0, folder, variant="variance=0.06"), run("se", 0, folder, variant="gamma=0.0")
    for other in (heavier, uncoupled):
        assert run("se", 0, folder)["robust_digit"].low > other["robust_digit"].high + 0.2
