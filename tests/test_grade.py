"""Grading a class: every state an exercise can be in, and notebooks that cheat, hang, die or are none."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_every_exercise import ANSWERS
from torch import Tensor, nn

from robrep.book import grade
from robrep.book.exercises import EXERCISES
from robrep.book.grade.__main__ import main
from robrep.book.grade.confine import not_enforced
from robrep.book.grade.remote import Remote, leaves, pack, serve, unpack
from robrep.book.site.run import ChapterError
from robrep.gaussians import Gaussian

BYORL = [name.removeprefix("byorl.") for name in EXERCISES if name.startswith("byorl.")]
RIGHT = {
    "memory": "lambda K, base: (1 - (1 - base) * (torch.arange(1, K + 1) * 90 / K).deg2rad().cos() ** 2).prod()",
    "pseudo_labels": "lambda logits, y, labelled: logits.argmax(1).index_put((labelled,), y[labelled])",
}


def notebook(path: Path, *sources: Any) -> Path:
    start = new_code_cell('SCALE = "demo"', metadata={"tags": ["parameters"]})
    imports = new_code_cell("import torch\nfrom robrep.book.exercises import check")
    cells = [
        new_code_cell(textwrap.dedent(source).strip()) if isinstance(source, str) else source for source in sources
    ]
    nb = new_notebook(cells=[start, imports, new_markdown_cell("# Exercises"), *cells])
    nb.metadata["kernelspec"] = {"name": "some-other-kernel", "display_name": "x"}
    nbformat.write(nb, path)
    return path


def states(path: Path, **limits: Any) -> dict[str, str]:
    return {g.exercise.removeprefix("byorl."): g.state for g in grade.grade(path, **limits)}


def expected(**found: str) -> dict[str, str]:
    return {name: found.get(name, "missing") for name in BYORL}


CLASS: dict[str, tuple[list[Any], dict[str, str]]] = {
    "right": (
        [
            *(f"check('byorl.{name}', {text})" for name, text in RIGHT.items()),
            f"check('byorl.read_few_steps', {'they differ ' * 8!r})",
        ],
        {"memory": "passed", "pseudo_labels": "passed", "read_few_steps": "noted"},
    ),
    "every-state": (
        [
            "assert SCALE == 'smoke'",
            "check('byorl.memory', lambda K, base: base**K)",  # the wrong one
            f"check('byorl.pseudo_labels', {RIGHT['pseudo_labels']})",
            "def answer(*given): ...\ncheck('byorl.meter', answer)",
            "check('byorl.best_epoch', undefined_name)",
            new_code_cell(
                f"check('byorl.read_few_steps', {'they differ ' * 8!r})",
                metadata={"tags": ["solution", "hide-cell"]},
            ),
        ],
        {"memory": "wrong", "pseudo_labels": "passed", "meter": "empty", "best_epoch": "error"},
    ),
    "other-ways-to-ask": (
        [
            f"check(answer={RIGHT['memory']}, name='byorl.memory')",
            "from robrep.book import exercises\nimport robrep.book.exercises.core as core",
            f"for name, answer in {{'byorl.pseudo_labels': {RIGHT['pseudo_labels']}}}.items():\n"
            "    exercises.check(name, answer)",
            "core.check('byorl.meter', lambda a, b: a.sum())",
        ],
        {"memory": "passed", "pseudo_labels": "passed", "meter": "wrong"},
    ),
    "cheats-by-printing": (
        [
            "print('✓ byorl.memory: passed.')  # check('byorl.memory', 0)",
            "check('byorl.pseudo_labels', lambda logits, y, labelled: y)",
        ],
        {"pseudo_labels": "wrong"},
    ),
    "cheats-by-redefining": (
        [
            "def check(name, answer):\n    print(f'✓ {name}: passed.')\n    return True",
            "check('byorl.memory', lambda K, base: K)",
        ],
        {},
    ),
    "cheats-by-editing": (
        [
            """
            import dataclasses
            import robrep.book.exercises.core as core
            easy = dataclasses.replace(core.EXERCISES["byorl.memory"], check=lambda answer: None)
            core.EXERCISES["byorl.memory"] = easy
            core.close = torch.allclose = lambda *given, **more: True
            core.compare = lambda *given: None
            """,
            "check('byorl.memory', lambda K, base: base)",
            """
            def within(logits, y, labelled):
                import robrep.book.exercises.byorl as here
                here.compare = lambda *given: None
                return y

            check("byorl.pseudo_labels", within)
            """,
            "from pathlib import Path\nPath(core.__file__).write_text('')",
        ],
        {"memory": "wrong", "pseudo_labels": "wrong"},
    ),
    "hangs": (
        [
            "while True:\n    pass\ncheck('byorl.meter', None)",
            f"check('byorl.memory', {RIGHT['memory']})",
            "import time\nseen = []\ndef slow(*given):\n    seen.append(1)\n    time.sleep(60 * (len(seen) > 1))\n",
            "check('byorl.pseudo_labels', slow)",
        ],
        {"meter": "error", "memory": "passed", "pseudo_labels": "error"},
    ),
    "dies": (
        [f"check('byorl.memory', {RIGHT['memory']})", "import os\nos._exit(1)", "check('byorl.pseudo_labels', 1)"],
        {"memory": "passed", "pseudo_labels": "error"},
    ),
    "is-greedy": (
        [
            """
            try:
                held = torch.ones(2**34, dtype=torch.uint8)
            except RuntimeError:
                held = None
            """,
            """
            import socket
            from pathlib import Path

            def connect():
                socket.create_connection(("127.0.0.1", 9), timeout=2)

            def look_up():
                socket.gethostbyname("example.org")

            def write():
                Path(torch.__file__).with_name("mine.txt").write_text("")

            failed = []
            for tried in (connect, look_up, write):
                try:
                    tried()
                except OSError as error:
                    failed.append(str(error).lower())
            Path("mine.txt").write_text("in the scratch folder")
            assert len(failed) == 3 and "refused" not in failed[0] and held is None
            """,
            f"assert len(failed) == 3 and Path('mine.txt').exists()\ncheck('byorl.memory', {RIGHT['memory']})",
        ],
        {"memory": "passed"},
    ),
}


@pytest.mark.parametrize("name", CLASS)
def test_a_class(tmp_path: Path, name: str) -> None:
    if name in ("is-greedy", "cheats-by-editing") and not_enforced():
        pytest.skip(f"not enforced on this machine: {not_enforced()}")
    cells, want = CLASS[name]
    returned = notebook(tmp_path / f"{name}.ipynb", *cells)
    before = returned.read_bytes()
    assert states(returned, seconds=20 if name == "hangs" else grade.CELL_SECONDS) == expected(**want)
    assert returned.read_bytes() == before, "the returned file is left alone"
    assert sorted(path.name for path in tmp_path.iterdir()) == [returned.name], "nothing is written beside it"


def test_the_class_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What is not a notebook is marked as such; the others are graded, in one table and a page each."""
    (tmp_path / "latin.ipynb").write_bytes(json.dumps({"cells": "caf\xe9"}, ensure_ascii=False).encode("latin-1"))
    (tmp_path / "text.ipynb").write_text("Dear teacher,")
    notebook(tmp_path / "other.ipynb", "check('nothing.known', 1)")
    notebook(tmp_path / "ada.ipynb", *CLASS["every-state"][0])
    table, names = tmp_path / "grades.csv", ("latin", "text", "absent", "other", "ada")
    given = [str(tmp_path / f"{name}.ipynb") for name in names]
    assert main([*given, "--csv", str(table), "--feedback", str(tmp_path / "pages")]) == 2
    out, err = capsys.readouterr()
    for said in ("not UTF-8", "not a notebook", "there is no such notebook", "no cell checks an exercise"):
        assert said in err
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["state"] for row in rows[:4]] == ["not run"] * 4
    messages = {row["exercise"]: row["message"] for row in rows[4:]}
    assert list(messages) == [f"byorl.{name}" for name in BYORL]
    assert "Hint: " in messages["byorl.memory"] and "not yet" in messages["byorl.memory"]
    assert messages["byorl.best_epoch"] == "NameError: name 'undefined_name' is not defined"
    assert "ada.ipynb: 1 of 5 passed\n" in out and "  wrong   byorl.memory" in out
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["ada.html"]
    page = (tmp_path / "pages" / "ada.html").read_text()
    assert "1 of 5 exercises passed" in page and "byorl.memory</td><td>wrong" in page and "<script" not in page
    with pytest.raises(ChapterError, match="no cell checks an exercise"):
        grade.grade(tmp_path / "other.ipynb")


