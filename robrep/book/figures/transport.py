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
from robrep.book.smooth_encoders import optimal_coupling
from robrep.gaussians import Gaussian, entropic_wasserstein, wasserstein2

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def _line(p: Gaussian, name: str) -> tuple[float, float]:
    """Mean and scale of a one-dimensional Gaussian."""
    if tuple(p.mean.shape) != (1, 1) or tuple(p.scale.shape) != (1, 1):
        raise ValueError(f"{name} has shape {tuple(p.mean.shape)}, expected (1, 1), one Gaussian in one dimension")
    return float(p.mean), float(p.scale)


def _increasing(gammas: Sequence[float], least: float) -> list[float]:
    g = array(gammas, "gammas")
    if g.ndim != 1 or len(g) < 2 or (np.diff(g) <= 0).any() or g[0] < least:
        raise ValueError(f"gammas is {list(gammas)}, expected two or more increasing numbers, at least {least:g}")
    return [float(v) for v in g]


def _double(p: Gaussian) -> Gaussian:
    return Gaussian(p.mean.detach().double().cpu(), p.scale.detach().double().cpu())


def coupling_picture(p: Gaussian, q: Gaussian, gammas: Sequence[float] = GAMMAS, start: int = 0) -> Figure:
    """The optimal joint density of z_a and z_b, with a slider over gamma, and the squared distance that it reaches.

    Above, the joint Gaussian as ellipses of one and two standard deviations, with the line of the Monge map; both axes
    have the same unit. Below, the expected squared distance of z_a and z_b, which falls towards W2^2.

    Args:
        p, q: two one-dimensional Gaussians, each of shape (1, 1).
        gammas: slider positions, increasing, at least 0.
        start: index of the position shown first; negative indices count from the end.

    Raises:
        ValueError: ``p`` or ``q`` has another shape, or ``gammas`` does not increase.
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
        f"over gamma squeezes onto the line of the Monge map: the correlation grows from {correlations[0]:.3g} at "
        f"gamma {steps[0]:g} to {correlations[-1]:.3g} at {steps[-1]:g}. Below, the expected squared distance falls "
        f"from {costs[0]:.3g} to {costs[-1]:.3g}; its limit, W2 squared, is {limit:.3g}.",
        height=760, rows=2, row_heights=[0.66, 0.34], vertical_spacing=0.11,
    )  # fmt: skip
    angle = np.linspace(0, 2 * math.pi, 73)

    def ellipses(gamma: float) -> Any:
        rho = float(optimal_coupling(p, q, gamma)) / (s * s_)
        x, y = np.cos(angle), rho * np.cos(angle) + math.sqrt(max(0.0, 1 - rho * rho)) * np.sin(angle)
        xs, ys = ([*(m + r * s * x for r in (1, 2))], [*(m_ + r * s_ * y for r in (1, 2))])
        return go.Scatter(x=_joined(xs), y=_joined(ys))

    def reading(i: int) -> Any:
        name = f"E|z_a − z_b|² = {costs[i]:.3g}, correlation {correlations[i]:.2g}"
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
    reference_line(fig, y=limit, text=f"limit: W₂² = {limit:.3g}", row=2, col=1, annotation_position="bottom left")
    half = 2.8 * max(s, s_)
    equal = {"scaleanchor": "y", "scaleratio": 1, "constrain": "domain"}
    fig.update_xaxes(title_text="z_a", range=rounded([m - half, m + half]), **equal, row=1, col=1)
    fig.update_yaxes(title_text="z_b", range=rounded([m_ - half, m_ + half]), constrain="domain", row=1, col=1)
    labels = [f"{g:g}" for g in steps]
    fig.update_xaxes(title_text="γ", tickvals=place, ticktext=labels, range=[-0.4, len(steps) - 0.6], row=2, col=1)
    top = max(costs) * 1.1
    fig.update_yaxes(title_text="E|z_a − z_b|²", range=rounded([0, top]), row=2, col=1)
    frames = {label: [ellipses(g), reading(i)] for i, (label, g) in enumerate(zip(labels, steps, strict=True))}
    add_slider(fig, frames, [1, 3], "γ = ", start % len(steps))
    return fig


def _joined(parts: Sequence[np.ndarray]) -> list:
    """Several lines as one, with a gap between neighbours."""
    out: list = []
    for part in parts:
        out += [*rounded(part), None]
    return out[:-1]


def entropic_objective(
    p: Gaussian, q: Gaussian, gammas: Sequence[float] = GAMMAS[1:], points: int = 20_001, start: int = 0
) -> Figure:
    """What the coupling minimises against its covariance psi, with two minima: the closed form's and a brute force's.

    The slider moves gamma. The curve is gamma/2 E|z_a - z_b|^2 - H, computed from the definition, for every covariance
    psi that the two scales allow; it is drawn at about 160 of the values tried.

    Args:
        p, q: two one-dimensional Gaussians, each of shape (1, 1).
        gammas: slider positions, increasing, above 0.
        points: number of covariances that the brute force tries, at least 2.
        start: index of the position shown first; negative indices count from the end.

    Raises:
        ValueError: ``p`` or ``q`` has another shape, ``gammas`` does not increase, or ``points`` is below 2.
    """
    import plotly.graph_objects as go

    (m, s), (m_, s_) = _line(p, "p"), _line(q, "q")
    steps = _increasing(gammas, 1e-12)
    if points < 2:
        raise ValueError(f"points is {points}, expected at least 2")
    p, q = _double(p), _double(q)
    psi = s * s_ * np.tanh(np.linspace(-1.5, 4, points))
    drawn = slice(None, None, max(1, points // 160))

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
        f"{exact[0][0]:.3g} to {exact[-1][0]:.3g}; the best of {points:,} values "
        f"tried is never more than {gap:.2g} above it.",
        height=480,
    )

    def frame(i: int) -> list:
        low = curves[i].min()
        shown = np.where(curves[i] - low < 6, curves[i] - low, np.nan)[drawn]
        told = f"closed form: ψ = {exact[i][0]:.3f}, WD = {exact[i][1]:.4f}"
        found = f"brute force: ψ = {tried[i][0]:.3f}, WD = {tried[i][1]:.4f}"
        return [
            go.Scatter(x=rounded(psi[drawn]), y=rounded(shown)),
            go.Scatter(x=rounded([exact[i][0]]), y=rounded([exact[i][1] - low]), name=told),
            go.Scatter(x=rounded([tried[i][0]]), y=[0.0], name=found),
        ]

    looks: list[dict] = [
        {"mode": "lines", "line": {"color": BLUE}, "name": "cost", "hoverinfo": "skip"},
        {"mode": "markers", "marker": {"color": VERMILION, "symbol": "x", "size": 11}},
        {"mode": "markers", "marker": {"color": GREEN, "symbol": "circle-open", "size": 17, "line": {"width": 2}}},
    ]
    for trace, look in zip(frame(0), looks, strict=True):
        trace.update(**look)
        fig.add_trace(trace)
    end = s * s_
    fig.add_vline(x=end, line={"color": GREY, "dash": "dash", "width": 1.5})
    title = "covariance ψ (dashed: the Monge map)"
    fig.update_xaxes(title_text=title, range=rounded([psi[0], 1.03 * end]))
    fig.update_yaxes(title_text="cost above the least (nats)", range=[-0.3, 6])
    add_slider(fig, {f"{g:g}": frame(i) for i, g in enumerate(steps)}, [0, 1, 2], "γ = ", start % len(steps))
    return fig


def encoder_line(
    x: Any,
    codes: Mapping[str, Mapping[str, Gaussian]],
    data: Any,
    *,
    setting: str = "seed",
    radius: float = 0.0,
    start: int = 0,
) -> Figure:
    """Codes of inputs along a line, one panel for each model: how far an attacker moves the mean near the data.

    A panel shows the mean and two standard deviations. Around each data point a strip marks the inputs within
    ``radius``, and a box in it spans the means found there.

    Args:
        x: the inputs, shape (K,), increasing.
        codes: slider position -> model -> codes of all inputs, means and scales of shape (K, 1).
        data: the inputs that were trained on.
        setting: what the slider moves.
        radius: half the width of the strips; 0 draws neither strips nor boxes.
        start: index of the slider position shown first; negative indices count from the end.

    Raises:
        ValueError: ``codes`` is empty, or its means do not match the length of ``x``.
    """
    import plotly.graph_objects as go

    at, known = array(x, "x"), array(data, "data")
    look = styles(next(iter(need("codes", codes).values())))
    ends: list[float] = []
    frames: dict[str, list] = {}
    reached: dict[str, list[float]] = {name: [] for name in look}
    for label, models in codes.items():
        traces = []
        for name, p in models.items():
            mean, scale = (array(t, name).reshape(-1) for t in p)
            if mean.shape != at.shape:
                raise ValueError(f"codes of {name!r} have {mean.size} rows, expected {at.size}, one for each x")
            ends += [float(mean.min() - 2 * np.median(scale)), float(mean.max() + 2 * np.median(scale))]
            boxes = _boxes(at, mean, known, radius)
            reached[name].append(max((max(y) - min(y) for _, y in boxes), default=0.0))
            band = np.concatenate([mean + 2 * scale, (mean - 2 * scale)[::-1]])
            traces += [
                go.Scatter(x=rounded(np.concatenate([at, at[::-1]])), y=rounded(band)),
                go.Scatter(x=_joined([b for b, _ in boxes]), y=_joined([b for _, b in boxes])),
                go.Scatter(x=rounded(at), y=rounded(mean)),
                go.Scatter(x=rounded(known), y=rounded(np.interp(known, at, mean))),
            ]
        frames[str(label)] = traces
    told = "; ".join(f"{name} by up to {max(v):.3g}" for name, v in reached.items())
    fig = new_figure(
        f"Means and spreads of a one-dimensional code against a one-dimensional input, a panel for each model, for "
        f"{len(frames)} positions of the slider ({setting}). Within {radius:g} of a data point, the mean varies: "
        f"{told}.",
        height=200 + 200 * len(look), rows=len(look), shared_xaxes=True, vertical_spacing=0.08,
        subplot_titles=list(look),
    )  # fmt: skip
    for row, (color, dash, symbol) in enumerate(look.values(), 1):
        kinds: list[dict] = [
            {"fill": "toself", "fillcolor": wash(color), "line": {"width": 0}, "mode": "lines"},
            {"fill": "toself", "fillcolor": wash(PURPLE, 0.55), "line": {"color": PURPLE, "width": 2}, "mode": "lines"},
            {"mode": "lines", "line": {"color": color, "dash": dash, "width": 2.5}},
            {"mode": "markers", "marker": {"color": color, "symbol": symbol, "size": 10}},
        ]
        first = next(iter(frames.values()))[4 * (row - 1) : 4 * row]
        for trace, kind in zip(first, kinds, strict=True):
            fig.add_trace(go.Scatter(trace, hoverinfo="skip", showlegend=False, **kind), row=row, col=1)
        for point in known if radius else ():
            strip = {"x0": point - radius, "x1": point + radius, "fillcolor": wash(PURPLE, 0.15), "line_width": 0}
            fig.add_vrect(**strip, row=row, col=1)
        fig.update_yaxes(title_text="code z", row=row, col=1)
    fig.update_xaxes(range=rounded([at[0], at[-1]]))
    fig.update_xaxes(title_text="input x", row=len(look), col=1)
    pad = 0.05 * (max(ends) - min(ends))
    fig.update_yaxes(range=rounded([min(ends) - pad, max(ends) + pad]))
    add_slider(fig, frames, range(len(fig.data)), f"{setting} ", start % len(frames))
    return fig


def _boxes(at: np.ndarray, mean: np.ndarray, known: np.ndarray, radius: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each data point, a closed rectangle: its strip of inputs, and the means found in the strip."""
    result = []
    for point in known if radius else ():
        low, high = point - radius, point + radius
        inside = mean[(at >= low - 1e-6) & (at <= high + 1e-6)]
        if inside.size:
            bottom, top = inside.min(), inside.max()
            result.append((np.array([low, high, high, low, low]), np.array([bottom, bottom, top, top, bottom])))
    return result
