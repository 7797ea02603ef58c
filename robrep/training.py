"""One loop for every method: precision, schedule, checkpoints and exact resume, one device or several."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from robrep.checks import check_images, check_labels, nonnegative, one_of, positive_int
from robrep.data import floats
from robrep.files import atomic_write, code_hash, digest
from robrep.progress import Progress
from robrep.randomness import fold, permutation

History = list[dict[str, float]]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Schedule = Literal["cosine", "constant", "halfway"]
Optimizer = Literal["adamw", "sgd", "lars", "lars-all"]
OPTIMIZERS = ("adamw", "sgd", "lars", "lars-all")
CHECKPOINT_VERSION = 1


class Examples(Protocol):
    """Anything with a length that gives a batch for an int64 index: a tensor, or images decoded from a folder."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...


def best_precision(device: torch.device) -> Precision:
    """The fastest mixed precision that the device does natively: bf16, else fp16 (a T4), else float32."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.get_device_capability(device)[0] >= 8 else "16-mixed"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed"
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


def make_optimizer(
    name: Optimizer, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of that name, as :func:`fit` explains; one step is ``step()``, the rate that of its groups.

    Raises:
        ValueError: no such optimizer.
    """
    one_of("optimizer", name, OPTIMIZERS)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    from timm.optim.lars import Lars

    parameters = list(parameters)
    if name == "lars-all":
        return Lars(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay, always_adapt=True)
    layers, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": layers, "always_adapt": True}, {"params": vectors, "weight_decay": 0.0, "always_adapt": False}]
    return Lars([g for g in groups if g["params"]], lr=lr, momentum=0.9, weight_decay=weight_decay)


