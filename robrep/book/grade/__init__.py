"""Grade returned notebooks: ``python -m robrep.book.grade NOTEBOOK ... [--csv FILE] [--feedback FOLDER]``

Each notebook runs from top to bottom at the scale "smoke", without its solution cells and without stopping at errors,
in a kernel that reaches no network, writes into a scratch folder only, and has limited memory and time. The notebook
does not grade itself: whatever it hands to ``check``, in whatever way, is called from the grader's own process, by the
grader's own copy of the checks. The answer sees its arguments; what is expected of it, and the verdict, stay with the
grader. What the notebook prints counts for nothing.
One line an exercise says

    passed    the check passed
    wrong     it did not; with what was seen and the hint
    noted     an answer in prose, given in full, which the teacher judges by the rubric of the teacher's notebook
    empty     the function still returns nothing, or the code is the given one
    error     the cell failed before its check, or the answer took too long, or the notebook ended its kernel
    missing   the notebook never handed an answer to this check

A notebook that cannot be run at all (not JSON, not UTF-8, no chapter of the book) is named, and the class goes on. The
exit status is 0 if every exercise of every notebook passed or was noted, 1 if not, 2 if a notebook could not be run.
"""

from __future__ import annotations

import contextlib
import functools
import html
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robrep.book.exercises import EXERCISES, check
from robrep.book.grade.kernel import Kernel, Lost
from robrep.book.grade.remote import HERE, Remote, unpack
from robrep.book.site.run import ChapterError, batch_environment, parameters, read_notebook
from robrep.files import atomic_write, code_hash

CELL_SECONDS = 120  # of a cell that holds a check, and of judging one answer
RUN_SECONDS = 1200  # of any other cell, which may train, and of the notebook
MEMORY = 8.0  # GiB
SEED = 1  # of the models and data that judge design tasks; the chapters show those of seed 0
STATES = ("passed", "wrong", "noted", "empty", "error", "missing")
_CALL = re.compile(r"""(?<![\w.])check\([^)]*?["']([\w.]+)["']""")


@dataclass(frozen=True)
class Grade:
    """What became of one exercise.

    Attributes:
        exercise: its name, such as "vae_urkle.wilson".
        state: one of :data:`STATES`.
        message: what the check, or the error, said.
    """

    exercise: str
    state: str
    message: str = ""


def grade(notebook: Path, *, seconds: float = CELL_SECONDS, memory: float = MEMORY, seed: int = SEED) -> list[Grade]:
    """Run a notebook and judge every exercise of its chapter, in the chapter's order.

    Args:
        notebook: the returned file; it is not changed.
        seconds: how long a cell with a check may take, and how long judging one answer may.
        memory: what the notebook may use, GiB.
        seed: of the models and data that judge design tasks.

    Raises:
        ChapterError: not a notebook, no exercise of the book in it, or no cell tagged ``parameters``.
    """
    try:
        nb = read_notebook(notebook)
    except UnicodeDecodeError:
        raise ChapterError(f"{notebook}: not a notebook (not UTF-8)") from None
    cells = [c for c in nb.cells if c.cell_type == "code" and "solution" not in c.metadata.get("tags", [])]
    asked = [name for cell in cells for name in _CALL.findall(cell.source) if name in EXERCISES]
    smoke = "SCALE" in parameters(nb, notebook.stem)
    before = code_hash.__wrapped__(kit=True)
    found: dict[str, Grade] = {}
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(batch_environment(Path(), "smoke"))
            kernel = stack.enter_context(Kernel(memory, {"ROBREP_RESULTS": "results"}))
            _run(kernel, cells, smoke, seconds, seed, found)
    except Lost as lost:
        found |= {name: Grade(name, "error", str(lost)) for name in asked if name not in found}
    if code_hash.__wrapped__(kit=True) != before:
        raise ChapterError(f"{notebook}: it has changed robrep's own files; install robrep anew before you go on")
    chapters = {name.partition(".")[0] for name in [*asked, *found]}
    if not chapters:
        raise ChapterError(f"{notebook}: no cell checks an exercise of the book")
    every = [name for name in EXERCISES if name.partition(".")[0] in chapters]
    return [found.get(name, Grade(name, "missing")) for name in every]


