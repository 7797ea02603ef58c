"""Grading a returned notebook: every state an exercise can be in, the solutions left out, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from robrep.book import grade
from robrep.book.exercises import EXERCISES
from robrep.book.site.run import ChapterError

RIGHT = {
    "distance": "lambda q, z: 2 - 2 * torch.cosine_similarity(q, z)",
    "rate": "lambda k, n, base: base",  # the wrong one
    "target": "lambda xi, theta, tau: ...",
    "pseudo_labels": "undefined_name",
}


def notebook(path: Path, *cells: Any) -> Path:
    start = new_code_cell('SCALE = "demo"', metadata={"tags": ["parameters"]})
    imports = new_code_cell("import torch\nfrom robrep.book.exercises import check")
    nb = new_notebook(cells=[start, imports, new_markdown_cell("# Exercises"), *cells])
    nb.metadata["kernelspec"] = {"name": "some-other-kernel", "display_name": "x"}
    nbformat.write(nb, path)
    return path


@pytest.fixture(scope="module")
def returned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = [new_code_cell(f"answer = {text}\ncheck('byorl.{name}', answer)") for name, text in RIGHT.items()]
    solution = "check('byorl.spread', lambda z: 1 - torch.nn.functional.normalize(z).mean(0).square().sum())"
    cells.append(new_code_cell(solution, metadata={"tags": ["solution", "hide-cell"]}))
    cells.append(new_code_cell("print('✓ byorl.adversary: passed.')"))  # printed by a cell that checks nothing
    again = f"assert SCALE == 'smoke'\ncheck('byorl.distance', {RIGHT['distance']})"
    cells.append(new_code_cell(again))
    return notebook(tmp_path_factory.mktemp("returned") / "one.ipynb", *cells)


def test_every_state(returned: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = returned.read_bytes()
    table = tmp_path / "grades.csv"
    assert grade.main([str(returned), "--csv", str(table)]) == 1
    assert returned.read_bytes() == before, "the returned file is left alone"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["exercise"] for row in rows] == [name for name in EXERCISES if name.startswith("byorl.")]
    states = {row["exercise"].removeprefix("byorl."): row["state"] for row in rows}
    assert states == {
        "distance": "passed",
        "rate": "wrong",
        "target": "empty",
        "pseudo_labels": "error",
        "adversary": "missing",
        "spread": "missing",
    }
    messages = {row["exercise"]: row["message"] for row in rows}
    assert "Hint: " in messages["byorl.rate"] and "not yet" in messages["byorl.rate"]
    assert messages["byorl.pseudo_labels"] == "NameError: name 'undefined_name' is not defined"
    out = capsys.readouterr().out
    assert f"{returned}: 1 of 6 passed\n" in out and "  wrong   byorl.rate" in out


def test_a_cell_that_never_ends_is_an_error(tmp_path: Path) -> None:
    endless = new_code_cell("while True:\n    pass\ncheck('byorl.rate', None)")
    after = new_code_cell("check('byorl.target', None)")
    states = {g.exercise: g.state for g in grade.grade(notebook(tmp_path / "n.ipynb", endless, after), seconds=4)}
    assert (states["byorl.rate"], states["byorl.target"]) == ("error", "empty")


def test_what_is_no_returned_chapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ChapterError, match="no cell checks an exercise"):
        grade.grade(notebook(tmp_path / "none.ipynb", new_code_cell("check('nothing.known', 1)")))
    assert grade.main([str(tmp_path / "absent.ipynb")]) == 2
    assert "there is no such notebook" in capsys.readouterr().err
