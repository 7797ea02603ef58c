"""Grade returned notebooks: ``python -m robrep.book.grade NOTEBOOK ... [--csv FILE]``

Each notebook is run from top to bottom at the scale "smoke" in a kernel of its own, without its solution cells and
without stopping at errors, and the verdicts of its checks are read off. One line an exercise says

    passed    the check passed
    wrong     it did not; with what was seen and the hint
    empty     the function still returns nothing
    error     the cell failed before its check could speak, or took too long
    missing   the notebook has no such check (any more), or it printed nothing

The exit status is 0 if every exercise of every notebook passed, 1 if not, 2 if a notebook could not be run. A returned
notebook is a program: run it where a stranger's program may run.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robrep.book.exercises import EXERCISES
from robrep.book.files import write_csv
from robrep.book.site.run import ChapterError, batch_environment, parameters, read_notebook, strip_ansi
from robrep.progress import printable

CELL_SECONDS = 120  # of a cell that holds a check
RUN_SECONDS = 1200  # of any other cell, which may train
STATES = ("passed", "wrong", "empty", "error", "missing")
_CALL = re.compile(r"""(?<![\w.])check\(\s*["']([\w.]+)["']""")
_VERDICT = re.compile(r"^([✓✗…]) ([\w.]+): (.*)$", re.MULTILINE)
_STATE = {"✓": "passed", "✗": "wrong", "…": "empty"}


@dataclass(frozen=True)
class Grade:
    """What became of one exercise.

    Attributes:
        exercise: its name, such as "vae_urkle.kl".
        state: one of :data:`STATES`.
        message: what the check, or the error, said.
    """

    exercise: str
    state: str
    message: str = ""


def grade(notebook: Path, *, seconds: int = CELL_SECONDS) -> list[Grade]:
    """Run a notebook and read off the verdict of every exercise of its chapter, in the chapters' order.

    Args:
        notebook: the returned file; it is not changed. Its folder is the working directory of the run.
        seconds: how long a cell with a check may take.

    Raises:
        ChapterError: no notebook, no exercise in it, or no cell tagged ``parameters``.
    """
    nb = read_notebook(notebook)
    nb.cells = [cell for cell in nb.cells if "solution" not in cell.metadata.get("tags", [])]
    asked = [name for cell in nb.cells if cell.cell_type == "code" for name in _CALL.findall(cell.source)]
    chapters = {name.partition(".")[0] for name in asked if name in EXERCISES}
    if not chapters:
        raise ChapterError(f"{notebook}: no cell checks an exercise of the book")
    run_at_smoke(nb, notebook, seconds)
    found: dict[str, Grade] = {}
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        names, said, error = _CALL.findall(cell.source), *spoken(cell)
        for mark, name, words in _VERDICT.findall(said):
            if name in names:
                found[name] = Grade(name, _STATE[mark], words)
        if error:
            silent = [name for name in names if name not in {each for _, each, _ in _VERDICT.findall(said)}]
            found |= {name: Grade(name, "error", error) for name in silent}
    every = [name for name in EXERCISES if name.partition(".")[0] in chapters]
    return [found.get(name, Grade(name, "missing")) for name in every]


def spoken(cell: Any) -> tuple[str, str]:
    """What an executed cell printed, and the first line of its error ("" if there was none)."""
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    errors = [f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
    return printed, strip_ansi(errors[0]).splitlines()[0] if errors else ""


def run_at_smoke(nb: Any, notebook: Path, seconds: int) -> None:
    """Execute ``nb`` in place with SCALE = "smoke", going on after errors; the records that it writes are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nbclient import NotebookClient
        from nbformat.v4 import new_code_cell
    known = parameters(nb, notebook.stem)
    at = next(i for i, cell in enumerate(nb.cells) if "parameters" in cell.metadata.get("tags", []))
    if "SCALE" in known:
        nb.cells.insert(at + 1, new_code_cell('SCALE = "smoke"'))
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    with tempfile.TemporaryDirectory() as records, batch_environment(Path(records), "smoke"):
        NotebookClient(
            nb,
            kernel_name="python3",
            allow_errors=True,
            interrupt_on_timeout=True,
            timeout_func=lambda cell: seconds if _CALL.search(cell.source) else RUN_SECONDS,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own warnings are not the participant's
            resources={"metadata": {"path": str(notebook.resolve().parent)}},
        ).execute()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m robrep.book.grade", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the grades there too")
    options = parser.parse_args(arguments)
    rows, failed = [], False
    for notebook in options.notebooks:
        try:
            grades = grade(notebook)
        except ChapterError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        print(f"{notebook}: {sum(g.state == 'passed' for g in grades)} of {len(grades)} passed")
        width = max(len(g.exercise) for g in grades)
        for g in grades:
            message = "" if g.state == "passed" else g.message
            print(printable(f"  {g.state:<8}{g.exercise:<{width}}  {message}".rstrip()))
        rows += [(str(notebook), g.exercise, g.state, g.message) for g in grades]
    if options.csv:
        write_csv(options.csv, ("notebook", "exercise", "state", "message"), rows)
    return 2 if failed else int(any(state != "passed" for _, _, state, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
