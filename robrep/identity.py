"""What a cache may be keyed on: a hash of an object's class, its code, its attributes and everything they hold.

A reader's function or class (of a notebook, a script, or a module outside of the installed packages) is known by its
byte code, its defaults, its closure and the globals that it reads, so that an edited cell is another function. The byte
code is what runs; the source may have been edited since. An installed package's function is known by its name and the
package's version.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device, torch.Size, range)
IGNORED = {"training", "_compiled_call_impl", "_is_torch_compile"}  # a module's mode, and what torch.compile leaves
OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__annotations__"}
OF_CLASSES |= {"__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_abc_impl"}
OF_CLASSES |= {"__slotnames__"}


def identity(value: Any, name: str = "value") -> str:
    """A hash (32 hex digits) that two objects share only if they do the same.

    Tensors and arrays are known by their content, whatever device they are on; modules by class, weights, buffers,
    attributes and hooks, whatever mode they are in; an object with a ``fingerprint`` by that and its class.

    Args:
        value: anything that can be taken apart: modules, attacks, threat models, functions, containers.
        name: what messages call it.

    Raises:
        TypeError: it holds something that cannot be identified (a generator, an open file, ...); the message names it.
    """
    h = hashlib.blake2b(digest_size=16)
    for part in _Parts().of(value, name):
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.hexdigest()


@functools.cache
def _readers(module: str | None) -> bool:
    """Whether a module is the reader's own: neither installed nor of the library, which has a hash of its own."""
    top = (module or "").split(".")[0]
    if top in ("__main__", "") or (module or "").startswith("robrep.book."):
        return True
    if top == "robrep" or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(top), "__file__", None) or getattr(sys.modules.get(module or ""), "__file__", None)
    return file is None or not any(Path(file).resolve().is_relative_to(folder) for folder in INSTALLED)


def _name(thing: Any) -> bytes:
    """An installed function or class: its name and its package's version."""
    top = sys.modules.get((getattr(thing, "__module__", None) or "").split(".")[0])
    named = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or repr(thing)
    return f"{getattr(thing, '__module__', None)}.{named} {getattr(top, '__version__', '')}".encode()


