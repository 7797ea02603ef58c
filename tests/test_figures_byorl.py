"""The chapter's figures: two networks, a search under attack, dots of accuracies, panels of several measures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import torch

from robrep.book.figures import panels
from robrep.book.figures.byorl import Search, accuracy_dots, search_slider, two_networks


def test_the_two_networks_are_drawn_in_the_colours_of_the_theme() -> None:
    drawing = two_networks()
    svg = ET.fromstring(drawing._repr_html_())
    assert svg.get("fill") == "currentColor" and svg.get("aria-label") == drawing.alt == repr(drawing)
    words = ["".join(t.itertext()) for t in svg.iter("text")]
    assert words.count("encoder fθ") == words.count("encoder fξ") == words.count("predictor qθ") == 1
    assert words.count("EMA") == 2 and "predictor qξ" not in words, "the target has no predictor"
    width = float(svg.get("viewBox", "").split()[2])
    assert all(float(r.get("x", -1)) >= 0 for r in svg.iter("rect"))
    assert all(float(r.get("x", 0)) + float(r.get("width", 0)) <= width for r in svg.iter("rect"))


def searched(right: float, said: list[tuple[str, bool]]) -> Search:
    return Search(torch.full((2, 1, 4, 4), right), torch.zeros(2, 1, 4, 4), said, right)


def test_a_search_opens_at_its_strongest_attack_and_names_the_shares() -> None:
    searches = {
        "BYOL": {0.0: searched(1.0, [("0", True), ("1", True)]), 0.2: searched(0.25, [("0", True), ("7", False)])},
        "BYORL": {0.0: searched(0.9, [("0", True), ("1", True)]), 0.2: searched(0.5, [("0", True), ("1", True)])},
    }
    fig = search_slider(searches, total=40)
    assert [f.name for f in fig.frames] == ["0", "0.2"] and fig.layout.sliders[0].active == 1
    titles = [t.text[0] for t in fig.data if t.type == "scatter" and t.textposition == "top right"]
    assert titles[1] == "BYOL: what the search finds (25 % right of 40)" and len(titles) == 4
    assert not fig.layout.annotations, "titles that move are traces"
    assert [t.to_plotly_json() for t in fig.frames[1].data] == [t.to_plotly_json() for t in fig.data]
    for part in ("BYOL, 25.0 % of 40 searches right at 0.2", "BYORL, 90.0 % of 40", "BYOL at 0.2: 1 of 2", "7 (wrong)"):
        assert part in fig.layout.meta["alt"]
    other = searches | {"third": {0.0: searches["BYOL"][0.0]}}
    with pytest.raises(ValueError, match=r"searches of 'third' have the radii \[0.0\], expected \[0.0, 0.2\]"):
        search_slider(other, total=40)


def test_dots_show_means_ranges_and_rows_that_lack_a_measure() -> None:
    rows: dict[str, dict[str, Any]] = {"a": {"clean": 0.9, "under attack": [0.1, 0.3]}, "b": {"clean": 0.5}}
    fig = accuracy_dots({"one": rows, "two": {"c": {"suite": {"value": 0.2, "low": 0.1, "high": 0.4}}}}, title="Dots.")
    json.loads(fig.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    clean, attacked, suite = fig.data
    assert list(clean.y) == ["a", "b"] and list(attacked.y) == ["a"] and list(suite.y) == ["c"]
    assert list(attacked.x) == [20.0] and list(attacked.error_x.array) == list(attacked.error_x.arrayminus) == [10.0]
    assert list(suite.error_x.array) == [20.0] and list(suite.error_x.arrayminus) == [10.0]
    assert all(t.error_x.color == t.marker.color for t in fig.data), "whiskers are seen on a dark page, too"
    assert list(fig.layout.yaxis.categoryarray) == ["b", "a"], "the first row is on top"
    assert fig.layout.meta["alt"].startswith("Dots. a (one), clean 90.0 %; b (one), clean 50.0 %; a (one), under")
    with pytest.raises(ValueError, match=r"measures of 'one' are \['loss'\], expected some of clean"):
        accuracy_dots({"one": {"a": {"loss": 1.0}}}, title="")
    with pytest.raises(ValueError, match="panel 'one' is empty"):
        accuracy_dots({"one": {}}, title="")


def test_panels_may_have_a_logarithmic_axis() -> None:
    fig = panels({"a": {"x": [10, 1000], "rate": [1.0, 2.0]}}, {"rate": "rate"}, x="labels", title="Rates.", log=True)
    assert fig.layout.xaxis.type == "log" and list(fig.layout.xaxis.tickvals) == [10.0, 20.0, 50.0, 100, 200, 500, 1000]


def test_panels_show_means_bands_and_words() -> None:
    curves = {
        "one": {"x": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "rank": [1.0, 2.0, 4.0]},
        "several": {"x": [1, 3], "loss": [[1.0, 2.0], [3.0, 6.0]]},
    }
    fig = panels(curves, {"loss": "loss", "rank": "effective rank"}, x="epoch", title="A run.")
    lines = [t for t in fig.data if t.mode == "lines+markers"]
    assert [t.name for t in lines] == ["one", "one", "several"]
    assert list(lines[2].y) == [2.0, 4.0]
    band = next(t for t in fig.data if t.fill == "toself")
    assert list(band.y) == [3.0, 6.0, 2.0, 1.0]
    assert [t.showlegend for t in lines] == [True, False, True]
    assert fig.layout.meta["alt"].startswith("A run. ") and "several, loss: 2 to 4" in fig.layout.meta["alt"]
    assert fig.layout.xaxis2.title.text == "epoch"


def test_panels_show_whiskers_in_place_of_bands() -> None:
    run = {"x": [10, 1000], "rate": [[1.0, 2.0], [3.0, 6.0]]}
    (line,) = panels({"a": run}, {"rate": "rate"}, x="images", title="Rates.", log=True, whiskers=True).data
    assert list(line.y) == [2.0, 4.0] and line.error_y.color == line.line.color
    assert list(line.error_y.array) == list(line.error_y.arrayminus) == [1.0, 2.0]


def test_panels_refuse_other_lengths() -> None:
    with pytest.raises(ValueError, match="loss of 'a' has shape"):
        panels({"a": {"x": [1, 2], "loss": [1.0]}}, {"loss": "loss"}, x="epoch", title="")
    with pytest.raises(ValueError, match="curves is empty"):
        panels({}, {"loss": "loss"}, x="epoch", title="")
