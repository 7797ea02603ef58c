"""Many methods at once: a line of dots for each, a point for each in a plane, or a panel for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import (
    BLUE,
    GREY,
    PALETTE,
    SYMBOLS,
    VERMILION,
    add_slider,
    error_bars,
    interval,
    intervals,
    log_ticks,
    need,
    new_figure,
    rounded,
)

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
        fig.update_xaxes(type="log", range=rounded(ends), **log_ticks(*10**ends))
    else:
        fig.update_xaxes(range=rounded([-0.03 * max(everything), 1.04 * max(everything)]))
    fig.update_xaxes(title_text=x_title)
    fig.update_yaxes(autorange="reversed", tickfont={"size": 11}, automargin=True)
    if len(frames) > 1:
        add_slider(fig, drawn, range(len(measures)), prefix, start)
    return fig


def _sides(points: Mapping[str, tuple[float, ...]], log: bool) -> dict[str, str]:
    """On which side of its point each name stands: where it covers least of the other points and names."""
    size = np.array([620.0, 330.0])  # px: a plot of the page's width
    at = np.array([(np.log10(x) if log else x, y) for x, y in points.values()])
    at = (at - at.min(0)) / np.maximum(np.ptp(at, axis=0), 1e-9) * size
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    chosen: dict[str, str] = {}
    for k in np.lexsort((at[:, 0], -at[:, 1])):
        name, (x, y) = list(points)[k], at[k]
        wide, best = 5.4 * len(name), None
        for row, up in (("top", 8), ("bottom", -22), ("middle", -7)):
            for column, left in (("center", -wide / 2), ("right", 7.0), ("left", -wide - 7.0)):
                if (row, column) == ("middle", "center"):
                    continue
                box = (x + left, y + up, x + left + wide, y + up + 14)
                covered = sum(
                    max(0, min(box[2], other[2]) - max(box[0], other[0]))
                    * max(0, min(box[3], other[3]) - max(box[1], other[1]))
                    for j, other in enumerate(boxes)
                    if j != k
                )
                covered += 14 * (max(0, -30 - box[0]) + max(0, box[2] - size[0] - 30))  # inside the plot
                if best is None or covered < best[0] - 1:
                    best = covered, f"{row} {column}", box
        assert best is not None
        chosen[name] = best[1]
        boxes.append(best[2])
    return chosen


def method_plane(
    points: Mapping[str, tuple[Any, Any]],
    groups: Mapping[str, Sequence[str]],
    *,
    x_title: str,
    y_title: str,
    title: str,
    log: bool = False,
) -> Figure:
    """A point for each method, with its name (on a narrow page a number); a click in the legend switches a group off.

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
    side = _sides({method: tuple(interval(v).value for v in at) for method, at in points.items()}, log)
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
    every = [end for at in points.values() for end in interval(at[0])]
    fig.update_xaxes(title_text=x_title, **({"type": "log"} | log_ticks(min(every), max(every)) if log else {}))
    fig.update_yaxes(title_text=y_title)
    fig.update_layout(meta={"alt": f"{title} {x_title} and {y_title}: {'; '.join(told)}.", "numbered": True})
    return fig


def transfer_matrix(rates: Mapping[str, Mapping[str, float]]) -> Figure:
    """How often the images made against one method fool another: a matrix of percentages.

    Args:
        rates: method shown the images (a row) -> method the images were made against (a column) -> share fooled.

    Raises:
        ValueError: no row, or rows whose columns differ.
    """
    import plotly.graph_objects as go

    methods = list(need("rates", rates))
    for target, row in rates.items():
        if list(row) != methods:
            raise ValueError(f"rates of {target!r} name {list(row)}, expected the rows {methods}, in this order")
    numbers = [f"{k}" for k in range(1, len(methods) + 1)]
    z = [[100 * rate for rate in row.values()] for row in rates.values()]
    told = "; ".join(
        f"{target}: by its own {row[target]:.0%}, by others {min(others):.0%} to {max(others):.0%}"
        for target, row in rates.items()
        if (others := [rate for source, rate in row.items() if source != target])
    )
    fig = new_figure(f"Share of images fooled, by method shown and method attacked. {told}.", height=170 + 26 * len(z))
    fig.add_trace(
        go.Heatmap(
            x=numbers,
            y=[f"{name}  {k}" for k, name in zip(numbers, methods, strict=True)],
            z=rounded(z),
            zmin=0,
            zmax=100,
            colorscale="Blues",
            showscale=False,
            texttemplate="%{z:.0f}",
            textfont={"size": 10},
            customdata=[methods] * len(methods),
            hovertemplate="made against %{customdata}<br>shown to %{y}<br>fooled %{z:.0f} %<extra></extra>",
        )
    )
    fig.update_xaxes(title_text="made against (numbers as in the rows); cells: fooled, %", tickfont={"size": 11})
    fig.update_yaxes(autorange="reversed", tickfont={"size": 11}, automargin=True)
    return fig


