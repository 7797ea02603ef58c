"""The figures of the chapter on attacks: valid, light, told in words made from the data, alive without a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def made() -> dict[str, go.Figure]:
    return {
        "ball_picture": figures.ball_picture(steps=3),
        "ascent_curves": figures.ascent_curves(
            {"PGD": [0.1, 0.5, 0.4], "APGD": torch.tensor([0.1, 0.3, 1 / 3])}, {"PGD": [1, 1], "APGD": [2.0, 1.0]}
        ),
        "accuracy_against_calls": figures.accuracy_against_calls(
            {"PGD": curve(0.9, 0.5, 1 / 3), "Square": curve(1, 1, 1)}
        ),
        "accuracy_against_calls_slider": figures.accuracy_against_calls(
            {"0.1": {"PGD": curve(0.9, 0.5, 0.3)}, "0.5": {"PGD": curve(0.7, 0.4, 0.2)}}, setting="α / ε", chance=0.1,
            start=1,
        ),
        "gradient_noise": figures.gradient_noise(
            [1, 10], {"VAE": [1.0, 1 / 3]}, {"VAE": [Rate(torch.arange(10) < 8), 0.75], "other": [0.5, 0.25]}, steps=20
        ),
    }  # fmt: skip


FRAMES = {"ball_picture": 7, "accuracy_against_calls_slider": 2}
KEY_NUMBERS = {  # what the text alternative must say, worked out by hand from the data above
    "ball_picture": "takes 3 steps, each ahead and back to the set",
    "ascent_curves": "PGD from 0.1 to 0.4; APGD from 0.1 to 0.333, its step cut 1 times",
    "accuracy_against_calls": "PGD: 90.0 % at 1, 33.3 % at 20; Square: 100.0 % at 1",
    "accuracy_against_calls_slider": "At α / ε = 0.5: PGD: 70.0 % at 1, 20.0 % at 20",
    "gradient_noise": "gradient of VAE 1 at S = 1, 0.333 at 10; VAE retains 80.0 % with S = 1 and 75.0 % with 10",
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


def test_every_point_of_the_ball_picture_lies_in_its_set() -> None:
    fig = figures.ball_picture((0.9, 0.3), (2.0, 1.0), eps=0.3, steps=4, step_size=0.3)
    ends = [t for t in fig.frames[-1].data if t.name == "iterates"]
    for trace, p in zip(ends, (math.inf, 2), strict=True):
        path = np.array([trace.x, trace.y]).T
        assert path.min() >= 0 and path.max() <= 1
        assert np.linalg.norm(path - [0.9, 0.3], ord=p, axis=1).max() <= 0.3 + 1e-3
    outlines = [t for t in fig.data if t.name == "A(x)"]
    square, disc = (np.array([t.x, t.y]).T for t in outlines)
    assert square.min(0) == pytest.approx([0.6, 0.0], abs=1e-3) and square.max(0) == pytest.approx([1, 0.6], abs=1e-3)
    assert np.linalg.norm(disc - [0.9, 0.3], axis=1).max() <= 0.3 + 1e-3 and disc.max() <= 1


def test_a_halved_step_is_marked_where_it_was_halved() -> None:
    fig = figures.ascent_curves({"APGD": [0.0, 1, 2, 3, 4]}, {"APGD": [2, 2, 1, 0.5]})
    marks = [t for t in fig.data if t.name == "APGD: step halved"]
    assert list(marks[0].x) == [2, 3] and list(marks[0].y) == [2, 3]  # after step 2 and after step 3
    assert list(marks[1].y) == [1, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.ball_picture((0.5, 1.5)), r"expected two pixels in \[0, 1\]"),
        (lambda: figures.ascent_curves({"a": [1, 2]}, {"a": [1, 2]}), "one size for each step"),
        (lambda: figures.ascent_curves({"a": [1, 2]}, {}), "one size for each step"),
        (lambda: figures.accuracy_against_calls({}), "curves is empty"),
        (lambda: figures.accuracy_against_calls({"a": curve(1, 1, x=(0, 1))}), "above 0 on a logarithmic"),
        (
            lambda: figures.accuracy_against_calls({1: {"a": curve(1, 1, 1)}, 2: {"b": curve(1, 1, 1)}}, setting="s"),
            "at s = 2",
        ),
        (lambda: figures.gradient_noise([0, 1], {"a": [1, 1]}, {"a": [1, 1]}), "counts of at least 1"),
        (lambda: figures.gradient_noise([1, 2], {"a": [1]}, {"a": [1, 1]}), "errors of 'a' are 1"),
        (lambda: figures.gradient_noise([1, 2], {"a": [1, 1]}, {"a": [1]}), "rates of 'a' are 1"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_sentence(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
