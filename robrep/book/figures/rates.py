"""Accuracies: against the radius, against each other, against the number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import (
    GREY,
    Number,
    add_slider,
    array,
    error_bars,
    intervals,
    need,
    new_figure,
    percent,
    reference_line,
    rounded,
    styles,
    wash,
)
from robrep.checks import one_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def curve_arrays(name: str, curve: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, low, high of one curve; y may be rates that carry their own intervals."""
    if missing := {"x", "y"} - set(curve):
        raise ValueError(f"curve {name!r} lacks {sorted(missing)}, expected x and y, and low and high if there are any")
    x = array(curve["x"], f"x of curve {name!r}")
    y, low, high = intervals(curve["y"], f"y of curve {name!r}")
    low = array(curve.get("low", low), f"low of curve {name!r}")
    high = array(curve.get("high", high), f"high of curve {name!r}")
    if not x.shape == y.shape == low.shape == high.shape or x.ndim != 1:
        raise ValueError(f"curve {name!r} has x, y, low, high of lengths {x.size, y.size, low.size, high.size}, "
                         "expected one length")  # fmt: skip
    return x, y, low, high


def curve_traces(curves: Mapping[str, Mapping[str, Any]], unit: str) -> list:
    """For each curve a band and a line, in percent."""
    import plotly.graph_objects as go

    traces, look = [], styles(curves)
    for name, curve in curves.items():
        x, y, low, high = curve_arrays(name, curve)
        color, dash, symbol = look[name]
        band = np.isfinite(low) & np.isfinite(high)
        traces.append(
            go.Scatter(
                x=rounded(np.concatenate([x[band], x[band][::-1]])),
                y=rounded(100 * np.concatenate([high[band], low[band][::-1]])),
                fill="toself",
                fillcolor=wash(color),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        )
        traces.append(
            go.Scatter(
                x=rounded(x),
                y=rounded(100 * y),
                name=name,
                legendgroup=name,
                mode="lines+markers",
                line={"color": color, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 8, "color": color},
                customdata=rounded(100 * np.stack([low, high], 1)),
                hovertemplate=f"{name}<br>{unit} %{{x}}<br>%{{y:.1f}} % "
                "(%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra></extra>",
            )
        )
    return traces


def in_words(curves: Mapping[str, Mapping[str, Any]], marked: float | None) -> str:
    """Each curve at its ends and, if one is marked, at the tested value closest to it."""
    parts = []
    for name, curve in curves.items():
        x, y, _, _ = curve_arrays(name, curve)
        at = {0, len(x) - 1} | (set() if marked is None else {int(np.abs(x - marked).argmin())})
        parts.append(f"{name}: " + ", ".join(f"{percent(y[i])} at {x[i]:.3g}" for i in sorted(at)))
    return "; ".join(parts) + "."


def _accuracy_axes(fig: Figure, xs: np.ndarray, title: str, marked: float | None, chance: float | None) -> None:
    span = (xs.max() - xs.min()) or 1.0
    fig.update_xaxes(title_text=title, range=rounded([xs.min() - 0.02 * span, xs.max() + 0.02 * span]))
    fig.update_yaxes(title_text="accuracy (%)", range=[-3, 103])
    if marked is not None:
        reference_line(fig, x=marked, text=f"trained at {marked:g}")
    if chance is not None:
        reference_line(fig, y=100 * chance, text=f"chance {100 * chance:g} %")


def accuracy_against_radius(
    curves: Mapping[str, Mapping[str, Any]],
    *,
    marked_radius: float | None = None,
    chance: float | None = None,
    x_title: str = "attack radius ε (pixel range 0 to 1)",
) -> Figure:
    """Accuracy under attack against the attack's radius, one line with its interval for each method.

    Args:
        curves: method -> {"x": radii, "y": accuracies in [0, 1]}; each accuracy a number, a Rate, a recorded
            {"value", "low", "high"}, or one number for each seed. "low" and "high" may also stand beside "y".
        marked_radius: the radius trained at, a vertical line.
        chance: accuracy of guessing, in [0, 1], a horizontal line.
        x_title: title of the x axis.

    Raises:
        ValueError: no curve, or lengths that differ.
    """
    xs = np.concatenate([curve_arrays(name, c)[0] for name, c in need("curves", curves).items()])
    fig = new_figure(
        f"Accuracy against {x_title}, one line for each method. {in_words(curves, marked_radius)}", height=420
    )
    fig.add_traces(curve_traces(curves, "ε ="))
    _accuracy_axes(fig, xs, x_title, marked_radius, chance)
    return fig


def accuracy_slider(
    settings: Mapping[Any, Mapping[str, Mapping[str, Any]]],
    *,
    setting: str = "β",
    marked_radius: float | None = None,
    chance: float | None = None,
    x_title: str = "attack radius ε (pixel range 0 to 1)",
    start: int = 0,
) -> Figure:
    """``accuracy_against_radius`` with a slider over another setting, for example the weight of the regularizer.

    Args:
        settings: slider position -> curves as ``accuracy_against_radius`` takes them, with the same methods in each.
        setting: what the slider moves.
        marked_radius: the radius trained at, a vertical line.
        chance: accuracy of guessing, in [0, 1], a horizontal line.
        x_title: title of the x axis.
        start: slider position shown first.

    Raises:
        ValueError: no position, or positions with different methods.
    """
    keys = list(need("settings", settings))
    for key in keys:
        if list(settings[key]) != list(settings[keys[0]]):
            raise ValueError(f"at {setting} = {key} the curves are {list(settings[key])}, "
                             f"expected {list(settings[keys[0]])} as at {keys[0]}")  # fmt: skip
    xs = np.concatenate([curve_arrays(name, c)[0] for key in keys for name, c in settings[key].items()])
    told = " ".join(
        f"At {setting} = {key}: {in_words(settings[key], marked_radius)}" for key in dict.fromkeys([keys[0], keys[-1]])
    )
    alt = f"Accuracy against {x_title}; the slider moves {setting} over {len(keys)} values. {told}"
    fig = new_figure(alt, height=500)
    frames = {str(key): curve_traces(settings[key], "ε =") for key in keys}
    fig.add_traces(curve_traces(settings[keys[start]], "ε ="))
    _accuracy_axes(fig, xs, x_title, marked_radius, chance)
    add_slider(fig, frames, range(len(fig.data)), f"{setting} = ", start % len(keys))
    return fig


def trade_off(
    sweeps: Mapping[str, Sequence[Mapping[str, Number]]],
    *,
    setting: str = "β",
    radius: float | None = None,
) -> Figure:
    """Robust against clean accuracy while one setting is swept.

    Args:
        sweeps: method -> points {setting: value, "clean": ..., "robust": ...}. An accuracy is a number in [0, 1], a
            Rate, or one number for each seed: then the mean is drawn with bars from the lowest to the highest.
        setting: key and name of the setting swept.
        radius: the attack's radius, for the axis title.

    Raises:
        ValueError: no point, or points without the setting or an accuracy.
    """
    import plotly.graph_objects as go

    look, told, drawn, ends = styles(need("sweeps", sweeps)), [], [], []
    for name, points in sweeps.items():
        if not points:
            raise ValueError(f"sweep {name!r} is empty, expected at least one point")
        for point in points:
            if missing := {setting, "clean", "robust"} - set(point):
                raise ValueError(f"a point of {name!r} lacks {sorted(missing)}, expected {setting}, clean and robust")
        points = sorted(points, key=lambda p: p[setting])
        clean, clean_low, clean_high = (100 * a for a in intervals((p["clean"] for p in points), "clean"))
        robust, low, high = (100 * a for a in intervals((p["robust"] for p in points), "robust"))
        labels = [f"{float(p[setting]):g}" for p in points]
        told.append(
            f"{name}: " + ", ".join(f"{setting} {b} gives {c:.1f} % clean and {r:.1f} % robust"
                                    for b, c, r in zip(labels, clean, robust, strict=True))
        )  # fmt: skip
        color, dash, symbol = look[name]
        ends += [(clean_low, clean_high, low, high)]
        drawn.append(
            go.Scatter(
                x=rounded(clean),
                y=rounded(robust),
                error_x=error_bars(clean, clean_low, clean_high),
                error_y=error_bars(robust, low, high),
                text=[f"{setting} {b}" for b in labels],
                textposition=[("bottom left", "top right")[k % 2] for k in range(len(labels))],  # neighbours may meet
                textfont={"size": 11},
                name=name,
                mode="lines+markers+text" if len(points) > 1 else "markers+text",
                line={"color": color, "dash": dash},
                marker={"symbol": symbol, "size": 9, "color": color},
                hovertemplate=f"{name}, %{{text}}<br>clean %{{x:.1f}} %<br>robust %{{y:.1f}} %<extra></extra>",
            )
        )
    at = f" at ε = {radius:g}" if radius is not None else ""
    fig = new_figure(f"Robust against clean accuracy{at}. {'; '.join(told)}.", height=430)
    fig.add_traces(drawn)
    c, r = (np.concatenate([bar for each in ends for bar in each[i : i + 2]]) for i in (0, 2))  # bars are not cut

    def padded(a: np.ndarray, before: float, after: float) -> list:
        span = max(a.max() - a.min(), 4.0)
        return rounded([max(-4.0, a.min() - before * span), min(104.0, a.max() + after * span)])

    fig.update_xaxes(title_text="clean accuracy (%)", range=padded(c, 0.12, 0.06))
    fig.update_yaxes(title_text=f"robust accuracy{at} (%)", range=padded(r, 0.12, 0.12))
    return fig


def label_curve(
    counts: Sequence[int], rates: Mapping[str, Mapping[str, Sequence[Number]]], *, chance: float | None = None
) -> Figure:
    """Accuracy against the number of labels that the head saw, on a log axis: clean solid, robust dashed.

    Args:
        counts: numbers of labels.
        rates: method -> {"clean": one accuracy (number, Rate or seeds) for each count, "robust": the same}.
        chance: accuracy of guessing, in [0, 1].

    Raises:
        ValueError: lengths that differ, counts below 1.
    """
    import plotly.graph_objects as go

    n = array(counts, "counts")
    if n.ndim != 1 or n.size == 0 or (n < 1).any():
        raise ValueError(f"counts is {list(counts)}, expected numbers of labels, at least 1 each")
    look, told, drawn = styles(need("rates", rates)), [], []
    for name, kinds in rates.items():
        for kind, numbers in kinds.items():
            one_of("rates' kind", kind, ("clean", "robust"))
            if len(numbers) != len(n):
                raise ValueError(f"{kind} rates of {name!r} are {len(numbers)}, expected {len(n)}, one for each count")
            value, low, high = (100 * a for a in intervals(numbers, kind))
            told.append(f"{name}, {kind}: " + ", ".join(f"{v:.1f} % at {k:.0f}" for k, v in zip(n, value, strict=True)))
            color, _, symbol = look[name]
            drawn.append(
                go.Scatter(
                    x=rounded(n, 6),
                    y=rounded(value),
                    error_y=error_bars(value, low, high),
                    name=f"{name}, {kind}",
                    mode="lines+markers",
                    line={"color": color, "dash": "solid" if kind == "clean" else "dash"},
                    marker={"symbol": symbol + ("" if kind == "clean" else "-open"), "size": 9, "color": color},
                    hovertemplate=f"{name}, {kind}<br>%{{x}} labels<br>%{{y:.1f}} %<extra></extra>",
                )
            )
    fig = new_figure(f"Accuracy against the number of labels. {'; '.join(told)}.", height=450)
    fig.add_traces(drawn)
    ends = np.log10([n.min() / 1.25, n.max() * 1.25])
    ticks = {"tickvals": rounded(n, 6), "ticktext": [f"{k:,.0f}" for k in n]}
    fig.update_xaxes(title_text="labels seen by the head (log scale)", type="log", range=rounded(ends), **ticks)
    fig.update_yaxes(title_text="accuracy (%)", range=[-3, 103])
    if chance is not None:
        reference_line(fig, y=100 * chance, text=f"chance {100 * chance:g} %")
    return fig
