"""Time of PGD over its floor: ``python benchmarks/attacks.py [--batch 128] [--steps 20] [--runs 15] [--threads 2]``.

The floor is what no attack can do without: ``steps`` forward passes, each with a backward pass to the input, of the
same network on the same batch. Runs of the floor and of the attack take turns; the smallest and the median ratio are
printed. The attack starts at a given point; what drawing a random start costs is timed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robrep.attacks import PGD, Linf
from robrep.losses import cross_entropy


def small_cnn() -> nn.Module:
    """About 25,000 parameters, so that every stray pass over the images shows."""
    conv = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)]
    return nn.Sequential(*conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def floor(objective: Callable[..., Tensor], x: Tensor, y: Tensor, steps: int) -> None:
    """``steps`` times the gradient of the summed loss with respect to the images, and nothing else."""
    for _ in range(steps):
        x_adv = x.detach().requires_grad_()
        torch.autograd.grad(objective(x_adv, y).sum(), x_adv)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"batch": 128, "steps": 20, "runs": 15, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, x, y = small_cnn(), torch.rand(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    threat, attack, ids = Linf(8 / 255), PGD(args.steps, random_start=False), torch.arange(args.batch)

    def objective(x_: Tensor, y_: Tensor) -> Tensor:
        return cross_entropy(model(x_), y_)

    works = {
        "floor": lambda: floor(objective, x, y, args.steps),
        "attack": lambda: attack(objective, x, threat, y),
        "start": lambda: threat.start(x, ids, 0),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(args.runs + 2):
        for name, work in works.items():
            took = seconds(work)
            if run >= 2:  # the first two warm up
                times[name].append(took)
    ratios = [a / f for a, f in zip(times["attack"], times["floor"], strict=True)]
    print(f"PGD-{args.steps}, batch {args.batch} x 3 x 32 x 32, {args.threads} threads, {args.runs} interleaved runs")
    for name, took in times.items():
        print(f"  {name:7s} minimum {1e3 * min(took):8.2f} ms, median {1e3 * statistics.median(took):8.2f} ms")
    print(
        f"  attack over floor: {min(times['attack']) / min(times['floor']):.3f} of the minima, "
        f"{statistics.median(ratios):.3f} in the median"
    )


if __name__ == "__main__":
    main()
