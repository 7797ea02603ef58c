"""The picture of the published numbers: how many of each table are re-run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robrep.book.figures.base import BLUE, GREEN, GREY, SKY, need, new_figure, wash
from robrep.book.results import Count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def ledger_bars(tables: Mapping[str, Count], alt: str) -> Figure:
    """A bar for each table, from the numbers that are re-run to those that no chapter runs.

    Args:
        tables: name to count, from top to bottom.
        alt: text alternative.
    """
    import plotly.graph_objects as go

    need("tables", tables)
    fig = new_figure(alt, height=90 + 24 * len(tables))
    counts = list(tables.values())
    parts = {
        "re-run, within the printed ±": (GREEN, [c.within for c in counts]),
        "re-run": (BLUE, [c.rerun - c.within for c in counts]),
        "a command, not run": (SKY, [c.commands - c.rerun for c in counts]),
        "no chapter runs it": (wash(GREY, 0.5), [c.published - c.commands for c in counts]),
    }
    for name, (color, numbers) in parts.items():
        bar = go.Bar(name=name, y=[*tables], x=numbers, orientation="h", marker_color=color)
        fig.add_trace(bar.update(hovertemplate=f"%{{y}}: %{{x}} {name}<extra></extra>"))
    fig.update_layout(barmode="stack", bargap=0.25, legend={"traceorder": "normal"})
    fig.update_yaxes(autorange="reversed")
    fig.update_xaxes(title="published numbers")
    return fig
