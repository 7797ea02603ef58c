"""What a cache may be keyed on: a hash of an object's class, its code, its attributes and everything they hold.

Pickle takes the object apart; what differs is that code counts by what it does. A reader's function or class (of a
notebook, a script, or a module outside of the installed packages) is known by its byte code, its defaults, its closure
and the globals that it reads, so that an edited cell is another function. The byte code is what runs; the source may
have been edited since. An installed package's function is known by its name and the package's version.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import pickle
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
IGNORED = {"training", "_compiled_call_impl", "_is_torch_compile"}  # a module's mode, and what torch.compile leaves
OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__annotations__"}
OF_CLASSES |= {"__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_abc_impl"}
OF_CLASSES |= {"__slotnames__"}
SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)


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
    try:
        _Hasher(types.SimpleNamespace(write=h.update), protocol=4).dump(value)  # type: ignore[arg-type]
    except Exception as error:  # a class may raise anything when it is taken apart
        raise TypeError(f"{name} holds what cannot be identified by its content: {error}") from error
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


def _name(thing: Any) -> str:
    """An installed function or class: its name and its package's version."""
    top = sys.modules.get((getattr(thing, "__module__", None) or "").split(".")[0])
    named = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or repr(thing)
    return f"{getattr(thing, '__module__', None)}.{named} {getattr(top, '__version__', '')}"


def _parts(*parts: Any) -> None:
    """What a pickle names as the maker of everything that is taken apart here; the pickle is never read."""


class _Hasher(pickle.Pickler):
    """Pickles into a hash: a part that was met before is a number, so an object may hold itself."""

    def persistent_id(self, value: Any) -> bytes | None:
        """Text and sets by their content: pickle knows equal texts by their place, and a set has no order."""
        if type(value) in (str, bytes):
            return repr(value).encode()
        if isinstance(value, set | frozenset):
            return b"".join(sorted(identity(item, "a set").encode() for item in value)) + type(value).__name__.encode()
        return None

    def reducer_override(self, value: Any) -> Any:
        """(_parts, parts), or (_parts, parts, state) where the state may lead back to the value."""
        if value is _parts:
            return NotImplemented
        for kinds, take_apart in TAKEN_APART:
            if isinstance(value, kinds):
                return _parts, *take_apart(value)
        if isinstance(getattr(value, "fingerprint", None), str):
            return _parts, (type(value), value.fingerprint)
        return NotImplemented


def _tensor(t: Tensor) -> tuple[Any, ...]:
    if t.layout != torch.strided or t.is_quantized or t.device.type == "meta":
        raise TypeError(f"it is a {t.layout} tensor on {t.device}")
    content = t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return ((type(t), str(t.dtype), tuple(t.shape), hashlib.blake2b(content.data).digest()),)


def _network(module: nn.Module) -> tuple[Any, ...]:
    if hasattr(module, "_orig_mod"):  # compiled
        return ((module._orig_mod,),)
    state = {k: v for k, v in vars(module).items() if k not in IGNORED}
    for key in [k for k in state if k.endswith("hooks")]:  # numbered as they were made
        state[key] = list(state[key].values()) if isinstance(state[key], dict) else state[key]
    return (type(module),), state


def _source(module: types.ModuleType) -> tuple[Any, ...]:
    file = getattr(module, "__file__", None) if _readers(module.__name__) else None
    return ((module.__name__, Path(file).read_bytes() if file else b""),)


def _class(cls: type) -> tuple[Any, ...]:
    """Its name, and of each class it inherits from whatever is the reader's: functions, and other attributes."""
    names, state = [], {}
    for number, base in enumerate(cls.__mro__):
        mine = _readers(base.__module__)
        names.append(base.__qualname__ if mine else _name(base))
        for key, member in vars(base).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            patched = isinstance(function, types.FunctionType) and _readers(function.__globals__.get("__name__"))
            if key not in OF_CLASSES and (patched or (mine and not isinstance(member, SLOTS))):
                state[number, key] = member
    return tuple(names), state


def _function(function: types.FunctionType) -> tuple[Any, ...]:
    mine = _readers(function.__globals__.get("__name__"))  # a wrapper has the __module__ of what it wraps
    if not mine and "<" not in function.__code__.co_qualname:
        return ((_name(function),),)
    known = function.__globals__ if mine else {}
    read = {variable: known[variable] for variable in sorted(_globals(function.__code__) & known.keys())}
    cells = dict(zip(function.__code__.co_freevars, map(_content, function.__closure__ or ()), strict=True))
    state = (function.__defaults__, function.__kwdefaults__, cells, read, vars(function))
    return (function.__code__,), state


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is still empty
        return None


def _code(code: types.CodeType) -> tuple[Any, ...]:
    names = repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags))
    return ((code.co_code, names, getattr(code, "co_exceptiontable", b""), code.co_consts),)


def _globals(code: types.CodeType) -> set[str]:
    """The global names that a function and those defined in it read."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(c) for c in code.co_consts if isinstance(c, types.CodeType)))


TAKEN_APART: tuple[tuple[Any, Any], ...] = (  # the first that fits counts
    (Tensor, _tensor),
    (types.ModuleType, _source),
    (type, _class),
    (types.FunctionType, _function),
    (types.CodeType, _code),
    (classmethod | staticmethod | functools._lru_cache_wrapper, lambda wrapper: ((wrapper.__wrapped__,),)),
    (property | functools.cached_property, lambda p: (tuple(getattr(p, k, None) for k in ("fget", "fset", "func")),)),
    (types.MappingProxyType, lambda mapping: ((dict(mapping),),)),
    (nn.Module, _network),
)
