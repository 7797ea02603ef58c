"""Where participants' code runs: a process of its own, confined, with a clock, whose reply is data.

Starting Python and PyTorch takes seconds, so one process does it once and is forked for each submission; it never
runs a submission itself, and knows nothing of the hidden images. Arguments go to the fork pickled (it trusts the
judge). Its reply comes back as lines of JSON in a file that the judge opened; nothing in it is executed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from robrep.attacks import Linf, attack_mode
from robrep.book.grade.confine import confine
from robrep.book.grade.remote import pack
from robrep.book.project.network import Network, Refused, traced
from robrep.heads import Classifier
from robrep.random import fold

ATTACK, ENCODER, WEIGHTS = "attack.py", "submission.py", "weights.safetensors"
REPLY = 1 << 29  # bytes
Say = Callable[[Any], None]


# --- in the confined process ------------------------------------------------------------------------------------------


def _module(file: Path) -> Any:
    """A participant's file, imported; its folder is searched for what it imports."""
    if not file.is_file():
        raise Refused(f"{file.name} is missing")
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def _function(file: Path, name: str) -> Any:
    if not callable(found := getattr(_module(file), name, None)):
        raise Refused(f"{file.name} does not define {name}()")
    return found


def tell_network(say: Say, folder: Path, shape: tuple[int, int, int]) -> None:
    """Reply with what the folder's encoder computes, and with its constants."""
    from safetensors.torch import load_file

    encoder = _function(folder / ENCODER, "encoder")(shape)
    if not isinstance(encoder, nn.Module):
        raise Refused(f"encoder(shape) gives a {type(encoder).__name__}, expected a torch.nn.Module")
    try:
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:
        told = " ".join(str(error).split()).partition(": ")[2] or str(error)
        raise Refused(f"{WEIGHTS} does not fit the encoder ({told[:300]})") from None
    graph, constants = traced(encoder, shape)
    say({"graph": graph, "constants": pack(constants)})


def tell_attacks(
    say: Say, folder: Path, models: dict[str, tuple[Any, Any, Any]], x: Tensor, y: Tensor, eps: float, seed: int
) -> None:
    """Reply with the images that the folder's attack makes of each model, one line each, as uint8."""
    attack, threat = _function(folder / ATTACK, "attack"), Linf(eps)
    for name, (graph, weights, head) in models.items():
        model = Classifier(Network(graph, weights), head).eval()
        try:
            with attack_mode(model):
                found = attack(model, x.clone(), y.clone(), threat, fold(seed, name))
            if not isinstance(found, Tensor) or found.shape != x.shape:
                came = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
                raise Refused(f"attack gives {came}, expected images {tuple(x.shape)}")
            images = torch.where(found.isfinite(), found.detach().to(x), x)
            say({"model": name, "x_adv": pack(images.clamp(0, 1).mul(255).round().to(torch.uint8))})
        except Exception as error:
            say({"model": name, "refused": _sentence(error)})


def _sentence(error: BaseException) -> str:
    """What went wrong, and in which line of the participant's file."""
    if isinstance(error, Refused):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name in (ENCODER, ATTACK)]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    told = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}{where}: {told[0][:300]}"


def _work(
    reply: str, scratch: str, memory: float, threads: int, job: Callable[..., None], given: tuple[Any, ...]
) -> None:
    """Confine this process, do the job, leave; whatever the submission prints is thrown away."""
    if hasattr(os, "setsid"):
        os.setsid()
    torch.set_num_threads(threads)
    channel = open(reply, "w", encoding="utf-8")  # noqa: SIM115  # outlives every cleanup of the submission
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.chdir(scratch)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "ROBREP_CACHE"), scratch))
    tempfile.tempdir = scratch
    confine(Path(scratch), memory)

    def say(value: Any) -> None:
        channel.write(json.dumps(value) + "\n")
        channel.flush()

    try:
        job(say, *given)
    except BaseException as error:  # SystemExit too
        say({"refused": _sentence(error)})
    os._exit(0)


# --- in the judge -----------------------------------------------------------------------------------------------------


def replies(job: Callable[..., None], *given: Any, seconds: float, memory: float) -> Iterator[dict[str, Any]]:
    """The lines that a job says; the last is {"refused": why} if it did not come to its end.

    Args:
        job: :func:`tell_network` or :func:`tell_attacks`, with what it is ``given``.
        seconds: how long it may take.
        memory: what it may use, GiB.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload([__name__, "robrep.book.project.warm"])
    with tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True) as scratch:
        with tempfile.NamedTemporaryFile("r", suffix="-reply", encoding="utf-8", errors="replace") as file:
            job_of = (file.name, scratch, memory, torch.get_num_threads(), job, given)
            process = context.Process(target=_work, args=job_of, daemon=True)
            process.start()
            process.join(seconds)
            late = process.is_alive()
            _end(process)
            yield from _lines(file)
        if late:
            yield {"refused": f"it took more than {seconds:g} seconds"}
        elif process.exitcode:
            yield {"refused": f"it ended its process (exit status {process.exitcode})"}


def _end(process: Any) -> None:
    """End a fork and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, AttributeError):  # it has ended, or has not become a group yet
        process.kill()
    process.join()


def _lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    if os.fstat(file.fileno()).st_size > REPLY:
        yield {"refused": "its reply is too long"}
        return
    for line in file:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        yield value if isinstance(value, dict) else {"refused": "its process has written into the judge's reply"}


def weights_of(folder: Path, numbers: int) -> dict[str, Tensor]:
    """A submission's weights, read as data by the judge.

    Args:
        numbers: the most that they may hold.

    Raises:
        Refused: the file is missing, a link, damaged or too large.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if file.is_symlink() or not file.is_file():
        raise Refused(f"{WEIGHTS} is {'a link, expected a file' if file.is_symlink() else 'missing'}")
    try:
        weights = load_file(file)
    except (SafetensorError, ValueError, OSError, KeyError) as error:
        raise Refused(f"{WEIGHTS} cannot be read ({error})") from None
    if (count := sum(t.numel() for t in weights.values())) > numbers:
        raise Refused(f"{WEIGHTS} holds {count:,} numbers, expected at most {numbers:,}")
    return weights


def sent(model: Any) -> tuple[Any, dict[str, Tensor], nn.Module]:
    """A judged model as :func:`tell_attacks` takes it: list of operators, weights and head."""
    network = model.encoder
    return network.graph, {name: t.cpu() for name, t in network.weights.items()}, copy.deepcopy(model.head).cpu()
