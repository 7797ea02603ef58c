"""The shared figures: valid, light, described in words made from the data, and moving without a kernel."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from robrep import progress
from robrep.book import figures
from robrep.evaluation import Rate
from robrep.gaussians import Gaussian

RADII = (0.0, 0.05, 0.1, 0.2)
NAMES = ("Standard", "TRADES", "VAE + Urkle")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def moved(x: torch.Tensor, radius: float) -> torch.Tensor:
    return (x + radius * torch.ones_like(x)).clamp(0, 1)


def said(right: int) -> list[tuple[str, bool]]:
    return [(f"{i}, {90 + i} %", i < right) for i in range(6)]


def curves(drop: float) -> dict:
    r = np.array(RADII)
    return {
        n: {"x": r, "y": 0.9 - drop * r * i, "low": 0.85 - drop * r * i, "high": 0.95 - drop * r * i}
        for i, n in enumerate(NAMES)
    }


def sweep() -> dict:
    return {
        n: [{"β": b, "clean": [0.97 - 0.01 * b, 0.95 - 0.01 * b], "robust": 0.2 * b + 0.01 * i} for b in (0.5, 1, 2)]
        for i, n in enumerate(NAMES)
    }


def clouds(shift: float) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(9, 20, 2)) + shift


def every(x: torch.Tensor) -> dict[str, go.Figure]:
    """One of each figure on small data, NaNs included where a run may leave some."""
    t = np.linspace(-0.2, 0.2, 11)
    path = np.linspace([0, 0], [1, 0.5], 5)
    urkle = (1.0, math.nan, 1 / 3)
    history = [{"epoch": e, "reconstruction": 3.0 / e, "urkle": urkle[e - 1], "note": "a"} for e in (1, 2, 3)]
    return {
        "image_grid": figures.image_grid({"clean": x, "attacked": moved(x, 0.1)}, {"attacked": said(2)}, columns=4),
        "attack_slider": figures.attack_slider(
            x, {r: moved(x, r) for r in RADII}, {r: said(6 - i) for i, r in enumerate(RADII)}, clean_captions=said(6)
        ),
        "accuracy_against_radius": figures.accuracy_against_radius(curves(1.0), marked_radius=0.1, chance=0.1),
        "accuracy_slider": figures.accuracy_slider({b: curves(b) for b in (0.5, 1, 2)}, marked_radius=0.1),
        "trade_off": figures.trade_off(sweep(), radius=0.1),
        "label_curve": figures.label_curve([10, 100], {"AT": {"clean": [0.5, 0.9], "robust": [0.15, [0.4, 0.6]]}}),
        "training_curves": figures.training_curves({"AT": history, "VAE + Urkle": history}),
        "bound_bars": figures.bound_bars(NAMES, [2.0, 0.7, 0.5], [9.0, 3.0, 1.5], classes=10, bound=5, clean=[0.1] * 3),
        "latent_clouds": figures.latent_clouds(clouds(0), clouds(2), [f"digit {i}" for i in range(9)]),
        "latent_clouds_slider": figures.latent_clouds(clouds(0), {r: clouds(10 * r) for r in RADII}, list(range(9))),
        "kl_picture": figures.kl_picture("mean"),
        "kl_scale": figures.kl_picture("scale"),
        "kl_sigma": figures.kl_picture("sigma"),
        "objective_line": figures.objective_line(t, {"u": t**2}, {"u": 2 * t}, radius=0.1),
        "objective_surface": figures.objective_surface(
            np.linspace(-1, 1, 7), np.linspace(-1, 1, 5), np.random.default_rng(0).random((5, 7)),
            {"from δ = 0": path, "from a random start": path[:, ::-1]}, reached={"from δ = 0": range(5)},
        ),
    }  # fmt: skip


FRAMES = {
    "attack_slider": 4, "accuracy_slider": 3, "latent_clouds_slider": 4, "kl_picture": 16,
    "kl_scale": 14, "kl_sigma": 14, "objective_surface": 5,
}  # fmt: skip
KEY_NUMBERS = {  # what the text alternative must say, worked out by hand from the data above
    "image_grid": "attacked: 2 of 6 predictions right",
    "attack_slider": "radius ε = 0.2: 3 of 6 predictions right",
    "accuracy_against_radius": "VAE + Urkle: 90.0 % at 0, 70.0 % at 0.1, 50.0 % at 0.2",
    "accuracy_slider": "At β = 2: Standard: 90.0 % at 0, 90.0 % at 0.1",
    "trade_off": "TRADES: β 0.5 gives 95.5 % clean and 11.0 % robust",
    "label_curve": "AT, robust: 15.0 % at 10, 50.0 % at 100",
    "training_curves": "reconstruction 3 to 1, urkle 1 to 0.333",
    "bound_bars": "Standard: loss 2, bound 9, says nothing (above M); TRADES: loss 0.7, bound 3, allows guessing",
    "latent_clouds": "adversarial: 2.8 on average",
    "latent_clouds_slider": "0.2: 2.8 on average",
    "kl_picture": "KL[p ‖ p′] (nats) from 0 at 0 to 4.5 at 3",
    "kl_scale": "KL[p ‖ p′] (nats) from 1.125 at 0.4 to 1.125 at 3",
    "kl_sigma": "KL[p ‖ p′] (nats) from 7.031 at 0.4 to 0.125 at 3",
    "objective_line": "slope of u: -0.4 at -0.2, 0 at 0, 0.4 at 0.2",
    "objective_surface": "2 attacks over 4 steps: from δ = 0 from 0 to 4",
}


@pytest.fixture(scope="module")
def made(x: torch.Tensor) -> dict[str, go.Figure]:
    return every(x)


@pytest.mark.parametrize("name", KEY_NUMBERS)
def test_figure_keeps_the_rules_of_the_book(made: dict[str, go.Figure], name: str) -> None:
    fig = made[name]
    text = fig.to_json()
    again = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    go.Figure({k: again[k] for k in ("data", "layout")}, frames=again.get("frames"))  # plotly's own validation
    assert KEY_NUMBERS[name] in fig.layout.meta["alt"]
    assert "\n" not in fig.layout.meta["alt"] and "$" not in text.replace("xaxis", "")
    assert len(text) < 120_000, f"{name} weighs {len(text)} bytes"
    assert fig.layout.height and fig.layout.autosize and fig.layout.width is None
    assert fig.layout.paper_bgcolor is None and fig.layout.plot_bgcolor is None and fig.layout.font.color is None
    assert {t.type for t in fig.data} <= {"scatter", "bar", "image", "contour"}  # plotly's cartesian bundle has these
    if not name.startswith(("image", "attack")):  # rounded: no number of the data has more than four digits
        data = re.sub(r'"colorscale":\[\[.*?\]\]', "", json.dumps(again["data"], separators=(",", ":")))
        numbers = re.findall(r"(?<=[\[,:])-?\d*\.\d+(?:e-?\d+)?(?=[\],}])", data)
        assert all(len(re.sub(r"e.*|\D", "", n).strip("0")) <= 4 for n in numbers)


@pytest.mark.parametrize("name", KEY_NUMBERS)
def test_slider_moves_on_a_page_without_a_kernel(made: dict[str, go.Figure], name: str) -> None:
    fig = made[name]
    assert len(fig.frames) == FRAMES.get(name, 0)
    if not fig.frames:
        assert not fig.layout.sliders
        return
    steps = fig.layout.sliders[0].steps
    assert [s.args[0][0] for s in steps] == [f.name for f in fig.frames] and len({f.name for f in fig.frames}) == len(
        steps
    )
    assert fig.frames[0].to_plotly_json()["data"] != fig.frames[-1].to_plotly_json()["data"]
    shown = fig.frames[fig.layout.sliders[0].active]
    for trace, data in zip(shown.traces, shown.data, strict=True):
        for key, value in data.to_plotly_json().items():
            assert fig.data[trace].to_plotly_json()[key] == value  # what is first seen is the slider's position
    if not name.startswith("attack"):  # axes that stay where they are, or frames could not be compared
        for axis in [*fig.select_xaxes(), *fig.select_yaxes()]:
            assert axis.range is not None or axis.matches is not None


def test_images_are_opaque_png_with_their_true_pixels(x: torch.Tensor) -> None:
    from PIL import Image

    fig = figures.image_grid({"clean": x})
    image = Image.open(io.BytesIO(base64.b64decode(fig.data[0].source.split(",")[1])))
    pixels = np.asarray(image)
    assert pixels.shape == (8, 6 * 8 + 5, 4)
    np.testing.assert_array_equal(pixels[:, 9:17, 0], (x[1, 0] * 255).round().numpy())
    assert (pixels[:, 9:17, 3] == 255).all() and (pixels[:, 8, 3] == 0).all()
    assert figures.image_grid({"colour": torch.rand(2, 3, 4, 4)}).data[0].type == "image"


def test_long_rows_go_on_below(x: torch.Tensor) -> None:
    fig = figures.image_grid({"a": x, "b": x}, columns=4)
    images = list(fig.select_traces({"type": "image"}))
    assert len(images) == 4 and [a.text for a in fig.layout.annotations] == ["a", "b", "a", "b"]
    assert images[0].y0 < images[1].y0 < images[2].y0


def test_wrong_predictions_are_marked_by_text_and_colour() -> None:
    p = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    pairs = figures.captions(p, torch.tensor([0, 1]), ["cat", "dog"])
    assert pairs == [("cat, 90 %", True), ("cat, 70 %", False)]
    fig = figures.image_grid({"clean": torch.rand(2, 1, 4, 4)}, {"clean": pairs})
    right, wrong = fig.data[1], fig.data[2]
    assert right.text == ("cat<br>90 %",) and right.textfont.color is None
    assert wrong.text == ("<b>✗ cat<br>70 %</b>",) and wrong.textfont.color


def test_perturbation_is_grey_where_nothing_changed(x: torch.Tensor) -> None:
    assert (figures.perturbation(x, x) == 0.5).all()
    assert figures.perturbation(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1)).allclose(torch.ones(1))


def test_rates_and_seeds_become_intervals() -> None:
    rate = Rate(torch.arange(500) < 450)
    fig = figures.accuracy_against_radius({"AT": {"x": [0, 0.1], "y": [rate, {"value": 0.5, "low": 0.4, "high": 0.6}]}})
    low, high = fig.data[1].customdata[0]
    assert low == pytest.approx(100 * rate.low, abs=0.01) and high == pytest.approx(100 * rate.high, abs=0.01)
    assert list(fig.data[1].customdata[1]) == [40, 60]
    seeds = figures.trade_off({"AT": [{"β": 1, "clean": [0.9, 0.8, 0.7], "robust": 0.5}]}).data[0]
    assert seeds.x == (80,) and seeds.error_x.array == (10,) and seeds.error_x.arrayminus == (10,)


def test_styles_tell_methods_apart_in_greyscale_and_stay_the_same() -> None:
    look = figures.styles(["Standard", "AT", "TRADES", "AE + TRADES", "VAE + Urkle"])
    assert len(set(look.values())) == len({s.color for s in look.values()}) == 5
    assert len({(s.dash, s.symbol) for s in look.values()}) == 5
    assert (
        figures.styles(["other", "vae_urkle"])["vae_urkle"]
        == figures.styles(["VAEUrkle"])["VAEUrkle"]
        == look["VAE + Urkle"]
    )
    many = figures.styles([f"m{i}" for i in range(12)])
    assert len({(s.color, s.dash, s.symbol) for s in many.values()}) == 12


def test_kl_does_not_see_the_scale_but_distance_does() -> None:
    fig = figures.kl_picture("scale", shift=2.0)
    kl_line, distance_line = fig.data[2], fig.data[4]
    assert set(kl_line.y) == {2.0}  # shift^2 / 2, whatever the scale
    assert distance_line.y[-1] > 5 * distance_line.y[0]
    own = figures.kl_picture("mean", measures={"W2²": lambda p, q: (p.mean - q.mean).square().sum(-1)})
    assert own.data[2].y[-1] == pytest.approx(9) and own.data[3].name == "W2²: 1"


def test_plane_holds_its_three_images_and_projects() -> None:
    g = torch.Generator().manual_seed(0)
    x0, x1, x2 = torch.rand(3, 1, 4, 4, generator=g) * 0.2 + 0.4
    grid = figures.plane(x0, x1, x2, size=5)
    assert grid.images.shape == (25, 1, 4, 4)
    xy = grid.coordinates(torch.stack([x0, x1, x2]))
    assert xy[0].abs().max() < 1e-6 and xy[1, 1].abs() < 1e-6
    assert xy[1, 0].item() == pytest.approx((x1 - x0).norm().item(), rel=1e-5)
    assert xy[2].norm().item() == pytest.approx((x2 - x0).norm().item(), rel=1e-5)
    back = grid.coordinates(grid.images).reshape(5, 5, 2)  # rows follow b, columns a
    torch.testing.assert_close(back[2, :, 0], grid.a.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(back[:, 3, 1], grid.b.float(), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="one line"):
        figures.plane(x0, x1, x0 + 2 * (x1 - x0))


def test_umap_embeds_all_draws_together() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 15, 6, generator=g) + 20 * torch.arange(2)[:, None, None]
    a = figures.umap_embed(z, seed=1)
    assert a.shape == (2, 15, 2) and a.dtype == np.float32 and np.isfinite(a).all()
    np.testing.assert_array_equal(a, figures.umap_embed(z, seed=1))
    gap = np.linalg.norm(a[0].mean(0) - a[1].mean(0))
    assert gap > 2 * a[0].std()
    with pytest.raises(ValueError, match="at least 4"):
        figures.umap_embed(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="finite"):
        figures.umap_embed(torch.full((5, 2), math.nan))


ONE = torch.rand(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.image_grid({}), "rows is empty"),
        (lambda: figures.image_grid([ONE]), "rows is a list"),
        (lambda: figures.image_grid({"a": ONE + 1}), r"expected finite values in \[0, 1\]"),
        (lambda: figures.image_grid({"a": ONE, "b": ONE[:1]}), "same number in each"),
        (lambda: figures.image_grid({"a": ONE[:, :1].expand(-1, 2, -1, -1)}), "2 channels"),
        (lambda: figures.image_grid({"a": ONE}, {"a": ["1"]}), "one for each image"),
        (lambda: figures.image_grid({"a": ONE}, {"b": ["1", "2"]}), "row 'b'"),
        (lambda: figures.attack_slider(ONE, {}), "adversaries is empty"),
        (lambda: figures.attack_slider(ONE, {0: ONE, 1: ONE}, {0: ["1", "2"]}), "one list for each"),
        (lambda: figures.captions(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)), "summing to 1"),
        (lambda: figures.accuracy_against_radius({}), "curves is empty"),
        (lambda: figures.accuracy_against_radius({"a": {"x": [1]}}), r"lacks \['y'\]"),
        (lambda: figures.accuracy_against_radius({"a": {"x": [1, 2], "y": [0.5]}}), "one length"),
        (lambda: figures.accuracy_slider({1: curves(1), 2: {"AT": curves(1)["TRADES"]}}), "at β = 2"),
        (lambda: figures.trade_off({"a": [{"β": 1, "clean": 1}]}), r"lacks \['robust'\]"),
        (lambda: figures.trade_off({"a": []}), "sweep 'a' is empty"),
        (lambda: figures.label_curve([0, 10], {"a": {"clean": [0, 1]}}), "at least 1 each"),
        (lambda: figures.label_curve([10], {"a": {"clean": [0, 1]}}), "one for each count"),
        (lambda: figures.label_curve([10], {"a": {"dirty": [0]}}), "expected one of 'clean', 'robust'"),
        (lambda: figures.training_curves({"a": []}), "history of 'a' is empty"),
        (lambda: figures.bound_bars(["a"], [1], [1, 2], classes=10, bound=5), "expected one, above 0"),
        (lambda: figures.bound_bars(["a"], [1], [2], classes=100, bound=3), r"more than ln\(100\) = 4.6052"),
        (lambda: figures.latent_clouds(clouds(0), clouds(0)[:3], range(9)), "images x draws x 2"),
        (lambda: figures.latent_clouds(clouds(0), clouds(0), ["a"]), "one for each image"),
        (lambda: figures.kl_picture("meen"), "did you mean 'mean'"),
        (lambda: figures.kl_picture("sigma", [0.0, 1.0]), "increasing numbers, positive"),
        (lambda: figures.objective_line([0, 1], {"a": [0]}, {"a": [0, 1]}), "as offsets"),
        (lambda: figures.objective_surface([0, 1], [0, 1], [1, 2], {"a": [[0, 0]]}), "each point of the grid"),
        (lambda: figures.objective_surface([0, 1], [0, 1], [1, 2, 3, 4], {"a": [[0, 0]], "b": [[0, 0]] * 2}), "paths"),
        (lambda: figures.control(print, n=[]), "no values"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_sentence(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_no_widget_is_made_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []
    assert not figures.live()
    assert figures.control(calls.append, radius=[0.1, 0.2]) is None and not calls
    # a kernel that a front end started is live; one that papermill started, or marked as a batch run, is not
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.kernel = object()  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    for module in ("google.colab", "ipykernel"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)
    for name in (*progress.SESSIONS, "ROBREP_BATCH"):
        monkeypatch.delenv(name, raising=False)
    front_ends = {
        "JupyterLab 4 and Notebook 7": ("JPY_SESSION_NAME", "chapter.ipynb", ""),
        "VS Code": ("VSCODE_PID", "1", ""),
        "JupyterLab 3": (None, None, "python3.11 /venv/bin/jupyter-lab --port 8888"),
        "Notebook 6": (None, None, "/usr/bin/python3 /usr/bin/jupyter-notebook"),
        "JupyterHub": (None, None, "python -m jupyterhub.singleuser"),
    }
    for name, value, started in front_ends.values():
        with monkeypatch.context() as patch:
            patch.setattr(progress, "started_by", lambda started=started: started)
            if name:
                patch.setenv(name, value)
            assert not figures.live(), "no kernel at all"
            patch.setitem(sys.modules, "ipykernel", sys)
            assert figures.live() and progress.front_end() == "notebook"
            patch.setenv("ROBREP_BATCH", "1")
            assert not figures.live()
            patch.delenv("ROBREP_BATCH")
            for batch in ("python -m papermill a b", "python /bin/jupyter-nbconvert --execute", "python -m pytest"):
                patch.setattr(progress, "started_by", lambda batch=batch: batch)
                assert not figures.live()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(progress, "started_by", lambda: "")
    assert not figures.live(), "nothing is known"
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__vsc_ipynb_file__", "/x.ipynb", raising=False)
        assert figures.live(), "VS Code with a kernel elsewhere"
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert figures.live()


@pytest.mark.slow
def test_sliders_appear_in_a_kernel_that_vs_code_started() -> None:
    code = """
