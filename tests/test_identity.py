"""What a cache is keyed on: two objects share an identity only if they do the same, in this process and in another."""

from __future__ import annotations

import copy
import enum
import functools
import linecache
import os
import random
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import PGD, Linf
from robrep.identity import identity
from robrep.suites import SUITES

FACTOR = 1.0


def scaled(x: Tensor) -> Tensor:
    return FACTOR * x


def source(text: str, name: str = "made", **names: Any) -> Any:
    """What a cell of a notebook defines as ``name``."""
    cell = types.ModuleType("__main__")
    cell.__dict__.update({"torch": torch, "nn": nn} | names)
    exec(compile(text, "<cell>", "exec"), cell.__dict__)
    return cell.__dict__[name]


def module(net: nn.Module | None = None, **attributes: Any) -> nn.Module:
    made = nn.Sequential(net or nn.Identity())
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def with_hook(factor: float) -> nn.Module:
    made = nn.Linear(2, 2)
    nn.init.ones_(made.weight)
    nn.init.ones_(made.bias)
    made.register_forward_hook(lambda m, i, o: factor * o)
    return made


class Slots:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


class Number(float):
    pass


def number(value: float, unit: str) -> Number:
    made = Number(value)
    made.unit = unit  # type: ignore[attr-defined]
    return made


Kind = enum.Enum("Kind", ["A", "B"])
METHOD = """
class made(nn.Module):
    bound = {bound}
    def forward(self, x):
        def inner(v): return {inner}
        return inner(x) if {condition} else x
    @property
    def rate(self): return {rate}
    @staticmethod
    def still(x): return {still}
"""
METHOD_DEFAULTS = {"bound": 1, "inner": "v + 1", "condition": "True", "rate": 1, "still": "x"}


