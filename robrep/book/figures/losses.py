"""Losses: during training, and both sides of Proposition 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from robrep.book.figures.base import (
    BLUE,
    DASHES,
    GREY,
    ORANGE,
    PALETTE,
    SYMBOLS,
    Number,
    array,
    error_bars,
    interval,
    intervals,
    log_ticks,
    need,
    new_figure,
    reference_line,
    rounded,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], *, log: bool = True) -> Figure:
    """Each method's loss terms against the epoch; a menu chooses the method.

    Args:
        histories: method -> one dict of named numbers for each epoch, as ``training.fit`` returns. "epoch" is the x
            axis (counted from 1 if it is missing); entries that are no numbers are left out.
        log: logarithmic y axis where every value is positive.

    Raises:
        ValueError: no method, or a method without epochs.
    """
    import plotly.graph_objects as go

    drawn: list = []
    owner, told, logs, ticks = [], [], {}, {}
    for name, history in need("histories", histories).items():
        if not history:
            raise ValueError(f"history of {name!r} is empty, expected at least one epoch")
        epochs = [h.get("epoch", i + 1) for i, h in enumerate(history)]
        terms = [k for k, v in history[0].items() if k != "epoch" and isinstance(v, Real)]
        terms = terms if len(terms) > 2 else [k for k in terms if k != "loss"] or terms  # a single term is the loss
        values = {term: array([h.get(term, math.nan) for h in history], term) for term in terms}
        logs[name] = log and all((v[np.isfinite(v)] > 0).all() for v in values.values())
        seen = np.concatenate([v[np.isfinite(v)] for v in values.values()])
        marks = log_ticks(seen.min(), seen.max()) if logs[name] and seen.size else {}
        few = len(marks.get("tickvals", ())) < 2  # a short axis, on which plotly writes whole numbers by itself
        ticks[name] = {"tickvals": None, "ticktext": None} if few else marks
        told.append(
            f"{name}, epochs {epochs[0]} to {epochs[-1]}: "
            + ", ".join(f"{term} {v[0]:.3g} to {v[-1]:.3g}" for term, v in values.items())
        )
        for i, (term, v) in enumerate(values.items()):
            owner.append(name)
            drawn.append(
                go.Scatter(
                    x=epochs,
                    y=rounded(v),
                    name=term,
                    mode="lines+markers",
                    visible=len(told) == len(histories),
                    line={"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i % len(DASHES)]},
                    marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7},
                )
            )
    fig = new_figure(f"Loss terms against the epoch. {'; '.join(told)}.", height=430)
    fig.add_traces(drawn)
    fig.update_layout(showlegend=True)
    fig.update_xaxes(title_text="epoch", rangemode="tozero")
    fig.update_yaxes(title_text="loss term (mean over the epoch)")
    axes = {name: {"type": "log" if logs[name] else "linear"} | ticks[name] for name in histories}
    fig.update_yaxes(axes[name])
    if len(histories) > 1:
        buttons = [
            {
                "label": name,
                "method": "update",
                "args": [
                    {"visible": [o == name for o in owner]},
                    {f"yaxis.{key}": value for key, value in axis.items()} | {"yaxis.autorange": True},
                ],
            }
            for name, axis in axes.items()
        ]
        place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}
        menu = {"buttons": buttons, "active": len(buttons) - 1} | place  # the last row is the chapter's own
        fig.update_layout(updatemenus=[menu], margin_t=60)
    return fig


def bound_bars(
    names: Sequence[Any],
    left: Sequence[Number],
    right: Sequence[Number],
    *,
    classes: int,
    bound: float,
    clean: Sequence[Number] | None = None,
    y_title: str = "",
    log: bool = False,
) -> Figure:
    """Both sides of Proposition 1 (Nguyen et al. 2022) for each model: loss under attack <= clean loss + M/√2 √R.

    A bound above M says nothing, since no bounded loss exceeds M; one above ln C does not exclude guessing.

    Args:
        names: models, or values of a setting.
        left: loss under attack, in nats.
        right: the bound, in nats.
        classes: C.
        bound: M, the largest loss that the bounded softmax allows, in nats; above ln C.
        clean: clean loss, the part of the bound that is no price of the attack.
        y_title: what ``names`` are, if that needs saying.
        log: logarithmic x axis, for bounds of very different size.

    Raises:
        ValueError: lengths that differ, or M not above ln C.
    """
    import plotly.graph_objects as go

    if not len(names) == len(left) == len(right) == (len(names) if clean is None else len(clean)) or not len(names):
        raise ValueError(
            f"names, left, right have lengths {len(names)}, {len(left)}, {len(right)}, expected one, above 0"
        )
    if not bound > math.log(classes):
        raise ValueError(f"bound M is {bound:g}, expected more than ln({classes}) = {math.log(classes):.4f}")
    labels, guess = [str(n) for n in names], math.log(classes)
    sides = {"loss under attack": (left, BLUE, ""), "the bound": (right, ORANGE, "/")}
    if clean is not None:
        sides = {"clean loss": (clean, GREY, ".")} | sides
    verdicts = [
        "says nothing (above M)" if r > bound else "allows guessing (above ln C)" if r > guess else "informative"
        for r in intervals(right, "right")[0]
    ]
    told = "; ".join(
        f"{name}: loss {interval(lo).value:.3g}, bound {interval(hi).value:.3g}, {v}"
        for name, lo, hi, v in zip(labels, left, right, verdicts, strict=True)
    )
    fig = new_figure(
        f"Both sides of the bound in nats, M = {bound:g}, ln C = {guess:.3g}. {told}.", height=170 + 62 * len(names)
    )
    for side, (numbers, color, pattern) in sides.items():
        value, low, high = intervals(numbers, side)
        fig.add_trace(
            go.Bar(
                y=labels,
                x=rounded(value),
                name=side,
                orientation="h",
                error_x=error_bars(value, low, high) if (high > low).any() else None,
                marker={"color": color, "pattern": {"shape": pattern}},
                text=[f" <b>{v.split(' (')[0]}</b>" for v in verdicts] if side == "the bound" else None,
                textposition="outside",
                constraintext="none",
                hovertemplate=f"%{{y}}<br>{side} %{{x:.3g}} nats<extra></extra>",
            )
        )
    # above the plot, one to the left and one to the right, so that they neither meet nor cover a bar
    for at, name, side in ((guess, f"ln {classes}: guessing", "left"), (bound, "M: the largest loss", "right")):
        reference_line(fig, x=at, text=name, annotation_position=f"top {side}", annotation_yanchor="bottom")
    highest, room = max(*intervals(right, "right")[2], bound), 1.6  # room for the words behind the bars
    if log:
        positive = [v for n, *_ in sides.values() for v in intervals(n, "nats")[0] if v > 0]
        lowest = min(positive, default=1e-3) / 2
        ends = [math.log10(lowest), math.log10(highest) + 0.6 * math.log10(highest / lowest)]
    else:
        ends = [0, room * highest]
    fig.update_xaxes(title_text="nats", type="log" if log else "linear", range=rounded(ends))
    fig.update_yaxes(type="category", title_text=y_title, autorange="reversed")
    fig.update_layout(barmode="group", bargap=0.25)
    return fig
