"""An answer that runs in another process, called as if it were here.

The notebook's kernel holds the participant's function; the check that calls it, its cases and its verdict stay in the
grader's process. Arguments go to the kernel pickled (the kernel trusts the grader). Results come back as JSON, from
which tensors and numbers are rebuilt and nothing is executed (the grader does not trust the kernel). A result that
carries a gradient comes back with its Jacobian, so that a check can differentiate it.
"""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robrep.gaussians import Gaussian

ENTRIES = 4096  # of a result whose Jacobian is sent
DTYPES = {str(t): t for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                              torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex128)}  # fmt: skip


# --- values as JSON ---------------------------------------------------------------------------------------------------


def pack(value: Any) -> Any:
    """A value as JSON; of what is neither a number, a text, a tensor nor a container of these, its type's name."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return {"number": repr(float(value) if isinstance(value, float) else int(value))}
    if isinstance(value, Tensor) and str(value.dtype) in DTYPES:
        plain = value.detach().cpu().contiguous()
        data = base64.b64encode(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return {
            "tensor": data.decode(),
            "shape": list(plain.shape),
            "dtype": str(plain.dtype),
            "grad": value.requires_grad,
        }
    if isinstance(value, Gaussian):
        return {"gaussian": [pack(value.mean), pack(value.scale)]}
    if isinstance(value, list | tuple):
        return {type(value).__name__ if type(value) in (list, tuple) else "tuple": [pack(v) for v in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(v) for key, v in value.items()}}
    return {"other": "ellipsis" if value is ... else type(value).__name__}


def unpack(plain: Any) -> Any:
    """The value of :func:`pack`'s JSON; a stand-in of the same type's name for what was not sent.

    Raises:
        ValueError: this is not what :func:`pack` makes.
    """
    if plain is None or isinstance(plain, bool | str):
        return plain
    if not isinstance(plain, dict) or not plain:
        raise ValueError(f"a reply holds {str(plain)[:60]!r}, expected a packed value")
    kind, content = next(iter(plain.items()))
    if kind == "number":
        return int(content) if content.lstrip("-").isdigit() else float(content)
    if kind == "tensor":
        dtype, shape = DTYPES[plain["dtype"]], [int(n) for n in plain["shape"]]
        data = bytearray(base64.b64decode(content))
        size = torch.empty((), dtype=dtype).element_size()
        if min(shape, default=0) < 0 or math.prod(shape) * size != len(data):
            raise ValueError(f"a reply holds {len(data)} bytes for a tensor of shape {tuple(shape)}")
        t = torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)
        return t.requires_grad_() if plain.get("grad") and t.is_floating_point() else t
    if kind == "gaussian":
        return Gaussian(*(unpack(v) for v in content))
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](unpack(v) for v in content)
    if kind == "dict":
        return {key: unpack(v) for key, v in content.items()}
    if kind == "other":
        return ... if content == "ellipsis" else type(str(content)[:60], (), {})()
    raise ValueError(f"a reply holds a {kind!r}, expected a packed value")


def leaves(given: Any) -> Iterator[Tensor]:
    """The tensors among arguments that gradients end in: parameters, and tensors that ask for one."""
    if isinstance(given, nn.Module):
        yield from (p for p in given.parameters() if p.requires_grad)
    elif isinstance(given, Tensor):
        if given.requires_grad and given.is_leaf:
            yield given
    elif isinstance(given, list | tuple):
        for part in given:
            yield from leaves(part)
    elif isinstance(given, dict):
        yield from leaves(list(given.values()))
    elif isinstance(given, Gaussian):
        yield from leaves((given.mean, given.scale))


def tensors(given: Any) -> Iterator[Tensor]:
    """The tensors among arguments."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for part in given:
            yield from tensors(part)


# --- in the kernel ----------------------------------------------------------------------------------------------------

_ANSWERS: dict[str, Any] = {}  # exercise -> the participant's last answer
_NEW: list[str] = []


