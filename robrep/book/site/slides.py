"""Slide decks, one for each chapter that marks its slides, from the notebooks that the pages are made from.

A cell's ``slideshow.slide_type`` says what becomes of it: ``slide`` begins a slide, ``-`` continues it, ``fragment``
continues it at the next key, ``notes`` is for the speaker; a cell without one is on no slide. What a slide shows:

- a figure's cell: the figure, under the first sentence of its caption; the rest of the caption goes to the notes;
- any other cell of code: its table or sentence, or else its source;
- a cell of the page's text: its heading and its lists;
- a cell that only slides have (see :func:`robrep.book.site.run.slide_only`): a title in bold, then short text. In it,
  a line that holds nothing but a reference to an equation, ``{eq}`label```, shows that equation; what follows
  ``Note:`` is for the speaker.

The decks are shown by reveal.js, which comes with sphinx-revealjs, and share plotly and MathJax with the pages.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from robrep.book.site.plotly_renderer import DEFAULT_HEIGHT, MIME, figure_html
from robrep.book.site.run import slide_only

REVEAL = ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js", "LICENSE")
FIGURE = (1168, 560)  # px that a figure may take on a slide of 1280 x 720
HIGHEST = 500  # px of height above which a figure is drawn lower, so that its letters are not too small,
LOWER = 0.75  # though not by more than this factor
LETTERS = 32  # px
LONG = 620  # characters of HTML that fill a slide with letters of this size
LARGEST = 1.4  # by which a low figure is enlarged
TITLE = re.compile(r"\A\*\*(.+?)\*\*\s*", re.DOTALL)
NOTE = re.compile(r"^Note:\s*(.*)\Z", re.DOTALL | re.MULTILINE)
EQUATION = re.compile(r"^(\$\$\n(?:(?!\$\$).)*\n\$\$ \(([\w-]+)\))", re.DOTALL | re.MULTILINE)
SHOWN_EQUATION = re.compile(r"^\{eq\}`([\w-]+)`$", re.MULTILINE)
REFERENCES = {"eq": "({})", "numref": "Figure {}", "prf:ref": "Theorem {}"}
NUMBERED_FIGURE = re.compile(r'<figure\b[^>]*\bid="([^"]+)".*?<span class="caption-number">\D*([\d.]+)', re.DOTALL)
NUMBERED_THEOREM = re.compile(
    r'<div class="proof\b[^>]*\bid="([^"]+)">\s*<p[^>]*><span class="caption-number">\D*([\d.]+)'
)
NUMBERED_EQUATION = re.compile(r'\bid="equation-([\w-]+)".*?<span class="eqno">\(([\d.]+)\)', re.DOTALL)

NOT_RUN = "<p>This appears once the chapter has run.</p>"
DECK = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: slides</title>
<link rel="icon" href="../_static/favicon.svg">
<link rel="stylesheet" href="../_static/reveal/reveal.css">
<link rel="stylesheet" href="../_static/pygments.css">
<link rel="stylesheet" href="../_static/robrep-slides.css">
<script defer src="../_static/reveal/reveal.js"></script>
<script defer src="../_static/reveal/notes.js"></script>
<script defer src="../_static/robrep-slides.js"></script>
<script defer src="../_static/mathjax/tex-mml-chtml.js"></script>
<script defer src="../_static/robrep-figures.js"></script>
</head>
<body>
<div class="reveal"><div class="slides mathjax_ignore">
{slides}
</div></div>
</body>
</html>
"""


class SlideError(Exception):
    """A cell cannot be put on a slide; the message is ready to be shown."""


@dataclass
class Slide:
    """One slide in HTML: its title, its parts from top to bottom, and what the speaker sees."""

    title: str = ""
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kind: str = ""

    def html(self) -> str:
        heading = "h1" if self.kind == "opening" else "h2"
        size = ' class="long"' if len(self.title) > 110 else ""
        notes = f'<aside class="notes">{"".join(self.notes)}</aside>' if self.notes else ""
        title = f"<{heading}{size}>{self.title}</{heading}>"
        return f'<section class="{self.kind}">{title}\n{"".join(self.parts)}{notes}</section>'


