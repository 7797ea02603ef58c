"""Every exercise of every chapter: its solution passes, a wrong answer does not, and the teachers' page has it.

Solutions, plausible mistakes and the faulty code of bugs stand in the chapters' own tests (``SOLUTIONS``, ``MISTAKES``
and ``GIVEN`` of ``test_exercises_<chapter>.py``); here all of them are judged, and compared with the registry and the
notebooks, so that an exercise that is in none of them is noticed.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from robrep.book.exercises import EXERCISES, Exercise, check, hint

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Answers:
    """What the tests of a chapter's exercises hold, by the exercise's full name."""

    solutions: dict[str, Any] = field(default_factory=dict)
    mistakes: list[tuple[str, Any, str]] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)  # of a bug: the faulty code of the chapter


def gathered() -> Answers:
    """``SOLUTIONS``, ``MISTAKES`` and ``GIVEN`` of ``test_exercises_<chapter>.py``, in which names are short."""
    found = Answers()
    for path in sorted(Path(__file__).parent.glob("test_exercises_*.py")):
        spec = importlib.util.spec_from_file_location(f"gathered_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        chapter = path.stem.removeprefix("test_exercises_")
        found.solutions |= {f"{chapter}.{name}": answer for name, answer in module.SOLUTIONS.items()}
        found.mistakes += [(f"{chapter}.{name}", answer, words) for name, answer, words in module.MISTAKES]
        found.given |= {f"{chapter}.{name}": answer for name, answer in getattr(module, "GIVEN", {}).items()}
    return found


ANSWERS = gathered()


@pytest.mark.parametrize("name", EXERCISES)
def test_solution_passes(name: str, capsys: pytest.CaptureFixture) -> None:
    for seed in (0, 1):
        verdict = check(name, ANSWERS.solutions[name], seed=seed)
        assert verdict and verdict.answered and re.match(rf"[✓✎] {name}: (passed|noted)\.", verdict.message)
        assert capsys.readouterr().out == verdict.message + "\n"  # one line, and the cell shows nothing more
        assert verdict._ipython_display_() is None


@pytest.mark.parametrize(
    ("name", "answer", "words"), ANSWERS.mistakes, ids=[f"{m[0]}-{m[2]}" for m in ANSWERS.mistakes]
)
def test_mistake_gets_the_hint_that_fits(name: str, answer: Any, words: str) -> None:
    """``words`` may name alternatives, divided by |."""
    verdict = check(name, answer)
    assert verdict.state == "wrong" and " Hint: " in verdict.message and "\n" not in verdict.message
    assert any(part in verdict.message for part in words.split("|")), verdict.message


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_without_an_answer_gives_no_hint(name: str) -> None:
    kind = EXERCISES[name].kind
    functions = [lambda *_: None, lambda *_: ...] if callable(ANSWERS.solutions[name]) else []
    for empty in [None, ..., *(["...", " "] if kind == "interpret" else functions)]:
        verdict = check(name, empty)
        assert verdict.state == "empty" and verdict.message == f"… {name}: not answered yet."
    assert (kind == "bug") == (name in ANSWERS.given)
    if kind == "bug":
        verdict = check(name, ANSWERS.given[name])
        assert verdict.state == "empty" and len(verdict.message.split()) > 6 and "Hint" not in verdict.message


def test_hints_open_after_the_first_attempt(capsys: pytest.CaptureFixture) -> None:
    task = Exercise("invented.one", lambda answer: None, ("look twice.",))
    with patch.dict(EXERCISES, {task.name: task}):
        hint(task.name)
        assert "open after your first attempt" in capsys.readouterr().out
        check(task.name, 0)
        hint(task.name)
        assert capsys.readouterr().out.endswith("Hint 1 of 1: look twice.\n")


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_wrong_answers_and_hints(name: str) -> None:
    kind = EXERCISES[name].kind
    assert sum(m[0] == name for m in ANSWERS.mistakes) >= (1 if kind in ("interpret", "bug") else 2)
    assert len(EXERCISES[name].hints) >= (1 if kind == "interpret" else 2)


def test_nothing_is_tested_that_is_no_exercise() -> None:
    assert set(ANSWERS.solutions) == set(EXERCISES)
    assert {m[0] for m in ANSWERS.mistakes} | set(ANSWERS.given) <= set(EXERCISES)


def chapters() -> list[str]:
    """The notebooks of the table of contents, in its order."""
    files = re.findall(r"file: book/(\w+)$", (ROOT / "_toc.yml").read_text(), re.MULTILINE)
    return [name for name in files if (ROOT / "book" / f"{name}.ipynb").is_file()]


@pytest.mark.parametrize("chapter", [name for name in chapters() if any(e.startswith(f"{name}.") for e in EXERCISES)])
def test_a_chapter_asks_each_of_its_exercises_once_and_solves_it(chapter: str) -> None:
    """Reader's cell and solution name the same exercise, and the solution is tagged for the students' build."""
    cells = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    asked: list[str] = []
    solved: list[str] = []
    for cell in cells:
        source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            names = re.findall(r"\{dropdown\} Model answer and rubric \((\w+\.\w+)\)", source)
            assert bool(names) == ("solution" in tags), source[:80]
            assert not names or len(re.findall(r"^- (\d) points?: ", source, re.MULTILINE)) >= 2, source[:80]
        else:
            names = re.findall(r'check\("([\w.]+)"', source)
            assert ("solution" in tags) <= ("hide-cell" in tags)
            for name in set(names) & set(ANSWERS.given) - set(solved) if "solution" not in tags else ():
                assert inspect.getsource(ANSWERS.given[name]) in source, f"{name} is not the chapter's faulty code"
        (solved if "solution" in tags else asked).extend(names)
    assert asked == solved and len(set(asked)) == len(asked)
    assert set(asked) == {name for name in EXERCISES if name.partition(".")[0] == chapter}
    kinds = Counter(EXERCISES[name].kind for name in asked)
    assert 2 <= kinds["warm-up"] <= 3 and min(kinds[kind] for kind in ("design", "interpret", "bug")) == 1, kinds


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
