"""The chapter's figures: curves with a slider, an ensemble beside its part, and sizes that intervals imply."""

from __future__ import annotations

import pytest

from robrep.book.figures import curves_slider, ensemble_against_part, implied_sizes


def test_curves_follow_the_slider_in_axes_that_stay() -> None:
    positions = {n: {"line": ([0, 1], [0.0, n]), "square": ([0, 1], [0.0, n * n])} for n in (1, 2, 3)}
    fig = curves_slider(positions, x="place", y="value", setting="n", title="Two curves.", start=1)
    assert [frame.name for frame in fig.frames] == ["1", "2", "3"]
    assert list(fig.data[1].y) == [0, 4] and list(fig.frames[2].data[1].y) == [0, 9]
    assert fig.layout.yaxis.range[0] < 0 and fig.layout.yaxis.range[1] > 9
    assert fig.layout.meta["alt"].startswith("Two curves. ") and "n = 3, square: 0 to 9" in fig.layout.meta["alt"]
    logarithmic = curves_slider({1: {"a": ([1, 100], [0, 1])}}, x="", y="", setting="n", title="", log_x=True)
    assert logarithmic.layout.xaxis.type == "log" and list(logarithmic.layout.xaxis.range) == [0, 2]


def test_curves_must_be_the_same_at_each_position() -> None:
    with pytest.raises(ValueError, match="at n = 2 the curves are"):
        curves_slider({1: {"a": ([0], [0])}, 2: {"b": ([0], [0])}}, x="", y="", setting="n", title="")
    with pytest.raises(ValueError, match="the same number of both"):
        curves_slider({1: {"a": ([0, 1], [0])}}, x="", y="", setting="n", title="")


def test_an_ensemble_above_its_part_is_counted() -> None:
    points = {"one": [("a", 40.0, 66.0), ("b", 20.0, 10.0)], "two": [("c", 50.0, 50.0)]}
    fig = ensemble_against_part(points, part="PGD-20", whole="the ensemble")
    alt = fig.layout.meta["alt"]
    assert "1 of 3 points lie above" in alt and "one, a: 40.0 % under PGD-20 and 66.0 % under the ensemble" in alt
    assert [list(t.x) for t in fig.data if t.mode == "markers"] == [[40, 20], [50]]
    with pytest.raises(ValueError, match="points holds no point"):
        ensemble_against_part({"one": []}, part="", whole="")


def test_implied_sizes_stand_beside_the_splits() -> None:
    fig = implied_sizes(
        {"A": (900, 1000, 1100), "B": (60, 70, 80)}, {"A": {"test": 1000}, "B": {"test": 26, "train": 73}}
    )
    names = [t.name for t in fig.data]
    assert names == ["test split", "train split", "implied by the intervals"]
    assert list(fig.data[1].y) == ["B"] and list(fig.data[2].error_x.array) == [100, 10]
    assert "B: 70 implied, test 26, train 73" in fig.layout.meta["alt"]
    with pytest.raises(ValueError, match="sizes lacks 'B'"):
        implied_sizes({"B": (1, 2, 3)}, {})
