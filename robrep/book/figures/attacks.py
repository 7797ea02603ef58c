"""Attacks at work: the ball and the projection, ascents, calls of the model, gradients of random models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from robrep.attacks import L2, Linf
from robrep.book.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    Number,
    add_slider,
    array,
    error_bars,
    intervals,
    log_ticks,
    need,
    new_figure,
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
        ValueError: ``x`` is not two values in [0, 1].
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
    y_title: str = "accuracy under attack (%)",
    log: bool = True,
    chance: float | None = None,
    start: int = 0,
) -> Figure:
    """Robust accuracy against what an attack was allowed (its steps, its calls of the model), or against a weight.

    Args:
        curves: attack -> {"x": counts, "y": accuracies} as for ``accuracy_against_radius``. With ``setting``, slider
            position -> such a mapping, with the same attacks in each.
        setting: what a slider moves; "" for no slider.
        x_title: what the x axis counts.
        y_title: name and unit of the y axis.
        log: a logarithmic axis.
        chance: accuracy of guessing, in [0, 1].
        start: slider position shown first.

    Raises:
        ValueError: no curve, x not above 0 on a logarithmic axis, or positions with different attacks.
    """
    positions: Mapping[str, Any] = need("curves", curves) if setting else {"": need("curves", curves)}
    keys = list(positions)
    names = list(positions[keys[0]])
    for key in keys:
        if list(positions[key]) != names:
            raise ValueError(f"at {setting} = {key} the curves are {list(positions[key])}, expected {names}")
    xs = np.concatenate([curve_arrays(name, c)[0] for key in keys for name, c in positions[key].items()])
    if log and xs.min() <= 0:
        raise ValueError(f"x goes down to {xs.min():g}, expected numbers above 0 on a logarithmic axis")
    told = " ".join(
        (f"At {setting} = {key}: " if setting else "") + in_words(positions[key], None)
        for key in dict.fromkeys([keys[0], keys[-1]])
    )
    shown = y_title.removesuffix(" (%)").capitalize()
    fig = new_figure(f"{shown} against {x_title}. {told}", height=500 if setting else 420)
    frames = {str(key): curve_traces(positions[key], f"{x_title}:") for key in keys}
    fig.add_traces(curve_traces(positions[keys[start]], f"{x_title}:"))
    if log:
        ends = np.log10([xs.min() / 1.1, xs.max() * 1.1])
        fig.update_xaxes(type="log", range=rounded(ends), **log_ticks(xs.min(), xs.max()))
    else:
        pad = 0.03 * ((xs.max() - xs.min()) or 1.0)
        fig.update_xaxes(range=rounded([xs.min() - pad, xs.max() + pad]))
    fig.update_xaxes(title_text=x_title)
    fig.update_yaxes(title_text=y_title, range=[-3, 103])
    if chance is not None:
        reference_line(fig, y=100 * chance, text=f"chance {100 * chance:g} %")
    if setting:
        add_slider(fig, frames, range(len(fig.data)), f"{setting} = ", start % len(keys))
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
        told.append(f"{attack} retains {value[0]:.1f} % with S = {n[0]:g} and {value[-1]:.1f} % with {n[-1]:g}")
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
