"""What a training step of a robust method costs beyond its floor: ``python benchmarks/training_step.py``.

Measured are RoCL and SimCLR + Urkle on a ResNet-18, and BYORL on a pre-activation ResNet-34, searching with PGD and
with AutoPGD. The floor is what such a step cannot do without, in a bare loop over the same networks: forward passes,
without a graph, of what the attack compares with (of BYORL, the target's); for each attack step a forward pass and a
backward pass to the images, and for AutoPGD a forward pass at its last point; and the forward and full backward passes
of the training. The step itself also augments, draws its noise, computes the losses and moves the images. The optimizer
is in neither. Steps and floors take turns, and shown are the ratio of the shortest times and the median of the ratios
run by run.

``--json FILE`` keeps the measurement, and ``--show FILE`` prints one that was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import keep_memory, measurement, options, over, report, show, take_turns, threads
from torch import Tensor, nn

from robrep.attacks import APGD, PGD, Linf, attack_mode
from robrep.augmentations import simclr_augmentation
from robrep.book import results
from robrep.checks import positive_int
from robrep.encoders import NormMLP, PreActResNet, Projector, ResNetEncoder
from robrep.gaussians import Gaussian
from robrep.methods import BYORL, RoCL, SimCLRUrkle

EPS, STEPS, STEP = 8 / 255, 7, 0.007
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
METHODS = ("RoCL", "SimCLR + Urkle", "BYORL, PGD", "BYORL, AutoPGD")


def make(name: str, width: int, steps: int) -> nn.Module:
    """A method of ``METHODS``, on networks whose first stage has ``width`` channels, with an attack of ``steps``."""
    torch.manual_seed(0)
    threat, pgd = Linf(EPS), PGD(steps, step_size=STEP)
    if name.startswith("BYORL"):
        encoder: Any = PreActResNet(base=width)
        heads = NormMLP(encoder.dim), NormMLP(256)
        attack = APGD(steps) if name.endswith("AutoPGD") else pgd
        return BYORL(encoder, *heads, simclr_augmentation(), attack, threat).train()
    encoder = ResNetEncoder(18, width=width, gaussian=name == "SimCLR + Urkle")
    kind = SimCLRUrkle if encoder.gaussian else RoCL
    return kind(encoder, Projector(encoder.dim), simclr_augmentation(), pgd, threat).train()


def step(method: nn.Module, x: Tensor, ids: Tensor, seed: int) -> None:
    """The whole training step up to the gradients."""
    terms = method(x, ids, ids, seed)
    torch.stack(list(terms.values())).sum().backward()
    method.zero_grad(set_to_none=True)


def floor(method: Any, x: Tensor, steps: int) -> None:
    """The passes that the step cannot do without."""
    (byorl_floor if isinstance(method, BYORL) else contrastive_floor)(method, x, steps)
    method.zero_grad(set_to_none=True)


def climb(passes: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> None:
    """For each attack step a forward pass and a backward pass to the images."""
    for _ in range(steps):
        x_adv = x.detach().requires_grad_()
        torch.autograd.grad(passes(x_adv).float().sum(), x_adv)


def contrastive_floor(method: Any, x: Tensor, steps: int) -> None:
    """RoCL attacks the first view, through the projector; SimCLR + Urkle both views, through the encoder."""
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
        climb(partial(passes, project=not urkle), attacked, steps)
    passes(views, True).float().sum().backward()


def byorl_floor(method: BYORL, x: Tensor, steps: int) -> None:
    """Each view passes through the target; then it is attacked through the online network, and trained on."""
    for _ in range(2):
        method.project(x)
    with attack_mode(method.encoder, method.projector, method.predictor, batch_norm="batch"):
        for _ in range(2):
            climb(method.predict, x, steps)
            if isinstance(method.adversary.attack, APGD):
                with torch.no_grad():
                    method.predict(x)
    (method.predict(x).float().sum() + method.predict(x).float().sum()).backward()


def measure(name: str, precision: str, batch: int, runs: int, steps: int = STEPS, width: int = 64) -> dict[str, Any]:
    """The row of one method: its step and its floor, in seconds, their ratio, and images a second.

    Args:
        name: one of ``METHODS``.
        precision: a name of ``PRECISIONS``.
        batch: images in the batch, 3 x 32 x 32, before they become views.
        runs: rounds that count, after one that does not.
        steps: of the attack.
        width: channels of the first stage; 64 is the usual network.
    """
    ids, x = torch.arange(batch), torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    method = make(name, width, steps)

    def timed(work: Callable[[], None]) -> None:
        with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32"):
            work()

    works = {"floor": partial(floor, method, x, steps), "step": partial(step, method, x, ids, 0)}
    turns = {key: partial(timed, work) for key, work in works.items()}
    times = take_turns(turns, positive_int("runs", runs), warm_up=1)
    return {
        "method": name,
        "precision": precision,
        **over(times["step"], times["floor"]),
        "images_per_second": batch / min(times["step"]),
    }


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
        f"A training step on a batch of {s['batch']} images of 3 x 32 x 32, {s['width']} channels in the first stage, "
        f"{s['steps']} attack steps, {s['runs']} interleaved runs, {threads(facts)}, torch {facts['versions']['torch']}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and keep the measurement if asked to."""
    parser = options(__doc__, batch=64, runs=3, threads=1, steps=STEPS, width=64)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args(arguments)
    if args.show:
        return show(args.show)
    torch.set_num_threads(positive_int("threads", args.threads))
    settings = {k: getattr(args, k) for k in ("batch", "runs", "steps", "width")} | {"memory_kept": keep_memory()}
    sizes = args.batch, args.runs, args.steps, args.width
    rows = [measure(name, precision, *sizes) for precision in args.precisions for name in args.methods]
    facts = measurement(settings, rows=rows)
    report(facts, table(rows, caption(facts)), args.json)


if __name__ == "__main__":
    main()
