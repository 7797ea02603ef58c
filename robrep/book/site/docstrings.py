"""A Sphinx extension: docstrings are plain sentences, in which ``|x|`` and ``*shape`` mean themselves.

reStructuredText would take them for a substitution and for emphasis. Literals (double backticks) are left as they are,
and so is real emphasis, ``*words*`` between two stars. Docstrings that Python makes up itself are left out, and the
general remarks on ``forward`` that every network inherits from PyTorch.
"""

from __future__ import annotations

import re
from typing import Any

KEPT = re.compile(r"(``.+?``|(?<![\w*\\])\*[A-Za-z][A-Za-z ]*\*(?![\w*]))")  # literals and emphasis
INHERITED = "Define the computation performed at every call."  # nn.Module.forward


def escape(line: str) -> str:
    """``line`` with the bars and stars outside its literals escaped, but for the stars of emphasis."""
    parts = KEPT.split(line)
    return "".join(part if i % 2 else re.sub(r"(?<!\\)([|*])", r"\\\1", part) for i, part in enumerate(parts))


def escape_prose(lines: list[str]) -> list[str]:
    """``lines`` with the prose escaped; indented blocks after a ``::`` and doctests are code, and stay."""
    result, block = [], -1  # block: the indent of the paragraph that opened the literal block
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= block:
            block = -1
        code = block >= 0 or line.lstrip().startswith((">>> ", "... "))
        result.append(line if code else escape(line))
        if block < 0 and line.rstrip().endswith("::"):
            block = indent
    return result


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """autodoc's hook; changes ``lines`` in place, before napoleon reads the sections."""
    if not name.startswith("robrep"):
        return
    if lines and lines[0] == INHERITED:
        lines[:] = ["The training step: the terms of the loss by name."] if name.startswith("robrep.methods.") else []
    lines[:] = escape_prose(lines)


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """autodoc's hook: leave out a named tuple's fields with Python's own "Alias for field number 0"."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number ") else None


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's entry."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
