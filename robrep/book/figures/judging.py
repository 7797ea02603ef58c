"""Judging robustness: masked gradients, suites, certificates, audits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.audit import QUESTIONS, Audit
from robrep.book.figures.base import (
    BLUE,
    GREEN,
    GREY,
    SKY,
    VERMILION,
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
    wash,
)
from robrep.book.figures.rates import curve_arrays, curve_traces

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# --- masks ------------------------------------------------------------------------------------------------------------


def mask_slider(
    offsets: Any,
    lines: Mapping[str, tuple[Any, Any]],
    *,
    radius: float = 1.0,
    x_title: str = "position on the line (1: the attacked image)",
    start: int = 0,
) -> Figure:
    """The loss along one line through an image under several defences, and its slope: reported and measured.

    Args:
        offsets: positions on the line, evenly spaced, shape (T,); 0 is the clean image.
        lines: defence -> (loss, shape (T,); the slope that automatic differentiation reports, shape (T,), or None
            where it reports none). The slope that a reader would measure is that of the loss.
        radius: position of the ball's edge, a vertical line.
        x_title: title of the x axis.
        start: slider position shown first.

    Raises:
        ValueError: lengths that differ.
    """
    import plotly.graph_objects as go

    t = array(offsets, "offsets")
    told, frames, low, high = [], {}, np.inf, -np.inf
    reach = 0.0
    for name, (loss, slope) in need("lines", lines).items():
        y = array(loss, name)
        reported = np.full(t.shape, np.nan) if slope is None else array(slope, name)
        if y.shape != t.shape or reported.shape != t.shape:
            raise ValueError(f"{name!r} has shapes {y.shape} and {reported.shape}, expected {t.shape} as offsets")
        measured = np.gradient(y, t)
        scale = max(float(np.abs(measured).max()), 1e-12)
        size = max(float(np.abs(y).max()), 1e-12)
        low, high = min(low, float((y / size).min())), max(high, float((y / size).max()))
        reach = max(reach, float(np.nanmax(np.abs(reported / scale), initial=0.0)))
        exact = f"{100 * float((reported == 0).mean()):.0f} % exactly 0" if slope is not None else "none at all"
        told.append(f"{name}: loss from {y[0]:.3g} to {y[-1]:.3g}, reported slopes {exact}")
        frames[name] = [
            go.Scatter(x=rounded(t), y=rounded(y / size), mode="lines", name="loss", line={"color": BLUE, "width": 2}),
            go.Scatter(x=rounded(t), y=rounded(measured / scale), mode="lines", name="slope, measured",
                       line={"color": SKY, "width": 3}),
            go.Scatter(x=rounded(t), y=rounded(reported / scale), mode="lines", name="slope, by backpropagation",
                       line={"color": VERMILION, "width": 2, "dash": "dash"}),
        ]  # fmt: skip
    fig = new_figure(
        f"The loss on a line through an image and its slope, each scaled to 1, for {len(frames)} defences: "
        f"{'; '.join(told)}.",
        height=600, rows=2, shared_xaxes=True, vertical_spacing=0.07,
    )  # fmt: skip
    for i, trace in enumerate(list(frames.values())[start]):
        fig.add_trace(trace, row=1 if i == 0 else 2, col=1)
    pad = 0.08 * ((high - low) or 1.0)
    fig.update_xaxes(range=rounded([t.min(), t.max()]))
    fig.update_xaxes(title_text=x_title, row=2)
    fig.update_yaxes(title_text="loss (scaled)", range=rounded([low - pad, high + pad]), row=1)
    bound = min(max(1.15, 1.05 * reach), 2.0)
    fig.update_yaxes(title_text="slope (scaled)", range=rounded([-bound, bound]), row=2)
    for r in (-radius, radius):
        if t.min() < r < t.max():
            fig.add_vline(r, line={"color": GREY, "dash": "dash", "width": 1.5})
    add_slider(fig, frames, range(3), "defence: ", start % len(frames))
    return fig


# --- suites, certificates, audits -------------------------------------------------------------------------------------


def suite_bars(alone: Mapping[str, Number], together: Mapping[str, Number], clean: Number | None = None) -> Figure:
    """What each attack of a suite leaves alone, and what is left after it and all before it.

    Args:
        alone: attack -> accuracy under this attack only, in [0, 1]; a number, a Rate, or a recorded metric.
        together: attack -> accuracy under it and those before it, the same attacks in order.
        clean: accuracy without an attack.

    Raises:
        ValueError: attacks that differ.
    """
    import plotly.graph_objects as go

    names = list(need("alone", alone))
    if list(need("together", together)) != names:
        raise ValueError(f"together has {list(together)}, expected {names} as alone")
    fig = new_figure("", height=430)
    told = []
    looks = (("alone", alone, SKY, "circle", -0.12), ("worst case so far", together, VERMILION, "diamond", 0.12))
    for name, rates, color, symbol, shift in looks:
        value, low, high = (100 * a for a in intervals(rates.values(), name))
        told.append(f"{name}: " + ", ".join(f"{k} {v:.1f} %" for k, v in zip(names, value, strict=True)))
        bars = error_bars(value, low, high) | {"width": 5}
        fig.add_trace(
            go.Scatter(x=rounded(np.arange(len(names)) + shift), y=rounded(value), error_y=bars, name=name,
                       mode="markers+lines" if shift > 0 else "markers", text=names,
                       line={"color": color, "dash": "dot", "width": 1.5},
                       marker={"symbol": symbol, "size": 11, "color": color},
                       hovertemplate=f"%{{text}}, {name}: %{{y:.1f}} %<extra></extra>")
        )  # fmt: skip
    lowest = min(intervals([*alone.values(), *together.values()], "rates")[1])
    top = 100.0
    if clean is not None:
        level = 100 * float(intervals([clean], "clean")[0][0])
        reference_line(fig, y=level, text=f"clean {level:.1f} %", annotation_position="bottom left")
        told.append(f"clean: {level:.1f} %")
    fig.update_layout(meta={"alt": f"Accuracy under each attack of a suite, {'; '.join(told)}."})
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4], zeroline=False)
    fig.update_yaxes(title_text="accuracy (%)", range=rounded([max(-3.0, 100 * lowest - 6), top + 3]))
    return fig


def _stairs(x: np.ndarray, y: np.ndarray, first: str) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a staircase through points that goes "across" or "down" first."""
    xs, ys = np.repeat(x, 2), np.repeat(y, 2)
    return (xs[1:], ys[:-1]) if first == "across" else (xs[:-1], ys[1:])


