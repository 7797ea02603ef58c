"""Decks show what the chapters' cells say they show, and nothing that only teachers may see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robrep.book.site import build, slides
from robrep.book.site.chromium import MISSING, chromium, executable
from robrep.book.site.plotly_renderer import MIME

ROOT = Path(__file__).resolve().parent.parent
METHODS = ["vae_urkle", "smooth_encoders", "simclr_urkle", "byorl", "worst_case_mi", "cropd"]
NAMES = ["first_look", "attacks", "judging_robustness", *METHODS, "comparison", "errata"]
LABELS = {"a-sum": "1.2", "fig-one": "1.1", "a-theorem": "1.3", "madry2018": "Madry et al. 2018"}
SUM = "Text.\n\n$$\na + b < c\n$$ (a-sum)\n\nMore text."
ONLY = {"tags": ["remove-cell"], "slideshow": {"slide_type": "slide"}}


def text(source: str, kind: str = "slide", **metadata: Any) -> dict[str, Any]:
    """A cell of the page's text; with ``tags`` that leave it out, of the slides alone."""
    metadata = {"slideshow": {"slide_type": kind}, **metadata} if kind else metadata
    return {"cell_type": "markdown", "id": "a", "metadata": metadata, "source": [source]}


def code(source: str, kind: str = "slide", data: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    outputs = [{"output_type": "display_data", "metadata": {}, "data": data}] if data else []
    return {**text(source, kind, **metadata), "cell_type": "code", "outputs": outputs}


def figure(caption: str, height: int = 400) -> dict[str, Any]:
    data = {MIME: {"data": [], "layout": {"height": height, "meta": {"alt": "A curve"}}}}
    return code("draw()", data=data, mystnb={"figure": {"name": "fig-one", "caption": caption}})


def made(*cells: dict[str, Any]) -> list[slides.Slide]:
    return slides.slides(cells, LABELS)


def test_a_figure_stands_under_its_take_away() -> None:
    """Title and number above and below it; what else the caption says is for the speaker."""
    (slide,) = made(figure("**It falls, as $x$ grows.** By {cite:t}`madry2018`, see {numref}`fig-one`."))
    assert slide.title == r'It falls, as <span class="math">\(x\)</span> grows.'
    assert "Figure 1.1" in slide.parts[0] and 'aria-label="A curve"' in slide.parts[0]
    assert slide.notes == ["<p>By Madry et al. (2018), see Figure 1.1.</p>\n"]
    (later,) = made(code("draw()", mystnb={"figure": {"name": "fig-one", "caption": "**It falls.**"}}))
    assert slides.NOT_RUN in later.parts[0]


def test_figures_fit() -> None:
    """Never wider or higher than the place for them, whatever their height on the page."""
    for height in (200, 450, 600, 1100):
        html = slides.fitted({"layout": {"height": height}})
        shown, width, scale = map(float, re.findall(r'(?:"height:|width:|scale\()([\d.]+)', html))
        assert shown <= slides.FIGURE[1] and width * scale == pytest.approx(slides.FIGURE[0], rel=2e-3)
        drawn = json.loads(re.search(r"json\">(.*)</script>", html)[1])["layout"]["height"]  # type: ignore[index]
        assert slides.LOWER * height <= drawn + 1 and drawn * scale == pytest.approx(shown, rel=5e-3)


def test_a_cell_that_only_slides_have() -> None:
    """A title in bold, an equation by its label, short text, and words for the speaker."""
    only = text("**A title.**\n\n{eq}`a-sum`\n\n- by {eq}`a-sum` [here](there)\n\nNote: Ask *why*.", **ONLY)
    (slide,) = made(text(SUM, ""), only)
    assert slide.title == "A title." and slide.notes == ["<p>Ask <em>why</em>.</p>\n"]
    assert r'<div class="math">\[a + b &lt; c\tag{1.2}\]</div>' in slide.parts[0]
    assert "<li>by (1.2) here</li>" in slide.parts[0] and "Text." not in slide.parts[0]


def test_of_the_page_come_headings_and_lists() -> None:
    opening, summary = made(
        text("(label)=\n# A chapter\n\nWhat it asks."),
        text("**Open questions.** Many.\n\n## Summary\n\n- One.\n- Two.\n\nThe works cited."),
    )
    assert opening.kind == "opening" and opening.title == "A chapter" and "What it asks." in opening.parts[0]
    assert summary.title == "Summary" and summary.parts[0].count("<li>") == 2
    assert "Open" not in summary.parts[0] and "cited" not in summary.parts[0]


def test_what_continues_a_slide() -> None:
    """A fragment, a table, code; an unmarked cell is on no slide, and a cell of notes is for the speaker."""
    first, second = made(
        text("**Question?**", **ONLY),
        text("An answer.", "fragment", tags=["remove-cell"]),
        code("say()", "notes", {"text/markdown": "It is 5 %."}),
        text("Unmarked.", ""),
        text("**Results.**", **ONLY),
        code("table()", "-", {"text/markdown": "| a |\n|---|\n| 1 |", "text/plain": "a 1"}),
        code("x = [1 < 2]", "-"),
        code("hidden()", "-", tags=["remove-input"]),
    )
    assert first.parts[1] == '<div class="fragment"><p>An answer.</p>\n</div>' and "5 %" in first.notes[0]
    assert "<td>1</td>" in second.parts[1] and "highlight" in second.parts[2] and second.parts[3] == slides.NOT_RUN
    assert "Unmarked" not in first.html() + second.html()
    assert first.html().startswith('<section class=""><h2>Question?</h2>')


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([code("answer()", tags=["solution"])], "cell a: a solution stands on no slide"),
        ([text("x", "-")], "cell a: slide_type is '-' where no slide has begun, expected 'slide'"),
        ([text("**A.** {eq}`nowhere`", **ONLY)], "{eq}`nowhere` is not on this page"),
        ([text("**A.**\n\n{eq}`nowhere`", **ONLY)], "{eq}`nowhere` names no equation of this chapter"),
        ([text("**A.** {doc}`a`", **ONLY)], "{doc}`a` cannot stand on a slide, expected one of eq, numref, prf:ref"),
        ([figure("No take-away.")], "the caption of fig-one does not begin with a sentence in bold"),
    ],
)
def test_refused(cells: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(slides.SlideError, match=re.escape(message)):
        made(*cells)


def test_numbers_of_a_page_and_names_of_works() -> None:
    page = (
        '<figure class="a" id="fig-one">x<figcaption><span class="caption-number">Fig. 1.1 </span></figcaption>'
        '<div class="proof theorem" id="a-theorem">\n<p class="t"><span class="caption-number">Theorem 1.3 </span>'
        '<div class="math" id="equation-a-sum">\n<span class="eqno">(1.2)<a>#</a></span>'
    )
    assert slides.page_numbers(page) == {"fig-one": "1.1", "a-theorem": "1.3", "a-sum": "1.2"}
    works = slides.cited(
        "@article{a, author = {Ann Lee and Bo van Dam}, year = {2001}}\n"
        "@article{b, author = {Ann Lee and Bo Dam and C Roe}, year = {2002}}"
    )
    assert works == {"a": "Lee and van Dam 2001", "b": "Lee et al. 2002"}


def test_decks_are_written_and_linked(tmp_path: Path) -> None:
    """One deck for each chapter with slides, linked where its reading time stands; a bad cell stops the build."""
    (tmp_path / "_toc.yml").write_text("root: book/one\nchapters:\n- file: book/two\n")
    html = tmp_path / "html"
    for folder in (tmp_path / "book", html / "book"):
        folder.mkdir(parents=True)
    (tmp_path / "book" / "one.ipynb").write_text(json.dumps({"cells": [text("# One\n\nWhy?")]}))
    (tmp_path / "book" / "two.ipynb").write_text(json.dumps({"cells": [text("# Two", "")]}))
    (html / "book" / "one.html").write_text("<p><strong>Reading</strong> ten\nminutes.</p><p>Text</p>")
    build.write_decks(tmp_path, tmp_path, html)
    assert [path.name for path in (html / "slides").iterdir()] == ["one.html"]
    link = '<a href="../slides/one.html">Slides of this chapter</a>.'
    assert f"<strong>Reading</strong> ten\nminutes. {link}</p><p>Text" in (html / "book" / "one.html").read_text()
    (tmp_path / "book" / "one.ipynb").write_text(json.dumps({"cells": [text("x", "-")]}))
    (html / "slides" / "one.html").unlink()
    (html / "slides").rmdir()
    with pytest.raises(build.SiteError, match="one: cell a: slide_type"):
        build.write_decks(tmp_path, tmp_path, html)


class Everything(dict[str, str]):
    """A number for every label: before the site is built there is none."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return "Name 2000"


@pytest.mark.parametrize("name", NAMES)
def test_the_decks_of_the_book(name: str) -> None:
    """12 to 20 slides, each with a title and something below it, many with words for the speaker."""
    cells = json.loads((ROOT / "book" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = slides.slides([cell | {"outputs": []} for cell in cells], Everything())
    assert 12 <= len(found) <= 20 and found[0].kind == "opening"
    assert all(slide.title and "".join(slide.parts).strip() for slide in found)
    assert len({slide.title for slide in found}) == len(found)
    assert sum(bool(slide.notes) for slide in found) >= len(found) / 3
    only = [cell for cell in cells if build.slides.slide_only(cell)]
    assert all(len("".join(cell["source"]).partition("Note:")[0]) < 700 for cell in only), "short text"


def test_every_other_notebook_has_no_deck() -> None:
    assert [name for name, path in build.notebooks(ROOT).items() if slides.has_slides(path)] == NAMES


# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if executable() is None:
        pytest.skip(MISSING)
    with chromium() as running:
        yield running


LOW = """() => { const slide = Reveal.getCurrentSlide(), top = slide.getBoundingClientRect(), scale = top.height / 720;
  const seen = [...slide.querySelectorAll("*")].filter((e) => e.checkVisibility()
    && !e.closest("aside, .robrep-figure, mjx-container *"));
  const low = Math.max(...seen.map((e) => (e.getBoundingClientRect().bottom - top.top) / scale));
  const wide = Math.max(...seen.map((e) => (e.getBoundingClientRect().right - top.left) / scale));
  return [low <= 720, wide <= 1280]; }"""


@pytest.mark.parametrize("name", NAMES)
def test_deck_in_a_browser(browser: Any, site: Path, name: str) -> None:
    """It opens from its file: no other host, no error; formulas and figures drawn, nothing beyond a slide's edge."""
    from test_pages import Visit

    with Visit(browser, site, f"slides/{name}.html", width=1280) as visit:
        page = visit.page
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        assert 12 <= (count := page.evaluate("Reveal.getTotalSlides()")) <= 20
        assert page.locator("mjx-merror").count() == 0
        assert page.locator(".math:not(aside *)").count() <= page.locator("mjx-container:not(aside *)").count()
        for index in range(count):
            page.evaluate("at => Reveal.slide(at, 0, 99)", index)
            page.wait_for_function(
                "[...Reveal.getCurrentSlide().querySelectorAll('.robrep-figure')].every(box => box.dataset.drawn)"
            )
            assert page.evaluate(LOW) == [True, True], f"slide {index + 1} overflows"
        visit.check()


def test_printed_deck(browser: Any, site: Path, tmp_path: Path) -> None:
    """The folder of decks stands on its own, and a printed deck has one page a slide."""
    from robrep.book.site import course

    decks = course.write_slides(site, tmp_path)
    assert [deck.stem for deck in decks] == sorted(NAMES)
    deck = next(each for each in decks if each.stem == "attacks")
    assert "../" not in re.sub(r"<script type=.*?</script>", "", deck.read_text(encoding="utf-8"))
    course.print_decks(browser, [deck], tell=lambda _: None)
    pages = re.findall(rb"/Type\s*/Page\b", deck.with_suffix(".pdf").read_bytes())
    assert len(pages) == deck.read_text(encoding="utf-8").count("<section")
