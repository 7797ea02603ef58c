"""BYORL: its two networks, a search by example under attack, accuracies as dots, and measures in panels."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from robrep.book.figures.base import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    add_slider,
    array,
    error_bars,
    intervals,
    log_ticks,
    need,
    new_figure,
    percent,
    rounded,
    styles,
    wash,
)
from robrep.book.figures.images import Caption, _draw, _images, _layout, _Row, _score, _words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Drawing(str):
    """A drawing as SVG text: shown as it is on a page and in a notebook, in the colours of the theme around it.

    Args:
        svg: the ``<svg>`` element, with an ``aria-label``.
        alt: what the drawing shows, in words; a terminal prints it.
    """

    alt: str

    def __new__(cls, svg: str, alt: str) -> Drawing:
        made = super().__new__(cls, svg)
        made.alt = alt
        return made

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return self.alt


def _symbol(letter: str, index: str = "") -> str:
    """An italic letter with an index, as the content of a text element."""
    lowered = f'<tspan dy="4" font-size="11">{index}</tspan>' if index else ""
    return f'<tspan font-style="italic">{letter}</tspan>{lowered}'


def two_networks() -> Drawing:
    """BYOL's online and target network, one beside the other, and the place of BYORL's adversary."""
    left, right, parts = 120, 350, []

    def words(x: int, y: int, text: str, **style: Any) -> None:
        look = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle"{look}>{text}</text>')

    def box(x: int, y: int, text: str, width: int = 150, color: str = "currentColor", dash: str = "") -> None:
        edge = f'stroke="{color}" stroke-width="1.5"' + (f' stroke-dasharray="{dash}"' if dash else "")
        parts.append(
            f'<rect x="{x - width // 2}" y="{y - 19}" width="{width}" height="38" rx="6" fill="{color}" '
            f'fill-opacity="0.1" {edge}/>'
        )
        words(x, y + 5, text)

    def arrow(*points: tuple[int, int], color: str = "currentColor", dash: str = "") -> None:
        path = " L".join(f"{x} {y}" for x, y in points)
        more = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5"{more}/>')
        (x, y), (x_0, y_0) = points[-1], points[-2]
        u, v = int(np.sign(x - x_0)), int(np.sign(y - y_0)) if x == x_0 else 0
        back = [(x - 9 * u + 5 * v, y - 9 * v + 5 * u), (x - 9 * u - 5 * v, y - 9 * v - 5 * u)]
        parts.append(f'<path d="M{x} {y} L{back[0][0]} {back[0][1]} L{back[1][0]} {back[1][1]} Z" fill="{color}"/>')

    middle = (left + right) // 2
    box(middle, 24, f"image {_symbol('x')}", 110)
    for x, view, name in ((left, _symbol("v"), _symbol("t")), (right, _symbol("v") + "′", _symbol("t") + "′")):
        arrow((middle - 55 if x < middle else middle + 55, 24), (x, 24), (x, 71))
        words(x + (-34 if x < middle else 34), 52, name)
        box(x, 90, f"view {view}", 110)
    arrow((left, 109), (left, 137))
    box(left, 156, f"adversary: {_symbol('v')} + {_symbol('δ')}", 170, VERMILION, "6 4")
    words(left, 193, "BYORL only", font_size=12, fill=VERMILION)
    for y, name, letter in ((240, "encoder", "f"), (300, "projector", "g")):
        box(left, y, f"{name} {_symbol(letter, 'θ')}", color=BLUE)
        box(right, y, f"{name} {_symbol(letter, 'ξ')}", color=GREY)
        arrow((left + 75, y), (right - 75, y), dash="3 4")
        words(middle, y - 8, "EMA", font_size=12)
    box(left, 360, f"predictor {_symbol('q', 'θ')}", color=BLUE)
    for y in (199, 259, 319):
        arrow((left, y), (left, y + 22))
    arrow((right, 109), (right, 221))
    arrow((right, 259), (right, 281))
    arrow((right, 319), (right, 440), (middle + 100, 440))
    words(right + 24, 385, f"{_symbol('z')}′")
    words(right - 62, 385, "no gradient", font_size=12)
    arrow((left, 379), (left, 440), (middle - 100, 440))
    words(left + 44, 414, "prediction", font_size=12)
    box(middle, 440, f"2 − 2 cos(prediction, {_symbol('z')}′)", 200)
    words(left, 500, f"<tspan font-weight='bold'>online</tspan>, weights {_symbol('θ')}")
    words(left, 520, "learned by gradient", font_size=12)
    words(right, 500, f"<tspan font-weight='bold'>target</tspan>, weights {_symbol('ξ')}")
    words(right, 520, "moving average of the online weights", font_size=12)
    alt = (
        "Two networks side by side. An image x gives the views v and v′. The online network, weights θ, takes v "
        "through encoder, projector and predictor to a prediction; in BYORL an adversary first moves v inside its "
        "ball. The target network, weights ξ, takes v′ through its encoder and projector to z′ and gets no gradient. "
        "The loss is 2 − 2 cos of prediction and z′. The target's encoder and projector are exponential moving "
        "averages (EMA) of the online ones."
    )
    head = (
        f'<svg viewBox="0 0 470 530" role="img" aria-label="{html.escape(alt, quote=True)}" font-size="15" '
        'fill="currentColor" style="width:100%;max-width:470px;height:auto;display:block;margin:0 auto">'
    )
    return Drawing(head + "".join(parts) + "</svg>", alt)


class Search(NamedTuple):
    """What a search by example found.

    Attributes:
        queries: images in [0, 1], N x C x H x W.
        found: the image with the nearest code to each, of the same shape.
        captions: one caption for each found image, see ``image_grid``.
        right: share of right answers over all queries, in 0 ... 1; more may have been searched than are shown.
    """

    queries: Tensor
    found: Tensor
    captions: Sequence[Caption]
    right: float


def search_slider(searches: Mapping[str, Mapping[Any, Search]], *, total: int, start: int = -1) -> Figure:
    """Queries and what each encoder finds for them, with a slider over the radius of the attack on the queries.

    Args:
        searches: encoder -> radius -> :class:`Search`; the same radii and numbers of images for each.
        total: how many queries the shares of right answers are over.
        start: slider position shown first, counted from the first or, negative, from the last.

    Raises:
        ValueError: encoders with different radii, or rows of different length.
    """
    import plotly.graph_objects as go

    radii = list(next(iter(need("searches", searches).values())))
    for name, found in searches.items():
        if list(found) != radii:
            raise ValueError(f"searches of {name!r} have the radii {list(found)}, expected {radii} as for the first")

    def grid(radius: Any) -> tuple[list[_Row], int, float]:
        rows: dict[str, Tensor] = {}
        said: dict[str, Sequence[Caption]] = {}
        for name, found in searches.items():
            one = found[radius]
            answer = f"{name}: what the search finds ({100 * one.right:.0f} % right of {total})"
            rows |= {f"{name}: query": one.queries, answer: one.found}
            said[answer] = one.captions
        placed, columns, tall = _layout(rows, said, len(next(iter(searches.values()))[radius].queries))
        gap = 0.25  # more room for titles: on a phone an image is hardly higher than a line of text
        moved = [row._replace(top=row.top + gap * i, below=row.below + gap * i) for i, row in enumerate(placed, 1)]
        return moved, columns, tall + gap * len(placed)

    def title(row: _Row) -> Any:
        place = {"x": [0], "y": [row.top], "text": [row.name], "mode": "text", "textposition": "top right"}
        return go.Scatter(**place, textfont={"size": 12}, hoverinfo="skip", showlegend=False, cliponaxis=False)

    frames = {
        f"{radius:g}": [
            t for row in grid(radius)[0] for t in (_images(row), _words(row, True), _words(row, False), title(row))
        ]
        for radius in radii
    }
    chosen = radii[start]
    told = [
        f"{name}, {percent(found[radius].right)} of {total} searches right at {radius:g}"
        for name, found in searches.items()
        for radius in dict.fromkeys((radii[0], chosen))
    ]
    shown = " ".join(_score(f"{name} at {chosen:g}", found[chosen].captions) for name, found in searches.items())
    alt = f"Queries and the training image with the nearest code, by radius of the attack: {'; '.join(told)}. {shown}"
    placed, columns, tall = grid(chosen)
    fig = _draw(alt, placed, columns, tall)
    fig.data, fig.layout.annotations = (), ()  # the titles move with the slider: traces, not annotations
    fig.add_traces(frames[f"{chosen:g}"])
    add_slider(fig, frames, range(len(fig.data)), "radius of the attack ε = ", start % len(radii))
    fig.update_layout(height=fig.layout.height + 90)
    fig.layout.sliders[0].pad.t = 10
    return fig


MEASURES = {"clean": (BLUE, "circle-open"), "under attack": (VERMILION, "diamond"), "suite": (ORANGE, "square-open")}


def accuracy_dots(panels: Mapping[str, Mapping[str, Mapping[str, Any]]], *, title: str) -> Figure:
    """Accuracies as dots on one line for each row, panels one below the other with a common axis.

    Args:
        panels: title of the panel -> row -> measure ("clean", "under attack" or "suite") -> a number, a rate, or one
            number for each seed (their mean, with bars from the lowest to the highest), in 0 ... 1. A row may lack a
            measure.
        title: the first sentence of the text alternative.

    Raises:
        ValueError: no panel, an empty panel, or an unknown measure.
    """
    import plotly.graph_objects as go

    counts = [len(need(f"panel {name!r}", rows)) for name, rows in need("panels", panels).items()]
    heights, told = [14 + 27 * n for n in counts], []
    height = sum(heights) + 40 * len(heights) + 70
    fig = new_figure(
        "", height=height, rows=len(heights), cols=1, shared_xaxes=True, row_heights=heights,
        subplot_titles=list(panels), vertical_spacing=40 / height if len(heights) > 1 else 0.0,
    )  # fmt: skip
    named = set()
    for place, (name, rows) in enumerate(panels.items(), 1):
        if unknown := {m for row in rows.values() for m in row} - set(MEASURES):
            raise ValueError(f"measures of {name!r} are {sorted(unknown)}, expected some of {', '.join(MEASURES)}")
        for measure, (color, symbol) in MEASURES.items():
            labels = [label for label, row in rows.items() if measure in row]
            if not labels:
                continue
            value, low, high = (100 * a for a in intervals([rows[label][measure] for label in labels], measure))
            told += [f"{label} ({name}), {measure} {v:.1f} %" for label, v in zip(labels, value, strict=True)]
            dots = go.Scatter(
                x=rounded(value),
                y=labels,
                mode="markers",
                name=measure,
                legendgroup=measure,
                showlegend=measure not in named,
                error_x=error_bars(value, low, high) | {"color": color},
                marker={"symbol": symbol, "size": 10, "color": color, "line": {"width": 2, "color": color}},
                hovertemplate=f"%{{y}}<br>{measure}: %{{x:.1f}} %<extra></extra>",
            )
            fig.add_trace(dots, row=place, col=1)
            named.add(measure)
        order = list(rows)[::-1]
        fig.update_yaxes(categoryorder="array", categoryarray=order, range=[-0.6, len(order) - 0.4], row=place, col=1)
    fig.update_xaxes(range=[-3, 103], tickvals=[0, 25, 50, 75, 100])
    fig.update_xaxes(title_text="accuracy (%)", row=len(heights), col=1)
    fig.update_annotations(x=0, xref="paper", xanchor="left", font_size=13)
    fig.update_layout(meta={"alt": f"{title} {'; '.join(told)}."})
    return fig


def panels(
    curves: Mapping[str, Mapping[str, Any]],
    measures: Mapping[str, str],
    *,
    x: str,
    title: str,
    log: bool = False,
    whiskers: bool = False,
) -> Figure:
    """Curves of several measures over a common axis; the legend switches a run on and off in all panels.

    Args:
        curves: run -> {"x": positions, measure: values, ...}; values (X,), or (S, X) for S seeds, drawn as their mean
            with a band from the lowest to the highest. A run may lack a measure.
        measures: measure -> title of its panel's axis, from top to bottom.
        x: title of the horizontal axis.
        title: the first sentence of the text alternative.
        log: a logarithmic horizontal axis.
        whiskers: in place of a band, a whisker at each position.

    Raises:
        ValueError: a curve's length differs from that of its positions.
    """
    import plotly.graph_objects as go

    look, rows = styles(need("curves", curves)), list(need("measures", measures))
    fig = new_figure("", height=160 + 170 * len(rows), rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    told = []
    for name, curve in curves.items():
        color, dash, symbol = look[name]
        place, first = array(curve["x"], "x"), True
        for row, measure in enumerate(rows, 1):
            if measure not in curve:
                continue
            y = array(curve[measure], f"{measure} of {name!r}")
            y = y[None] if y.ndim == 1 else y
            if y.shape[1:] != place.shape:
                raise ValueError(f"{measure} of {name!r} has shape {y.shape}, expected {len(place)} values as in x")
            if len(y) > 1 and not whiskers:
                outline = {"x": rounded([*place, *place[::-1]]), "y": rounded([*y.max(0), *y.min(0)[::-1]])}
                band = go.Scatter(**outline, fill="toself", fillcolor=wash(color), line={"width": 0}, hoverinfo="skip")
                fig.add_trace(band.update(legendgroup=name, showlegend=False, mode="lines"), row=row, col=1)
            line = {"color": color, "dash": dash, "width": 2}
            trace = go.Scatter(x=rounded(place), y=rounded(y.mean(0)), name=name, legendgroup=name, showlegend=first)
            trace.update(mode="lines+markers", line=line, marker={"symbol": symbol, "size": 6, "color": color})
            if whiskers:
                trace.update(error_y=error_bars(y.mean(0), y.min(0), y.max(0)) | {"color": color})
            trace.update(hovertemplate=f"{name}<br>{x} %{{x}}<br>{measures[measure]} %{{y:.3g}}<extra></extra>")
            fig.add_trace(trace, row=row, col=1)
            told.append(f"{name}, {measures[measure]}: {y.mean(0)[0]:.3g} to {y.mean(0)[-1]:.3g}")
            first = False
    for row, measure in enumerate(rows, 1):
        fig.update_yaxes(title_text=measures[measure], rangemode="tozero", row=row, col=1)
    fig.update_xaxes(title_text=x, row=len(rows), col=1)
    places = np.unique(np.concatenate([array(curve["x"], "x") for curve in curves.values()]))
    if log:
        ends = np.log10([places.min() / 1.15, places.max() * 1.15])
        fig.update_xaxes(type="log", range=rounded(ends), **log_ticks(*10**ends))
    elif np.ptp(places) <= 10 and (places == np.round(places)).all():
        fig.update_xaxes(dtick=1)  # nothing between whole numbers
    fig.update_layout(meta={"alt": f"{title} From left to right: {'; '.join(told)}."})
    return fig