def here(name: str, answer: Any) -> Remote:
    """An answer "in the kernel", which is this process."""
    from robrep.book.grade import remote

    remote._ANSWERS[name] = answer
    return Remote(name, lambda expression: eval(expression, {"__import__": __import__}))  # as the kernel evaluates it


@pytest.mark.parametrize("chapter", sorted({name.split(".")[0] for name in ANSWERS.solutions}))
def test_a_check_says_the_same_of_an_answer_in_another_process(chapter: str) -> None:
    """Solutions and wrong answers, gradients and all."""
    from robrep.book.exercises import check

    wrong = [(name, answer) for name, answer, _ in ANSWERS.mistakes]
    for name, answer in [*ANSWERS.solutions.items(), *ANSWERS.given.items(), *wrong]:
        if name.startswith(f"{chapter}.") and callable(answer):
            near, far = check(name, answer, seed=1), check(name, here(name, answer), seed=1)
            assert near == far, name


def test_values_come_back_as_they_were() -> None:
    for v in (None, True, 3, -2.5, float("inf"), "text", [1, (2, None)], {"a": [torch.arange(3)]}, torch.zeros(0, 2)):
        again = unpack(json.loads(json.dumps(pack(v))))
        assert str(again) == str(v) and type(again) is type(v)
    assert unpack(pack(...)) is ... and type(unpack(pack(object()))).__name__ == "object"
    for dtype in (torch.bfloat16, torch.int64, torch.bool, torch.float64):
        t = torch.tensor([[1, 0], [2, 3]]).to(dtype)
        assert torch.equal(unpack(pack(t)), t) and unpack(pack(t)).dtype == dtype
    p = unpack(pack(Gaussian(torch.zeros(2, 3), torch.ones(2, 3))))
    assert isinstance(p, Gaussian) and p.scale.sum() == 6
    for lie in ([1], {}, {"tensor": "", "shape": [10**9], "dtype": "torch.int64"}, {"code": "import os"}):
        with pytest.raises(ValueError, match="a reply holds"):
            unpack(lie)


def test_gradients_come_back() -> None:
    linear, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def answer(m: nn.Module, x_: Tensor) -> Tensor:
        return (m(x_) ** 2).sum(1)

    weight = torch.randn(4, dtype=torch.float64)
    ends = list(leaves((linear, x)))
    got = torch.autograd.grad((here("far", answer)(linear, x) * weight).sum(), ends)
    want = torch.autograd.grad((answer(linear, x) * weight).sum(), ends)
    assert len(ends) == 3 and all(torch.allclose(a, b) for a, b in zip(got, want, strict=True))


def test_randomness_and_errors_are_as_if_here() -> None:
    torch.manual_seed(3)
    drawn = here("far", lambda n: torch.rand(n))(2), torch.rand(2)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(drawn, (torch.rand(2), torch.rand(2)), strict=True))
    with pytest.raises(Exception, match="by zero") as error:
        here("far", lambda n: 1 / n)(0)
    assert type(error.value).__name__ == "ZeroDivisionError"
    assert serve.__module__ == "robrep.book.grade.remote"
