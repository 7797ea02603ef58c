"""What the chapter on attacks claims, read from the records behind it: the live demo run and the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from robrep.book import results
from robrep.evaluation import wilson

ROWS = ("standard", "at", "trades")
SEEDS = (0, 1, 2)
CHANCE = 0.1


def runs(folder: Path, seed: int = 0) -> dict[str, results.Run]:
    return {
        row: results.load_run("attacks", results.run_name("demo", "digits", row, seed), folder=folder) for row in ROWS
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


def test_live_demo_run(demo_results: Path) -> None:
    check_claims(runs(demo_results))


@pytest.mark.parametrize("seed", SEEDS)
def test_recorded_demo_runs(root: Path, seed: int) -> None:
    check_claims(runs(root / "book" / "results", seed))
