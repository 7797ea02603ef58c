"""One digit under attack, and where its code goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robrep.book.figures.base import BLUE, GREY, VERMILION, WRONG, add_slider, array, need, new_figure, rounded
from robrep.book.figures.images import _strip, perturbation
from robrep.checks import check_images
from robrep.gaussians import Gaussian

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def one_attack(
    x: Tensor, adversaries: Mapping[str, Tensor], said: Mapping[str, tuple[str, bool]], *, clean: str, start: int = -1
) -> Figure:
    """One grey image, its change and the sum of both, side by side; a slider over the radius.

    Args:
        x: the image in [0, 1], (1, 1, H, W).
        adversaries: radius -> attacked image of the same shape.
        said: radius -> the answer to it, and whether it is right.
        clean: the answer to ``x``.
        start: slider position shown first, counted from the first or, negative, from the last.

    Raises:
        ValueError: images of other shapes, or a radius without an answer.
    """
    import plotly.graph_objects as go

    check_images(x, "x")
    for key, a in need("adversaries", adversaries).items():
        if check_images(a, "adversaries").shape != x.shape or x.shape[:2] != (1, 1):
            shapes = f"{tuple(x.shape)} and adversaries[{key!r}] {tuple(a.shape)}"
            raise ValueError(f"x has shape {shapes}, expected (1, 1, H, W) for both")
    if set(said) != set(adversaries):
        raise ValueError(f"said names {list(said)}, expected an answer for each of {list(adversaries)}")
    largest = max(float((a - x).abs().max()) for a in adversaries.values()) or 1.0
    keys, side = list(adversaries), x.shape[-1]

    def pixels(image: Tensor, axis: int) -> Any:
        return go.Image(source=_strip(image), hoverinfo="skip", xaxis=f"x{axis}", yaxis=f"y{axis}")

    def words(text: str, right: bool, axis: int) -> Any:
        look = {"size": 14} if right else {"size": 14, "color": WRONG}
        return go.Scatter(
            x=[(side - 1) / 2],
            y=[side - 0.4],
            text=[text if right else f"<b>✗ {text}</b>"],
            mode="text",
            textposition="bottom center",
            textfont=look,
            hoverinfo="skip",
            showlegend=False,
            cliponaxis=False,
            xaxis=f"x{axis}",
            yaxis=f"y{axis}",
        )

    start %= len(keys)
    answers = "; ".join(f"{key}: {text}{'' if right else ' (wrong)'}" for key, (text, right) in said.items())
    alt = (
        "An image, the change that an attack makes, enlarged, and the attacked image, with the classifier's answers. "
        f"Clean: {clean}. By radius: {answers}."
    )
    fig = new_figure(
        alt,
        height=360,
        cols=3,
        horizontal_spacing=0.04,
        subplot_titles=["image", "+ change", "= attacked"],
    )
    fig.add_traces([pixels(x, 1), words(clean, True, 1)])
    frames = {
        key: [pixels(perturbation(x, a, 1 / largest), 2), pixels(a, 3), words(*said[key], 3)]
        for key, a in adversaries.items()
    }
    fig.add_traces(list(frames.values())[start])
    add_slider(fig, frames, [2, 3, 4], "radius ε = ", start)
    fig.update_xaxes(visible=False, range=[-0.5, side - 0.5], constrain="domain", fixedrange=True)
    fig.update_yaxes(
        visible=False, range=[side + 1.5, -0.5], constrain="domain", constraintoward="top", fixedrange=True
    )
    for axis in (1, 2, 3):
        fig.update_yaxes(scaleanchor=f"x{axis}" if axis > 1 else "x", col=axis)
    return fig


class Walk(NamedTuple):
    """What one encoder does under an attack.

    Attributes:
        codes: Gaussian codes of many images, means and scales (N, D).
        labels: their classes, (N,).
        path: the codes of one image's steps, the clean one first, (steps + 1, D).
    """

    codes: Gaussian
    labels: Tensor
    path: Gaussian


def map_of(codes: Gaussian, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The plane in which the classes' mean codes differ most: its origin (D,) and two orthonormal directions (D, 2)."""
    means = torch.stack([codes.mean[labels == c].mean(0) for c in labels.unique()])
    origin = means.mean(0)
    _, _, v = torch.linalg.svd(means - origin, full_matrices=False)
    return origin, v[:2].T