def against_budget(rates: Mapping[str, Mapping[float, tuple[Any, Any]]], untrained: Any) -> Figure:
    """A panel for each method: clean accuracy and accuracy under attack against the passes spent, on a log axis.

    Args:
        rates: method -> passes for each image -> (clean, robust), each a rate, or one number for each seed (drawn as
            their mean with bars from the lowest to the highest).
        untrained: clean accuracy on the encoder before training, a dotted line in every panel.

    Raises:
        ValueError: no method, or one without a budget.
    """
    import plotly.graph_objects as go

    level, told = 100 * interval(untrained, "untrained").value, []
    budgets = sorted({b for points in need("rates", rates).values() for b in need("points", points)})
    fig = new_figure(
        "",
        height=90 + 170 * -(-len(rates) // 2),
        rows=-(-len(rates) // 2),
        cols=2,
        shared_xaxes="all",
        shared_yaxes="all",
        subplot_titles=list(rates),
        vertical_spacing=0.06,
        horizontal_spacing=0.06,
    )
    for k, (method, points) in enumerate(rates.items()):
        at = {"row": k // 2 + 1, "col": k % 2 + 1}
        passes, words = sorted(points), []
        for i, (kind, color, symbol) in enumerate((("clean", BLUE, "circle"), ("attacked", VERMILION, "square-open"))):
            value, low, high = (100 * a for a in intervals([points[b][i] for b in passes], kind))
            fig.add_trace(
                go.Scatter(
                    x=passes,
                    y=rounded(value),
                    error_y=error_bars(value, low, high),
                    text=[
                        f"{kind} {v:.0f}" if k == 0 and b == passes[0] else f"{v:.0f}"
                        for b, v in zip(passes, value, strict=True)
                    ],
                    textposition="top center",
                    textfont={"size": 10},
                    name=kind,
                    showlegend=False,
                    cliponaxis=False,
                    mode="lines+markers+text",
                    line={"color": color, "dash": ("solid", "dash")[i]},
                    marker={"symbol": symbol, "size": 8, "color": color},
                    hovertemplate=f"{method}, {kind}<br>%{{x}} passes<br>%{{y:.1f}} %<extra></extra>",
                ),
                **at,
            )
            words.append(f"{kind} " + ", ".join(f"{v:.0f}" for v in value))
        fig.add_hline(y=level, line={"color": GREY, "dash": "dot", "width": 1.5}, **at)
        told.append(f"{method} ({', '.join(f'{b:g}' for b in passes)} passes): {', '.join(words)}")
    ends = np.log10([budgets[0] / 1.5, budgets[-1] * 1.5])
    fig.update_xaxes(type="log", range=rounded(ends), tickvals=budgets, ticktext=[f"{b:,g}" for b in budgets])
    fig.update_yaxes(range=[-6, 112], tickvals=[0, 50, 100])
    fig.update_xaxes(title={"text": "passes for each image", "font": {"size": 11}}, row=-(-len(rates) // 2))
    fig.update_yaxes(title_text="%", col=1)
    fig.update_annotations(font={"size": 12})
    alt = f"Accuracy in percent against the budget; the untrained encoder has {level:.0f} clean. {'; '.join(told)}."
    fig.update_layout(meta={"alt": alt})
    return fig
