"""The figures on contrastive learning: what they say, what they draw, what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from robrep.book import figures


def vectors(n: int, size: int) -> torch.Tensor:
    base = torch.randn(1, size, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, size, 6, generator=torch.Generator().manual_seed(1))
    return F.normalize((base + 0.3 * noise).flatten(0, 1), dim=1)


def test_contrast_matrix() -> None:
    z = vectors(4, 3)
    fig = figures.contrast_matrix(z @ z.T, ["x1", "x2", "x1'", "x2'"], ["a", "b", "a"])
    shown = np.array(fig.data[0].z, dtype=float)
    assert np.isnan(shown.diagonal()).all() and np.isfinite(shown).sum() == 12 * 11, "no vector is compared with itself"
    assert list(fig.data[1].x) == list(fig.data[1].y) == list(range(12)), "a cross there"
    assert fig.data[0].x is None, "two images of one name keep a row each"
    c = (z @ z.T).numpy().reshape(4, 3, 4, 3).transpose(1, 0, 3, 2).reshape(12, 12)
    assert np.allclose(shown, np.where(np.isnan(shown), np.nan, c), atol=1e-3, equal_nan=True)
    assert [(s.x0, s.x1, s.y0, s.y1) for s in fig.layout.shapes] == [(k, k + 4, k, k + 4) for k in (-0.5, 3.5, 7.5)]
    assert fig.data[0].text[5][8] == "b, x2<br>a, x1" and list(fig.layout.yaxis.ticktext[4:6]) == ["x1", "x2"]
    own = np.kron(np.eye(3), np.ones((4, 4))).astype(bool)
    assert f"mean cosine of positives is {c[own & ~np.eye(12, dtype=bool)].mean():.2f}" in fig.layout.meta["alt"]
    with pytest.raises(ValueError, match="cosines has shape"):
        figures.contrast_matrix(c, ["x1"], ["a"])


def test_code_moves() -> None:
    clean = torch.zeros(5, 2)
    moved = {"near": clean + 0.1, "far": clean + torch.tensor([3.0, 4.0])}
    fig = figures.code_moves(clean, moved, list("abcde"), spread=torch.ones(5, 2), told={"near": "0", "far": "5, nats"})
    assert "far 5" in fig.layout.meta["alt"] and not fig.frames and len(fig.data) == 6
    assert [a.text for a in fig.layout.annotations] == ["near<br>0", "far<br>5<br>nats"]
    assert {t.xaxis for t in fig.data[:3]} == {"x"} and {t.xaxis for t in fig.data[3:]} == {"x2"}
    assert np.nanmax(np.array(fig.data[5].y, dtype=float)) == 4, "the second panel's lines end where it moved them"
    assert fig.layout.yaxis.scaleanchor == "x" and fig.layout.yaxis2.scaleanchor == "x2", "a unit is a unit"
    assert fig.layout.xaxis.range == fig.layout.xaxis2.range and fig.layout.yaxis.range == fig.layout.yaxis2.range
    low, high = fig.layout.xaxis.range
    assert low < -1 and high > 4, "no circle is cut"
    with pytest.raises(ValueError, match="expected the same"):
        figures.code_moves(clean, {"near": torch.zeros(4, 2)}, list("abcde"))


def test_watched_training() -> None:
    curve = {"epoch": [5, 10], "clean": [0.5, 0.9], "robust": [0.1, 0.4], "rank": [2.0, 7.5]}
    fig = figures.watched_training({"SimCLR": curve, "RoCL": curve})
    assert len(fig.data) == 6 and "RoCL: clean 90.0 %, attacked 40.0 %, rank 7.5" in fig.layout.meta["alt"]
    assert list(fig.data[1].y) == [10, 40] and list(fig.data[2].y) == [2, 7.5]
    for one in (fig, figures.contrast_matrix(np.eye(4), ["a", "b"], ["1", "2"])):
        assert len(json.dumps(one.to_plotly_json(), default=str)) < 100_000
