"""The queue of runs and the ledger of published numbers: what is done, what the rest costs, what comes next."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest

from robrep.book import costs, figures, queue, results
from robrep.book.experiment import at_scale

ROOT = Path(__file__).resolve().parent.parent
MEASURED = json.loads((ROOT / "book" / "results" / "benchmark-gpu.json").read_text(encoding="utf-8"))["rows"]


def measured(chapter: str, row: str) -> dict:
    (found,) = [m for m in MEASURED if (m["chapter"], m["row"], m["scale"]) == (chapter, row, "full")]
    return found


def test_hours_are_steps_times_the_seconds_of_a_captured_step() -> None:
    seconds = measured("vae_urkle", "vae_urkle")["captured"]["seconds"]["median"]
    steps = at_scale("vae_urkle", "full")["epochs_vae"] * 469  # 60,000 images in batches of 128
    assert costs.gpu_hours("vae_urkle", "vae_urkle", "mnist", {}) == pytest.approx(steps * seconds / 3600)
    half = costs.gpu_hours("vae_urkle", "vae_urkle", "mnist", {"epochs_vae": 50})
    assert half == pytest.approx(steps * seconds / 7200)


def test_other_attack_steps_are_scaled_by_passes() -> None:
    found = measured("byorl", "byorl")  # with 4 attack steps
    assert found["changes"] == {"attack_steps": 4}
    forward, attack, trained = (found["passes"][kind] for kind in ("forward", "attack", "trained"))
    four = costs.gpu_hours("byorl", "byorl", "cifar10", {"attack_steps": 4})
    twenty = costs.gpu_hours("byorl", "byorl", "cifar10", {"attack_steps": 20})
    assert four and twenty
    rest = forward + 3 * trained
    assert twenty / four == pytest.approx((rest + 2 * 5 * attack) / (rest + 2 * attack))
    assert costs.gpu_hours("byorl", "byorl", "cifar10", {}) > twenty  # the table's 40


@pytest.mark.parametrize(
    ("chapter", "row", "dataset", "changes"),
    [
        ("byorl", "byorl", "cifar10", {"width": 4}),  # another network
        ("simclr_urkle", "standard", "cifar10", {}),  # a row without a measured step
        ("vae_urkle", "vae_urkle", "fashion", {}),  # another data set
    ],
)
def test_what_was_not_measured_has_no_cost(chapter: str, row: str, dataset: str, changes: dict) -> None:
    assert costs.gpu_hours(chapter, row, dataset, changes) is None


def test_the_ledger_counts_every_number_once() -> None:
    lines = costs.ledger(results.papers())
    whole = results.count(v for paper in results.papers() for v in results.published(paper))
    for name in ("published", "full", "lite", "spread", "compared", "within", "commands"):
        assert sum(getattr(line.count, name) for line in lines) == getattr(whole, name)
    assert all(0 <= line.measured <= line.trainings and (line.hours > 0) == (line.measured > 0) for line in lines)
    assert any(line.measured for line in lines)
    fig = figures.ledger_bars({f"{line.paper} {line.table}": line.count for line in lines}, alt="counts")
    assert sum(sum(bar.x) for bar in fig.data) == whole.published
    assert all(n >= 0 for bar in fig.data for n in bar.x)


def test_every_item_of_the_queue_can_be_run() -> None:
    items = queue.read_queue(ROOT / "book" / "runs.yaml")
    assert len({item.line for item in items}) == len(items) >= 10
    assert sum(item.minutes is not None for item in items) >= len(items) - 1
    assert not any(item.minutes is not None and item.minutes <= 0 for item in items)


def test_next_is_the_first_that_is_not_done_and_fits() -> None:
    def item(name: str, minutes: float | None, done: bool = False) -> queue.Item:
        return queue.Item(name, "why", minutes, done)

    items = [item("a", 5, done=True), item("b", None), item("c", 60), item("d", 9), item("e", 8)]
    found = [queue.next_item(items, minutes) for minutes in (math.inf, 100, 10, 1)]
    assert [i and i.line for i in found] == ["b", "c", "d", None]


def test_an_item_is_done_when_all_its_rows_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "results"))
    plan = tmp_path / "plan.yaml"
    words = "byorl SCALE=smoke ROWS=byol,byorl SEED=3 "
    words += "SETTINGS='{\"epochs\": 2}'"
    plan.write_text(json.dumps({"queue": [{"run": words, "why": "a test", "minutes": 2}]}), encoding="utf-8")
    for row, done in (("byol", False), ("byorl", True)):
        results.record(
            "byorl", f"smoke-digits-{row}-3-epochs=2", scale="smoke", row=row, variant="epochs=2", seed=3,
            settings=at_scale("byorl", "smoke") | {"epochs": 2}, metrics={"clean": {"value": 1.0, "unit": "%"}},
            data={"name": "digits", "split": "test", "n_train": 1, "n_test": 1, "note": "", "fingerprint": "0" * 12},
            minutes=1.0,
        )  # fmt: skip
        (item,) = queue.read_queue(plan)
        assert item.done == done and item.minutes == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queue: [{run: byorl}]", "expected run, why and perhaps minutes"),
        ("queue: [{run: byorl EPOCHS=3, why: x}]", "parameter is 'EPOCHS'"),
        ("queue: [{run: nothing SCALE=lite, why: x}]", "chapter is 'nothing'"),
    ],
)
def test_a_queue_that_cannot_be_run_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        queue.read_queue(tmp_path / "plan.yaml")


def test_the_command_lists_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("queue: [{run: byorl SCALE=full ROWS=byorl, why: because}]", encoding="utf-8")
    assert queue.main(["--plan", str(plan)]) == 0
    assert "byorl SCALE=full ROWS=byorl" in capsys.readouterr().out
    with patch("subprocess.run") as run:
        run.return_value.returncode = 7
        assert queue.main(["--plan", str(plan), "--run", "--minutes", "1"]) == 0 and not run.called
        assert "nothing is left that takes at most 1 minutes" in capsys.readouterr().out
        assert queue.main(["--plan", str(plan), "--run"]) == 7
    assert run.call_args.args[0][1:] == ["-m", "robrep.book.reproduce", "byorl", "SCALE=full", "ROWS=byorl"]
