"""Small images: grids of them, and attacked ones with a slider."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robrep.book.figures.base import GREY, WRONG, add_slider, need, new_figure
from robrep.checks import check_images, check_labels, positive_int

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def _png(pixels: np.ndarray) -> str:
    """H x W x 4 uint8 -> data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _gap(images: Tensor) -> int:
    return max(1, round(images.shape[3] / 10))


def _pixel(images: Tensor) -> float:
    """Size of a pixel where an image and the gap beside it are one unit wide."""
    return 1 / (images.shape[3] + _gap(images))


def _strip(images: Tensor) -> str:
    """Images side by side as one PNG, opaque but for the gaps between them."""
    n, _, h, w = images.shape
    gap = _gap(images)
    rgb = (images.detach().cpu().float() * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    strip = np.zeros((h, n * w + (n - 1) * gap, 4), dtype=np.uint8)
    for i in range(n):
        strip[:, i * (w + gap) : i * (w + gap) + w] = np.concatenate(
            [rgb[i].numpy(), np.full((h, w, 1), 255, np.uint8)], axis=2
        )
    return _png(strip)


def perturbation(x: Tensor, x_adv: Tensor, factor: float = 10.0) -> Tensor:
    """The change x' - x as an image: grey where nothing changed, white at +1/factor, black at -1/factor.

    Args:
        x: images in [0, 1], N x C x H x W.
        x_adv: images of the same shape.
        factor: enlargement; with 10, a change of 0.1 (in units of the pixel range) is full white.
    """
    return (0.5 + factor * (x_adv - x) / 2).clamp(0, 1)


def captions(probabilities: Tensor, y: Tensor, classes: Sequence[str] | None = None) -> list[tuple[str, bool]]:
    """What a model says about each image: (predicted class and its probability, whether that is right).

    Args:
        probabilities: shape (N, C), rows summing to 1 (of log-probabilities pass their ``exp()``).
        y: true class indices, shape (N,).
        classes: names of the C classes; the indices if left out.

    Raises:
        ValueError: rows that do not sum to 1, or labels out of range.
    """
    p = probabilities.detach().cpu().double()
    if p.ndim != 2 or not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-3):
        raise ValueError(f"probabilities has shape {tuple(p.shape)} or rows not summing to 1, expected N x C that do")
    check_labels(y.cpu(), n=len(p), classes=p.shape[1])
    best, index = p.max(1)
    names = [str(c) for c in classes] if classes is not None else [str(c) for c in range(p.shape[1])]
    return [
        (f"{names[k]}, {100 * v:.0f} %", k == t)
        for v, k, t in zip(best.tolist(), index.tolist(), y.tolist(), strict=True)
    ]


Caption = str | tuple[str, bool]


def _said(row: Sequence[Caption] | None) -> list[tuple[str, bool]]:
    return [(c, True) if isinstance(c, str) else (c[0], bool(c[1])) for c in row or ()]


class _Row(NamedTuple):
    """One strip of images: its name, its images, its captions, and where its top edge and its captions lie."""

    name: str
    images: Tensor
    said: list[tuple[str, bool]]
    top: float
    below: float


def _layout(
    rows: Mapping[str, Tensor], said: Mapping[str, Sequence[Caption]], columns: int | None
) -> tuple[list[_Row], int, float]:
    """Cut rows into blocks of ``columns`` images; positions in units of an image's width. Also width and height."""
    sizes = {name: tuple(check_images(images, name).shape) for name, images in need("rows", rows).items()}
    if len({s[0] for s in sizes.values()}) > 1:
        raise ValueError(f"rows have {[s[0] for s in sizes.values()]} images, expected the same number in each")
    for name, (n, channels, _, _) in sizes.items():
        if channels not in (1, 3):
            raise ValueError(f"row {name!r} has {channels} channels, expected 1 (grey) or 3 (red, green, blue)")
        if name in said and len(said[name]) != n:
            raise ValueError(f"captions of row {name!r} are {len(said[name])}, expected {n}, one for each image")
    if unknown := sorted(set(said) - set(rows)):
        raise ValueError(f"captions name the row {unknown[0]!r}, expected one of {', '.join(map(repr, rows))}")
    n = next(iter(sizes.values()))[0]
    columns = min(n, positive_int("columns", columns if columns is not None else 8))
    placed, top = [], 0.0
    for first in range(0, n, columns):
        for name, images in rows.items():
            part = slice(first, first + columns)
            below = top + 0.42 + images.shape[2] * _pixel(images)
            placed.append(_Row(name, images[part], _said(said.get(name))[part], top + 0.42, below))
            top = below + (0.75 if name in said else 0.12)
    return placed, columns, top


def _images(row: _Row) -> Any:
    import plotly.graph_objects as go

    d = _pixel(row.images)
    return go.Image(source=_strip(row.images), x0=d / 2, dx=d, y0=row.top + d / 2, dy=d, hoverinfo="skip")


def _words(row: _Row, right: bool) -> Any:
    import plotly.graph_objects as go

    chosen = [(i + 0.46, text) for i, (text, good) in enumerate(row.said) if good == right]
    mark = "{}" if right else "<b>✗ {}</b>"
    return go.Scatter(
        x=[x for x, _ in chosen],
        y=[row.below + 0.04] * len(chosen),
        text=[mark.format(text.replace(", ", "<br>")) for _, text in chosen],
        mode="text",
        textposition="bottom center",
        textfont={"size": 11} if right else {"size": 11, "color": WRONG},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )


def _outline(row: _Row) -> dict:
    """Thin grey frames: without them white images vanish on a white page and black ones on a black page."""
    d = _pixel(row.images)
    w = d * row.images.shape[3]
    path = " ".join(
        f"M{i:g},{row.top:.4g} H{i + w:.4g} V{row.top + d * row.images.shape[2]:.4g} H{i:g} Z"
        for i in range(len(row.images))
    )
    return {"type": "path", "path": path, "line": {"color": GREY, "width": 1}, "layer": "above"}


def _draw(alt: str, placed: list[_Row], columns: int, tall: float) -> Figure:
    fig = new_figure(alt, height=int(60 + min(78, 600 / columns) * tall))
    for row in placed:
        fig.add_traces([_images(row), _words(row, True), _words(row, False)])
        fig.add_shape(_outline(row))
        fig.add_annotation(
            x=0, y=row.top, text=row.name, showarrow=False, xanchor="left", yanchor="bottom", font={"size": 12}
        )
    fig.update_layout(margin_t=10)
    fig.update_xaxes(visible=False, range=[0, columns], constrain="domain", fixedrange=True)
    fig.update_yaxes(
        visible=False, range=[tall, 0], scaleanchor="x", constrain="domain", constraintoward="top", fixedrange=True
    )
    return fig


def _score(name: str, said: Sequence[Caption]) -> str:
    pairs = _said(said)
    right = sum(good for _, good in pairs)
    listed = "; ".join(text if good else f"{text} (wrong)" for text, good in pairs[:10])
    return f"{name}: {right} of {len(pairs)} predictions right ({listed}{' ...' if len(pairs) > 10 else ''})."


def image_grid(
    rows: Mapping[str, Tensor], captions: Mapping[str, Sequence[Caption]] | None = None, columns: int | None = None
) -> Figure:
    """Rows of small images, for example clean, attacked, and the change enlarged.

    Args:
        rows: name of the row -> images in [0, 1], N x C x H x W, C = 1 or 3; the same N in each row.
        captions: name of a row -> one caption for each image: a text, or (text, right) as ``captions`` gives; wrong
            ones get a cross and a colour. A comma becomes a line break.
        columns: images side by side, 8 if left out; more images go on below.

    Raises:
        ValueError: images outside [0, 1], rows of different length, captions that fit no row.
    """
    said = captions or {}
    placed, columns, tall = _layout(rows, said, columns)
    n = len(next(iter(rows.values())))
    alt = f"{n} images in rows: {'; '.join(rows)}. " + " ".join(
        _score(name, said[name]) for name in rows if name in said
    )
    return _draw(alt, placed, columns, tall)


def attack_slider(
    x: Tensor,
    adversaries: Mapping[Any, Tensor],
    captions: Mapping[Any, Sequence[Caption]] | None = None,
    *,
    clean_captions: Sequence[Caption] | None = None,
    setting: str = "radius ε",
    columns: int | None = None,
    factor: float | None = 10.0,
    start: int = -1,
) -> Figure:
    """The clean images, the attacked ones and the change between them, with a slider over the radius or the steps.

    Args:
        x: clean images in [0, 1], N x C x H x W.
        adversaries: slider position (a radius, a number of steps) -> attacked images of the same shape.
        captions: slider position -> one caption for each attacked image, see ``image_grid``.
        clean_captions: one caption for each clean image.
        setting: what the slider moves, with its unit.
        columns: images side by side, 8 if left out.
        factor: enlargement of the change, see ``perturbation``; None leaves that row out.
        start: slider position shown first, counted from the first or, negative, from the last.

    Raises:
        ValueError: as ``image_grid``, or a position without captions where others have some.
    """
    captions = captions or {}
    if captions and set(captions) != set(adversaries):
        raise ValueError(f"captions are given for {list(captions)}, expected one list for each of {list(adversaries)}")
    change = f"change × {factor:g}" if factor is not None else ""

    def grid(key: Any) -> tuple[list[_Row], int, float]:
        rows, said = {"clean": x, "attacked": adversaries[key]}, {}
        if factor is not None:
            rows[change] = perturbation(x, adversaries[key], factor)
        if clean_captions is not None:
            said["clean"] = clean_captions
        if captions:
            said["attacked"] = captions[key]
        return _layout(rows, said, columns)

    keys = list(need("adversaries", adversaries))
    scores = [_score(f"{setting} = {key}", captions[key]) for key in ({keys[0]: 0, keys[-1]: 0} if captions else ())]
    alt = (
        f"{len(x)} images, clean above, attacked below; the slider moves {setting} from {keys[0]} to {keys[-1]}. "
        + (_score("Clean", clean_captions) + " " if clean_captions is not None else "")
        + " ".join(scores)
    )
    placed, columns_, tall = grid(keys[0])
    fig = _draw(alt, placed, columns_, tall)
    moving = [i for i, row in enumerate(placed) if row.name != "clean"]
    frames, traces = {}, [3 * i + j for i in moving for j in range(3)]
    for key in keys:
        rows = grid(key)[0]
        frames[str(key)] = [
            t for i in moving for t in (_images(rows[i]), _words(rows[i], True), _words(rows[i], False))
        ]
    add_slider(fig, frames, traces, f"{setting} = ", start % len(keys))
    fig.update_layout(height=fig.layout.height + 90)
    fig.layout.sliders[0].pad.t = 10
    return fig
