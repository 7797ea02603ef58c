"""What a teacher hands out, in ``_build/course``: notebooks with and without solutions, decks, figures.

The decks and the figures are those of the built site. Where a Chromium or Chrome is installed, it prints the decks
(PDF) and draws the figures (SVG and PNG) as they look on their pages, without sliders and menus.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from robrep.book.files import write_csv
from robrep.book.site import chromium
from robrep.book.site.build import notebooks, pages, without_solutions
from robrep.book.site.run import ChapterError, slide_only

LICENCE = "CC BY 4.0"  # of text and figures: LICENSE-TEXT
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)/(?:tree|blob)/(.+)")
COLAB = "https://colab.research.google.com"
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([\w./-]+)\)")  # to a page or a label of the book
LABEL = re.compile(r"^\(([\w-]+)\)=$", re.MULTILINE)
PATIENCE = 600_000  # ms: a busy machine is slow, not wrong
WIDTH, DOTS = 800, 3  # px of a drawn figure, and of its PNG for each of these

READY = (
    "window.Reveal && Reveal.isReady() && [...document.querySelectorAll('.robrep-figure')].every(b => b.dataset.drawn)"
)
DRAWN = """async id => {
  const box = document.getElementById(id).querySelector(".robrep-figure");
  box.scrollIntoView({ behavior: "instant" });
  while (!box.dataset.drawn) await new Promise((done) => setTimeout(done, 20));
}"""
STILL = """([id, format, width, scale]) => {
  const { data, layout } = document.getElementById(id).querySelector(".js-plotly-plot");
  const still = { ...layout, sliders: [], updatemenus: [] };
  return Plotly.toImage({ data, layout: still }, { format, width, height: layout.height ?? 450, scale });
}"""

README = """# Course material

Made by `make course` from the book. Text and figures: {licence}. Code: MIT.

- `student/`: the notebooks without solutions, model answers and rubrics: hand out these.
- `teacher/`: the same notebooks with them.
- `slides/`: a deck for each chapter. Open one in a browser; it needs its folder, but no network. Keys: the arrows
  turn the slides, `s` opens the speaker's window with notes, `o` shows all slides, `?` lists the other keys.{printed}
- `figures/`: {figures}

Students return their notebooks; `python -m robrep.book.grade returned/*.ipynb --csv grades.csv` grades them.

{links}
"""


@dataclass(frozen=True)
class Figure:
    """A numbered figure of a built page."""

    page: Path
    name: str
    number: str
    caption: str


def check_address(text: str) -> str:
    """The address of the folder that students open notebooks from, without a slash at its end; "" for none.

    Raises:
        ChapterError: it is not an address.
    """
    if text and not re.fullmatch(r"https?://\S+", text):
        raise ChapterError(
            f"COURSE_URL is {text!r}, expected the address of the folder with the students' notebooks, "
            "such as https://github.com/OWNER/REPOSITORY/tree/main/student"
        )
    return text.rstrip("/")


def opens(address: str, name: str) -> str:
    """Where a browser opens a notebook of the students' folder: in Colab, if the folder is on GitHub."""
    found = GITHUB.fullmatch(address)
    folder = f"{COLAB}/github/{found[1]}/blob/{found[2]}" if found else address
    return f"{folder}/{name}.ipynb"


def places(root: Path) -> dict[str, str]:
    """The notebook that a link leads to, "" for a page that is none, by the page's name and by every label on it."""
    found = {}
    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        name = path.stem if path.suffix == ".ipynb" else ""
        for label in (path.stem, path.name, *LABEL.findall(text)):
            found[label] = name
    return found


def for_students(notebook: str, name: str, address: str, found: Mapping[str, str]) -> str:
    """A notebook's text without solutions and slides, whose links lead to the students' notebooks.

    Args:
        notebook: the text.
        name: of the notebook.
        address: see :func:`check_address`; without one, links to other pages are left out and their words stay.
        found: see :func:`places`.
    """
    nb = json.loads(without_solutions(notebook))

    def linked(link: re.Match[str]) -> str:
        words, target = link.groups()
        if target not in found:
            return link[0]
        return f"[{words}]({opens(address, found[target])})" if address and found[target] else words

    cells = [cell for cell in nb["cells"] if not slide_only(cell)]
    for cell in cells:
        cell["metadata"].pop("slideshow", None)
        if cell["cell_type"] == "markdown":
            cell["source"] = LINK.sub(linked, "".join(cell["source"])).splitlines(keepends=True)
    if address:
        badge = f"[![Open this notebook]({COLAB}/assets/colab-badge.svg)]({opens(address, name)})"
        text = badge if GITHUB.fullmatch(address) else f"[Open this notebook]({opens(address, name)})"
        cells.insert(0, {"cell_type": "markdown", "id": "open", "metadata": {}, "source": [text]})
    return json.dumps({**nb, "cells": cells}, indent=1, ensure_ascii=False) + "\n"


def write_notebooks(root: Path, course: Path, address: str) -> None:
    """Write ``student`` and ``teacher``."""
    found = places(root)
    for kind in ("student", "teacher"):
        (course / kind).mkdir(parents=True)
    for name, path in notebooks(root).items():
        shutil.copy2(path, course / "teacher" / path.name)
        text = for_students(path.read_text(encoding="utf-8"), name, address, found)
        (course / "student" / path.name).write_text(text, encoding="utf-8")


