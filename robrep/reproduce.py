"""Run a chapter's experiment without its pages: ``python -m robrep.reproduce CHAPTER NAME=value ...``

A chapter marks the cells that make up its experiment with the tag ``reproduce``: settings, data, training, evaluation,
recording. This module runs the cell tagged ``parameters``, sets the parameters named on the command line, and runs
those cells in order, as a plain script: what is recorded is what the chapter computes, by the same lines. Under
``torchrun`` every process runs them, training is spread over the processes, and the first one records. For example::

    python -m robrep.reproduce vae_urkle SCALE=lite
    torchrun --nproc-per-node 4 -m robrep.reproduce vae_urkle SCALE=full ROWS=vae_urkle
"""

from __future__ import annotations

import ast
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robrep.checks import one_of


def find_chapter(name: str) -> Path:
    """The notebook of a chapter: a path to an ``.ipynb``, or a name looked up in ``book/`` of the checkout.

    The checkout is the nearest folder with a ``_config.yml`` above the working directory, else the one that robrep was
    installed from in editable mode.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the checkout has no chapter of that name.
    """
    if name.endswith(".ipynb"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"chapter is {name!r}, expected the path of a notebook that exists")
        return Path(name)
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]):
        book = folder / "book"
        if (folder / "_config.yml").is_file() and book.is_dir():
            names = sorted(p.stem for p in book.glob("*.ipynb") if parameter_cell(p, optional=True) is not None)
            return book / f"{one_of('chapter', name, names)}.ipynb"
    raise FileNotFoundError(f"chapter is {name!r}, but there is no checkout of the book here; give a notebook's path")


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, each with ``index``, ``source`` and ``tags``."""
    found = []
    for index, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            tags = cell["metadata"].get("tags", [])
            found.append({"index": index, "source": "".join(cell["source"]), "tags": tags})
    return found


def parameter_cell(notebook: Path, *, optional: bool = False) -> dict[str, Any] | None:
    """The cell tagged ``parameters``.

    Raises:
        ValueError: there is not exactly one, unless ``optional``.
    """
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["tags"]]
    if len(tagged) == 1:
        return tagged[0]
    if optional:
        return None
    raise ValueError(f"{notebook} has {len(tagged)} cells tagged 'parameters', expected one")


def defaults(notebook: Path) -> dict[str, Any]:
    """Names and values of the parameters, which must be literals."""
    cell = parameter_cell(notebook)
    assert cell is not None
    values = {}
    for statement in ast.parse(cell["source"]).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            (target,) = statement.targets
            if isinstance(target, ast.Name):
                values[target.id] = ast.literal_eval(statement.value)
    return values


def parse(arguments: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """``NAME=value`` texts to values of the type that each parameter has by default.

    Raises:
        ValueError: a text without "=", an unknown name, or a value that does not fit.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"argument is {argument!r}, expected NAME=value")
        kind = type(known[one_of("parameter", name, known)])
        try:
            if kind is bool:
                values[name] = {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
            elif kind in (dict, list, tuple):
                values[name] = kind(ast.literal_eval(text))
            else:
                values[name] = kind(text)
        except (ValueError, KeyError, SyntaxError, TypeError):
            raise ValueError(f"{name} is {text!r}, expected {kind.__name__} such as {known[name]!r}") from None
    return values


def reproduce(chapter: str, **parameters: Any) -> dict[str, Any]:
    """Run the experiment of ``chapter`` with these parameters; the cells' namespace is returned.

    Raises:
        FileNotFoundError, ValueError: no such chapter, an unknown parameter, or cells that are not marked.
        Exception: whatever a cell raises; a note names the notebook, the cell and the line.
    """
    notebook = find_chapter(chapter)
    known = defaults(notebook)
    for name in parameters:
        one_of("parameter", name, known)
    marked = [cell for cell in cells(notebook) if "reproduce" in cell["tags"] and "parameters" not in cell["tags"]]
    if not marked:
        raise ValueError(f"{notebook} has no cell tagged 'reproduce'")
    namespace: dict[str, Any] = {"__name__": "__main__"} | known | parameters
    for cell in marked:
        name = f"<{notebook.name}, cell {cell['index']}>"
        try:
            exec(compile(cell["source"], name, "exec"), namespace)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
            if frames and frames[-1].lineno:
                error.add_note(f"{name}: {cell['source'].splitlines()[frames[-1].lineno - 1].strip()}")
            raise
    return namespace


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module's docstring."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    began = time.monotonic()
    try:
        parameters = parse(arguments[1:], defaults(find_chapter(arguments[0])))
    except (ValueError, FileNotFoundError) as error:
        print(f"robrep.reproduce: {error}", file=sys.stderr)
        return 2
    reproduce(arguments[0], **parameters)
    minutes = (time.monotonic() - began) / 60
    print(f"robrep.reproduce: {' '.join(arguments)}: done in {minutes:.1f} minutes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
