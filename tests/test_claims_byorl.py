"""What the chapter on BYORL claims, read from the records behind it: the live run and the committed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robrep import data
from robrep.attacks import PGD, Linf
from robrep.book import reproduce, results
from robrep.book.experiment import Experiment, at_scale
from robrep.contrastive import nearest
from robrep.losses import cosine_distance

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5, 1)


@pytest.fixture
def recorded(root: Path) -> Path:
    return root / "book" / "results"


def run(row: str, seed: int, folder: Path, dataset: str = "digits", **changes: Any) -> results.Run:
    exp = Experiment("byorl", {"RECORDED": True})
    return exp.find(row, scale="demo", dataset=dataset, seed=seed, folder=folder, **changes)


def main_runs(folder: Path, row: str, seeds: int = 3, **changes: Any) -> list[results.Run]:
    return [run(row, seed, folder, **changes) for seed in range(seeds)]


def check_gap(byol: results.Run, byorl: results.Run) -> None:
    assert byol.settings == byorl.settings and byol.settings["eps"] == 0.1
    assert byol["robust"].attack == byorl["robust"].attack
    assert byol["robust"].n == byorl["robust"].n == 500
    assert byorl["robust"].value - byol["robust"].value >= 0.20
    assert byorl["robust"].low > byol["robust"].high, "the intervals touch"


def check_attacks(one: results.Run) -> None:
    assert one["robust_radius_1"].low <= 0.1, "at radius 1 any image may become any other"
    assert one["robust_suite"].value <= one["robust_few"].value
    assert one["robust"].value <= one["clean"].value


def check_not_collapsed(one: results.Run) -> None:
    assert one["clean"].value >= 0.75 and one["rank"].value >= 4 and one["spread"].value >= 0.02


@pytest.mark.book
def test_live_demo_run(demo_results: Path) -> None:
    live = {row: run(row, 0, demo_results) for row in ("byol", "byorl")}
    check_gap(live["byol"], live["byorl"])
    for one in live.values():
        check_attacks(one)
        check_not_collapsed(one)


def test_recorded_runs(recorded: Path) -> None:
    pairs = list(zip(main_runs(recorded, "byol"), main_runs(recorded, "byorl"), strict=True))
    for byol, byorl in pairs:
        check_gap(byol, byorl)
        for one in (byol, byorl):
            check_attacks(one)
            check_not_collapsed(one)


def test_the_head_matters_on_digits_and_the_code_more(recorded: Path) -> None:
    """Unlike in the paper an adversarial head helps BYOL a good deal; under the same head BYORL's code stays ahead."""
    for byol, byorl in zip(main_runs(recorded, "byol"), main_runs(recorded, "byorl"), strict=True):
        assert byol["robust_1"].low > byol["robust"].high
        assert byorl["robust_1"].low > byol["robust_1"].high, "the intervals touch"


def test_on_digits_clean_accuracies_hardly_differ(recorded: Path) -> None:
    byol, byorl = (sum(r["clean"].value for r in main_runs(recorded, row)) / 3 for row in ("byol", "byorl"))
    assert abs(byorl - byol) < 0.02


def test_the_opening_figure_shows_what_happens_to_all_queries() -> None:
    """One random query of each digit: at the chapter's radius about as many searches fail as among all test images."""
    digits = data.load("digits")
    x, y, known = digits.images("test"), digits.y_test, digits.images("train")
    shown = data.label_subset(y, 10, classes=10, seed=0)
    exp, share = reproduce.declared("byorl", SCALE="demo", RECORDED=True), {}
    for row in ("byol", "byorl"):
        f = exp.load(row, scale="demo", dataset="digits", seed=0).n.encoder
        with torch.no_grad():
            clean, codes = f(x), f(known)
        x_adv = PGD(20)(lambda v, z, f=f: cosine_distance(f(v), z), x, Linf(0.1), clean)  # type: ignore[misc]
        for name, images in (("clean", x), ("attacked", x_adv)):
            with torch.no_grad():
                right = digits.y_train[nearest(f(images), codes)[:, 0]] == y
            share[row, name] = right.float().mean().item()
            assert abs(right[shown].float().mean().item() - share[row, name]) < 0.15, "the images are representative"
    assert min(share["byol", "clean"], share["byorl", "clean"]) > 0.9, "without an attack both work well"
    assert share["byol", "attacked"] < 0.75 and share["byorl", "attacked"] > share["byol", "attacked"] + 0.15