def _run(kernel: Kernel, cells: Sequence[Any], smoke: bool, seconds: float, seed: int, found: dict[str, Grade]) -> None:
    """Execute the cells; judge each answer after the cell that gave it."""
    end = time.monotonic() + RUN_SECONDS
    kernel.run(f"{HERE}.listen()", CELL_SECONDS)
    for cell in cells:
        names = [name for name in _CALL.findall(cell.source) if name in EXERCISES]
        limit = min(seconds if names else RUN_SECONDS, end - time.monotonic())
        try:
            if limit <= 0:
                raise Lost(f"the notebook took more than {RUN_SECONDS} seconds")
            _, error = kernel.run(cell.source, limit)
            answers = json.loads(kernel.ask(f"{HERE}.news()", seconds))
        except Lost as lost:
            found |= {name: Grade(name, "error", str(lost)) for name in names}
            if limit <= 0 or not kernel.manager.is_alive():
                raise
            continue
        if smoke and "parameters" in cell.metadata.get("tags", []):
            kernel.run('SCALE = "smoke"', seconds)
        for name, callable_ in answers.items():
            if name in EXERCISES:
                found[name] = judge(kernel, name, callable_, seconds, seed)
        if error:
            found |= {name: Grade(name, "error", error) for name in names if name not in answers}


def judge(kernel: Kernel, name: str, is_function: bool, seconds: float, seed: int) -> Grade:
    """Check the answer that the kernel holds, here."""
    end = time.monotonic() + seconds
    ask = lambda expression: kernel.ask(expression, max(0.1, end - time.monotonic()))  # noqa: E731
    try:
        answer = Remote(name, ask) if is_function else unpack(json.loads(ask(f"{HERE}.value({name!r})")))
        with contextlib.redirect_stdout(io.StringIO()):
            verdict = check(name, answer, seed=seed)
    except Lost as lost:
        if not kernel.manager.is_alive():
            raise
        return Grade(name, "error", str(lost))
    except Exception as error:  # a reply that makes the check itself fail
        return Grade(name, "wrong", f"the check could not read the answer ({type(error).__name__}: {error})")
    told = str(answer) if verdict.state == "noted" else verdict.message.partition(": ")[2]
    return Grade(name, verdict.state, told.strip())


def feedback(notebook: Path, grades: Sequence[Grade], to: Path) -> Path:
    """Write a participant's page: each exercise, what became of it, and the hint.

    Returns:
        The page, ``<notebook's name>.html`` in the folder ``to``.
    """
    told = functools.partial(html.escape, quote=True)
    rows = "\n".join(
        f'<tr class="{g.state}"><td>{told(g.exercise)}</td><td>{g.state}</td><td>{told(g.message)}</td></tr>'
        for g in grades
    )
    passed, noted = (sum(g.state == state for g in grades) for state in ("passed", "noted"))
    open_ = f"; your teacher marks {noted} in prose" if noted else ""
    page = to / f"{notebook.stem}.html"
    with atomic_write(page) as temporary:
        temporary.write_text(
            f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{told(notebook.stem)}: {passed} of {len(grades)}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .4rem .8rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top; }}
.passed td:nth-child(2) {{ color: #1a7f37; }} .wrong td:nth-child(2), .error td:nth-child(2) {{ color: #b3261e; }}
</style>
<h1>{told(notebook.stem)}</h1>
<p>{passed} of {len(grades)} exercises passed{open_}.</p>
<table><thead><tr><th>exercise</th><th>result</th><th>what the check says</th></tr></thead>
<tbody>
{rows}
</tbody></table>
</html>
""",
            encoding="utf-8",
        )
    return page
