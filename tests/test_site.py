"""The runner refuses, reports, skips and runs again as it should; the renderer writes what the page script reads."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from robrep.book.site import __main__ as command
from robrep.book.site import build, run
from robrep.book.site.plotly_renderer import MIME, PlotlyRenderer, figure_html
from robrep.book.site.run import ChapterError, run_chapter

PARAMETERS = 'SCALE = "demo"\nSEED = 0\nEPSILON = 0.5\nPRINT = False'


def notebook(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """Write a small notebook of code cells, the parameters first."""
    import nbformat

    v4 = nbformat.v4
    nb = v4.new_notebook(cells=[v4.new_markdown_cell("# A chapter")])
    if parameters is not None:
        nb.cells.append(v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nb.cells += [v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A folder with a table of contents, a page and a chapter."""
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n- file: book/one\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "intro.md").write_text("# Hello\n")
    notebook(tmp_path / "book" / "one.ipynb", "print(SCALE, SEED, EPSILON, PRINT)")
    return tmp_path


def texts(path: Path) -> str:
    """All that an executed notebook printed."""
    cells = json.loads(path.read_text())["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


def test_run_then_unchanged(book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run, skip, and run again when a parameter or robrep's code changes; papermill leaves no trace."""
    monkeypatch.setenv("JPY_SESSION_NAME", "live")
    assert command.main(["run", "--root", str(book)]) == 0
    assert re.search(r"chapter 1/1 +one +demo +2 cells +[\d.]+ s\n", capsys.readouterr().out)
    assert os.environ["JPY_SESSION_NAME"] == "live", "the environment is put back"
    executed = book / "_build" / "runs" / "one.ipynb"
    assert texts(executed) == "demo 0 0.5 False\n"
    assert "papermill" not in executed.read_text()

    assert command.main(["run", "SEED=0", "--root", str(book)]) == 0, "the default, given by hand, changes nothing"
    assert "unchanged" in capsys.readouterr().out

    assert command.main(["run", "one", "SEED=3", "EPSILON=1", "PRINT=yes", "--root", str(book)]) == 0
    assert "unchanged" not in capsys.readouterr().out
    assert texts(executed) == "demo 3 1.0 True\n"
    injected = [c for c in json.loads(executed.read_text())["cells"] if "injected-parameters" in c["metadata"]["tags"]]
    assert injected[0]["metadata"]["tags"] == ["injected-parameters", "remove-cell"]


def test_key_changes(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key notices the text, the parameters, robrep's code, a package's version and the recorded data."""
    path = book / "book" / "one.ipynb"

    def key(**values: Any) -> str:
        return run.run_key(run.read_notebook(path), values, path.parent)

    seen = {key(), key(SEED=1)}
    assert key() in seen
    (book / "book" / "results").mkdir()
    (book / "book" / "results" / "a.json").write_text("{}")
    seen.add(key())
    with monkeypatch.context() as change:
        change.setattr(run, "code_hash", lambda **_: "another")
        seen.add(key())
    with monkeypatch.context() as change:
        change.setattr(run, "version", lambda name: "99")
        seen.add(key())
    notebook(path, "print('another text')")
    seen.add(key())
    assert len(seen) == 6
    nb = json.loads(path.read_text())
    nb["cells"][-1]["metadata"]["slideshow"] = {"slide_type": "slide"}
    only = {"slideshow": {"slide_type": "slide"}, "tags": ["remove-cell"]}
    nb["cells"].append({"cell_type": "markdown", "id": "only", "metadata": only, "source": ["**A slide.**"]})
    path.write_text(json.dumps(nb))
    assert key() in seen, "slides cost no run"


def test_refused(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and values that no chapter knows are refused by name, with a non-zero status, before anything runs."""
    for words, expected in [
        (["one", "SEEED=1"], "one: parameter is 'SEEED', expected one of 'SCALE', 'SEED', 'EPSILON', 'PRINT' (did you"),
        (["SEEED=1"], "unknown parameter SEEED"),
        (["two"], "unknown chapter two; the notebooks of the book are one"),
        (["SEED=x"], "one: SEED is 'x', expected an integer of at least 0"),
        (["PRINT=perhaps"], "one: PRINT is 'perhaps', expected yes or no"),
        (["SOLUTIONS=no"], "SOLUTIONS is a setting of the site: it goes with book or build, not with run"),
    ]:
        assert command.main(["run", *words, "--root", str(book)]) == 1
        assert expected in capsys.readouterr().err
    for words, expected in [
        (["book", "SOLUTIONS=perhaps"], "SOLUTIONS=perhaps: expected yes or no"),
        (["book", "SOLUTIONS="], "SOLUTIONS=: expected yes or no"),
        (["build", "SEED=1"], "build takes no SEED"),
        (["build", "one"], "build takes no one"),
        (["sweeps", "SEED=1"], "sweeps takes no SEED"),
    ]:
        assert command.main([*words, "--root", str(book)]) == 1
        assert expected in capsys.readouterr().err
    assert not (book / "_build" / "runs" / "one.ipynb").exists()


def test_a_read_only_book_is_refused_in_a_sentence(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (book / "_build").touch()  # stands for a disk that is read-only
    assert command.main(["run", "--root", str(book)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r".*_build, where all is made, cannot be written \(.*\); copy the .*\n", said)


def test_parameters_cell_is_needed(tmp_path: Path) -> None:
    path = notebook(tmp_path / "book" / "one.ipynb", "1 + 1", parameters=None)
    with pytest.raises(ChapterError, match="one: expected one cell tagged 'parameters', found 0"):
        run_chapter(path, tmp_path / "_build")
    with pytest.raises(ChapterError, match="there is no such notebook"):
        run_chapter(tmp_path / "none.ipynb", tmp_path / "_build")
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(ChapterError, match="not a notebook"):
        run_chapter(tmp_path / "cut.ipynb", tmp_path / "_build")


def test_failing_chapter(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cell's number, source and error are shown; the status is not zero; no run is left that looks whole."""
    path = book / "book" / "one.ipynb"
    assert command.main(["run", "--root", str(book)]) == 0
    notebook(path, "x = 1", "# divides\nx / (SEED - 7)")
    assert command.main(["run", "SEED=7", "--root", str(book)]) == 1
    error = capsys.readouterr().err
    assert "one: cell 4 of 4 failed with ZeroDivisionError: division by zero" in error
    assert "    # divides\n    x / (SEED - 7)" in error
    assert error.count("ZeroDivisionError") >= 2, "the end of the traceback"
    assert run.last_run("one", book / "_build") is None
    assert command.main(["run", "--root", str(book)]) == 0


def test_two_chapters_side_by_side(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each; all are unchanged afterwards; after a failure the status is not zero and the error is shown."""
    for name in ("two", "three"):
        notebook(book / "book" / f"{name}.ipynb", f"print('{name}', SCALE)")
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: book/one\n- file: book/two\n- file: book/three\n"
    )
    assert command.workers({"demo", ""}) == (2 if (os.cpu_count() or 1) > 1 else 1) and command.workers({"full"}) == 1
    assert command.main(["run", "--root", str(book)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines[:3]] == ["chapter 1/3", "chapter 2/3", "chapter 3/3"]
    assert {line.split()[2] for line in lines[:3]} == {"one", "two", "three"}
    assert texts(book / "_build" / "runs" / "three.ipynb") == "three demo\n"
    assert command.main(["run", "--root", str(book)]) == 0
    assert capsys.readouterr().out.count("unchanged") == 3
    notebook(book / "book" / "two.ipynb", "raise KeyError('gone')")
    assert command.main(["run", "--root", str(book)]) == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out and "two: cell" in printed.err and "KeyError" in printed.err


def test_records_go_to_the_build_folder(book: Path) -> None:
    notebook(book / "book" / "one.ipynb", "import os\nprint(os.environ['ROBREP_RESULTS'], os.getcwd())")
    run_chapter(book / "book" / "one.ipynb", book / "_build")
    assert texts(book / "_build" / "runs" / "one.ipynb").split() == [
        str(book.resolve() / "_build" / "results"),
        str(book.resolve() / "book"),
    ]


def test_environment_of_a_batch(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows that nobody looks on; on Linux it keeps its memory, unless the user chose otherwise."""
    names = ("ROBREP_BATCH", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def inside() -> list[str | None]:
        with run.batch_environment(book):
            return [os.environ.get(name) for name in names]

    monkeypatch.setattr(run.platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert inside() == ["1", "4294967296", "8589934592"]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert inside() == ["1", None, "131072"], "one of the two alone would be worse than neither"
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    for other in (("", ""), ("glibc", "2.35")):
        monkeypatch.setattr(run.platform, "libc_ver", lambda other=other: other)
        assert inside() == ["1", None, None]
    assert not set(names) & set(os.environ), "the environment is put back"


def test_missing_page(book: Path) -> None:
    (book / "book" / "intro.md").unlink()
    with pytest.raises(build.SiteError, match="_toc.yml names book/intro"):
        build.pages(book)


def test_site_key(book: Path) -> None:
    """A page, an asset, the table of contents and a new run each rebuild the site."""
    seen = [build.site_key(book, book / "_build")]
    for change in [
        lambda: (book / "book" / "intro.md").write_text("# Another\n"),
        lambda: (book / "book" / "style.css").write_text("a {}"),
        lambda: (book / "_toc.yml").write_text((book / "_toc.yml").read_text() + "\n"),
        lambda: run_chapter(book / "book" / "one.ipynb", book / "_build"),
    ]:
        assert build.site_key(book, book / "_build") == seen[-1]
        change()
        seen.append(build.site_key(book, book / "_build"))
    assert len(set(seen)) == len(seen)


def test_solutions_left_out(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SOLUTIONS=no takes the tagged cells, and nothing else, out of the page and of the download, and runs nothing."""
    import nbformat

    path, start = book / "book" / "one.ipynb", '"answer" + "ed"'
    notebook(path, "print('exercise')", "print(40 + 2)")
    nb = nbformat.read(path, as_version=4)
    nb.cells[-1].metadata["tags"] = ["hide-cell", "solution"]
    nb.cells.append(nbformat.v4.new_code_cell(start))
    nbformat.write(nb, path)
    run_chapter(path, book / "_build")

    def stub(source: Path, output: Path) -> None:  # in place of Sphinx: the page is what it was given
        html = output / "_build" / "html"
        (html / "_sources" / "book").mkdir(parents=True)
        (html / "index.html").write_text((source / "book" / "one.ipynb").read_text())
        (html / "_sources" / "book" / "one.ipynb").write_text((source / "book" / "one.ipynb").read_text())

    monkeypatch.setattr(build, "sphinx", stub)
    page, download = (book / "_build" / "html" / name for name in ("index.html", "_sources/book/one.ipynb"))
    before = run.last_run("one", book / "_build")
    for words, shown in [(["build"], True), (["book", "SOLUTIONS=no"], False), (["book"], True)]:
        assert command.main([*words, "--root", str(book)]) == 0
        assert run.last_run("one", book / "_build") == before, "the same run serves both"
        assert ("40 + 2" in page.read_text()) == ("42" in texts(page)) == ("40 + 2" in download.read_text()) == shown
        assert "exercise" in texts(page) and "answered" in page.read_text()
        cells = json.loads(path.read_text())["cells"]
        left = [cell["source"] for cell in cells if shown or "solution" not in cell["metadata"].get("tags", [])]
        assert [cell["source"] for cell in json.loads(download.read_text())["cells"]] == left
        nbformat.validate(nbformat.read(download, as_version=4))
    assert download.read_bytes() == path.read_bytes()


def test_a_chapter_that_has_not_run_still_has_numbered_figures(book: Path) -> None:
    """Other pages refer to them, and a reference without a number would end the build."""
    path = notebook(book / "book" / "one.ipynb", "1 + 1", "print(2)", "3")
    nb = json.loads(path.read_text())
    for cell in nb["cells"][2:4]:
        cell["metadata"]["mystnb"] = {"figure": {"name": f"fig-{cell['source'][0]}", "caption": "**Two.**"}}
    plain = json.dumps(nb)
    outputs = [cell.get("outputs") for cell in json.loads(build.with_every_figure(plain))["cells"]]
    assert [len(out) for out in outputs[2:]] == [1, 1, 0] and "has run" in json.dumps(outputs[2])
    nb["cells"][2]["outputs"] = made = [{"output_type": "execute_result", "data": {"text/plain": "2"}, "metadata": {}}]
    assert json.loads(build.with_every_figure(json.dumps(nb)))["cells"][2]["outputs"] == made, "what ran stays"


FIGURE: dict[str, Any] = {
    "data": [{"type": "scatter", "y": [1, 2]}],
    "layout": {"title": {"text": "</script><b>"}, "height": 321, "meta": {"alt": 'Two "points" <here>'}},
    "frames": [{"name": "a", "data": []}],
}


def test_figure_html() -> None:
    """Label and text alternative are escaped, and the JSON cannot end its script element."""
    html = figure_html(FIGURE)
    assert 'role="group" aria-label="Two &quot;points&quot; &lt;here&gt;"' in html
    assert "<noscript>" in html and "min-height:321px" in html
    content = re.search(r'<script type="application/json">(.*?)</script>', html)
    assert content and json.loads(content[1]) == FIGURE


def test_renderer() -> None:
    """Only plotly's type is taken."""
    data = types.SimpleNamespace(mime_type=MIME, content=FIGURE, line=1)
    (node,) = PlotlyRenderer.handle_mime(None, data, inline=False) or []
    assert node["format"] == "html" and node.astext() == figure_html(FIGURE)
    data.mime_type = "text/plain"
    assert PlotlyRenderer.handle_mime(None, data, inline=False) is None
    assert ("*", MIME, 900) in PlotlyRenderer.mime_priority_overrides


def test_figure_without_alternative_warns(caplog: pytest.LogCaptureFixture) -> None:
    """A warning, which fails the build."""
    figure = {"data": [], "layout": {"title": {"text": "Bare"}}}
    data = types.SimpleNamespace(mime_type=MIME, content=figure, line=7)
    renderer = types.SimpleNamespace(renderer=types.SimpleNamespace(document={"source": "a.ipynb"}))
    with caplog.at_level(logging.WARNING):
        logging.getLogger("sphinx").propagate = True
        PlotlyRenderer.handle_mime(renderer, data, inline=False)
    assert "a plotly figure (Bare) has no text alternative" in caplog.text


def test_renderer_is_found() -> None:
    """Through its entry point, so that myst-nb needs no setting."""
    from importlib.metadata import entry_points

    found = {entry.name: entry.load() for entry in entry_points(group="myst_nb.mime_renderers")}
    assert found["robrep-plotly"] is PlotlyRenderer


def test_fields_of_named_tuples() -> None:
    """Python's own "Alias for field number 0" is no documentation: skipped, unlike a field with words of its own."""
    from collections import namedtuple

    from robrep.book.site.docstrings import skip

    point = namedtuple("point", "x y")
    point.y.__doc__ = "How high."
    assert skip(None, "class", "x", point.x, False, None) is True
    assert skip(None, "class", "y", point.y, False, None) is None
    assert skip(None, "class", "count", tuple.count, False, None) is None


def test_docstrings_mean_what_they_say() -> None:
    """Bars and stars are escaped, literals, code and emphasis are not; PyTorch's words on forward are left out."""
    from robrep.book.site.docstrings import escape, escape_prose, process

    assert escape("max |x'_i - x_i|, N x *shape, ``len(ids) x *shape``") == (
        r"max \|x'_i - x_i\|, N x \*shape, ``len(ids) x *shape``"
    )
    lines = ["Call *it*::", "", "    f(*given)", "", "then f(*given).", ">>> f(*given)"]
    assert escape_prose(lines) == ["Call *it*::", "", "    f(*given)", "", r"then f(\*given).", ">>> f(*given)"]
    assert escape("*one side* of (*given, *rest) and *x *y") == r"*one side* of (\*given, \*rest) and \*x \*y"
    for name, left in (("robrep.methods.BYOL.forward", 1), ("robrep.encoders.ConvEncoder.forward", 0)):
        lines = ["Define the computation performed at every call.", "", "Should be overridden by all subclasses."]
        process(None, "method", name, None, None, lines)
        assert len(lines) == left


def test_percents_stay_with_their_numbers() -> None:
    """A no-break space before a % in text, and nothing changed in what is to be copied."""
    text = "<p>95 % of 7%, 10 %.</p><pre>10 % 3</pre><script>x = '5 %'</script> 3 %"
    assert build.bound_percents(text) == (
        "<p>95\u00a0% of 7%, 10\u00a0%.</p><pre>10 % 3</pre><script>x = '5 %'</script> 3\u00a0%"
    )


def test_what_a_screen_reader_needs(tmp_path: Path) -> None:
    """The title in the sidebar gets a landmark; folded code says what unfolds, also where its name was another."""
    (tmp_path / "_sources").mkdir()
    (tmp_path / "page.html").write_text(
        '<div class="sidebar-primary-item">\n <a class="navbar-brand logo" href="#">Title</a></div>'
        '<div class="sidebar-primary-item"><button>Search</button></div>'
        '<summary aria-label="Toggle hidden content"><p class="collapsed">Show code cell content</p></summary>'
    )
    build.finish(tmp_path, tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert page.count('role="navigation"') == 1 and 'role="navigation" aria-label="Title page">\n <a' in page
    assert '<summary><p class="collapsed">Show the solution</p>' in page


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of a POSIX terminal")
@pytest.mark.parametrize(("chapters", "alone"), [(1, False), (3, False), (3, True)])
def test_ctrl_c_ends_a_run_in_a_sentence(book: Path, chapters: int, alone: bool) -> None:
    """No trace, no kernel left, nothing half-written, no other chapter begun; ``alone``: one process is told only."""
    import psutil

    names = ("one", "two", "three")[:chapters]
    for name in names:
        code = f"import time, pathlib\npathlib.Path('began-{name}').touch()\ntime.sleep(100)"
        notebook(book / "book" / f"{name}.ipynb", code)
    files = "".join(f"- file: book/{name}\n" for name in names)
    (book / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{files}", encoding="utf-8")
    line = [sys.executable, "-m", "robrep.book.site", "run", "--root", str(book)]
    running = subprocess.Popen(line, stdout=-1, stderr=-1, text=True, start_new_session=True)
    begun = min(chapters, command.workers({"demo"}))
    deadline = time.monotonic() + 120
    while len(list((book / "book").glob("began-*"))) < begun and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = psutil.Process(running.pid).children(recursive=True)
    (running.send_signal if alone else lambda number: os.killpg(running.pid, number))(signal.SIGINT)
    try:
        out, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and out == ""
    assert error == "\nStopped. What was finished is kept, and the same command goes on from there.\n"
    _, left = psutil.wait_procs(workers, timeout=10)
    assert left == [] and len(workers) >= begun
    assert list((book / "_build" / "runs").iterdir()) == [] and len(list((book / "book").glob("began-*"))) == begun


def test_ctrl_c_ends_reproduce_in_a_sentence(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from robrep.book import reproduce

    path = notebook(book / "book" / "one.ipynb", "raise KeyboardInterrupt")
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["cells"][-1]["metadata"]["tags"] = ["reproduce"]
    path.write_text(json.dumps(nb), encoding="utf-8")
    assert reproduce.main([str(path)]) == 130
    assert capsys.readouterr().err == "\nrobrep.reproduce: stopped; runs that were finished are recorded, no other is\n"