def make_fabric(precision: Precision = "32-true", accelerator: str = "auto") -> Any:
    """A Lightning Fabric for one device, or for all processes if ``torchrun`` started several."""
    import logging
    import warnings

    from lightning.fabric import Fabric

    one_of("precision", precision, ("auto", "32-true", "bf16-mixed", "16-mixed"))
    world, local = (int(os.environ.get(k, 1)) for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = best_precision(torch.device(accelerator))
    for name in ("lightning.fabric", "lightning.fabric.utilities.rank_zero", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces the precision each time
    warnings.filterwarnings("ignore", ".*srun.*", module="lightning.*")
    distributed: dict[str, Any] = {"strategy": "ddp", "num_nodes": world // local} if world > 1 else {}
    distributed |= {"accelerator": accelerator, "devices": local if world > 1 else 1, "precision": precision}
    fabric = Fabric(**distributed)
    fabric.launch()
    return fabric


@dataclass
class FirstSteps:
    """What :func:`first_steps` saw.

    Attributes:
        count: steps after which the training stops.
        losses: the loss of each step made.
        seconds: wall time of each.
        total: steps that the whole training has; 0 before it has begun.
    """

    count: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    total: int = 0

    @property
    def fastest(self) -> float:
        """Seconds of the fastest step; the first one is often slow.

        Raises:
            ValueError: no step was made.
        """
        if not self.seconds:
            raise ValueError("no step was made: nothing was trained")
        return min(self.seconds)

    @property
    def hours(self) -> float:
        """What all steps would take at the speed of the fastest; raises as ``fastest`` does."""
        return self.fastest * self.total / 3600

    def see(self, loss: float, seconds: float, total: int) -> None:
        """Note one step; raises :class:`Enough` after the last."""
        self.losses.append(loss)
        self.seconds.append(seconds)
        self.total = total
        if len(self.losses) == self.count:
            raise Enough


class Enough(Exception):
    """Ends a training that :func:`first_steps` watches."""


_watching: ContextVar[FirstSteps | None] = ContextVar("watching", default=None)


@contextmanager
def first_steps(count: int) -> Iterator[FirstSteps]:
    """Leave the block after the first ``count`` steps of :func:`fit`: what would the whole training cost?

    The steps are those of the whole training, with its schedule and precision; no checkpoint is written in its first
    epoch. What follows ``fit`` in the block is not run. For example::

        with first_steps(2) as seen:
            fit(method, x, y, epochs=2_000, batch_size=1_024)
        print(seen.losses, seen.hours)
    """
    seen = FirstSteps(positive_int("count", count))
    token = _watching.set(seen)
    try:
        yield seen
    except Enough:
        pass
    finally:
        _watching.reset(token)


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
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    after_epoch: Callable[[int], dict[str, float]] | None = None,
    progress: str | None = None,
) -> History:
    """Train ``method`` in place: minimise the sum of the loss terms that it returns.

    Each epoch visits the examples in a random order that depends on (seed, epoch); the last batch is dropped unless
    it is full, or the only one. ``method(x, y, ids, seed)`` gets float images in [0, 1], labels, the examples' indices
    and the epoch's seed; after each step ``method.after_step(step, steps)`` is called if there is one. The global
    random state is left as it was. The same call on the same machine gives the same weights, killed and resumed or not.

    Args:
        method: module whose forward gives a dict of named scalar loss terms; parameters that need no gradient are
            left alone.
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
        accelerator: "auto", "cpu", "cuda" or another name that Fabric knows.
        seed: seed of the order of the data and of everything that the method draws.
        checkpoint: file written after every epoch, and resumed from if it is there.
        cache: folder of checkpoints named by a hash of settings, data, initial weights and robrep's own code. A run
            that was finished is loaded, one that was cut short is resumed, anything else starts afresh.
        after_epoch: called with the number of epochs done; what it returns is added to the history.
        progress: a name for the run, shown with the epochs; None for silence.

    Returns:
        One dict for each epoch, with the mean of every loss term, ``loss`` (their sum), ``lr`` and ``seconds``.

    Raises:
        TypeError, ValueError: sizes or settings that do not fit, float images outside [0, 1], labels that are no class
            indices, a checkpoint from other settings, cut short or corrupt.
        FloatingPointError: the loss is not finite.
        OSError: the checkpoint cannot be written; the previous one is then intact.
    """
    settings = {
        "epochs": positive_int("epochs", epochs),
        "batch_size": positive_int("batch_size", batch_size),
        "lr": nonnegative("lr", lr),
        "optimizer": one_of("optimizer", optimizer, OPTIMIZERS),
        "weight_decay": nonnegative("weight_decay", weight_decay),
        "warmup_epochs": nonnegative("warmup_epochs", warmup_epochs),
        "schedule": one_of("schedule", schedule, get_args(Schedule)),
        "seed": seed,
    }
    n = len(x)
    if n == 0 or len(y) != n:
        raise ValueError(f"x has {n} examples and y has {len(y)} labels, expected as many labels, and at least one")
    check_labels(y)
    if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point():
        check_images(x)
    fabric = make_fabric(precision, accelerator)
    batch_size = min(batch_size, n)
    if batch_size % fabric.world_size:
        raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {fabric.world_size} processes")
    per_epoch = n // batch_size
    steps, warmup = epochs * per_epoch, round(warmup_epochs * per_epoch)

    path = Path(checkpoint) if checkpoint is not None else None
    after_step: Callable[[int, int], None] | None = getattr(method, "after_step", None)
    if path is not None or cache is not None:
        settings |= {"precision": str(fabric._precision.precision), "world_size": fabric.world_size}
        settings |= {"data": fingerprint(x), "labels": fingerprint(y)}
        settings |= {"code": code_hash(), "method": describe(method)}
        if path is None:
            path = Path(cache) / f"{digest(settings)[:24]}.pt"  # type: ignore[arg-type]

    fabric.to_device(method)
    trained = [p for p in method.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("method has no parameter that requires a gradient, so there is nothing to train")
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)  # in place; it refuses to run on a CPU
    step_of, updater = fabric.setup(method, make_optimizer(optimizer, trained, lr, weight_decay))
    history: History = []
    if path is not None and path.exists():
        history = _resume(path, settings, method, updater, fabric)

    x = x.to(fabric.device) if isinstance(x, Tensor) else x
    y = y.to(fabric.device)
    watching = _watching.get()
    devices = [fabric.device.index] if fabric.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        Progress(progress or "", epochs, "epoch", show=progress is not None and fabric.is_global_zero) as bar,
    ):
        if history:
            bar.update(len(history))
        for epoch in range(len(history), epochs):
            began, epoch_seed = time.perf_counter(), fold(seed, "epoch", epoch)
            torch.default_generator.manual_seed(fold(epoch_seed, "global"))  # for methods that draw from it (dropout)
            if devices:
                torch.cuda.manual_seed(fold(epoch_seed, "global", fabric.global_rank))
            order = permutation(epoch_seed, n)[: per_epoch * batch_size]
            method.train()
            batches = (ids[fabric.global_rank :: fabric.world_size] for ids in order.split(batch_size))
            sums: dict[str, Tensor] = {}
            step_began = began
            for step, ids in enumerate(batches, start=epoch * per_epoch):
                rate = lr * learning_rate(step, steps, warmup, schedule)
                terms = _step(step_of, updater, fabric, x, y, ids.to(fabric.device), epoch_seed, rate)
                if after_step is not None:
                    after_step(step, steps)
                if watching is not None:
                    loss = fabric.all_reduce(terms["loss"]).item()
                    watching.see(loss, time.perf_counter() - step_began, steps)
                    step_began = time.perf_counter()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0) + term
            means = {name: fabric.all_reduce(total / per_epoch).item() for name, total in sums.items()}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(f"the loss is {means['loss']} in epoch {epoch + 1}; terms: {means}")
            row = means | {"lr": rate, "seconds": time.perf_counter() - began}
            if after_epoch is not None:
                row |= after_epoch(epoch + 1)
            history.append(row)
            if path is not None and fabric.is_global_zero:
                state = {
                    "version": CHECKPOINT_VERSION,
                    "settings": settings,
                    "history": history,
                    "method": method.state_dict(),
                    "optimizer": updater.state_dict(),
                    "precision": fabric._precision.state_dict(),
                }
                _save(state, path)
            bar.update(1, ", ".join(f"{k} {v:.4g}" for k, v in means.items()))
    method.eval()
    return history


