"""Many methods at once: one line of dots for each, and one point for each in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.figures.base import PALETTE, SYMBOLS, add_slider, error_bars, interval, intervals, need, new_figure, rounded

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def method_dots(
    frames: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    x_title: str,
    title: str,
    prefix: str = "",
    scale: float = 100.0,
    log: bool = False,
    start: int = 0,
) -> Figure:
    """A line for each method with a dot for each measure; a slider goes through the frames if there are several.

    Args:
        frames: slider position -> measure -> method -> a number, a rate, or one number for each seed (drawn as their
            mean with bars from the lowest to the highest). Methods come in the first frame's order, from the top down.
        x_title: title of the horizontal axis.
        title: the first sentence of the text alternative.
        prefix: what stands before the slider's value.
        scale: factor on all numbers; 100 for rates.
        log: logarithmic axis.
        start: the frame shown first.

    Raises:
        ValueError: no frame, or frames whose measures or methods differ.
    """
    import plotly.graph_objects as go

    first = next(iter(need("frames", frames).values()))
    measures, methods = list(first), list(next(iter(first.values())))
    drawn: dict[str, list] = {}
    everything: list[float] = []
    for position, frame in frames.items():
        if list(frame) != measures or any(list(rates) != methods for rates in frame.values()):
            raise ValueError(f"frame {position!r} has other measures or methods than the first, expected the same")
        drawn[position] = []
        for i, (measure, rates) in enumerate(frame.items()):
            value, low, high = (scale * a for a in intervals(rates.values(), measure))
            everything += [*low, *high]
            drawn[position].append(
                go.Scatter(
                    x=rounded(value),
                    y=methods,
                    error_x=error_bars(value, low, high),
                    name=measure,
                    mode="markers",
                    marker={
                        "symbol": SYMBOLS[i] if i == 0 else f"{SYMBOLS[i]}-open",
                        "size": 10,
                        "color": PALETTE[i],
                        "line": {"width": 2, "color": PALETTE[i]},
                    },
                    hovertemplate=f"%{{y}}<br>{measure} %{{x:.3g}}<extra></extra>",
                )
            )
    chosen = list(frames)[start]
    told = "; ".join(
        f"{method}: " + ", ".join(f"{t.name} {t.x[k]:.3g}" for t in drawn[chosen]) for k, method in enumerate(methods)
    )
    where = f" at {prefix}{chosen}" if len(frames) > 1 else ""
    fig = new_figure(f"{title} {x_title}{where}: {told}.", height=170 + 26 * len(methods))
    fig.add_traces(drawn[chosen])
    if log:
        ends = np.log10([min(v for v in everything if v > 0) / 1.2, max(everything) * 1.2])
        fig.update_xaxes(type="log", range=rounded(ends), dtick="D2")
    else:
        fig.update_xaxes(range=rounded([-0.03 * max(everything), 1.04 * max(everything)]))
    fig.update_xaxes(title_text=x_title)
    fig.update_yaxes(autorange="reversed", tickfont={"size": 11}, automargin=True)
    if len(frames) > 1:
        add_slider(fig, drawn, range(len(measures)), prefix, start)
    return fig


def method_plane(
    points: Mapping[str, tuple[Any, Any]],
    groups: Mapping[str, Sequence[str]],
    *,
    x_title: str,
    y_title: str,
    title: str,
    log: bool = False,
) -> Figure:
    """A point for each method, with its name; a click in the legend switches a group off.

    Args:
        points: method -> (x, y), each a number, a rate, or one number for each seed (mean, lowest and highest).
        groups: name of a group -> its methods; one colour and one marker each.
        x_title, y_title: titles of the axes.
        title: the first sentence of the text alternative.
        log: logarithmic horizontal axis.

    Raises:
        ValueError: a method of a group has no point, or a point no group.
    """
    import plotly.graph_objects as go

    grouped = [method for members in need("groups", groups).values() for method in members]
    if sorted(grouped) != sorted(need("points", points)):
        raise ValueError(f"groups hold {sorted(grouped)}, expected each of the points' {sorted(points)} once")
    fig, told = new_figure("", height=520), []
    along = sorted(points, key=lambda m: interval(points[m][0]).value)  # names of neighbours: one above, one below
    side = {method: ("top center", "bottom center")[k % 2] for k, method in enumerate(along)}
    for i, (group, members) in enumerate(groups.items()):
        if not members:
            continue
        x, x_low, x_high = intervals([points[m][0] for m in members], "x")
        y, y_low, y_high = intervals([points[m][1] for m in members], "y")
        told += [f"{m} ({group}): {a:.3g}, {b:.3g}" for m, a, b in zip(members, x, y, strict=True)]
        fig.add_trace(
            go.Scatter(
                x=rounded(x),
                y=rounded(y),
                error_x=error_bars(x, x_low, x_high),
                error_y=error_bars(y, y_low, y_high),
                name=group,
                text=list(members),
                mode="markers+text",
                textposition=[side[m] for m in members],
                textfont={"size": 10},
                cliponaxis=False,
                marker={"symbol": SYMBOLS[i], "size": 10, "color": PALETTE[i]},
                hovertemplate=f"%{{text}}<br>{x_title} %{{x:.3g}}<br>{y_title} %{{y:.3g}}<extra></extra>",
            )
        )
    fig.update_xaxes(title_text=x_title, **({"type": "log", "dtick": "D2"} if log else {}))
    fig.update_yaxes(title_text=y_title)
    fig.update_layout(meta={"alt": f"{title} {x_title} and {y_title}: {'; '.join(told)}."})
    return fig
