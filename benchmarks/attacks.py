"""What PGD and AutoPGD cost beyond their floor, here and in other libraries: ``python benchmarks/attacks.py``.

The floor is what no such attack can do without: ``steps`` forward passes, each with a backward pass to the images, of
the same network on the same batch, in a bare loop. Runs of the floor and of all attacks take turns, so that a busy
machine slows them alike; shown are the ratio of the shortest times and the median of the ratios run by run. Every
attack begins at the clean images, so that drawing a random start is no part of it; the draw is timed beside it. Where
a library has no way to be given a start, it draws its own. Libraries that are not installed are named as such
(``pip install robrep[benchmarks]`` brings them).

``--json FILE`` keeps the measurement, and ``--show FILE`` prints one that was kept.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from timing import keep_memory, measurement, options, over, report, show, take_turns, threads
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.attacks import APGD, PGD, Linf
from robrep.book import results
from robrep.checks import positive_int
from robrep.objectives import classifier_objective

EPS, PGD_STEPS, APGD_STEPS = 8 / 255, 20, 100
Works = dict[tuple[str, str], Callable[[], object]]  # (attack, library) -> one run of it


def small() -> nn.Module:
    """About 25,000 parameters and 0.7 million multiplications an image, so that every stray pass over it shows."""
    conv = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)]
    return nn.Sequential(*conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def large() -> nn.Module:
    """About ten times as costly as :func:`small`."""
    conv = [nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1)]
    return nn.Sequential(*conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


NETWORKS = {"small": small, "large": large}


def floor(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """``steps`` times the gradient of the summed cross-entropy with respect to the images, and nothing else."""
    for _ in range(steps):
        x_adv = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)


# --- the attacks ------------------------------------------------------------------------------------------------------


def ours(model: nn.Module, x: Tensor, y: Tensor) -> Works:
    """robrep's attacks."""
    objective, threat = classifier_objective(model), Linf(EPS)
    return {
        (name(PGD_STEPS), "robrep"): lambda: PGD(PGD_STEPS)(objective, x, threat, y, start=x),
        (name(APGD_STEPS), "robrep"): lambda: APGD(APGD_STEPS)(objective, x, threat, y, start=x),
    }


def foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Works:
    """Foolbox (Rauber et al. 2017, 2020) has no AutoPGD."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / PGD_STEPS, steps=PGD_STEPS, random_start=False)
    return {(name(PGD_STEPS), "foolbox"): lambda: attack.run(wrapped, x, y, epsilon=EPS)}


def art(model: nn.Module, x: Tensor, y: Tensor) -> Works:
    """The Adversarial Robustness Toolbox (Nicolae et al. 2018); its AutoPGD draws its own start."""
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    shape, classes, batch = tuple(x.shape[1:]), model(x[:1]).shape[1], len(x)
    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, classes, clip_values=(0, 1), device_type="cpu")
    x_, y_ = x.numpy(), F.one_hot(y, classes).numpy()
    pgd = ProjectedGradientDescentPyTorch(
        wrapped, eps=EPS, eps_step=2.5 * EPS / PGD_STEPS, max_iter=PGD_STEPS, batch_size=batch, verbose=False
    )
    apgd = AutoProjectedGradientDescent(
        wrapped,
        eps=EPS,
        eps_step=2 * EPS,
        max_iter=APGD_STEPS,
        nb_random_init=1,
        batch_size=batch,
        loss_type="cross_entropy",
        verbose=False,
    )
    library = "adversarial-robustness-toolbox"
    return {
        (name(PGD_STEPS), library): lambda: pgd.generate(x_, y_),
        (name(APGD_STEPS), library): lambda: apgd.generate(x_, y_),
    }


def pyautoattack(model: nn.Module, x: Tensor, y: Tensor) -> Works:
    """The reference implementation of AutoAttack (Croce and Hein 2020), packaged."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(model, n_iter=APGD_STEPS, norm="Linf", eps=EPS, device="cpu")
    attack.init_hyperparam(x)
    run = torch.no_grad()(attack.attack_single_run)  # as its own evaluation does
    return {(name(APGD_STEPS), "pyautoattack"): lambda: run(x, y, x_init=x)[0]}


PEERS: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Works], tuple[int, ...]]] = {
    "foolbox": (foolbox, (PGD_STEPS,)),
    "adversarial-robustness-toolbox": (art, (PGD_STEPS, APGD_STEPS)),
    "pyautoattack": (pyautoattack, (APGD_STEPS,)),
}