def test_table_4_of_the_paper_has_its_best_clean_accuracy_at_the_weakest_attack() -> None:
    told = {(v.row, v.column.split(" / ")[1]): v.value for v in results.published("gowal2021", table="4")}
    rows = {row for row, _ in told}
    assert max(rows, key=lambda row: told[row, "Clean"]) == "PGD, 5 steps"
    assert min(rows, key=lambda row: told[row, "Robust"]) == "PGD, 5 steps"


def test_few_labels_are_enough_for_some_robustness(recorded: Path) -> None:
    """With a tenth of the labels BYORL keeps more than BYOL with all of them."""
    for byol, byorl in zip(main_runs(recorded, "byol"), main_runs(recorded, "byorl"), strict=True):
        assert all(0 <= byorl[f"robust_{share}"].value <= byorl[f"clean_{share}"].value <= 1 for share in SHARES)
        assert byorl["robust_0.1"].value > byol["robust_1"].value


def test_without_a_predictor_and_a_slow_target_it_collapses(recorded: Path) -> None:
    """With a slow target only the projections draw together; without it they fall, and nothing more is learnt."""
    plain = run("byol", 0, recorded)
    less = {"heads": False, "predictor": False}
    drawn, fallen = run("byol", 0, recorded, **less), run("byol", 0, recorded, **less, base_rate=0.0)
    assert plain["spread_projections"].value > 0.8
    loss = [one.curves["training_byol"]["y"][-1] for one in (fallen, drawn, plain)]
    assert loss[0] < 0.1 * loss[1] and loss[1] < 0.2 * loss[2], "the lower, the worse"
    assert drawn["spread_projections"].value < 0.4 and abs(drawn["clean"].value - plain["clean"].value) < 0.02
    assert fallen["spread_projections"].value < 0.001 and fallen.curves["watched_projections"]["y"][1] < 0.01
    assert fallen["clean"].low < plain["clean_untrained"].value < plain["clean"].low
    assert fallen["spread"].value > plain["spread"].value, "the code looks alive"


def test_the_strength_of_the_views_matters_beyond_one_half(recorded: Path) -> None:
    """A quarter is a few points better for BYORL and as good for BYOL; weaker and stronger views are worse for both."""

    def mean(row: str, changes: dict[str, Any], metric: str) -> float:
        return sum(r[metric].value for r in main_runs(recorded, row, **changes)) / 3

    others = [{"heads": False, "strength": k} for k in (0.0, 0.25, 0.75, 1.0)]
    assert all(r.settings["strength"] == 0.5 for row in ("byol", "byorl") for r in main_runs(recorded, row))
    for metric in ("robust_held_out", "robust"):
        kept = {row: [mean(row, k, metric) for k in ({}, *others)] for row in ("byol", "byorl")}
        half, none, quarter, *stronger = kept["byorl"]
        assert 0 < quarter - half < 0.06 and max(none, *stronger) < half
        assert stronger[-1] < half - 0.1, "strong views and an adversary are too hard a game"
        half, none, quarter, *stronger = kept["byol"]
        assert abs(quarter - half) < 0.02 and max(none, *stronger) < half - 0.05


