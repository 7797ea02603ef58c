"""The figures of optimal transport: valid, light, described in words, and true to the closed forms."""

from __future__ import annotations

import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from robrep.book import figures
from robrep.gaussians import Gaussian, entropic_wasserstein, optimal_coupling


def one(mean: float, variance: float) -> Gaussian:
    return Gaussian(torch.full((1, 1), mean).double(), torch.full((1, 1), math.sqrt(variance)).double())


P, Q = one(0, 0.7), one(0.8, 1.3)
X = torch.linspace(-1, 1, 21)
CODES = {
    str(seed): {
        "VAE": Gaussian(torch.sin(seed * X)[:, None], torch.ones(21, 1)),
        "Smooth encoder": Gaussian(X[:, None], torch.ones(21, 1)),
    }
    for seed in (1, 2, 3)
}
MADE = {
    "coupling": lambda: figures.coupling_picture(P, Q),
    "objective": lambda: figures.entropic_objective(P, Q),
    "line": lambda: figures.encoder_line(X, CODES, [-0.5, 0.5], setting="seed", radius=0.2),
}
SAID = {
    "coupling": ("falls from 2.64 to", "W2 squared, is 0.732"),
    "objective": ("moves from psi 0.0",),
    "line": ("Smooth encoder: steepest slope 1 to 1", "VAE: steepest slope"),
}


@pytest.mark.parametrize("name", MADE)
def test_rules_of_the_book(name: str) -> None:
    fig = MADE[name]()
    text = fig.to_json()
    again = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    go.Figure({k: again[k] for k in ("data", "layout")}, frames=again["frames"])
    for said in SAID[name]:
        assert said in fig.layout.meta["alt"]
    assert len(text) < 120_000 and fig.layout.width is None and fig.layout.height
    assert {t.type for t in fig.data} <= {"scatter"}
    assert [s.args[0][0] for s in fig.layout.sliders[0].steps] == [f.name for f in fig.frames]
    shown = fig.frames[fig.layout.sliders[0].active]
    for trace, data in zip(shown.traces, shown.data, strict=True):
        for key, value in data.to_plotly_json().items():
            assert fig.data[trace].to_plotly_json()[key] == value
    assert all(axis.range is not None for axis in [*fig.select_xaxes(), *fig.select_yaxes()])


def test_the_ellipse_has_the_coupling_as_its_covariance() -> None:
    fig = figures.coupling_picture(P, Q, (0.0, 1.0, 1e6))
    for frame, gamma in zip(fig.frames, (0.0, 1.0, 1e6), strict=True):
        x, y = (
            np.array(v[: v.index(None)] if None in v else v) for v in (list(frame.data[0].x), list(frame.data[0].y))
        )
        x, y = x[:-1], y[:-1] - 0.8  # a closed curve: the last point is the first
        assert 2 * np.mean(x * x) == pytest.approx(0.7, rel=1e-3) and 2 * np.mean(y * y) == pytest.approx(1.3, rel=1e-3)
        assert 2 * np.mean(x * y) == pytest.approx(optimal_coupling(P, Q, gamma).item(), abs=2e-3)


def test_the_closed_form_lies_at_the_bottom() -> None:
    fig = figures.entropic_objective(P, Q, (0.5, 1.0, 4.0))
    for frame, gamma in zip(fig.frames, (0.5, 1.0, 4.0), strict=True):
        assert frame.data[1].x[0] == pytest.approx(optimal_coupling(P, Q, gamma).item(), rel=1e-3)
        assert -0.02 < frame.data[1].y[0] <= 1e-6, "a little below the best of the values tried"
        assert f"{entropic_wasserstein(P, Q, gamma).item():.5g}" in frame.data[1].name


def test_refusals() -> None:
    two = Gaussian(torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"p has shape \(2, 1\), expected \(1, 1\)"):
        figures.coupling_picture(two, Q)
    with pytest.raises(ValueError, match="gammas is"):
        figures.coupling_picture(P, Q, (1.0, 0.5))
    with pytest.raises(ValueError, match="gammas is"):
        figures.entropic_objective(P, Q, (0.0, 0.5))
    with pytest.raises(ValueError, match="codes is empty"):
        figures.encoder_line(X, {}, [0.0])
    with pytest.raises(ValueError, match="codes of 'VAE' have 21 rows, expected 5"):
        figures.encoder_line(X[:5], CODES, [0.0])
