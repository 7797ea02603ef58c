"""What the trainings behind the published numbers cost on a GPU: measured seconds of a step, times the steps."""

from __future__ import annotations

import ast
import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robrep.book.experiment import Settings, at_scale
from robrep.book.results.origin import recorded_folder
from robrep.book.results.published import Count, PublishedValue, answers, count_answers, published

#: The setting that holds the epochs of a row's training; rows without one take "epochs".
EPOCHS = {
    "vae_urkle": {
        **dict.fromkeys(("standard", "at", "trades"), "epochs_supervised"),
        "ae_trades": "epochs_ae_trades",
        **dict.fromkeys(("vae", "vae_urkle"), "epochs_vae"),
    },
    "simclr_urkle": dict.fromkeys(("standard", "at", "trades"), "epochs_supervised"),
}
IMAGES = {"mnist": 60_000, "cifar2": 10_000, "cifar10": 50_000}  # to train on
FREE = {"attack", "eps", "norm", "weight"}  # settings that a step's seconds are independent of
PASSES = {"forward": 1, "attack": 2, "trained": 3}  # in forward passes: a backward pass to images 1, to weights too 2


def gpu_hours(chapter: str, row: str, dataset: str, changes: dict[str, Any]) -> float | None:
    """Hours of one training at ``full`` on the GPU of ``benchmark-gpu.json``; None if its step was not measured.

    Steps are captured ones. Where only the number of attack steps differs from the measured training, the seconds are
    scaled by passes. Heads and evaluations come on top.

    Args:
        chapter, row: whose training.
        dataset: its data set.
        changes: the settings that differ from the chapter's table.
    """
    file = (recorded_folder() or Path()) / "benchmark-gpu.json"
    if dataset not in IMAGES or not file.is_file():
        return None
    s = Settings(chapter, "full", at_scale(chapter, "full", dataset)).changed(changes)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    asked = {"chapter": chapter, "row": row, "scale": "full"}
    measured = next((m for m in rows if asked.items() <= m.items() and "captured" in m), None)
    if measured is None:
        return None
    epochs = EPOCHS.get(chapter, {}).get(row, "epochs")
    if set(changes) - FREE - {"attack_steps", epochs}:
        return None
    passes = dict(measured["passes"])
    seconds = measured["captured"]["seconds"]["median"] / sum(PASSES[kind] * n for kind, n in passes.items())
    if "attack_steps" in s:
        there = measured["changes"].get("attack_steps", at_scale(chapter, "full")["attack_steps"])
        passes["attack"] *= s.attack_steps / there
    images = min(s["train_images"], IMAGES[dataset]) if "train_images" in s else IMAGES[dataset]
    steps = s[epochs] * math.ceil(images / measured["batch_size"])
    return steps * seconds * sum(PASSES[kind] * n for kind, n in passes.items()) / 3600


def changes_of(value: PublishedValue) -> dict[str, Any]:
    """The settings in which the run of a published number differs from its chapter's table."""
    words = shlex.split((value.match or {}).get("options", ""))
    given = dict(word.split("=", 1) for word in words)
    return ast.literal_eval(given.get("SETTINGS", "{}"))


@dataclass(frozen=True)
class Line:
    """One table of a paper in the ledger.

    Attributes:
        paper, table: which; "text" is the running text.
        count: its numbers, see :class:`~robrep.book.results.published.Count`.
        hours: of the trainings at ``full`` that no record answers, on the GPU that was measured, as far as known.
        trainings: how many trainings these are.
        measured: how many of them have a measured step.
    """

    paper: str
    table: str
    count: Count
    hours: float
    trainings: int
    measured: int


def ledger(papers: Iterable[str]) -> list[Line]:
    """A line for each table of the papers: what is re-run, and what the rest would cost."""
    lines = []
    for paper in papers:
        values = published(paper)
        found = answers(values)
        for table in dict.fromkeys(v.table for v in values):
            pairs = [(v, a) for v, a in zip(values, found, strict=True) if v.table == table]
            left = {
                (v.match["chapter"], v.match["row"], v.dataset, repr(changes_of(v)))
                for v, a in pairs
                if v.match and not (a and a.runs[0].scale == "full")
            }
            hours = [gpu_hours(chapter, row, data, ast.literal_eval(text)) for chapter, row, data, text in left]
            known = [h for h in hours if h is not None]
            counted = count_answers([v for v, _ in pairs], [a for _, a in pairs])
            lines.append(Line(paper, table, counted, sum(known), len(left), len(known)))
    return lines