def _ellipse(mean: np.ndarray, covariance: np.ndarray) -> tuple[list, list]:
    """The points at one standard deviation from the mean."""
    turn = np.linspace(0, 2 * np.pi, 41)
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(2))
    points = mean[:, None] + root @ np.stack([np.cos(turn), np.sin(turn)])
    return rounded(points[0]), rounded(points[1])


def walks(encoders: Mapping[str, Walk], names: Sequence[str], *, start: int = -1) -> Figure:
    """The path of one code under an attack, over the codes of many images, for each encoder; a slider takes the steps.

    Args:
        encoders: title of the panel -> its :class:`Walk`; as many steps in each.
        names: names of the classes; each image of the map is drawn as its class's name.
        start: slider position shown first, counted from the first or, negative, from the last.

    Raises:
        ValueError: paths of different length.
    """
    import plotly.graph_objects as go

    steps = {len(walk.path.mean) for walk in need("encoders", encoders).values()}
    if len(steps) > 1:
        raise ValueError(f"encoders have paths of {sorted(steps)} codes, expected the same number for all")
    count = steps.pop()
    frames: dict[str, list] = {str(step): [] for step in range(count)}
    still, told, ends = [], [], []
    for axis, (name, walk) in enumerate(encoders.items(), 1):
        origin, plane = map_of(walk.codes, walk.labels)
        every, path = (array((mean - origin) @ plane) for mean in (walk.codes.mean, walk.path.mean))
        spread = [array(plane.T @ (s.square()[:, None] * plane)) for s in walk.path.scale]
        where, legend = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}, axis == 1
        still.append(
            go.Scatter(
                x=rounded(every[:, 0]),
                y=rounded(every[:, 1]),
                text=[names[y] for y in walk.labels.tolist()],
                mode="text",
                textfont={"size": 10, "color": GREY},
                hoverinfo="skip",
                showlegend=False,
                **where,
            )
        )
        for step in range(count):
            for what, k, color, dash in (("clean code", 0, BLUE, "dot"), ("attacked code", step, VERMILION, "solid")):
                x, y = _ellipse(path[k], spread[k])
                line = {"color": color, "width": 2, "dash": dash}
                group = {"name": what, "legendgroup": what, "showlegend": legend}
                frames[str(step)].append(
                    go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", **group, **where)
                )
            marker = {"size": [10, *[5] * step], "color": [BLUE, *[VERMILION] * step]}
            frames[str(step)].append(
                go.Scatter(
                    x=rounded(path[: step + 1, 0]),
                    y=rounded(path[: step + 1, 1]),
                    mode="lines+markers",
                    line={"color": VERMILION, "width": 2},
                    marker=marker,
                    name="its path",
                    showlegend=legend,
                    hoverinfo="skip",
                    **where,
                )
            )
        ends.append((every, path))
        told.append(f"{name}: {np.linalg.norm(path[-1] - path[0]):.2g}, classes spread by {every.std(0).mean():.2g}")
    alt = (
        f"Codes of digits in a plane for {len(encoders)} encoders, and the path of one code in {count - 1} steps of an "
        f"attack. Distance gone: {'; '.join(told)}."
    )
    fig = new_figure(alt, height=480, cols=len(encoders), horizontal_spacing=0.05)
    fig.add_traces([*still, *frames["0"]])
    add_slider(fig, frames, range(len(still), len(fig.data)), "steps: ", start % count)
    for axis, (name, (every, path)) in enumerate(zip(encoders, ends, strict=True), 1):
        points = np.concatenate([every, path])
        middle, half = (points.max(0) + points.min(0)) / 2, 0.54 * float(np.ptp(points, axis=0).max())
        low, high = rounded(middle - half), rounded(middle + half)
        fig.update_xaxes(range=[low[0], high[0]], title_text=name, col=axis)
        fig.update_yaxes(range=[low[1], high[1]], scaleanchor="x" if axis == 1 else f"x{axis}", col=axis)
    fig.update_xaxes(showticklabels=False, zeroline=False, constrain="domain")
    fig.update_yaxes(showticklabels=False, zeroline=False, constrain="domain")
    return fig
