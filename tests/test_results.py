"""Records and published numbers: round trips, every way a file can be broken, and the table made from both."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robrep.book import results
from robrep.book.results import origin, records
from robrep.evaluation import Rate

DATA = {"name": "mnist", "split": "test", "n_train": 60000, "n_test": 10000, "note": "", "fingerprint": "abc"}
REPOSITORY = Path(__file__).parent.parent


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def write(folder, *, row="vae_urkle", scale="lite", seed=0, variant="", **changes):
    facts = {
        "settings": {"scale": scale, "row": row, "beta": 2.0, "radii": (0.0, 0.1)},
        "seed": seed,
        "metrics": {
            "clean": {"value": 0.991, "low": 0.989, "high": 0.993, "n": 10000, "unit": "fraction"},
            "robust": {"value": 0.97, "low": 0.966, "high": 0.973, "unit": "fraction", "attack": "PGD-40, Linf 0.1"},
            "kl": 1.25,
        },
        "data": DATA,
        "minutes": 34.5,
        "curves": {"robust": {"x": [0.0, 0.1], "y": [0.99, 0.97], "xlabel": "radius"}},
        "variant": variant,
    } | changes
    name = results.run_name(scale, facts["data"]["name"], row, seed, variant)
    return results.record("vae_urkle", name, folder=folder, **facts)


def damage(path: Path, change) -> Path:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    return path


# ------------------------------------------------------------------------------------------------- round trip


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = write(tmp_path)
    assert path == tmp_path / "vae_urkle" / "lite-mnist-vae_urkle-0.json"
    run = results.load_run("vae_urkle", path.stem, folder=tmp_path)
    assert (run.scale, run.dataset, run.row, run.seed, run.variant) == ("lite", "mnist", "vae_urkle", 0, "")
    assert run.settings["radii"] == [0.0, 0.1] and run.data == DATA and run.minutes == 34.5
    assert run["clean"] == results.Metric(0.991, 0.989, 0.993, 10000, unit="fraction")
    assert run["robust"].attack == "PGD-40, Linf 0.1" and float(run["kl"]) == 1.25
    assert run.curves["robust"]["y"] == [0.99, 0.97]
    assert run.versions["torch"] == torch.__version__.split("+")[0] or run.versions["torch"] == torch.__version__
    assert run.hardware["auto_precision"] in ("32-true", "16-mixed", "bf16-mixed")
    assert run.hardware["cpu"] and run.hardware["threads"] >= 1 and len(run.code) == 12
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", run.date)
    assert run.weights is None


def test_a_run_says_in_which_precision_it_was_trained(tmp_path):
    for precision, hardware, said in (
        ("32-true", {"auto_precision": "bf16-mixed"}, "32-true"),
        ("auto", {"auto_precision": "bf16-mixed"}, "bf16-mixed"),
        ("auto", {}, "auto"),
    ):
        run = results.load_run("vae_urkle", write(tmp_path).stem, folder=tmp_path)
        assert run.precision == "32-true", "settings that do not name it"
        assert replace(run, settings={"precision": precision}, hardware=hardware).precision == said


def test_a_record_says_nothing_about_the_machine_but_its_hardware(tmp_path):
    text = write(tmp_path).read_text()
    import getpass
    import socket

    assert socket.gethostname() not in text and str(tmp_path) not in text and str(REPOSITORY) not in text
    assert f'"{getpass.getuser()}"' not in text
    assert set(json.loads(text)["hardware"]) <= {
        *("device", "cpu", "cores", "threads", "auto_precision", "gpu", "gpus")
    }


def test_commit_is_of_the_sources_or_unknown(monkeypatch, tmp_path):
    found = results.commit()
    if (REPOSITORY / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", found)
    # outside a checkout, even if some other repository (a virtual environment's) lies around it
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(origin, "_PACKAGE", tmp_path / "site-packages" / "robrep")
    assert results.commit() in (None, found) and not str(results.commit()).endswith("+dirty")


def test_recording_again_replaces_and_drops_weights_that_belong_to_nothing(tmp_path):
    path = write(tmp_path, modules={"encoder": net()})
    write(tmp_path, minutes=1.0)
    assert results.load_run("vae_urkle", path.stem, folder=tmp_path).minutes == 1.0
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_runs_filter_and_sort(tmp_path):
    for scale, row, seed, variant in [
        ("full", "at", 0, ""),
        ("lite", "at", 1, ""),
        ("lite", "at", 0, ""),
        ("lite", "at", 0, "beta=0.5"),
        ("demo", "trades", 0, ""),
    ]:
        write(tmp_path, row=row, scale=scale, seed=seed, variant=variant)
    names = [r.run for r in results.runs("vae_urkle", folder=tmp_path)]
    assert names == ["demo-mnist-trades-0", "lite-mnist-at-0", "lite-mnist-at-1", "lite-mnist-at-0-beta=0.5"] + [
        "full-mnist-at-0"
    ]
    assert len(results.runs("vae_urkle", row="at", scale="lite", variant="", folder=tmp_path)) == 2
    assert len(results.runs("vae_urkle", seed=1, folder=tmp_path)) == 1
    assert results.runs("vae_urkle", dataset="digits", folder=tmp_path) == []
    assert results.runs("another_chapter", folder=tmp_path) == []


def test_live_runs_are_written_to_and_win_over_recorded_ones(tmp_path, monkeypatch):
    book = tmp_path / "checkout"
    (book / "book" / "results").mkdir(parents=True)
    (book / "_config.yml").touch()
    monkeypatch.delenv("ROBREP_RESULTS", raising=False)
    (book / "book" / "deep").mkdir()
    monkeypatch.chdir(book / "book" / "deep")
    write(None, minutes=1.0)
    write(None, minutes=1.0, seed=1)
    assert results.recorded_folder() == book / "book" / "results" == results.live_folder()
    assert len(results.runs("vae_urkle")) == 2
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "live"))
    path = write(None, minutes=2.0)
    assert path.is_relative_to(tmp_path / "live")
    assert [r.minutes for r in results.runs("vae_urkle")] == [2.0, 1.0]
    assert results.load_run("vae_urkle", path.stem).minutes == 2.0


def test_an_installed_robrep_brings_its_records_and_writes_to_the_users_results(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "robrep"
    write(package / "_recorded" / "results")
    monkeypatch.setattr(origin, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBREP_RESULTS", raising=False)
    monkeypatch.setenv("ROBREP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert results.recorded_folder() == package / "_recorded" / "results"
    assert len(results.runs("vae_urkle")) == 1
    assert write(None, seed=1).is_relative_to(tmp_path / "share" / "robrep" / "results")
    assert not (tmp_path / "data").exists()
    assert [r.seed for r in results.runs("vae_urkle")] == [0, 1]


# ------------------------------------------------------------------------------------------------- bad records


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"minutes": math.nan}, ValueError, "minutes is nan"),
        ({"minutes": -1.0}, ValueError, "minutes is -1"),
        ({"metrics": {}}, ValueError, "metrics is empty"),
        ({"metrics": {"clean": math.inf}}, ValueError, "metrics.clean: value is inf"),
        ({"metrics": {"clean": {"low": 0.1}}}, ValueError, "the field value is missing"),
        ({"metrics": {"clean": {"value": 0.5, "low": 0.4}}}, ValueError, "low and high must both be given"),
        ({"metrics": {"clean": {"value": 0.5, "hihg": 0.6}}}, ValueError, "unknown field 'hihg'"),
        ({"metrics": {"clean": "good"}}, TypeError, "metrics.clean is 'good'"),
        ({"settings": {"scale": "lite", "row": "at", "attack": object()}}, TypeError, "settings.attack is a object"),
        ({"settings": {"scale": "lite", "row": "at", "beta": math.nan}}, ValueError, "settings.beta is nan"),
        ({"settings": {"row": "at"}}, ValueError, "scale is not given"),
        ({"settings": {"scale": "lite"}}, ValueError, "row is not given"),
        ({"settings": {"scale": "big", "row": "at"}}, ValueError, "scale is 'big'"),
        ({"data": {k: v for k, v in DATA.items() if k != "note"}}, ValueError, "data.note is missing"),
        ({"curves": {"c": {"x": [1], "y": [1, 2]}}}, ValueError, "curves.c.y must be a list as long as"),
        ({"curves": {"c": {"x": [1], "y": [math.nan]}}}, ValueError, r"curves.c.y\[0\] is nan"),
        ({"curves": {"c": {"x": [1], "y": ["one"]}}}, ValueError, "curves.c.y holds something other"),
        ({"curves": {"c": {"x": [1]}}}, ValueError, "curves.c is no curve"),
        ({"curves": {"c": {"x": [1], "y": [2], "low": [3]}}}, ValueError, "curves.c.low is above curves.c.y"),
        ({"modules": {"encoder": 3}}, TypeError, "expected an nn.Module"),
        ({"modules": {"a.b": nn.Linear(1, 1)}}, ValueError, "without a dot"),
    ],
)
def test_a_bad_record_is_refused_and_nothing_is_written(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path, **change)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    clean = {"value": np.float32(0.5), "low": np.float64(0.25), "high": torch.tensor(0.75), "n": np.int64(10)}
    facts = DATA | {"n_train": np.int64(100), "n_test": np.int32(10)}
    settings = {"scale": "lite", "row": "vae_urkle", "epochs": np.int64(3), "radii": np.array([0.0, 0.5])}
    path = write(tmp_path, seed=np.int64(2), metrics={"clean": clean}, data=facts, settings=settings)
    run = results.load_run("vae_urkle", "lite-mnist-vae_urkle-2", folder=tmp_path)
    assert path.stem == run.run and run.seed == 2 and run.settings["radii"] == [0.0, 0.5] and run.data["n_test"] == 10
    assert run["clean"] == results.Metric(0.5, 0.25, 0.75, 10) and results.say("{}", np.int64(5)) == "5"
    assert results.runs("vae_urkle", seed=np.int64(2), folder=tmp_path) == [run]


def test_a_variant_of_any_text_gets_a_name_and_a_seed_must_be_one(tmp_path):
    for variant, name in (
        ("widths=(8, 8, 8)", "widths=8_8_8"),
        ("widths=[8, 8, 8]", "widths=8_8_8"),
        ("train_split=train+val", "train_split=train_val"),
        ("lr=1e-05-shift=-3.0", "lr=1e-05-shift=-3.0"),
    ):
        assert results.run_name("demo", "digits", "vae", np.int64(1), variant) == f"demo-digits-vae-1-{name}"
        run = results.load_run("vae_urkle", write(tmp_path, variant=variant).stem, folder=tmp_path)
        assert run.variant == variant and results.runs("vae_urkle", variant=variant, folder=tmp_path) == [run]
    for seed in (-1, 1.5, "0", True, None):
        with pytest.raises(ValueError, match="seed is .*, expected an integer of at least 0"):
            results.run_name("demo", "digits", "vae", seed)


@pytest.mark.parametrize("name", ["", "../escape", ".hidden", "a b", "a/b"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    for chapter, run in [(name, "run"), ("chapter", name)]:
        with pytest.raises(ValueError, match="it becomes a file name"):
            results.load_run(chapter, run, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("seed"), "the field seed is missing"),
        (lambda f: f.update(schema=2), "schema is 2, this robrep reads schema 1"),
        (lambda f: f.update(seed="0"), "seed is '0', expected int"),
        (lambda f: f.update(seed=True), "seed is True, expected int"),
        (lambda f: f.update(colour="red"), "colour is no field"),
        (lambda f: f.update(scale="big"), "scale is 'big'"),
        (lambda f: f["metrics"].update(clean=0.9), "metrics.clean is float, expected an object"),
        (lambda f: f["metrics"]["clean"].update(n=1.5), "metrics.clean.n is 1.5, expected int"),
        (lambda f: f["data"].pop("split"), "data.split is missing"),
        (lambda f: f.update(seed=-1), "seed is -1, expected at least 0"),
        (lambda f: f.update(seed=1), "run is 'lite-mnist-vae_urkle-0', expected 'lite-mnist-vae_urkle-1'"),
        (lambda f: f.update(scale="demo"), "run is 'lite-mnist-vae_urkle-0', expected 'demo-mnist-vae_urkle-0'"),
        (lambda f: f.update(run="demo-mnist-vae_urkle-0"), "run is 'demo-mnist-vae_urkle-0', expected 'lite-"),
        (lambda f: f.update(run="demo-mnist-vae_urkle-0", scale="demo"), "expected 'lite-mnist-vae_urkle-0'"),
        (lambda f: f.update(chapter="byorl"), "chapter is 'byorl', expected 'vae_urkle'"),
        (lambda f: f.update(dataset="cifar10"), "dataset is 'cifar10', but data.name is 'mnist'"),
        (lambda f: f["data"].update(split="dev"), "data.split is 'dev', expected one of train, val, test"),
        (lambda f: f["data"].update(n_test=0), "data.n_test is 0, expected at least 1"),
        (lambda f: f["metrics"]["clean"].update(value=0.5), "metrics.clean is low 0.989, value 0.5, high 0.993"),
        (lambda f: f["metrics"]["clean"].update(low=0.999), "metrics.clean is low 0.999, value 0.991"),
        (lambda f: f["metrics"]["clean"].update(low=0.993, high=0.989), "metrics.clean is low 0.993"),
        (lambda f: f["metrics"]["clean"].pop("low"), "metrics.clean.low and metrics.clean.high must both be given"),
        (lambda f: f["metrics"]["clean"].update(n=0), "metrics.clean.n is 0, expected at least 1"),
        (lambda f: f["metrics"].update(clean={"value": 99.1, "unit": "fraction"}), "99.1 of unit fraction, expected 0"),
        (lambda f: f["metrics"].update(clean={"value": 101, "unit": "%"}), "101 of unit %, expected 0 to 100"),
        (lambda f: f["metrics"].update(time={"value": -1, "unit": "s"}), "-1 of unit s, expected at least 0"),
        (lambda f: f["curves"]["robust"].update(low=[0.99, 0.98]), "curves.robust.low is above curves.robust.y"),
        (lambda f: f["curves"]["robust"].update(high=[0.99, 0.96]), "curves.robust.y is above curves.robust.high"),
        (lambda f: f.update(weights="at.safetensors", weights_sha256="0"), "weights is 'at.safetensors', expected"),
        (lambda f: f.update(weights="x.safetensors"), "both be given or both be null"),
        (lambda f: f.update(weights="../x", weights_sha256="0"), "expected the name of a file beside"),
    ],
)
def test_a_broken_record_is_named_with_its_field(tmp_path, change, message):
    path = damage(write(tmp_path), change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        results.runs("vae_urkle", folder=tmp_path)
    assert str(path) in str(error.value)


def test_a_record_copied_to_another_place_is_refused_by_name(tmp_path):
    """Asking for a run at one scale never gives a run at another one."""
    path = write(tmp_path)
    text = path.read_text(encoding="utf-8")
    for chapter, name in (("vae_urkle", "demo-mnist-vae_urkle-0"), ("byorl", path.stem)):
        copy = tmp_path / chapter / f"{name}.json"
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text, encoding="utf-8")
        for read in (lambda c=chapter, n=name: results.load_run(c, n, folder=tmp_path),
                     lambda c=chapter: results.runs(c, folder=tmp_path)):  # fmt: skip
            with pytest.raises(ValueError, match=re.escape(f"{copy}: ") + "(run|chapter) is '.*', expected"):
                read()
        copy.unlink()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seed": 0,', '"seed": 0, "seed": 1,', "holds the key 'seed' twice"),
        ('"beta": 2.0', '"beta": 2.0, "beta": 3.0', "holds the key 'beta' twice"),
        ('"beta": 2.0', '"beta": 1e999', "holds 1e999, expected finite numbers"),
        ('"beta": 2.0', '"beta": -Infinity', "holds -Infinity, expected finite numbers"),
    ],
)
def test_json_that_says_two_things_or_something_infinite_is_named(tmp_path, old, new, message):
    path = write(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        results.load_run("vae_urkle", path.stem, folder=tmp_path)


def test_a_record_cut_short_or_with_nan_is_named(tmp_path):
    path = write(tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is no valid JSON \(cut short\?\)"):
        results.load_run("vae_urkle", path.stem, folder=tmp_path)
    path.write_text(whole.replace("34.5", "NaN"))
    with pytest.raises(ValueError, match="holds NaN"):
        results.load_run("vae_urkle", path.stem, folder=tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is list, expected an object"):
        results.load_run("vae_urkle", path.stem, folder=tmp_path)


def test_a_run_or_metric_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match="recorded: lite-mnist-vae_urkle-0"):
        results.load_run("vae_urkle", "lite-mnist-at-0", folder=tmp_path)
    with pytest.raises(KeyError, match="it has clean, kl, robust"):
        results.runs("vae_urkle", folder=tmp_path)[0]["rubost"]


@pytest.mark.parametrize("failing", ["weights", "record"])
def test_a_failure_on_the_way_leaves_the_old_record_or_none(tmp_path, monkeypatch, failing):
    method = {"weights": "write_bytes", "record": "write_text"}[failing]

    def full_disk(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full_disk)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, modules={"encoder": net()})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []

    path = write(tmp_path, modules={"encoder": net(1)})
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full_disk)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, minutes=1.0, modules={"encoder": net(2)})
    run = results.load_run("vae_urkle", path.stem, folder=tmp_path)
    assert run.minutes == 34.5 and set(results.load_weights(run)) == {"encoder"}
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".safetensors"]


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_an_os_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError):
            write(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_where_records_go_is_tested_before_a_training_and_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "new" / "results"))
    assert results.check_writable() == tmp_path / "new" / "results" and not list(results.check_writable().iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path / "file" / "results"))  # stands for a folder that is read-only
    with pytest.raises(OSError, match=r"file/results, where records go, cannot be written \(.*\); set ROBREP_RESULTS"):
        results.check_writable()


# ------------------------------------------------------------------------------------------------- weights


def test_weights_come_back_in_float32_to_half_precision(tmp_path):
    saved, head = net(1), nn.Linear(2, 2)
    saved(torch.rand(8, 3))  # batch-norm statistics, integers among them
    path = write(tmp_path, modules={"encoder": saved, "head": head})
    run = results.load_run("vae_urkle", path.stem, folder=tmp_path)
    fresh = net(2)
    states = results.load_weights(run, encoder=fresh)  # any subset
    assert set(states) == {"encoder", "head"}
    for name, value in fresh.state_dict().items():
        wanted = saved.state_dict()[name]
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted.half().float() if value.is_floating_point() else wanted)
    assert path.with_suffix(".safetensors").stat().st_size < 2000


def test_rounded_weights_are_the_recorded_ones(tmp_path):
    encoder, fresh = net(1), net(2)
    results.round_weights(encoder)
    path = write(tmp_path, modules={"encoder": encoder})
    results.load_weights(results.load_run("vae_urkle", path.stem, folder=tmp_path), encoder=fresh)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


def test_weights_that_are_too_large_or_beyond_float16_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the weights take 2,\d{3},\d{3} bytes, expected at most 2,000,000"):
        write(tmp_path, modules={"encoder": nn.Linear(1100, 1000)})
    huge = nn.Linear(2, 2)
    nn.init.constant_(huge.weight, 1e6)
    with pytest.raises(ValueError, match="not finite in float16"):
        write(tmp_path, modules={"encoder": huge})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_weights_that_are_missing_or_tampered_with_are_refused(tmp_path):
    path = write(tmp_path, modules={"encoder": net()})
    (listed,) = results.runs("vae_urkle", folder=tmp_path)
    one = results.load_run("vae_urkle", path.stem, folder=tmp_path)
    weights = path.with_suffix(".safetensors")
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 1
    weights.write_bytes(payload)
    for run in (listed, results.load_run("vae_urkle", path.stem, folder=tmp_path)):
        with pytest.raises(ValueError, match="its hash differs"):
            results.load_weights(run, encoder=net())
    weights.unlink()
    for run in (listed, results.load_run("vae_urkle", path.stem, folder=tmp_path)):
        with pytest.raises(FileNotFoundError, match="is missing"):
            results.load_weights(run, encoder=net())
    assert results.load_weights(one, encoder=net()), "those that it was loaded with"
    without = results.load_run("vae_urkle", write(tmp_path, seed=1).stem, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="recorded without weights"):
        results.load_weights(without, encoder=net())


RACE = """
import sys
from tests.test_results import net, results, write
who, folder = int(sys.argv[1]), sys.argv[2]
import torch
for count in range(30):
    module = net()
    torch.nn.init.constant_(module[0].weight, who)
    write(folder, modules={"encoder": module}, metrics={"who": float(who)})
