"""Many runs as one workflow: the plan is checked and priced, a killed workflow goes on, no run is done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from robrep.book.site.plan import Planned, describe, make_plan, write_tables
from robrep.book.site.run import ChapterError

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "book" / "results"


def chapter(path: Path, code: str = "pass", prose: str = "# A chapter") -> Path:
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(prose),
        v4.new_code_cell('SCALE = "smoke"\nSEED = 0\nSTEP = 0.5\nSWEEP = False', metadata={"tags": ["parameters"]}),
        v4.new_code_cell(code),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def entry(**more: Any) -> dict[str, Any]:
    return {"chapters": ["one"], "SCALE": "smoke"} | more


def test_every_combination_once(tmp_path: Path) -> None:
    chapter(tmp_path / "one.ipynb")
    chapter(tmp_path / "two.ipynb")
    plan = make_plan({"runs": [entry(chapters=["one", "two"], SEED=[0, 1], SWEEP=[False, True])]}, tmp_path)
    assert len(plan) == 8
    assert len({planned.key for planned in plan.values()}) == 4  # the two chapters hold the same code
    first = plan["one-smoke-SEED=0-SWEEP=False"]
    assert first.values == {"SCALE": "smoke", "SEED": 0, "SWEEP": False} and first.scale == "smoke"
    assert "two-smoke-SEED=1-SWEEP=True" in plan


def test_the_key_follows_code_and_parameters_but_not_prose(tmp_path: Path) -> None:
    def key(step: float = 0.5, **changed: str) -> str:
        chapter(tmp_path / "one.ipynb", **changed)
        (planned,) = make_plan({"runs": [entry(STEP=step)]}, tmp_path).values()
        return planned.key

    assert key() == key(prose="# Another heading")
    assert len({key(), key(code="1"), key(step=0.25)}) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "runs is None"),
        ({"runs": []}, "expected a list of entries"),
        ({"runs": ["one"]}, r"runs\[0\] is 'one'"),
        ({"runs": [entry(chapters="one")]}, r"runs\[0\]"),
        ({"runs": [entry(chapters=["none"])]}, "no such notebook"),
        ({"runs": [entry(SEDE=1)]}, "one: parameter is 'SEDE', expected one of 'SCALE', 'SEED', 'STEP', 'SWEEP'"),
        ({"runs": [entry(SEED="one")]}, "SEED is 'one'"),
        ({"runs": [entry(SEED=1.5)]}, "SEED is 1.5"),
        ({"runs": [entry(SEED=[0, True])]}, "SEED is True"),
        ({"runs": [entry(SWEEP="perhaps")]}, "SWEEP is 'perhaps', expected yes or no"),
        ({"runs": [entry(SCALE=None)]}, "SCALE is None"),
        ({"runs": [entry(minutes=-1)]}, "minutes is -1"),
        ({"runs": [entry(SEED=[0, 0])]}, "already in the plan"),
        ({"runs": [entry(), entry()]}, r"runs\[1\]: one-smoke is already in the plan"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    chapter(tmp_path / "one.ipynb")
    with pytest.raises(ChapterError, match=message):
        make_plan(config, tmp_path)


def test_cost_comes_from_records_then_from_the_guess(tmp_path: Path) -> None:
    config = {"runs": [{"chapters": ["vae_urkle"], "SCALE": "demo", "SEED": [0, 1], "minutes": 1}]}
    recorded, again = make_plan(config, ROOT / "book").values()
    files = [json.loads(p.read_text()) for p in (RECORDS / "vae_urkle").glob("demo-digits-*-0.json")]
    assert recorded.minutes == pytest.approx(sum(file["minutes"] for file in files)) == again.minutes
    chapter(tmp_path / "one.ipynb")
    (guessed,) = make_plan({"runs": [entry(minutes=7)]}, tmp_path).values()
    (unknown,) = make_plan({"runs": [entry()]}, tmp_path).values()
    assert (guessed.minutes, unknown.minutes) == (7, None)
    text = describe([recorded, guessed, unknown], [recorded.name])
    assert "1 of 3" not in text and "2 of 3 runs to do, 7 min one by one, and 1 of unknown cost" in text


def test_the_plan_that_comes_with_the_book() -> None:
    plan = make_plan(yaml.safe_load((ROOT / "book" / "runs.yaml").read_text()), ROOT / "book")
    assert len(plan) >= 15 and all(planned.minutes for planned in plan.values())


def test_tables_from_records(tmp_path: Path) -> None:
    planned = Planned("vae_urkle-lite", "vae_urkle", {}, "lite", "", None, "")
    write_tables([planned], RECORDS, tmp_path)
    with open(tmp_path / "records.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    record = json.loads((RECORDS / "vae_urkle" / "lite-mnist-at-0.json").read_text())
    main = [r for r in rows if r["row"] == "at" and r["scale"] == "lite" and not r["variant"]]
    (robust,) = [r for r in main if r["metric"] == "robust"]
    assert float(robust["value"]) == record["metrics"]["robust"]["value"]
    with open(tmp_path / "published.csv", newline="") as file:
        numbers = list(csv.DictReader(file))
    assert len(numbers) >= 499
    (answered,) = [number for number in numbers if number["row"] == "AT" and number["published"] == "98.5"]
    assert float(answered["ours"]) == pytest.approx(100 * record["metrics"]["robust"]["value"])


def snakemake(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "-s", str(root / "book" / "Snakefile"), "--cores", "1", *words]


@pytest.mark.slow
def test_a_killed_workflow_goes_on_and_does_no_run_twice(tmp_path: Path) -> None:
    """Three runs; the workflow is killed during the second. Then the third chapter's code changes: one run is made."""
    book = tmp_path / "book"
    (book / "results").mkdir(parents=True)
    (tmp_path / "_config.yml").touch()
    log = tmp_path / "log"
    wait = f"""
import time
from pathlib import Path
log = Path({str(log)!r})
with log.open("a") as file:
    print(f"began {{SEED}}", file=file)
if SEED == 1 and log.read_text().count("began 1") == 1:
    time.sleep(300)
with log.open("a") as file:
    print(f"ended {{SEED}}", file=file)
"""
    chapter(book / "one.ipynb", wait)
    shutil.copy(ROOT / "book" / "Snakefile", book)
    (book / "runs.yaml").write_text(yaml.safe_dump({"results": "records", "runs": [entry(SEED=[0, 1, 2])]}))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    plan = subprocess.run(snakemake(tmp_path, "-n"), env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert "3 of 3 runs to do" in plan.stdout and not log.exists()

    first = subprocess.Popen(
        snakemake(tmp_path), env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and "began 1" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGTERM)
    assert first.wait(60) != 0
    done = {line for line in log.read_text().split("\n") if line.startswith("ended")}
    assert "began 1" in log.read_text() and "ended 1" not in done

    second = subprocess.run(
        snakemake(tmp_path, "--rerun-incomplete"), env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert second.returncode == 0, second.stderr
    lines = log.read_text().split()
    assert sorted(lines[1::2][i] for i in range(len(lines) // 2) if lines[2 * i] == "ended") == ["0", "1", "2"]
    assert log.read_text().count("began 1") == 2
    assert (tmp_path / "_build" / "workflow" / "tables" / "published.csv").is_file()

    again = subprocess.run(snakemake(tmp_path, "-n"), env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "0 of 3 runs to do" in again.stdout and "Nothing to be done" in again.stdout + again.stderr
    chapter(book / "one.ipynb", wait + "\n# changed")
    changed = subprocess.run(snakemake(tmp_path, "-n"), env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert changed.stdout.count("rule run:") == 3 and "Params have changed" in changed.stdout