def write_slides(html: Path, course: Path) -> list[Path]:
    """Copy the decks with all that they load into one folder; returns the decks."""
    folder = course / "slides"
    shutil.copytree(html / "slides", folder)
    for deck in folder.glob("*.html"):
        text = deck.read_text(encoding="utf-8").replace('"../_static/', '"_static/')
        deck.write_text(text, encoding="utf-8")
        for used in re.findall(r'"_static/([^"]+)"', text):
            (folder / "_static" / used).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(html / "_static" / used, folder / "_static" / used)
    static = folder / "_static"
    shutil.copy2(html / "_static" / "plotly.min.js", static / "plotly.min.js")
    for part in ("mathjax", "reveal"):  # MathJax loads its fonts, reveal.js has a licence to go with it
        shutil.copytree(html / "_static" / part, static / part, dirs_exist_ok=True)
    return sorted(folder.glob("*.html"))


def print_decks(browser: Any, decks: Iterable[Path], tell: Callable[[str], None] = print) -> None:
    """Print each deck beside it, one page a slide."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    for deck in decks:
        page.goto(f"{deck.resolve().as_uri()}?print-pdf")
        page.wait_for_function(READY)
        page.pdf(path=deck.with_suffix(".pdf"), prefer_css_page_size=True, print_background=True)
        tell(f"printed {deck.stem}")
    page.close()


def numbered_figures(root: Path, html: Path) -> list[Figure]:
    """The numbered figures of all pages, in the order of the book."""
    from bs4 import BeautifulSoup

    found = []
    for path in pages(root):
        page = html / path.relative_to(root).with_suffix(".html")
        for figure in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select("figure[id]"):
            number = figure.select_one("figcaption .caption-number")
            text = figure.select_one("figcaption .caption-text")
            if number and text:
                caption = " ".join(text.get_text().split())
                found.append(Figure(page, str(figure["id"]), number.get_text().split()[-1], caption))
    return found


def draw_figures(browser: Any, figures: Iterable[Figure], folder: Path, tell: Callable[[str], None] = print) -> None:
    """Write each figure that has been drawn as SVG and PNG, with ``captions.csv``."""
    folder.mkdir(parents=True)
    page, rows = browser.new_page(viewport={"width": 1440, "height": 900}), []
    page.set_default_timeout(PATIENCE)
    for figure in figures:
        if page.url != (address := figure.page.resolve().as_uri()):
            page.goto(address, wait_until="domcontentloaded")  # formulas are not needed
            tell(f"drawing {figure.page.stem}")
        if _draw(browser, page, figure.name, folder):
            rows.append((figure.number, figure.name, figure.caption, LICENCE))
    page.close()
    write_csv(folder / "captions.csv", ("number", "name", "caption", "licence"), rows)


def _draw(browser: Any, page: Any, name: str, folder: Path) -> bool:
    """One figure: by plotly; or the page's own drawing, which a page of its own turns into pixels; or its picture.

    Returns:
        Whether there is one; a chapter that has not run has none.
    """
    place = page.locator(f"[id='{name}']")
    drawings, pictures = place.locator("svg:not(button *)"), place.locator("img")
    if place.locator(".robrep-figure").count():
        page.evaluate(DRAWN, name)
        for form, scale in (("svg", 1), ("png", DOTS)):
            data = page.evaluate(STILL, [name, form, WIDTH, scale]).partition(",")[2]
            content = unquote_to_bytes(data) if form == "svg" else base64.b64decode(data)
            (folder / f"{name}.{form}").write_bytes(content)
    elif drawings.count():
        drawing = drawings.first.evaluate("each => new XMLSerializer().serializeToString(each)")
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
        alone = browser.new_page(viewport={"width": WIDTH, "height": WIDTH}, device_scale_factor=DOTS)
        alone.set_content(drawing)
        alone.locator("svg").screenshot(path=folder / f"{name}.png")
        alone.close()
    elif pictures.count():
        pictures.first.screenshot(path=folder / f"{name}.png")
    else:
        return False
    return True


def build_course(root: Path, build: Path, address: str, tell: Callable[[str], None] = print) -> Path:
    """Write ``build/course`` anew from the built site.

    Args:
        root: the repository.
        build: the build folder, with the site in ``html``.
        address: see :func:`check_address`.
        tell: takes a line of progress.

    Returns:
        The folder.
    """
    html, course = build / "html", build / "course"
    with tempfile.TemporaryDirectory(dir=build, prefix="course-") as temporary:
        made = Path(temporary) / "course"
        write_notebooks(root, made, address)
        decks = write_slides(html, made)
        if drawing := chromium.executable():
            with chromium.chromium() as browser:
                print_decks(browser, decks, tell)
                draw_figures(browser, numbered_figures(root, html), made / "figures", tell)
        else:
            tell(f"no PDF and no figures: {chromium.MISSING}")
        links = [f"- [{name}]({opens(address, name)})" for name in notebooks(root)] if address else []
        text = README.format(
            licence=LICENCE,
            printed=" Each is there as PDF, too." if drawing else "",
            figures="every numbered figure as SVG and PNG; `captions.csv` has numbers, captions and the licence."
            if drawing
            else f"not made ({chromium.MISSING}).",
            links="\n".join(["The students' notebooks:", "", *links]) if links else "",
        )
        (made / "README.md").write_text(text.rstrip() + "\n", encoding="utf-8")
        shutil.rmtree(course, ignore_errors=True)
        made.rename(course)
    return course
