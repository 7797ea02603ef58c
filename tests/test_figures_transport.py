"""The figures of the chapter on smooth encoders: valid, light, described in words, and true to the closed forms."""

from __future__ import annotations

import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from robrep.book import figures
from robrep.book.smooth_encoders import optimal_coupling
from robrep.gaussians import Gaussian, entropic_wasserstein


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
    "coupling": lambda: figures.coupling_picture(P, Q, start=4),
    "objective": lambda: figures.entropic_objective(P, Q, start=-1),
    "line": lambda: figures.encoder_line(X, CODES, [-0.5, 0.5], setting="seed", radius=0.2, start=1),
}
SAID = {
    "coupling": ("falls from 2.64 to", "W2 squared, is 0.732"),
    "objective": ("moves from psi 0.0",),
    "line": ("Smooth encoder by up to 0.4", "VAE by up to"),
}
OPENS = {"coupling": 4, "objective": 9, "line": 1}
CURVES = {
    name: {"x": [0, 0.1, 0.2], "y": y, "low": [v - 0.01 for v in y], "high": [v + 0.01 for v in y]}
    for name, y in (("VAE", [0.9, 0.1, 0.02]), ("Smooth encoder", [0.88, 0.5, 0.04]))
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
    assert fig.layout.sliders[0].active == OPENS[name]
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


def test_both_codes_have_the_same_unit() -> None:
    fig = figures.coupling_picture(P, Q)
    x, y = fig.layout.xaxis, fig.layout.yaxis
    assert x.scaleanchor == "y" and x.scaleratio == 1
    assert x.range[1] - x.range[0] == pytest.approx(y.range[1] - y.range[0])


def test_the_brute_force_finds_the_closed_form() -> None:
    """The two numbers of the legend agree at every position, in all digits that are shown."""
    for frame in figures.entropic_objective(P, Q).frames:
        (exact, wd), (found, least) = (
            [float(part.split(" = ")[1]) for part in trace.name.split(": ")[1].split(", ")] for trace in frame.data[1:]
        )
        assert abs(exact - found) <= 0.0011 and abs(wd - least) <= 0.00011


def test_the_boxes_span_what_an_attacker_reaches() -> None:
    fig = figures.encoder_line(X, CODES, [-0.5, 0.5], radius=0.2)
    for frame, models in zip(fig.frames, CODES.values(), strict=True):
        for i, p in enumerate(models.values()):
            drawn = frame.data[4 * i + 1]
            corners = [c for c in zip(drawn.x, drawn.y, strict=True) if c != (None, None)]
            for k, point in enumerate((-0.5, 0.5)):
                box = np.array(corners[5 * k : 5 * (k + 1)], dtype=float)
                near = p.mean[(X - point).abs() <= 0.2 + 1e-6]
                assert box.min(0) == pytest.approx([point - 0.2, near.min().item()], abs=1e-3)
                assert box.max(0) == pytest.approx([point + 0.2, near.max().item()], abs=1e-3)
    plain = figures.encoder_line(X, CODES, [0.0])
    assert not plain.data[1].x and not plain.layout.shapes, "without a radius, neither boxes nor strips"


def test_panels_share_axes_and_one_legend() -> None:
    names = ("a", "b", "c")
    fig = figures.accuracy_panels({name: CURVES for name in names}, marked_radius=0.1)
    assert len({tuple(axis.range) for axis in fig.select_xaxes()}) == 1 and len(list(fig.select_xaxes())) == 4
    assert sorted(t.name for t in fig.data if t.showlegend) == ["Smooth encoder", "VAE", "ε = 0.1, as in training"]
    for name in names:
        assert f"{name}: VAE: 90.0 % at 0, 10.0 % at 0.1" in fig.layout.meta["alt"]
    assert {a.text for a in fig.layout.annotations} == set(names), "no label within a panel"
    assert sum(t.fill == "toself" for t in fig.data) == 6
    bare = figures.accuracy_panels({"a": CURVES}, bands=False)
    assert not any(t.fill for t in bare.data) and len(bare.data) == 2
    json.loads(fig.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def test_the_closed_form_lies_at_the_bottom() -> None:
    fig = figures.entropic_objective(P, Q, (0.5, 1.0, 4.0))
    for frame, gamma in zip(fig.frames, (0.5, 1.0, 4.0), strict=True):
        assert frame.data[1].x[0] == pytest.approx(optimal_coupling(P, Q, gamma).item(), rel=1e-3)
        assert -0.02 < frame.data[1].y[0] <= 1e-6, "a little below the best of the values tried"
        assert f"{entropic_wasserstein(P, Q, gamma).item():.4f}" in frame.data[1].name


def test_refusals() -> None:
    two = Gaussian(torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"p has shape \(2, 1\), expected \(1, 1\)"):
        figures.coupling_picture(two, Q)
    with pytest.raises(ValueError, match="gammas is"):
        figures.coupling_picture(P, Q, (1.0, 0.5))
    with pytest.raises(ValueError, match="gammas is"):
        figures.entropic_objective(P, Q, (0.0, 0.5))
    with pytest.raises(ValueError, match="points is 1, expected at least 2"):
        figures.entropic_objective(P, Q, points=1)
    with pytest.raises(ValueError, match="panel 'b' has the curves .'VAE'., expected .'VAE', 'Smooth encoder'. as"):
        figures.accuracy_panels({"a": CURVES, "b": {"VAE": CURVES["VAE"]}})
    with pytest.raises(ValueError, match="panels is empty"):
        figures.accuracy_panels({})
    with pytest.raises(ValueError, match="codes is empty"):
        figures.encoder_line(X, {}, [0.0])
    with pytest.raises(ValueError, match="codes of 'VAE' have 21 rows, expected 5"):
        figures.encoder_line(X[:5], CODES, [0.0])
