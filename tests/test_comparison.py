"""What the rows of the comparison cost, and the figures that hold many methods."""

from __future__ import annotations

import pytest
import torch
from figure_rules import keeps_the_rules
from torch import nn

from robrep.book.comparison import ROWS, TRIED, Counter, affordable_epochs, passes, settings_tried
from robrep.book.experiment import at_scale
from robrep.book.figures import against_budget, method_dots, method_plane, transfer_matrix
from robrep.gaussians import Gaussian


@pytest.mark.parametrize("gaussian", [False, True])
def test_counter(gaussian: bool) -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor | Gaussian:
            return Gaussian(2 * x, x.exp()) if gaussian else 2 * x

    f, x = Half(), torch.ones(5, 3, requires_grad=True)
    read = lambda code: (code.mean + code.scale if gaussian else code).sum()  # noqa: E731
    with Counter(f) as counter:
        with torch.no_grad():
            f(x)
        assert (counter.forward, counter.backward, counter.passes) == (5, 0, 2.5)
        torch.autograd.grad(read(f(x)), x)
        assert (counter.forward, counter.backward, counter.passes) == (10, 5, 7.5)
    torch.autograd.grad(read(f(x)), x)
    assert counter.passes == 7.5, "it counts inside its context alone"


def test_budget() -> None:
    assert passes("supervised", 3) == 1 and passes("simclr_urkle", 3) == 11 and passes("cropd", 7) == 3.5
    assert affordable_epochs("supervised", 3, 160) == 160
    assert affordable_epochs("simclr_urkle", 3, 160) == 15
    assert affordable_epochs("byorl", 40, 10) == 1
    for row in ROWS:
        if 2 * passes(row, 3) <= 160:
            assert abs(affordable_epochs(row, 3, 160) * passes(row, 3) / 160 - 1) <= passes(row, 3) / 320


def test_each_method_has_as_many_settings_to_try_and_the_chapter_s_own_are_among_them() -> None:
    own = at_scale("comparison", "demo")
    for row in TRIED:
        points = settings_tried(row)
        assert len(points) == 4 and {k: own[k] for k in points[0]} in points
        assert any("lr" in name for name in points[0])
    with pytest.raises(ValueError, match="row is 'byol'"):
        settings_tried("byol")


def test_against_budget() -> None:
    seeds = {"AT": {100: ([0.5, 0.7], 0.1), 1000: (0.9, [0.4, 0.5])}, "CRoPD": {100: (0.5, 0.0)}}
    fig = against_budget(seeds, [0.5, 0.54])
    keeps_the_rules(fig, "AT (100, 1000 passes): clean 60, 90, attacked 10, 45; CRoPD (100 passes): clean 50")
    assert "untrained encoder has 52 clean" in fig.layout.meta["alt"]
    assert fig.data[0].y == (60.0, 90.0) and fig.data[0].error_y.array == (10.0, 0.0)
    assert fig.data[0].text == ("clean 60", "90") and [a.text for a in fig.layout.annotations] == ["AT", "CRoPD"]
    assert {axis.type for axis in fig.select_xaxes()} == {"log"} and len({t.yaxis for t in fig.data}) == 2
    with pytest.raises(ValueError, match="points is empty"):
        against_budget({"AT": {}}, 0.5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="row is 'vea'"):
        passes("vea", 3)


def test_method_dots() -> None:
    frames = {
        str(eps): {"clean": {"A": 0.9, "B": [0.8, 1.0]}, "robust": {"A": 0.5 - eps, "B": 0.2}} for eps in (0.0, 0.1)
    }
    fig = method_dots(frames, x_title="accuracy (%)", title="Two methods.", prefix="ε = ")
    assert len(fig.frames) == 2 and fig.frames[1].data[1].x == (40.0, 20.0)
    assert fig.data[0].error_x.array == (0.0, 10.0)
    assert "ε = 0.0" in fig.layout.meta["alt"] and "B: clean 90, robust 20" in fig.layout.meta["alt"]
    single = method_dots({"": {"moved": {"A": 2.0}}}, x_title="distance", title="One.", scale=1, log=True)
    assert not single.frames and single.layout.xaxis.type == "log"
    with pytest.raises(ValueError, match="other measures or methods"):
        method_dots({"0": {"clean": {"A": 1}}, "1": {"clean": {"B": 1}}}, x_title="", title="")


def test_method_plane() -> None:
    fig = method_plane(
        {"A": (1.0, [0.2, 0.4]), "B": (2.0, 0.5)}, {"one": ["A"], "two": ["B"]}, x_title="x", y_title="y", title="T."
    )
    assert [t.name for t in fig.data] == ["one", "two"] and fig.data[0].y[0] == pytest.approx(0.3)
    assert "A (one): 1, 0.3" in fig.layout.meta["alt"] and fig.layout.meta["numbered"]
    with pytest.raises(ValueError, match="groups hold"):
        method_plane({"A": (1, 1)}, {"one": []}, x_title="", y_title="", title="")


def test_transfer_matrix() -> None:
    fig = transfer_matrix({"A": {"A": 0.9, "B": 0.25}, "B": {"A": 0.1, "B": 1.0}})
    (cells,) = fig.data
    assert [list(row) for row in cells.z] == [[90, 25], [10, 100]], "rows are shown the images, columns make them"
    assert list(cells.x) == ["1", "2"] and list(cells.y) == ["A  1", "B  2"]
    assert "A: by its own 90%, by others 25% to 25%" in fig.layout.meta["alt"]
    with pytest.raises(ValueError, match="rates of 'B' name .* in this order"):
        transfer_matrix({"A": {"A": 0.9, "B": 0.25}, "B": {"B": 1.0, "A": 0.1}})
