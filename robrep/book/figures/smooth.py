"""Accuracy against the attack radius in several panels side by side, as in Figure 1 of Cemgil et al. 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robrep.book.figures.base import GREY, need, new_figure, rounded
from robrep.book.figures.rates import curve_arrays, curve_traces, in_words
from robrep.checks import positive_int

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def accuracy_panels(
    panels: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    marked_radius: float | None = None,
    bands: bool = True,
    columns: int = 2,
    x_title: str = "attack radius ε",
) -> Figure:
    """Accuracy under attack against the radius, one panel for each task or model, all on the same axes.

    Args:
        panels: title of the panel -> curves as :func:`accuracy_against_radius` takes them, the same names in each.
        marked_radius: the radius of the training, a dashed line that the legend names.
        bands: whether to draw the interval of each curve.
        columns: panels side by side, at least 1.
        x_title: title of the x axes.

    Raises:
        ValueError: ``panels`` is empty, its panels have different curves, or ``columns`` is below 1.
    """
    import plotly.graph_objects as go

    titles = list(need("panels", panels))
    for title in titles:
        if list(panels[title]) != list(panels[titles[0]]):
            raise ValueError(f"panel {title!r} has the curves {list(panels[title])}, "
                             f"expected {list(panels[titles[0]])} as in {titles[0]!r}")  # fmt: skip
    columns = min(positive_int("columns", columns), len(titles))
    rows = -(-len(titles) // columns)
    told = " ".join(f"{title}: {in_words(panels[title], marked_radius)}" for title in titles)
    fig = new_figure(
        f"Accuracy against {x_title}, {len(titles)} panels. {told}", height=160 + 230 * rows, rows=rows, cols=columns,
        shared_xaxes=True, shared_yaxes=True, subplot_titles=titles, vertical_spacing=0.11, horizontal_spacing=0.05,
    )  # fmt: skip
    line = {"color": GREY, "dash": "dash", "width": 1.5}
    ends: list[float] = []
    for i, title in enumerate(titles):
        where = {"row": i // columns + 1, "col": i % columns + 1}
        if marked_radius is not None:
            marked = go.Scatter(x=[marked_radius] * 2, y=[-3, 103], mode="lines", line=line, hoverinfo="skip")
            marked.update(name=f"ε = {marked_radius:g}, as in training", showlegend=i == 0, legendgroup="marked")
            fig.add_trace(marked, **where)
        for trace in curve_traces(panels[title], "ε ="):
            if trace.fill and not bands:
                continue
            fig.add_trace(trace.update(showlegend=i == 0 and not trace.fill), **where)
        ends += [float(x) for name, curve in panels[title].items() for x in curve_arrays(name, curve)[0]]
        if i >= len(titles) - columns:
            fig.update_xaxes(title_text=x_title, showticklabels=True, **where)
    span = (max(ends) - min(ends)) or 1.0
    fig.update_xaxes(range=rounded([min(ends) - 0.03 * span, max(ends) + 0.03 * span]))
    fig.update_yaxes(range=[-3, 103])
    fig.update_yaxes(title_text="accuracy (%)", col=1)
    return fig
