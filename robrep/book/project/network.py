"""A submitted encoder as data: a list of PyTorch's operators, which the judge runs, and differentiates, itself.

A participant's class cannot be judged where it runs: it may remember the images that it has seen, and its backward pass
may lie. So the confined process that builds it only says *what it computes*: :func:`traced` writes its forward pass as
a list of operators of ATen, in JSON. The judge reads the list, refuses what is not in ``VOCABULARY``, and has a network
without memory and without noise, whose gradients are PyTorch's own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robrep.book.grade.remote import DTYPES

# What a network may be made of: operators that do not draw, remember, write in place or look up addresses.
VOCABULARY = frozenset(Path(__file__).with_name("operators.txt").read_text(encoding="utf-8").split())
# copies and detached copies are what they copy: a gradient cannot be cut off
SAME = frozenset(("alias", "clone", "detach", "detach_", "lift_fresh_copy", "_to_copy"))
RANDOM = ("rand", "bernoulli", "normal", "dropout", "uniform", "multinomial")  # in the names of what draws
UNKNOWN = "is not an operator that a network may be made of (see the page of the project)"
MADE = ("full", "arange", "scalar_tensor")  # operators that make a tensor, and so need a device
BATCH = 500  # images in a pass of the judge, at most
WHERE = ("device", "layout", "pin_memory", "memory_format")  # arguments that the judge chooses
CONSTANTS = 1024  # numbers in tensors that are neither parameters nor buffers
NODES = 5000


class Refused(ValueError):
    """A submission that cannot be judged; the message says why, in one sentence."""


def _part(several: Any, index: Any) -> Any:
    if not isinstance(several, list | tuple):
        raise TypeError(f"index into a {type(several).__name__}")
    return several[index]


def _times(count: Any, factor: Any) -> int:
    return operator.index(count) * _constant(factor)


def _over(count: Any, divisor: Any) -> int:
    return operator.index(count) // _constant(divisor)


def _constant(value: Any) -> int:
    if not 0 < operator.index(value) < 1 << 20:
        raise ValueError(f"{value} as a factor of a size")
    return int(value)


# A size may grow with the number of images, never shrink: what fits at the largest batch fits at all.
SIZES: dict[str, Callable[..., Any]] = {"getitem": _part, "mul": _times, "floordiv": _over}


def _told(target: Any) -> str:
    return getattr(target, "__name__", str(target)) if not isinstance(target, torch._ops.OpOverload) else str(target)


def traced(encoder: nn.Module, shape: tuple[int, int, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an encoder computes for images of ``shape`` (C, H, W), in evaluation mode.

    Returns:
        The operators, JSON-able; and the constants that are neither parameters nor buffers, by name.

    Raises:
        Refused: the forward pass is not a fixed list of operators: it branches on values of the images, draws random
            numbers or calls something that is not PyTorch.
    """
    images, batch = torch.zeros(3, *shape), torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with torch.no_grad():
            program = torch.export.export(encoder.eval(), (images,), dynamic_shapes=({0: batch},), strict=False)
            program = program.run_decompositions()
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise Refused(
            f"encoder cannot be traced ({told[:300]}), expected a forward pass of PyTorch operators that does not "
            "depend on the values of the images, for any number of them (x.shape[0], not len(x))"
        ) from None
    kept = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    nodes: list[Any] = []
    inputs: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            inputs[node.name] = kept.get(node.name) or lifted.get(node.name) or ""
        elif node.op == "output":
            (out,) = node.args
        elif "assert" not in _told(node.target) and "sym_constrain" not in _told(node.target):
            given = {
                k: v for k, v in node.kwargs.items() if k not in ("device", "layout", "pin_memory", "memory_format")
            }
            nodes.append([node.name, _told(node.target), _plain(list(node.args)), _plain(given)])
    if len(out) != 1 or not isinstance(out[0], torch.fx.Node):
        raise Refused(f"encoder gives {len(out)} values, expected one tensor of codes (N, D)")
    graph = {"inputs": inputs, "nodes": nodes, "output": out[0].name}
    return graph, {name: program.constants[name] for name in lifted.values()}


def _plain(value: Any) -> Any:
    """Arguments of an operator as JSON: a node by its name, a dtype by its name."""
    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _plain(v) for k, v in value.items()}}
    return value if isinstance(value, bool | int | float | str | None) else str(value)


