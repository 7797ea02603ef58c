"""A Sphinx extension: docstrings are plain sentences, in which ``|x|`` and ``*shape`` mean themselves.

reStructuredText would take them for a substitution and for emphasis. Literals (double backticks) are left as they are.
"""

from __future__ import annotations

import re
from typing import Any

LITERAL = re.compile(r"(``.+?``)")


def escape(line: str) -> str:
    """``line`` with the bars and stars outside its literals escaped."""
    parts = LITERAL.split(line)
    return "".join(part if i % 2 else re.sub(r"(?<!\\)([|*])", r"\\\1", part) for i, part in enumerate(parts))


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """autodoc's hook; changes ``lines`` in place, before napoleon reads the sections."""
    if name.startswith("robrep"):
        lines[:] = [escape(line) for line in lines]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's entry."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
