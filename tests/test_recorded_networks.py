"""Every record that kept weights gives its networks back, with the clean accuracy that it says; they are attacked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from robrep.attacks import PGD, Linf
from robrep.book import reproduce, results
from robrep.book.experiment import Experiment, Trial
from robrep.evaluation import accuracy, robust_accuracy
from robrep.files import cache_root
from robrep.heads import Classifier

RECORDED = Path(__file__).resolve().parent.parent / "book" / "results"
KEPT = [(path.parent.name, path.stem) for path in sorted(RECORDED.glob("*/*.safetensors"))]
BUNDLED = ("digits", "colour-digits")
# What a chapter attacks, from its names and a trial, and what its record calls the clean accuracy of that
ATTACKED: dict[str, tuple[Callable[[dict[str, Any], Trial], nn.Module], str]] = {
    "attacks": (lambda names, t: names["classifier"](t), "clean"),
    "judging_robustness": (lambda names, t: names["classifier"](t), "clean"),
    "vae_urkle": (lambda names, t: names["classifier"](t), "clean"),
    "simclr_urkle": (lambda names, t: names["classifier"](t), "clean"),
    "smooth_encoders": (lambda names, t: names["classifier"](t, "digit"), "clean_digit"),
    "byorl": (lambda names, t: Classifier(t.n.encoder, t.n.head, 0), "clean"),
    "worst_case_mi": (lambda names, t: names["classifiers"](t)["mlp_standard"], "clean_mlp_standard"),
    "cropd": (lambda names, t: names["chain"](t), "clean"),
    "comparison": (lambda names, t: Classifier(t.n.encoder, t.n.head, 0), "clean"),
}


@functools.cache
def declared(chapter: str, scale: str) -> Experiment:
    return reproduce.declared(chapter, SCALE=scale, RECORDED=True)


@pytest.mark.parametrize(("chapter", "run"), KEPT, ids=["/".join(pair) for pair in KEPT])
def test_a_record_gives_its_networks_back(chapter: str, run: str) -> None:
    record = results.load_run(chapter, run, folder=RECORDED)
    if record.dataset not in BUNDLED and not (cache_root() / f"{record.dataset.removeprefix('colour-')}.npz").is_file():
        pytest.skip(f"{record.dataset} is not on this machine")
    exp = declared(chapter, record.scale)
    t = exp.restore(record)
    build, metric = ATTACKED[chapter]
    model = build(exp.draw.__globals__, t).eval()
    few = t.d.few[:20]
    if len(t.d.x_test) == record[metric].n:  # the same images were counted
        assert accuracy(model, t.d.x_test, t.d.y_test).value == pytest.approx(record[metric].value, abs=0.02)
    clean = accuracy(model, t.d.x_test[few], t.d.y_test[few])
    robust = robust_accuracy(model, t.d.x_test[few], t.d.y_test[few], PGD(3), Linf(t.s.eps))
    assert robust.value <= clean.value
    assert str(Linf(t.s.eps)) in robust.attack, "the attack has the radius of the record"
