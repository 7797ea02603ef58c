"""Mutual information: estimates against the truth, linear vulnerability, vulnerability against the adversarial gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robrep.book.figures.base import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    Number,
    add_slider,
    array,
    error_bars,
    interval,
    intervals,
    need,
    new_figure,
    reference_line,
    rounded,
    styles,
)
from robrep.book.worst_case_mi import LinearVulnerability, entropy_drop, fano_accuracy, linear_vulnerability
from robrep.checks import one_of, positive_int
from robrep.information import donsker_varadhan

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def estimates_against_truth(
    settings: Mapping[Any, Mapping[str, Mapping[str, Sequence[Number]]]], *, setting: str = "dimension"
) -> Figure:
    """Estimated mutual information against the true one, one line for each estimator; a slider moves ``setting``.

    Args:
        settings: slider position -> estimator -> {"x": truths, "y": estimates, "low", "high": their range}, in nats.
        setting: what the slider moves.

    Raises:
        ValueError: no position, or positions with different estimators.
    """
    import plotly.graph_objects as go

    keys = list(need("settings", settings))
    names = list(settings[keys[0]])
    look, told, frames = styles(names), [], {}
    top = max(float(np.max(array(c["high"], "high"))) for curves in settings.values() for c in curves.values())
    truths = array(settings[keys[0]][names[0]]["x"], "x")
    for key in keys:
        if list(settings[key]) != names:
            raise ValueError(f"at {setting} {key} the estimators are {list(settings[key])}, expected {names}")
        drawn = []
        for name, c in settings[key].items():
            x, y = array(c["x"], "x"), array(c["y"], "y")
            color, dash, symbol = look[name]
            drawn.append(
                go.Scatter(
                    x=rounded(x),
                    y=rounded(y),
                    error_y=error_bars(y, array(c["low"], "low"), array(c["high"], "high")),
                    name=name,
                    mode="lines+markers",
                    line={"color": color, "dash": dash},
                    marker={"symbol": symbol, "size": 8, "color": color},
                    hovertemplate=f"{name}<br>true %{{x}} nats<br>estimated %{{y:.3f}}<extra></extra>",
                )
            )
            if key in (keys[0], keys[-1]):
                told.append(f"{setting} {key}, {name}: {y[0]:.2f} at {x[0]:g}, {y[-1]:.2f} at {x[-1]:g}")
        frames[str(key)] = drawn
    fig = new_figure(f"Estimated against true mutual information in nats. {'; '.join(told)}.", height=520)
    fig.add_traces(frames[str(keys[0])])
    line = [0.0, float(truths.max())]
    fig.add_trace(go.Scatter(x=line, y=line, mode="lines", name="truth", line={"color": GREY, "width": 1}))
    fig.update_xaxes(title_text="true information (nats)", range=rounded([0, truths.max() * 1.05]))
    fig.update_yaxes(title_text="estimate (nats)", range=rounded([-0.1, max(top, truths.max()) * 1.05]))
    add_slider(fig, frames, range(len(names)), f"{setting} ")
    return fig


def released_slip(scores: Tensor, shifts: Sequence[float], truth: float) -> Figure:
    """The Donsker-Varadhan estimate of one matrix of scores when a constant is added to all of them.

    Args:
        scores: (N, N), for example of the exact critic.
        shifts: the constants.
        truth: the true information in nats.
    """
    import plotly.graph_objects as go

    forms = {"diagonal left out": "excluded", "diagonal counted, as released": "counted"}
    values = {
        name: [donsker_varadhan(scores + s, how).item() for s in shifts]  # type: ignore[arg-type]
        for name, how in forms.items()
    }
    told = "; ".join(
        f"{name}: {v[0]:.2f} at {shifts[0]:g}, {v[-1]:.2f} at {shifts[-1]:g}" for name, v in values.items()
    )
    fig = new_figure(
        f"Estimate against a constant added to the critic. True information {truth:.2f}. {told}.", height=400
    )
    for (name, y), (color, dash) in zip(values.items(), ((BLUE, "solid"), (VERMILION, "dash")), strict=True):
        fig.add_trace(
            go.Scatter(
                x=rounded(list(shifts)), y=rounded(y), name=name, mode="lines", line={"color": color, "dash": dash}
            )
        )
    fig.update_xaxes(title_text="constant added to all scores")
    fig.update_yaxes(title_text="estimate (nats)")
    reference_line(fig, y=truth, text="truth")
    return fig


def linear_vulnerability_slider(
    *,
    angles: Sequence[float],
    radii: Sequence[float],
    slider: str = "angle",
    distance: float = 1.5,
    p: float = math.inf,
) -> Figure:
    """Theorem 3.2 in the plane: RV of sgn(w.x) and its bounds, with angle and radius on the axis and on the slider.

    Args:
        angles: degrees between w and theta, which lies on the first axis.
        radii: of the adversary.
        slider: what the slider moves, "angle" or "radius"; the other is the horizontal axis.
        distance: length of theta; the covariance is the identity.
        p: the norm of the ball.

    Raises:
        ValueError: ``slider`` is neither.
    """
    import plotly.graph_objects as go

    theta, covariance = torch.tensor([distance, 0.0]), torch.eye(2)
    turning = one_of("slider", slider, ("angle", "radius")) == "angle"
    along, steps = (radii, angles) if turning else (angles, radii)
    axis, label = ("radius ε of the adversary", "radius %{x}") if turning else ("angle of w to θ, degrees", "%{x}°")

    def at(angle: float, eps: float) -> LinearVulnerability:
        w = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        return linear_vulnerability(w, theta, covariance, eps, p)

    lines = {
        "F(min(AG, ½)), upper bound": (VERMILION, "dash", "high"),
        "RV, exact": (BLUE, "solid", "value"),
        "F(AG/2), lower bound": (GREEN, "dot", "low"),
    }
    frames, told = {}, []
    for step in steps:
        cases = [at(step, each) if turning else at(each, step) for each in along]
        position = f"{step:g}°" if turning else f"{step:g}"
        frames[position] = [
            go.Scatter(
                x=rounded(list(along)),
                y=rounded([getattr(c, key) for c in cases]),
                name=name,
                mode="lines",
                line={"color": color, "dash": dash, "width": 3 if key == "value" else 2},
                customdata=rounded([[c.gap, c.risk] for c in cases]),
                hovertemplate=label + "<br>%{y:.4f} nats<br>gap %{customdata[0]:.3f}, risk %{customdata[1]:.3f}"
                f"<extra>{name}</extra>",
            )
            for name, (color, dash, key) in lines.items()
        ]
        if step in (steps[0], steps[-1]):
            middle, where = cases[len(cases) // 2], along[len(cases) // 2]
            place = f"{position} and radius {where:.2g}" if turning else f"radius {position} and {where:.2g}°"
            told.append(f"at {place}: {middle.low:.3f} to {middle.value:.3f} to {middle.high:.3f}")
    fig = new_figure(
        f"Exact vulnerability between its bounds, in nats, against the {axis}: {'; '.join(told)}.", height=500
    )
    fig.add_traces(next(iter(frames.values())))
    fig.update_xaxes(title_text=axis, range=rounded([0, max(along)]))
    fig.update_yaxes(title_text="nats", range=[-0.02, math.log(2) * 1.08])
    reference_line(fig, y=math.log(2), text="ln 2: all that one bit holds")
    add_slider(fig, frames, range(3), "angle of w to θ: " if turning else "radius ε = ")
    return fig


def bounds_of_cases(cases: Sequence[LinearVulnerability], sampled: Sequence[float]) -> Figure:
    """Random cases of theorem 3.2, ordered by the gap: the interval of the corrected bounds and RV inside it.

    Args:
        cases: exact results.
        sampled: RV of the same cases by Monte Carlo.
    """
    import plotly.graph_objects as go

    order = sorted(range(len(cases)), key=lambda i: cases[i].gap)
    low, value, high = (np.array([getattr(cases[i], key) for i in order]) for key in ("low", "value", "high"))
    n = list(range(1, len(cases) + 1))
    inside = int(((low <= value) & (value <= high)).sum())
    fig = new_figure(
        f"{len(cases)} random cases: RV lies between F(AG/2) and F(AG) in {inside}; F(AG) is always the larger one.",
        height=420,
    )
    middle = (low + high) / 2
    fig.add_trace(
        go.Scatter(
            x=n,
            y=rounded(middle),
            error_y=error_bars(middle, low, high),
            mode="markers",
            marker={"size": 1, "color": GREY},
            name="from F(AG/2) to F(min(AG, ½))",
            hoverinfo="skip",
        )
    )
    for name, y, symbol, color in (
        ("RV, exact", value, "circle", BLUE),
        ("RV, sampled", np.array([sampled[i] for i in order]), "x", VERMILION),
        ("F(AG), the printed lower bound", high, "triangle-down", GREEN),
    ):
        fig.add_trace(
            go.Scatter(
                x=n, y=rounded(y), mode="markers", name=name, marker={"symbol": symbol, "size": 8, "color": color}
            )
        )
    fig.update_xaxes(title_text="case, ordered by adversarial gap")
    fig.update_yaxes(title_text="nats")
    return fig


def vulnerability_against_gap(
    groups: Mapping[str, Sequence[Mapping[str, Any]]], *, toy: bool = False, x_title: str = "estimated RV (nats)"
) -> Figure:
    """Adversarial gap against estimated vulnerability, one point for each model (figure 1 of Zhu et al. 2020).

    Args:
        groups: kind of model -> its models, each {"name", "vulnerability" (nats), "gap" (a fraction)}.
        toy: draw the band of theorem 3.2 as well.
        x_title: title of the x axis.
    """
    import plotly.graph_objects as go

    look, told = styles(need("groups", groups)), []
    fig = new_figure("", height=430)
    for name, models in groups.items():
        color, _, symbol = look[name]
        x, y = ([float(m[key]) for m in models] for key in ("vulnerability", "gap"))
        fig.add_trace(
            go.Scatter(
                x=rounded(x),
                y=rounded([100 * v for v in y]),
                text=[m["name"] for m in models],
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 10, "color": color},
                hovertemplate="%{text}<br>RV %{x:.2f} nats<br>gap %{y:.1f} points<extra></extra>",
            )
        )
        told.append(f"{name}: RV {min(x):.2f} to {max(x):.2f}, gap {100 * min(y):.0f} to {100 * max(y):.0f} points")
    if toy:
        t = np.linspace(0, 0.5, 40)
        fig.add_trace(go.Scatter(x=rounded(entropy_drop(torch.tensor(t))), y=rounded(100 * t), mode="lines", name="F"))
    fig.layout.meta = {"alt": f"Adversarial gap against estimated vulnerability. {'; '.join(told)}."}
    fig.update_xaxes(title_text=x_title)
    fig.update_yaxes(title_text="adversarial gap (points)", range=[-3, 103])
    return fig


def information_pairs(groups: Mapping[str, Sequence[Mapping[str, Any]]], *, classes: int) -> Figure:
    """Worst-case and normal information of each model, joined by a line, at its accuracy (figure 2 of Zhu et al. 2020).

    The curve is the ceiling of theorem 3.4, if the information were known.

    Args:
        groups: kind of model -> its models, each {"name", "worst", "normal" (nats), "robust" (a fraction)}.
        classes: number of classes.
    """
    import plotly.graph_objects as go

    positive_int("classes", classes)
    look, told = styles(need("groups", groups)), []
    fig = new_figure("", height=450)
    top = 0.0
    for name, models in groups.items():
        color, _, symbol = look[name]
        x, y, text, marks = [], [], [], []
        for m in models:
            worst, normal, robust = float(m["worst"]), float(m["normal"]), 100 * float(m["robust"])
            x += [worst, normal, None]
            y += [robust, robust, None]
            text += [f"{m['name']}, worst case", f"{m['name']}, normal", ""]
            marks += [symbol, f"{symbol}-open", symbol]
            top = max(top, normal)
        fig.add_trace(
            go.Scatter(
                x=[None if v is None else rounded(v) for v in x],
                y=[None if v is None else rounded(v) for v in y],
                text=text,
                mode="lines+markers",
                name=name,
                line={"color": color, "width": 1},
                marker={"symbol": marks, "size": 9, "color": color},
                hovertemplate="%{text}<br>%{x:.2f} nats<br>robust %{y:.1f} %<extra></extra>",
            )
        )
        told.append(
            f"{name}: worst case {np.mean([float(m['worst']) for m in models]):.2f}, "
            f"normal {np.mean([float(m['normal']) for m in models]):.2f} nats on average"
        )
    grid = np.linspace(0, max(top, math.log(classes)), 60)
    ceiling = [100 * fano_accuracy(float(v), classes) for v in grid]
    fig.add_trace(
        go.Scatter(
            x=rounded(grid), y=rounded(ceiling), mode="lines", name="ceiling (I + ln 2) / ln C", line={"color": GREY}
        )
    )
    fig.layout.meta = {"alt": f"Worst-case (filled) and normal (open) information of each model. {'; '.join(told)}."}
    fig.update_xaxes(title_text="estimated information (nats)")
    fig.update_yaxes(title_text="robust accuracy (%)", range=[-3, 103])
    return fig


def feature_histograms(models: Mapping[str, Mapping[str, Sequence[float]]], *, bins: int = 12) -> Figure:
    """How information and vulnerability are spread over single units (figure 3 of Zhu et al. 2020).

    Args:
        models: model -> quantity (such as "information" or "vulnerability") -> one value for each unit, in nats.
        bins: number of bars.
    """
    import plotly.graph_objects as go

    quantities = list(next(iter(need("models", models).values())))
    look, told = styles(models), []
    fig = new_figure("", height=400, rows=1, cols=len(quantities), subplot_titles=quantities, shared_yaxes=True)
    for column, quantity in enumerate(quantities, 1):
        every = np.concatenate([array(m[quantity], quantity) for m in models.values()])
        edges = np.linspace(every.min(), every.max() + 1e-9, positive_int("bins", bins) + 1)
        for name, m in models.items():
            values = array(m[quantity], quantity)
            counts, _ = np.histogram(values, edges)
            fig.add_trace(
                go.Bar(
                    x=rounded((edges[:-1] + edges[1:]) / 2),
                    y=counts.tolist(),
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    marker={"color": look[name].color, "pattern": {"shape": "/" if look[name].dash != "solid" else ""}},
                    hovertemplate=f"{name}<br>%{{x:.2f}} nats: %{{y}} units<extra></extra>",
                ),
                row=1,
                col=column,
            )
            told.append(f"{quantity}, {name}: mean {values.mean():.2f}, from {values.min():.2f} to {values.max():.2f}")
        fig.update_xaxes(title_text="nats", type="linear", nticks=6, tickformat=".2~f", row=1, col=column)
    fig.update_yaxes(title_text="units", row=1, col=1)
    fig.update_yaxes(dtick=max(1, round(max(max(bars.y) for bars in fig.data) / 5)))  # units come whole
    fig.update_layout(barmode="group", meta={"alt": f"Histograms over single units, in nats. {'; '.join(told)}."})
    return fig


def weak_beside_strong(models: Mapping[str, Mapping[str, Number]]) -> Figure:
    """Accuracy of each model on clean images and under attacks of growing strength, as bars with their intervals.

    Args:
        models: model -> name of the attack ("clean" for none) -> accuracy in [0, 1] (a number, a Rate, or seeds).
    """
    import plotly.graph_objects as go

    attacks = list(next(iter(need("models", models).values())))
    look = styles(attacks)
    fig = new_figure("", height=430)
    told = [
        f"{name}: " + ", ".join(f"{attack} {100 * interval(v, attack).value:.1f} %" for attack, v in rates.items())
        for name, rates in models.items()
    ]
    for attack in attacks:
        value, low, high = (100 * a for a in intervals([rates[attack] for rates in models.values()], attack))
        fig.add_trace(
            go.Bar(
                x=list(models),
                y=rounded(value),
                error_y=error_bars(value, low, high),
                name=attack,
                marker={"color": look[attack].color},
                hovertemplate=f"%{{x}}<br>{attack}: %{{y:.1f}} %<extra></extra>",
            )
        )
    fig.layout.meta = {"alt": f"Accuracy under attacks of growing strength. {'; '.join(told)}."}
    fig.update_layout(barmode="group")
    fig.update_yaxes(title_text="accuracy (%)", range=[0, 103])
    return fig
