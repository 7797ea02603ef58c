"""CRoPD: curves with a slider, an ensemble of attacks beside one of its parts, and sizes that intervals imply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import (
    GREY,
    VERMILION,
    add_slider,
    array,
    error_bars,
    log_ticks,
    need,
    new_figure,
    rounded,
    styles,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Curve = tuple[Any, Any]


def curves_slider(
    positions: Mapping[Any, Mapping[str, Curve]],
    *,
    x: str,
    y: str,
    setting: str,
    title: str,
    start: int = 0,
    log_x: bool = False,
) -> Figure:
    """Curves in one pair of axes that stay as they are; a slider over a setting redraws the curves.

    Args:
        positions: slider position -> curve -> (positions on the horizontal axis, values), the same curves in each.
        x, y: titles of the axes.
        setting: what the slider moves.
        title: the first sentence of the text alternative.
        start: slider position shown first.
        log_x: logarithmic horizontal axis.

    Raises:
        ValueError: two positions have different curves, or a curve has more or fewer values than places.
    """
    import plotly.graph_objects as go

    keys = list(need("positions", positions))
    names = list(need("curves", positions[keys[0]]))
    look, frames, ends, told = styles(names), {}, [], []
    for key in keys:
        if list(positions[key]) != names:
            raise ValueError(f"at {setting} = {key} the curves are {list(positions[key])}, expected {names}")
        drawn = []
        for name, (places, values) in positions[key].items():
            a, b = array(places, "places"), array(values, name)
            if a.shape != b.shape or a.ndim != 1:
                raise ValueError(f"{name!r} has {b.shape} values at {a.shape} places, expected the same number of both")
            color, dash, _ = look[name]
            line = {"color": color, "dash": dash, "width": 2.5}
            drawn.append(go.Scatter(x=rounded(a), y=rounded(b), name=name, mode="lines", line=line))
            ends.append((a.min(), a.max(), b.min(), b.max()))
            if key in (keys[0], keys[-1]):
                told.append(f"{setting} = {key}, {name}: {b.min():.3g} to {b.max():.3g}")
        frames[str(key)] = drawn
    fig = new_figure(f"{title} The slider moves {setting} from {keys[0]} to {keys[-1]}. {'; '.join(told)}.", height=460)
    fig.add_traces([go.Scatter(t) for t in frames[str(keys[0])]])
    low, high = (np.array(ends)[:, k] for k in (2, 3))
    left, right = min(e[0] for e in ends), max(e[1] for e in ends)
    pad = 0.06 * ((high.max() - low.min()) or 1.0)
    span = np.log10([left, right]) if log_x else [left, right]
    fig.update_xaxes(title_text=x, type="log" if log_x else "linear", range=rounded(span))
    fig.update_yaxes(title_text=y, range=rounded([low.min() - pad, high.max() + pad]))
    add_slider(fig, frames, range(len(names)), f"{setting} = ", start % len(keys))
    fig.update_layout(showlegend=True)
    return fig


def ensemble_against_part(points: Mapping[str, Sequence[tuple[str, float, float]]], *, part: str, whole: str) -> Figure:
    """Accuracy under an ensemble of attacks against accuracy under one of them, which it cannot exceed.

    Args:
        points: group -> (name, accuracy under the part in %, accuracy under the ensemble in %).
        part, whole: names of the two.

    Raises:
        ValueError: ``points`` holds no point.
    """
    import plotly.graph_objects as go

    look = styles(need("points", points))
    every = [(group, *p) for group, ps in points.items() for p in ps]
    if not every:
        raise ValueError("points holds no point, expected at least one")
    above = [p for p in every if p[3] > p[2]]
    worst = max(every, key=lambda p: p[3] - p[2])
    fig = new_figure(
        f"Accuracy under {whole} against accuracy under {part}: {len(above)} of {len(every)} points lie above the "
        f"diagonal, where an ensemble that contains {part} cannot lie. The farthest, {worst[0]}, {worst[1]}: "
        f"{worst[2]:.1f} % under {part} and {worst[3]:.1f} % under {whole}.",
        height=560,
    )
    area = {"x": [0, 100, 0], "y": [0, 100, 100], "fill": "toself", "fillcolor": "rgba(213,94,0,0.12)"}
    fig.add_trace(go.Scatter(**area, mode="lines", line={"width": 0}, name="weaker than its part", hoverinfo="skip"))
    for group, ps in points.items():
        color, _, symbol = look[group]
        fig.add_trace(
            go.Scatter(
                x=rounded([p[1] for p in ps]),
                y=rounded([p[2] for p in ps]),
                text=[p[0] for p in ps],
                name=group,
                mode="markers",
                marker={"symbol": symbol, "size": 10, "color": color},
                hovertemplate=f"{group}, %{{text}}<br>{part} %{{x:.1f}} %<br>{whole} %{{y:.1f}} %<extra></extra>",
            )
        )
    fig.add_trace(
        go.Scatter(x=[0, 100], y=[0, 100], mode="lines", line={"color": GREY, "dash": "dash"}, showlegend=False)
    )
    fig.update_xaxes(title_text=f"accuracy under {part} (%)", range=[-2, 102], constrain="domain")
    fig.update_yaxes(title_text=f"accuracy under {whole} (%)", range=[-2, 102], constrain="domain", scaleanchor="x")
    return fig


def implied_sizes(found: Mapping[str, tuple[float, float, float]], sizes: Mapping[str, Mapping[str, int]]) -> Figure:
    """The number of images that a data set's intervals imply, beside the sizes of its splits, on a logarithmic axis.

    Args:
        found: data set -> (lowest, middle, highest) number of images that its intervals imply.
        sizes: data set -> split -> number of images.

    Raises:
        ValueError: ``sizes`` lacks the splits of a data set in ``found``.
    """
    import plotly.graph_objects as go

    names = list(need("found", found))
    if missing := [name for name in names if name not in sizes]:
        raise ValueError(f"sizes lacks {missing[0]!r}, expected the splits of every data set in found")
    splits = list(dict.fromkeys(split for name in names for split in sizes[name]))
    low, middle, high = (np.array([found[name][k] for name in names], dtype=float) for k in range(3))
    told = "; ".join(
        f"{name}: {m:,.0f} implied, " + ", ".join(f"{split} {n:,}" for split, n in sizes[name].items())
        for name, m in zip(names, middle, strict=True)
    )
    fig = new_figure(
        f"The number of images that the printed intervals imply, and the sizes of the splits. {told}.",
        height=150 + 55 * len(names),
    )
    look = styles(splits)
    for split in splits:
        chosen = [name for name in names if split in sizes[name]]
        color, _, symbol = look[split]
        marker = {"symbol": f"{symbol}-open", "size": 16, "color": color, "line": {"width": 2.5}}
        numbers = [sizes[name][split] for name in chosen]
        fig.add_trace(go.Scatter(x=numbers, y=chosen, name=f"{split} split", mode="markers", marker=marker))
    fig.add_trace(
        go.Scatter(
            x=rounded(middle),
            y=names,
            error_x=error_bars(middle, low, high),
            name="implied by the intervals",
            mode="markers",
            marker={"symbol": "diamond", "size": 9, "color": VERMILION},
        )
    )
    every = [*low, *high, *(n for name in names for n in sizes[name].values())]
    ends = np.log10([min(every) / 1.4, max(every) * 1.4])
    fig.update_xaxes(title_text="images (log scale)", type="log", range=rounded(ends), **log_ticks(*10**ends))
    fig.update_yaxes(type="category", autorange="reversed")
    return fig