def method(**change: Any) -> Any:
    return source(METHOD.format(**METHOD_DEFAULTS | change))()


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "number": (1.0, 9.0),
    "type": (1, 1.0),
    "truth": (True, 1),
    "text": ("a", "b"),
    "list": (module(w=[1.0]), module(w=[9.0])),
    "dict": (module(w={"beta": 1.0}), module(w={"beta": 9.0})),
    "keys": ({"a": 1}, {"b": 1}),
    "tuple": (module(w=(1.0,)), module(w=(9.0,))),
    "list or tuple": ([1], (1,)),
    "nested": ([[1], 2], [[1, 2]]),
    "set": ({1, 2}, {1, 3}),
    "numpy scalar": (module(w=np.float32(1)), module(w=np.float32(9))),
    "numpy": (np.arange(5), np.arange(1, 6)),
    "numpy shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "numpy objects": (np.array([{1: 2}], dtype=object), np.array([{1: 3}], dtype=object)),
    "tensor": (module(w=torch.tensor(1.0)), module(w=torch.tensor(9.0))),
    "dtype": (torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)),
    "weights": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "buffer": (nn.BatchNorm1d(2), nn.BatchNorm1d(2, eps=1e-3)),
    "hook": (with_hook(1.0), with_hook(2.0)),
    "order": (nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Sequential(nn.Flatten(), nn.ReLU())),
    "attack": (PGD(3), PGD(4)),
    "attack's tensor": (Linf(torch.full((2000,), 0.01)), Linf(torch.full((2000,), 0.01000001))),
    "threat": (Linf(0.1), Linf(torch.tensor([0.1]))),
    "slots": (Slots(1), Slots(2)),
    "subclass of a number": (number(1, "m"), number(1, "s")),
    "enum": (Kind.A, Kind.B),
    "pattern": (re.compile("a"), re.compile("b")),
    "path": (Path("a"), Path("b")),
    "random state": (random.Random(1), random.Random(2)),
    "numpy generator": (np.random.default_rng(1), np.random.default_rng(2)),
    "partial": (functools.partial(torch.add, alpha=1), functools.partial(torch.add, alpha=2)),
    "library function": (torch.relu, torch.sigmoid),
    "bound method": (Slots(1).__init__, Slots(2).__init__),  # type: ignore[misc]
    "function": (source("def made(x): return x + 1"), source("def made(x): return x + 2")),
    "operation": (source("def made(x): return x + x"), source("def made(x): return x * x")),
    "method called": (source("def made(x): return x.sin()"), source("def made(x): return x.cos()")),
    "default": (source("def made(x, k=1): return k"), source("def made(x, k=2): return k")),
    "keyword default": (source("def made(x, *, k=1): return k"), source("def made(x, *, k=2): return k")),
    "closure": tuple(source(f"def f(k):\n  return lambda x: k * x\nmade = f({k})") for k in (1, 2)),  # type: ignore[dict-item]
    "global": tuple(source("def made(x): return EPS * x", EPS=e) for e in (1, 2)),  # type: ignore[dict-item]
    "helper": tuple(  # type: ignore[dict-item]
        source(f"def helper(x): return {k} * x\ndef made(x): return helper(x)") for k in (1, 2)
    ),
    "cached helper": tuple(  # type: ignore[dict-item]
        source(f"import functools\n@functools.lru_cache\ndef made(x): return {k} * x") for k in (1, 2)
    ),
    "decorated": tuple(  # type: ignore[dict-item]
        source(f"@torch.no_grad()\ndef made(x): return {k} * x") for k in (1, 2)
    ),
    "wraps a library's": tuple(  # type: ignore[dict-item]
        source(f"import functools\n@functools.wraps(torch.nn.functional.relu)\ndef made(x): return {k} * x")
        for k in (1, 2)
    ),
    "forward": (method(), method(inner="v + 2")),
    "condition": (method(), method(condition="x.sum() > 0")),
    "class attribute": (method(), method(bound=2)),
    "property": (method(), method(rate=2)),
    "static method": (method(), method(still="2 * x")),
    "base class": tuple(  # type: ignore[dict-item]
        source(f"class Base:\n  def f(self): return {k}\nclass made(Base): pass")() for k in (1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_differs(kind: str) -> None:
    one, other = DIFFERENT[kind]
    assert identity(one) == identity(one) != identity(other) == identity(other)


SAME: dict[str, tuple[Any, Any]] = {
    "class defined again": (method(), method()),
    "comments and lines": (
        source("def made(x): return x + 1"),
        source("# now explained\n\ndef made(x):\n    # one more\n    return x + 1"),
    ),
    "unread global": (source("def made(x): return x", EPS=1), source("def made(x): return x", EPS=2)),
    "attribute called like a global": tuple(  # type: ignore[dict-item]
        source("def made(x): return x.EPS", EPS=e) for e in (1, 2)
    ),
    "mode": (nn.BatchNorm1d(2).train(), nn.BatchNorm1d(2).eval()),
    "copy": (DIFFERENT["weights"][0], copy.deepcopy(DIFFERENT["weights"][0])),
    "compiled": tuple(  # type: ignore[dict-item]
        torch.compile(copy.deepcopy(DIFFERENT["weights"][0]), backend=backend) for backend in ("eager", "aot_eager")
    ),
    "strides": (torch.arange(6).view(2, 3).T, torch.arange(6).view(2, 3).T.contiguous()),
    "suite": (SUITES["autoattack"], copy.deepcopy(SUITES["autoattack"])),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_is_the_same(kind: str) -> None:
    one, other = SAME[kind]
    assert identity(one) == identity(other)


def test_a_changed_attribute_is_seen() -> None:
    made = module(w=[1.0])
    before = identity(made)
    made.w.append(2.0)  # type: ignore[union-attr,operator]
    assert identity(made) != before
    before = identity(made)
    made.register_buffer("b", torch.zeros(1), persistent=False)
    assert identity(made) != before
    before = identity(made)
    made.forward = types.MethodType(lambda self, x: x, made)  # type: ignore[method-assign]
    assert identity(made) != before


def test_a_patched_library_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(PGD(2))
    monkeypatch.setattr(PGD, "_step", lambda self, x_adv, direction, todo: x_adv)
    assert identity(PGD(2)) != before


def test_a_global_of_this_module_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(scaled)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert identity(scaled) != before


def test_objects_that_hold_themselves() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert identity(loop) == identity(loop) != identity([1, [1]])


def test_an_object_with_a_fingerprint_is_known_by_it() -> None:
    @dataclass
    class Images:
        fingerprint: str
        opened: Any = None

    assert identity(Images("a", (i for i in ()))) == identity(Images("a")) != identity(Images("b"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((i for i in ()), "attack holds what cannot be identified by its content: cannot pickle .generator. object"),
        ({"a": [1, (i for i in ())]}, "attack holds .* cannot pickle .generator"),
        (module(lock=sys.stdout), "attack holds .* cannot pickle .*(File|TextIOWrapper)"),
        (torch.zeros(2, device="meta"), "attack holds .*: it is a torch.strided tensor on meta"),
        (torch.eye(2).to_sparse(), "attack holds .*: it is a torch.sparse_coo tensor on cpu"),
        (source("def f(k):\n  return lambda x: k\nmade = f(i for i in ())"), "cannot pickle .generator"),
        (source("def made(x): return STREAM", STREAM=(i for i in ())), "attack holds .* cannot pickle .generator"),
    ],
)
def test_what_cannot_be_identified(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        identity(value, "attack")


def test_it_is_the_same_in_another_process() -> None:
    """Hashes of strings are salted by process; nothing here may depend on them."""
    text = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_identity import *\n"
        "values = [method(), scaled, PGD(3), {'b', 'a', 'c'}, source('def made(x): return x in {1, 2, \"a\"}')]\n"
        "print(*map(identity, values))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", text, str(Path(__file__).parent)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1 and len(said.pop().split()) == 5


def test_what_runs_counts_and_not_the_file(tmp_path: Path) -> None:
    """A file that was edited after it was imported still runs as it was."""
    file = tmp_path / "mine.py"
    file.write_text("def made(x):\n    return x + 1\n")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(file.read_text(), str(file), "exec"), space)
    before = identity(space["made"])
    file.write_text("def made(x):\n    return x + 2\n")
    linecache.checkcache()
    assert identity(space["made"]) == before