import os, sys
from jupyter_client.manager import start_new_kernel
kept = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST" and not k.startswith(("JPY_", "VSCODE_"))}
for more in ({}, {"VSCODE_PID": "1"}, {"JPY_SESSION_NAME": "x"}):
    manager, client = start_new_kernel(env=kept | more)
    line = "from robrep.book import figures; print(type(figures.control(lambda a: a, a=[1, 2])).__name__)"
    client.execute_interactive(line, output_hook=lambda m: print(m["content"].get("text", ""), end=""))
    client.stop_channels(); manager.shutdown_kernel(now=True)
"""
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["NoneType", "VBox", "VBox"], done.stderr


def test_control_calls_with_the_first_and_with_the_chosen_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["robrep.book.figures.kernel"], "live", lambda: True)
    calls: list = []
    widget = figures.control(lambda radius, steps: calls.append((radius, steps)), radius=[0.1, 0.2], steps=[1, 5])
    assert calls == [(0.1, 1)]
    widget.children[0].value = 0.2
    widget.children[1].value = 5
    assert calls == [(0.1, 1), (0.2, 1), (0.2, 5)]


def test_plotly_and_umap_are_imported_only_when_used() -> None:
    heavy = "('plotly', 'umap', 'IPython', 'ipywidgets')"
    code = f"import robrep.book.figures, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gaussians_are_given_to_measures_as_one_row_for_each_position() -> None:
    shapes = []

    def measure(p: Gaussian, q: Gaussian) -> torch.Tensor:
        shapes.append((p.mean.shape, q.scale.shape))
        return q.mean.sum(-1)

    figures.kl_picture("mean", [0.0, 1.0, 2.0], measures={"m": measure})
    assert shapes == [((3, 1), (3, 1))]
