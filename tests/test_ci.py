"""The workflows of the public repository: what they call exists, and no input of a stranger is pasted into a script."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_there_are_four() -> None:
    assert [path.stem for path in WORKFLOWS] == ["colab", "reproduce", "site", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path: Path) -> None:
    facts = yaml.safe_load(path.read_text())
    assert facts["permissions"] == {"contents": "read"}, "more is given to the one job that needs it"
    assert all("timeout-minutes" in job for job in facts["jobs"].values())
    scripts = "\n".join(step.get("run", "") for step in steps(path))
    assert "${{" not in scripts, "values reach a script through its environment"
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake (\w+)", scripts)) <= targets
    for action in (step["uses"] for step in steps(path) if "uses" in step):
        assert re.fullmatch(r"(actions/[\w-]+@v\d+|docker://[\w/]+:[\d.]+)", action), action


def test_every_push_runs_the_two_commands() -> None:
    facts = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert {"push", "pull_request"} <= set(facts[True])  # YAML reads the key "on" as a truth value
    scripts = [step.get("run") for step in steps(ROOT / ".github" / "workflows" / "tests.yml")]
    assert "make book" in scripts and "make test" in scripts


def test_the_gpu_run_sets_parameters_that_chapters_have() -> None:
    from robrep.book.reproduce import defaults

    scripts = [step.get("run", "") for step in steps(ROOT / ".github" / "workflows" / "reproduce.yml")]
    (script,) = [script for script in scripts if "papermill" in script]
    names = set(re.findall(r" -[pr] ([A-Z]+) ", script))
    assert names == {"SCALE", "DATASET", "SEED"} <= set(defaults(ROOT / "book" / "vae_urkle.ipynb"))


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed (tests.yml runs it)")
def test_actionlint() -> None:
    found = subprocess.run(["actionlint"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
