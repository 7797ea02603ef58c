"""An experiment runs what its chapter declares, by the settings that it records, and finds recorded runs by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robrep import data
from robrep.attacks import PGD, Linf
from robrep.book import experiment, results
from robrep.book.experiment import Experiment, Settings, Trial, at_scale, table
from robrep.book.parameters import ParameterError
from robrep.evaluation import accuracy, robust_accuracy
from robrep.methods import AdversarialTraining, Supervised

YAML = """
dataset: {about: the data set, value: digits}
test_images: {about: test images, smoke: 20, demo: 30, lite: 40, full: 50}
few_images: {about: random test images, value: 8}
eps: {about: radius, smoke: 0.1, demo: 0.1, lite: 8/255, lite colour-digits: 0.2, full: 8/255}
widths: {about: hidden units, value: [4]}
epochs: {about: epochs, value: 1}
lr: {about: learning rate, value: 0.01}
steps: {about: attack steps, value: 1}
"""


class Net(nn.Module):
    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, widths[0]), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chapter called "toy", and folders of its own."""
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "live"))
    monkeypatch.setenv("ROBREP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "toy.yaml"
    file.write_text(YAML)
    monkeypatch.setattr(experiment, "settings_file", lambda chapter: file)
    table.cache_clear()
    yield file
    table.cache_clear()


def made(**parameters: Any) -> Experiment:
    """The toy chapter."""
    exp = Experiment("toy", {"SCALE": "smoke"} | parameters)

    @exp.networks(keep=("encoder", "head"))
    def networks(row: str, s: Settings, d: experiment.Data) -> dict[str, nn.Module]:
        return {"encoder": Net(d.x_test[0].numel(), s.widths), "head": nn.Linear(s.widths[-1], d.classes)}

    exp.row("standard", "Standard", lambda n, s: Supervised(n.encoder, n.head))

    @exp.row("at", "Adversarial training")
    def at(n: Any, s: Settings) -> nn.Module:
        return AdversarialTraining(n.encoder, n.head, PGD(s.steps), Linf(s.eps))

    @exp.training
    def train(t: Trial) -> None:
        t.fit(t.method(), epochs=t.s.epochs, batch_size=64, lr=t.s.lr)

    @exp.judge
    def judge(t: Trial) -> Any:
        model = nn.Sequential(t.n.encoder, t.n.head)
        robust = robust_accuracy(model, t.d.x_few, t.d.y_few, PGD(1), Linf(t.s.eps))
        return {"clean": accuracy(model, t.d.x_test, t.d.y_test), "robust": robust}, {
            "line": {"x": [0], "y": [t.s.eps]}
        }

    @exp.study("count", "A count")
    def count(t: Trial) -> Any:
        return {"images": float(len(t.d.x_test))}

    return exp


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``fit`` was called with."""
    seen: list[dict[str, Any]] = []
    real = experiment.fit

    def fit(method: nn.Module, x: Any, y: Any, **options: Any) -> Any:
        seen.append(options | {"method": method})
        return real(method, x, y, **options)

    monkeypatch.setattr(experiment, "fit", fit)
    return seen


# --- the table and the settings ---------------------------------------------------------------------------------------


def test_the_table_is_read_as_it_is_meant() -> None:
    lines = table("toy")
    assert lines["widths"].at("demo") == (4,) and lines["test_images"].at("lite") == 40
    assert lines["eps"].at("full") == 8 / 255 and lines["eps"].at("lite", "colour-digits") == 0.2
    assert at_scale("toy", "lite", "colour-digits")["eps"] == 0.2 and at_scale("toy", "lite")["eps"] == 8 / 255
    assert at_scale("toy", "lite", "colour-digits")["dataset"] == "colour-digits"


@pytest.mark.parametrize("line", ["eps: {value: 1}", "eps: {about: a, smoke: 1, demo: 1, lite: 1}",
                                  "eps: {about: a, value: 1, huge: 2}"])  # fmt: skip
def test_a_line_without_its_meaning_or_a_scale_is_refused(toy: Path, line: str) -> None:
    toy.write_text(line)
    with pytest.raises(ValueError, match="eps is .*expected about, and value or smoke, demo, lite, full"):
        table("toy")


def test_every_chapter_has_a_table_without_gaps() -> None:
    folder = Path(experiment.__file__).parent / "settings"
    for file in folder.glob("*.yaml"):
        assert "TODO" not in file.read_text(), file


def test_settings_cannot_be_changed_and_note_what_is_read() -> None:
    s = Settings("toy", "smoke", at_scale("toy", "smoke"))
    assert s.eps == s["eps"] == 0.1 and s.get("nothing") is None and "lr" in s
    assert s.was_read == {"eps"}, "neither asking whether it is there nor plain() reads"
    s.plain(), s.variant(), repr(s), s == s, hash(s)
    assert s.was_read == {"eps"}
    with pytest.raises(AttributeError, match="settings cannot be changed"):
        s.eps = 0.2
    with pytest.raises(AttributeError, match="toy has no setting 'epss'"):
        s.epss  # noqa: B018
    with pytest.raises(KeyError, match="setting is 'epss', expected one of dataset"):
        s["epss"]
    with pytest.raises(ValueError, match="setting is 'epss'.*did you mean 'eps'"):
        s.changed({"epss": 1})
    with pytest.raises(ValueError, match="eps is 'far', expected something like"):
        s.changed({"eps": "far"})
    assert s.changed({"widths": [8, 8]}).widths == (8, 8) and s.widths == (4,)


def test_a_variant_names_what_differs_and_only_that() -> None:
    s = Settings("toy", "smoke", at_scale("toy", "smoke"))
    assert s.changed({"eps": 0.1, "epochs": 1}).variant() == "" and s.changed({"eps": 0.1}) == s
    assert (
        s.changed({"lr": 0.1, "eps": 0.2}).variant() == s.changed({"eps": 0.2, "lr": 0.1}).variant() == "eps=0.2-lr=0.1"
    )
    assert Settings("toy", "smoke", at_scale("toy", "smoke", "colour-digits")).variant() == ""


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"SETTINGS": {"epss": 1}}, "SETTINGS is 'epss'"),
        ({"SETTINGS": {"eps": None}}, r"SETTINGS\['eps'\] is None"),
        ({"SCALE": "huge"}, "SCALE is 'huge'"),
        ({"SEED": -1}, "SEED is -1"),
        ({"PART": "5/4"}, "PART is '5/4', expected the part of all runs to make, such as 1/4"),
        ({"SEEED": 1}, "parameter is 'SEEED', which no chapter has"),
    ],
)
def test_parameters_are_refused_by_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Experiment("toy", parameters)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_ran(calls: list[dict[str, Any]]) -> None:
    t = made().run("at", seed=2, eps=0.05, epochs=2, lr=0.5, steps=3)
    (call,) = calls
    assert (call["epochs"], call["lr"], call["seed"]) == (2, 0.5, 2)
    assert call["method"].adversary.attack.steps == 3 and call["method"].adversary.threat == Linf(0.05)
    (file,) = (results.live_folder() / "toy").glob("*.json")
    assert file.name == "smoke-digits-at-2-eps=0.05-epochs=2-lr=0.5-steps=3.json"
    record = results.load_run("toy", file.stem)
    assert record.settings == json.loads(json.dumps(t.s.plain())) and record.settings["eps"] == 0.05
    assert set(record.read or ()) == set(record.settings), "the toy reads all of them"
    assert "0.05" in record["robust"].attack and record.curves["line"]["y"] == [0.05]
    assert record.minutes == pytest.approx(t.minutes) and record["clean"] == t["clean"]
    assert len(record.curves["training_cross_entropy"]["y"]) == 2 and record.weights is None, (
        "a variant keeps no weights"
    )
    assert record.data["n_test"] == 20 and record.data["split"] == "test"


def test_a_run_is_made_once(calls: list[dict[str, Any]]) -> None:
    exp = made()
    assert exp.run("at") is exp.run("at", seed=0, eps=0.1) and len(calls) == 1
    assert exp.run("at", eps=0.2) is not exp.run("at") and exp.run("at", 1) is not exp.run("at") and len(calls) == 3


@pytest.mark.parametrize(("row", "changes", "message"), [("ats", {}, "row is 'ats'"), ("at", {"epss": 1}, "'epss'"),
                                                         ("at", {"epochs": "many"}, "epochs is 'many'")])  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_does(
    calls: list[dict[str, Any]], row: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made().run(row, **changes)
    assert not calls


def test_settings_of_one_s_own_are_the_run_s(calls: list[dict[str, Any]]) -> None:
    exp = made(SETTINGS="{'eps': 0.3}", SEED="4", ROWS="at")
    trained = exp.train()
    assert list(trained) == ["at"] and trained["at"].s.eps == 0.3 and trained["at"].seed == 4
    assert calls[0]["method"].adversary.threat == Linf(0.3) and not trained["at"].main
    assert exp.run("at", eps=0.1).main


def test_a_study_does_everything_by_itself() -> None:
    exp = made(ROWS="count")
    assert exp.train()["count"]["images"].value == 20 and exp.rows == ["count"] and made().rows == ["standard", "at"]
    with pytest.raises(ValueError, match="metric is 'clean', expected one of 'images'"):
        exp.train()["count"]["clean"]


def test_unread_settings_are_reported_by_name() -> None:
    exp = made(ROWS="standard,count")
    exp.train()
    assert exp.unread() == ["steps"]
    exp.run("at")
    assert exp.unread() == []


def test_the_few_are_a_random_part() -> None:
    d = made().data()
    assert len(d.few) == 8 and d.few.tolist() != list(range(8)) and torch.equal(d.x_few, d.x_test[d.few])
    assert torch.equal(d.few, made().data().few) and d is not made().data()
    exp = made()
    assert (
        exp.data()
        is exp.data(exp.settings.changed({"eps": 0.3}))
        is not exp.data(exp.settings.changed({"few_images": 9}))
    )


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_recorded_gives_what_was_asked_for_or_nothing(calls: list[dict[str, Any]]) -> None:
    exp = made()
    main, other = exp.run("at"), exp.run("at", eps=0.2)
    exp.run("at", seed=1)
    calls.clear()
    again = made(RECORDED="yes")
    found = again.run("at")
    assert found.record is not None and found["clean"] == main["clean"] and found.history == main.history
    for name in ("encoder", "head"):
        ours, theirs = (getattr(t.n, name).state_dict() for t in (main, found))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again.run("at", eps=0.2)["robust"] == other["robust"] and again.run("at", seed=1).seed == 1
    assert again.run("at").when.startswith("recorded on ") and main.when == "this run"
    for ask, message in (
        (
            lambda: again.run("at", lr=0.5),
            "no recorded run of at at smoke on digits with seed 0 and lr = 0.5; the nearest, ",
        ),
        (lambda: again.run("at", seed=7), "no recorded run of at at smoke on digits with seed 7"),
        (
            lambda: made(RECORDED=True, DATASET="colour-digits").run("at"),
            "no recorded run of at at smoke on colour-digits",
        ),
        (
            lambda: made(RECORDED=True, ROWS="at", SETTINGS={"epochs": 3}).train(),
            "epochs = 3; the nearest, .*, has epochs = 1",
        ),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            ask()
    assert not calls


def test_a_setting_that_a_run_did_not_read_makes_no_difference() -> None:
    made().run("standard")
    assert made().find("standard", steps=9).row == "standard"
    with pytest.raises(FileNotFoundError, match="eps = 0.3"):
        made().find("standard", eps=0.3)


def test_of_an_older_record_counts_what_newer_runs_of_its_row_read() -> None:
    settings = at_scale("toy", "smoke") | {"steps": 7}
    facts = {"name": "digits", "split": "test", "n_train": 1, "n_test": 1, "note": "", "fingerprint": "x"}
    results.record("toy", "smoke-digits-standard-5", scale="smoke", row="standard", seed=5, settings=settings,
                   metrics={"clean": 0.5}, data=facts, minutes=0)  # fmt: skip
    with pytest.raises(FileNotFoundError, match="steps = 1; the nearest, .*, has steps = 7"):
        made().find("standard", seed=5)  # unknown what it read
    made().run("standard", seed=1)
    assert made().find("standard", seed=5).settings["steps"] == 7
    with pytest.raises(FileNotFoundError, match="eps = 0.3"):
        made().find("standard", seed=5, eps=0.3)


def test_a_run_is_found_at_another_scale_and_by_what_an_old_variant_says() -> None:
    made(SCALE="demo").run("standard")
    exp = made(SETTINGS={"eps": 0.4})
    assert exp.find("standard", scale="demo").scale == "demo", "settings of one's own are those of one's own scale"
    assert len(exp.load("standard", scale="demo").d.x_test) == 30
    path = results.record(
        "toy", "smoke-digits-at-0-steps=7", scale="smoke", row="at", seed=0, variant="steps=7", metrics={"clean": 0.5},
        settings={k: v for k, v in at_scale("toy", "smoke").items() if k != "steps"} | {"gone": 1},
        data={"name": "digits", "split": "test", "n_train": 1, "n_test": 1, "note": "", "fingerprint": "x"}, minutes=0,
    )  # fmt: skip
    assert made().find("at", steps=7).path == path
    assert made().restore(results.load_run("toy", path.stem)).s.steps == 7


def test_what_a_page_names_by_its_scale_is_found_whatever_settings_say() -> None:
    made().run("standard")
    own = made(SETTINGS={"eps": 0.3})
    own.run("standard")
    assert own.find("standard", scale="smoke").settings["eps"] == 0.1 and own.find("standard").settings["eps"] == 0.3
    again = made(SETTINGS={"eps": 0.3}, RECORDED=True)
    with pytest.raises(FileNotFoundError, match="no recorded run of standard at smoke on colour-digits"):
        again.run("standard", dataset="colour-digits")
    own.run("standard", dataset="colour-digits")
    assert again.run("standard", dataset="colour-digits").s.plain()["eps"] == 0.3, "what is loaded is what was run"


def test_of_two_equal_records_the_one_that_would_be_named_so_is_found() -> None:
    main = made().run("standard")
    facts = {"settings": main.s.plain(), "seed": 0, "scale": "smoke", "row": "standard", "minutes": 0}
    for variant in ("again", "steps=9"):
        results.record("toy", f"smoke-digits-standard-0-{variant}", **facts, variant=variant, metrics={"other": 1.0},
                       data=results.data_facts(main.d.dataset))  # fmt: skip
    assert made().find("standard").variant == ""


def test_a_run_with_many_changes_has_a_name_that_a_file_can_have() -> None:
    width = (4, *range(10, 70), 4)
    t = made().run("standard", widths=width)
    assert len(t.s.variant()) < 150 and made().find("standard", widths=width).variant == t.s.variant()
    assert t.s.variant() != made().settings.changed({"widths": (*width[:-2], 70, 4)}).variant()


def test_a_curve_gives_its_rate_at_a_radius() -> None:
    curve = {"x": [0.0, 0.1], "y": [0.5, 0.25], "low": [0.4, 0.2], "high": [0.6, 0.3]}
    rate = experiment.rate_at(curve, 0.1, 20, "PGD")
    assert (rate.value, rate.low, rate.high, rate.n, rate.unit, rate.attack) == (0.25, 0.2, 0.3, 20, "fraction", "PGD")
    with pytest.raises(ValueError):
        experiment.rate_at(curve, 0.2, 20)


def test_points_of_a_sweep_are_found() -> None:
    exp = made(SWEEP=True)
    exp.sweep("standard", seeds=(0, 1), eps=[0.1, 0.2])
    points = exp.points("standard", "eps", (0.1, 0.2), seeds=(0, 1), scale="smoke")
    assert {value: [run.seed for run in runs] for value, runs in points.items()} == {0.1: [0, 1], 0.2: [0, 1]}
    assert points[0.1][0].variant == "", "a point that is the table's own is the main run"


def test_the_parts_of_a_sweep_make_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, str]] = []

    def run(exp: Experiment, row: str, seed: int, **changes: Any) -> None:
        asked.append((row, seed, exp.settings.changed(changes).variant()))

    monkeypatch.setattr(Experiment, "run", run)

    def swept(**parameters: Any) -> list[tuple[str, int, str]]:
        asked.clear()
        exp = made(**parameters)
        exp.sweep("standard", "at", seeds=(0, 1, 2))
        exp.sweep("at", eps=[0.1, 0.2], widths=[(2,), (3, 3)], lr=0.5)
        exp.sweep("at", seeds=(1,), eps=[0.1])
        return list(asked)

    whole = swept(SWEEP=True)
    assert len(whole) == 11 and whole[-1] == whole[3] == ("at", 1, "") and not swept()
    assert whole[9] == ("at", 0, "eps=0.2-widths=(3, 3)-lr=0.5")
    parts = [set(swept(SWEEP=True, PART=f"{k}/3")) for k in (1, 2, 3)]
    assert sorted(run for part in parts for run in part) == sorted(set(whole)) and {len(part) for part in parts} == {
        3,
        4,
    }


def test_the_book_s_own_run_loads_what_is_not_live(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(SCALE="demo").train()
    calls.clear()
    trained = made(SCALE="demo").train(live=("at",))
    assert [t.record is None for t in trained.values()] == [False, True] and len(calls) == 1
    for own in ({"SETTINGS": {"lr": 0.02}}, {"SEED": 7}):  # nobody recorded these
        assert all(t.record is None for t in made(SCALE="demo", **own).train(live=("at",)).values())


def test_once_goes_by_the_settings_that_were_read() -> None:
    exp, count = made(), []

    @exp.once
    def foundation(s: Settings, kind: str) -> object:
        count.append(s.lr if kind == "a" else s.epochs)
        return object()

    s = exp.settings
    first = foundation(s, "a")
    other = s.changed({"eps": 0.7})
    assert foundation(other, "a") is first and other.was_read == {"lr"}, "a kept result counts as read, too"
    assert foundation(s.changed({"lr": 0.2}), "a") is not first and foundation(s, "b") is not first
    assert count == [0.01, 0.2, 1]


def test_the_settings_are_shown_with_their_meaning() -> None:
    shown = repr(made(SETTINGS={"lr": 0.5}).settings_table())
    assert "8/255" in shown and "radius" in shown and "this run: smoke, with lr=0.5" in shown


def test_same_seed_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> list[torch.Tensor]:
        torch.manual_seed(torch.seed())  # where the global state stands decides nothing
        return list(made().run("at").n.encoder.state_dict().values())

    one = weights()
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "other"))
    assert all(torch.equal(a, b) for a, b in zip(one, weights(), strict=True))


def test_data_of_images_that_stay_on_disk_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    found = data.load("digits")
    monkeypatch.setattr(data, "load", lambda name: found)
    assert made().data().x_train.data_ptr() == found.x_train.data_ptr()
