"""Rules that every figure of the book keeps, for the tests of figures."""

from __future__ import annotations

import json
import re

import plotly.graph_objects as go
import pytest


def keeps_the_rules(fig: go.Figure, told: str) -> None:
    """Valid, light, coloured by the page's theme, with rounded data and a text alternative that says ``told``."""
    text = fig.to_json()
    again = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    go.Figure({k: again[k] for k in ("data", "layout")}, frames=again.get("frames"))  # plotly's own validation
    assert told in fig.layout.meta["alt"]
    assert "\n" not in fig.layout.meta["alt"] and "$" not in text
    assert len(text) < 120_000, f"it weighs {len(text)} bytes"
    assert fig.layout.height and fig.layout.autosize and fig.layout.width is None
    assert fig.layout.paper_bgcolor is None and fig.layout.plot_bgcolor is None and fig.layout.font.color is None
    assert {t.type for t in fig.data} <= {"scatter", "heatmap"}  # plotly's cartesian bundle has these
    data = re.sub(r'"colorscale":\[\[.*?\]\]', "", json.dumps(again["data"], separators=(",", ":")))
    numbers = re.findall(r"(?<=[\[,:])-?\d*\.\d+(?:e-?\d+)?(?=[\],}])", data)
    assert all(len(re.sub(r"e.*|\D", "", n).strip("0")) <= 4 for n in numbers)  # rounded


def slider_moves(fig: go.Figure, frames: int) -> None:
    """So many frames; the slider names them, opens at the one that is first seen, and axes stay where they are."""
    assert len(fig.frames) == frames
    if not fig.frames:
        assert not fig.layout.sliders
        return
    steps = fig.layout.sliders[0].steps
    assert [s.args[0][0] for s in steps] == [f.name for f in fig.frames]
    shown = fig.frames[fig.layout.sliders[0].active]
    for trace, data in zip(shown.traces, shown.data, strict=True):
        for key, value in data.to_plotly_json().items():
            assert fig.data[trace].to_plotly_json()[key] == value  # what is first seen is the slider's position
    for axis in [*fig.select_xaxes(), *fig.select_yaxes()]:
        assert axis.range is not None or axis.matches is not None  # axes that stay, or frames could not be compared