def test_strong_colours_cost_byorl_its_code(recorded: Path) -> None:
    """On colour digits: BYOL does not mind them; under attack little is left of either with any colours."""

    def tinted(row: str) -> list[results.Run]:
        return [run(row, 0, recorded, "colour-digits", heads=False, colours=k) for k in (0.0, 1.0, 2.0)]

    byol, byorl = tinted("byol"), tinted("byorl")
    assert all(r.settings["strength"] == 0.5 for r in byol + byorl)
    assert byorl[2]["clean"].high < min(r["clean"].low for r in byorl[:2])
    assert byol[2]["clean"].value > max(r["clean"].value for r in byol[:2]) - 0.02
    assert max(r["robust"].value for r in byorl) < 0.1 and max(r["robust"].value for r in byol) < 0.02


def test_published_numbers_are_answered_by_runs_on_photographs_only() -> None:
    values = [v for table in "123456" for v in results.published("gowal2021", table=table)]
    assert len(values) == 92
    behind = [run for v in values if (answer := results.ours(v)) is not None for run in answer.runs]
    assert behind and all(run.scale in ("lite", "full") and run.dataset == "cifar10" for run in behind)


def test_conflicts_of_the_print_are_noted() -> None:
    told = {(v.table, v.row, v.column): v for t in "1346" for v in results.published("gowal2021", table=t)}
    pairs = [
        (("1", "BYORL, linf", "STL-10 / 100% / Robust"), ("6", "BYORL, AT head", "STL-10 / Robust")),
        (("3", "ResNet-34 x2", "CIFAR-10 / Robust"), ("4", "AutoPGD, 40 steps", "CIFAR-10 / Robust")),
    ]
    for first, second in pairs:
        a, b = told[first], told[second]
        assert a.value != b.value
        assert f"{b.value:.2f}" in a.note and f"{a.value:.2f}" in b.note


def test_on_digits_the_headlines_of_the_paper_are_hardly_found(recorded: Path) -> None:
    """UAT-FT is ahead but where labels are fewest, and one step in training leaves half of the robustness or more."""

    def mean(found: list[results.Run], metric: str) -> float:
        return sum(r[metric].value for r in found) / len(found)

    usual = main_runs(recorded, "byorl")
    rival = {share: main_runs(recorded, "uat_ft", share=share) for share in SHARES}
    ahead = [mean(rival[share], "robust") > mean(usual, f"robust_{share}") for share in SHARES]
    assert ahead == [False, True, True, True, True, True]
    weak = main_runs(recorded, "byorl", 5, heads=False, attack_steps=1)
    assert mean(weak, "robust") > 0.5 * mean(usual, "robust") and mean(weak, "clean") > mean(usual, "clean")
    right = [mean(found, "right") for found in rival.values()]
    assert right[0] < 0.5 < min(right[1:])


def on_photographs(folder: Path, row: str, variant: str = "") -> results.Run:
    one = results.load_run("byorl", f"lite-cifar10-{row}-0{variant}", folder=folder)
    assert one["robust"].n == 1_000 and one["robust_radius_1"].low <= 0.1
    assert one["robust_suite_1"].value <= one["clean_1"].value and one["robust_suite"].value <= one["robust_few"].value
    return one


def test_on_photographs_the_effect_is_there(recorded: Path) -> None:
    byol, byorl = (on_photographs(recorded, row) for row in ("byol", "byorl"))
    assert byol.settings == byorl.settings and byol.data["n_train"] == 20_000
    assert byol["clean"].low > byol["clean_untrained"].high, "BYOL has gained"
    assert byol["robust"].value == byol["robust_suite"].value == 0, "a clean head withstands nothing"
    assert byol["robust_radius_1"].value == byorl["robust_radius_1"].value == 0
    assert byorl["robust"].low > 0.15 and byorl["robust_suite"].low > 0.1
    assert abs(byorl["clean"].value - byorl["clean_untrained"].value) < 0.03, "hardly better than random weights"
    assert byorl["robust_1"].low > byol["robust_1"].high and byorl["robust_suite_1"].low > byol["robust_suite_1"].high
    assert byorl["robust_0.1"].low < byorl["robust_1"].value < byorl["robust_0.1"].high, "a tenth of the labels will do"
    assert byorl["robust_0.01"].high < byorl["robust_0.1"].low, "a hundredth will not"
    assert 0.4 < byorl["rank"].value / byol["rank"].value < 0.6
    rank, spread = (byorl.curves[f"watched_{key}"]["y"] for key in ("rank", "spread"))
    assert rank[-1] > 1.3 * rank[0] and 0.6 < spread[-1] / spread[0] < 0.8


