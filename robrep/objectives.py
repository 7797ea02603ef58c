"""What an attack on a classifier makes large: functions of (logits, labels), one score for each example.

Each is above (or large) where the label loses. ``classifier_objective`` turns a model and one of them into the
objective that every attack takes. ``predict`` calls a model: what draws noise inside it gets ids and seed, and what
comes out is checked to be logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Objective, random_objective
from robrep.checks import check_labels, may_look, one_of, positive_int
from robrep.gaussians import upcast
from robrep.losses import cross_entropy
from robrep.random import fold

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _label_and_others(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit (N,) and all logits with the label's at minus infinity (N, C)."""
    logits = upcast(logits)
    if logits.shape[1] < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, expected at least 2 classes")
    check_labels(y, len(logits), logits.shape[1])
    own = logits.gather(1, y[:, None])
    return own.squeeze(1), logits.scatter(1, y[:, None], -torch.inf)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's (Carlini and Wagner 2017); above 0 where the prediction is wrong.

    Shapes: (N, C) and (N,), result (N,).

    Raises:
        TypeError, ValueError: ``y`` is no int64 vector of N labels in 0 ... C - 1, or there is one class.
    """
    own, others = _label_and_others(logits, y)
    return others.amax(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over the gap between the largest and the third largest logit.

    Scaling or shifting all logits changes nothing, so a model cannot hide its gradient by large logits (Croce and Hein
    2020, eq. 6, with the sign that makes it grow as the label loses). With two classes there is no third logit, and
    the plain :func:`margin` is returned.
    """
    difference = margin(logits, y)
    if logits.shape[1] < 3:
        return difference
    top = upcast(logits).topk(3, dim=1).values
    return difference / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's, shape (N,) (MultiTargeted attack, Gowal et al. 2019).

    Raises:
        TypeError, ValueError: as for :func:`margin`, for ``target`` too, which must be another class than the label.
    """
    own, others = _label_and_others(logits, y)
    check_labels(target, len(logits), logits.shape[1], "target")
    if may_look(target) and (target == y).any():
        raise ValueError(f"target is the label of {int((target == y).sum())} images, expected another class")
    return others.gather(1, target[:, None]).squeeze(1) - own


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's, over z_1 - (z_3 + z_4) / 2 of the sorted logits.

    With three classes the denominator is z_1 - z_3; with two the plain difference is returned. Source: Croce and Hein
    2020, eq. 7.
    """
    difference = targeted_margin(logits, y, target)
    if logits.shape[1] < 3:
        return difference
    top = upcast(logits).topk(min(4, logits.shape[1]), dim=1).values
    return difference / (top[:, 0] - top[:, 2:].mean(1) + 1e-12)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "targeted_margin": targeted_margin,
    "targeted_dlr": targeted_dlr,
}


