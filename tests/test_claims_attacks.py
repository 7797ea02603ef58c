"""What the chapter on attacks claims, read from the records behind it: the live demo run and the committed runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pytest

from robrep.book import results
from robrep.evaluation import wilson

ROWS = ("standard", "at", "trades")
SEEDS = (0, 1, 2)
CHANCE = 0.1


def runs(folder: Path, seed: int = 0, rows: Sequence[str] = ROWS) -> dict[str, results.Run]:
    return {
        row: results.load_run("attacks", results.run_name("demo", "digits", row, seed), folder=folder) for row in rows
    }


def check_claims(run: dict[str, results.Run]) -> None:
    """The standard model falls, AT and TRADES hold, no suite is milder than its attacks."""
    for row in run.values():
        assert row["clean"].value >= 0.9
        stages = [row[f"after_{name}"].value for name in ("fgsm", "pgd_20", "apgd_ce", "apgd_dlr", "square")]
        assert stages == sorted(stages, reverse=True) and row["robust"].value <= stages[0] <= row["clean"].value
        low, _ = wilson(round(row["radius_1"].value * row["radius_1"].n), row["radius_1"].n)
        assert low <= CHANCE, "any image is allowed and some survive: the attack is broken"
        y = row.curves["radius"]["y"]
        assert y == sorted(y, reverse=True)
    assert run["standard"]["robust"].value <= 0.1
    for row in ("at", "trades"):
        assert run[row]["robust"].low > run["standard"]["robust"].high + 0.2
    assert run["at"]["after_fgsm"].value > run["at"]["robust"].value + 0.05, "one step flatters"


def test_live_demo_run(root: Path, demo_results: Path) -> None:
    """Standard and AT are trained where the book is built; the page takes TRADES from its record."""
    check_claims(runs(root / "book" / "results", rows=["trades"]) | runs(demo_results, rows=["standard", "at"]))


def test_the_weight_of_trades_matters_more_than_the_method(root: Path) -> None:
    """Robust accuracy rises with the weight, then falls; clean accuracy falls. All recorded, means over three seeds."""
    folder = root / "book" / "results"

    def of(row: str, metric: str, variant: str = "") -> float:
        names = [results.run_name("demo", "digits", row, seed, variant) for seed in SEEDS]
        return mean(results.load_run("attacks", name, folder=folder)[metric].value for name in names)

    variants = {0.1: "beta_trades=0.1", 1.0: "beta_trades=1.0", 6.0: "", 20.0: "beta_trades=20.0"}
    clean, robust = ({b: of("trades", metric, v) for b, v in variants.items()} for metric in ("clean", "robust"))
    assert clean[0.1] > clean[20.0] + 0.05
    best = max(robust, key=robust.__getitem__)
    assert best in (1.0, 6.0) and robust[best] > max(robust[0.1], robust[20.0]) + 0.1
    assert abs(of("at", "robust") - robust[best]) < robust[best] - max(robust[0.1], robust[20.0])


@pytest.mark.parametrize("seed", SEEDS)
def test_recorded_demo_runs(root: Path, seed: int) -> None:
    check_claims(runs(root / "book" / "results", seed))
