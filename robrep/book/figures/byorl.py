"""BYORL: several measures of several runs, one panel below the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import array, need, new_figure, rounded, styles, wash

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def panels(curves: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str], *, x: str, title: str) -> Figure:
    """Curves of several measures over a common axis; the legend switches a run on and off in all panels.

    Args:
        curves: run -> {"x": positions, measure: values, ...}; values (X,), or (S, X) for S seeds, drawn as their mean
            with a band from the lowest to the highest. A run may lack a measure.
        measures: measure -> title of its panel's axis, from top to bottom.
        x: title of the horizontal axis.
        title: the first sentence of the text alternative.

    Raises:
        ValueError: a curve's length differs from that of its positions.
    """
    import plotly.graph_objects as go

    look, rows = styles(need("curves", curves)), list(need("measures", measures))
    fig = new_figure("", height=160 + 170 * len(rows), rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    told = []
    for name, curve in curves.items():
        color, dash, symbol = look[name]
        place, first = array(curve["x"], "x"), True
        for row, measure in enumerate(rows, 1):
            if measure not in curve:
                continue
            y = array(curve[measure], f"{measure} of {name!r}")
            y = y[None] if y.ndim == 1 else y
            if y.shape[1:] != place.shape:
                raise ValueError(f"{measure} of {name!r} has shape {y.shape}, expected {len(place)} values as in x")
            if len(y) > 1:
                outline = {"x": rounded([*place, *place[::-1]]), "y": rounded([*y.max(0), *y.min(0)[::-1]])}
                band = go.Scatter(**outline, fill="toself", fillcolor=wash(color), line={"width": 0}, hoverinfo="skip")
                fig.add_trace(band.update(legendgroup=name, showlegend=False, mode="lines"), row=row, col=1)
            line = {"color": color, "dash": dash, "width": 2}
            trace = go.Scatter(x=rounded(place), y=rounded(y.mean(0)), name=name, legendgroup=name, showlegend=first)
            trace.update(mode="lines+markers", line=line, marker={"symbol": symbol, "size": 6, "color": color})
            trace.update(hovertemplate=f"{name}<br>{x} %{{x}}<br>{measures[measure]} %{{y:.3g}}<extra></extra>")
            fig.add_trace(trace, row=row, col=1)
            told.append(f"{name}, {measures[measure]}: {y.mean(0)[0]:.3g} to {y.mean(0)[-1]:.3g}")
            first = False
    for row, measure in enumerate(rows, 1):
        fig.update_yaxes(title_text=measures[measure], rangemode="tozero", row=row, col=1)
    fig.update_xaxes(title_text=x, row=len(rows), col=1)
    places = np.unique(np.concatenate([array(curve["x"], "x") for curve in curves.values()]))
    if np.ptp(places) <= 10 and (places == np.round(places)).all():
        fig.update_xaxes(dtick=1)  # nothing between whole numbers
    fig.update_layout(meta={"alt": f"{title} From left to right: {'; '.join(told)}."})
    return fig
