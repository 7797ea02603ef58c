"""Numbers, tables and prose as a page, a notebook and a terminal show them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from robrep.book.results.schema import METRIC, check_metric, plain
from robrep.checks import one_of
from robrep.progress import printable


@dataclass(frozen=True)
class Metric:
    """One recorded number with its interval.

    Formats like a float (``f"{metric:.1%}"``, ``f"{metric.low:.1%}"``), so it can stand in :func:`say` as it is.

    Attributes:
        value: the number.
        low: lower end of its 95 % interval, None where there is none.
        high: upper end of its 95 % interval.
        n: how many examples (or runs) it was counted on.
        split: the part of the data, for example "test".
        unit: "fraction" (of 1), "%", "nats", "s", ...; "" for a bare number.
        over: what the interval spans, for example "test images" or "training seeds".
        attack: the attack in words, for example "PGD-40, 1 restart, Linf 0.1"; "" for clean data.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    split: str | None = None
    unit: str = ""
    over: str | None = None
    attack: str = ""

    @classmethod
    def of(cls, number: Any, name: str = "metric", **more: Any) -> Metric:
        """A metric from a float, a mapping with these fields, or a :class:`~robrep.evaluation.Rate`.

        Args:
            number: what to record; a ``Rate`` is a fraction whose interval spans images.
            name: what a message calls it.
            **more: further fields, for example ``attack="PGD-40, Linf 0.1"``.

        Raises:
            TypeError: ``number`` is none of these.
            ValueError: a field is unknown, missing or not finite; ``name`` stands in the message.
        """
        if isinstance(number, Metric):
            return replace(number, **more)
        if hasattr(number, "to_dict"):
            number = {"unit": "fraction", "over": "images"} | number.to_dict()
        if isinstance(number, int | float) or (hasattr(number, "item") and not isinstance(number, Mapping)):
            number = {"value": number.item() if hasattr(number, "item") else number}
        if not isinstance(number, Mapping):
            raise TypeError(f"{name} is {number!r}, expected a number, a mapping with 'value', or a Rate")
        facts = {k: plain(v, f"{name}: {k}") for k, v in {**number, **more}.items() if v is not None}
        metric = {k: facts[k] for k in facts if k in METRIC}
        if unknown := sorted(set(facts) - set(metric)):
            raise ValueError(f"{name} has the unknown field {unknown[0]!r}, expected some of {', '.join(METRIC)}")
        check_metric(metric, name, "")
        return cls(**metric)

    @property
    def percent(self) -> Metric:
        """The same number in percent.

        Raises:
            ValueError: the unit is neither "fraction" nor "%".
        """
        if self.unit == "%":
            return self
        if self.unit != "fraction":
            raise ValueError(f"unit is {self.unit!r}, expected 'fraction' or '%' to give percent")
        low, high = (None if v is None else 100 * v for v in (self.low, self.high))
        return replace(self, value=100 * self.value, low=low, high=high, unit="%")

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, for JSON."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "")}

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __str__(self) -> str:
        scaled = self.percent if self.unit == "fraction" else self
        unit = f" {scaled.unit}" if scaled.unit else ""
        text = f"{scaled.value:.4g}" if unit != " %" else f"{scaled.value:.1f}"
        if scaled.low is None or scaled.high is None:
            return text + unit
        ends = (f"{v:.1f}" if unit == " %" else f"{v:.4g}" for v in (scaled.low, scaled.high))
        return f"{text}{unit} [{', '.join(ends)}]"


class Link(str):
    """A text that leads somewhere, as a cell of a :class:`Table`.

    Args:
        text: what is read.
        href: where it leads: an address, a page, or "#label" for a place on the same page.
    """

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        link = super().__new__(cls, text)
        link.href = href
        return link


