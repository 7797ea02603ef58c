"""Passes of a model over images: batches that fit the memory, precision, processes that share the work."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from robrep.checks import check_images, one_of, positive_int
from robrep.data import floats
from robrep.gaussians import upcast
from robrep.training import HALF, Examples, Precision, best_precision

T = TypeVar("T")
CPU_BATCH, GPU_BATCH = 500, 2048  # images in a pass; more are hardly faster
NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9


def images_of(x: Examples, ids: Tensor) -> Tensor:
    """Images as floats in [0, 1], in float32 or float64, contiguous; checked."""
    return upcast(check_images(floats(x[ids]))).contiguous()


def normal(t: Tensor) -> Tensor:
    """A tensor that autograd takes: a copy if it was made inside ``torch.inference_mode()``."""
    return t.clone() if t.is_inference() else t


def random_state(device: torch.device) -> list[Any]:
    """The global random states of torch, numpy and Python, to be compared."""
    torches = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    _, words, *place = np.random.get_state(legacy=True)
    return [*(t.numpy().tobytes() for t in torches), np.asarray(words).tobytes(), place, random.getstate()]


# --- precision ----------------------------------------------------------------------------------------------------


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of an attack's passes; "32-true" switches a caller's autocast off.

    Raises:
        ValueError: an unknown precision.
    """
    one_of("precision", precision, get_args(Precision))
    kind = HALF.get(best_precision(device) if precision == "auto" else precision)
    return torch.autocast(device.type, kind, enabled=kind is not None)


def _legacy() -> tuple[str, bool] | None:
    """The settings of TF32 before torch 2.9; None where the caller uses the new ones, which refuse to be mixed."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Float32 means float32 for the time of a verdict: no autocast, no TF32; the global settings come back."""
    b: Any = torch.backends
    units = [b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn] if NEW else []
    legacy, precisions = _legacy(), [unit.fp32_precision for unit in units]
    try:
        if legacy is not None:  # both kinds of settings, for compilers look at the old ones
            torch.set_float32_matmul_precision("highest")
            b.cudnn.allow_tf32 = False
        for unit in units:
            unit.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            b.cudnn.allow_tf32 = legacy[1]
        for unit, precision in zip(units, precisions, strict=True):
            unit.fp32_precision = precision


# --- batches ------------------------------------------------------------------------------------------------------


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    return "out of memory" in str(error) or "DefaultCPUAllocator" in str(error)


class Batches:
    """How many images go into a pass: as many as were asked for or fit, halved where memory runs out.

    Args:
        device: where the model is.
        size: images in a pass; None for 500 on a CPU and 2,048 on a GPU.
    """

    def __init__(self, device: torch.device, size: int | None) -> None:
        usual = GPU_BATCH if device.type == "cuda" else CPU_BATCH
        self.device, self.size = device, usual if size is None else positive_int("batch_size", size)

    def run(self, ids: Tensor, work: Callable[[Tensor], T]) -> Iterator[tuple[Tensor, T]]:
        """``work`` on parts of ``ids``, each with its result; a part that memory is too small for is halved.

        Raises:
            torch.OutOfMemoryError: memory runs out with a single image.
        """
        while len(ids):
            part = ids[: self.size]
            try:
                result = work(part)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise torch.OutOfMemoryError(
                        f"memory of {self.device} runs out at a batch size of 1, expected room for one image, the "
                        "model and the attack: free memory, or take a smaller model or precision='bf16-mixed'"
                    ) from error
                self.size = len(part) // 2
            else:
                yield part, result
                ids = ids[len(part) :]
                continue
            if self.device.type == "cuda":  # here nothing holds on to the failed pass
                torch.cuda.empty_cache()


# --- processes ----------------------------------------------------------------------------------------------------


class Processes:
    """The processes that ``torchrun`` started; each takes every k-th image, and all learn all verdicts.

    Args:
        spread: False for this process alone.
    """

    def __init__(self, spread: bool) -> None:
        self.rank, self.world = 0, 1
        if not spread or not dist.is_available():
            return
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def share(self, ids: Tensor) -> Tensor:
        """The images of this process."""
        return ids[self.rank :: self.world]

    def agree(self, what: str) -> None:
        """Refuse processes that evaluate different things, whose verdicts do not belong together.

        Raises:
            ValueError: ``what`` is not the same everywhere.
        """
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, what)
        if len(set(said)) > 1:
            raise ValueError(
                f"the {self.world} processes evaluate different models, images or attacks, expected the same in all of "
                "them; or spread=False, where each does work of its own"
            )

    def join(self, t: Tensor) -> Tensor:
        """A tensor of which each process knows the rows of its own images, and has zeros elsewhere: all of its rows."""
        if self.world == 1:
            return t
        device = "cpu" if "cpu" in str(dist.get_backend_config()) else "cuda"
        whole = (t.int() if t.dtype == torch.bool else t).to(device, copy=True)
        dist.all_reduce(whole)
        return whole.to(t)
