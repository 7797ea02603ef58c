"""The grammar of every page and every docstring, by Harper, a checker that needs neither a network nor Java."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from harper import Dialect, Linter
from test_prose import PAGES, ROOT

LEFT_OUT = {  # rules of spelling (see test_prose.py), of taste, and those that take our terms for everyday words
    "SpellCheck", "DisjointPrefixes", "SplitWords", "CompoundNouns", "OrthographicConsistency",  # "data set", softplus
    "SentenceCapitalization", "UseTitleCase", "OxfordComma", "CapitalizePersonalPronouns",  # headings; the index i
    "MassNouns",  # a covariance, a coupling, a likelihood, an equality
    "Regionalisms",  # RV, representation vulnerability
    "Overall", "Everyone", "OneOfTheSingular", "CondenseAllThe", "FindOut", "MissingTo", "MissingPreposition",
    "DoToDueTo", "ThatThan", "InflectedVerbAfterTo", "ItsContraction", "MergeWords",
    "ExpandMemoryShorthands", "ExpandTimeShorthands", "ExpandControl", "ExpandArgument", "ExpandMinimum",  # 6 GB; Ctrl
    "ExpandConfiguration", "ExpandStandardInputAndOutput", "PluralDecades",  # CIFAR-10's
    "LongSentences", "Spaces", "EllipsisLength", "UseEllipsisCharacter", "Dashes", "NumericRangeEnDash",
    "ThereToTheir", "TheirToTheyre", "DiscourseMarkers", "CallThem",  # before mathematics, which is masked
    "ToDoHyphen", "ToTwoToo", "MakeupCompoundNoun",  # examples todo; from low to high; the cells that make up
}  # fmt: skip
READ = [path for path in PAGES if path.suffix != ".yaml"]
RIGHT = {"AT at", "A a", "half half", "least least"}  # adversarial training at a radius; arguments named half, least
MASKED = [  # what is no English, and what stands for it
    (r"^---\n.*?\n---\n", ""),
    (r"```\{?(?:code|math|raw|prf|bash|python|text|console|include|eval-rst|yaml)[^\n]*\n.*?```|```\n.*?```", ""),
    (r"\$\$.*?\$\$|<(?:svg|style|script)\b.*?</(?:svg|style|script)>|<[^>]*>", ""),
    (r"^```[^\n]*\n|^:::+[^\n]*$|^:[a-z-]+:[^\n]*$|^\(\w[\w-]*\)=$|^\|[^\n]*$|^ *>>> [^\n]*$", ""),
    (r"\[([^\]]*)\]\([^)]*\)", r"\1"),
    (r"(?<!`)``?(\w\w+)``?(?!`)", r"\1"),
    (r"\$[^$]*\$|\{[a-z:]+\}`[^`]*`|:[a-z:]+:`[^`]*`|``.*?``|`[^`]*`", "X"),
    (r"\b\w\([\w', ]*\)|[\w^]*[_^][\w^]*|\([\w *]+, [^()]*\)|\|+[^|\n]+\|+|\bi\b(?!\.)", "X"),
    (r"\([a-e]\)|\b[Aa](?= (?:and [Bb]|or [Bb]|is|it)\b)", "X"),
    (r"\b([Aa]n)(\s+)X\b", r"\1\2item"),
    (r"\b([Aa])(\s+)X\b", r"\1\2thing"),
    (r"\buint8\b|\bSHA-256\b", "byte"),
]


def english(text: str) -> str:
    for pattern, instead in MASKED:
        text = re.sub(pattern, instead, text, flags=re.DOTALL | re.MULTILINE)
    return text


def passages(path: Path) -> list[str]:
    """The Markdown of a page, the captions of a notebook, the docstrings of a module."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        captions = [cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "") for cell in cells]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"] + captions
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(path.read_text()))
        named = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        return [ast.get_docstring(node) or "" for node in nodes if isinstance(node, named)]
    return [path.read_text()]


def findings(checker: Linter, text: str) -> list[str]:
    said = english(text)
    return [
        f"{rule}: {said[max(0, at.span.start - 40) : at.span.end + 40]!r}: {at.message}"
        for rule, found in checker.organized_lints(said).items()
        for at in found
        if rule not in LEFT_OUT and at.problem_text not in RIGHT
    ]


@pytest.fixture(scope="module")
def checker() -> Linter:
    return Linter(dialect=Dialect.BRITISH)


@pytest.mark.parametrize("path", READ, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_grammar(path: Path, checker: Linter) -> None:
    found = [line for text in passages(path) for line in findings(checker, text)]
    assert not found, "\n".join(found)


def test_the_checker_finds_slips(checker: Linter) -> None:
    """What it is here for: articles, doubled words, wrong forms; code and mathematics are masked."""
    for slip in (
        "This is a example of an attack.",
        "It finds the the code of an image.",
        "Their are two encoders, and the model could of learnt.",
    ):
        assert findings(checker, slip), slip
    masked = "The set $A(x)$ is a ball: `a a` and {eq}`an the` are not read.\n\n```python\nan the\n```\n"
    assert not findings(checker, masked)
