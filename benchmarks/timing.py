"""What the benchmarks share: works that take turns, times over a floor, a measurement kept and shown again."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from robrep.book import results
from robrep.files import atomic_write, code_hash


def keep_memory() -> bool:
    """Ask the C library to keep freed memory for the next allocation; False where it cannot be asked (not glibc).

    By default large blocks go back to the system and come again page by page. That takes up to a third of the time of
    a small network, of a floor and of what is measured alike but at random, by what else lies on the heap.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mmap_threshold, trim_threshold = -3, -1
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))


def take_turns(
    works: Mapping[Any, Callable[[], object]],
    runs: int,
    warm_up: int = 2,
    *,
    device: str = "cpu",
    until: float = math.inf,
) -> dict[Any, list[float]]:
    """Seconds of each work in each of ``runs`` rounds, after ``warm_up`` rounds that do not count.

    On one thread of a processor they are seconds of its time, so that what else runs on the machine does not count. On
    a GPU they are the time between two events on its stream, the first recorded while the GPU is idle.

    Args:
        works: functions by name.
        runs: rounds that count; fewer where time is up, but at least one.
        warm_up: rounds before.
        device: "cpu" or "cuda".
        until: no further round begins once ``time.monotonic()`` is past it.
    """
    timed = _on_gpu if device == "cuda" else _on_processor
    times: dict[Any, list[float]] = {key: [] for key in works}
    for run in range(warm_up + runs):
        if run > warm_up and time.monotonic() > until:
            break
        for key, work in works.items():
            seconds = timed(work)
            if run >= warm_up:
                times[key].append(seconds)
    return times


def _on_processor(work: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


def _on_gpu(work: Callable[[], object]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1e3


def over(took: Sequence[float], floor: Sequence[float]) -> dict[str, Any]:
    """The shortest time and the median, of a work and of its floor, and the same of their ratio, run by run."""
    ratios = [a / b for a, b in zip(took, floor, strict=True)]
    return {
        "seconds": {"minimum": min(took), "median": statistics.median(took)},
        "floor": {"minimum": min(floor), "median": statistics.median(floor)},
        "ratio": {"minimum": min(took) / min(floor), "median": statistics.median(ratios)},
    }


def options(doc: str | None, **numbers: int) -> argparse.ArgumentParser:
    """A command line with these whole numbers and their defaults, ``--json FILE`` and ``--show FILE``."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for key, default in numbers.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the measurement in FILE")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the measurement kept in FILE, and stop")
    return parser


def measurement(settings: Mapping[str, Any], device: str = "cpu", **facts: Any) -> dict[str, Any]:
    """The facts of a measurement, with the machine, the versions and the code they were measured with."""
    return {
        "schema": 1,
        "settings": dict(settings),
        "hardware": results.hardware(device),
        "versions": results.versions(),
        "commit": results.commit(),
        "code": code_hash(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }


def threads(facts: Mapping[str, Any]) -> str:
    """The threads and the processor (or GPU) of a measurement, for a caption."""
    machine = facts["hardware"]
    count = machine["threads"]
    return f"{count} thread{'' if count == 1 else 's'} of {machine.get('gpu') or machine['cpu']}"


def as_json(table: results.Table) -> dict[str, Any]:
    """The arguments that make the table again."""
    numbers = [column for column in table.columns if column in table.numbers]
    return {"rows": table.rows, "columns": table.columns, "caption": table.caption, "numbers": numbers}


def report(facts: dict[str, Any], table: results.Table, file: Path | None) -> None:
    """Print the table, and keep it with the facts in ``file``, for ``--show`` and for a page of the book."""
    facts["table"] = as_json(table)
    print(table._repr_markdown_())
    if file:
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def show(file: Path) -> None:
    """Print the table that was kept."""
    print(results.Table(**json.loads(file.read_text(encoding="utf-8"))["table"])._repr_markdown_())
