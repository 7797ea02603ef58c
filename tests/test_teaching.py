"""The pages for teachers: every section with an objective and its minutes, and paths that fit into their time.

The rule for minutes stands in ``book/sections.md`` in words and here in code.
"""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from robrep.book.exercises import EXERCISES

ROOT = Path(__file__).resolve().parent.parent
SECTIONS, TEACHING = ((ROOT / "book" / f"{name}.md").read_text(encoding="utf-8") for name in ("sections", "teaching"))
IN_THE_CONTENTS = re.findall(r"file: book/(\w+)$", (ROOT / "_toc.yml").read_text(), re.MULTILINE)
CHAPTERS = ["first_look", *IN_THE_CONTENTS[IN_THE_CONTENTS.index("attacks") : IN_THE_CONTENTS.index("teaching")]]

WORDS, FIGURE, LINES = 200, 2, 6  # words a minute, minutes a figure, visible lines of code a minute
NOT_IN_CLASS = ("Reproduce", "Exercises", "Summary")
FOLDED = {"hide-input", "hide-cell", "remove-input"}
NOT_ON_THE_PAGE = {"remove-cell", "solution"}


@dataclass
class Section:
    """What a chapter has between a heading ``## title`` and the next; the opening, before the first, has no title."""

    title: str
    words: int = 0
    figures: int = 0
    lines: int = 0

    @property
    def anchor(self) -> str:
        """The end of the section's address, as MyST makes it."""
        return re.sub(r"[^\w\- ]", "", self.title.lower().replace(" ", "-"))

    @property
    def minutes(self) -> int:
        return math.ceil(self.words / WORDS + self.figures * FIGURE + self.lines / LINES)


def words(markdown: str) -> int:
    """Words of the running text, without displayed equations, HTML, labels and the lines that open a box."""
    text = re.sub(r"\$\$.*?\$\$(?: \(\S+\))?|<svg.*?</svg>|</?[a-z][^>]*>", " ", markdown, flags=re.DOTALL)
    text = re.sub(r"^(\(\S+\)=|[`:]{3,}.*|:\w+:.*)$", " ", text, flags=re.MULTILINE)
    return len(re.findall(r"\S*\w\S*", text))


@functools.cache
def sections(chapter: str) -> list[Section]:
    """The opening of a chapter and its sections, in order."""
    found = [Section("")]
    for cell in json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source, tags = "".join(cell["source"]), set(cell["metadata"].get("tags", []))
        if tags & NOT_ON_THE_PAGE:
            continue
        if cell["cell_type"] == "code":
            found[-1].figures += "figure" in cell["metadata"].get("mystnb", {})
            found[-1].lines += 0 if tags & FOLDED else sum(1 for line in source.splitlines() if line.strip())
            continue
        before, *parts = re.split(r"^## (.+)$", source, flags=re.MULTILINE)
        found[-1].words += words(before)
        found += [Section(title, words(f"{title} {text}")) for title, text in zip(parts[::2], parts[1::2], strict=True)]
    return [section for section in found if not section.title.startswith(NOT_IN_CLASS)]


def test_the_rule() -> None:
    section = Section("Reading the paper's λ", words=401, figures=1, lines=6)
    assert section.minutes == 6 and section.anchor == "reading-the-papers-λ"
    box = "```{note} A title\n:class: tip\nthree - four\n```"
    assert words(f"(here)=\n## One, two: $x_1 + x_2$\n\n$$\na b c\n$$ (eq)\n\n{box}\n<b>five</b>") == 7


# --- the page of sections ---------------------------------------------------------------------------------------------

ROW = re.compile(r"^\| (?:\[(.+?)\]\((\w+)\.ipynb#(\S+)\)|the opening) \| (.+) \| (\d+) \|$", re.MULTILINE)
BLOCK = re.compile(
    r"^## .+\n\n\[.+\]\((\w+)\): the opening and (\d+) sections, \*\*(\d+) minutes\*\*\n\n((?:\|.*\n)+)", re.MULTILINE
)
BLOCKS = {
    chapter: (int(count), int(total), ROW.findall(table)) for chapter, count, total, table in BLOCK.findall(SECTIONS)
}


def test_every_chapter_has_its_table() -> None:
    assert list(BLOCKS) == CHAPTERS and len(CHAPTERS) == 11
    assert sum(len(rows) for *_, rows in BLOCKS.values()) == len(ROW.findall(SECTIONS))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_section_stands_once_and_in_order(chapter: str) -> None:
    count, _, rows = BLOCKS[chapter]
    want = [(s.title, chapter if s.title else "", s.anchor) for s in sections(chapter)]
    assert [(title, where, anchor) for title, where, anchor, *_ in rows] == want
    assert count == len(rows) - 1


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_minutes_are_those_of_the_rule(chapter: str) -> None:
    """One minute of difference may stay, so that a word added to a chapter does not change this page."""
    _, total, rows = BLOCKS[chapter]
    told = [int(minutes) for *_, minutes in rows]
    ruled = [section.minutes for section in sections(chapter)]
    assert all(abs(a - b) <= 1 for a, b in zip(told, ruled, strict=True)), f"told {told}, by the rule {ruled}"
    assert total == sum(told)


