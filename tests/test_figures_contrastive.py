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
    shown = {f.name: np.array(f.data[0].z, dtype=float) for f in fig.frames}
    counts = {name: int(np.isfinite(m).sum()) for name, m in shown.items()}
    assert counts == {"all": 144, "positives": 12 * 3, "denominator": 12 * 11, "negatives only": 12 * 8}
    assert fig.data[0].x is None, "two images of one name keep a row each"
    c = (z @ z.T).numpy()
    for m in shown.values():
        assert np.allclose(m[np.isfinite(m)], c[np.isfinite(m)], atol=1e-3)
    alt = fig.layout.meta["alt"]
    assert f"{c.reshape(4, 3, 4, 3)[0, 0, 0, 0]:.0f}" == "1"
    assert "negatives" in alt and "mean cosine of positives" in alt
    with pytest.raises(ValueError, match="cosines has shape"):
        figures.contrast_matrix(c, ["x1"], ["a"])


def test_code_moves() -> None:
    clean = torch.zeros(5, 2)
    moved = {"near": clean + 0.1, "far": clean + torch.tensor([3.0, 4.0])}
    fig = figures.code_moves(clean, moved, list("abcde"), spread=torch.ones(5, 2), told={"near": "0", "far": "5 nats"})
    assert "far 5" in fig.layout.meta["alt"] and [f.name for f in fig.frames] == ["near", "far"]
    assert fig.frames[1].data[0].name == "far: 5 nats"
    low, high = fig.layout.xaxis.range
    assert low < 0 and high > 3
    with pytest.raises(ValueError, match="expected the same"):
        figures.code_moves(clean, {"near": torch.zeros(4, 2)}, list("abcde"))


def test_watched_training() -> None:
    curve = {"epoch": [5, 10], "clean": [0.5, 0.9], "robust": [0.1, 0.4], "rank": [2.0, 7.5]}
    fig = figures.watched_training({"SimCLR": curve, "RoCL": curve})
    assert len(fig.data) == 6 and "RoCL: clean 90.0 %, attacked 40.0 %, rank 7.5" in fig.layout.meta["alt"]
    assert list(fig.data[1].y) == [10, 40] and list(fig.data[2].y) == [2, 7.5]
    for one in (fig, figures.contrast_matrix(np.eye(4), ["a", "b"], ["1", "2"])):
        assert len(json.dumps(one.to_plotly_json(), default=str)) < 100_000
