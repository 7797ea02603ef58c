"""Published numbers, and the table that compares them with recorded ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robrep.book.results.origin import recorded_folder
from robrep.book.results.records import Run, runs
from robrep.book.results.schema import (
    MATCH,
    PAPER,
    THREAT,
    VALUE,
    check_fields,
    check_least,
    check_range,
    check_schema_number,
    read_json,
)
from robrep.book.results.showing import Fold, Metric, Table
from robrep.checks import one_of
from robrep.progress import printable

#: Scales whose data and task are the paper's own, best first: only these ever stand beside a published number.
COMPARABLE = ("full", "lite")


@dataclass(frozen=True)
class PublishedValue:
    """One number of a paper. See ``book/published/README.md`` for every field; ``unit`` is "%" for all rates."""

    paper: str
    table: str
    row: str
    column: str
    value: float
    decimals: int
    spread: float | None
    unit: str
    dataset: str
    threat: dict[str, Any] | None
    labels: int | str
    head: str
    note: str
    match: dict[str, str] | None = None

    @property
    def text(self) -> str:
        """The number as the paper prints it."""
        spread = "" if self.spread is None else f" ± {self.spread:.{self.decimals}f}"
        return f"{self.value:.{self.decimals}f}{spread}"

    def __str__(self) -> str:
        return printable(self.text)


def papers() -> list[str]:
    """Keys of the papers with published numbers, in alphabetical order."""
    folder = recorded_folder("published")
    return [] if folder is None else sorted(p.stem for p in folder.glob("[!.]*.json"))


def published(paper: str, *, table: str | None = None) -> list[PublishedValue]:
    """The published numbers of a paper, in the order of its tables.

    Args:
        paper: its key in ``book/references.bib``, for example "nguyen2022".
        table: only this table, for example "1".

    Raises:
        ValueError: the paper or table is unknown, or the file breaks the schema (file and field are named).
    """
    facts = _paper(paper)
    if table is not None:
        one_of("table", table, dict.fromkeys(v["table"] for v in facts["values"]))
    return [PublishedValue(paper, **v) for v in facts["values"] if table in (None, v["table"])]


def published_title(paper: str) -> str:
    """The title of a paper with published numbers."""
    return str(_paper(paper)["title"])


def spread_meaning(paper: str) -> str:
    """What the paper says its printed ± means, or that it does not say."""
    return str(_paper(paper)["spread_meaning"])


def _paper(paper: str) -> dict[str, Any]:
    """The checked content of a paper's file."""
    one_of("paper", paper, papers())
    path = (recorded_folder("published") or Path()) / f"{paper}.json"
    facts = read_json(path)
    where = str(path)
    check_schema_number(facts, where)
    check_fields(facts, PAPER, where, "")
    if facts["paper"] != paper:
        raise ValueError(f"{where}: paper is {facts['paper']!r}, expected the name of the file, {paper!r}")
    seen = set()
    for i, value in enumerate(facts["values"]):
        check_fields(value, VALUE, where, f"values[{i}]")
        check_range(value, ("value",), where, f"values[{i}].")
        spread = 0 if value["spread"] is None else value["spread"]
        check_least({**value, "spread": spread}, {"spread": 0, "decimals": 0}, where, f"values[{i}].")
        if value["threat"] is not None:
            check_fields(value["threat"], THREAT, where, f"values[{i}].threat")
        if "match" in value:
            check_fields(value["match"], MATCH, where, f"values[{i}].match")
            one_of(f"{where}: values[{i}].match.scale", value["match"].get("scale", "full"), COMPARABLE)
        cell = (value["table"], value["row"], value["column"])
        if cell in seen:
            raise ValueError(f"{where}: values[{i}] repeats table {cell[0]}, row {cell[1]}, column {cell[2]}")
        seen.add(cell)
    return facts


@dataclass(frozen=True)
class Ours:
    """Our side of one published number, from the main runs at the best comparable scale (``full`` before ``lite``)."""

    metric: Metric
    runs: list[Run]


def ours(value: PublishedValue, *, folder: str | os.PathLike[str] | None = None) -> Ours | None:
    """The recorded number that answers a published one, in percent; None if it was not re-run.

    Runs at ``demo`` or ``smoke`` never answer a published number. With one seed the interval spans the test images;
    with several the value is their mean and the interval runs from the lowest to the highest seed.
    """
    return answers([value], folder=folder)[0]


def answers(values: Iterable[PublishedValue], *, folder: str | os.PathLike[str] | None = None) -> list[Ours | None]:
    """:func:`ours` for many numbers, with every record read once."""
    values = list(values)
    chapters = dict.fromkeys(v.match["chapter"] for v in values if v.match is not None)
    recorded = {chapter: runs(chapter, folder=folder) for chapter in chapters}
    return [None if v.match is None else _answer_among(v, v.match, recorded[v.match["chapter"]]) for v in values]


