"""What a step of worst-case InfoMax costs beyond its floor: ``python benchmarks/information_step.py``.

The floor is what such a step cannot do without, in a bare loop over the same networks: for each attack step a forward
pass of encoder and critic and a backward pass from the scores through the code to the images; one more forward pass, to
judge the last iterate; and one forward and full backward pass on the attacked batch. The step itself also computes the
estimates, moves the images and keeps the best. The optimizer is in neither. Steps and floors take turns, and shown are
the ratio of the shortest times and the median of the ratios run by run.

``--json FILE`` keeps the measurement, and ``--show FILE`` prints one that was kept.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timing import measurement, options, over, report, show, take_turns, threads
from torch import Tensor

from robrep.attacks import PGD, Linf, attack_mode
from robrep.book import results
from robrep.checks import positive_int
from robrep.encoders import Critic, InfoMaxEncoder
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
    works = {"floor": lambda: floor(m, x, steps), "step": lambda: step(m, x, ids)}
    times = take_turns(works, positive_int("runs", runs))
    return {"size": size} | over(times["step"], times["floor"]) | {"images_per_second": batch / min(times["step"])}


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
    parser = options(__doc__, batch=128, runs=15, threads=2, steps=STEPS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args(arguments)
    if args.show:
        return show(args.show)
    torch.set_num_threads(positive_int("threads", args.threads))
    rows = [measure(size, args.batch, args.runs, args.steps) for size in args.sizes]
    facts = measurement({k: getattr(args, k) for k in ("batch", "runs", "steps")}, rows=rows)
    caption = (
        f"A step of worst-case InfoMax with {args.steps} attack steps on {args.batch} images, {args.runs} interleaved "
        f"runs, {threads(facts)}, torch {facts['versions']['torch']}"
    )
    report(facts, table(rows, caption), args.json)


if __name__ == "__main__":
    main()
