"""The command line that runs a chapter's experiment without its pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from robrep.book import reproduce, results


def notebook(path: Path, *cells: tuple[str, list[str]]) -> Path:
    """Write a notebook of code cells, each (source, tags)."""
    code = [{"cell_type": "code", "metadata": {"tags": tags}, "source": source} for source, tags in cells]
    path.write_text(json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


PARAMETERS = ('SCALE = "demo"\nSEED = 0\nRATE = 0.5\nSWEEP = False\nSETTINGS = {}\n', ["parameters"])


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    return notebook(
        tmp_path / "chapter.ipynb",
        PARAMETERS,
        ("result = (SCALE, SEED, RATE, SWEEP, SETTINGS)", ["reproduce"]),
        ("result = 'a cell that is not part of the experiment'", []),
    )


def test_only_marked_cells_run_with_the_given_parameters(chapter: Path) -> None:
    assert reproduce.reproduce(str(chapter), SEED=3)["result"] == ("demo", 3, 0.5, False, {})


def test_the_command_line_sets_parameters_by_their_type(chapter: Path) -> None:
    known = reproduce.defaults(chapter)
    texts = ["SCALE=lite", "SEED=4", "RATE=1", "SWEEP=yes", "SETTINGS={'epochs': 2}"]
    values = reproduce.parse(texts, known)
    assert values == {"SCALE": "lite", "SEED": 4, "RATE": 1.0, "SWEEP": True, "SETTINGS": {"epochs": 2}}
    assert isinstance(values["RATE"], float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SCALA=lite", "did you mean 'SCALE'"),
        ("SCALE", "expected NAME=value"),
        ("SCALE=big", "SCALE is 'big', expected one of 'smoke'"),
        ("SEED=one", "SEED is 'one', expected an integer of at least 0"),
        ("SEED=-1", "SEED is '-1', expected an integer of at least 0"),
        ("SEED=1.5", "SEED is '1.5', expected an integer of at least 0"),
        ("RATE=fast", "RATE is 'fast', expected a finite number"),
        ("RATE=1e999", "RATE is '1e999', expected a finite number"),
        ("SWEEP=perhaps", "SWEEP is 'perhaps', expected yes or no"),
        ("SETTINGS={", "SETTINGS is '{', expected a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(chapter: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reproduce.parse([text], reproduce.defaults(chapter))
    assert reproduce.main([str(chapter), text]) == 2


def test_an_unknown_parameter_is_refused_before_anything_runs(chapter: Path) -> None:
    with pytest.raises(ValueError, match="parameter is 'SED'"):
        reproduce.reproduce(str(chapter), SED=1)


def test_a_notebook_that_is_no_chapter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the path of a notebook"):
        reproduce.find_chapter(str(tmp_path / "none.ipynb"))
    with pytest.raises(ValueError, match="0 cells tagged 'parameters'"):
        reproduce.defaults(notebook(tmp_path / "a.ipynb", ("x = 1", [])))
    with pytest.raises(ValueError, match="no cell tagged 'reproduce'"):
        reproduce.reproduce(str(notebook(tmp_path / "b.ipynb", PARAMETERS)))


def test_an_error_names_the_cell_and_shows_its_line(tmp_path: Path) -> None:
    path = notebook(tmp_path / "bad.ipynb", PARAMETERS, ("a = 1\nb = a / 0", ["reproduce"]))
    line = [sys.executable, "-m", "robrep.book.reproduce", str(path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "<bad.ipynb, cell 1>" in done.stderr and "b = a / 0" in done.stderr and "ZeroDivisionError" in done.stderr


def test_first_steps_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path))
    assert reproduce.main(["vae_urkle", "SCALE=smoke", "ROWS=vae_urkle", "STEPS=2", "SETTINGS={'epochs_vae': 3}"]) == 0
    (run,) = results.runs("vae_urkle", row="first_steps", folder=tmp_path)
    assert (run.variant, run.scale, run.settings["epochs_vae"]) == ("vae_urkle-epochs_vae=3", "smoke", 3)
    assert len(run.curves["loss"]["y"]) == 2 and run["steps"].value == 3 * (1_097 // 256)
    assert run["hours"].value == pytest.approx(run["seconds"].value * run["steps"].value / 3600)
    assert run["peak"].value >= run["before"].value > 0
    assert "2 of 12 steps" in capsys.readouterr().out
    shown = results.first_steps_table("vae_urkle", {"vae": "VAE", "vae_urkle": "VAE + Urkle"}, scale="smoke")
    assert len(shown) == 1 and shown.rows[0][3] == "32-true"
    assert shown.rows[0][:2] == ["VAE + Urkle, epochs_vae = 3", "2 of 12"]
    with pytest.raises(ValueError, match="no first steps at scale full"):
        results.first_steps_table("vae_urkle", {"vae_urkle": "VAE + Urkle"})
    assert list(results.runs("vae_urkle", row="vae_urkle", scale="smoke", folder=tmp_path)) == []
    for rows in ({}, {"ROWS": "vae,vae_urkle"}):
        with pytest.raises(ValueError, match="ROWS is .*, expected the one row"):
            reproduce.try_out("vae_urkle", 1, SCALE="smoke", **rows)


def test_first_steps_of_a_chapter_that_trains_nothing(tmp_path: Path) -> None:
    path = notebook(tmp_path / "idle.ipynb", ('ROWS = ""', ["parameters"]), ("x = 1", ["reproduce"]))
    with pytest.raises(ValueError, match="no step was made"):
        reproduce.try_out(str(path), 1, ROWS="idle")


def test_the_book_has_its_chapters(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "book")
    assert reproduce.find_chapter("vae_urkle") == root / "book" / "vae_urkle.ipynb"
    with pytest.raises(ValueError, match="chapter is 'vae_urcle'.*did you mean 'vae_urkle'"):
        reproduce.find_chapter("vae_urcle")