"""


def test_two_processes_that_record_one_run_leave_a_whole_record_and_readers_see_one_or_the_other(tmp_path):
    path = write(tmp_path, modules={"encoder": net()}, metrics={"who": 0.0})
    line = [sys.executable, "-c", RACE]
    writers = [subprocess.Popen([*line, str(who), str(tmp_path)], cwd=REPOSITORY) for who in (1, 2)]
    seen, encoder = set(), net()
    while any(writer.poll() is None for writer in writers):
        run = results.load_run("vae_urkle", path.stem, folder=tmp_path)
        results.load_weights(run, encoder=encoder)
        seen.add(run["who"].value)
        assert run["who"].value == 0 or (encoder[0].weight == run["who"].value).all(), "one's number, another's weights"
    assert [writer.returncode for writer in writers] == [0, 0]
    run = results.load_run("vae_urkle", path.stem, folder=tmp_path)
    assert results.load_weights(run, encoder=encoder) and run["who"].value in (1, 2) and len(seen) >= 2
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.with_suffix(".safetensors").name]


def test_weights_that_do_not_fit_change_no_module(tmp_path):
    path = write(tmp_path, modules={"encoder": net(), "head": nn.Linear(2, 2)})
    run = results.load_run("vae_urkle", path.stem, folder=tmp_path)
    encoder = net(5)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    for wrong in (nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(ValueError, match="head does not fit the weights"):
            results.load_weights(run, encoder=encoder, head=wrong)
    with pytest.raises(ValueError, match="modules is 'decoder', expected one of 'encoder', 'head'"):
        results.load_weights(run, encoder=encoder, decoder=net())
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


# ------------------------------------------------------------------------------------------------- published


def test_every_published_file_is_valid_and_cited():
    references = (REPOSITORY / "book" / "references.bib").read_text(encoding="utf-8")
    assert "nguyen2022" in results.papers()
    for paper in results.papers():
        values = results.published(paper)
        assert values and f"{{{paper}," in references
        for v in values:
            assert v.unit != "%" or 0 <= v.value <= 100
            assert v.spread is None or v.spread >= 0


def test_the_ten_numbers_of_the_first_chapter():
    values = results.published("nguyen2022", table="1")
    pairs = zip(values[::2], values[1::2], strict=True)  # clean and adversarial, row by row
    assert {clean.row: f"{clean} / {adversarial}" for clean, adversarial in pairs} == {
        "Standard Training": "99.3 ± 0.1 / 1.0 ± 0.3",
        "AT": "99.0 ± 0.1 / 98.5 ± 0.2",
        "TRADES": "99.1 ± 0.1 / 98.3 ± 0.1",
        "AE + TRADES": "99.1 ± 0.1 / 96.6 ± 0.4",
        "VAE + Urkle": "99.1 ± 0.1 / 98.0 ± 0.1",
    }
    assert {v.dataset for v in values} == {"mnist"}
    assert all((v.threat is None) == (v.column == "Clean Acc") for v in values)
    assert {v.threat["eps"] for v in values if v.threat} == {0.1}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A checkout of its own, with a copy of the published numbers, no runs, and the working folder inside."""
    for kind in ("results", "published"):
        (tmp_path / "book" / kind).mkdir(parents=True)
    (tmp_path / "_config.yml").touch()
    source = REPOSITORY / "book" / "published" / "nguyen2022.json"
    (tmp_path / "book" / "published" / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBREP_RESULTS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(schema=7), "schema is 7"),
        (lambda f: f.update(paper="other"), "paper is 'other', expected the name of the file"),
        (lambda f: f["values"][3].pop("row"), "values[3].row is missing"),
        (lambda f: f["values"][3].update(value="98"), "values[3].value is '98', expected int or float"),
        (lambda f: f["values"][1]["threat"].pop("eps"), "values[1].threat.eps is missing"),
        (lambda f: f["values"][1]["match"].update(colum="x"), "values[1].match.colum is no field"),
        (lambda f: f["values"].append(f["values"][0]), "values[122] repeats table 1, row Standard Training"),
    ],
)
def test_a_broken_published_file_is_named_with_its_field(book, change, message):
    damage(book / "book" / "published" / "nguyen2022.json", change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        results.published("nguyen2022")
    assert "nguyen2022.json" in str(error.value)


def test_unknown_papers_and_tables_are_refused_by_name(book):
    with pytest.raises(ValueError, match=r"paper is 'nguyen2021'.*did you mean 'nguyen2022'"):
        results.published("nguyen2021")
    with pytest.raises(ValueError, match="table is '9', expected one of '1'"):
        results.paper_against_ours("nguyen2022", "9")


def cells(table, method, number):
    return next(dict(zip(table.columns, r, strict=True)) for r in table.rows if number in r and method in r)


def test_statuses_gap_and_count_are_made_from_the_records(book):
    def table():
        return results.paper_against_ours("nguyen2022", "1")

    assert {r[table().columns.index("Status")] for r in table().rows} == {"not run"}
    assert results.count(results.published("nguyen2022")) == results.Count(
        122, 0, 0, spread=10, compared=0, within=0, commands=118
    )
    assert len(results.runs_behind("nguyen2022")) == 0

    # demo runs and points of a sweep never stand beside a published number
    write(None, scale="demo")
    write(None, variant="beta=0.5")
    write(None, data={**DATA, "name": "fashion_mnist"})
    assert results.count(results.published("nguyen2022")).rerun == 0

    write(None, data={**DATA, "note": "first 1,000 test images"})
    row = cells(table(), "VAE + Urkle", "Adversarial Acc")
    assert row["Status"] == "re-run at lite (shortened schedule; first 1,000 test images)"
    assert (row["Ours (%)"], row["Gap"], row["Paper (%)"]) == ("97.0 [96.6, 97.3]", "−1.0", "98.0 ± 0.1")
    (behind,) = results.runs_behind("nguyen2022").rows
    assert behind[:5] == ["VAE + Urkle", "PGD-40, Linf 0.1", "mnist, 60,000 train, 10,000 test", "1", "34"]
    assert behind[5] == results.runs("vae_urkle", scale="lite", variant="")[0].device
    assert cells(table(), "VAE + Urkle", "Clean Acc")["Gap"] == "0.0"
    assert cells(table(), "AT", "Clean Acc")["Status"] == "not run"
    assert results.count(results.published("nguyen2022")) == results.Count(
        122, 0, 2, spread=10, compared=2, within=1, commands=118
    )

    write(None, scale="full", metrics={"robust": {"value": 0.981, "unit": "fraction"}})
    row = cells(table(), "VAE + Urkle", "Adversarial Acc")
    assert (row["Status"], row["Ours (%)"], row["Gap"]) == ("re-run at full", "98.1", "+0.1")
    assert results.count(results.published("nguyen2022")) == results.Count(
        122, 1, 1, spread=10, compared=2, within=2, commands=118
    )


def test_a_number_may_want_the_papers_own_scale(book):
    value = next(v for v in results.published("nguyen2022", table="1") if v.row == "VAE + Urkle" and v.threat)
    strict = replace(value, match={**value.match, "scale": "full"})
    write(None)
    assert results.ours(value) is not None and results.ours(strict) is None
    write(None, scale="full")
    assert results.ours(strict).runs[0].scale == "full"


def test_a_gap_of_just_the_spread_is_within_it(book):
    value = next(v for v in results.published("nguyen2022", table="1") if v.row == "VAE + Urkle" and v.threat)
    assert results.within(value, None) is None
    for rate, inside in ((0.981, True), (0.979, True), (0.9811, False), (0.9789, False)):
        write(None, metrics={"robust": {"value": rate, "unit": "fraction"}})
        assert results.within(value, results.ours(value)) is inside, rate
    without = results.published("nguyen2022", table="2")[0]
    assert without.spread is None and results.within(without, results.ours(value)) is None


def test_every_command_is_one_that_its_chapter_understands():
    from robrep.book.reproduce import defaults, find_chapter, parse

    for paper in results.papers():
        for v in results.published(paper):
            if (line := results.command(v)) is None:
                assert v.match is None
                continue
            words = shlex.split(line)
            assert words[:3] == ["python", "-m", "robrep.book.reproduce"]
            given = parse(words[4:], defaults(find_chapter(words[3])))
            assert given["SCALE"] == "full" and given["DATASET"] == v.dataset
            assert given.get("ROWS", v.match["row"]) == v.match["row"]
            assert results.command(v, "lite") == line.replace("SCALE=full", "SCALE=lite")


def test_folds_hold_every_number_once_and_say_how_many(book):
    write(None)
    folds = results.published_folds("nguyen2022")
    assert [fold.summary for fold in folds] == [
        "Table 1: 10 numbers, 10 with a command, 2 re-run",
        "Table 2: 54 numbers, 54 with a command, 0 re-run",
        "Table 3: 54 numbers, 54 with a command, 0 re-run",
        "Table 4: 4 numbers, no command, 0 re-run",
    ]
    first, commands, differs, behind, note = folds[0].parts
    assert differs == "Re-run at lite (shortened schedule)."
    assert [len(fold.parts[0]) for fold in folds] == [10, 54, 54, 4] and len(behind) == 1
    assert note == "Note: The paper names PGD but not its steps, step size or restarts."
    row = cells(first, "VAE + Urkle", "Adversarial Acc")
    assert row["Status"] == "re-run at lite, beyond the ±"
    line = dict(commands.rows)[row["Command"]]
    assert line == "python -m robrep.book.reproduce vae_urkle SCALE=lite DATASET=mnist ROWS=vae_urkle"
    assert cells(first, "TRADES", "Clean Acc")["Status"] == "not run"
    assert {r[-1] for r in folds[3].parts[0].rows} == {"–"} and "No chapter runs" in folds[3].parts[1]


def test_several_seeds_give_their_mean_and_range(book):
    for seed, value in enumerate((0.96, 0.97, 0.98)):
        write(None, seed=seed, metrics={"robust": {"value": value, "low": 0.9, "high": 0.99, "unit": "fraction"}})
    value = results.published("nguyen2022", table="1")[-1]
    answer = results.ours(value)
    assert answer.metric.value == pytest.approx(97) and answer.metric.over == "training seeds"
    assert (answer.metric.low, answer.metric.high, answer.metric.n) == (96, 98, 3)
    row = cells(results.paper_against_ours("nguyen2022"), "VAE + Urkle", "Adversarial Acc")
    assert row["Ours (%)"] == "97.0 [96.0, 98.0]"
    assert [r[3] for r in results.runs_behind("nguyen2022", "1").rows] == ["3"]


def test_a_metric_without_a_unit_is_not_taken_for_percent(book):
    write(None, metrics={"robust": 0.97})
    with pytest.raises(ValueError, match="unit is '', expected 'fraction' or '%'"):
        results.paper_against_ours("nguyen2022")


def test_every_recorded_run_of_the_book_is_valid():
    folder = REPOSITORY / "book" / "results"
    for chapter in (p.name for p in folder.iterdir() if p.is_dir()):
        for run in results.runs(chapter, folder=folder):
            assert run.path.stem == run.run and run.chapter == chapter and run.scale != "smoke"
            if run.weights:
                results.load_weights(run)
        for weights in (folder / chapter).glob("*.safetensors"):
            assert weights.stat().st_size <= results.MAX_WEIGHTS and weights.with_suffix(".json").is_file()


# ------------------------------------------------------------------------------------------------- showing


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def test_a_table_is_accessible_and_has_no_colours_of_its_own():
    table = results.Table(
        [["a < b", "1.0"], ["c | d", "22.0"]], ["name", "rate"], caption="Some & more", numbers=["rate"]
    )
    parser = Tags()
    page = table._repr_html_()
    parser.feed(page)
    tags = [t for t, _ in parser.seen]
    assert "caption" in tags and tags.count("th") == 2 and tags.count("tr") == 3
    assert all(a.get("scope") == "col" for t, a in parser.seen if t == "th")
    region = parser.seen[0][1]
    assert region["role"] == "region" and region["aria-label"] == "Some & more" and region["tabindex"] == "0"
    assert "a &lt; b" in page and "color" not in page and "background" not in page
    assert page.count("text-align:right") == 3  # one heading, two cells
    assert "| c \\| d | 22.0 |" in table._repr_markdown_() and "---:" in table._repr_markdown_()
    assert repr(table).splitlines()[1].startswith("a < b") and len(table) == 2


def test_a_link_is_a_cell_and_a_fold_holds_tables():
    table = results.Table([[results.Link("a | b & c", "#x?y=1&z"), 1]], ["What", "n"], caption="Links")
    assert (
        '<td style="text-align:left;white-space:normal;min-width:5em"><a href="#x?y=1&amp;z">a | b &amp; c</a></td>'
        in (table._repr_html_())
    )
    assert "| [a \\| b & c](#x?y=1&z) | 1 |" in table._repr_markdown_() and "a | b & c" in repr(table)
    fold = results.Fold("One <table>", "Some text & more.", table)
    text = fold._repr_html_()
    assert text.startswith(
        '<details class="robrep-fold"><summary>One &lt;table&gt;</summary>\n<p>Some text &amp; more.</p>'
    )
    assert text.endswith("</details>") and table._repr_html_() in text
    assert repr(fold).startswith("One <table>\n\nSome text & more.\n\nWhat")


def test_a_crooked_table_is_refused():
    with pytest.raises(ValueError, match=r"rows\[0\] has 1 cells, expected 2"):
        results.Table([["a"]], ["a", "b"])
    with pytest.raises(ValueError, match="numbers is 'c'"):
        results.Table([], ["a", "b"], numbers=["c"])


def test_prose_takes_its_numbers_from_records(tmp_path):
    run = results.load_run("vae_urkle", write(tmp_path).stem, folder=tmp_path)
    text = results.say("{r:.1%} ({r.low:.1%} to {r.high:.1%}), {n} images, {c}", r=run["robust"], n=500, c=run["clean"])
    assert text == "97.0\xa0% (96.6\xa0% to 97.3\xa0%), 500 images, 99.1 % [98.9, 99.3]"
    assert text._repr_markdown_() == text
    assert results.say("{:.2f} and {}", 0.125, "text") == "0.12 and text"

    half = Rate(torch.arange(10) < 5)
    assert results.say("{r:.0%} of {r.n}, at least {r.low:.0%}", r=half) == "50\xa0% of 10, at least 24\xa0%"
    with pytest.raises(ValueError, match="value is nan"):
        results.say("{:.1f}", math.nan)
    with pytest.raises(ValueError, match="no field {s}"):
        results.say("{r}", r=1.0, s=2.0)
    with pytest.raises(KeyError):
        results.say("{r}")


def test_metrics_read_well():
    assert str(results.Metric(0.98, 0.977, 0.983, unit="fraction")) == "98.0 % [97.7, 98.3]"
    assert str(results.Metric(1.23456, unit="nats")) == "1.235 nats" and str(results.Metric(3.0)) == "3"
    assert results.Metric.of(torch.tensor(0.5)).value == 0.5
    rate = results.Metric.of(Rate(torch.arange(10) < 9), attack="PGD-40")
    assert (rate.value, rate.n, rate.unit, rate.over, rate.attack) == (0.9, 10, "fraction", "images", "PGD-40")
    assert results.Metric(0.5, unit="fraction").percent.percent.value == 50
    with pytest.raises(ValueError, match="unit is 'nats'"):
        _ = results.Metric(1.0, unit="nats").percent


def test_importing_results_loads_nothing_heavy():
    heavy = ["torchvision", "sklearn", "lightning_fabric", "plotly", "umap", "IPython", "pandas", "safetensors"]
    code = f"import sys, robrep.book.results; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_the_schema_and_the_class_of_a_metric_agree():
    assert set(records.Metric.__dataclass_fields__) == set(results.showing.METRIC)
