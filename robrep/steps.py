"""One training step as operations on tensors that stay where they are, so that a GPU can replay it as one CUDA graph.

A small network waits for the launch of its kernels: an attack of five steps on an MNIST encoder takes 17 ms launched
one by one, and 1.6 ms replayed as a graph (one H200). What a graph replays is fixed, down to the addresses. So whatever
changes from step to step (examples, seed, learning rate, number of the step) is a tensor that is written to before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robrep.checks import looking
from robrep.data import floats

WARM_UP = 3  # steps before the capture: optimizers make their state in the first, libraries choose their kernels


def cuda_graph(body: Callable[[], None]) -> Callable[[], None]:
    """Capture what ``body`` launches, without running it; returns the function that runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may allocate at the same time
        body()
    return graph.replay


CAPTURE: dict[str, Callable[[Callable[[], None]], Callable[[], None]]] = {"cuda": cuda_graph}


@dataclass(eq=False)
class TrainingStep:
    """One step: forward pass with its attack, backward pass, optimizer, and the method's ``after_step``.

    Args:
        method: module whose forward gives a dict of named scalar loss terms.
        forward: what is called; ``method``, or its wrapper where several processes train together.
        optimizer: its rate is replaced by a tensor that each step sets.
        y: labels of all examples, (N,), on the device.
        x: all inputs on the device, (N, ...); None if each call brings its own.
        batch_size: examples in a step of this process.
        steps: steps of the whole training.
        autocast: the half precision of the forward pass; None for none.
        scaler: of the gradients in float16, or None.
        backward: ``backward(loss)``.
        refusal: why the step must not be captured; "" if it may be.

    Attributes:
        sums: for each loss term and their sum ``loss``, what :meth:`means` has not read yet.
        loss: of the last step.
    """

    method: nn.Module
    forward: Callable[..., dict[str, Tensor]]
    optimizer: Any
    y: Tensor
    _: KW_ONLY
    batch_size: int
    steps: int
    x: Tensor | None = None
    autocast: torch.dtype | None = None
    scaler: Any = None
    backward: Callable[[Tensor], None] = field(default_factory=lambda: Tensor.backward)
    refusal: str = ""

    def __post_init__(self) -> None:
        device = self.device = self.y.device
        if not self.refusal and device.type not in CAPTURE:
            self.refusal = f"a device of type {device.type} has no graphs"
        if not self.refusal and not getattr(self.method, "capturable", True):
            self.refusal = f"{type(self.method).__name__} says that it cannot be captured"
        self.made = 0
        self.after_step: Callable[[Tensor, int], None] | None = getattr(self.method, "after_step", None)
        self.ids = torch.zeros(self.batch_size, dtype=torch.int64, device=device)
        self.seed, self.number = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self.rate = torch.zeros((), dtype=torch.float32, device=device)
        self.inputs: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.replay: Callable[[], None] | None = None
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type != "meta":
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate

    def __call__(self, ids: Tensor, inputs: Tensor | None, *, seed: int, number: int, rate: float) -> None:
        """Make one step on the examples ``ids``, whose ``inputs`` are given if the step does not hold all of them."""
        self.ids.copy_(ids, non_blocking=True)
        self.seed.fill_(seed)
        self.number.fill_(number)
        self.rate.fill_(rate)
        if inputs is not None and self.inputs is None:
            self.inputs = inputs.to(self.device, copy=True)
        elif inputs is not None and self.inputs is not None:
            self.inputs.copy_(inputs, non_blocking=True)
        if self.made == WARM_UP and not self.refusal:
            self._capture()
        if self.replay is not None:
            self.replay()
        else:
            with looking(self.made == 0):  # arguments are checked once
                self._launch()
        self.made += 1

    @property
    def how(self) -> str:
        """Whether steps are captured, and if not, why."""
        if self.replay is not None:
            return f"captured after {WARM_UP} steps"
        return f"step by step: {self.refusal or f'a capture comes after {WARM_UP} steps, and there were {self.made}'}"

    def _capture(self) -> None:
        try:
            with looking(False):
                self.replay = CAPTURE[self.device.type](self._body)
        except RuntimeError as error:  # what is captured is not run, so nothing has changed
            self.refusal = f"the capture failed ({str(error).strip().splitlines()[0]})"

    def _launch(self) -> None:
        if self.side is None or self.refusal:
            self._body()
            return
        self.side.wait_stream(torch.cuda.current_stream())  # warm-up is on another stream, as captures are
        with torch.cuda.stream(self.side):
            self._body()
        torch.cuda.current_stream().wait_stream(self.side)

    def _body(self) -> None:
        x = self.inputs if self.x is None else self.x[self.ids]
        half = nullcontext()
        if self.autocast is not None:  # a cache of weights would outlive the capture, and keep those of no_grad
            half = torch.autocast(self.device.type, self.autocast, cache_enabled=False)  # type: ignore[assignment]
        with half:
            terms = self.forward(floats(x), self.y[self.ids], self.ids, self.seed)  # type: ignore[arg-type]
            loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            self.backward(loss)
            self.optimizer.step()
        else:
            self.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.after_step is not None:
            self.after_step(self.number, self.steps)
        self.loss.copy_(loss.detach())
        for name, term in ({"loss": loss} | terms).items():
            self.sums.setdefault(name, torch.zeros_like(self.loss)).add_(term.detach())

    def means(self, count: int, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each loss term over the last ``count`` steps; this is where the host waits for the device."""
        sums = all_reduce(torch.stack(list(self.sums.values())) / count).tolist()
        for value in self.sums.values():
            value.zero_()
        return dict(zip(self.sums, sums, strict=True))
