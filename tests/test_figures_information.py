"""The figures of mutual information: valid, light, described in words, and true to the formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from robrep.book import figures
from robrep.book.worst_case_mi import (
    correlated_gaussians,
    correlated_gaussians_ratio,
    fano_accuracy,
    linear_vulnerability,
)

CURVE = {"x": [0.5, 1, 2], "y": [0.5, 0.9, 1.6], "low": [0.4, 0.8, 1.5], "high": [0.6, 1.0, 1.7]}
EYE = torch.eye(2)
CASES = [linear_vulnerability(EYE[0], EYE[0], EYE, eps) for eps in (0.5, 0.1, 1.0)]
MODELS = {
    "standard": [{"name": "a", "vulnerability": 1.0, "gap": 0.9, "worst": 0.1, "normal": 1.1, "robust": 0.05}],
    "adversarial training": [
        {"name": "b", "vulnerability": 0.2, "gap": 0.3, "worst": 0.8, "normal": 1.0, "robust": 0.6}
    ],
}
UNITS = {"standard": [{"normal": 0.4, "worst": 0.1}, {"normal": 0.1, "worst": 0.0}]}
UNITS["robust"] = [{"normal": 0.2, "worst": 0.2}, {"normal": 0.5, "worst": 0.4}]
MADE = {
    "estimates": lambda: figures.estimates_against_truth(
        {2: {"DV": CURVE, "NCE": CURVE}, 20: {"DV": CURVE, "NCE": CURVE}}
    ),
    "slip": lambda: figures.released_slip(
        correlated_gaussians_ratio(*correlated_gaussians(64, 2, 1.0, seed=0), 1.0), [-3, 0, 3], 1.0
    ),
    "toy": lambda: figures.linear_vulnerability_slider(angles=[0, 45, 90], radii=[0, 0.5, 1.0], start=1),
    "cases": lambda: figures.bounds_of_cases(CASES, [c.value for c in CASES]),
    "scatter": lambda: figures.vulnerability_against_gap(MODELS),
    "pairs": lambda: figures.information_pairs(MODELS, classes=10),
    "units": lambda: figures.unit_vulnerability(UNITS),
    "attacks": lambda: figures.weak_beside_strong({"plain": {"clean": 0.9, "weak": 0.4, "strong": [0.2, 0.3]}}),
}
SAID = {
    "estimates": "dimension 2, DV: 0.50 at 0.5, 1.60 at 2",
    "slip": "True information 1.00",
    "toy": "at 0° and radius 0.5",
    "cases": "in 3; F(AG) is always the larger",
    "scatter": "standard: RV 1.00 to 1.00, gap 90 to 90 points",
    "pairs": "adversarial training: worst case 0.80, normal 1.00",
    "units": "robust: 0.60 of 0.70 nats left in 2 units together",
    "attacks": "plain: clean 90.0 %, weak 40.0 %, strong 25.0 %",
}


@pytest.mark.parametrize("name", MADE)
def test_rules_of_the_book(name: str) -> None:
    fig = MADE[name]()
    text = fig.to_json()
    again = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    go.Figure({k: again[k] for k in ("data", "layout")}, frames=again.get("frames"))
    assert SAID[name] in fig.layout.meta["alt"], fig.layout.meta["alt"]
    assert len(text) < 120_000 and fig.layout.width is None and fig.layout.height
    assert {t.type for t in fig.data} <= {"scatter", "bar"}
    if fig.frames:
        assert [s.args[0][0] for s in fig.layout.sliders[0].steps] == [f.name for f in fig.frames]
        assert all(axis.range is not None for axis in [*fig.select_xaxes(), *fig.select_yaxes()])


def test_toy_shows_the_formula() -> None:
    fig = MADE["toy"]()
    w = torch.tensor([math.cos(math.pi / 4), math.sin(math.pi / 4)])
    v = linear_vulnerability(w, torch.tensor([1.5, 0.0]), EYE, 0.5)
    high, value, low = (trace.y[1] for trace in fig.frames[1].data)
    assert (low, value, high) == pytest.approx((v.low, v.value, v.high), rel=1e-3)
    assert [trace.y[1] for trace in fig.data] == [high, value, low], "the slider opens where it is told to"


def test_estimates_are_shown_by_what_they_miss() -> None:
    fig = MADE["estimates"]()
    assert fig.data[0].y == pytest.approx([0.0, -0.1, -0.4]) and fig.data[0].error_y.array == pytest.approx([0.1] * 3)


def test_units_stand_by_their_information() -> None:
    fig = MADE["units"]()
    assert [(t.x, t.y) for t in fig.data[:2]] == [((0.0, 0.1), (1, 1)), ((0.1, 0.4), (2, 2))]


def test_models_of_a_group_are_joined_by_their_gaps() -> None:
    models = [{"name": n, "vulnerability": v, "gap": g} for n, v, g in (("a", 1.0, 0.9), ("b", 2.0, 0.1))]
    (trace,) = figures.vulnerability_against_gap({"width 16": models}).data
    assert trace.hovertext == ("b", "a") and trace.y == pytest.approx((10, 90))


def test_the_curves_around_the_cases_are_their_bounds() -> None:
    high, low, exact, _ = MADE["cases"]().data
    for case in CASES:
        assert exact.y[exact.x.index(pytest.approx(case.gap, rel=1e-3))] == pytest.approx(case.value, rel=1e-3)
        for line, bound in ((high, case.high), (low, case.low)):
            assert np.interp(case.gap, line.x, line.y) == pytest.approx(bound, abs=2e-3)


def test_ceiling_is_fano() -> None:
    ceiling = MADE["pairs"]().data[-1]
    at = len(ceiling.x) // 3
    assert ceiling.y[at] == pytest.approx(100 * fano_accuracy(ceiling.x[at], 10), rel=1e-3)


def test_estimators_must_agree() -> None:
    with pytest.raises(ValueError, match="expected \\['DV'\\]"):
        figures.estimates_against_truth({2: {"DV": CURVE}, 20: {"NCE": CURVE}})