def test_with_too_few_steps_both_fail_and_the_loss_does_not_tell(recorded: Path) -> None:
    byol, byorl = (on_photographs(recorded, row, "-steps=390") for row in ("byol", "byorl"))
    assert byol.settings == byorl.settings and byol.data["n_train"] == 5_000
    for one in (byol, byorl):
        assert one["clean"].value < one["clean_untrained"].high, "no better than the encoder before any training"
    assert byorl["clean"].value < byorl["clean_untrained"].low, "worse than that"
    assert byorl.curves["training_byorl"]["y"][-1] < byol.curves["training_byol"]["y"][-1]
    spread = byorl.curves["watched_spread"]["y"]
    assert max(spread[1:]) < 0.5 * spread[0] and byorl["rank"].value < byol["rank"].value


SIZES = (1_000, 4_000, 16_000, 59_000)


def by_images(folder: Path, row: str, size: int) -> list[results.Run]:
    """The two seeds on so many images of MNIST; the first met the suite."""
    changes: list[dict[str, Any]] = [{}, {"suite_shares": ()}]
    return [run(row, seed, folder, "mnist", train_images=size, **more) for seed, more in enumerate(changes)]


def test_more_images_alone_do_not_help_byorl_in_few_steps(recorded: Path) -> None:
    """UAT-FT gains up to 4,000 images and is ahead from there; BYORL is ahead with 1,000 only."""
    runs = {(row, size): by_images(recorded, row, size) for row in ("byol", "byorl", "uat_ft") for size in SIZES}
    for (_, size), found in runs.items():
        for one in found:
            s = one.settings
            assert one.data["n_train"] == s["train_images"] == size and one["robust"].n == one["clean"].n == 2_000
            assert s["epoch_images"] // s["batch_size"] == 921 and s["epochs"] == s["epochs_supervised"] == 1
            assert (s["share"], s["eps"], s["epoch_images"]) == (100, 0.1, 59_000)
    mean = {at: sum(r["robust"].value for r in found) / len(found) for at, found in runs.items()}
    few, many = ([r["robust"].value for r in runs["byorl", size]] for size in (1_000, 59_000))
    assert all(b < a for a, b in zip(few, many, strict=True)), "no gain in either seed"
    assert mean["uat_ft", 4_000] > mean["uat_ft", 1_000] + 0.03
    assert all(abs(mean["uat_ft", size] - mean["uat_ft", 4_000]) < 0.03 for size in SIZES[1:])
    ahead = [mean["uat_ft", size] - mean["byorl", size] for size in SIZES]
    assert ahead[0] < -0.05 and all(0.01 < gap < 0.06 for gap in ahead[1:]), "behind, then slightly ahead"
    for size in SIZES:
        pairs = zip(runs["byol", size], runs["byorl", size], strict=True)
        assert all(byorl["robust"].low > byol["robust"].high for byol, byorl in pairs), "far more robust at every size"
        suite = {row: runs[row, size][0]["robust_suite"] for row in ("byol", "byorl", "uat_ft")}
        assert suite["byol"].high < min(suite["byorl"].low, suite["uat_ft"].low) and suite["byorl"].n == 100


def test_the_paper_changes_width_and_images_at_once() -> None:
    notes = {v.row: v.note for v in results.published("gowal2021", table="text")}
    assert "x2, no further images" in notes["BYORL, l2, 500 labels"]
    further = notes["BYORL, l2, 500 labels, further images"]
    assert "500,000" in further and "x4" in further
    full = at_scale("byorl", "full")
    steps = full["epochs"] * (full["train_images"] // full["batch_size"])
    assert 90 < steps / 921 < 110, "a hundred times as many"
