"""One loop for every method: precision, schedule, checkpoints and exact resume, one device or several."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robrep.checkpoints import Keeper, keeping_place
from robrep.checks import check_images, check_labels, nonnegative, one_of, positive_int
from robrep.optimizers import Optimizer, make_optimizer
from robrep.progress import Progress
from robrep.random import as_seed, fold, permutation
from robrep.steps import TrainingStep

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Schedule = Literal["cosine", "constant", "halfway"]
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class History(list[dict[str, float]]):
    """One dict for each epoch of a training.

    Attributes:
        how: whether steps were replayed as a CUDA graph or made one by one, and if so, why; "loaded" if none was made.
    """

    how = "loaded"


class Examples(Protocol):
    """Anything with a length that gives a batch for an int64 index: a tensor, or images decoded from a folder."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...


def best_precision(device: torch.device) -> Precision:
    """The fastest mixed precision that the device does natively: bf16, else fp16 (a T4), else float32."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.get_device_capability(device)[0] >= 8 else "16-mixed"
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # older versions cannot say
        has = torch.cpu.get_capabilities()
        return "bf16-mixed" if has.get("avx512_bf16") or has.get("amx_bf16") else "32-true"
    return "32-true"


def learning_rate(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Factor on the peak learning rate at ``step`` of ``steps``: linear over ``warmup`` steps, then the schedule.

    Cosine goes from 1 right after the warm-up to 0 at ``steps``; "halfway" is 1, and 0.1 in the second half.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "halfway":
        return 1.0 if 2 * step < steps else 0.1
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def default_accelerator() -> str:
    """What ``ROBREP_ACCELERATOR`` in the environment says; else "cuda" where there is a GPU, and "cpu" elsewhere."""
    return os.environ.get("ROBREP_ACCELERATOR") or ("cuda" if torch.cuda.is_available() else "cpu")


def make_fabric(accelerator: str = "auto") -> Any:
    """A Lightning Fabric for one device, or for all processes if ``torchrun`` started several.

    "auto" stands for :func:`default_accelerator`.
    """
    import logging

    from lightning_fabric import Fabric

    world, local = (int(os.environ.get(k, 1)) for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if accelerator == "auto":
        accelerator = default_accelerator()
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*srun.*", module="lightning.*")
    distributed: dict[str, Any] = {"strategy": "ddp", "num_nodes": world // local} if world > 1 else {}
    fabric = Fabric(accelerator=accelerator, devices=local if world > 1 else 1, **distributed)
    fabric.launch()
    return fabric


#: While it is set, called after each step with its loss, its seconds, and how many steps the whole training has.
watcher: ContextVar[Callable[[float, float, int], None] | None] = ContextVar("watcher", default=None)


def _loaded(x: Examples, batches: list[Tensor], device: torch.device, workers: int | None) -> Iterable[Tensor]:
    """The inputs of each batch, read as whole batches by torch's loader."""
    gpu, own = device.type == "cuda", torch.Generator()  # else the loader would draw a seed from the global state
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if gpu else 0
    whole: dict[str, Any] = {"sampler": batches, "batch_size": None}
    return DataLoader(cast(Any, x), **whole, num_workers=workers, pin_memory=gpu, generator=own)


def _check_examples(x: Examples, y: Tensor) -> int:
    """The number of examples, if inputs and labels fit each other."""
    check_labels(y, len(x))
    if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point():
        check_images(x)
    return len(x)


