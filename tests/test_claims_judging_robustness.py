"""What the chapter on judging robustness claims, read from its records: the live demo run and the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from robrep.book import results
from robrep.evaluation import wilson

ROWS = ("standard", "at", "noisy")
SEEDS = (0, 1, 2)
CHANCE = 0.1


def runs(folder: Path, seed: int = 0) -> dict[str, results.Run]:
    return {
        row: results.load_run("judging_robustness", results.run_name("demo", "digits", row, seed), folder=folder)
        for row in ROWS
    }


def check_claims(run: dict[str, results.Run]) -> None:
    """The standard model falls, adversarial training holds, no suite is milder than its attacks, bounds are bounds."""
    for row in run.values():
        assert row["clean"].value >= 0.9
        stages = [row[f"after_{name}"].value for name in ("fgsm", "pgd_20", "apgd_ce", "apgd_dlr", "square")]
        assert stages == sorted(stages, reverse=True) and row["robust"].value <= stages[0] <= row["clean"].value
        low, _ = wilson(round(row["radius_1"].value * row["radius_1"].n), row["radius_1"].n)
        assert low <= CHANCE, "any image is allowed and some survive: the attack is broken"
        y = row.curves["radius"]["y"]
        assert y == sorted(y, reverse=True)
    assert run["standard"]["robust"].value <= 0.1
    assert run["at"]["robust"].low > run["standard"]["robust"].high + 0.2
    assert run["at"]["after_fgsm"].value > run["at"]["robust"].value + 0.05, "one step flatters"


def check_bounds(noisy: results.Run) -> None:
    """What is proven survives every attack: the certified share is never above the attacked one."""
    sigmas = [name.removeprefix("certified_") for name in noisy.curves if name.startswith("certified_")]
    assert len(sigmas) == 3
    for sigma in sigmas:
        proven, attacked = noisy.curves[f"certified_{sigma}"], noisy.curves[f"attacked_{sigma}"]
        by_radius = {round(x, 6): y for x, y in zip(proven["x"], proven["y"], strict=True)}
        for x, y in zip(attacked["x"], attacked["y"], strict=True):
            assert by_radius[round(x, 6)] <= y
        assert by_radius[0.0] > 0.8 and by_radius[1.0] < 0.2


def test_the_book_trains_nothing_here(demo_results: Path) -> None:
    """The page takes its three classifiers from their records, whose claims the next test checks."""
    assert not results.runs("judging_robustness", folder=demo_results)


@pytest.mark.parametrize("seed", SEEDS)
def test_recorded_demo_runs(root: Path, seed: int) -> None:
    recorded = runs(root / "book" / "results", seed)
    check_claims(recorded)
    check_bounds(recorded["noisy"])
