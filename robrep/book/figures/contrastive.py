"""Contrastive learning: what NT-Xent compares, where two attacks move a code, and a run watched from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import GREY, add_slider, array, need, new_figure, percent, rounded, styles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def contrast_matrix(cosines: Any, views: Sequence[str], images: Sequence[str]) -> Figure:
    """All cosines of the n views of N images, view by view; a slider shows which are positives or compared with.

    Args:
        cosines: shape (n N, n N), rows and columns view by view.
        views: names of the n views.
        images: names of the N images.

    Raises:
        ValueError: the shape does not fit the names.
    """
    import plotly.graph_objects as go

    c, n, size = array(cosines, "cosines"), len(views), len(images)
    if c.shape != (n * size, n * size):
        raise ValueError(f"cosines has shape {c.shape}, expected {(n * size, n * size)} for {n} views of {size} images")
    image = np.tile(np.arange(size), n)
    own, itself = image[:, None] == image[None], np.eye(n * size, dtype=bool)
    shown = {
        "all": np.ones_like(own),
        "positives": own & ~itself,
        "denominator": ~itself,
        "negatives only": ~own,
    }
    positive, negative = c[own & ~itself].mean(), c[~own].mean()
    fig = new_figure(
        f"Cosines of {n} views of {size} images as a matrix of {n} by {n} blocks. The slider shows all of them, the "
        "positives (other views of the row's image, the diagonals of the blocks off the middle), what the denominator "
        "holds (everything but the row itself), or, as printed, the negatives alone. The mean cosine of positives is "
        f"{positive:.2f}, of negatives {negative:.2f}.",
        height=470,
    )
    names = [f"{v}, {i}" for v in views for i in images]

    def heat(mask: np.ndarray) -> Any:
        z = [[v if keep else None for v, keep in zip(*r, strict=True)] for r in zip(rounded(c, 3), mask, strict=True)]
        return go.Heatmap(z=z)

    fig.add_trace(
        go.Heatmap(
            text=[[f"{row}<br>{column}" for column in names] for row in names],  # names may repeat, so no categories
            zmin=-1,
            zmax=1,
            colorscale="RdBu",
            reversescale=True,
            hovertemplate="%{text}<br>cosine %{z:.2f}<extra></extra>",
            colorbar={"title": {"text": "cosine"}, "thickness": 12},
        )
    )
    add_slider(fig, {name: [heat(mask)] for name, mask in shown.items()}, [0], "entries: ")
    middle = [size * v + (size - 1) / 2 for v in range(n)]
    for axis, turned in ((fig.update_xaxes, {}), (fig.update_yaxes, {"autorange": "reversed"})):
        axis(tickvals=middle, ticktext=list(views), showgrid=False, **turned)
    for edge in range(1, n):
        for line in ({"x0": -0.5, "x1": n * size - 0.5, "y0": size * edge - 0.5, "y1": size * edge - 0.5},
                     {"y0": -0.5, "y1": n * size - 0.5, "x0": size * edge - 0.5, "x1": size * edge - 0.5}):  # fmt: skip
            fig.add_shape(type="line", line={"color": GREY, "width": 1}, **line)
    return fig


def code_moves(
    clean: Any,
    moved: Mapping[str, Any],
    names: Sequence[str],
    *,
    spread: Any = None,
    told: Mapping[str, str] | None = None,
) -> Figure:
    """Where attacks move codes, in a plane: a line from each clean code to each attack's; a slider takes the attacks.

    Args:
        clean: shape (N, 2).
        moved: attack -> where its codes end, (N, 2).
        names: names of the N images.
        spread: standard deviation of the codes' own noise along both axes, (N, 2), drawn as an ellipse; None for none.
        told: attack -> a few words on what it reached, for the legend.

    Raises:
        ValueError: shapes that differ.
    """
    import plotly.graph_objects as go

    a, ends = array(clean, "clean"), {k: array(v, f"moved[{k!r}]") for k, v in need("moved", moved).items()}
    for k, v in ends.items():
        if v.shape != a.shape or a.ndim != 2 or a.shape[1] != 2:
            raise ValueError(f"moved[{k!r}] has shape {v.shape} and clean {a.shape}, expected the same (N, 2)")
    length = {k: float(np.linalg.norm(v - a, axis=1).mean()) for k, v in ends.items()}
    fig = new_figure(
        f"Codes of {len(a)} images in a plane, and where each attack moves them, as lines. Mean length: "
        + ", ".join(f"{k} {length[k]:.2g}" for k in ends)
        + ".",
        height=440,
    )
    look, circle = styles(ends), np.linspace(0, 2 * np.pi, 25)
    gap = np.full((len(a), 1), np.nan)
    if spread is not None:
        s = array(spread, "spread")
        x, y = (np.hstack([a[:, k : k + 1] + s[:, k : k + 1] * turn(circle)[None], gap]).ravel()
                for k, turn in ((0, np.cos), (1, np.sin)))  # fmt: skip
        line = {"color": GREY, "width": 1}
        fig.add_scatter(
            x=rounded(x), y=rounded(y), mode="lines", line=line, name="one standard deviation", hoverinfo="skip"
        )
    fig.add_scatter(
        x=rounded(a[:, 0]), y=rounded(a[:, 1]), mode="markers", name="clean", text=list(names),
        marker={"color": GREY, "size": 7, "symbol": "circle-open"}, hovertemplate="%{text}<extra>clean</extra>",
    )  # fmt: skip
    frames = {}
    for k, v in ends.items():
        x, y = (np.hstack([a[:, i : i + 1], v[:, i : i + 1], gap]).ravel() for i in (0, 1))
        color, _, symbol = look[k]
        frames[k] = [
            go.Scatter(
                x=rounded(x),
                y=rounded(y),
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"color": color, "size": [0, 8, 0] * len(a), "symbol": symbol},
                name=f"{k}: {told[k]}" if told else k,
                hoverinfo="skip",
            )
        ]
    fig.add_trace(go.Scatter(x=[None], y=[None], mode="lines+markers"))
    add_slider(fig, frames, [len(fig.data) - 1], "attack: ")
    everything = np.concatenate([a, *ends.values()])
    low, high = everything.min(0), everything.max(0)
    pad = 0.08 * (high - low) + 1e-9
    fig.update_xaxes(title_text="first direction", range=rounded([low[0] - pad[0], high[0] + pad[0]]))
    fig.update_yaxes(title_text="second direction", range=rounded([low[1] - pad[1], high[1] + pad[1]]))
    return fig


def watched_training(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy, clean and attacked, and the rank of the features, measured from time to time during training.

    Args:
        curves: method -> lists ``epoch``, ``clean`` and ``robust`` (accuracies in [0, 1]) and ``rank``.
    """
    import plotly.graph_objects as go

    look = styles(need("curves", curves))
    last = [f"{k}: clean {percent(c['clean'][-1])}, attacked {percent(c['robust'][-1])}, rank {c['rank'][-1]:.1f}"
            for k, c in curves.items()]  # fmt: skip
    fig = new_figure(
        "Accuracy on clean images (solid) and under attack (dashed) above, effective rank of the features below, "
        f"during training. At the end: {'; '.join(last)}.",
        height=560, rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4],
    )  # fmt: skip
    for name, c in curves.items():
        color, _, symbol = look[name]
        for what, dash in (("clean", "solid"), ("robust", "dash")):
            fig.add_trace(
                go.Scatter(
                    x=list(c["epoch"]),
                    y=rounded(100 * array(c[what])),
                    name=name,
                    legendgroup=name,
                    showlegend=what == "clean",
                    mode="lines+markers",
                    line={"color": color, "dash": dash, "width": 2},
                    marker={"symbol": symbol, "size": 7},
                    hovertemplate=f"{name}, {what}<br>epoch %{{x}}<br>%{{y:.1f}} %<extra></extra>",
                ),
                row=1,
                col=1,
            )
        fig.add_trace(
            go.Scatter(
                x=list(c["epoch"]),
                y=rounded(c["rank"]),
                name=name,
                legendgroup=name,
                showlegend=False,
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"symbol": symbol, "size": 7},
                hovertemplate=f"{name}<br>epoch %{{x}}<br>rank %{{y:.1f}}<extra></extra>",
            ),
            row=2,
            col=1,
        )
    fig.update_yaxes(title_text="accuracy (%)", range=[-3, 103], row=1, col=1)
    fig.update_yaxes(title_text="effective rank", rangemode="tozero", row=2, col=1)
    fig.update_xaxes(title_text="epoch", row=2, col=1)
    return fig
