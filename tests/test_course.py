"""What a teacher hands out: students' notebooks have no solution and lead to themselves; no build leaks one."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from robrep.book.site import __main__ as command
from robrep.book.site import build, chromium, course

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "https://github.com/me/robust/tree/main/student"
IN_COLAB = "https://colab.research.google.com/github/me/robust/blob/main/student/one.ipynb"


def cell(source: str, kind: str = "markdown", **metadata: Any) -> dict[str, Any]:
    outputs = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": "a", "metadata": metadata, "source": [source], **outputs}


CELLS = [
    cell("(one-part)=\n# One\n\nSee [two](two), [a part](one-part), [the list](notes.md) and [out](https://a.org)."),
    cell("**A slide.**", slideshow={"slide_type": "slide"}, tags=["remove-cell"]),
    cell("draw()", "code", slideshow={"slide_type": "slide"}),
    cell("secret()", "code", tags=["solution"]),
    cell("A rubric.", tags=["solution"]),
]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of two notebooks and a page, with a built site that has one deck and one numbered figure."""
    (tmp_path / "_toc.yml").write_text("root: book/notes\nchapters:\n- file: book/one\n- file: book/two\n")
    html = tmp_path / "_build" / "html"
    for folder in (tmp_path / "book", html / "book", html / "slides", html / "_static" / "reveal"):
        folder.mkdir(parents=True)
    (html / "_static" / "mathjax").mkdir()
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    for name, cells in (("one", CELLS), ("two", [cell("# Two")])):
        (tmp_path / "book" / f"{name}.ipynb").write_text(json.dumps(whole | {"cells": cells}))
        (html / "book" / f"{name}.html").write_text("<p>no figure</p>")
    (tmp_path / "book" / "notes.md").write_text("# Notes\n")
    (html / "book" / "notes.html").write_text(
        '<figure id="fig-one"><img src="a.png"><figcaption><p><span class="caption-number">Fig. 1.2 </span>'
        '<span class="caption-text"><strong>It falls</strong> as\nit should.</span></p></figcaption></figure>'
    )
    (html / "slides" / "one.html").write_text('<script src="../_static/reveal/reveal.js"></script><section></section>')
    for name in ("reveal/reveal.js", "mathjax/tex.js", "plotly.min.js"):
        (html / "_static" / name).write_text("1")
    return tmp_path


def test_notebooks_for_students(book: Path) -> None:
    """No solution, rubric or slide; links lead to the students' notebooks; without an address their words stay."""
    whole = (book / "book" / "one.ipynb").read_text()
    found = course.places(book)
    assert found == {name: "one" for name in ("one", "one.ipynb", "one-part")} | {
        "two": "two", "two.ipynb": "two", "notes": "", "notes.md": ""
    }  # fmt: skip
    badge, prose, drawn = json.loads(course.for_students(whole, "one", FOLDER, found))["cells"]
    assert f"]({IN_COLAB})" in badge["source"][0] and "colab-badge" in badge["source"][0]
    two = IN_COLAB.replace("one", "two")
    assert f"See [two]({two}), [a part]({IN_COLAB}), the list and [out](https://a.org)." in "".join(prose["source"])
    assert drawn["source"] == ["draw()"] and drawn["metadata"] == {}
    prose, _ = json.loads(course.for_students(whole, "one", "", found))["cells"]
    assert "See two, a part, the list and [out](https://a.org)." in "".join(prose["source"])
    elsewhere = json.loads(course.for_students(whole, "one", "https://uni.org/course", found))["cells"][0]
    assert elsewhere["source"] == ["[Open this notebook](https://uni.org/course/one.ipynb)"]


