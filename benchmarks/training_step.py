"""What a training step of RoCL and of SimCLR + Urkle costs beyond its floor: ``python benchmarks/training_step.py``.

The floor is what such a step cannot do without, in a bare loop over the same networks: one forward pass, in evaluation
mode and without a graph, of what the attack compares with; for each attack step a forward pass and a backward pass to
the images; and one forward and full backward pass over all views together. The step itself also augments, draws its
noise, computes the losses and moves the images. The optimizer is in neither. Steps and floors take turns, and shown are
the ratio of the shortest times and the median of the ratios run by run.

It also starts the training at the settings of the chapter's scale ``full``, but for the batch: a few steps with LARS on
CIFAR-10 (random images if it is not on this machine), whose losses are kept, and the memory that one image's view holds
for the backward pass.

``--json FILE`` keeps the measurement, and ``--show FILE`` prints one that was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import keep_memory, measurement, options, over, report, show, take_turns, threads
from torch import Tensor, nn

from robrep import data, results
from robrep.attacks import PGD, Linf, attack_mode
from robrep.augmentations import simclr_augmentation
from robrep.checks import positive_int
from robrep.encoders import Projector, ResNetEncoder
from robrep.files import cache_root
from robrep.gaussians import Gaussian
from robrep.methods import RoCL, SimCLRUrkle
from robrep.training import make_optimizer

EPS, STEPS, STEP = 8 / 255, 7, 0.007
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def methods(width: int, steps: int) -> dict[str, nn.Module]:
    """The two methods on a ResNet-18 of that width, with RoCL's attack."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {}
    for name, kind in (("RoCL", RoCL), ("SimCLR + Urkle", SimCLRUrkle)):
        encoder = ResNetEncoder(18, width=width, gaussian=kind is SimCLRUrkle)
        attack = PGD(steps, step_size=STEP)
        made[name] = kind(encoder, Projector(encoder.dim), simclr_augmentation(), attack, Linf(EPS)).train()
    return made


def step(method: nn.Module, x: Tensor, ids: Tensor, seed: int) -> None:
    """The whole training step up to the gradients."""
    terms = method(x, ids, ids, seed)
    torch.stack(list(terms.values())).sum().backward()
    method.zero_grad(set_to_none=True)


def floor(method: Any, x: Tensor, steps: int) -> None:
    """The passes that the step cannot do without."""
    urkle = isinstance(method, SimCLRUrkle)
    attacked = torch.cat([x, x]) if urkle else x
    views = torch.cat([x] * (4 if urkle else 3))

    def passes(x_: Tensor, project: bool) -> Tensor:
        code = method.encoder(x_)
        code = torch.cat(code, dim=1) if isinstance(code, Gaussian) and not project else code
        code = code.mean + code.scale if isinstance(code, Gaussian) else code
        return method.projector(code) if project else code

    with attack_mode(method):
        with torch.no_grad():
            passes(attacked, not urkle)
        for _ in range(steps):
            x_adv = attacked.detach().requires_grad_()
            torch.autograd.grad(passes(x_adv, not urkle).float().sum(), x_adv)
    passes(views, True).float().sum().backward()
    method.zero_grad(set_to_none=True)


def measure(precision: str, batch: int, runs: int, steps: int = STEPS, width: int = 64) -> list[dict[str, Any]]:
    """One row for each method: its step and its floor, in seconds, their ratio, and images a second.

    Args:
        precision: a name of ``PRECISIONS``.
        batch: images in the batch, 3 x 32 x 32, before they become views.
        runs: rounds that count, after one that does not.
        steps: of the attack.
        width: of the ResNet-18; 64 is the usual network.
    """
    ids, x = torch.arange(batch), torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    works: dict[tuple[str, str], Callable[[], None]] = {}
    for name, method in methods(width, steps).items():
        works[name, "floor"] = lambda method=method: floor(method, x, steps)  # type: ignore[misc]
        works[name, "step"] = lambda method=method: step(method, x, ids, 0)  # type: ignore[misc]

    def timed(work: Callable[[], None]) -> None:
        with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32"):
            work()

    turns = {key: partial(timed, work) for key, work in works.items()}
    times = take_turns(turns, positive_int("runs", runs), warm_up=1)
    return [
        {"method": name, "precision": precision}
        | over(times[name, "step"], times[name, "floor"])
        | {"images_per_second": batch / min(times[name, "step"])}
        for name, what in works
        if what == "step"
    ]


