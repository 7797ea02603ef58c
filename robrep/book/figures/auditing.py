"""What an audit saw: accuracy against the radius, what each attack left, and the margin around one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robrep.audit import Audit
from robrep.book.figures.base import (
    BLUE,
    GREY,
    WRONG,
    error_bars,
    intervals,
    new_figure,
    percent,
    reference_line,
    rounded,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def audit_figure(audit: Audit) -> Figure:
    """The curves behind an audit, one below the other; what could not be measured is left out.

    Sound: accuracy falls to zero as the radius grows; no later attack takes much from what the first one left; the
    surface rises smoothly along the gradient (the class changes at its white line, where the ball reaches that far).

    Args:
        audit: from :func:`robrep.audit.audit`.
    """
    import plotly.graph_objects as go

    titles, heights, told = [], [], []
    if audit.curve["x"]:
        titles.append("Accuracy against the radius")
        heights.append(230)
        ends = ((audit.curve["x"][i], audit.curve["y"][i]) for i in (0, -1))
        told.append("accuracy against the radius: " + ", ".join(f"{percent(y)} at {x:.3g}" for x, y in ends))
    bars = {"no attack": audit.clean} | audit.stages
    titles.append("Accuracy after one attack more")
    heights.append(40 + 30 * len(bars))
    told.append("accuracy after " + ", ".join(f"{name} {percent(rate.value)}" for name, rate in bars.items()))
    if audit.landscape is not None:
        low, high = audit.landscape.values.min().item(), audit.landscape.values.max().item()
        titles.append("Margin around one image")
        heights.append(330)
        told.append(f"margin around one image from {low:.3g} to {high:.3g}, misclassified above 0")
    verdict = "passed" if audit.passed else "not passed"
    fig = new_figure(
        f"An audit of {audit.attack} in the {audit.threat}, {verdict}: {'; '.join(told)}.",
        height=sum(heights) + 75 * len(heights),
        rows=len(titles),
        subplot_titles=titles,
        row_heights=heights,
        vertical_spacing=75 / (sum(heights) + 75 * len(heights)),
    )
    row = 1
    if audit.curve["x"]:
        x, (y, low_, high_) = audit.curve["x"], intervals([100 * v for v in audit.curve["y"]], "y")
        low_, high_ = (intervals([100 * v for v in audit.curve[k]], k)[0] for k in ("low", "high"))
        line = go.Scatter(
            x=rounded(x),
            y=rounded(y),
            error_y=error_bars(y, low_, high_),
            mode="lines+markers",
            line={"color": BLUE, "width": 2},
            marker={"size": 8, "color": BLUE},
            hovertemplate="radius %{x}<br>%{y:.1f} %<extra></extra>",
        )
        fig.add_trace(line, row=1, col=1)
        reference_line(fig, x=audit.radius, text=f"audited at {audit.radius:.3g}", row=1, col=1)
        fig.update_xaxes(title_text="radius (pixel range 0 to 1)", range=rounded([-0.03 * x[-1], 1.03 * x[-1]]), row=1)
        fig.update_yaxes(title_text="accuracy (%)", range=[-3, 118], tickvals=[0, 25, 50, 75, 100], row=1)
        row += 1
    value, low_, high_ = (100 * a for a in intervals(bars.values(), "stages"))
    bar = go.Bar(
        x=rounded(value),
        y=list(bars),
        orientation="h",
        error_x=error_bars(value, low_, high_),
        marker={"color": [GREY, BLUE, *[WRONG] * len(bars)][: len(bars)]},
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )
    fig.add_trace(bar, row=row, col=1)
    fig.update_xaxes(title_text="accuracy (%)", range=[0, 103], row=row)
    fig.update_yaxes(autorange="reversed", row=row)
    if audit.landscape is not None:
        row += 1
        a, b, values = (rounded(part, 3) for part in audit.landscape[:3])
        domain = next(fig.select_yaxes(row=row)).domain
        scale = {"x": 1.0, "xpad": 4, "thickness": 10, "y": sum(domain) / 2, "len": domain[1] - domain[0]}
        surface = go.Heatmap(  # not smoothed: a staircase must look like one
            x=a,
            y=b,
            z=values,
            colorscale="Cividis",
            colorbar=scale,
            hovertemplate="margin %{z:.3g}<extra></extra>",
        )
        fig.add_trace(surface, row=row, col=1)
        if low < 0 < high:
            edge = {"start": 0, "end": 0, "size": 1, "coloring": "none"}
            border = go.Contour(x=a, y=b, z=values, contours=edge, line={"color": "#FFFFFF", "width": 3})
            fig.add_trace(border.update(showscale=False, hoverinfo="skip"), row=row, col=1)
        mark = {"symbol": "cross", "size": 12, "color": "#FFFFFF", "line": {"color": "#000000", "width": 1.5}}
        clean = go.Scatter(x=[0], y=[0], mode="markers", marker=mark, name="clean image", hoverinfo="name")
        fig.add_trace(clean, row=row, col=1)
        along = "another random direction (the gradient is zero)" if audit.landscape.blind else "along the gradient"
        fig.update_xaxes(title_text=along, row=row)
        fig.update_yaxes(title_text="random direction", row=row)
    fig.update_layout(showlegend=False)
    return fig