def words(labels: Mapping[str, str]) -> Any:
    """A renderer of the pages' Markdown whose references find what ``labels`` has for them."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.myst_role import myst_role_plugin

    def reference(_: Any, tokens: Any, at: int, *__: Any) -> str:
        name, label = tokens[at].meta["name"], tokens[at].content
        if name.startswith("cite"):
            works = ", ".join(labels[key.strip()] for key in label.split(","))
            return re.sub(r" (\d{4})\b", r" (\1)", works) if name == "cite:t" else f"({works})"
        if name not in REFERENCES:
            raise SlideError(f"{{{name}}}`{label}` cannot stand on a slide, expected one of {', '.join(REFERENCES)}")
        if label not in labels:
            raise SlideError(f"{{{name}}}`{label}` is not on this page")
        return REFERENCES[name].format(labels[label])

    def formula(_: Any, tokens: Any, at: int, *__: Any) -> str:
        tex, label = escape(tokens[at].content.strip()), tokens[at].info
        if tokens[at].type == "math_inline":
            return rf'<span class="math">\({tex}\)</span>'
        tag = rf"\tag{{{labels[label]}}}" if label in labels else ""
        return rf'<div class="math">\[{tex}{tag}\]</div>'

    md = MarkdownIt("commonmark", {"html": False}).enable("table").use(dollarmath_plugin).use(myst_role_plugin)
    rules: dict[str, Any] = {"myst_role": reference, "link_open": lambda *_: "", "link_close": lambda *_: ""}
    for rule in ("math_inline", "math_block", "math_block_label"):
        rules[rule] = formula
    for name, rule in rules.items():
        md.add_render_rule(name, rule)
    return md


def page_numbers(page: str) -> dict[str, str]:
    """The numbers that a built page gives to its figures, theorems and equations, by label."""
    found = (each.findall(page) for each in (NUMBERED_FIGURE, NUMBERED_THEOREM, NUMBERED_EQUATION))
    return {label: number for pairs in found for label, number in pairs}


def cited(bibliography: str) -> dict[str, str]:
    """Authors and year of the works of a BibTeX file, by key: "Zhu et al. 2020"."""
    from pybtex.database import parse_string

    works = {}
    for key, entry in parse_string(bibliography, "bibtex").entries.items():
        names = [" ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        works[key] = f"{who} {entry.fields['year']}"
    return works


def equations(cells: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The labelled equations of a notebook's text as they are written, by label."""
    texts = (source(cell) for cell in cells if cell["cell_type"] == "markdown")
    return {label: written for text in texts for written, label in EQUATION.findall(text)}


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text."""
    return "".join(cell["source"])


def fitted(figure: Mapping[str, Any]) -> str:
    """A plotly figure, drawn no higher than its letters allow and enlarged to fit a slide."""
    layout = figure.get("layout", {})
    height = int(layout.get("height") or DEFAULT_HEIGHT)
    height = min(height, max(HIGHEST, round(LOWER * height)))
    figure = {**figure, "layout": {**layout, "height": height}}
    scale = min(LARGEST, FIGURE[1] / height)
    return (
        f'<div class="figure" style="height:{height * scale:.0f}px">'
        f'<div style="width:{FIGURE[0] / scale:.0f}px;transform:scale({scale:.3f})">{figure_html(figure)}</div></div>'
    )


def highlighted(code: str) -> str:
    """Python source, in a type that is smaller where there are many lines."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    size = min(20.0, 520 / (1.4 * (code.count("\n") + 1)))
    lines = highlight(code, PythonLexer(), HtmlFormatter(nowrap=True))
    return f'<div class="highlight"><pre style="font-size:{size:.1f}px">{lines}</pre></div>'


def output(cell: Mapping[str, Any], md: Any) -> str:
    """What a cell of code shows, "" if nothing: its figure, its table or its sentence."""
    for each in cell["outputs"]:
        shown = each.get("data", {}).items()
        data: dict[str, Any] = {kind: content if kind == MIME else "".join(content) for kind, content in shown}
        if MIME in data:
            return fitted(data[MIME])
        if "image/png" in data:
            return f'<img class="figure" alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
        if "text/html" in data:
            return f'<div class="table">{data["text/html"]}</div>'
        for kind in ("text/markdown", "text/plain"):
            if kind in data:
                return md.render(data[kind])
    return ""


def letters(text: str) -> int:
    """The size of letters, in px, at which a list fits a slide."""
    return round(LETTERS * min(1.0, math.sqrt(LONG / max(1, len(text)))))