def start(batch: int, steps: int, attack_steps: int, width: int, precision: str = "bf16") -> dict[str, Any]:
    """The losses of the first steps of each method with the optimizer and the rate of the scale ``full``."""
    x, what = torch.rand(batch * steps, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "random images"
    if (cache_root() / "cifar10.npz").exists():
        x, what = data.load("cifar10").images("train", slice(0, batch * steps)), "CIFAR-10"
    losses: dict[str, list[float]] = {}
    for name, method in methods(width, attack_steps).items():
        optimizer, losses[name] = make_optimizer("lars-all", method.parameters(), lr=1.2, weight_decay=1e-6), []
        for number, ids in enumerate(torch.arange(len(x)).split(batch)):
            with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32"):
                terms = method(x[ids], ids, ids, number)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    return {"images": what, "batch": batch, "precision": precision, "losses": losses}


def kept_for_backward(width: int, precision: str) -> float:
    """Megabytes that a forward pass in training mode keeps for one view, the weights and their copies aside."""
    method, totals = methods(width, 1)["SimCLR + Urkle"], []
    for batch in (8, 16):
        held: dict[int, Tensor] = {}

        def pack(t: Tensor, held: dict[int, Tensor] = held) -> Tensor:
            held[t.untyped_storage().data_ptr()] = t
            return t

        x = torch.zeros(batch, 3, 32, 32)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with hooks, torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32"):
            out: Any = method.projector(method.encoder(x).mean)  # type: ignore[operator,union-attr]
        totals.append(sum(t.untyped_storage().nbytes() for t in held.values()))
        del out
    return (totals[1] - totals[0]) / 8e6


def table(rows: list[dict[str, Any]], caption: str = "") -> results.Table:
    """The rows of :func:`measure` as a table."""
    numbers = ["step, s", "floor, s", "over the floor", "in the median", "images a second"]
    cells = [
        [
            row["method"],
            row["precision"],
            *(f"{row[key]['minimum']:.2f}" for key in ("seconds", "floor")),
            *(f"{row['ratio'][key]:.3f}" for key in ("minimum", "median")),
            f"{row['images_per_second']:.2f}",
        ]
        for row in rows
    ]
    return results.Table(cells, ["method", "precision", *numbers], caption=caption, numbers=numbers)


def caption(facts: dict[str, Any]) -> str:
    """What was measured, and where, in a sentence."""
    s = facts["settings"]
    return (
        f"A training step on a batch of {s['batch']} images of 3 x 32 x 32, ResNet-18 of width {s['width']}, "
        f"{s['steps']} attack steps, {s['runs']} interleaved runs, {threads(facts)}, torch {facts['versions']['torch']}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and keep the measurement if asked to."""
    parser = options(__doc__, batch=64, runs=3, threads=1, steps=STEPS, width=64, start=2)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    args = parser.parse_args(arguments)
    if args.show:
        return show(args.show)
    torch.set_num_threads(positive_int("threads", args.threads))
    settings = {k: getattr(args, k) for k in ("batch", "runs", "steps", "width")} | {"memory_kept": keep_memory()}
    facts = measurement(
        settings,
        rows=[row for p in args.precisions for row in measure(p, args.batch, args.runs, args.steps, args.width)],
        start=start(args.batch, args.start, args.steps, args.width) if args.start else None,
        megabytes_kept={p: kept_for_backward(args.width, p) for p in PRECISIONS},
    )
    report(facts, table(facts["rows"], caption(facts)), args.json)


if __name__ == "__main__":
    main()
