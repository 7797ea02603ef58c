"""Source code and stacked parts as a page, a notebook and a terminal show them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from robrep import suites
from robrep.attacks import Adversary
from robrep.book import results
from robrep.book.figures import source
from robrep.book.reproduce import cells
from robrep.methods import VAEUrkle


def test_the_source_of_methods_and_functions_without_docstrings() -> None:
    shown = source(VAEUrkle.forward, Adversary.worst_case)
    first, second = ast.parse(shown).body
    assert isinstance(first, ast.FunctionDef) and isinstance(second, ast.FunctionDef)
    assert (first.name, second.name) == ("forward", "worst_case") and '"""' not in shown
    assert Adversary.worst_case.__doc__ and "return divergence(reference, model(x_adv))" in shown
    assert shown._repr_markdown_() == f"```python\n{shown}\n```" and repr(shown) == str(shown)


@pytest.mark.parametrize("chapter", sorted((Path(__file__).parents[1] / "book").glob("*.ipynb")), ids=lambda p: p.stem)
def test_listings_fit_the_box_of_a_page(chapter: Path) -> None:
    """At 1440 px a page shows 97 characters of code; what a chapter lists is found without running the chapter."""
    names: dict[str, Any] = {"attacked_by_all": cells}  # a stand-in for a chapter's own function
    trees = [ast.parse(TransformerManager().transform_cell(cell["source"])) for cell in cells(chapter)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), names)  # noqa: S102
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "figures.source":
            wide = [line for line in eval(ast.unparse(node), names).split("\n") if len(line) > 96]  # noqa: S307
            assert not wide


class Bare(Exception):
    """Nothing else."""


def test_the_source_of_a_class_keeps_everything_but_docstrings() -> None:
    whole = source(VAEUrkle)
    assert whole.startswith("class VAEUrkle(") and source(VAEUrkle.forward).split("\n")[1] in whole
    assert '"""' not in whole and '"""' in source(Bare), "a docstring that is the whole body stays"


def test_the_source_of_a_variable() -> None:
    (node,) = ast.parse(source("robrep.suites.SUITES")).body
    assert isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    assert [ast.literal_eval(k) for k in node.value.keys if k] == list(suites.SUITES)
    assert source("robrep.book.comparison.ROWS").startswith("ROWS: dict[str, Row] = {")


@pytest.mark.parametrize(
    ("part", "kind", "said"),
    [
        (len, TypeError, "parts has <built-in function len>, expected a function, a method or a class written in"),
        (3, TypeError, "parts has 3, expected"),
        ("SUITES", ValueError, "parts has 'SUITES', expected the dotted name of a module's variable"),
        ("robrep.nowhere.SUITES", ValueError, "expected the dotted name of a module's variable"),
        ("robrep.suites.SUITE", ValueError, "robrep.suites assigns no variable of this name"),
    ],
)
def test_what_has_no_source(part: Any, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        source(part)


def test_parts_one_below_the_other() -> None:
    table = results.Table([["a", 1]], ["name", "count"])
    both = results.Stack("x < y", table, results.Fold("more", table))
    html = both._repr_html_()
    assert html.startswith("<p>x &lt; y</p>") and html.count("<table") == 2 and html.count("<details") == 1
    assert repr(both).split("\n\n")[0] == "x < y" and repr(table) in repr(both)