def likely_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` wrong classes with the largest logits, the largest first; int64 (N, at most C - 1)."""
    _, others = _label_and_others(logits, y)
    return others.topk(min(positive_int("count", count), logits.shape[1] - 1), dim=1).indices


# --- models: what goes in, what comes out, and their noise --------------------------------------------------------


def _count(module: Any) -> int:
    """How many samples a module averages if it takes ``ids`` and ``seed``, as a ``Classifier`` does; else 0."""
    samples = getattr(module, "samples", 0)
    if isinstance(samples, bool) or not isinstance(samples, Integral) or samples < 1:
        return 0
    compiled = getattr(module, "_orig_mod", module)  # torch.compile hides the signature
    taken = inspect.signature(getattr(compiled, "forward", compiled)).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    return int(samples) if anything or {"ids", "seed"} <= taken.keys() else 0


def samplers(model: Any) -> dict[str, Any]:
    """The outermost modules of ``model`` that draw noise, by their names; "" is ``model`` itself.

    They have a number ``samples`` above 0 and take ``ids`` and ``seed``, as a :class:`~robrep.heads.Classifier` does.
    """
    if _count(model):
        return {"": model}
    found: dict[str, Any] = {}
    for name, child in model.named_children() if isinstance(model, nn.Module) else ():
        found |= {f"{name}.{inner}".removesuffix("."): sampler for inner, sampler in samplers(child).items()}
    return found


def draws_noise(model: Any) -> bool:
    """Whether ``model``, or a module somewhere inside it, draws noise from ``ids`` and ``seed``."""
    return bool(samplers(model))


def samples_of(model: Any) -> int:
    """How many samples the model averages; 0 if it draws no noise."""
    return max(map(_count, samplers(model).values()), default=0)


_called: ContextVar[bool] = ContextVar("called", default=False)


def own_ids(ids: Tensor | None, x: Tensor) -> Tensor:
    """The ``ids`` that a module which draws noise was given; 0 ... N - 1 if it was given none.

    Raises:
        ValueError: it was given none by a model that is attacked or evaluated: the attack and the verdict would share
            their noise.
    """
    if ids is not None:
        return ids
    if _called.get():
        raise ValueError(
            "model calls a module that draws noise without ids and seed, expected it to be a submodule with a number "
            "``samples`` (not in a list or a closure), or a forward(x, *, ids, seed) of the model that passes them on"
        )
    return torch.arange(len(x), device=x.device)


def fitting(module: Any, x: Tensor) -> Tensor:
    """Floating-point ``x`` in the dtype of the module's first parameter, so that float32 images enter a model in half
    precision; anything else as it is."""
    parameters = module.parameters() if isinstance(module, nn.Module) and x.is_floating_point() else ()
    return next((x.to(p.dtype) for p in parameters if p.dtype in FLOATS), x)


@contextmanager
def _patched(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Within, the module's own attribute ``name`` is ``value``."""
    before = {key: kept for key, kept in vars(module).items() if key == name}
    vars(module)[name] = value
    try:
        yield
    finally:
        del vars(module)[name]
        vars(module).update(before)


@contextmanager
def _handed_down(model: nn.Module, found: dict[str, Any], n: int, ids: Tensor, seed: int) -> Iterator[None]:
    """Within, hooks hand ids and seed to the modules ``found`` inside ``model``, another seed with each call."""
    calls: dict[str, int] = {}
    wrong: dict[str, int] = {}  # called on other rows than the images

    def hand(name: str, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if given.get("ids") is not None:
            return None
        rows = next((len(t) for t in (*args, *given.values()) if isinstance(t, Tensor) and t.ndim), 0)
        if rows != n:
            wrong[name] = rows
            return args, given | {"ids": torch.arange(rows, device=ids.device)}
        call = calls[name] = calls.get(name, -1) + 1
        return args, given | {"ids": ids, "seed": fold(seed, "call", call) if call else seed}

    inside = {id(m) for sampler in found.values() for m in sampler.modules()} - set(map(id, found.values()))
    with ExitStack() as stack:
        for name, sampler in found.items():
            handle = sampler.register_forward_pre_hook(partial(hand, name), with_kwargs=True)
            stack.callback(handle.remove)
        # what compiles, or splits the batch, would not see the hooks: it calls what it wraps instead
        for m in (m for m in model.modules() if id(m) not in inside):
            wrapped = m.module if isinstance(m, nn.DataParallel) else getattr(m, "_orig_mod", None)
            if wrapped is not None and m not in found.values():
                stack.enter_context(_patched(m, "forward", wrapped.__call__))
            if getattr(m, "_compiled_call_impl", None) is not None:
                stack.enter_context(_patched(m, "_compiled_call_impl", None))
        yield
    for name, rows in wrong.items():
        if _count(found[name]):  # it may have learnt that it has nothing to sample
            raise ValueError(
                f"model calls its module {name}, which draws noise, on {rows} rows for a batch of {n} images, expected "
                "one row for each image, in order; or give the model a number ``samples`` and a "
                "forward(x, *, ids, seed) of its own that passes them on, as Classifier has"
            )


def with_noise(model: Any) -> Callable[..., Any]:
    """``call(x, ids=None, seed=0)``: what ``model`` gives for x, with ids and seed for whatever draws noise inside.

    A sampling module is found wherever it sits among the model's submodules. A compiled or data-parallel wrapper
    around it is passed by, so that the noise is that of the bare model.

    Raises (the function):
        ValueError: a module that draws noise is hidden, or called on other rows than the images in order.
    """
    found = samplers(model)

    def call(x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Any:
        token = _called.set(True)
        try:
            x = fitting(model, x)
            if not found:
                return model(x)
            ids = torch.arange(len(x), device=x.device) if ids is None else ids
            if "" in found:
                return model(x, ids=ids, seed=seed)
            with _handed_down(model, found, len(x), ids, seed):
                return model(x)
        finally:
            _called.reset(token)

    return call


def as_logits(output: Any, n: int) -> Tensor:
    """Logits (N, C) from what a model gave for N images; the ``logits`` of a Hugging Face ``ModelOutput``.

    Raises:
        TypeError, ValueError: it is no floating-point tensor (N, C) of at least 2 classes.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    expected = f"expected logits: a floating-point tensor of shape ({n}, C), with at least 2 classes"
    if not isinstance(logits, Tensor):
        raise TypeError(f"model gives a {type(output).__name__}, {expected}")
    if not logits.is_floating_point():
        raise TypeError(f"model gives {logits.dtype} of shape {tuple(logits.shape)}, {expected}")
    if logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] < 2:
        one = logits.numel() == n
        hint = " (a single logit z of class 1 stands for the two logits 0 and z: concatenate them)" if one else ""
        raise ValueError(f"model gives shape {tuple(logits.shape)}, {expected}{hint}")
    return logits


def check_model(model: Any) -> None:
    """Refuse what cannot be evaluated as a classifier.

    Raises:
        TypeError: it is no ``nn.Module``.
        ValueError: its parameters were made in inference mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, expected an nn.Module that maps images (N, C, H, W) to logits (N, C); "
            "put a function into the forward of one"
        )
    if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "model has weights made inside torch.inference_mode(), which let no gradient through, expected a model "
            "built and loaded outside of it"
        )


def predict(model: Any, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
    """The model's logits (N, C) for images (N, C, H, W), with ids and seed for whatever draws noise inside it.

    Raises:
        TypeError, ValueError: as for :func:`as_logits` and :func:`with_noise`.
    """
    return as_logits(with_noise(model)(x, ids=ids, seed=seed), len(x))


def classifier_objective(model: Any, loss: str | Callable[..., Tensor] = "cross_entropy") -> Objective:
    """``objective(x', y)``, or ``objective(x', y, target)`` for a targeted loss: what makes ``model`` wrong.

    A deterministic model's objective also says which examples are misclassified, so that they can leave early. A model
    that samples is attacked through its average, with fresh noise in every step; whether it is wrong is then for a
    verdict with unseen noise to say.

    Args:
        model: images to logits (N, C).
        loss: a name of ``LOSSES``, or a function of (logits, y) or (logits, y, target) to scores (N,).

    Raises:
        ValueError: an unknown name.
    """
    score = LOSSES[one_of("loss", loss, LOSSES)] if isinstance(loss, str) else loss
    call = with_noise(model)
    if draws_noise(model):

        @random_objective
        def averaged(x_: Tensor, y_: Tensor, *target: Tensor, ids: Tensor, seed: int) -> Tensor:
            return score(as_logits(call(x_, ids=ids, seed=seed), len(x_)), y_, *target)

        return averaged

    def objective(x_: Tensor, y_: Tensor, *target: Tensor) -> tuple[Tensor, Tensor]:
        logits = as_logits(call(x_), len(x_))
        return score(logits, y_, *target), logits.detach().argmax(1) != y_

    return objective