class Table:
    """A small table that a notebook, a page and a terminal can all show.

    Args:
        rows: one sequence of cells a row; numbers are shown as they are, format them first. A :class:`Link` leads on.
        columns: names of the columns.
        caption: what the table shows; read out first by a screen reader.
        numbers: names of the columns to align to the right.

    Raises:
        ValueError: a row has another length than ``columns``, or ``numbers`` names no column.
    """

    def __init__(
        self, rows: Iterable[Sequence[Any]], columns: Sequence[str], *, caption: str = "", numbers: Sequence[str] = ()
    ) -> None:
        self.columns = [str(c) for c in columns]
        self.rows = [[cell if isinstance(cell, Link) else str(cell) for cell in row] for row in rows]
        self.caption = caption
        self.numbers = frozenset(one_of("numbers", n, self.columns) for n in numbers)
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"rows[{i}] has {len(row)} cells, expected {len(self.columns)}")

    def _repr_html_(self) -> str:
        # no colours of its own (the page's theme has them), and a frame that scrolls on a narrow screen
        number, text = "text-align:right;white-space:nowrap", "text-align:left;white-space:normal;min-width:5em"
        side = [f' style="{number if c in self.numbers else text}"' for c in self.columns]
        label = html.escape(self.caption or "Table", quote=True)
        head = "".join(f'<th scope="col"{s}>{html.escape(c)}</th>' for c, s in zip(self.columns, side, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{s}>{_cell(c)}</td>" for c, s in zip(row, side, strict=True)) + "</tr>\n"
            for row in self.rows
        )
        caption = f'<caption style="caption-side:top;text-align:left">{html.escape(self.caption)}</caption>'
        return (
            f'<div role="region" aria-label="{label}" tabindex="0" style="overflow-x:auto">\n'
            f'<table class="table robrep-table">{caption if self.caption else ""}\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        )

    def _repr_markdown_(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(_markdown_cell(c) for c in cells) + " |"

        rule = line("---:" if c in self.numbers else "---" for c in self.columns)
        return "\n".join(
            [*([self.caption + ":", ""] if self.caption else []), line(self.columns), rule, *map(line, self.rows)]
        )

    def __repr__(self) -> str:
        lines = [[printable(cell) for cell in row] for row in [self.columns, *self.rows]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)

    def __len__(self) -> int:
        return len(self.rows)


def _cell(text: str) -> str:
    """A cell's content as HTML."""
    words = html.escape(text)
    return f'<a href="{html.escape(text.href, quote=True)}">{words}</a>' if isinstance(text, Link) else words


def _markdown_cell(text: str) -> str:
    """A cell's content as Markdown."""
    words = text.replace("|", "\\|")
    return f"[{words}]({text.href})" if isinstance(text, Link) else words


class Fold:
    """Tables behind one line that opens them, for long pages; a terminal shows all.

    Args:
        summary: the line.
        parts: tables, or paragraphs of plain text.
    """

    def __init__(self, summary: str, *parts: Table | str) -> None:
        self.summary, self.parts = summary, parts

    def _repr_html_(self) -> str:
        parts = [p._repr_html_() if isinstance(p, Table) else f"<p>{html.escape(p)}</p>" for p in self.parts]
        summary = f'<details class="robrep-fold"><summary>{html.escape(self.summary)}</summary>'
        return "\n".join([summary, *parts, "</details>"])

    def __repr__(self) -> str:
        return printable("\n\n".join([self.summary, *(p if isinstance(p, str) else repr(p) for p in self.parts)]))


class Stack:
    """Parts shown one below the other, at the end of a cell.

    Args:
        parts: tables, folds, or paragraphs of plain text.
    """

    def __init__(self, *parts: Table | Fold | str) -> None:
        self.parts = parts

    def _repr_html_(self) -> str:
        return "\n".join(f"<p>{html.escape(p)}</p>" if isinstance(p, str) else p._repr_html_() for p in self.parts)

    def __repr__(self) -> str:
        return "\n\n".join(p if isinstance(p, str) else repr(p) for p in self.parts)


class Prose(str):
    """Text that a notebook shows as Markdown."""

    def __str__(self) -> str:
        return printable(super().__str__())

    def _repr_markdown_(self) -> str:
        return super().__str__()


def say(template: str, *numbers: Any, **named: Any) -> Prose:
    """Prose with its numbers filled in from records, shown as Markdown at the end of a cell.

    ``say("It keeps {r:.1%} ({r.low:.1%} to {r.high:.1%}).", r=run["robust"])``

    Args:
        template: text with the fields of :meth:`str.format`; ``.1%`` turns a fraction into percent, set as "68.0 %"
            with a space that does not break.
        *numbers: metrics, rates, floats, counts or texts for the fields ``{}``.
        **named: the same for named fields.

    Raises:
        ValueError: a number is not finite, or the template leaves a given number out.
        KeyError: the template asks for a name that is not given.
    """

    def checked(name: str, value: Any) -> Any:
        if isinstance(value, str | int | Metric):
            return value
        return Metric.of(value, name)  # formats like its value, and refuses what is not finite

    positional = [checked(f"numbers[{i}]", v) for i, v in enumerate(numbers)]
    keyed = {name: checked(name, v) for name, v in named.items()}
    for name in keyed:
        if not re.search(r"\{" + re.escape(name) + r"[.:!}\[]", template):
            raise ValueError(f"the template has no field {{{name}}}, expected one for every number given")
    return Prose(re.sub(r"(?<=\d)%", "\N{NO-BREAK SPACE}%", template.format(*positional, **keyed)))
