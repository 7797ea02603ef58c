"""Attacks at work: the ball and the projection, ascents, masks, suites, calls, certificates, audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from robrep.attacks import L2, Linf
from robrep.audit import QUESTIONS, Audit
from robrep.book.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    Number,
    add_slider,
    array,
    error_bars,
    intervals,
    log_ticks,
    need,
    new_figure,
    percent,
    reference_line,
    rounded,
    styles,
    wash,
)
from robrep.book.figures.rates import curve_arrays, curve_traces, in_words
from robrep.checks import positive_int

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# --- the ball ---------------------------------------------------------------------------------------------------------


class _Walk(NamedTuple):
    """An ascent of two pixels: each iterate, and where the step led before it was brought back; (steps + 1, 2)."""

    iterates: np.ndarray
    ahead: np.ndarray


def _walk(threat: Linf | L2, x: torch.Tensor, goal: torch.Tensor, steps: int, size: float) -> _Walk:
    project, at = threat.projection(x), x.clone()
    iterates, ahead = [at.flatten().tolist()], [at.flatten().tolist()]
    for _ in range(steps):
        there = at + size * threat.direction(goal - at)  # the gradient of minus half the squared distance to the goal
        ahead.append(there.flatten().tolist())
        at = project(there.clone())
        iterates.append(at.flatten().tolist())
    return _Walk(np.array(iterates), np.array(ahead))


def _set_outline(threat: Linf | L2, x: torch.Tensor) -> np.ndarray:
    """The boundary of the ball within [0, 1]^2: points on the sphere, clipped; (K, 2)."""
    if isinstance(threat, Linf):
        corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        return (x.flatten() + threat.eps * corners).clamp(0, 1).numpy()
    # walk around the circle; a ray that leaves [0, 1] first ends where it does
    angle = torch.linspace(0, 2 * torch.pi, 361)
    u = torch.stack([angle.cos(), angle.sin()], 1)
    wall = torch.where(u > 0, (1 - x.flatten()) / u.clamp(min=1e-9), x.flatten() / (-u).clamp(min=1e-9)).amin(1)
    return (x.flatten() + wall.clamp(max=float(threat.eps))[:, None] * u).numpy()


def ball_picture(
    x: Sequence[float] = (0.72, 0.5),
    goal: Sequence[float] = (1.3, 1.05),
    *,
    eps: float = 0.36,
    steps: int = 5,
    step_size: float = 0.16,
) -> Figure:
    """The set A(x) of an image of two pixels and an ascent in it, by half steps: ahead, then back into the set.

    Args:
        x: the two pixels.
        goal: where the objective, minus the distance, would be largest.
        eps: radius of the l-infinity ball on the left and of the l2 ball on the right.
        steps: number of steps.
        step_size: their length in the ball's norm.

    Raises:
        ValueError: ``x`` is no pair in [0, 1].
    """
    import plotly.graph_objects as go

    image = torch.tensor(x, dtype=torch.float32).reshape(1, 1, 1, -1)
    if image.numel() != 2 or image.min() < 0 or image.max() > 1:
        raise ValueError(f"x is {tuple(x)}, expected two pixels in [0, 1]")
    positive_int("steps", steps)
    threats: tuple[Linf | L2, ...] = (Linf(eps), L2(eps))
    aim = torch.tensor(goal, dtype=torch.float32).reshape(1, 1, 1, 2)
    walks = [_walk(t, image, aim, steps, step_size) for t in threats]
    ends = "; ".join(
        f"in the {'l-infinity' if i == 0 else 'l2'} ball it ends at ({w.iterates[-1][0]:.2f}, {w.iterates[-1][1]:.2f})"
        for i, w in enumerate(walks)
    )
    alt = (
        f"An image of two pixels at ({x[0]:g}, {x[1]:g}) with its ball of radius {eps:g} cut off at the border of "
        f"[0, 1]: a square on the left, a disc on the right. The slider takes {steps} steps, each ahead and back to "
        f"the set: {ends}."
    )
    fig = new_figure(alt, height=470, cols=2, subplot_titles=("l∞ ball", "l2 ball"), horizontal_spacing=0.06)
    for col, threat in enumerate(threats, 1):
        edge = _set_outline(threat, image)
        where = {"row": 1, "col": col}
        fig.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, line={"color": GREY, "width": 1.5}, **where)
        area = {"fill": "toself", "fillcolor": wash(BLUE), "line": {"color": BLUE, "width": 1.5}, "mode": "lines"}
        fig.add_trace(
            go.Scatter(x=rounded(edge[:, 0]), y=rounded(edge[:, 1]), name="A(x)", showlegend=col == 1,
                       hoverinfo="skip", **area), **where,
        )  # fmt: skip
        dot = {"symbol": "cross", "size": 10, "color": GREY}
        fig.add_trace(
            go.Scatter(x=[x[0]], y=[x[1]], mode="markers", name="clean image", marker=dot, showlegend=col == 1), **where
        )
    moving = len(fig.data)

    def so_far(half: int) -> list:
        """Traces after ``half`` half steps: the path, and the step ahead with its way back."""
        done, out = half // 2, half % 2
        traces = []
        for col, w in enumerate(walks):
            path = w.iterates[: done + 1]
            sizes = [6] * done + [11]
            look = {"color": VERMILION, "size": sizes, "symbol": "circle"}
            line = {"color": VERMILION, "width": 2}
            traces.append(
                go.Scatter(x=rounded(path[:, 0]), y=rounded(path[:, 1]), mode="lines+markers", marker=look, line=line,
                           name="iterates", showlegend=col == 0)
            )  # fmt: skip
            start, tip = (path[-1], w.ahead[done + 1]) if out else (w.ahead[done], path[-1])
            names = ("the step", "the way back") if out else ("the way back", "the step")
            ray = {"color": ORANGE if out else GREEN, "width": 2.5, "dash": "dot"}
            xy = {"x": rounded([start[0], tip[0]]), "y": rounded([start[1], tip[1]])}
            mark = {"symbol": ["circle-open", "circle-open"], "size": [1, 9] if out else [9, 1], "color": ray["color"]}
            traces.append(
                go.Scatter(**xy, mode="lines+markers", line=ray, marker=mark, name=names[0], showlegend=col == 0)
            )
        return traces

    labels = ["start"] + [f"{i // 2 + 1} {'back' if i % 2 else 'ahead'}" for i in range(2 * steps)]
    frames = {label: so_far(i) for i, label in enumerate(labels)}
    for i, trace in enumerate(so_far(0)):
        fig.add_trace(trace, row=1, col=1 + i // 2)
    low = min(0.0, *(float(w.ahead.min()) for w in walks)) - 0.05
    high = max(1.0, *(float(w.ahead.max()) for w in walks)) + 0.05
    both = np.concatenate([np.concatenate([w.iterates, w.ahead]) for w in walks])
    left = min(float(both[:, 0].min()), x[0] - eps) - 0.08
    span = [left, max(high, left + 0.5)]
    for col, anchor in ((1, "x"), (2, "x2")):
        fig.update_xaxes(title_text="pixel 1", range=rounded(span), constrain="domain", row=1, col=col)
        fig.update_yaxes(range=rounded([max(low, x[1] - eps - 0.1), high]), scaleanchor=anchor, constrain="domain",
                         row=1, col=col)  # fmt: skip
    fig.update_yaxes(title_text="pixel 2", col=1)
    add_slider(fig, frames, range(moving, moving + 4), "", min(3, 2 * steps - 1))
    fig.update_layout(legend_y=1.12)
    return fig


# --- objectives against steps -----------------------------------------------------------------------------------------


def _ends(fig: Figure, row: int) -> tuple[float, float]:
    """The lowest and the highest value above 0 that a row of panels shows."""
    values = np.concatenate([np.asarray(trace.y, float) for trace in fig.select_traces(row=row)])
    return float(values[values > 0].min()), float(values.max())


def ascent_curves(
    objectives: Mapping[str, Any], sizes: Mapping[str, Any], *, name: str = "objective", unit: str = "step / ε"
) -> Figure:
    """An objective against the number of steps for several attacks, and the steps they take.

    Args:
        objectives: attack -> objective after 0, 1, ... steps, shape (T + 1,).
        sizes: attack -> length of step 1, 2, ..., shape (T,). Where it shrinks, a marker says so.
        name: name and unit of the objective.
        unit: name and unit of the lengths.

    Raises:
        ValueError: an attack without lengths, or lengths that do not fit.
    """
    import plotly.graph_objects as go

    look, told = styles(need("objectives", objectives)), []
    fig = new_figure("", height=560, rows=2, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.64, 0.36])
    for attack, values in objectives.items():
        y, s = array(values, attack), array(sizes.get(attack, ()), attack)
        if y.ndim != 1 or s.shape != (len(y) - 1,):
            raise ValueError(f"{attack!r} has objectives of shape {y.shape} and sizes of shape {s.shape}, expected one "
                             "size for each step")  # fmt: skip
        color, dash, symbol = look[attack]
        line = {"color": color, "dash": dash, "width": 2}
        halved = np.flatnonzero(s[1:] < 0.99 * s[:-1]) + 1 if len(s) > 1 else np.array([], dtype=int)
        top = go.Scatter(x=list(range(len(y))), y=rounded(y), name=attack, legendgroup=attack, mode="lines", line=line)
        top.update(hovertemplate=attack + ", step %{x}: %{y:.3g}<extra></extra>")
        fig.add_trace(top, row=1, col=1)
        steps = go.Scatter(x=list(range(1, len(y))), y=rounded(s), name=attack, legendgroup=attack, mode="lines")
        steps.update(line=line | {"shape": "hv"}, showlegend=False)
        steps.update(hovertemplate=attack + ", step %{x}: size %{y:.3g}<extra></extra>")
        fig.add_trace(steps, row=2, col=1)
        for row, heights in ((1, y[halved]), (2, s[halved])) if len(halved) else ():
            at = halved if row == 1 else halved + 1
            mark = {"symbol": symbol, "size": 8, "color": color, "line": {"width": 1, "color": GREY}}
            dots = go.Scatter(x=at.tolist(), y=rounded(heights), mode="markers", marker=mark, legendgroup=attack)
            dots.update(name=f"{attack}: step halved", showlegend=row == 1, hoverinfo="skip")
            fig.add_trace(dots, row=row, col=1)
        shrinks = f", its step cut {len(halved)} times" if len(halved) else ""
        told.append(f"{attack} from {y[0]:.3g} to {y[-1]:.3g}{shrinks}")
    fig.update_layout(meta={"alt": f"{name} against the number of steps: {'; '.join(told)}. Below: the steps' sizes."})
    fig.update_xaxes(title_text="steps", row=2)
    fig.update_yaxes(title_text=name, row=1)
    fig.update_yaxes(title_text=unit, type="log", **log_ticks(*_ends(fig, row=2)), row=2)
    return fig


def accuracy_against_calls(
    curves: Mapping[str, Mapping[str, Any]] | Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    setting: str = "",
    x_title: str = "steps",
    log: bool = True,
    chance: float | None = None,
) -> Figure:
    """Robust accuracy against what an attack was allowed: its steps, its calls of the model, its samples.

    Args:
        curves: attack -> {"x": counts, "y": accuracies} as for ``accuracy_against_radius``. With ``setting``, slider
            position -> such a mapping, with the same attacks in each.
        setting: what a slider moves; "" for no slider.
        x_title: what is counted.
        log: a logarithmic axis.
        chance: accuracy of guessing, in [0, 1].

    Raises:
        ValueError: no curve, counts below 1 on a logarithmic axis, or positions with different attacks.
    """
    positions: Mapping[str, Any] = need("curves", curves) if setting else {"": need("curves", curves)}
    keys = list(positions)
    names = list(positions[keys[0]])
    for key in keys:
        if list(positions[key]) != names:
            raise ValueError(f"at {setting} = {key} the curves are {list(positions[key])}, expected {names}")
    xs = np.concatenate([curve_arrays(name, c)[0] for key in keys for name, c in positions[key].items()])
    if log and xs.min() < 1:
        raise ValueError(f"x goes down to {xs.min():g}, expected at least 1 on a logarithmic axis")
    told = " ".join(
        (f"At {setting} = {key}: " if setting else "") + in_words(positions[key], None)
        for key in dict.fromkeys([keys[0], keys[-1]])
    )
    fig = new_figure(f"Accuracy under attack against {x_title}. {told}", height=500 if setting else 420)
    frames = {str(key): curve_traces(positions[key], f"{x_title}:") for key in keys}
    fig.add_traces(curve_traces(positions[keys[0]], f"{x_title}:"))
    if log:
        ends = np.log10([xs.min() / 1.1, xs.max() * 1.1])
        ticks = [t for k in range(7) for t in (10**k, 2 * 10**k, 5 * 10**k) if xs.min() <= t <= xs.max()]
        fig.update_xaxes(type="log", range=rounded(ends), tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])
    else:
        pad = 0.03 * ((xs.max() - xs.min()) or 1.0)
        fig.update_xaxes(range=rounded([xs.min() - pad, xs.max() + pad]))
    fig.update_xaxes(title_text=x_title)
    fig.update_yaxes(title_text="accuracy under attack (%)", range=[-3, 103])
    if chance is not None:
        reference_line(fig, y=100 * chance, text=f"chance {100 * chance:g} %")
    if setting:
        add_slider(fig, frames, range(len(fig.data)), f"{setting} = ", 0)
    return fig


def gradient_noise(
    samples: Sequence[int],
    errors: Mapping[str, Sequence[float]],
    rates: Mapping[str, Sequence[Number]],
    *,
    steps: int | None = None,
) -> Figure:
    """Above, how wrong a gradient from S samples is; below, what an attack that uses it leaves of the accuracy.

    Args:
        samples: S, increasing, at least 1 each; on a log axis.
        errors: model -> relative error of its gradient for each S: length of the difference over length.
        rates: attack -> one accuracy (number or Rate) for each S; what has a model's name has its colour.
        steps: for the axis title, how many steps the attack takes.

    Raises:
        ValueError: lengths that differ, or S below 1.
    """
    import plotly.graph_objects as go

    n = array(samples, "samples")
    if n.ndim != 1 or not n.size or (n < 1).any():
        raise ValueError(f"samples is {list(samples)}, expected counts of at least 1")
    look, told = styles([*need("errors", errors), *(k for k in need("rates", rates) if k not in errors)]), []
    fig = new_figure("", height=580, rows=2, shared_xaxes=True, vertical_spacing=0.08)
    for model, numbers in errors.items():
        e = array(numbers, model)
        if e.shape != n.shape:
            raise ValueError(f"errors of {model!r} are {e.size}, expected {len(n)}, one for each count")
        told.append(f"error of the gradient of {model} {e[0]:.3g} at S = {n[0]:g}, {e[-1]:.3g} at {n[-1]:g}")
        color, dash, symbol = look[model]
        fig.add_trace(
            go.Scatter(x=rounded(n), y=rounded(e), mode="lines+markers", name=model, showlegend=model not in rates,
                       line={"color": color, "dash": dash}, marker={"symbol": symbol, "size": 8}, legendgroup=model),
            row=1, col=1,
        )  # fmt: skip
        fig.add_trace(
            go.Scatter(x=rounded(n), y=rounded(e[0] * np.sqrt(n[0] / n)), mode="lines", name="falling as 1/√S",
                       showlegend=len(told) == 1, hoverinfo="skip", legendgroup="reference",
                       line={"color": GREY, "dash": "dash", "width": 1}), row=1, col=1,
        )  # fmt: skip
    for attack, numbers in rates.items():
        value, low, high = (100 * a for a in intervals(numbers, attack))
        if value.shape != n.shape:
            raise ValueError(f"rates of {attack!r} are {len(value)}, expected {len(n)}, one for each count")
        color, dash, symbol = look[attack]
        told.append(f"{attack} keeps {value[0]:.1f} % with S = {n[0]:g} and {value[-1]:.1f} % with {n[-1]:g}")
        fig.add_trace(
            go.Scatter(x=rounded(n), y=rounded(value), error_y=error_bars(value, low, high), name=attack,
                       mode="lines+markers", line={"color": color, "dash": dash}, legendgroup=attack,
                       marker={"symbol": symbol, "size": 9}), row=2, col=1,
        )  # fmt: skip
    fig.update_layout(meta={"alt": f"Gradients averaged over S samples, and attacks by them: {'; '.join(told)}."})
    ticks = {"tickvals": rounded(n), "ticktext": [f"{k:,.0f}" for k in n]}
    fig.update_xaxes(type="log", range=rounded(np.log10([n.min() / 1.2, n.max() * 1.2])), **ticks)
    fig.update_xaxes(title_text="samples S in each gradient (log scale)", row=2)
    fig.update_yaxes(title_text="relative error", type="log", **log_ticks(*_ends(fig, row=1)), row=1)
    title = "accuracy under attack (%)" if steps is None else f"accuracy under PGD-{steps} (%)"
    fig.update_yaxes(title_text=title, range=[-3, 103], row=2)
    return fig


# --- masks ------------------------------------------------------------------------------------------------------------


def mask_slider(
    offsets: Any,
    lines: Mapping[str, tuple[Any, Any]],
    *,
    radius: float = 1.0,
    x_title: str = "position on the line (1: the attacked image)",
) -> Figure:
    """The loss along one line through an image under several defences, and its slope: reported and measured.

    Args:
        offsets: positions on the line, evenly spaced, shape (T,); 0 is the clean image.
        lines: defence -> (loss, shape (T,); the slope that automatic differentiation reports, shape (T,), or None
            where it reports none). The slope that a reader would measure is that of the loss.
        radius: position of the ball's edge, a vertical line.
        x_title: title of the x axis.

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
    for i, trace in enumerate(next(iter(frames.values()))):
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
    add_slider(fig, frames, range(3), "defence: ", 0)
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
            name="nobody knows",
        )  # fmt: skip
        limit = limits.get(key)
        wall = go.Scatter(x=[limit, limit], y=[-3, 103], mode="lines", name="no vote certifies further",
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
