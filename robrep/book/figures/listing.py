"""Source code as a page, a notebook and a terminal show it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from importlib import import_module
from typing import Any


class Source(str):
    """Python code that a notebook shows with its colours."""

    def _repr_markdown_(self) -> str:
        return f"```python\n{self}\n```"

    def __repr__(self) -> str:
        return str(self)


def source(*parts: Any) -> Source:
    """The code of functions, methods and classes, shown at the end of a cell; docstrings are left out.

    Args:
        parts: functions, methods, classes; or the dotted name of a module's variable, for example
            ``"robrep.suites.SUITES"``.

    Raises:
        TypeError: a part has no Python source.
        ValueError: a name is not that of a variable that its module assigns.
    """
    return Source("\n\n".join(_variable(part) if isinstance(part, str) else _code(part) for part in parts))


def _code(part: Any) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(part)).rstrip()
    except (TypeError, OSError) as error:
        raise TypeError(f"parts has {part!r}, expected a function, a method or a class written in Python") from error
    lines: list[str | None] = list(text.split("\n"))
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        doc = node.body[0]
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            for number in range(doc.lineno, (doc.end_lineno or doc.lineno) + 1):
                lines[number - 1] = None
    return "\n".join(line for line in lines if line is not None)


def _variable(name: str) -> str:
    module, _, variable = name.rpartition(".")
    try:
        text = inspect.getsource(import_module(module))
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise ValueError(f"parts has {name!r}, expected the dotted name of a module's variable") from error
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            return ast.get_source_segment(text, node) or ""
    raise ValueError(f"parts has {name!r}, and {module} assigns no variable of this name")