def _answer_among(value: PublishedValue, match: Mapping[str, str], recorded: Sequence[Run]) -> Ours | None:
    wanted = (value.dataset, match["row"], match.get("variant", ""))
    for scale in COMPARABLE if "scale" not in match else [match["scale"]]:
        found = [r for r in recorded if r.scale == scale and (r.dataset, r.row, r.variant) == wanted]
        found = [r for r in found if match["metric"] in r.metrics]
        if found:
            metrics = [r[match["metric"]] for r in found]
            metrics = [m.percent for m in metrics] if value.unit == "%" else metrics
            return Ours(metrics[0] if len(found) == 1 else _over_seeds(metrics), found)
    return None


def _over_seeds(metrics: Sequence[Metric]) -> Metric:
    values = [m.value for m in metrics]
    first = metrics[0]
    mean = sum(values) / len(values)
    return Metric(mean, min(values), max(values), len(values), first.split, first.unit, "training seeds", first.attack)


def command(value: PublishedValue, scale: str = "full") -> str | None:
    """The line for a terminal that trains and measures what a published number is about; None if no chapter does.

    Args:
        value: the number.
        scale: "full" or "lite".
    """
    if value.match is None:
        return None
    words = [value.match["chapter"], f"SCALE={scale}", f"DATASET={value.dataset}", value.match.get("options", "")]
    return " ".join(["python -m robrep.book.reproduce", *filter(None, words)])


def within(value: PublishedValue, answer: Ours | None) -> bool | None:
    """Whether our number is at most the printed ± away from the printed one; None without a ± or without a run."""
    if answer is None or value.spread is None:
        return None
    return abs(answer.metric.value - value.value) <= value.spread + 1e-9  # 98.1 - 98.0 is a little more than 0.1


@dataclass(frozen=True)
class Count:
    """How many published numbers there are, and how many were re-run at each comparable scale.

    Attributes:
        published: all numbers.
        full: those re-run at the papers' own scale.
        lite: those re-run with a shortened schedule.
        spread: those printed with a ±.
        compared: those printed with a ± and re-run.
        within: those of them whose gap is at most the printed ±.
        commands: those that a chapter can run, see :func:`command`.
    """

    published: int
    full: int
    lite: int
    spread: int = 0
    compared: int = 0
    within: int = 0
    commands: int = 0

    @property
    def rerun(self) -> int:
        """Numbers re-run at either scale."""
        return self.full + self.lite


def count(values: Iterable[PublishedValue], *, folder: str | os.PathLike[str] | None = None) -> Count:
    """Count published numbers, those among them that a recorded run answers, and those that it answers within the ±."""
    values = list(values)
    return count_answers(values, answers(values, folder=folder))


def count_answers(values: Sequence[PublishedValue], found: Sequence[Ours | None]) -> Count:
    """:func:`count` of numbers whose answers are known."""
    scales = [a.runs[0].scale for a in found if a]
    judged = [within(v, a) for v, a in zip(values, found, strict=True)]
    return Count(
        len(values),
        scales.count("full"),
        scales.count("lite"),
        spread=sum(v.spread is not None for v in values),
        compared=sum(j is not None for j in judged),
        within=sum(j is True for j in judged),
        commands=sum(v.match is not None for v in values),
    )


def paper_against_ours(paper: str, table: str | None = None, *, folder: str | os.PathLike[str] | None = None) -> Table:
    """Every published number of a paper beside the recorded one, made from the data files alone.

    Args:
        paper: the paper's key.
        table: only this table of it; all of them if not given.
        folder: read recorded runs from this folder alone.

    Returns:
        One row a number, with the paper's value and spread, ours with its interval, the gap (ours minus the paper's, in
        percentage points) and the status. :func:`runs_behind` tells the attack, minutes and hardware.

    Raises:
        ValueError: the paper or table is unknown, or a file breaks its schema.
    """
    values = published(paper, table=table)
    several = len({v.table for v in values}) > 1
    rows = []
    for v, answer in zip(values, answers(values, folder=folder), strict=True):
        cells = [v.row, v.column, v.text, *_answer(v, answer), status(answer)]
        rows.append([v.table, *cells] if several else cells)
    columns = ["Method", "Number", "Paper (%)", "Ours (%)", "Gap", "Status"]
    return Table(
        rows,
        ["Table", *columns] if several else columns,
        caption=f"{_which(values)} of {published_title(paper)}: published and recorded",
        numbers=("Paper (%)", "Ours (%)", "Gap"),
    )


def published_folds(paper: str, *, folder: str | os.PathLike[str] | None = None) -> list[Fold]:
    """All of a paper's numbers, one fold for each of its tables: numbers, gaps, commands, runs and notes.

    Args:
        paper: the paper's key.
        folder: read recorded runs from this folder alone.

    Raises:
        ValueError: the paper is unknown, or a file breaks its schema.
    """
    every = published(paper)
    pairs = list(zip(every, answers(every, folder=folder), strict=True))
    return [
        _fold(table, [pair for pair in pairs if pair[0].table == table])
        for table in dict.fromkeys(v.table for v in every)
    ]