def _refusal(capture: bool, processes: int, scaled: bool) -> str:
    """Why steps are not captured as a graph; "" if they may be."""
    reasons = {
        "capture is False": not capture,
        f"{processes} processes train together": processes > 1,
        "the loss scaling of 16-mixed decides on the host": scaled,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def fit(
    method: nn.Module,
    x: Examples,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float = 1e-3,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 0.0,
    warmup_epochs: float = 0.0,
    schedule: Schedule = "cosine",
    precision: Precision = "32-true",
    accelerator: str = "auto",
    capture: bool = True,
    workers: int | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    save_every: float = 120.0,
    after_epoch: Callable[[int], dict[str, float]] | None = None,
    progress: str | None = None,
) -> History:
    """Train ``method`` in place: minimise the sum of the loss terms that it returns.

    Each epoch visits the examples in a random order that depends on (seed, epoch); the last batch is dropped unless
    it is full, or the only one. ``method(x, y, ids, seed)`` gets float images in [0, 1], labels, the examples' indices
    and the epoch's seed; after each step ``method.after_step(step, steps)`` is called if there is one. ``seed`` and
    ``step`` are int64 tensors without dimensions, written to before each step. The global random state is left as it
    was. The same call on the same machine gives the same weights, killed and resumed or not.

    On one GPU the whole step is captured as a CUDA graph after a few steps, and replayed. A method that reads values of
    tensors on the host, or does other things in other steps, says so by an attribute ``capturable = False``. Arguments
    are checked in the first step. The loss is looked at once an epoch, the only time that the host waits.

    Args:
        method: module whose forward gives a dict of named scalar loss terms; it is moved to the accelerator.
            Parameters that need no gradient are left alone.
        x: uint8 images (N, C, H, W), or float32 inputs of any shape (N, ...), or anything indexable like them.
        y: int64, shape (N,).
        epochs: passes over the data, at least 1.
        batch_size: examples in a step, over all devices.
        lr: peak learning rate.
        optimizer: "adamw", "sgd" with momentum 0.9, or "lars", the same with each layer's rate adapted to its weights'
            norm (You et al. 2017; trust coefficient 0.001), which neither adapts nor decays vectors, that is biases and
            the parameters of normalisation (as in SimCLR and BYOL); "lars-all" adapts and decays them, too (RoCL).
        weight_decay: as the optimizer means it.
        warmup_epochs: length of the linear warm-up.
        schedule: "cosine" to zero, "constant", or "halfway", which divides the rate by ten after half of the steps.
        precision: "auto" takes the device's fastest mixed precision.
        accelerator: "auto" (see :func:`default_accelerator`), "cpu", "cuda" or another name that Fabric knows.
        capture: False makes every step one by one. So do several GPUs and "16-mixed", whose scaler decides on the host.
        workers: processes that read inputs which are not a tensor; None for 8 on a GPU (or as many as there are cores),
            and 0 on a CPU.
        seed: seed of the order of the data and of everything that the method draws.
        cache: folder of checkpoints named by a hash of settings, data, initial weights and robrep's own code. A run
            that was finished is loaded, one that was cut short is resumed, anything else starts afresh. A damaged file
            is set aside. A method whose code or attributes cannot be identified is not kept, with a warning.
        save_every: least time between two checkpoints, in seconds; they are written after an epoch.
        after_epoch: called with the number of epochs done; what it returns is added to the history.
        progress: a name for the run, shown with the epochs; None for silence.

    Returns:
        One dict for each epoch, with the mean of every loss term, ``loss`` (their sum), ``lr`` and ``seconds``; its
        attribute ``how`` says whether steps were captured.

    Raises:
        TypeError, ValueError: sizes or settings that do not fit, float images outside [0, 1], labels that are not class
            indices.
        FloatingPointError: the loss is not finite.
        OSError: the checkpoint cannot be written; the previous one is then intact.
    """
    settings = {
        "epochs": positive_int("epochs", epochs),
        "batch_size": positive_int("batch_size", batch_size),
        "lr": nonnegative("lr", lr),
        "optimizer": one_of("optimizer", optimizer, get_args(Optimizer)),
        "weight_decay": nonnegative("weight_decay", weight_decay),
        "warmup_epochs": nonnegative("warmup_epochs", warmup_epochs),
        "schedule": one_of("schedule", schedule, get_args(Schedule)),
        "seed": (seed := int(as_seed(seed))),
    }
    one_of("precision", precision, get_args(Precision))
    n = _check_examples(x, y)
    fabric = make_fabric(accelerator)
    device, world = fabric.device, fabric.world_size
    precision = best_precision(device) if precision == "auto" else precision
    batch_size = min(batch_size, n)
    if batch_size % world:
        raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {world} processes")
    per_epoch = n // batch_size
    steps, warmup = epochs * per_epoch, round(warmup_epochs * per_epoch)

    settings |= {"precision": precision, "world_size": world}
    path = keeping_place(cache, settings, x=x, y=y, method=method)

    fabric.to_device(method)
    trained = [p for p in method.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("method has no parameter that requires a gradient, so there is nothing to train")
    if world > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)  # in place; it refuses to run on a CPU
    rate = torch.tensor(0.0, device=device)  # a tensor from the start: some optimizers look at its kind
    forward, updater = method, make_optimizer(optimizer, trained, rate, weight_decay)
    if world > 1:
        forward, updater = fabric.setup(method, updater)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")  # type: ignore[attr-defined]
    parts = {"method": method, "optimizer": updater, "scaler": scaler}
    keeper = Keeper(path, settings, parts, every=save_every, writes=fabric.is_global_zero)
    history = History(keeper.resume())
    held = x.to(device) if isinstance(x, Tensor) else None
    step = TrainingStep(
        method, forward, updater, y.to(device),
        x=held, batch_size=batch_size // world, steps=steps, autocast=HALF.get(precision),
        scaler=scaler if scaler.is_enabled() else None,
        backward=fabric.backward if world > 1 else Tensor.backward,
        refusal=_refusal(capture, world, scaler.is_enabled()),
    )  # fmt: skip

    def one_epoch(epoch: int) -> dict[str, float]:
        """All steps of an epoch: the mean of each loss term, the last learning rate, and seconds."""
        began, epoch_seed, watching = time.perf_counter(), fold(seed, "epoch", epoch), watcher.get()
        torch.default_generator.manual_seed(fold(epoch_seed, "global"))  # for methods that draw from it (dropout)
        if device.type == "cuda":
            torch.cuda.manual_seed(fold(epoch_seed, "global", fabric.global_rank))
        order = permutation(epoch_seed, n, "cpu" if held is None else device)[: per_epoch * batch_size]
        batches = [ids[fabric.global_rank :: world] for ids in order.split(batch_size)]
        inputs = _loaded(x, batches, device, workers) if held is None else [None] * per_epoch
        method.train()
        step_began = began
        for number, (ids, batch) in enumerate(zip(batches, inputs, strict=True), start=epoch * per_epoch):
            now = lr * learning_rate(number, steps, warmup, schedule)
            step(ids, batch, seed=epoch_seed, number=number, rate=now)
            if watching is not None:
                loss = fabric.all_reduce(step.loss).item()
                watching(loss, time.perf_counter() - step_began, steps)
                step_began = time.perf_counter()
        means = step.means(per_epoch, fabric.all_reduce)
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"the loss is {means['loss']} in epoch {epoch + 1}; terms: {means}")
        return means | {"lr": now, "seconds": time.perf_counter() - began}

    shown = progress is not None and fabric.is_global_zero
    with (
        torch.random.fork_rng([device.index] if device.type == "cuda" else []),
        Progress(progress or "", epochs, "epoch", show=shown) as bar,
    ):
        if history:
            bar.update(len(history))
        for epoch in range(len(history), epochs):
            row = one_epoch(epoch)
            bar_text = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("lr", "seconds"))
            history.append(row | (after_epoch(epoch + 1) if after_epoch is not None else {}))
            history.how = step.how
            keeper.save(history, last=epoch + 1 == epochs)
            bar.update(1, bar_text)
    method.eval()
    return history
