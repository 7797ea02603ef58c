"""The chapter's figure: panels of several measures of several runs."""

from __future__ import annotations

import pytest

from robrep.book.figures import panels


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


def test_panels_refuse_other_lengths() -> None:
    with pytest.raises(ValueError, match="loss of 'a' has shape"):
        panels({"a": {"x": [1, 2], "loss": [1.0]}}, {"loss": "loss"}, x="epoch", title="")
    with pytest.raises(ValueError, match="curves is empty"):
        panels({}, {"loss": "loss"}, x="epoch", title="")