def name(steps: int) -> str:
    """What the table calls the attack of so many steps."""
    return f"PGD-{steps}" if steps == PGD_STEPS else f"APGD-CE-{steps}"


# --- the measurement --------------------------------------------------------------------------------------------------


def measure(network: str, batch: int, runs: int, peers: Iterable[str]) -> list[dict[str, Any]]:
    """One row for each attack and library, the floors and the draw of a start among them.

    Args:
        network: a name of ``NETWORKS``; its weights are random, and so are the images.
        batch: images in the batch, 3 x 32 x 32.
        runs: rounds that count.
        peers: names of ``PEERS``; one that is not installed gets a row without times.

    Returns:
        Dicts with network, parameters, attack, library, version (None: not installed), and what ``timing.over`` says
        of the attack and the floor of as many steps.
    """
    torch.manual_seed(0)
    model, x = NETWORKS[network](), torch.rand(batch, 3, 32, 32)
    with torch.no_grad():
        y = model(x).argmax(1)  # each image is right at first, so that every library attacks it
    ids, threat = torch.arange(batch), Linf(EPS)
    works: Works = {(name(n), "floor"): partial(floor, model, x, y, n) for n in (PGD_STEPS, APGD_STEPS)}
    works[name(PGD_STEPS), "random start"] = lambda: threat.start(x, ids, 0)
    works |= ours(model, x, y)
    missing = []
    for peer in peers:
        make, steps = PEERS[peer]
        try:
            works |= make(model, x, y)
        except ImportError:
            missing += [(name(n), peer) for n in steps]
    times = take_turns(works, positive_int("runs", runs))
    shared = {"network": network, "parameters": sum(p.numel() for p in model.parameters())}
    rows = []
    for (attack, library), took in times.items():
        row = {"attack": attack, "library": library, "version": version(library)}
        rows.append(shared | row | over(took, times[attack, "floor"]))
    rows += [shared | {"attack": a, "library": p, "version": None, "seconds": None, "ratio": None} for a, p in missing]
    return rows


def version(library: str) -> str | None:
    """The version installed, "" for what is no library."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def table(rows: list[dict[str, Any]], caption: str = "") -> results.Table:
    """The rows of :func:`measure` as a table: network by network, attack by attack, the fastest first."""

    def cells(row: dict[str, Any]) -> list[str]:
        who = f"{row['library']} {row['version'] or ''}".strip()
        first = [f"{row['network']}, {row['parameters']:,} parameters", row["attack"], who]
        if row["seconds"] is None:
            return [*first, "not installed", "", "", ""]
        ratios = [f"{row['ratio'][key]:.3f}" for key in ("minimum", "median")]
        return [*first, *(f"{1e3 * row['seconds'][key]:.1f}" for key in ("minimum", "median")), *ratios]

    def place(row: dict[str, Any]) -> tuple[int, int, float]:
        ratio = math.inf if row["ratio"] is None else row["ratio"]["minimum"]
        attacks = [name(PGD_STEPS), name(APGD_STEPS)]
        order = -1.0 if row["library"] == "floor" else math.inf if row["library"] == "random start" else ratio
        return list(NETWORKS).index(row["network"]), attacks.index(row["attack"]), order

    times = ["shortest, ms", "median, ms", "over the floor", "in the median"]
    columns = ["network", "attack", "library", *times]
    return results.Table([cells(row) for row in sorted(rows, key=place)], columns, caption=caption, numbers=times)


def caption(facts: dict[str, Any]) -> str:
    """What was measured, and where, in a sentence."""
    settings = facts["settings"]
    return (
        f"Time of attacks on a batch of {settings['batch']} images of 3 x 32 x 32, {settings['runs']} interleaved "
        f"runs, {threads(facts)}, torch {facts['versions']['torch']}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and keep the measurement if asked to."""
    parser = options(__doc__, batch=256, runs=15, threads=2)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="none, if no name follows")
    args = parser.parse_args(arguments)
    if args.show:
        return show(args.show)
    torch.set_num_threads(positive_int("threads", args.threads))
    settings = {"batch": args.batch, "runs": args.runs, "eps": EPS, "memory_kept": keep_memory()}
    rows = [row for network in args.networks for row in measure(network, args.batch, args.runs, args.peers)]
    facts = measurement(settings, rows=rows)
    report(facts, table(rows, caption(facts)), args.json)


if __name__ == "__main__":
    main()