def certified_beside_attacked(
    settings: Mapping[Any, Mapping[str, Mapping[str, Any]]], *, setting: str = "σ", limits: Mapping[Any, float] = {}
) -> Figure:
    """Certified accuracy (a lower bound) and accuracy under attack (an upper bound) on one axis, what lies between
    shaded.

    Between the radii that were tried the curves are stairs, so that each stays the bound that it is.

    Args:
        settings: slider position -> {"certified": curve, "attacked": curve}, curves {"x", "y", "low", "high"} with
            increasing radii from the same first to the same last.
        setting: what the slider moves.
        limits: slider position -> the largest radius that can be certified at all, a vertical line.

    Raises:
        ValueError: a curve is missing, or the curves span different radii.
    """
    import plotly.graph_objects as go

    told, frames, reach = [], {}, 0.0
    for key, curves in need("settings", settings).items():
        if set(curves) != {"certified", "attacked"}:
            raise ValueError(f"at {setting} = {key} the curves are {sorted(curves)}, expected certified and attacked")
        (x, low, _, _), (x2, high, _, _) = (curve_arrays(k, curves[k]) for k in ("certified", "attacked"))
        if x[0] != x2[0] or x[-1] != x2[-1]:
            raise ValueError(f"at {setting} = {key} the curves span {x[0]:g} to {x[-1]:g} and {x2[0]:g} to {x2[-1]:g}, "
                             "expected the same radii")  # fmt: skip
        reach = max(reach, float(x[-1]))
        middle = x2[len(x2) // 2]
        told.append(
            f"at {setting} = {key}, between {percent(low[0])} and {percent(high[0])} at {x[0]:.3g}, between "
            f"{percent(low[np.searchsorted(x, middle)])} and {percent(high[len(x2) // 2])} at {middle:.3g}"
        )
        below, above = _stairs(x, low, "down"), _stairs(x2, high, "across")
        gap = go.Scatter(
            x=rounded(np.concatenate([below[0], above[0][::-1]])),
            y=rounded(100 * np.concatenate([below[1], above[1][::-1]])),
            mode="lines", fill="toself", fillcolor=wash(GREY, 0.25), line={"width": 0}, hoverinfo="skip",
            name="unknown",
        )  # fmt: skip
        limit = limits.get(key)
        wall = go.Scatter(x=[limit, limit], y=[-3, 103], mode="lines", name="largest certifiable radius",
                          line={"color": GREY, "dash": "dash", "width": 1.5}, hoverinfo="skip")  # fmt: skip
        (upper,) = curve_traces({"attacked (upper bound)": curves["attacked"]}, "radius")[1:]
        (lower,) = curve_traces({"certified (lower bound)": curves["certified"]}, "radius")[1:]
        upper.update(line={"color": VERMILION, "dash": "dash", "width": 2, "shape": "hv"})
        upper.update(marker={"color": VERMILION, "size": 8, "symbol": "square"})
        lower.update(line={"color": GREEN, "dash": "solid", "width": 2, "shape": "vh"}, mode="lines")
        frames[str(key)] = [gap, upper, lower, *([wall] if limits else [])]
    alt = f"Accuracy that is certified and accuracy under attack, against the l2 radius: {'; '.join(told)}."
    fig = new_figure(alt, height=500)
    first = next(iter(frames.values()))
    fig.add_traces(first)
    fig.update_xaxes(title_text="l2 radius (pixel range 0 to 1)", range=rounded([-0.02, 1.02 * reach]))
    fig.update_yaxes(title_text="accuracy (%)", range=[-3, 103])
    if len(frames) > 1:
        add_slider(fig, frames, range(len(first)), f"{setting} = ", len(frames) // 2)
    return fig


_VERDICTS = {"fine": (0, "✓"), "left out": (1, "–"), "suspicious": (2, "?"), "broken": (3, "✗")}


def audit_matrix(audits: Mapping[str, Audit]) -> Figure:
    """Which check of an audit found what in which model: a table of signs.

    Args:
        audits: model -> what :func:`robrep.audit.audit` says about it.

    Raises:
        ValueError: no audit.
    """
    import plotly.graph_objects as go

    names = list(need("audits", audits))
    made = {finding.check for audit in audits.values() for finding in audit.findings}
    checks = [check for check in QUESTIONS if check in made]
    found = {(f.check, name): f for name, audit in audits.items() for f in audit.findings}
    verdicts = [[found[c, n].verdict if (c, n) in found else "left out" for n in names] for c in checks]
    z = [[_VERDICTS[v][0] for v in row] for row in verdicts]
    signs = [[_VERDICTS[v][1] for v in row] for row in verdicts]
    hover = [
        ["<br>".join(_wrapped(found[c, n].text)) if (c, n) in found else "not checked" for n in names] for c in checks
    ]
    told = []
    for j, name in enumerate(names):
        bad = [f"{c} {verdicts[i][j]}" for i, c in enumerate(checks) if verdicts[i][j] in ("broken", "suspicious")]
        told.append(f"{name}: {', '.join(bad) or 'nothing found'}")
    fig = new_figure(f"Audits of {len(names)} models by {len(checks)} checks. {'; '.join(told)}.",
                     height=130 + 30 * len(checks))  # fmt: skip
    colors = ("#8CCBB5", "#B8B8B8", "#E6B450", VERMILION)  # opaque: the signs are black or white to suit them
    scale = [[(i + k) / 4, color] for i, color in enumerate(colors) for k in (0, 1)]
    fig.add_trace(
        go.Heatmap(x=names, y=checks, z=z, zmin=-0.5, zmax=3.5, colorscale=scale, showscale=False, text=signs,
                   customdata=hover, texttemplate="%{text}", textfont={"size": 16}, xgap=3, ygap=3,
                   hovertemplate="%{x}, %{y}<br>%{customdata}<extra></extra>")
    )  # fmt: skip
    fig.update_xaxes(side="top", tickangle=-40 if len(names) > 3 else 0, showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig


def _wrapped(text: str, width: int = 60) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
