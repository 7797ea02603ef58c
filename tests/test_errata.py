"""The page of errata: one list makes its table, and each line of it has an entry with all its parts."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from robrep.book import results

ROOT = Path(__file__).resolve().parent.parent
CELLS = json.loads((ROOT / "book" / "errata.ipynb").read_text())["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]
WORDS = {"slip": "a slip", "conclusion": "changes a conclusion", "suspicion": "our suspicion"}


def lists() -> dict[str, Any]:
    """PAPERS and ENTRIES, as the notebook assigns them."""
    source = next(s for s in SOURCES if "\nENTRIES = [" in s)
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}  # type: ignore[attr-defined]


PAPERS, ENTRIES = lists()["PAPERS"], lists()["ENTRIES"]


def test_the_list_and_the_entries_are_the_same_and_in_one_order() -> None:
    labels = [label for s in SOURCES for label in re.findall(r"^\(errata-([\w-]+)\)=$", s, re.M)]
    assert labels == ["chapter", *(key for key, *_ in ENTRIES)]
    assert len(set(labels)) == len(labels)
    assert set(PAPERS) == {paper for _, paper, *_ in ENTRIES} and {weight for *_, weight in ENTRIES} == set(WORDS)


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry[0] for entry in ENTRIES])
def test_an_entry_has_all_its_parts(entry: tuple[str, ...]) -> None:
    key, _, _, title, weight = entry
    at = next(i for i, s in enumerate(SOURCES) if s.startswith(f"(errata-{key})="))
    text = SOURCES[at]
    assert f"\n### {title}\n" in text
    assert re.search(r"^\*(Printed|Released code):\*", text, re.M)
    assert re.search(r"^\*(Correct|What we use|What does not fit|Our reading|Why it cannot be right):\*", text, re.M)
    assert f"**Weight:** {WORDS[weight]}. **In the book:** [" in text
    assert CELLS[at + 1]["cell_type"] == "code", "every entry is shown by a cell"


def test_its_papers_are_the_five_of_the_book() -> None:
    references = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    assert all(f"{{{paper}," in references for paper in PAPERS)
    assert set(results.papers()) <= set(PAPERS)


def test_its_links_into_the_book_lead_somewhere() -> None:
    pages = [*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").rglob("*.md")]
    labels = {label for page in pages for label in re.findall(r"\(([\w-]+)\)=", page.read_text(encoding="utf-8"))}
    names = {page.relative_to(ROOT / "book").with_suffix("").as_posix() for page in pages}
    for source in SOURCES:
        for target in re.findall(r"\]\(([\w/-]+)\)", source):
            assert target in labels | names, target