def _fold(table: str, pairs: Sequence[tuple[PublishedValue, Ours | None]]) -> Fold:
    values, found = [v for v, _ in pairs], [a for _, a in pairs]
    letters: dict[str, str] = {}
    rows = []
    for v, answer in pairs:
        line = command(v, answer.runs[0].scale if answer else "full")
        letter = letters.setdefault(line, _letter(len(letters))) if line else "–"
        rows.append([v.row, v.column, v.text, *_answer(v, answer), _judged(v, answer), letter])
    name = "The running text" if table == "text" else f"Table {table}"
    about = f"{name} of {published_title(values[0].paper)}"
    columns = ["Method", "Number", "Paper (%)", "Ours (%)", "Gap", "Status", "Command"]
    parts: list[Table | str] = [Table(rows, columns, caption=about, numbers=("Paper (%)", "Ours (%)", "Gap"))]
    if letters:
        lines = [[letter, line] for line, letter in letters.items()]
        parts.append(Table(lines, ["Command", "Line"], caption=f"Commands that run it again: {about}"))
    else:
        parts.append("No chapter runs these numbers yet.")
    parts += [f"{words[0].upper()}{words[1:]}." for words in dict.fromkeys(status(a) for a in found if a)]
    if any(found):
        parts.append(_runs_table(values, found, f"The runs behind our numbers: {about}"))
    parts += [f"Note: {note}" for note in dict.fromkeys(v.note for v in values if v.note)]
    c = count_answers(values, found)
    runnable = f"{c.commands} with a command" if c.commands else "no command"
    return Fold(f"{name}: {c.published} numbers, {runnable}, {c.rerun} re-run", *parts)


def _letter(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def _judged(value: PublishedValue, answer: Ours | None) -> str:
    """The scale of the run, and whether the gap is within the printed ±; what else differs stands once, in the fold."""
    if answer is None:
        return status(answer)
    inside = within(value, answer)
    judged = "" if inside is None else f", {'within' if inside else 'beyond'} the ±"
    return f"re-run at {answer.runs[0].scale}{judged}"


def _which(values: Sequence[PublishedValue]) -> str:
    tables = list(dict.fromkeys(v.table for v in values))
    return f"Table{'s' if len(tables) > 1 else ''} {', '.join(tables)}"


def _answer(value: PublishedValue, answer: Ours | None) -> list[str]:
    """The cells of our side: value with interval, and gap."""
    if answer is None:
        return ["–", "–"]
    metric = answer.metric
    interval = "" if metric.low is None or metric.high is None else f" [{metric.low:.1f}, {metric.high:.1f}]"
    gap = round(metric.value - value.value, 1)
    return [f"{metric.value:.1f}{interval}", f"{gap:+.1f}".replace("-", "−") if gap else "0.0"]


def runs_behind(paper: str, table: str | None = None, *, folder: str | os.PathLike[str] | None = None) -> Table:
    """How the numbers in :func:`paper_against_ours` were recorded; arguments and errors as there.

    Returns:
        One row for each method that was run, with attack, data, seeds, minutes a run, hardware, commit and date.
    """
    values = published(paper, table=table)
    return _runs_table(values, answers(values, folder=folder), "The runs behind our numbers")


def _runs_table(values: Sequence[PublishedValue], found: Sequence[Ours | None], caption: str) -> Table:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for v, answer in zip(values, found, strict=True):
        if answer is None:
            continue
        first, attack = answer.runs[0], answer.metric.attack
        minutes = sum(r.minutes for r in answer.runs) / len(answer.runs)
        train, test = first.data["n_train"], first.data["n_test"]
        row = rows.setdefault(
            (v.row, first.run, v.dataset),
            [
                v.row,
                "",
                f"{v.dataset}, {train:,} train, {test:,} {first.data['split']}",
                str(len(answer.runs)),
                f"{minutes:.{0 if minutes >= 10 else 1}f}",
                first.device,
                (first.commit or "not known")[:9] + (" with changes" if "+dirty" in (first.commit or "") else ""),
                first.date[:10],
            ],
        )
        if attack and attack not in row[1]:
            row[1] += f"; {attack}" if row[1] else attack
    columns = ["Method", "Attack", "Data", "Seeds", "Minutes each", "Hardware", "Commit", "Date"]
    return Table(rows.values(), columns, caption=caption, numbers=("Seeds", "Minutes each", "Date"))


def status(answer: Ours | None) -> str:
    """ "not run", "re-run at full", or "re-run at lite (shortened schedule)", with what differs in the data."""
    if answer is None:
        return "not run"
    first = answer.runs[0]
    remarks = (["shortened schedule"] if first.scale == "lite" else []) + (
        [first.data["note"]] if first.data["note"] else []
    )
    return f"re-run at {first.scale}" + (f" ({'; '.join(remarks)})" if remarks else "")
