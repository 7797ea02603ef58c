"""Representations: samples of z in the plane, and what measures of distance say about two Gaussians."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robrep.book.figures.base import (
    BLUE,
    DASHES,
    GREY,
    PALETTE,
    SKY,
    SYMBOLS,
    VERMILION,
    add_slider,
    array,
    new_figure,
    rounded,
    wash,
)
from robrep.book.files import let_numba_cache
from robrep.checks import one_of, positive_int
from robrep.gaussians import Gaussian, kl

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def umap_embed(z: Any, seed: int = 0, n_neighbors: int = 15) -> np.ndarray:
    """UMAP coordinates in the plane. The first call in a kernel compiles for 5 to 10 s.

    Args:
        z: points, shape (..., D): for 20 samples of each of 10 images (10, 20, D). All are embedded together; what is
            to be compared in one picture (clean and adversarial samples, say) must be embedded in one call.
        seed: random state; one thread is used, so that a seed gives the same picture again on the same machine.
        n_neighbors: neighbours of each point, cut to the number of points less one.

    Returns:
        float32, shape (..., 2). Distances between far groups mean little: UMAP keeps neighbourhoods.

    Raises:
        ValueError: fewer than 4 points, or values that are not finite.
    """
    a = array(z, "z")
    flat = a.reshape(-1, a.shape[-1])
    if len(flat) < 4:
        raise ValueError(f"z has {len(flat)} points, expected at least 4 for an embedding")
    if not np.isfinite(flat).all():
        raise ValueError("z has values that are not finite, expected finite coordinates")
    from sklearn.neighbors import NearestNeighbors

    let_numba_cache("umap")
    from umap import UMAP

    near = min(positive_int("n_neighbors", n_neighbors), len(flat) - 1)
    init = "spectral" if len(flat) > 10 else "random"  # too few points for the eigenvectors of the start
    flat = flat.astype(np.float32)
    # UMAP's own search for neighbours is slow to compile, and the points are few
    distances, neighbours = NearestNeighbors(n_neighbors=near).fit(flat).kneighbors(flat)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not an NNDescent object.*")  # that is for embedding further points later
        umap = UMAP(
            n_neighbors=near,
            random_state=seed,
            n_jobs=1,
            init=init,
            precomputed_knn=(neighbours, distances),
            force_approximation_algorithm=True,  # else they are searched again, as there are so few
        )
        points = umap.fit_transform(flat)
    return np.asarray(points, dtype=np.float32).reshape(*a.shape[:-1], 2)


def latent_clouds(
    clean: Any,
    adversarial: Any,
    labels: Sequence[Any],
    names: Sequence[str] = ("clean", "adversarial"),
    *,
    connect: bool = True,
    setting: str = "radius ε",
    start: int = -1,
    axis: str = "UMAP",
) -> Figure:
    """Samples of z for several images, clean beside adversarial (Nguyen et al. 2022, Figure 2).

    The label of each image stands beside its cloud, in both panels, and both axes have the same unit.

    Args:
        clean: coordinates in the plane, shape (images, samples, 2), from ``umap_embed`` or of a 2-D latent space.
        adversarial: the same for the attacked images, or a mapping slider position -> coordinates (a larger and larger
            radius, say). All must come from one embedding.
        labels: one short name for each image, for example its class; colour and marker go with the image.
        names: titles of the two panels.
        connect: draw a line from the mean of each image's clean samples to that of its attacked ones.
        setting: what the slider moves.
        start: slider position shown first.
        axis: name of the axes.

    Raises:
        ValueError: shapes that do not fit, or not one label for each image.
    """
    import plotly.graph_objects as go

    moving = isinstance(adversarial, Mapping)
    panels = {key: array(a, "adversarial") for key, a in (adversarial if moving else {names[1]: adversarial}).items()}
    still = array(clean, "clean")
    if still.ndim != 3 or still.shape[-1] != 2 or any(a.shape != still.shape for a in panels.values()):
        raise ValueError(f"clean and adversarial have shapes {still.shape} and {[a.shape for a in panels.values()]}, "
                         "expected images x draws x 2 for all")  # fmt: skip
    if len(labels) != len(still):
        raise ValueError(f"labels has {len(labels)} names, expected {len(still)}, one for each image")
    centre, colors = still.mean(1), [color for color in PALETTE if color != SKY]  # which is too close to the blue
    spread = float(np.sqrt(((still - centre[:, None]) ** 2).sum(-1).mean()))
    moved = {key: np.linalg.norm(a.mean(1) - centre, axis=-1) for key, a in panels.items()}

    def shape(i: int) -> str:  # filled in the palette's first round, open in the second
        return SYMBOLS[i % len(SYMBOLS)] + ("-open" if i // len(colors) % 2 else "")

    def cloud(points: np.ndarray, i: int, x: str) -> Any:
        return go.Scatter(
            x=rounded(points[i, :, 0]),
            y=rounded(points[i, :, 1]),
            name=str(labels[i]),
            showlegend=False,
            mode="markers",
            marker={"color": colors[i % len(colors)], "symbol": shape(i), "size": 7, "opacity": 0.75},
            hovertemplate=f"{labels[i]}<extra></extra>",
            xaxis=x,
            yaxis="y" if x == "x" else "y2",
        )

    def named(a: np.ndarray, x: str) -> list:
        """A line to each image's samples from where the clean ones were, and its label."""
        on = {"hoverinfo": "skip", "showlegend": False, "xaxis": x, "yaxis": "y" if x == "x" else "y2"}
        way = np.stack([centre, a.mean(1), np.full_like(centre, np.nan)], 1).reshape(-1, 2)
        xy = (rounded(way[:, 0]), rounded(way[:, 1])) if connect else ([], [])
        words = [f"<b>{label}</b>" for label in labels]
        line, place = {"color": GREY, "width": 1.5}, {"x": rounded(a.mean(1)[:, 0]), "y": rounded(a[..., 1].max(1))}
        return [
            go.Scatter(x=xy[0], y=xy[1], mode="lines", line=line, **on),
            go.Scatter(**place, text=words, textposition="top center", textfont={"size": 14}, mode="text",
                       cliponaxis=False, **on),
        ]  # fmt: skip

    ends = dict.fromkeys([next(iter(panels)), list(panels)[-1]])
    told = "; ".join(f"{k}: {moved[k].mean():.2g} on average (at most {moved[k].max():.2g})" for k in ends)
    alt = (
        f"{still.shape[1]} samples of z for each of {len(still)} images ({', '.join(map(str, labels))}) in the plane, "
        f"{names[0]} on the left, {names[1]} on the right, one colour and marker for each image. Samples of a clean "
        f"image spread by {spread:.2g} about their mean; under attack the means move by - {told}."
    )
    fig = new_figure(alt, height=540 if moving else 460, cols=2, shared_xaxes="all", shared_yaxes="all",
                  subplot_titles=list(names), horizontal_spacing=0.03)  # fmt: skip
    keys = list(panels)
    first = panels[keys[start % len(keys)]]
    n = len(still)
    fig.add_traces([cloud(still, i, "x") for i in range(n)])
    fig.add_traces([*(cloud(first, i, "x2") for i in range(n)), *named(first, "x2"), *named(still, "x")])
    everything = np.concatenate([still.reshape(-1, 2), *(a.reshape(-1, 2) for a in panels.values())])
    low, high = np.nanmin(everything, 0), np.nanmax(everything, 0)
    pad = 0.1 * np.maximum(high - low, 1e-6)  # room for the labels
    fig.update_xaxes(title_text=f"{axis} 1", range=rounded([(low - pad)[0], (high + pad)[0]]), showticklabels=False)
    fig.update_yaxes(range=rounded([(low - pad)[1], (high + pad)[1]]), showticklabels=False)
    fig.update_yaxes(title_text=f"{axis} 2", scaleanchor="x", col=1)
    if moving:
        frames = {str(k): [*(cloud(a, i, "x2") for i in range(n)), *named(a, "x2")] for k, a in panels.items()}
        add_slider(fig, frames, range(n, 2 * n + 2), f"{setting} = ", start % len(keys))
    return fig


