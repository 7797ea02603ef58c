"""Where a run comes from (machine, package versions, commit), and where its record goes and is found again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

import robrep
from robrep.book.files import user_results, why_not_writable
from robrep.checks import one_of

PACKAGES = ("robrep", "torch", "torchvision", "numpy", "lightning-fabric", "scikit-learn", "safetensors")
_PACKAGE = Path(robrep.__file__).parent


def _checkout() -> Path | None:
    """The checkout whose book is meant: the nearest folder above the working one, else the one robrep lies in."""
    here = Path.cwd()
    for root in (here, *here.parents, _PACKAGE.parent):
        if (root / "_config.yml").is_file() and (root / "book" / "results").is_dir():
            return root
    return None


def recorded_folder(kind: str = "results") -> Path | None:
    """Where the recorded runs ("results") or published numbers ("published") that came with the book lie.

    ``book/<kind>`` of the checkout around the working folder, else of the one robrep was imported from, else the copy
    inside the installed package. None if there is none of these.
    """
    one_of("kind", kind, ("results", "published"))
    if root := _checkout():
        return root / "book" / kind
    packaged = _PACKAGE / "_recorded" / kind
    return packaged if packaged.is_dir() else None


def live_folder() -> Path:
    """Where :func:`record` writes: ``$ROBREP_RESULTS``, else ``book/results`` of the checkout, else a user's folder."""
    if folder := os.environ.get("ROBREP_RESULTS"):
        return Path(folder).expanduser()
    root = _checkout()
    return root / "book" / "results" if root else user_results()


def check_writable() -> Path:
    """The folder that :func:`record` will write to, after a test that it can: to be asked before a training.

    Raises:
        OSError: it cannot; the message says why and names the way out.
    """
    folder = live_folder()
    if why := why_not_writable(folder):
        raise OSError(f"{folder}, where records go, cannot be written ({why}); set ROBREP_RESULTS to a folder that can")
    return folder


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine, without its name: CPU model, cores, torch threads, the GPUs if ``device`` is "cuda", and which
    precision "auto" means on it."""
    from robrep.training import best_precision

    facts = {"device": device, "cpu": _cpu(), "cores": os.cpu_count() or 0, "threads": torch.get_num_threads()}
    facts["auto_precision"] = best_precision(torch.device(device))
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "gpus": int(os.environ.get("WORLD_SIZE", "1"))}
    return facts


def peak_memory() -> float:
    """The most memory in use so far, in MiB: torch's on the GPU if there is one, else this process's (Unix only).

    Raises:
        OSError: neither is known, as on Windows without a GPU.
    """
    from robrep.training import default_accelerator

    if default_accelerator() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:
        raise OSError("the memory in use is not known on this system") from None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@cache
def _cpu() -> str:
    try:
        if platform.system() == "Linux":
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        if platform.system() == "Darwin":
            return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    except (OSError, StopIteration):
        pass
    return platform.processor() or platform.machine()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a number; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit this robrep was run from, with ``+dirty`` if its code or a chapter differs from it.

    For a robrep installed from a git address it is the commit that was installed; None where it is unknown.
    """
    root = _PACKAGE.parent
    if (root / ".git").exists():  # a repository around a virtual environment is not ours
        head = _output("git", "-C", str(root), "rev-parse", "HEAD")
        changed = _output("git", "-C", str(root), "status", "--porcelain", "--", "robrep", ":(glob)book/*.ipynb")
        return head and head + ("+dirty" if changed else "")
    try:
        source = importlib.metadata.distribution("robrep").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(source or "{}").get("vcs_info", {}).get("commit_id")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
