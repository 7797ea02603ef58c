"""The figures on judging robustness: valid, light, told in words made from the data, alive without a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from figure_rules import keeps_the_rules, slider_moves

from robrep.book import figures
from robrep.evaluation import Rate

STEPS = (1, 5, 20)


def curve(*y: float, x: Sequence[float] = STEPS) -> dict:
    return {"x": x, "y": y, "low": [v - 0.1 for v in y], "high": [v + 0.1 for v in y]}


def report(*verdicts: str) -> SimpleNamespace:
    checks = ("repeat", "batch", "zero-gradient")
    found = [
        SimpleNamespace(check=c, verdict=v, text=f"{c} is {v}") for c, v in zip(checks, verdicts, strict=False) if v
    ]
    return SimpleNamespace(findings=found)


def made() -> dict[str, go.Figure]:
    t = np.linspace(-0.5, 1.5, 9)
    both = {"certified": curve(0.9, 0.5, 0.0, x=(0, 0.5, 1)), "attacked": curve(0.95, 0.8, 0.4, x=(0, 0.5, 1))}
    return {
        "mask_slider": figures.mask_slider(
            t, {"none": (t**2, 2 * t), "flat": (t**2, 0 * t), "cut": (t**2, None)}, start=1
        ),
        "suite_bars": figures.suite_bars(
            {"FGSM": 0.8, "PGD": Rate(torch.arange(10) < 5)}, {"FGSM": 0.8, "PGD": 0.45}, clean=0.98
        ),
        "certified_beside_attacked": figures.certified_beside_attacked({"0.1": both, "0.2": both}, limits={"0.1": 0.8}),
        "audit_matrix": figures.audit_matrix({"good": report("fine", "fine"), "bad": report("fine", "", "broken")}),
    }  # fmt: skip


FRAMES = {"mask_slider": 3, "certified_beside_attacked": 2}
KEY_NUMBERS = {  # what the text alternative must say, worked out by hand from the data above
    "mask_slider": "flat: loss from 0.25 to 2.25, reported slopes 100 % exactly 0; cut: loss from 0.25 to 2.25, "
    "reported slopes none at all",
    "suite_bars": "alone: FGSM 80.0 %, PGD 50.0 %; worst case so far: FGSM 80.0 %, PGD 45.0 %; clean: 98.0 %",
    "certified_beside_attacked": "at σ = 0.2, between 90.0 % and 95.0 % at 0, between 50.0 % and 80.0 % at 0.5",
    "audit_matrix": "good: nothing found; bad: zero-gradient broken",
}  # fmt: skip


@pytest.fixture(scope="module")
def every() -> dict[str, go.Figure]:
    return made()


@pytest.mark.parametrize("name", KEY_NUMBERS)
def test_figure_keeps_the_rules_of_the_book(every: dict[str, go.Figure], name: str) -> None:
    keeps_the_rules(every[name], KEY_NUMBERS[name])


@pytest.mark.parametrize("name", KEY_NUMBERS)
def test_slider_moves_on_a_page_without_a_kernel(every: dict[str, go.Figure], name: str) -> None:
    slider_moves(every[name], FRAMES.get(name, 0))


def test_bounds_stay_bounds_between_the_radii() -> None:
    fig = made()["certified_beside_attacked"]
    gap, upper, lower, wall = fig.data
    assert upper.line.shape == "hv" and lower.line.shape == "vh" and wall.x == (None, None)  # 0.2 has no limit
    corners = list(zip(gap.x, gap.y, strict=True))
    assert corners[:3] == [(0, 90), (0, 50), (0.5, 50)]  # down first: below the next point the lower bound is its own
    assert (0.5, 95) in corners and (0.5, 80) in corners  # across first


def test_a_check_that_was_left_out_has_its_own_sign() -> None:
    fig = made()["audit_matrix"]
    (table,) = fig.data
    assert [list(row) for row in table.text] == [["✓", "✓"], ["✓", "–"], ["–", "✗"]]
    assert table.customdata[2][1] == "zero-gradient is broken" and table.customdata[1][1] == "not checked"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.mask_slider([0, 1], {"a": ([0, 1, 2], None)}), "as offsets"),
        (lambda: figures.suite_bars({"a": 1}, {"b": 1}), "expected .'a'. as alone"),
        (lambda: figures.certified_beside_attacked({1: {"certified": curve(1, 1, 1)}}), "certified and attacked"),
        (
            lambda: figures.certified_beside_attacked({1: {"certified": curve(1, x=[0]), "attacked": curve(1, x=[1])}}),
            "span 0 to 0 and 1 to 1",
        ),
        (lambda: figures.audit_matrix({}), "audits is empty"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_sentence(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