class _Parts:
    """The bytes that an object is hashed by."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # an id belongs to an object only while it lives

    def of(self, value: Any, name: str) -> Iterator[bytes]:
        if type(value) in PLAIN:
            yield f"{type(value).__name__}:{value!r}".encode()
            return
        if id(value) in self.seen:
            yield b"again %d" % self.seen[id(value)]
            return
        self.seen[id(value)] = len(self.kept)
        self.kept.append(value)
        yield type(value).__qualname__.encode()
        yield from self._taken_apart(value, name)

    def _all(self, values: dict[str, Any], name: str) -> Iterator[bytes]:
        yield b"%d attributes" % len(values)
        for key, value in values.items():
            yield str(key).encode()
            yield from self.of(value, f"{name}.{key}")

    def _taken_apart(self, value: Any, name: str) -> Iterator[bytes]:
        for kinds, take_apart in TAKEN_APART:
            if isinstance(value, kinds):
                yield from take_apart(self, value, name)
                return
        yield from self._object(value, name)

    def _tensor(self, t: Tensor, name: str) -> Iterator[bytes]:
        if t.layout != torch.strided or t.is_quantized or t.device.type == "meta":
            raise TypeError(f"{name} is a {t.layout} tensor on {t.device}, which cannot be identified by its content")
        yield f"{t.dtype}{tuple(t.shape)}".encode()
        yield t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    def _array(self, value: Any, name: str) -> Iterator[bytes]:
        if value.dtype == object:
            yield from self._object(value, name)
            return
        yield f"{value.dtype.str}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()

    def _network(self, module: nn.Module, name: str) -> Iterator[bytes]:
        if hasattr(module, "_orig_mod"):  # compiled
            yield from self.of(module._orig_mod, name)
            return
        yield from self.of(type(module), name)
        state = {k: v for k, v in vars(module).items() if k not in IGNORED}
        for key in [k for k in state if k.endswith("hooks")]:  # numbered as they were made
            state[key] = list(state[key].values()) if isinstance(state[key], dict) else state[key]
        yield from self._all(state, name)

    def _mapping(self, value: Any, name: str) -> Iterator[bytes]:
        if hasattr(value, "fingerprint"):
            yield from self._object(value, name)
            return
        yield b"%d items" % len(value)
        for key, item in value.items():
            yield from self.of(key, f"{name}'s key {key!r:.40}")
            yield from self.of(item, f"{name}[{key!r:.40}]")
        yield from self._object(value, name, types.MappingProxyType, dict)

    def _sequence(self, value: Any, name: str) -> Iterator[bytes]:
        yield b"%d items" % len(value)
        for i, item in enumerate(value):
            yield from self.of(item, f"{name}[{i}]")
        yield from self._object(value, name, list, tuple)

    def _set(self, value: Any, name: str) -> Iterator[bytes]:
        yield from sorted(identity(item, f"an item of {name}").encode() for item in value)

    def _source(self, module: types.ModuleType, name: str) -> Iterator[bytes]:
        yield module.__name__.encode()
        if _readers(module.__name__) and getattr(module, "__file__", None):
            yield Path(str(module.__file__)).read_bytes()

    def _bound(self, method: types.MethodType, name: str) -> Iterator[bytes]:
        yield from self.of(method.__func__, name)
        yield from self.of(method.__self__, f"{name}.__self__")

    def _builtin(self, value: Any, name: str) -> Iterator[bytes]:
        if isinstance(getattr(value, "__self__", None), types.ModuleType | None):
            yield _name(value)
            return
        yield value.__name__.encode()
        yield from self.of(value.__self__, f"{name}.__self__")

    def _wrapper(self, value: Any, name: str) -> Iterator[bytes]:
        yield from self.of(value.__wrapped__, name)

    def _property(self, value: Any, name: str) -> Iterator[bytes]:
        yield from self._all({k: getattr(value, k) for k in ("fget", "fset", "func") if hasattr(value, k)}, name)

    def _class(self, cls: type, name: str) -> Iterator[bytes]:
        """Its name, and of each class it inherits from whatever is the reader's: functions, and other attributes."""
        for base in cls.__mro__:
            mine = _readers(base.__module__)
            yield base.__qualname__.encode() if mine else _name(base)
            members = {}
            for key, member in vars(base).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                patched = isinstance(function, types.FunctionType) and _readers(function.__globals__.get("__name__"))
                if key not in OF_CLASSES and (patched or (mine and not isinstance(member, DESCRIPTORS))):
                    members[key] = member
            yield from self._all(members, f"{name}'s {base.__name__}")

    def _function(self, function: types.FunctionType, name: str) -> Iterator[bytes]:
        mine = _readers(function.__globals__.get("__name__"))  # a wrapper has the __module__ of what it wraps
        if not mine and "<" not in function.__code__.co_qualname:
            yield _name(function)
            return
        yield from self._code(function.__code__, name)
        yield from self.of(function.__defaults__, f"{name}'s defaults")
        yield from self.of(function.__kwdefaults__, f"{name}'s defaults")
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield from self._variable(variable, lambda cell=cell: cell.cell_contents, name)
        if mine:
            for variable in sorted(_globals(function.__code__)):
                if variable in function.__globals__:
                    yield from self._variable(variable, lambda v=variable: function.__globals__[v], name)
        yield from self._all(vars(function), name)

    def _variable(self, variable: str, read: Any, name: str) -> Iterator[bytes]:
        yield variable.encode()
        try:
            value = read()
        except ValueError:  # a cell that is still empty
            return
        yield from self.of(value, f"{variable} in {name}")

    def _code(self, code: types.CodeType, name: str) -> Iterator[bytes]:
        yield code.co_code
        yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)).encode()
        yield getattr(code, "co_exceptiontable", b"")
        yield from self.of(code.co_consts, name)

    def _object(self, value: Any, name: str, *known: type) -> Iterator[bytes]:
        """Class and state of any object, as copying it would need them; of a container, what it has on top."""
        if type(value) in known:
            return
        yield from self.of(type(value), name)
        if not known and isinstance(getattr(value, "fingerprint", None), str):
            yield value.fingerprint.encode()
            return
        if known:
            yield from self._all(getattr(value, "__dict__", {}), name)
            return
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            made = reduce(value) if reduce else value.__reduce_ex__(2)
        except Exception as error:
            raise TypeError(
                f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be identified"
            ) from error
        if isinstance(made, str):  # the name of a global
            yield made.encode()
            return
        _, arguments, state, items, pairs = (*made, None, None, None)[:5]
        yield from self.of(made[0], name)
        yield from self.of([a for a in arguments if a is not type(value)], name)
        if isinstance(state, dict):
            yield from self._all(state, name)
        else:
            yield from self.of(state, name)
        yield from self.of([list(items or ()), list(pairs or ())], name)


DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)
TAKEN_APART: tuple[tuple[Any, Any], ...] = (  # the first that fits counts
    (Tensor, _Parts._tensor),
    (np.ndarray | np.generic, _Parts._array),
    (types.ModuleType, _Parts._source),
    (type, _Parts._class),
    (types.FunctionType, _Parts._function),
    (types.CodeType, _Parts._code),
    (types.MethodType, _Parts._bound),
    (types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType, _Parts._builtin),
    (classmethod | staticmethod | functools._lru_cache_wrapper, _Parts._wrapper),
    (property | functools.cached_property, _Parts._property),
    (types.MappingProxyType | dict, _Parts._mapping),
    (list | tuple, _Parts._sequence),
    (set | frozenset, _Parts._set),
    (nn.Module, _Parts._network),
)


def _globals(code: types.CodeType) -> set[str]:
    """The global names that a function and those defined in it read."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(c) for c in code.co_consts if isinstance(c, types.CodeType)))
