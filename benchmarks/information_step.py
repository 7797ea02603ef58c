"""What a step of worst-case InfoMax costs beyond its floor: ``python benchmarks/information_step.py``.

The floor is what such a step cannot do without, in a bare loop over the same networks: for each attack step a forward
pass of encoder and critic and a backward pass from the scores through the code to the images; one more forward pass, to
judge the last iterate; and one forward and full backward pass on the attacked batch. The step itself also computes the
estimates, moves the images and keeps the best. The optimizer is in neither. Steps and floors take turns, and shown are
the ratio of the shortest times and the median of the ratios run by run.

``--json FILE`` keeps the measurement, and ``--show FILE`` prints one that was kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from robrep import results
from robrep.attacks import PGD, Linf, attack_mode
from robrep.checks import positive_int
from robrep.encoders import Critic, InfoMaxEncoder
from robrep.files import atomic_write, code_hash
from robrep.methods import WorstCaseInfoMax

STEPS = 7
SIZES: dict[str, tuple[tuple[int, int, int], dict[str, Any], dict[str, Any]]] = {  # image, encoder, critic
    "digits": ((1, 8, 8), {"widths": (16, 32), "hidden": 64, "dim": 32}, {"widths": (16,), "units": 64, "whole": True}),
    "mnist": ((1, 28, 28), {}, {"units": 256, "whole": True}),
    "cifar10": ((3, 32, 32), {}, {}),
}


def method(size: str, steps: int) -> WorstCaseInfoMax:
    """The method with the networks of that size, the attack of the released code."""
    shape, encoder, critic = SIZES[size]
    torch.manual_seed(0)
    f = InfoMaxEncoder(shape, **encoder)
    attack, threat = PGD(steps, random_start=False, keep="best"), cast(Any, Linf(8 / 255))
    return WorstCaseInfoMax(f, Critic(shape, f.dim, **critic), attack, threat, "js").train()


def step(m: WorstCaseInfoMax, x: Tensor, ids: Tensor) -> None:
    """The whole training step up to the gradients."""
    torch.stack(list(m(x, ids, ids, 0).values())).sum().backward()
    m.zero_grad(set_to_none=True)


def floor(m: WorstCaseInfoMax, x: Tensor, steps: int) -> None:
    """The passes that the step cannot do without."""
    with attack_mode(m):
        for _ in range(steps):
            x_adv = x.detach().requires_grad_()
            torch.autograd.grad(m.critic(x, m.encoder(x_adv)).sum(), x_adv)
        with torch.no_grad():
            m.critic(x, m.encoder(x))
    m.critic(x, m.encoder(x)).sum().backward()
    m.zero_grad(set_to_none=True)


def measure(size: str, batch: int, runs: int, steps: int = STEPS) -> dict[str, Any]:
    """Seconds of step and floor, and their ratio.

    Args:
        size: a name of ``SIZES``.
        batch: images in the batch.
        runs: rounds that count, after two that do not.
        steps: of the attack.
    """
    m, ids = method(size, steps), torch.arange(batch)
    x = torch.rand(batch, *SIZES[size][0], generator=torch.Generator().manual_seed(0))
    works: dict[str, Callable[[], None]] = {"floor": lambda: floor(m, x, steps), "step": lambda: step(m, x, ids)}
    times: dict[str, list[float]] = {key: [] for key in works}
    for run in range(positive_int("runs", runs) + 2):
        for key, work in works.items():
            began = time.perf_counter()
            work()
            if run >= 2:
                times[key].append(time.perf_counter() - began)
    took, base = times["step"], times["floor"]
    return {
        "size": size,
        "seconds": {"minimum": min(took), "median": statistics.median(took)},
        "floor": {"minimum": min(base), "median": statistics.median(base)},
        "ratio": {
            "minimum": min(took) / min(base),
            "median": statistics.median(a / b for a, b in zip(took, base, strict=True)),
        },
        "images_per_second": batch / min(took),
    }


def table(rows: list[dict[str, Any]], caption: str = "") -> results.Table:
    """The rows of :func:`measure` as a table."""
    numbers = ["step, ms", "floor, ms", "over the floor", "in the median", "images a second"]
    cells = [
        [
            row["size"],
            *(f"{1e3 * row[key]['minimum']:.1f}" for key in ("seconds", "floor")),
            *(f"{row['ratio'][key]:.3f}" for key in ("minimum", "median")),
            f"{row['images_per_second']:.0f}",
        ]
        for row in rows
    ]
    return results.Table(cells, ["networks for", *numbers], caption=caption, numbers=numbers)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and keep the measurement if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for key, default in {"batch": 128, "runs": 15, "threads": 2, "steps": STEPS}.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the measurement in FILE")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the measurement kept in FILE, and stop")
    args = parser.parse_args(arguments)
    if args.show:
        facts = json.loads(args.show.read_text(encoding="utf-8"))
        print(table(facts["rows"], facts["caption"])._repr_markdown_())
        return
    torch.set_num_threads(positive_int("threads", args.threads))
    rows = [measure(size, args.batch, args.runs, args.steps) for size in args.sizes]
    hardware = results.hardware()
    caption = (
        f"A step of worst-case InfoMax with {args.steps} attack steps on {args.batch} images, {args.runs} interleaved "
        f"runs, {hardware['threads']} threads of {hardware['cpu']}, torch {results.versions()['torch']}"
    )
    facts = {
        "schema": 1,
        "settings": {"batch": args.batch, "runs": args.runs, "steps": args.steps},
        "hardware": hardware,
        "versions": results.versions(),
        "commit": results.commit(),
        "code": code_hash(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "caption": caption,
    }
    print(table(rows, caption)._repr_markdown_())
    if args.json:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