def test_the_folder_without_a_browser(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks, decks and a README that says what is not there; what an earlier build left is gone."""
    monkeypatch.setattr(chromium, "executable", lambda: None)
    (book / "_build" / "course").mkdir()
    (book / "_build" / "course" / "old").touch()
    told: list[str] = []
    made = course.build_course(book, book / "_build", FOLDER, told.append)
    assert told == [f"no PDF and no figures: {chromium.MISSING}"]
    assert sorted(path.name for path in made.iterdir()) == ["README.md", "slides", "student", "teacher"]
    assert (made / "teacher" / "one.ipynb").read_bytes() == (book / "book" / "one.ipynb").read_bytes()
    student = (made / "student" / "one.ipynb").read_text()
    assert "secret" not in student and "rubric" not in student and "draw()" in student
    assert (made / "slides" / "one.html").read_text().startswith('<script src="_static/reveal/reveal.js">')
    for name in ("reveal/reveal.js", "mathjax/tex.js", "plotly.min.js"):
        assert (made / "slides" / "_static" / name).is_file()
    readme = (made / "README.md").read_text()
    assert IN_COLAB in readme and chromium.MISSING in readme and "PDF" not in readme
    assert (
        "students' notebooks"
        not in (course.build_course(book, book / "_build", "", told.append) / "README.md").read_text()
    )


def test_numbered_figures(book: Path) -> None:
    (found,) = course.numbered_figures(book, book / "_build" / "html")
    assert (found.name, found.number, found.caption) == ("fig-one", "1.2", "It falls as it should.")


def test_an_address_is_checked(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in [
        (["course", "COURSE_URL=me"], "COURSE_URL is 'me', expected the address of the folder with the students'"),
        (["book", "COURSE_URL=https://a.org"], "COURSE_URL is a setting of the course: it goes with course, not with"),
    ]:
        assert command.main([*words, "--root", str(book)]) == 1
        assert expected in capsys.readouterr().err
    assert course.check_address("https://a.org/b/") == "https://a.org/b" and course.check_address("") == ""


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def text_of(path: Path) -> str:
    """What a file says in one line: a page without its markup, a notebook's cells, anything else as it is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(each["source"]) for each in json.loads(text)["cells"])
    elif path.suffix == ".html":
        text = unescape(re.sub(r"<[^>]*>", "", text))
    return flat(text)


def secrets() -> tuple[set[str], set[str]]:
    """Lines, and names of functions, that stand in solutions and nowhere else in the book."""
    hidden, shown = [], []
    for path in build.pages(ROOT):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            for each in json.loads(text)["cells"]:
                (hidden if "solution" in each["metadata"].get("tags", []) else shown).append("".join(each["source"]))
        else:
            hidden += build.SOLUTION.findall(text)
            shown.append(build.SOLUTION.sub("", text))
    public = flat("\n".join(shown))
    lines = {flat(line).strip() for source in hidden for line in source.splitlines()}
    names = set(re.findall(r"\bdef (\w+)", "\n".join(hidden)))
    return {line for line in lines if len(line) > 20 and line not in public}, {n for n in names if n not in public}


@pytest.mark.slow
def test_no_solution_leaks(tmp_path: Path) -> None:
    """The students' site (pages, downloads, search, decks) and the students' notebooks hold no line of a solution."""
    lines, names = secrets()
    teacher = "".join(text_of(path) for path in build.notebooks(ROOT).values())
    assert len(lines) > 100 and sum(line in teacher for line in lines) > 100, "the search would find them"
    assert build.build_site(ROOT, tmp_path, solutions=False)  # no chapter has run there: it takes no run to build
    course.write_notebooks(ROOT, tmp_path, "")
    files = [path for kind in ("html", "ipynb", "md", "txt") for path in (tmp_path / "html").rglob(f"*.{kind}")]
    files += (tmp_path / "student").glob("*.ipynb")
    assert len(files) > 60
    for path in files:
        text = text_of(path)
        leaked = [line for line in lines if line in text] + [name for name in names if re.search(rf"\b{name}\b", text)]
        assert not leaked, f"{path.relative_to(tmp_path)}: {leaked[:3]}"
    index = (tmp_path / "html" / "searchindex.js").read_text(encoding="utf-8")
    assert not [name for name in names if name[:-3] in index], "the search has a solution's words"


@pytest.mark.slow
@pytest.mark.skipif(chromium.executable() is None, reason=chromium.MISSING)
def test_figures_are_drawn(site: Path, tmp_path: Path) -> None:
    """A plotly figure and a drawing: an SVG, a PNG of three dots for each of its pixels, a line of the captions."""
    found = course.numbered_figures(ROOT, site)
    assert len(found) > 60 and len({figure.name for figure in found}) == len(found)
    chosen = [figure for figure in found if figure.name in ("fig-attacks-steps", "fig-byorl-networks")]
    with chromium.chromium() as browser:
        course.draw_figures(browser, chosen, tmp_path / "figures", tell=lambda _: None)
    for figure in chosen:
        assert "<svg" in (tmp_path / "figures" / f"{figure.name}.svg").read_text(encoding="utf-8")[:200]
    picture = (tmp_path / "figures" / "fig-attacks-steps.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and int.from_bytes(picture[16:20], "big") == course.WIDTH * course.DOTS
    with (tmp_path / "figures" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [figure.name for figure in chosen]
    assert all(row["licence"] == "CC BY 4.0" and row["number"] and row["caption"] for row in rows)
