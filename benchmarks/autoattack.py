"""The suite ``autoattack`` beside pyautoattack's standard version: ``python benchmarks/autoattack.py``.

A small CNN is trained adversarially on CIFAR-10 (ten minutes on two cores, once: the run is kept in the user cache), or
its weights are read from ``--weights FILE``. Both implementations then attack the same test images in batches of the
same size, attack by attack, each on the images that the ones before left. Shown are the robust accuracy so far, the
number of images on which the two differ, and the seconds that each attack took: of processor time on a CPU, so that a
busy machine does not count, else of wall time. The last lines count the images whose verdict under APGD-CE hangs on
the size of the batch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import measurement, options, report, show, threads
from torch import Tensor, nn

from robrep.attacks import L2, PGD, Linf
from robrep.book import results
from robrep.checks import positive_int
from robrep.data import load
from robrep.encoders import he_init
from robrep.evaluation import Rate, accuracy, evaluate
from robrep.files import user_cache
from robrep.methods import AdversarialTraining
from robrep.suites import suite
from robrep.training import fit

NORMS = {"linf": (Linf, 8 / 255), "l2": (L2, 128 / 255)}


def network() -> nn.Sequential:
    """Four convolutions and a linear layer, 261,000 parameters; an image's logits do not hang on its batch."""
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.ReLU()),
        nn.Flatten(),
    )
    he_init(encoder)
    return nn.Sequential(encoder, nn.Linear(128 * 4 * 4, 10))


def trained(data: Any, weights: Path | None, epochs: int) -> nn.Module:
    """The network with the weights in a file, or trained against PGD-2 in an l-inf ball of 6/255."""
    torch.manual_seed(0)
    model, eps = network(), 6 / 255
    if weights is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    else:
        fit(
            AdversarialTraining(*model, PGD(2, 0.75 * eps), Linf(eps)),
            data.x_train,
            data.y_train,
            epochs=epochs,
            batch_size=128,
            weight_decay=1e-4,
            warmup_epochs=0.5,
            precision="auto",
            cache=user_cache() / "benchmarks",
            progress="adversarial training",
        )
    return model.eval()


Step = tuple[str, Rate, float]  # the attack, what it and those before it left, its seconds


def clock(device: torch.device) -> float:
    """Processor seconds on a CPU, wall seconds elsewhere."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def ours(model: nn.Module, x: Tensor, y: Tensor, norm: str, batch: int) -> Iterator[Step]:
    """robrep's suite, one attack after the other."""
    kind, eps = NORMS[norm]
    left = accuracy(model, x, y)
    for attack in suite("autoattack"):
        began = clock(x.device)
        left = evaluate(
            model, x, y, attack, kind(eps), after=left, batch_size=batch, progress=f"robrep {norm}: {attack.name}"
        ).robust
        yield attack.name, left, clock(x.device) - began


def reference(model: nn.Module, x: Tensor, y: Tensor, norm: str, batch: int) -> Iterator[Step]:
    """pyautoattack's standard version (Croce and Hein 2020), one attack after the other."""
    from pyautoattack import AutoAttack

    whole = AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=NORMS[norm][1], seed=0, device=x.device)
    left = accuracy(model, x, y).correct
    for attack in list(whole.attacks_to_run):
        began, todo = clock(x.device), left.nonzero().squeeze(1)
        whole.attacks_to_run = [attack]
        if len(todo):
            x_adv, _ = whole.run_standard_evaluation(x[todo], y[todo], batch_size=batch)
            left = left.clone()
            left[todo] = accuracy(model, x_adv, y[todo]).correct
        yield attack, Rate(left), clock(x.device) - began
        print(f"pyautoattack {norm}: {attack} leaves {Rate(left)}", flush=True)


