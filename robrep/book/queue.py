"""The queue of ``book/runs.yaml``: what is worth running next on a GPU, the best first.

python -m robrep.book.queue                        the list: what is done, and what the rest costs on one H200
python -m robrep.book.queue --run                  run the first item that is not done
python -m robrep.book.queue --run --minutes 10     run the first that is not done and fits into ten minutes

A run that was interrupted goes on from its last checkpoint when the same command is given again; to go on elsewhere,
take the folder named by ``ROBREP_CACHE`` along. What it records appears on the pages at the next ``make book``.
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robrep.book import results
from robrep.book.costs import gpu_hours
from robrep.book.experiment import Settings, at_scale
from robrep.book.reproduce import defaults, find_chapter, parse


@dataclass(frozen=True)
class Item:
    """One run of the queue.

    Attributes:
        line: the words after ``python -m robrep.book.reproduce``.
        why: what it is good for.
        minutes: of its trainings on one H200: from measured steps, else the file's guess; None if neither is known.
        done: whether every row is recorded.
    """

    line: str
    why: str
    minutes: float | None
    done: bool


def read_queue(file: Path) -> list[Item]:
    """The items of a plan's ``queue``, in order.

    Raises:
        ValueError: an entry without ``run`` and ``why``, or a run that its chapter does not know.
    """
    return [_item(entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get("queue", [])]


def _item(entry: dict[str, Any]) -> Item:
    if not isinstance(entry, dict) or not {"run", "why"} <= set(entry) <= {"run", "why", "minutes"}:
        raise ValueError(f"queue holds {entry!r}, expected run, why and perhaps minutes")
    chapter, *words = shlex.split(entry["run"])
    known = defaults(find_chapter(chapter))
    given = known | parse(words, known)
    column = at_scale(chapter, given["SCALE"], given.get("DATASET", ""))
    s = Settings(chapter, given["SCALE"], column).changed(given.get("SETTINGS", {}))
    rows = [row for row in given["ROWS"].split(",") if row]
    found = {
        run.row
        for run in results.runs(chapter, scale=s.scale, dataset=s.dataset)
        if (run.seed, run.variant) == (given["SEED"], s.variant())
    }
    hours = [gpu_hours(chapter, row, s.dataset, s.differing()) if s.scale == "full" else None for row in rows]
    minutes = 60 * sum(h for h in hours if h) if hours and None not in hours else entry.get("minutes")
    return Item(entry["run"], entry["why"], minutes, set(rows) <= found if rows else bool(found))


def next_item(items: Sequence[Item], minutes: float = math.inf) -> Item | None:
    """The first item that is not done and fits; one of unknown cost fits only without a limit."""
    fits = (i for i in items if not i.done and (math.inf if i.minutes is None else i.minutes) <= minutes)
    return next(fits, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m robrep.book.queue", description=about)
    parser.add_argument("--run", action="store_true", help="run the first item that is not done")
    parser.add_argument("--minutes", type=float, default=math.inf, help="that takes no longer than this on one H200")
    parser.add_argument("--plan", type=Path, default=Path("book/runs.yaml"), help="the file (%(default)s)")
    options = parser.parse_args(arguments)
    items = read_queue(options.plan)
    if not options.run:
        for item in items:
            cost = "cost not known" if item.minutes is None else f"{item.minutes:,.0f} min"
            print(f"{'done' if item.done else cost:>14}  {item.line}\n{'':>14}  {item.why}")
        return 0
    found = next_item(items, options.minutes)
    if found is None:
        print(f"queue: nothing is left that takes at most {options.minutes:g} minutes")
        return 0
    print(f"queue: {found.line} ({found.why})", flush=True)
    command = [sys.executable, "-m", "robrep.book.reproduce", *shlex.split(found.line)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
