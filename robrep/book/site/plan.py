"""A plan of many runs: chapters x scales x data sets x seeds, each run once; ``book/Snakefile`` carries it out.

The plan is a YAML file such as ``book/runs.yaml``::

    results: _build/workflow/results        # where the records go
    runs:
      - chapters: [vae_urkle, byorl]        # every combination of what is listed
        SCALE: demo
        SEED: [0, 1, 2]
        minutes: 3                          # a guess at what one run costs; a recorded run of the kind goes before it
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robrep.book.files import write_csv
from robrep.book.site.run import ChapterError, check_parameters, parameters, read_notebook
from robrep.files import code_hash, digest

# the columns of the tables
_METRIC = ["value", "low", "high", "n", "unit"]
RECORDS = ["chapter", "scale", "dataset", "row", "variant", "seed", "metric", *_METRIC, "run_minutes"]
_OURS = ["ours", "low", "high", "scale", "seeds"]
PUBLISHED = ["paper", "table", "row", "column", "dataset", "published", "spread", *_OURS]


@dataclass(frozen=True)
class Planned:
    """One run of a plan.

    Attributes:
        name: of its executed notebook; chapter, scale, then the parameters that were set.
        chapter: the notebook's name.
        values: the parameters that are set, checked and converted.
        scale: the scale it runs at.
        key: hash of the chapter's code, the parameters and robrep; when it changes, the run is made again. Prose and
            figures' captions do not count.
        minutes: what it is expected to cost; None if unknown.
        because: where ``minutes`` comes from.
    """

    name: str
    chapter: str
    values: dict[str, Any]
    scale: str
    key: str
    minutes: float | None
    because: str


def make_plan(config: Mapping[str, Any], book: Path) -> dict[str, Planned]:
    """Every run of a plan by its name, checked against the chapters' parameters.

    Args:
        config: the plan, as read from its YAML file.
        book: the folder of the notebooks.

    Raises:
        ChapterError: a chapter or parameter that does not exist, a value of another type, a run that is named twice,
            or an entry that is not as the module's docstring says.
    """
    plan: dict[str, Planned] = {}
    if not isinstance(config.get("runs"), list) or not config["runs"]:
        raise ChapterError(f"runs is {config.get('runs')!r}, expected a list of entries with chapters and parameters")
    for number, entry in enumerate(config["runs"]):
        for planned in _entry(entry, f"runs[{number}]", book):
            if planned.name in plan:
                raise ChapterError(f"runs[{number}]: {planned.name} is already in the plan")
            plan[planned.name] = planned
    return plan


def _entry(entry: Any, where: str, book: Path) -> Iterator[Planned]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("chapters"), list):
        raise ChapterError(f"{where} is {entry!r}, expected chapters: [name, ...] and parameters")
    guess = entry.get("minutes")
    if guess is not None and (isinstance(guess, bool) or not isinstance(guess, int | float) or guess <= 0):
        raise ChapterError(f"{where}: minutes is {guess!r}, expected a number above 0")
    choices = {name: value for name, value in entry.items() if name not in ("chapters", "minutes")}
    lists = [value if isinstance(value, list) else [value] for value in choices.values()]
    for chapter in entry["chapters"]:
        nb = read_notebook(book / f"{chapter}.ipynb")
        known = parameters(nb, chapter)
        code = [cell.source for cell in nb.cells if cell.cell_type == "code"]
        for combination in itertools.product(*lists):
            values = check_parameters(dict(zip(choices, combination, strict=True)), known, chapter)
            scale = str(values.get("SCALE", known.get("SCALE", "")))
            minutes, because = projected(chapter, {**known, **values}, guess, book / "results")
            rest = [f"{name}={value}" for name, value in values.items() if name != "SCALE"]
            name = re.sub(r"[^A-Za-z0-9_.=-]+", "_", "-".join([chapter, *([scale] if scale else []), *rest]))
            key = digest([code, {**known, **values}, code_hash(kit=True)])
            yield Planned(name, chapter, values, scale, key, minutes, because)


def projected(chapter: str, values: Mapping[str, Any], guess: float | None, folder: Path) -> tuple[float | None, str]:
    """Minutes that a run is expected to take, and where that comes from.

    A seed's main runs that were recorded for this chapter, scale and data set, added up; else the plan's own guess.
    """
    from robrep.book import results

    found = results.runs(chapter, scale=values.get("SCALE"), dataset=values.get("DATASET") or None, folder=folder)
    if not values.get("SWEEP") and (main := [run for run in found if not run.variant]):
        first = [run for run in main if (run.dataset, run.seed) == (main[0].dataset, main[0].seed)]
        return sum(run.minutes for run in first), f"recorded on {first[0].device}"
    return (guess, "the plan's guess") if guess is not None else (None, "not known")


def describe(plan: Sequence[Planned], done: Sequence[str]) -> str:
    """The plan as text: a line a run, with what it is expected to cost, and the sum of those not done yet."""
    width = max(len(planned.name) for planned in plan)
    lines, left = [], [planned for planned in plan if planned.name not in done]
    for planned in plan:
        cost = "cost not known" if planned.minutes is None else f"{planned.minutes:.1f} min ({planned.because})"
        lines.append(f"{planned.name:<{width}}  {'done' if planned.name in done else cost}")
    unknown = sum(planned.minutes is None for planned in left)
    total = f"{len(left)} of {len(plan)} runs to do, {sum(planned.minutes or 0 for planned in left):.0f} min one by one"
    return "\n".join([*lines, total + (f", and {unknown} of unknown cost" if unknown else "")])


def write_tables(plan: Sequence[Planned], records: Path, target: Path) -> None:
    """``records.csv`` and ``published.csv`` in ``target``, from the records that the runs of a plan have written.

    The first has one line a metric of a recorded run, the second one line a published number with what answers it.
    """
    from robrep.book import results

    chapters = sorted({planned.chapter for planned in plan})
    rows = [
        [run.chapter, run.scale, run.dataset, run.row, run.variant, run.seed, name, *_numbers(metric), run.minutes]
        for chapter in chapters
        for run in results.runs(chapter, folder=records)
        for name, metric in run.metrics.items()
    ]
    write_csv(target / "records.csv", RECORDS, rows)
    rows = []
    for paper in results.papers():
        for value in results.published(paper):
            answer = results.ours(value, folder=records)
            ran: list[Any] = [""] * len(_OURS)
            if answer:
                ran = [*_numbers(answer.metric)[:3], answer.runs[0].scale, len(answer.runs)]
            number = [value.table, value.row, value.column, value.dataset, value.value, value.spread]
            rows.append([paper, *number, *ran])
    write_csv(target / "published.csv", PUBLISHED, rows)


def _numbers(metric: Any) -> list[Any]:
    return [getattr(metric, name) for name in _METRIC]
