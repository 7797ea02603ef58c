"""One check of parameters for papermill, ``reproduce``, ``make`` and a plan: what is meant, or one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robrep.book import reproduce
from robrep.book.experiment import table
from robrep.book.parameters import check, checked, convert
from robrep.book.site.run import ChapterError, check_parameters

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = (
    *("attacks", "judging_robustness", "vae_urkle", "simclr_urkle", "byorl"),
    *("smooth_encoders", "worst_case_mi", "cropd", "comparison"),
)
TABLE = {
    "epochs": (1, 20, 10, 100),
    "lr": (1e-3, 1, 1e-3, 1e-3),
    "split": ("train", "train", "train+val", "train+val"),
    "widths": ((8, 8), (32, 64), (32, 64), (64, 64)),
    "relative_step": (None, None, None, 0.3),
    "augment": (False, True, True, True),
    "vae": ((8, 8), (16,), (8,), "a/name"),
}


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "records"))
    return tmp_path / "records"


@pytest.mark.parametrize("name", ["RECORDED", "SWEEP"])
@pytest.mark.parametrize("value", [False, "False", "false", "no", "No", "0", "off", 0, np.bool_(False), " no "])
def test_every_no_is_a_no_and_every_yes_a_yes(name: str, value: Any) -> None:
    yes = {"False": "True", "false": "true", "no": "yes", "No": "Yes", "0": "1", "off": "on", " no ": " yes "}
    for one, meant in ((value, False), (yes.get(value, not value) if isinstance(value, str) else not value, True)):
        assert convert(name, one, False) is meant
        assert checked({name: one}, {})[name] is meant
        assert check({name: one}, {name: True}) == check_parameters({name: one}, {name: True}, "c") == {name: meant}


MEANT = [
    ("SEED", "0", 0),
    ("SEED", 3, 3),
    ("SEED", np.int64(3), 3),
    ("SEEDS", "(0, 1)", (0, 1)),
    ("SEEDS", [0, "1"], (0, 1)),
    ("SEEDS", 2, (2,)),
    ("SEEDS", range(2), (0, 1)),
    ("ROWS", ["at", "byorl"], "at,byorl"),
    ("ROWS", "at, byorl", "at,byorl"),
    ("SETTINGS", "", {}),
    ("SETTINGS", {"widths": [8, 16]}, {"widths": (8, 16)}),
    ("SETTINGS", {"widths": (8, 16)}, {"widths": (8, 16)}),
    ("SETTINGS", "{'widths': (8, 16), 'lr': 1}", {"widths": (8, 16), "lr": 1}),
    ("SETTINGS", '{"augment": false, "relative_step": null}', {"augment": False, "relative_step": None}),
    ("SETTINGS", {"augment": "no", "lr": "0.5", "epochs": "2"}, {"augment": False, "lr": 0.5, "epochs": 2}),
    ("SETTINGS", {"split": "train+val", "vae": [4]}, {"split": "train+val", "vae": (4,)}),
    ("SETTINGS", {"vae": "b/name", "lr": np.float32(0.5)}, {"vae": "b/name", "lr": 0.5}),
]


@pytest.mark.parametrize(("name", "value", "meant"), MEANT)
def test_what_papermill_yaml_and_a_command_line_give_is_what_is_meant(name: str, value: Any, meant: Any) -> None:
    found = checked({name: value}, TABLE)[name]
    assert found == meant and type(found) is type(meant)
    assert checked({name: found}, TABLE)[name] == meant, "checked again, nothing changes"


REFUSED = [
    ("SCALE", "big", "SCALE is 'big', expected one of 'smoke', 'demo', 'lite', 'full'"),
    ("SCALE", None, "SCALE is None"),
    ("DATASET", None, "DATASET is None, expected text"),
    ("SEED", 1.5, "SEED is 1.5, expected an integer of at least 0"),
    ("SEED", "1.5", "SEED is '1.5', expected an integer of at least 0"),
    ("SEED", "one", "SEED is 'one'"),
    ("SEED", -1, "SEED is -1"),
    ("SEED", True, "SEED is True"),
    ("SEED", float("nan"), "SEED is nan"),
    ("SEEDS", [0, 1.5], r"SEEDS\[1\] is 1.5"),
    ("SEEDS", [], "SEEDS is \\[\\], expected at least one seed"),
    ("RECORDED", "perhaps", "RECORDED is 'perhaps', expected yes or no"),
    ("RECORDED", 2, "RECORDED is 2, expected yes or no"),
    ("SWEEP", None, "SWEEP is None, expected yes or no"),
    ("ROWS", 3, "ROWS is 3, expected text"),
    ("SETTINGS", "beta", "SETTINGS is 'beta', expected a mapping"),
    ("SETTINGS", [1], r"SETTINGS is \[1\], expected a mapping"),
    ("SETTINGS", {"epoch": 3}, "SETTINGS is 'epoch', expected one of .*did you mean 'epochs'"),
    ("SETTINGS", {"epochs": "many"}, r"SETTINGS\['epochs'\] is 'many', expected something like 1 or 20 or 10 or 100"),
    ("SETTINGS", {"epochs": True}, r"SETTINGS\['epochs'\] is True"),
    ("SETTINGS", {"lr": float("inf")}, r"SETTINGS\['lr'\] is inf"),
    ("SETTINGS", {"split": 3}, r"SETTINGS\['split'\] is 3, expected something like 'train' or 'train\+val'"),
    ("SETTINGS", {"widths": 8}, r"SETTINGS\['widths'\] is 8"),
    ("SETTINGS", {"augment": "perhaps"}, r"SETTINGS\['augment'\] is 'perhaps', expected yes or no"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        checked({name: value}, TABLE)


def test_a_setting_that_a_chapter_does_not_have_ends_the_command_in_a_sentence(capsys: pytest.CaptureFixture) -> None:
    assert reproduce.main(["vae_urkle", "SCALE=smoke", "SETTINGS={'epoch_vae': 3}"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"robrep.book.reproduce: SETTINGS is 'epoch_vae', expected one of .*'epochs_vae'\?\)\n", said)


@pytest.mark.parametrize("name", ["SEEED", "SEDE", "SCALA", "DATSET", "ROW", "SETTING", "RECORD", "SWEEPS"])
def test_a_misspelt_parameter_which_papermill_would_ignore_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"parameter is '{name}', which no chapter has .did you mean"):
        checked({"SEED": 0, name: "1"}, TABLE)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_name_of_a_chapter_is_taken_for_a_misspelt_parameter(chapter: str) -> None:
    """So that its cells can be run again."""
    cells = reproduce.cells(ROOT / "book" / f"{chapter}.ipynb")
    names = {name for cell in cells for name in re.findall(r"\b[A-Z][A-Z_0-9]+\b(?= *(?:=|,.*=)[^=])", cell["source"])}
    own = set(reproduce.defaults(ROOT / "book" / f"{chapter}.ipynb")) | {"SCALES", "SEEDS"}  # tuples
    for name in names - own:
        checked({name: "text"}, {})
    assert len(names - own) >= 3


def test_the_ways_in_agree() -> None:
    """A command line, a Python call and a plan of runs give the same values, and refuse in the same words."""
    known = {"SCALE": "demo", "SEED": 0, "RATE": 0.5, "TIMES": (1, 2), "SETTINGS": {}, "RECORDED": False}
    texts = {"SCALE": "lite", "SEED": "3", "RATE": "1", "TIMES": "[3]", "SETTINGS": "{'a': 1}", "RECORDED": "no"}
    values = {"SCALE": "lite", "SEED": 3, "RATE": 1, "TIMES": [3], "SETTINGS": {"a": 1}, "RECORDED": False}
    meant = {"SCALE": "lite", "SEED": 3, "RATE": 1.0, "TIMES": (3,), "SETTINGS": {"a": 1}, "RECORDED": False}
    assert reproduce.parse([f"{k}={v}" for k, v in texts.items()], known) == check(values, known) == meant
    assert check_parameters(values, known, "c") == check_parameters(texts, known, "c") == meant
    with pytest.raises(ChapterError, match="^c: SEED is 1.5, expected an integer of at least 0$"):
        check_parameters({"SEED": 1.5}, known, "c")
    with pytest.raises(ValueError, match="SEED is given twice, as '1' and '2'"):
        reproduce.parse(["SEED=1", "SEED=2"], known)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_checks_its_parameters_before_anything_else(chapter: str) -> None:
    """Cells up to the experiment run with wrong parameters, as papermill would write them, and end in one sentence."""
    notebook = ROOT / "book" / f"{chapter}.ipynb"
    cells = [cell["source"] for cell in reproduce.cells(notebook) if "reproduce" in cell["tags"]]
    (at,) = [i for i, source in enumerate(cells) if f'exp = Experiment("{chapter}", globals())' in source]
    before = "".join(cells[:at]) + cells[at].partition("Experiment(")[0]
    assert not re.search(r"\b(fit|train|data\.load)\(", before)
    namespace = {"__name__": "__main__", **reproduce.defaults(notebook)}
    for source in cells[:at]:
        exec(source, namespace)
    for name, value, message in (
        ("SEED", 1.5, "SEED is 1.5"),
        ("SETTINGS", "epochs", "SETTINGS is 'epochs'"),
        ("SETTINGS", {"eps": "far"}, r"SETTINGS\['eps'\] is 'far'"),
        ("RECORDED", "maybe", "RECORDED is 'maybe'"),
    ):
        with pytest.raises(ValueError, match=message):
            exec(cells[at], {**namespace, name: value})
    given = {"RECORDED": "no", "SEED": "1", "SETTINGS": '{"eps": 0.05}', "SCALE": "smoke"}
    exec(cells[at], namespace := {**namespace, **given})
    exp = namespace["exp"]
    assert exp.recorded is False and exp.seed == 1 and exp.settings.eps == 0.05


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_setting_is_of_a_kind_that_its_line_takes(chapter: str) -> None:
    """What stands in a table may be given by hand, as it is or as text."""
    lines = {name: tuple(line.values.values()) for name, line in table(chapter).items()}
    for name, line in lines.items():
        for value in line:
            for given in (value, json.loads(json.dumps(value)), repr(value) if not isinstance(value, str) else value):
                assert checked({"SETTINGS": {name: given}}, lines)["SETTINGS"] == {name: value}


def test_a_record_that_could_not_be_written_stops_a_run_before_it_trains(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.parent.joinpath("file").touch()
    monkeypatch.setenv("ROBREP_RESULTS", str(records.parent / "file" / "records"))  # stands for a read-only folder
    with pytest.raises(OSError, match="records, where records go, cannot be written .*; set ROBREP_RESULTS to a"):
        checked({"SEED": 0, "RECORDED": False}, {})
    assert checked({"SEED": 0, "RECORDED": "yes"}, {})["RECORDED"] is True, "nothing will be written"