def listen() -> None:
    """Note every answer that the notebook hands to ``check``, however it calls it."""
    from robrep.book import exercises
    from robrep.book.exercises import core

    told = core.check

    @functools.wraps(told)
    def check(name: str, answer: Any, **keywords: Any) -> Any:
        _ANSWERS[name] = answer
        _NEW.append(name)
        return told(name, answer, **keywords)

    core.check = exercises.check = check


def news() -> str:
    """The names of the answers since the last call, as JSON, and which of them are functions."""
    names = list(dict.fromkeys(_NEW))
    _NEW.clear()
    return json.dumps({name: callable(_ANSWERS[name]) for name in names})


def value(name: str) -> str:
    """An answer that is no function."""
    return json.dumps(pack(_ANSWERS[name]))


def serve(name: str, given: str) -> str:
    """Call an answer; its result as JSON."""
    import pickle

    arguments, state = pickle.loads(base64.b64decode(given))  # made by the grader, in Remote.__call__
    torch.set_rng_state(state)
    ends, before = list(leaves(arguments)), [t.detach().clone() for t in tensors(arguments)]
    try:
        result = _ANSWERS[name](*arguments)
        changed = [None if torch.equal(t, old) else pack(t) for t, old in zip(tensors(arguments), before, strict=True)]
        reply = {
            "value": pack(result),
            "changed": changed,
            "grads": [pack(t.grad) for t in ends],
            "jacobian": _jacobian(result, ends),
        }
    except Exception as error:
        reply = {"raised": [type(error).__name__, str(error)[:2000]]}
    return json.dumps(reply | {"state": pack(torch.get_rng_state())})


def _jacobian(result: Any, ends: list[Tensor]) -> list[Any]:
    """For each leaf the derivatives of all entries of the result; None where it has none."""
    if not (isinstance(result, Tensor) and result.requires_grad and ends and result.numel() <= ENTRIES):
        return [None] * len(ends)
    rows = [torch.autograd.grad(entry, ends, retain_graph=True, allow_unused=True) for entry in result.flatten()]
    return [
        None
        if all(row[k] is None for row in rows)
        else pack(torch.stack([torch.zeros_like(end) if row[k] is None else row[k] for row in rows]))
        for k, end in enumerate(ends)
    ]


# --- in the grader ----------------------------------------------------------------------------------------------------


class Remote:
    """A participant's function, called in its kernel.

    Args:
        name: the exercise.
        ask: evaluates an expression in the kernel and returns its text.
    """

    def __init__(self, name: str, ask: Callable[[str], str]) -> None:
        self.name, self.ask = name, ask

    def __call__(self, *given: Any) -> Any:
        import cloudpickle

        sent = base64.b64encode(cloudpickle.dumps((given, torch.get_rng_state()))).decode()
        reply = json.loads(self.ask(f"{HERE}.serve({self.name!r}, {sent!r})"))
        if isinstance(state := unpack(reply["state"]), Tensor) and state.shape == torch.get_rng_state().shape:
            torch.set_rng_state(state)
        if "raised" in reply:
            kind, text = reply["raised"]
            raise type(str(kind)[:60], (Exception,), {})(text)
        for mine, theirs in zip(tensors(given), reply["changed"], strict=True):
            if theirs is not None:  # an argument was changed in place, which some checks forbid
                mine.data = unpack(theirs).detach()
        ends, result = list(leaves(given)), unpack(reply["value"])
        for end, grad in zip(ends, reply["grads"], strict=True):
            end.grad = unpack(grad)
        slopes = [unpack(j) for j in reply["jacobian"]]
        known = [(end, slope) for end, slope in zip(ends, slopes, strict=True) if slope is not None]
        if isinstance(result, Tensor) and known:
            return _WithJacobian.apply(result.detach(), [slope for _, slope in known], *(end for end, _ in known))
        return result


HERE = f"__import__({__name__!r}, fromlist=['serve'])"


class _WithJacobian(torch.autograd.Function):
    """A tensor whose derivatives are known."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, slopes: list[Tensor], *ends: Tensor) -> Tensor:
        ctx.slopes = slopes
        return result.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(torch.tensordot(grad.flatten().to(j), j, 1) for j in ctx.slopes)