def kl_picture(
    moving: str = "mean",
    values: Sequence[float] | None = None,
    *,
    shift: float = 1.5,
    measures: Mapping[str, Callable[[Gaussian, Gaussian], Any]] | None = None,
) -> Figure:
    """Two normal densities p and p', a slider that moves them, and below it what each measure of their distance says.

    Args:
        moving: "mean": p = N(0, 1) and p' = N(v, 1), KL grows as v^2/2. "scale": N(0, v) and N(v shift, v), the whole
            latent space enlarged by v: KL stays, the distance of the means grows. "sigma": N(0, v) and N(shift, v),
            the means left and both standard deviations enlarged: KL falls although nothing came closer.
        values: positions v of the slider, at least 2 and increasing; a range fitting ``moving`` if left out.
        shift: distance of the means for "scale" (at v = 1) and "sigma".
        measures: name -> function of two Gaussians (one row for each position, D = 1), giving one number for each row;
            KL and the distance of the means if left out.

    Raises:
        ValueError: an unknown ``moving``, or values that are not increasing (for "scale" and "sigma", positive).
    """
    import plotly.graph_objects as go

    one_of("moving", moving, ("mean", "scale", "sigma"))
    v = array(values if values is not None else np.linspace(0, 3, 16) if moving == "mean" else np.linspace(0.4, 3, 14))
    if v.ndim != 1 or len(v) < 2 or (np.diff(v) <= 0).any() or (moving != "mean" and v[0] <= 0):
        raise ValueError(
            f"values is {v.tolist()}, expected at least two increasing numbers, positive unless for 'mean'"
        )
    ones = np.ones_like(v)
    means, scales, what = {
        "mean": (v, ones, "distance of the means v"),
        "scale": (v * shift, v, "the whole latent space enlarged by v"),
        "sigma": (shift * ones, v, "both standard deviations v"),
    }[moving]
    p, q = (Gaussian(torch.from_numpy(m)[:, None], torch.from_numpy(scales)[:, None]) for m in (0 * v, means))
    measures = measures or {"KL[p ‖ p′] (nats)": kl, "distance |μ − μ′|": lambda a, b: (a.mean - b.mean).abs().sum(-1)}
    curves = {name: array(f(p, q), name) for name, f in measures.items()}
    told = "; ".join(
        f"{name} from {c[0]:.4g} at {v[0]:.3g} to {c[-1]:.4g} at {v[-1]:.3g}" for name, c in curves.items()
    )
    fig = new_figure(
        "Two normal densities p and p′ above; below, what measures of their distance say. "
        f"The slider moves {what}: {told}.",
        height=600,
        rows=2,
        vertical_spacing=0.18,
    )
    wide = 3 * scales.max()
    z = np.linspace(-wide, means.max() + wide, 121)
    looks = (("p", BLUE, "solid"), ("p′", VERMILION, "dash"))

    def densities(i: int) -> list:
        ys = (np.exp(-(((z - m) / scales[i]) ** 2) / 2) / (scales[i] * math.sqrt(2 * math.pi)) for m in (0.0, means[i]))
        return [go.Scatter(y=rounded(np.where(y < 1e-4, 0, y), 3)) for y in ys]

    def readings(i: int) -> list:  # the value stands in the legend, where curves that cross cannot hide it
        return [go.Scatter(x=[v[i]], y=rounded([c[i]]), name=f"{name}: {c[i]:.4g}") for name, c in curves.items()]

    for (name, color, dash), density in zip(looks, densities(0), strict=True):
        style: dict = {
            "line": {"color": color, "dash": dash},
            "fill": "tozeroy",
            "fillcolor": wash(color),
            "mode": "lines",
        }
        fig.add_trace(go.Scatter(x=rounded(z), y=density.y, name=name, hoverinfo="skip", **style), row=1, col=1)
    for j, (c, reading) in enumerate(zip(curves.values(), readings(0), strict=True)):
        line = {"color": PALETTE[2 + j], "dash": DASHES[j]}
        curve = go.Scatter(x=rounded(v), y=rounded(c), mode="lines", line=line, showlegend=False)
        marker = {"color": PALETTE[2 + j], "symbol": SYMBOLS[j], "size": 11}
        reading.update(mode="lines+markers", marker=marker, line=line, hoverinfo="name")
        fig.add_traces([curve, reading], rows=[2, 2], cols=[1, 1])
    top = max(float(np.nanmax(c)) for c in curves.values()) or 1.0
    fig.update_xaxes(title_text="z", range=rounded([z[0], z[-1]]), row=1)
    fig.update_yaxes(title_text="density", range=rounded([0, 0.42 / scales.min()]), row=1)
    span = v[-1] - v[0]
    fig.update_xaxes(title_text=what, range=rounded([v[0] - 0.04 * span, v[-1] + 0.08 * span]), row=2)
    fig.update_yaxes(title_text="value", range=rounded([-0.06 * top, 1.2 * top]), row=2)
    k = len(curves)
    frames = {f"{v[i]:.3g}": [*densities(i), *readings(i)] for i in range(len(v))}
    start = int(np.abs(v - 1).argmin())
    add_slider(fig, frames, [0, 1, *range(3, 3 + 2 * k, 2)], f"{what} = ", start)
    return fig
