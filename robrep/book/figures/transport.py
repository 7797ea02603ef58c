"""Optimal transport between two Gaussians, and an encoder along a line of inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    add_slider,
    array,
    need,
    new_figure,
    reference_line,
    rounded,
    styles,
    wash,
)
from robrep.gaussians import Gaussian, entropic_wasserstein, optimal_coupling, wasserstein2

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def _line(p: Gaussian, name: str) -> tuple[float, float]:
    """Mean and scale of one Gaussian on a line."""
    if tuple(p.mean.shape) != (1, 1) or tuple(p.scale.shape) != (1, 1):
        raise ValueError(f"{name} has shape {tuple(p.mean.shape)}, expected (1, 1): one Gaussian on a line")
    return float(p.mean), float(p.scale)


def _increasing(gammas: Sequence[float], least: float) -> list[float]:
    g = array(gammas, "gammas")
    if g.ndim != 1 or len(g) < 2 or (np.diff(g) <= 0).any() or g[0] < least:
        raise ValueError(f"gammas is {list(gammas)}, expected two or more increasing numbers, at least {least:g}")
    return [float(v) for v in g]


def _double(p: Gaussian) -> Gaussian:
    return Gaussian(p.mean.detach().double().cpu(), p.scale.detach().double().cpu())


def coupling_picture(p: Gaussian, q: Gaussian, gammas: Sequence[float] = GAMMAS) -> Figure:
    """The optimal joint density of z_a and z_b, moved by a slider over gamma, and the cost of transport it reaches.

    Above, the joint Gaussian as ellipses of one and two standard deviations, with the line of the Monge map. Below,
    the expected squared distance of z_a and z_b under it, which falls to W2^2.

    Args:
        p, q: one Gaussian on a line each, of shape (1, 1).
        gammas: positions of the slider, increasing, at least 0.

    Raises:
        ValueError: other shapes, or gammas that do not increase.
    """
    import plotly.graph_objects as go

    (m, s), (m_, s_) = _line(p, "p"), _line(q, "q")
    steps = _increasing(gammas, 0.0)
    p, q = _double(p), _double(q)
    limit = float(wasserstein2(p, q))

    def cost(gamma: float) -> float:
        return (m - m_) ** 2 + s**2 + s_**2 - 2 * float(optimal_coupling(p, q, gamma))

    costs = [cost(g) for g in steps]
    correlations = [float(optimal_coupling(p, q, g)) / (s * s_) for g in steps]
    fig = new_figure(
        f"The optimal coupling of N({m:g}, {s * s:.3g}) and N({m_:g}, {s_ * s_:.3g}), two ellipses that the slider "
        f"over gamma squeezes onto the line of the Monge map: the correlation goes from {correlations[0]:.3g} at gamma "
        f"{steps[0]:g} to {correlations[-1]:.3g} at {steps[-1]:g}. Below, the expected squared distance falls from "
        f"{costs[0]:.3g} to {costs[-1]:.3g}; its limit, W2 squared, is {limit:.3g}.",
        height=700, rows=2, row_heights=[0.62, 0.38], vertical_spacing=0.13,
    )  # fmt: skip
    angle = np.linspace(0, 2 * math.pi, 73)

    def ellipses(gamma: float) -> Any:
        rho = float(optimal_coupling(p, q, gamma)) / (s * s_)
        x, y = np.cos(angle), rho * np.cos(angle) + math.sqrt(max(0.0, 1 - rho * rho)) * np.sin(angle)
        xs, ys = ([*(m + r * s * x for r in (1, 2))], [*(m_ + r * s_ * y for r in (1, 2))])
        return go.Scatter(x=_joined(xs), y=_joined(ys))

    def reading(i: int) -> Any:
        name = f"cost {costs[i]:.4g}, correlation {correlations[i]:.3g}"
        return go.Scatter(x=[i], y=rounded([costs[i]]), name=name)

    ends = np.array([-2.6, 2.6])
    fig.add_trace(
        go.Scatter(x=rounded(m + s * ends), y=rounded(m_ + s_ * ends), name="Monge map", mode="lines",
                   line={"color": GREY, "dash": "dash"}, hoverinfo="skip"), row=1, col=1,
    )  # fmt: skip
    first = ellipses(steps[0])
    first.update(name="coupling: 1 and 2 sd", mode="lines", line={"color": BLUE, "width": 2.5}, hoverinfo="skip")
    fig.add_trace(first, row=1, col=1)
    place = list(range(len(steps)))
    fig.add_trace(
        go.Scatter(x=place, y=rounded(costs), mode="lines+markers", line={"color": GREEN}, showlegend=False,
                   hovertemplate="E|z_a − z_b|² = %{y}<extra></extra>"), row=2, col=1,
    )  # fmt: skip
    dot = reading(0)
    dot.update(mode="markers", marker={"color": VERMILION, "size": 12, "symbol": "diamond"}, hoverinfo="name")
    fig.add_trace(dot, row=2, col=1)
    reference_line(fig, y=limit, text=f"W₂² = {limit:.4g}", row=2, col=1, annotation_position="bottom left")
    fig.update_xaxes(title_text="z_a", range=rounded([m - 3 * s, m + 3 * s]), row=1, col=1)
    fig.update_yaxes(title_text="z_b", range=rounded([m_ - 3 * s_, m_ + 3 * s_]), row=1, col=1)
    labels = [f"{g:g}" for g in steps]
    fig.update_xaxes(title_text="γ", tickvals=place, ticktext=labels, range=[-0.4, len(steps) - 0.6], row=2, col=1)
    top = max(costs) * 1.1
    fig.update_yaxes(title_text="E|z_a − z_b|²", range=rounded([0, top]), row=2, col=1)
    frames = {label: [ellipses(g), reading(i)] for i, (label, g) in enumerate(zip(labels, steps, strict=True))}
    add_slider(fig, frames, [1, 3], "γ = ")
    return fig


def _joined(parts: Sequence[np.ndarray]) -> list:
    """Several lines as one, with a gap between each two."""
    out: list = []
    for part in parts:
        out += [*rounded(part), None]
    return out[:-1]


def entropic_objective(p: Gaussian, q: Gaussian, gammas: Sequence[float] = GAMMAS[1:], points: int = 161) -> Figure:
    """What the coupling minimises, against its covariance psi, with the closed form's minimum and a brute force's.

    The slider moves gamma. The curve is gamma/2 E|z_a - z_b|^2 - H, from the definition, for every covariance psi that
    the two scales allow.

    Args:
        p, q: one Gaussian on a line each, of shape (1, 1).
        gammas: positions of the slider, increasing, above 0.
        points: covariances tried by the brute force.

    Raises:
        ValueError: other shapes, or gammas that do not increase.
    """
    import plotly.graph_objects as go

    (m, s), (m_, s_) = _line(p, "p"), _line(q, "q")
    steps = _increasing(gammas, 1e-12)
    p, q = _double(p), _double(q)
    psi = s * s_ * np.tanh(np.linspace(-1.5, 4, points))

    def curve(gamma: float) -> np.ndarray:
        cost = (m - m_) ** 2 + s**2 + s_**2 - 2 * psi
        entropy = math.log(2 * math.pi * math.e) + 0.5 * np.log(s**2 * s_**2 - psi**2)
        return gamma / 2 * cost - entropy

    exact = [(float(optimal_coupling(p, q, g)), float(entropic_wasserstein(p, q, g))) for g in steps]
    curves = [curve(g) for g in steps]
    tried = [(psi[c.argmin()], c.min()) for c in curves]
    gap = max(abs(t[1] - e[1]) for t, e in zip(tried, exact, strict=True))
    fig = new_figure(
        f"The entropy regularized cost of every coupling of two Gaussians against its covariance psi, one slider "
        f"position for each gamma from {steps[0]:g} to {steps[-1]:g}. The closed form's minimum moves from psi "
        f"{exact[0][0]:.3g} to {exact[-1][0]:.3g}; the best of {points} values "
        f"tried is never more than {gap:.2g} above it.",
        height=480,
    )

    def frame(i: int) -> list:
        low = curves[i].min()
        shown = np.where(curves[i] - low < 6, curves[i] - low, np.nan)
        told = f"closed form: ψ = {exact[i][0]:.4g}, WD = {exact[i][1]:.5g}"
        found = f"best of {points}: ψ = {tried[i][0]:.4g}, {tried[i][1]:.5g}"
        return [
            go.Scatter(x=rounded(psi), y=rounded(shown)),
            go.Scatter(x=rounded([exact[i][0]]), y=rounded([exact[i][1] - low]), name=told),
            go.Scatter(x=rounded([tried[i][0]]), y=[0.0], name=found),
        ]

    looks: list[dict] = [
        {"mode": "lines", "line": {"color": BLUE}, "name": "every ψ", "hoverinfo": "skip"},
        {"mode": "markers", "marker": {"color": VERMILION, "symbol": "x", "size": 13}},
        {"mode": "markers", "marker": {"color": GREEN, "symbol": "circle-open", "size": 15, "line": {"width": 2}}},
    ]
    for trace, look in zip(frame(0), looks, strict=True):
        trace.update(**look)
        fig.add_trace(trace)
    fig.update_xaxes(title_text="covariance ψ of z_a and z_b", range=rounded([psi[0], 1.03 * s * s_]))
    fig.update_yaxes(title_text="cost above the least (nats)", range=[-0.3, 6])
    reference_line(fig, x=s * s_, text="Monge map", annotation_position="top left")
    add_slider(fig, {f"{g:g}": frame(i) for i, g in enumerate(steps)}, [0, 1, 2], "γ = ")
    return fig


def encoder_line(
    x: Any, codes: Mapping[str, Mapping[str, Gaussian]], data: Any, *, setting: str = "seed", radius: float = 0.0
) -> Figure:
    """The Gaussian codes of inputs along a line: mean and two standard deviations, one slider position per setting.

    Args:
        x: the inputs, shape (K,), increasing.
        codes: slider position -> model -> codes of all inputs, means and scales of shape (K, 1).
        data: the inputs that were trained on.
        setting: what the slider moves.
        radius: half the width of the intervals around the data that an attack may reach; 0 draws none.

    Raises:
        ValueError: no position, or codes that do not fit ``x``.
    """
    import plotly.graph_objects as go

    at, known = array(x, "x"), array(data, "data")
    look = styles(next(iter(need("codes", codes).values())))
    ends: list[float] = []

    def parts(models: Mapping[str, Gaussian]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        result = {}
        for name, p in models.items():
            mean, scale = (array(t, name).reshape(-1) for t in p)
            if mean.shape != at.shape:
                raise ValueError(f"codes of {name!r} have {mean.size} rows, expected {at.size}, one for each x")
            ends.extend([float(mean.min() - 2 * np.median(scale)), float(mean.max() + 2 * np.median(scale))])
            result[name] = mean, scale
        return result

    frames: dict[str, list] = {}
    steepest: dict[str, list[float]] = {}
    for label, models in codes.items():
        traces = []
        for name, (mean, scale) in parts(models).items():
            slope = np.abs(np.diff(mean) / np.diff(at)).max()
            steepest.setdefault(name, []).append(slope)
            band = np.concatenate([mean + 2 * scale, (mean - 2 * scale)[::-1]])
            traces += [
                go.Scatter(x=rounded(np.concatenate([at, at[::-1]])), y=rounded(band)),
                go.Scatter(x=rounded(at), y=rounded(mean)),
                go.Scatter(x=rounded(known), y=rounded(np.interp(known, at, mean))),
            ]
        frames[str(label)] = traces
    told = "; ".join(f"{name}: steepest slope {min(v):.3g} to {max(v):.3g}" for name, v in steepest.items())
    fig = new_figure(
        f"Means and spreads of a one-dimensional code against a one-dimensional input, for {len(frames)} positions of "
        f"the slider ({setting}). {told}.",
        height=480,
    )
    for trace, i in zip(next(iter(frames.values())), range(10_000), strict=False):
        name = list(look)[i // 3]
        color, dash, symbol = look[name]
        kinds: list[dict] = [
            {"fill": "toself", "fillcolor": wash(color), "line": {"width": 0}, "mode": "lines", "showlegend": False},
            {"mode": "lines", "line": {"color": color, "dash": dash, "width": 2.5}, "name": name},
            {"mode": "markers", "marker": {"color": color, "symbol": symbol, "size": 10}, "showlegend": False},
        ]
        trace = go.Scatter(trace, hoverinfo="skip", legendgroup=name, **kinds[i % 3])
        fig.add_trace(trace)
    for point in known if radius else ():
        fig.add_vrect(x0=point - radius, x1=point + radius, fillcolor=wash(PURPLE, 0.15), line_width=0)
    fig.update_xaxes(title_text="input x", range=rounded([at[0], at[-1]]))
    pad = 0.05 * (max(ends) - min(ends))
    fig.update_yaxes(title_text="code z", range=rounded([min(ends) - pad, max(ends) + pad]))
    add_slider(fig, frames, range(len(fig.data)), f"{setting} ")
    return fig
