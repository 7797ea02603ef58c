"""What all figures share: palette, rounding, intervals, the frame around a figure and its slider."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's palette, which survives the common kinds of colour blindness, without its black and yellow (each
# vanishes on one of the two page backgrounds) and with the orange a little darker for the same reason.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#D89000", "#56B4E9"
GREY = "#858585"
WRONG = "#CC5200"  # text: as far from a white page as from a black one
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "pentagon", "hexagram", "triangle-down")

Number = Any  # a number, an evaluation.Rate, a recorded {"value", "low", "high"}, or one number for each seed


class Style(NamedTuple):
    """How one method looks in every figure of the book."""

    color: str
    dash: str
    symbol: str


_STYLES = {
    "standard": Style(GREY, "dot", "circle"),
    "supervised": Style(GREY, "dot", "circle"),
    "adversarialtraining": Style(ORANGE, "dash", "square"),
    "at": Style(ORANGE, "dash", "square"),
    "trades": Style(GREEN, "dashdot", "diamond"),
    "aetrades": Style(PURPLE, "longdash", "triangle-up"),
    "vae": Style(SKY, "dot", "x"),
    "vaeurkle": Style(BLUE, "solid", "star"),
    "smoothencoder": Style(VERMILION, "longdash", "pentagon"),
    "simclr": Style(SKY, "dot", "cross"),
    "simclrurkle": Style(BLUE, "dash", "hexagram"),
    "rocl": Style(PURPLE, "dashdot", "triangle-down"),
    "byorl": Style(VERMILION, "solid", "diamond"),
    "plaininfomax": Style(BLUE, "dash", "circle"),
    "worstcasemi": Style(GREEN, "solid", "triangle-up"),
    "cropd": Style(ORANGE, "solid", "pentagon"),
}


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Colour, dash and marker of each method: fixed for the book's methods, the next free ones for other names."""
    result: dict[str, Style] = {}
    fixed = {name: _STYLES.get("".join(c for c in name.lower() if c.isalnum())) for name in names}
    reserved = {style.color for style in fixed.values() if style}
    for name, known in fixed.items():
        taken = reserved | {s.color for s in result.values()}
        free = [c for c in PALETTE if c not in taken] or list(PALETTE)
        i = len(result)
        result[name] = known or Style(free[i % len(free)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)])
    return result


def _on_host(values: Any) -> Any:
    """Tensors, also those in lists, as numpy can read them."""
    if isinstance(values, list | tuple):
        return [_on_host(v) for v in values]
    return values.detach().cpu() if isinstance(values, Tensor) else values


def array(values: Any, name: str = "values") -> np.ndarray:
    try:
        return np.asarray(_on_host(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is a {type(values).__name__}, expected numbers of one rectangular shape") from error


def rounded(values: Any, digits: int = 4) -> list:
    """Nested lists of floats with ``digits`` significant digits; what is not finite becomes None, a gap in a line."""

    def short(v: Any) -> Any:
        if isinstance(v, list):
            return [short(u) for u in v]
        return float(f"{v:.{digits}g}") if math.isfinite(v) else None

    return short(array(values).tolist())


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def interval(number: Number, name: str = "value") -> Interval:
    """Value, low and high: of a rate its interval, of a plain number itself, of several seeds mean and range."""
    if isinstance(number, Mapping):
        value = float(number["value"])
        low, high = number.get("low"), number.get("high")
        return Interval(value, value if low is None else float(low), value if high is None else float(high))
    if hasattr(number, "low") and hasattr(number, "value"):
        return Interval(float(number.value), float(number.low), float(number.high))
    a = array(number, name)
    if a.size == 0:
        raise ValueError(f"{name} is empty, expected a number or one number for each seed")
    return Interval(float(a.mean()), float(a.min()), float(a.max()))


def intervals(numbers: Iterable[Number], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value, low, high = (np.array(c) for c in zip(*(interval(n, name) for n in numbers), strict=True))
    return value, low, high


def need(name: str, items: Any) -> Any:
    if not isinstance(items, Mapping):
        raise TypeError(f"{name} is a {type(items).__name__}, expected a mapping from names")
    if not items:
        raise ValueError(f"{name} is empty, expected at least one entry")
    return items


def wash(color: str, alpha: float = 0.2) -> str:
    return f"rgba({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:7], 16)},{alpha})"


def new_figure(alt: str, height: int, rows: int = 1, cols: int = 1, **subplots: Any) -> Figure:
    from plotly.subplots import make_subplots

    fig = make_subplots(rows=rows, cols=cols, **subplots)
    fig.update_layout(
        template="plotly_white",
        meta={"alt": " ".join(alt.split())},
        height=height,
        autosize=True,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"},
        hovermode="closest",
    )
    fig.update_xaxes(automargin=True, title_standoff=6)
    fig.update_yaxes(automargin=True, title_standoff=6)
    return fig


def add_slider(fig: Figure, frames: Mapping[str, list], traces: Sequence[int], prefix: str, start: int = 0) -> None:
    """Add frames, one for each slider position; ``frames[label]`` updates the traces numbered ``traces``."""
    import plotly.graph_objects as go

    fig.frames = [go.Frame(name=label, data=data, traces=list(traces)) for label, data in frames.items()]
    move = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": label, "method": "animate", "args": [[label], move]} for label in frames]
    overhang = max(0, 3 * len(steps[-1]["label"]) - 8)  # px: half of the last label stands right of the slider's end
    pad = {"t": 45, "b": 5, "r": overhang}
    slider = {"active": start, "steps": steps, "currentvalue": {"prefix": prefix}, "pad": pad, "x": 0}
    # the legend goes above: below, it would wrap into the slider on a narrow page
    legend = {"yref": "paper", "y": 1.02, "yanchor": "bottom"}
    fig.update_layout(sliders=[slider | {"len": 1}], legend=legend)
    for i, data in zip(traces, list(frames.values())[start], strict=True):
        fig.data[i].update(data.to_plotly_json())


def log_ticks(low: float, high: float) -> dict:
    """Ticks of a logarithmic axis from ``low`` to ``high``, each with its whole number."""
    leads = (1, 2, 3, 5) if high < 15 * low else (1, 2, 5) if high < 1000 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{lead}e{k}") for k in decades for lead in leads if low <= float(f"{lead}e{k}") <= high]
    return {"tickvals": ticks, "ticktext": [f"{v:,g}" for v in ticks]}


def error_bars(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    return {"array": rounded(high - value), "arrayminus": rounded(value - low), "thickness": 1, "width": 3}


def reference_line(fig: Figure, *, x: float | None = None, y: float | None = None, text: str, **where: Any) -> None:
    """A grey reference line with its name."""
    style: dict = {"line": {"color": GREY, "dash": "dash", "width": 1.5}, "annotation_text": text}
    if x is not None:
        fig.add_vline(x, **{"annotation_position": "top right"} | style | where)
    if y is not None:
        fig.add_hline(y, **{"annotation_position": "top left"} | style | where)