def test_the_totals_of_the_book() -> None:
    said = re.search(r"\*\*(\d+) sections\*\* take \*\*(\d+) minutes\*\*", SECTIONS)
    assert said, "the sentence with both totals"
    assert int(said[1]) == sum(count for count, *_ in BLOCKS.values())
    assert int(said[2]) == sum(total for _, total, _ in BLOCKS.values())


def test_the_rule_is_told() -> None:
    assert re.search(rf"{WORDS}\s+words\s+a\s+minute,\s+{FIGURE}\s+minutes\s+a\s+figure", SECTIONS)
    assert re.search(rf"1\s+minute\s+for\s+{LINES}\s+visible\s+lines\s+of\s+code", SECTIONS)


def test_objectives_can_be_checked() -> None:
    objectives = [objective for *_, rows in BLOCKS.values() for *_, objective, _ in rows]
    vague = r"(be|become|understand|know|learn|appreciate|grasp|realise|see|think|get|have)\b"
    assert not [text for text in objectives if re.match(vague, text) or not text[0].islower() or text.endswith(".")]
    assert len(set(objectives)) == len(objectives)


# --- the paths --------------------------------------------------------------------------------------------------------


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the teaching page, without its head."""
    table = re.search(rf"^###? {re.escape(heading)}\n(?:(?!\||#).*\n)*((?:\|.*\n)+)", TEACHING, re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()[2:]]


TOLD = {chapter: {row[2]: int(row[-1]) for row in rows} for chapter, (*_, rows) in BLOCKS.items()}
ONE = r"\[[^\]]+\]\((\w+)\.ipynb#([^)]+)\)"


def minutes_of(cell: str) -> int:
    """The minutes that the page of sections gives to what a cell names.

    A cell names ``all of [A](a)``, ``the opening of [A](a)``, a section by its link, or two links joined by "to".
    """
    found = sum(TOLD[chapter][""] for chapter in re.findall(r"the opening of \[[^\]]+\]\((\w+)\)", cell))
    found += sum(sum(TOLD[chapter].values()) for chapter in re.findall(r"all of \[[^\]]+\]\((\w+)\)", cell))
    for chapter, first, last in re.findall(rf"{ONE}(?: to \[[^\]]+\]\(\1\.ipynb#([^)]+)\))?", cell):
        anchors = list(TOLD[chapter])
        within = anchors[anchors.index(first) : anchors.index(last or first) + 1]
        assert within, f"{first} does not come before {last}"
        found += sum(TOLD[chapter][anchor] for anchor in within)
    return found


def test_the_reader_of_paths_adds_up() -> None:
    opening, *rest = TOLD["attacks"].values()
    a, b, c = (f"[one](attacks.ipynb#{anchor})" for anchor in list(TOLD["attacks"])[1:4])
    assert minutes_of("the opening of [A](attacks)") == opening
    assert minutes_of("all of [A](attacks)") == opening + sum(rest)
    assert minutes_of(f"{a}; then {c}") == rest[0] + rest[2] and minutes_of(f"{a} to {c}") == sum(rest[:3])
    assert minutes_of(f"{a}, {b}") == sum(rest[:2]) and minutes_of("[The project](project)") == 0


def test_fifteen_minutes() -> None:
    assert sum(int(minutes) for minutes, *_ in rows_below("Fifteen minutes")) == 15


def test_ninety_minutes() -> None:
    """The times follow each other, and each is long enough for what is read in it."""
    at = 0
    for time, what, *_ in rows_below("Ninety minutes"):
        start, end = map(int, time.split("–"))
        assert start == at and 0 < minutes_of(what) <= end - start, what
        at = end
    assert at == 90


def test_two_weeks() -> None:
    """The minutes of a day are those of its sections, and leave a part of the 80 for questions and runs."""
    days = rows_below("Two weeks")
    assert [day for day, *_ in days] == [str(k) for k in range(1, 11)]
    for _, what, minutes, _ in days[:-1]:
        assert int(minutes) == minutes_of(what) <= 65, what
    assert "(project)" in days[-1][1] and sum("project" in afterwards for *_, afterwards in days) >= 6


def test_what_the_page_names_exists() -> None:
    """Sections by their address, exercises that are checked in an example."""
    addresses = re.findall(ONE, TEACHING)
    assert len(addresses) > 20 and not [anchor for chapter, anchor in addresses if anchor not in TOLD[chapter]]
    named = set(re.findall(r'\b(?:check|hint)\("([\w.]+)"', TEACHING))
    assert named and named <= set(EXERCISES)
