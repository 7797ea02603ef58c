"""The command line; see :mod:`robrep.book.grade`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from robrep.book import grade
from robrep.book.files import write_csv
from robrep.book.grade.confine import not_enforced
from robrep.book.site.run import ChapterError
from robrep.progress import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade a class; returns the exit status."""
    about = (grade.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m robrep.book.grade", description=about)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the grades there too")
    parser.add_argument("--feedback", type=Path, metavar="FOLDER", help="write a page for each notebook there")
    parser.add_argument(
        "--seconds", type=float, default=grade.CELL_SECONDS, help="for a cell with a check (%(default)s)"
    )
    parser.add_argument(
        "--memory", type=float, default=grade.MEMORY, metavar="GIB", help="GiB a notebook may use (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=grade.SEED, help="draws the models and data of design tasks (%(default)s)"
    )
    options = parser.parse_args(arguments)
    for line in not_enforced():
        print(f"grade: not enforced on this machine: {line}", file=sys.stderr)
    rows, failed = [], False
    for notebook in options.notebooks:
        try:
            grades = grade.grade(notebook, seconds=options.seconds, memory=options.memory, seed=options.seed)
        except ChapterError as error:
            print(error, file=sys.stderr)
            rows.append((str(notebook), "", "not run", str(error)))
            failed = True
            continue
        print(f"{notebook}: {sum(g.state == 'passed' for g in grades)} of {len(grades)} passed")
        width = max(len(g.exercise) for g in grades)
        for g in grades:
            message = "" if g.state == "passed" else g.message
            print(printable(f"  {g.state:<8}{g.exercise:<{width}}  {message}".rstrip()))
        rows += [(str(notebook), g.exercise, g.state, g.message) for g in grades]
        if options.feedback:
            grade.feedback(notebook, grades, options.feedback)
    if options.csv:
        write_csv(options.csv, ("notebook", "exercise", "state", "message"), rows)
    return 2 if failed else int(any(state not in ("passed", "noted") for _, _, state, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
