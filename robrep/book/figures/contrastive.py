"""Contrastive learning: what NT-Xent compares, where two attacks move a code, and a run watched from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import GREY, array, need, new_figure, percent, rounded, styles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def contrast_matrix(cosines: Any, views: Sequence[str], images: Sequence[str]) -> Figure:
    """All cosines of n views of N images, image by image: positives in boxes, a cross for the anchor itself.

    Args:
        cosines: shape (n N, n N), rows and columns view by view, as NT-Xent computes them.
        views: names of the n views.
        images: names of the N images.

    Raises:
        ValueError: the shape does not fit the names.
    """
    import plotly.graph_objects as go

    c, n, size = array(cosines, "cosines"), len(views), len(images)
    if c.shape != (n * size, n * size):
        raise ValueError(f"cosines has shape {c.shape}, expected {(n * size, n * size)} for {n} views of {size} images")
    order = np.arange(n * size).reshape(n, size).T.ravel()  # the views of an image side by side
    c = c[np.ix_(order, order)]
    image = np.repeat(np.arange(size), n)
    own, itself = image[:, None] == image[None], np.eye(n * size, dtype=bool)
    positive, negative = c[own & ~itself].mean(), c[~own].mean()
    fig = new_figure(
        f"Cosines of {n} views of {size} images as a matrix, image by image. Boxes on the diagonal hold the positives, "
        "other views of the row's image; a cross marks a vector with itself; everything else is a negative. The mean "
        f"cosine of positives is {positive:.2f}, of negatives {negative:.2f}.",
        height=500,
    )
    names = [f"{i}, {v}" for i in images for v in views]
    fig.add_trace(
        go.Heatmap(
            z=rounded(np.where(itself, np.nan, c), 3),
            text=[[f"{row}<br>{column}" for column in names] for row in names],  # names may repeat, so no categories
            zmin=-1,
            zmax=1,
            colorscale="RdBu",
            reversescale=True,
            hovertemplate="%{text}<br>cosine %{z:.2f}<extra></extra>",
            colorbar={"title": {"text": "cosine", "side": "top"}, "thickness": 12, "len": 0.6}
            | {"orientation": "h", "y": -0.08, "yanchor": "top"},  # below: on a narrow page it has no room at the side
        )
    )
    where, cross = list(range(n * size)), {"symbol": "x-thin", "size": 8, "line": {"color": GREY, "width": 1.5}}
    fig.add_scatter(x=where, y=where, mode="markers", marker=cross, hoverinfo="skip", showlegend=False)
    middle = [n * i + (n - 1) / 2 for i in range(size)]
    fig.update_xaxes(
        tickvals=middle,
        ticktext=list(images),
        showgrid=False,
        zeroline=False,
        constrain="domain",
        range=[-0.5, n * size - 0.5],
    )
    fig.update_yaxes(
        tickvals=where, ticktext=list(views) * size, tickfont={"size": 10}, showgrid=False,
        zeroline=False, range=[n * size - 0.5, -0.5], scaleanchor="x", constrain="domain", constraintoward="top",
    )  # fmt: skip
    for i in range(size):
        low, high = n * i - 0.5, n * (i + 1) - 0.5
        fig.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": GREY, "width": 3})
    return fig


def code_moves(
    clean: Any,
    moved: Mapping[str, Any],
    names: Sequence[str],
    *,
    spread: Any = None,
    told: Mapping[str, str] | None = None,
) -> Figure:
    """Where attacks move codes, in a plane of equal units: a panel for each attack, a line from each clean code.

    Args:
        clean: shape (N, 2).
        moved: attack -> where its codes end, (N, 2).
        names: names of the N images.
        spread: standard deviation of the codes' own noise along both axes, (N, 2), drawn as an ellipse; None for none.
        told: attack -> a few words on what it reached, for the panel's title; a comma becomes a line break.

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
        f"Codes of {len(a)} images in a plane, and where each attack moves them, as lines, in a panel for each attack. "
        "Mean length: " + ", ".join(f"{k} {length[k]:.2g}" for k in ends) + ".",
        height=440,
        cols=len(ends),
        subplot_titles=[f"{k}<br>{told[k]}".replace(", ", "<br>") if told else k for k in ends],
        horizontal_spacing=0.1 / len(ends),
    )
    look, circle = styles(ends), np.linspace(0, 2 * np.pi, 25)
    gap = np.full((len(a), 1), np.nan)
    for col, (k, v) in enumerate(ends.items(), 1):
        where, first = {"row": 1, "col": col}, col == 1
        if spread is not None:
            s = array(spread, "spread")
            x, y = (np.hstack([a[:, i : i + 1] + s[:, i : i + 1] * turn(circle)[None], gap]).ravel()
                    for i, turn in ((0, np.cos), (1, np.sin)))  # fmt: skip
            line, name = {"color": GREY, "width": 1}, "one standard deviation"
            fig.add_scatter(x=rounded(x), y=rounded(y), mode="lines", line=line, name=name, legendgroup=name,
                            showlegend=first, hoverinfo="skip", **where)  # fmt: skip
        fig.add_scatter(
            x=rounded(a[:, 0]), y=rounded(a[:, 1]), mode="markers", name="clean", text=list(names), legendgroup="clean",
            marker={"color": GREY, "size": 7, "symbol": "circle-open"}, hovertemplate="%{text}<extra>clean</extra>",
            showlegend=first, **where,
        )  # fmt: skip
        x, y = (np.hstack([a[:, i : i + 1], v[:, i : i + 1], gap]).ravel() for i in (0, 1))
        color, _, symbol = look[k]
        fig.add_trace(
            go.Scatter(
                x=rounded(x),
                y=rounded(y),
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"color": color, "size": [0, 8, 0] * len(a), "symbol": symbol},
                name=f"attacked, {k}",
                hoverinfo="skip",
            ),
            **where,
        )
    everything = np.concatenate([a, *ends.values()])
    low, high = everything.min(0), everything.max(0)
    pad = 0.08 * (high - low) + (1e-9 if spread is None else 1.0)
    fig.update_xaxes(title_text="first direction", range=rounded([low[0] - pad[0], high[0] + pad[0]]))
    fig.update_yaxes(range=rounded([low[1] - pad[1], high[1] + pad[1]]))
    fig.update_yaxes(title_text="second direction", col=1)
    for col in range(1, len(ends) + 1):
        across = fig.get_subplot(1, col).xaxis.plotly_name.replace("axis", "")
        fig.update_yaxes(scaleanchor=across, constrain="domain", constraintoward="top", row=1, col=col)
    fig.update_xaxes(constrain="domain")
    fig.update_annotations(font_size=13)
    fig.update_layout(margin_t=75)
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
