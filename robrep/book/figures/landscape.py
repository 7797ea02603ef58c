"""An attack's objective around the clean image: along a line, and on a plane with the attacks' paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robrep.book.figures.base import (
    DASHES,
    GREEN,
    GREY,
    PURPLE,
    SKY,
    SYMBOLS,
    VERMILION,
    WRONG,
    add_slider,
    array,
    need,
    new_figure,
    rounded,
    styles,
)
from robrep.checks import positive_int

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def objective_line(
    offsets: Any, values: Mapping[str, Any], slopes: Mapping[str, Any], *, radius: float | None = None
) -> Figure:
    """An attack's objective along a line through the clean image, and its slope: both exactly zero at offset 0.

    Args:
        offsets: positions t on the line x + t u, shape (T,); 0 is the clean image.
        values: name -> objective at each position, shape (T,).
        slopes: name -> derivative along u at each position, shape (T,).
        radius: the ball's radius along u: vertical lines at -radius and radius.

    Raises:
        ValueError: lengths that differ.
    """
    import plotly.graph_objects as go

    t = array(offsets, "offsets")
    middle = int(np.abs(t).argmin())
    told = []
    fig = new_figure("", height=520, rows=2, shared_xaxes=True, vertical_spacing=0.06)
    for row, curves in ((1, need("values", values)), (2, need("slopes", slopes))):
        look = styles(curves)
        for name, numbers in curves.items():
            y = array(numbers, name)
            if y.shape != t.shape:
                raise ValueError(f"{name!r} has shape {y.shape}, expected {t.shape} as offsets")
            kind = "objective" if row == 1 else "slope"
            told.append(f"{kind} of {name}: " + ", ".join(f"{y[i]:.3g} at {t[i]:.3g}" for i in (0, middle, -1)))
            color, dash, _ = look[name]
            line = {"color": color, "dash": dash}
            trace = go.Scatter(x=rounded(t), y=rounded(y), name=name, mode="lines", line=line, showlegend=row == 1)
            fig.add_trace(trace, row=row, col=1)
        zero = array(next(iter(curves.values())))[middle]
        dot = {"color": WRONG, "symbol": "circle", "size": 11}
        mark = go.Scatter(x=rounded([t[middle]]), y=rounded([zero]), mode="markers", marker=dot)
        mark.update(name="clean image", showlegend=row == 1)
        fig.add_trace(mark, row=row, col=1)
    fig.update_layout(
        meta={"alt": f"An objective along a line through the clean image, and its slope. {'; '.join(told)}."}
    )
    for r in () if radius is None else (-radius, radius):
        fig.add_vline(r, line={"color": GREY, "dash": "dash", "width": 1.5})
    fig.update_xaxes(title_text="offset from the clean image (pixel range 0 to 1)", row=2)
    fig.update_yaxes(title_text="objective", row=1)
    fig.update_yaxes(title_text="slope", row=2)
    return fig


class Plane(NamedTuple):
    """A piece of a plane through an image: ``images[i * len(a) + j]`` lies at the coordinates (a[j], b[i])."""

    origin: Tensor
    axes: Tensor
    a: Tensor
    b: Tensor
    images: Tensor

    def coordinates(self, images: Tensor) -> Tensor:
        """Coordinates of images (..., C, H, W), shape (..., 2); what lies beside the plane is projected onto it."""
        return (images - self.origin).flatten(-3).to(self.axes) @ self.axes.T


def plane(x: Tensor, first: Tensor, second: Tensor, *, size: int = 31, margin: float = 0.25) -> Plane:
    """The plane through an image and two others (two attacked versions of it, say), with a grid of images on it.

    Args:
        x: the origin, C x H x W.
        first: gives the first axis, C x H x W.
        second: with ``first``, gives the plane; made orthogonal to the first axis.
        size: grid points along each axis.
        margin: how far the grid goes beyond the three images, as a share of their extent.

    Returns:
        Coordinates are l2 distances from ``x``. Images are clipped to [0, 1].

    Raises:
        ValueError: three images that span no plane.
    """
    u, v = ((image - x).flatten().double() for image in (first, second))
    length = v.norm()
    v = v - (v @ u) / (u @ u).clamp(min=1e-30) * u
    if not (u.norm() > 0 and v.norm() > 1e-5 * length):  # what float32 leaves of parallel vectors is no direction
        raise ValueError("first and second lie on one line through x, expected three images that span a plane")
    axes = torch.stack([u / u.norm(), v / v.norm()])
    corners = torch.stack([(image - x).flatten().double() for image in (x, first, second)]) @ axes.T
    low, high = corners.amin(0), corners.amax(0)
    pad = margin * (high - low).max()
    steps = torch.linspace(0, 1, positive_int("size", size), dtype=torch.float64)
    a, b = (low[k] - pad + (high[k] - low[k] + 2 * pad) * steps for k in (0, 1))
    offsets = (torch.stack(torch.meshgrid(b, a, indexing="ij")[::-1], -1).reshape(-1, 2) @ axes).to(x.dtype)
    return Plane(x, axes.to(x.dtype), a, b, (x + offsets.reshape(-1, *x.shape)).clamp(0, 1))


def objective_surface(
    a: Any,
    b: Any,
    values: Any,
    paths: Mapping[str, Any],
    *,
    reached: Mapping[str, Sequence[float]] | None = None,
    name: str = "KL (nats)",
) -> Figure:
    """An attack's objective on a plane through the clean image, with the attacks' paths and a slider over their steps.

    Args:
        a: first coordinate of the grid, shape (A,).
        b: second coordinate, shape (B,).
        values: objective, shape (B, A) or (B * A,), as from ``plane``'s images.
        paths: name -> coordinates after 0, 1, ... steps, shape (steps + 1, 2); the clean image is at (0, 0).
        reached: name -> the true objective after 0, 1, ... steps (paths may leave the plane), named in the legend.
        name: name and unit of the objective.

    Raises:
        ValueError: shapes that do not fit, or paths of different length.
    """
    import plotly.graph_objects as go

    a, b = array(a, "a"), array(b, "b")
    grid = array(values)
    if grid.size != a.size * b.size:
        raise ValueError(f"values has shape {grid.shape}, expected {b.size} x {a.size}, one for each point of the grid")
    grid = grid.reshape(b.size, a.size)
    tracks = {k: array(path, k) for k, path in need("paths", paths).items()}
    if any(t.shape != (len(next(iter(tracks.values()))), 2) for t in tracks.values()):
        raise ValueError(f"paths have shapes {[t.shape for t in tracks.values()]}, expected steps + 1 x 2 for each")
    reached = reached or {}
    steps = len(next(iter(tracks.values()))) - 1
    told = ", ".join(f"{k} from {r[0]:.3g} to {r[-1]:.3g}" for k, r in reached.items())
    low, high = np.nanmin(grid), np.nanmax(grid)
    alt = (
        f"{name} on a plane through the clean image, from {low:.3g} where it is darkest to {high:.3g} where it is "
        f"brightest, with the paths of {len(tracks)} attacks over {steps} steps{': ' if told else ''}{told}."
    )
    fig = new_figure(alt, height=560)
    bar = {
        "orientation": "h",
        "y": -0.12,
        "yanchor": "top",
        "thickness": 10,
        "len": 1,
        "title": {"text": name, "side": "top"},
    }
    fig.add_trace(
        go.Contour(x=rounded(a), y=rounded(b), z=rounded(grid, 3), colorscale="Cividis", ncontours=16, colorbar=bar,
                   line={"width": 0.5}, hovertemplate=name + " %{z:.3g}<extra></extra>")
    )  # fmt: skip
    colors = (SKY, VERMILION, GREEN, PURPLE)
    here = {"symbol": "cross", "size": 12, "color": "#FFFFFF", "line": {"color": "#000000", "width": 1.5}}
    fig.add_trace(go.Scatter(x=[0], y=[0], mode="markers", name="clean image", hoverinfo="name", marker=here))

    def so_far(step: int) -> list:
        traces = []
        for i, (k, t) in enumerate(tracks.items()):
            color, end = colors[i % len(colors)], f": {float(reached[k][step]):.3g}" if k in reached else ""
            marker = {"symbol": SYMBOLS[i + 1], "size": [5] * step + [12], "color": color, "opacity": 1}
            line = {"color": color, "dash": DASHES[i % len(DASHES)], "width": 3}
            xy = {"x": rounded(t[: step + 1, 0]), "y": rounded(t[: step + 1, 1])}
            hover = k + ", step %{pointNumber}<extra></extra>"
            traces.append(
                go.Scatter(**xy, name=k + end, mode="lines+markers", line=line, marker=marker, hovertemplate=hover)
            )
        return traces

    fig.add_traces(so_far(steps))
    fig.update_xaxes(title_text="first direction (l2 distance)", range=rounded([a[0], a[-1]]), constrain="domain")
    fig.update_yaxes(title_text="second direction (l2 distance)", range=rounded([b[0], b[-1]]))
    add_slider(fig, {str(s): so_far(s) for s in range(steps + 1)}, range(2, 2 + len(tracks)), "steps = ", steps)
    fig.update_traces(colorbar={"y": 1.02, "yanchor": "bottom"}, selector={"type": "contour"})
    fig.update_layout(legend_y=1.2)
    return fig