def _step(
    method: Callable[..., dict[str, Tensor]],
    updater: Any,
    fabric: Any,
    x: Examples,
    y: Tensor,
    ids: Tensor,
    seed: int,
    rate: float,
) -> dict[str, Tensor]:
    """One step of gradient descent on the examples ``ids``: the loss terms before it, and their sum ``loss``."""
    for group in updater.param_groups:
        group["lr"] = rate
    inputs = floats(x[ids if isinstance(x, Tensor) else ids.cpu()])
    terms = method(inputs.to(fabric.device), y[ids], ids, seed)
    loss = torch.stack(list(terms.values())).sum()
    updater.zero_grad(set_to_none=True)
    fabric.backward(loss)
    updater.step()
    return {name: term.detach() for name, term in ({"loss": loss} | terms).items()}


def describe(method: nn.Module) -> dict[str, Any]:
    """What distinguishes a method: its class, plain attributes and its modules', modules, and a hash of its weights."""
    plain = (bool, int, float, str, type(None))
    attributes = {
        f"{name}.{k}".removeprefix("."): repr(v)
        for name, module in method.named_modules()
        for k, v in sorted(vars(module).items())
        if not k.startswith("_") and k != "training" and (isinstance(v, plain) or dataclasses.is_dataclass(v))
    }
    weights = hashlib.sha256()
    for name, value in method.state_dict().items():
        weights.update(name.encode() + fingerprint(value).encode())
    return {
        "class": type(method).__name__,
        "attributes": attributes,
        "modules": repr(method),
        "weights": weights.hexdigest()[:16],
    }


def fingerprint(value: Any) -> str:
    """A hash of a tensor's type, shape and bytes; of anything else, its own ``fingerprint``."""
    if not isinstance(value, Tensor):
        return str(value.fingerprint)
    content = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
    except RuntimeError as error:  # what torch makes of a disk that is full
        raise OSError(f"checkpoint {path} cannot be written: {error}") from error


def _entries(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested settings, by dotted names."""
    for k, v in settings.items():
        if isinstance(v, dict):
            yield from _entries(v, f"{prefix}{k}.")
        else:
            yield prefix + k, v


def _resume(path: Path, settings: dict[str, Any], method: nn.Module, updater: Any, fabric: Any) -> History:
    """Load a checkpoint into method and optimizer after checking that it belongs to this run."""
    broken = (RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError)
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, found, now = state["version"], dict(_entries(state["settings"])), dict(_entries(settings))
    except (*broken, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"checkpoint {path} is cut short or no checkpoint of robrep: {error}") from error
    if version != CHECKPOINT_VERSION:
        raise ValueError(f"checkpoint {path} has version {version}, expected {CHECKPOINT_VERSION}")
    differ = sorted(k for k in now.keys() | found.keys() if now.get(k) != found.get(k))
    if differ:
        came = ", ".join(f"{k} = {found.get(k)!r:.80}, now {now.get(k)!r:.80}" for k in differ)
        raise ValueError(f"checkpoint {path} is from other settings ({came}); remove it or name another")
    method.load_state_dict(state["method"])
    updater.load_state_dict(state["optimizer"])
    fabric._precision.load_state_dict(state["precision"])
    return state["history"]
