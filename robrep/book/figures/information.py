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
from robrep.checks import positive_int
from robrep.information import donsker_varadhan

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def estimates_against_truth(
    settings: Mapping[Any, Mapping[str, Mapping[str, Sequence[Number]]]], *, setting: str = "dimension"
) -> Figure:
    """By how much estimates of mutual information miss the truth, one panel for each value of ``setting``.

    Args:
        settings: value -> estimator -> {"x": truths, "y": estimates, "low", "high": their range}, in nats.
        setting: what differs from panel to panel.

    Raises:
        ValueError: no panel, or panels with different estimators.
    """
    import plotly.graph_objects as go

    keys = list(need("settings", settings))
    names = list(settings[keys[0]])
    look, told = styles(names), []
    titles = [f"{setting} {key}" for key in keys]
    fig = new_figure("", height=400, cols=len(keys), subplot_titles=titles, shared_yaxes=True)
    for column, key in enumerate(keys, 1):
        if list(settings[key]) != names:
            raise ValueError(f"at {setting} {key} the estimators are {list(settings[key])}, expected {names}")
        for name, c in settings[key].items():
            x, y, low, high = (array(c[part], part) for part in ("x", "y", "low", "high"))
            color, dash, symbol = look[name]
            fig.add_trace(
                go.Scatter(
                    x=rounded(x),
                    y=rounded(y - x),
                    error_y=error_bars(y, low, high),
                    customdata=rounded(y),
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": color, "dash": dash},
                    marker={"symbol": symbol, "size": 8, "color": color},
                    hovertemplate=f"{name}<br>true %{{x}} nats<br>estimated %{{customdata:.3f}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            told.append(f"{setting} {key}, {name}: {y[0]:.2f} at {x[0]:g}, {y[-1]:.2f} at {x[-1]:g}")
        fig.update_xaxes(title_text="true MI (nats)", rangemode="tozero", row=1, col=column)
    fig.layout.meta = {"alt": f"Estimated mutual information at the true one, in nats. {'; '.join(told)}."}
    fig.update_yaxes(title_text="estimate minus truth (nats)", row=1, col=1)
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
    reference_line(fig, y=truth, text="true information", annotation_position="bottom right")
    return fig


def linear_vulnerability_slider(
    *, angles: Sequence[float], radii: Sequence[float], start: int = 0, distance: float = 1.5, p: float = math.inf
) -> Figure:
    """Theorem 3.2 in the plane: RV of sgn(w.x) and its bounds against the radius; a slider turns w.

    Args:
        angles: degrees between w and theta, which lies on the first axis: the positions of the slider.
        radii: of the adversary, the horizontal axis.
        start: number of the angle that is shown first.
        distance: length of theta; the covariance is the identity.
        p: the norm of the ball.
    """
    import plotly.graph_objects as go

    theta, covariance = torch.tensor([distance, 0.0]), torch.eye(2)
    lines = {
        "F(min(AG, ½)), upper bound": (VERMILION, "dash", "high"),
        "RV, exact": (BLUE, "solid", "value"),
        "F(AG/2), lower bound": (GREEN, "dot", "low"),
    }
    frames, told = {}, []
    for angle in angles:
        w = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        cases = [linear_vulnerability(w, theta, covariance, eps, p) for eps in radii]
        frames[f"{angle:g}°"] = [
            go.Scatter(
                x=rounded(list(radii)),
                y=rounded([getattr(c, key) for c in cases]),
                name=name,
                mode="lines",
                line={"color": color, "dash": dash, "width": 3 if key == "value" else 2},
                customdata=rounded([[c.gap, c.risk] for c in cases]),
                hovertemplate="radius %{x}<br>%{y:.4f} nats<br>gap %{customdata[0]:.3f}, risk %{customdata[1]:.3f}"
                f"<extra>{name}</extra>",
            )
            for name, (color, dash, key) in lines.items()
        ]
        if angle in (angles[0], angles[-1]):
            middle, where = cases[len(cases) // 2], radii[len(cases) // 2]
            values = f"{middle.low:.3f} to {middle.value:.3f} to {middle.high:.3f}"
            told.append(f"at {angle:g}° and radius {where:.2g}: {values}")
    fig = new_figure(
        f"Exact vulnerability between its bounds, in nats, against the radius of the adversary: {'; '.join(told)}.",
        height=500,
    )
    fig.add_traces(next(iter(frames.values())))
    fig.update_xaxes(title_text="radius ε of the adversary", range=rounded([0, max(radii)]))
    fig.update_yaxes(title_text="nats", range=[-0.02, math.log(2) * 1.12])
    reference_line(fig, y=math.log(2), text="ln 2: all that one bit contains")
    add_slider(fig, frames, range(3), "angle between w and θ: ", start)
    return fig


def bounds_of_cases(cases: Sequence[LinearVulnerability], sampled: Sequence[float]) -> Figure:
    """Random cases of theorem 3.2: RV against the adversarial gap, between the two bounds as curves.

    Args:
        cases: exact results.
        sampled: RV of the same cases by Monte Carlo.
    """
    import plotly.graph_objects as go

    inside = sum(c.low <= c.value <= c.high for c in cases)
    fig = new_figure(
        f"{len(cases)} random cases: RV lies between F(AG/2) and F(AG) in {inside}; F(AG) is always the larger one.",
        height=420,
    )
    gaps = torch.linspace(0, 1.05 * max(c.gap for c in cases), 80, dtype=torch.float64)
    for name, at, color, dash in (
        ("F(AG), upper bound, printed as the lower", gaps.clamp(max=0.5), VERMILION, "dash"),
        ("F(AG/2), lower bound, printed as the upper", gaps / 2, GREEN, "dot"),
    ):
        line = {"color": color, "dash": dash}
        fig.add_trace(go.Scatter(x=rounded(gaps), y=rounded(entropy_drop(at)), mode="lines", name=name, line=line))
    for name, y, marker in (
        ("RV, exact", [c.value for c in cases], {"symbol": "circle-open", "size": 10, "color": BLUE}),
        (
            "RV, sampled",
            list(sampled),
            {"symbol": "x-thin", "size": 6, "color": GREY, "line": {"width": 2, "color": GREY}},
        ),
    ):
        x = [c.gap for c in cases]
        fig.add_trace(go.Scatter(x=rounded(x), y=rounded(y), mode="markers", name=name, marker=marker))
    fig.update_xaxes(title_text="adversarial gap AG", rangemode="tozero")
    fig.update_yaxes(title_text="nats")
    return fig


def vulnerability_against_gap(
    groups: Mapping[str, Sequence[Mapping[str, Any]]], *, x_title: str = "estimated RV (nats)"
) -> Figure:
    """Adversarial gap against estimated vulnerability, one point for each model (figure 1 of Zhu et al. 2020).

    The models of one group are joined in the order of their gaps.

    Args:
        groups: name -> its models, each {"name", "vulnerability" (nats), "gap" (a fraction)}, and "label" if a text
            stands beside the point.
        x_title: title of the x axis.
    """
    import plotly.graph_objects as go

    look, told = styles(need("groups", groups)), []
    fig = new_figure("", height=430)
    for name, models in groups.items():
        color, dash, symbol = look[name]
        models = sorted(models, key=lambda m: m["gap"])
        x, y = ([float(m[key]) for m in models] for key in ("vulnerability", "gap"))
        fig.add_trace(
            go.Scatter(
                x=rounded(x),
                y=rounded([100 * v for v in y]),
                text=[m.get("label", "") for m in models],
                textposition="middle right",
                hovertext=[m["name"] for m in models],
                mode="lines+markers+text",
                name=name,
                line={"color": color, "dash": dash, "width": 1},
                marker={"symbol": symbol, "size": 10, "color": color},
                hovertemplate="%{hovertext}<br>RV %{x:.2f} nats<br>gap %{y:.1f} points<extra></extra>",
            )
        )
        told.append(f"{name}: RV {min(x):.2f} to {max(x):.2f}, gap {100 * min(y):.0f} to {100 * max(y):.0f} points")
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


def unit_vulnerability(models: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """What an adversary leaves of the information in single units, one panel for each network.

    Args:
        models: network -> its units, each {"normal", "worst"} in nats.
    """
    import plotly.graph_objects as go

    look, told = styles(need("models", models)), []
    fig = new_figure("", height=360, cols=len(models), subplot_titles=list(models), shared_yaxes=True)
    ends = [u[key] for units in models.values() for u in units for key in ("normal", "worst")]
    margin = 0.08 * (max(ends) - min(ends))
    span = rounded([min(ends) - margin, max(ends) + margin])
    for column, (name, units) in enumerate(models.items(), 1):
        color, _, symbol = look[name]
        units = sorted(units, key=lambda u: u["normal"])
        for rank, unit in enumerate(units, 1):
            fig.add_trace(
                go.Scatter(
                    x=rounded([unit["worst"], unit["normal"]]),
                    y=[rank, rank],
                    text=["worst case", "normal"],
                    mode="lines+markers",
                    name=name,
                    showlegend=False,
                    line={"color": color, "width": 2},
                    marker={"symbol": [symbol, f"{symbol}-open"], "size": 9, "color": color},
                    hovertemplate="%{text}: %{x:.2f} nats<extra></extra>",
                ),
                row=1,
                col=column,
            )
        normal, worst = (sum(u[key] for u in units) for key in ("normal", "worst"))
        told.append(f"{name}: {worst:.2f} of {normal:.2f} nats left in {len(units)} units together")
        fig.update_xaxes(title_text="nats", range=span, row=1, col=column)
    fig.layout.meta = {"alt": f"Information of single units, normal and in the worst case. {'; '.join(told)}."}
    fig.update_yaxes(dtick=1)
    fig.update_yaxes(title_text="unit, by information", row=1, col=1)
    return fig


def weak_beside_strong(models: Mapping[str, Mapping[str, Number]]) -> Figure:
    """Accuracy of each model on clean images and under attacks of growing strength, as bars with their intervals.

    Args:
        models: model -> name of the attack ("clean" for none) -> accuracy in [0, 1] (a number, a Rate, or seeds). A
            comma in the name of a model becomes a line break.
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
                x=[name.replace(", ", "<br>") for name in models],
                y=rounded(value),
                error_y=error_bars(value, low, high) | {"color": GREY},
                name=attack,
                marker={"color": look[attack].color},
                hovertemplate=f"%{{x}}<br>{attack}: %{{y:.1f}} %<extra></extra>",
            )
        )
    fig.layout.meta = {"alt": f"Accuracy under attacks of growing strength. {'; '.join(told)}."}
    fig.update_layout(barmode="group")
    fig.update_yaxes(title_text="accuracy (%)", range=[0, 103])
    return fig
