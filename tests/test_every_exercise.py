"""Every exercise of every chapter: its solution passes, a wrong answer does not, and the teachers' page has it.

Solutions and plausible mistakes stand in the chapters' own tests (``SOLUTIONS`` and ``MISTAKES`` of
``test_exercises*.py``); here the registry is gone through, so that an exercise that is in none of them is noticed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from robrep.book.exercises import EXERCISES, check

ROOT = Path(__file__).resolve().parent.parent


def gathered() -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Exercise -> its solution, and exercise -> its wrong answers, from the chapters' tests."""
    solutions: dict[str, Any] = {}
    mistakes: dict[str, list[Any]] = {}
    for path in sorted(Path(__file__).parent.glob("test_exercises*.py")):
        spec = importlib.util.spec_from_file_location(f"gathered_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        chapter = re.search(r'check\(f?"(\w+)[."]|f"(\w+)\.\{name\}"', path.read_text(encoding="utf-8"))
        assert chapter, f"{path.name} checks no exercise"
        prefix = chapter[1] or chapter[2]

        def full(name: str, prefix: str = prefix) -> str:
            return name if "." in name else f"{prefix}.{name}"

        solutions |= {full(name): answer for name, answer in module.SOLUTIONS.items()}
        for name, answer, *_ in module.MISTAKES:
            mistakes.setdefault(full(name), []).append(answer)
    return solutions, mistakes


SOLUTIONS, MISTAKES = gathered()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_check_knows_the_solution_from_a_wrong_answer(name: str) -> None:
    assert name in SOLUTIONS, f"no test gives a solution of {name}"
    assert MISTAKES.get(name), f"no test gives a wrong answer to {name}"
    assert check(name, SOLUTIONS[name])
    verdict = check(name, MISTAKES[name][0])
    assert not verdict and verdict.answered and "Hint: " in verdict.message


def test_nothing_is_tested_that_is_no_exercise() -> None:
    assert set(SOLUTIONS) == set(EXERCISES) == set(MISTAKES)


def chapters() -> list[str]:
    """The notebooks of the table of contents, in its order."""
    files = re.findall(r"file: book/(\w+)$", (ROOT / "_toc.yml").read_text(), re.MULTILINE)
    return [name for name in files if (ROOT / "book" / f"{name}.ipynb").is_file()]


@pytest.mark.parametrize("chapter", chapters())
def test_a_chapter_asks_each_of_its_exercises_once_and_solves_it(chapter: str) -> None:
    """Reader's cell and folded solution call the same check, and the solution is tagged for the students' build."""
    cells = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text())["cells"]
    asked: list[str] = []
    solved: list[str] = []
    for cell in cells:
        names = re.findall(r'check\("([\w.]+)"', "".join(cell["source"])) if cell["cell_type"] == "code" else []
        tags = cell["metadata"].get("tags", [])
        assert ("solution" in tags) <= ("hide-cell" in tags)
        (solved if "solution" in tags else asked).extend(names)
    assert asked == solved and len(set(asked)) == len(asked)
    assert set(asked) == {name for name in EXERCISES if name.partition(".")[0] == chapter}


# --- the page for teachers --------------------------------------------------------------------------------------------

PAGE = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w]+\.[\w]+)` \| (.+) \| (\d+) \|$", re.MULTILINE)


def test_the_table_of_exercises_is_the_registry() -> None:
    rows = ROW.findall(PAGE)
    assert sorted(name for name, _, _ in rows) == sorted(EXERCISES), "the table of book/teaching.md"
    assert all(5 <= int(minutes) <= 90 for *_, minutes in rows)
    order = [name.partition(".")[0] for name, _, _ in rows]
    assert [c for c in chapters() if c in order] == [c for c in dict.fromkeys(order) if c in chapters()]


def test_the_totals_are_those_of_the_table() -> None:
    """The line before each chapter's table, and the sum in the text."""
    rows = ROW.findall(PAGE)
    blocks = re.findall(r"^\*\*.+\*\*: (\d+) exercises, (\d+) minutes\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(blocks) == len({name.partition(".")[0] for name, *_ in rows})
    for count, total, table in blocks:
        minutes = [int(m) for *_, m in ROW.findall(table)]
        assert (int(count), int(total)) == (len(minutes), sum(minutes)), table
    said = re.search(r"\*\*(\d+) exercises\*\*, about \*\*(\d+) hours\*\*", PAGE)
    assert said and int(said[1]) == len(EXERCISES) and abs(int(said[2]) - sum(int(m) for *_, m in rows) / 60) <= 0.5


def test_the_page_is_among_those_that_help_to_use_the_book() -> None:
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    using = next(part for part in parts if part["caption"] == "Using the book")
    assert {"file": "book/teaching"} in using["chapters"]