def compare(model: nn.Module, x: Tensor, y: Tensor, norm: str, batch: int, peer: bool) -> Iterator[dict[str, Any]]:
    """One row for each attack: what is left after it, seconds, and how many images the two judge differently.

    The two libraries take turns, and an attack is run when its row is asked for.
    """
    references = reference(model, x, y, norm, batch) if peer else None
    for name, left, seconds in ours(model, x, y, norm, batch):
        row: dict[str, Any] = {"norm": norm, "attack": name, "robrep": left.to_dict() | {"seconds": seconds}}
        row |= {"pyautoattack": None, "differ": None}
        if references is not None:
            _, theirs, took = next(references)
            row["pyautoattack"] = theirs.to_dict() | {"seconds": took}
            row["differ"] = int((left.correct != theirs.correct).sum())
        yield row


def verdicts(model: nn.Module, x: Tensor, y: Tensor, norm: str, sizes: tuple[int, int]) -> int:
    """How many images are robust to APGD-CE in batches of one size and not in batches of the other."""
    kind, eps = NORMS[norm]
    a, b = (evaluate(model, x, y, suite("autoattack")[0], kind(eps), batch_size=n).robust.correct for n in sizes)
    return int((a != b).sum())


def table(facts: dict[str, Any]) -> results.Table:
    """What :func:`main` measured."""

    def percent(side: dict[str, Any] | None) -> str:
        return "not installed" if side is None else f"{100 * side['value']:.1f}"

    def cells(row: dict[str, Any]) -> list[str]:
        a, b = row["robrep"], row["pyautoattack"]
        ball = {"linf": "l-inf 8/255", "l2": "l2 128/255"}[row["norm"]]
        first = [ball, row["attack"], percent(a), percent(b), "" if b is None else str(row["differ"])]
        return [*first, f"{a['seconds']:.0f}", "" if b is None else f"{b['seconds']:.0f}"]

    columns = ["ball", "after", "robrep, %", "pyautoattack, %", "images that differ", "robrep, s", "pyautoattack, s"]
    settings = facts["settings"]
    caption = (
        f"Robust accuracy on {settings['images']} test images of CIFAR-10 ({100 * facts['clean']['value']:.1f} %), "
        f"batches of {settings['batch']}, {threads(facts)}"
    )
    return results.Table([cells(row) for row in facts["rows"]], columns, caption=caption, numbers=columns[2:])


def main(arguments: list[str] | None = None) -> None:
    """Train or load the network, compare, print the table, and keep the measurement if asked to."""
    parser = options(__doc__, images=512, batch=128, threads=2, epochs=16, verdicts=1000)
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--alone", action="store_true", help="do not run pyautoattack")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors of the network, in place of training")
    args = parser.parse_args(arguments)
    if args.show:
        return show(args.show)
    torch.set_num_threads(positive_int("threads", args.threads))
    data = load("cifar10")
    model = trained(data, args.weights, args.epochs)
    device = next(model.parameters()).device
    first = slice(max(args.images, args.verdicts))
    x, y = data.images("test", first).to(device), data.labels("test", first).to(device)
    images, labels = x[: args.images], y[: args.images]
    peer = not args.alone and importlib.util.find_spec("pyautoattack") is not None
    facts = measurement(
        {"images": len(images), "batch": args.batch, "data": data.fingerprint, "note": data.note},
        device.type,
        clean=accuracy(model, images, labels).to_dict(),
        rows=[row for norm in args.norms for row in compare(model, images, labels, norm, args.batch, peer)],
    )
    if peer:
        facts["versions"]["pyautoattack"] = importlib.metadata.version("pyautoattack")
    if args.verdicts:
        x, y = x[: args.verdicts], y[: args.verdicts]
        facts["verdicts"] = {norm: {"n": len(x), "differ": verdicts(model, x, y, norm, (64, 7))} for norm in args.norms}
    report(facts, table(facts), args.json)
    for norm, count in facts.get("verdicts", {}).items():
        print(f"{norm}: {count['differ']} of {count['n']} verdicts differ between batches of 64 and of 7")


if __name__ == "__main__":
    main()