class Network(nn.Module):
    """The encoder that a list of operators describes; without memory, noise or a mode.

    Args:
        graph: as :func:`traced` makes it; from whatever source, for nothing in it is executed but ``VOCABULARY``.
        weights: parameters, buffers and constants, by name.

    Shapes: images (N, C, H, W) to whatever the list computes; see :func:`checked`.

    Raises:
        Refused: the list is malformed, or uses an operator that a network may not be made of.
    """

    gaussian = False

    def __init__(self, graph: dict[str, Any], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        try:
            self.inputs = {str(name): str(source) for name, source in graph["inputs"].items()}
            self.nodes = [(str(n), self._operator(str(op)), args, kw["dict"]) for n, op, args, kw in graph["nodes"]]
            self.output = str(graph["output"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(f"encoder's list of operators is malformed ({type(error).__name__}: {error})") from None
        if len(self.nodes) > NODES:
            raise Refused(f"encoder has {len(self.nodes):,} operators, expected at most {NODES:,}")
        if missing := sorted({source for source in self.inputs.values() if source} - weights.keys()):
            raise Refused(f"encoder uses {missing[0]}, which is not in its weights")
        self.names = {source: f"w{i}" for i, source in enumerate(dict.fromkeys(filter(None, self.inputs.values())))}
        for source, name in self.names.items():
            self.register_buffer(name, weights[source])

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those that the operators use, by name."""
        return {source: getattr(self, name) for source, name in self.names.items()}

    @staticmethod
    def _operator(name: str) -> Callable[..., Any]:
        """What a name of the list calls."""
        if name in SIZES:
            return SIZES[name]
        space, _, rest = name.partition(".")
        base, _, overload = rest.partition(".")
        if space == "aten" and base in SAME:
            return _same
        if space != "aten" or base not in VOCABULARY:
            random = any(word in base for word in ("rand", "bernoulli", "normal_", "dropout", "uniform", "multinomial"))
            why = (
                "draws random numbers" if random and space == "aten" else "is not an operator a network may be made of"
            )
            raise Refused(f"encoder calls {name}, which {why}, expected a fixed function of the image")
        if name == "aten.view.default":  # of a copy, which is none here, a view may not exist
            return torch.reshape
        called = getattr(getattr(torch.ops.aten, base), overload or "default", None)
        if not isinstance(called, torch._ops.OpOverload) or called._schema.is_mutable:
            raise Refused(f"encoder calls {name}, which is not an operator a network may be made of")
        return called

    def values(self, x: Tensor) -> Iterator[Any]:
        """What each operator gives, in order; the codes come last."""
        known: dict[str, Any] = {n: getattr(self, self.names[s]) if s else x for n, s in self.inputs.items()}
        for name, called, args, keywords in self.nodes:
            more = {key: _filled(value, known) for key, value in keywords.items()}
            if any(f"aten.{made}." in f"{called}." for made in MADE):
                more["device"] = x.device
            known[name] = called(*_filled(args, known), **more)
            yield known[name]
        yield known[self.output]

    def forward(self, x: Tensor) -> Tensor:
        for value in self.values(x):  # noqa: B007
            pass
        return value


def _same(x: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    return x if dtype is None else x.to(dtype)


def _filled(value: Any, known: dict[str, Any]) -> Any:
    """Arguments with their nodes' values."""
    if isinstance(value, list):
        return [_filled(v, known) for v in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        return known[content] if kind == "node" else DTYPES[f"torch.{content}"]
    return value


def checked(network: Network, shape: tuple[int, int, int], *, flops: int, entries: int, width: int) -> Network:
    """The network, if it maps images of ``shape`` to codes at a cost that the judge can pay.

    It is run on PyTorch's "meta" device, which computes shapes only.

    Args:
        flops: of matrix products and convolutions, for one image.
        entries: of all intermediate values together, for one image.
        width: largest dimension of a code.

    Raises:
        Refused: it cannot be run, is too costly, or gives something that is not a batch of codes.
    """
    from torch.utils.flop_counter import FlopCounterMode

    n, seen = BATCH, 0
    twin = Network(network.graph, {name: t.to("meta") for name, t in network.weights.items()})
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for code in twin.values(torch.zeros(n, *shape, device="meta")):
                tensors = code if isinstance(code, list | tuple) else [code]
                seen += sum(math.prod(t.shape) for t in tensors if isinstance(t, Tensor))
                if seen > n * entries:
                    raise Refused(f"encoder makes more than {entries:,} intermediate values for one image")
    except Refused:
        raise
    except Exception as error:
        told = (str(error).strip().splitlines() or [""])[0][:200]
        raise Refused(f"encoder cannot be run on images {shape} ({type(error).__name__}: {told})") from None
    if (cost := counter.get_total_flops() // n) > flops:
        raise Refused(f"encoder takes {cost:,} floating-point operations for one image, expected at most {flops:,}")
    if not isinstance(code, Tensor) or code.ndim != 2 or len(code) != n or not 1 <= code.shape[1] <= width:
        came = f"shape {tuple(code.shape)}" if isinstance(code, Tensor) else f"a {type(code).__name__}"
        raise Refused(f"encoder gives {came} for {n} images, expected codes ({n}, D) with D from 1 to {width}")
    if not code.is_floating_point():
        raise Refused(f"encoder gives codes of dtype {code.dtype}, expected floating point")
    return network