def fill(slide: Slide, cell: Mapping[str, Any], md: Any, known: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """The HTML that a cell adds to a slide; its title and its notes are set."""
    figure = cell["metadata"].get("mystnb", {}).get("figure")
    if figure:
        take_away = TITLE.match(figure["caption"])
        if not take_away:
            raise SlideError(f"the caption of {figure['name']} does not begin with a sentence in bold")
        slide.title = slide.title or md.renderInline(take_away[1])
        slide.notes.append(md.render(figure["caption"][take_away.end() :]))
        slide.kind = "with-figure"
        number = labels.get(figure["name"])
        return (output(cell, md) or NOT_RUN) + (f'<p class="number">Figure {number}</p>' if number else "")
    if cell["cell_type"] == "code":
        hidden = {"hide-input", "remove-input"} & set(cell["metadata"].get("tags", []))
        return output(cell, md) or (NOT_RUN if hidden else highlighted(source(cell)))
    if slide_only(cell):
        text = SHOWN_EQUATION.sub(lambda found: _equation(found[1], known), source(cell))
        if said := NOTE.search(text):
            slide.notes.append(md.render(said[1]))
            text = text[: said.start()]
        if take_away := TITLE.match(text):
            slide.title = slide.title or md.renderInline(take_away[1])
            text = text[take_away.end() :]
        return md.render(text)
    return _of_the_page(slide, source(cell), md)


def _equation(label: str, known: Mapping[str, str]) -> str:
    if label not in known:
        raise SlideError(f"{{eq}}`{label}` names no equation of this chapter")
    return known[label]


def _of_the_page(slide: Slide, text: str, md: Any) -> str:
    """The lists of a piece of the page, under its heading; under the chapter's own, its text. Long ones are smaller."""
    tokens, kept, until = md.parse(text), [], ""
    for at, token in enumerate(tokens):
        if until:
            kept.append(token)
            until = "" if token.type == until and token.level == 0 else until
        elif token.type == "heading_open":
            slide.title = slide.title or md.renderer.render(tokens[at + 1 : at + 2], md.options, {})
            slide.kind = "opening" if token.tag == "h1" else slide.kind
        elif token.level == 0 and (
            token.type in ("bullet_list_open", "ordered_list_open")
            or (token.type == "paragraph_open" and slide.kind == "opening" and slide.title and not kept)
        ):
            kept.append(token)
            until = token.type.replace("open", "close")
    html = md.renderer.render(kept, md.options, {})
    return f'<div class="list" style="font-size:{letters(html)}px">{html}</div>'


def slides(cells: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> list[Slide]:
    """The slides of a notebook.

    Args:
        cells: its cells, with the outputs of a run.
        labels: what references show: see :func:`page_numbers` and :func:`cited`.

    Raises:
        SlideError: a cell with a solution is marked, or one cannot be shown.
    """
    cells, md, found = list(cells), words(labels), list[Slide]()
    known = equations(cells)
    for cell in cells:
        kind = slide_type(cell)
        if kind == "skip":
            continue
        try:
            if "solution" in cell["metadata"].get("tags", []):
                raise SlideError("a solution stands on no slide")
            if kind == "slide":
                found.append(Slide())
            if not found:
                raise SlideError(f"slide_type is {kind!r} where no slide has begun, expected 'slide'")
            if kind == "notes":
                text = output(cell, md) if cell["cell_type"] == "code" else md.render(source(cell))
                found[-1].notes.append(text)
            else:
                html = fill(found[-1], cell, md, known, labels)
                found[-1].parts.append(f'<div class="fragment">{html}</div>' if kind == "fragment" else html)
        except SlideError as error:
            raise SlideError(f"cell {cell.get('id')}: {error}") from None
    return found


def has_slides(notebook: Path) -> bool:
    """Whether a notebook marks any."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any(slide_type(cell) != "skip" for cell in cells)


def slide_type(cell: Mapping[str, Any]) -> str:
    """What a cell is to the slides; "skip": nothing."""
    return cell["metadata"].get("slideshow", {}).get("slide_type", "skip")


def deck(notebook: Path, run: Path | None, labels: Mapping[str, str]) -> str:
    """The HTML of a chapter's deck.

    Args:
        notebook: a chapter that has slides, and says what its slides are.
        run: its executed copy, which has the outputs; None before it has run.
        labels: see :func:`slides`.

    Raises:
        SlideError: see :func:`slides`; the message names the chapter.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    ran = json.loads(run.read_text(encoding="utf-8"))["cells"] if run else []
    outputs = {cell.get("id"): cell["outputs"] for cell in ran if cell["cell_type"] == "code"}
    cells = [cell | {"outputs": outputs.get(cell.get("id"), [])} for cell in cells]
    try:
        found = slides(cells, labels)
    except SlideError as error:
        raise SlideError(f"{notebook.stem}: {error}") from None
    title = re.sub(r"<[^>]+>", "", found[0].title)
    return DECK.format(title=title, slides="\n".join(slide.html() for slide in found))


def copy_reveal(folder: Path) -> None:
    """Put the files of reveal.js that the decks load into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in distribution("sphinx-revealjs").files or []:
        if file.as_posix().partition("/_static/revealjs/")[2] in REVEAL:
            shutil.copy2(Path(str(file.locate())), folder / file.name)
