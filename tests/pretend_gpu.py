"""A pretend GPU made of the CPU: code that would mix devices on a real one fails on a machine that has none.

A tensor on the pretend GPU wraps one on the CPU, and says that it lies elsewhere. Operations run on the CPU, so numbers
are the CPU's. What a real GPU refuses is refused: operations that mix devices, a generator of the CPU, and reading by
numpy. It is torch's device "privateuseone", which lets Python make the tensors of a new kind of hardware. Nothing is
captured as a graph here, and mixed precision is not tried.

As a program, it runs the code cells of a notebook at smoke scale on the pretend GPU, without IPython::

    python tests/pretend_gpu.py book/attacks.ipynb
"""

from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
COPIES = ("_to_copy", "copy_")
JOINED = ("cat", "stack")  # even of numbers
INDEXED = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_", "_unsafe_index_put")


class _Module:
    """What torch asks of the module ``torch.pretend``."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module)
GPU = torch.device(NAME, 0)


class Held(Tensor):
    """A tensor on the pretend GPU; ``held`` is its CPU tensor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.held!r} on {GPU}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(protocol)  # a file is read to the CPU

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.held.numpy(force=True)
        raise TypeError(f"can't convert {GPU} device type tensor to numpy. Use Tensor.cpu() to copy it to the host")

    def __format__(self, spec: str) -> str:
        return self.held.detach().__format__(spec)

    def tolist(self) -> Any:
        return self.held.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def _plain(value: Any, there: dict[int, Held], here: list[Tensor]) -> Any:
    """What the CPU computes with; notes the tensors ``there``, on the pretend GPU, and those ``here``, on the CPU."""
    if isinstance(value, Held):
        there[id(value.held)] = value
        return value.held
    if isinstance(value, list | tuple):
        return [_plain(v, there, here) for v in value]
    if isinstance(value, Tensor):
        here.append(value)
    elif isinstance(value, torch.Generator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    return value


def _held(value: Any, there: dict[int, Held], here: list[Tensor]) -> Any:
    """A result on the pretend GPU; what was changed in place stays the tensor that it was."""
    if isinstance(value, list | tuple):
        return type(value)(_held(v, there, here) for v in value)
    if not isinstance(value, Tensor) or any(value is t for t in here):
        return value
    return there[id(value)] if id(value) in there else Held(value)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of which at least one tensor is on the pretend GPU."""
    name, to = func.overloadpacket.__name__, kwargs.get("device")
    if name == "_fused_sdp_choice":
        return 0  # attention by plain operations
    there: dict[int, Held] = {}  # by the identity of what they hold
    here: list[Tensor] = []
    listed = _plain(args, there, here)
    named = {k: _plain(v, there, here) for k, v in kwargs.items()}
    allowed = name in COPIES or (name in INDEXED and isinstance(args[0], Held))
    if not allowed and any(t.ndim or name in JOINED for t in here):
        shapes = " and ".join(f"{tuple(t.shape)}" for t in here)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {GPU} and cpu! "
            f"(in {func}, shape {shapes} on cpu)"
        )
    out = func(*listed, **(named if to is None else named | {"device": torch.device("cpu")}))
    if to is not None and to.type != NAME:
        return out
    result = _held(out, there, here)
    if any(t.shape != t.held.shape for t in there.values()):
        raise NotImplementedError(f"{func} changes a shape in place")
    return result


_library = torch.library.Library("aten", "IMPL")  # from these, torch makes every other new tensor on a device
MADE = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace",
    "logspace", "randperm",
)  # fmt: skip


def _made(name: str) -> Callable[..., Held]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return lambda *args, **kwargs: Held(operation(*args, **{**kwargs, "device": "cpu", "pin_memory": False}))


for _name in MADE:
    _library.impl(_name, _made(_name), "PrivateUse1")


def _copy_from(source: Tensor, into: Tensor, non_blocking: bool = False) -> Tensor:
    """Of ``torch.tensor``, which does not ask the tensors themselves."""
    (into.held if isinstance(into, Held) else into).copy_(source.held if isinstance(source, Held) else source)
    return into


_library.impl("_copy_from", _copy_from, "PrivateUse1")


def _fabric(accelerator: str = "auto") -> Any:
    """In place of :func:`robrep.training.make_fabric`: "auto" takes the pretend GPU."""
    from lightning_fabric import Fabric
    from lightning_fabric.accelerators import CPUAccelerator
    from lightning_fabric.strategies import SingleDeviceStrategy

    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            pass

    device = GPU if accelerator in ("auto", NAME) else torch.device("cpu")
    return Fabric(devices=1, strategy=SingleDeviceStrategy(device, Accelerator()))


@contextmanager
def visible() -> Iterator[None]:
    """Within, ``robrep.training.fit`` trains on the pretend GPU, and modules can be moved there."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            mock.patch("robrep.training.make_fabric", _fabric),
            mock.patch("robrep.training.default_accelerator", lambda: NAME),
        ):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)


class Hidden:
    """An import system in which the package ``name`` is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run_notebook(path: Path) -> dict[str, Any]:
    """Run the code cells of a notebook as a plain script, with the smaller settings that nbmake would give it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text("utf8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).split("\n")
        magic = [line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip()[:1] in "%!" and line.strip() else line
                 for line in lines]  # fmt: skip
        name, text = f"{path.name}, cell {number}", "\n".join(magic)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), space)
        space |= cell["metadata"].get("nbmake", {}).get("mock", {})
    return space


if __name__ == "__main__":
    sys.meta_path.insert(0, Hidden("IPython"))  # type: ignore[arg-type]
    with visible():
        for given in sys.argv[1:]:
            run_notebook(Path(given).resolve())
