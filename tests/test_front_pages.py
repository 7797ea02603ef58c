"""The introduction says what its photograph's record says, and the pages that open the book hold to what they show."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from robrep import data
from robrep.book.figures.first_look import Walk, map_of, one_attack, walks
from robrep.gaussians import Gaussian

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "book" / "photograph"
RECORD = json.loads((FOLDER / "record.json").read_text())
INTRO = (ROOT / "book" / "intro.md").read_text()


@pytest.fixture
def photograph(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that made the pictures."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_photograph", ROOT / "benchmarks" / "photograph.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_two_pictures_are_what_the_record_says(photograph: ModuleType) -> None:
    clean, attacked = (photograph.read(FOLDER / name) for name in ("clean.png", "attacked.png"))
    assert torch.equal(clean, photograph.photograph()), "the clean picture is scikit-learn's own"
    assert photograph.change(attacked, clean) == 8 and RECORD["largest_change"] == RECORD["settings"]["eps"] == "8/255"
    crop = {"top": photograph.TOP, "left": photograph.LEFT, "side": photograph.SIDE}
    assert RECORD["settings"]["crop"] == crop and RECORD["settings"]["seed"] == photograph.SEED
    assert sum((FOLDER / name).stat().st_size for name in ("clean.png", "attacked.png")) <= 600_000


def test_the_introduction_says_what_the_record_says(photograph: ModuleType) -> None:
    clean, attacked = RECORD["clean"][0]["name"], RECORD["attacked"][0]["name"]
    assert clean != attacked and attacked not in [said["name"] for said in RECORD["clean"]]
    assert f"The network says: <strong>{clean}</strong>" in INTRO
    assert f'The network says: <strong class="robrep-wrong">{attacked}</strong>' in INTRO
    assert (
        f"sees a {attacked}" in INTRO
        and f"at 1/255 the network sees a {RECORD['smaller']['1/255'][0]['name']}" in INTRO
    )
    assert all(answers[0]["name"] != clean for answers in RECORD["smaller"].values())
    for credit in (RECORD["photograph"]["by"], RECORD["photograph"]["licence"], RECORD["photograph"]["source"]):
        assert credit in INTRO, "the photograph's licence asks for its credit"
    steps = RECORD["settings"]["attack"].removeprefix("PGD-")
    assert f"{steps} steps of PGD on the pooled features, within 8/255" in " ".join(INTRO.split())
    assert f"calls it a {attacked}" in (ROOT / "README.md").read_text()
    named = [a for answers in (RECORD["clean"], RECORD["attacked"], *RECORD["smaller"].values()) for a in answers]
    assert {a["index"]: a["name"] for a in named} == dict(photograph.NAMES)


def test_the_photographs_attack_stays_in_the_ball(photograph: ModuleType) -> None:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 5))
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    found = photograph.attacked(encoder, pixels, 8, steps=5)
    assert found.dtype == torch.uint8 and photograph.change(found, pixels) == 8
    z, z_adv = encoder(pixels / 255), encoder(found / 255)
    noise = (pixels.int() + torch.randint(-8, 9, pixels.shape)).clamp(0, 255)
    assert photograph.distance(z_adv, z) > photograph.distance(encoder(noise / 255), z)


def test_one_attack_shows_each_radius() -> None:
    x = data.load("digits").images("test")[:1]
    more = {"0.10": (x + 0.1).clamp(0, 1), "0.20": (x + 0.2).clamp(0, 1)}
    fig = one_attack(x, more, {"0.10": ("4, 90%", True), "0.20": ("8, 70%", False)}, clean="4, 99%", start=0)
    assert [frame.name for frame in fig.frames] == ["0.10", "0.20"] and fig.layout.sliders[0].active == 0
    assert fig.frames[1].data[2].text == ("<b>✗ 8, 70%</b>",) and fig.data[4].text == ("4, 90%",)
    assert fig.layout.meta["alt"].endswith("Clean: 4, 99%. By radius: 0.10: 4, 90%; 0.20: 8, 70% (wrong).")
    with pytest.raises(ValueError, match="said names .* expected an answer for each of"):
        one_attack(x, more, {}, clean="")
    with pytest.raises(ValueError, match=r"expected \(1, 1, H, W\) for both"):
        one_attack(x, {"0.10": torch.rand(2, 1, 8, 8)}, {"0.10": ("", True)}, clean="")


def test_walks_lie_in_the_plane_of_the_classes() -> None:
    """Classes at (0, 0), (4, 0) and (0, 4) of three dimensions: the plane leaves the third out."""
    torch.manual_seed(0)
    labels = torch.arange(3).repeat(20)
    centres = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])
    codes = Gaussian(centres[labels] + 0.1 * torch.randn(60, 3), torch.ones(60, 3))
    _, plane = map_of(codes, labels)
    assert torch.allclose(plane.T @ plane, torch.eye(2), atol=1e-5) and plane[2].abs().max() < 0.05
    path = Gaussian(torch.stack([centres[0], centres[1]]), torch.ones(2, 3))
    fig = walks({"one": Walk(codes, labels, path), "two": Walk(codes, labels, path)}, "abc")
    assert [frame.name for frame in fig.frames] == ["0", "1"] and fig.layout.sliders[0].active == 1
    x, y = (torch.tensor(v) for v in (fig.data[4].x, fig.data[4].y))
    assert torch.hypot(x[1] - x[0], y[1] - y[0]) == pytest.approx(4, abs=0.05)
    assert fig.layout.yaxis.scaleanchor == "x" and fig.layout.yaxis2.scaleanchor == "x2", "equal units"
    with pytest.raises(ValueError, match="the same number for all"):
        walks({"one": Walk(codes, labels, path), "two": Walk(codes, labels, codes)}, "abc")


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium")
def test_the_divider_moves_by_keys_and_is_not_needed(tmp_path: Path) -> None:
    """Without the script both pictures stand side by side; with it they lie over each other."""
    from playwright.sync_api import sync_playwright

    for name in ("clean.png", "attacked.png"):
        shutil.copy(FOLDER / name, tmp_path / name)
    for name in ("robrep.css", "robrep-wipe.js"):
        shutil.copy(ROOT / "book" / "_assets" / name, tmp_path / name)
    (tmp_path / "page.html").write_text(
        '<!doctype html><link rel="stylesheet" href="robrep.css"><script src="robrep-wipe.js" defer></script>'
        '<div class="robrep-wipe" data-left="clean" data-right="attacked"><p><img alt="a" src="clean.png"> '
        '<img alt="b" src="attacked.png"></p></div>'
    )
    boxes = "[...document.images].map(image => image.getBoundingClientRect()).map(r => [r.left, r.width])"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for script in (False, True):
            page = browser.new_context(java_script_enabled=script, viewport={"width": 390, "height": 800}).new_page()
            page.goto((tmp_path / "page.html").as_uri())
            if not script:
                sides = [image.bounding_box() for image in page.locator("img").all()]
                assert sides[0]["x"] + sides[0]["width"] <= sides[1]["x"] and sides[0]["y"] == sides[1]["y"]
                continue
            (left, width), (left_2, width_2) = page.evaluate(boxes)
            assert left == left_2 and width == width_2 <= 390
            control = page.get_by_role("slider", name="Divider between the clean and the attacked picture")
            control.focus()
            page.keyboard.press("End")
            clip = "getComputedStyle(document.images[1]).clipPath"
            assert page.evaluate(clip).endswith("100%)")
            page.keyboard.press("Home")
            assert page.evaluate(clip).endswith("0%)") and control.get_attribute("aria-valuetext").startswith(
                "0 % clean"
            )
        browser.close()


def test_the_names_that_the_first_look_counts() -> None:
    """Nine lines of an attack, as the page and the introduction say."""
    cells = json.loads((ROOT / "book" / "first_look.ipynb").read_text())["cells"]
    source = next(s for s in ("".join(c["source"]) for c in cells) if s.startswith("def attack("))
    assert len(source.split("\n\n\n")[0].splitlines()) == 9
    for text in ("".join(cells[0]["source"]), INTRO):
        assert "nine lines" in text
