"""Runs the chapters through papermill and keeps the executed copies, so that an unchanged chapter is not run again.

papermill alone would inject a misspelt parameter silently, run a notebook without a ``parameters`` cell as if nothing
had been asked of it, and take whichever ``python3`` kernel the user has; here each of these is checked.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robrep.book.parameters import check
from robrep.files import atomic_write, code_hash, digest

# What changes the output of a chapter although neither its text nor robrep does.
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "plotly", "umap-learn", "kornia", "timm")
SMALL = ("smoke", "demo")  # scales at which a chapter computes on one thread
INTERRUPTED = 130  # the exit status that a shell gives to Ctrl-C
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CELL_SECONDS = {"smoke": 600, "demo": 1800}  # the longer scales may take as long as they need


class ChapterError(Exception):
    """A chapter cannot be run, or one of its cells failed; the message is ready to be shown."""


@dataclass(frozen=True)
class Run:
    """One executed chapter: what it was made from (``key``), and what the progress line tells."""

    chapter: str
    key: str
    scale: str
    cells: int
    seconds: float


def read_notebook(path: Path) -> Any:
    """The notebook as nbformat's version 4.

    Raises:
        ChapterError: the file is missing or is not a notebook.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise ChapterError(f"{path}: there is no such notebook") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ChapterError(f"{path}: not a notebook ({str(error).splitlines()[0]})") from None


def parameters(nb: Any, name: str) -> dict[str, Any]:
    """Names and default values assigned in the cell tagged ``parameters``.

    Raises:
        ChapterError: no cell, or more than one, carries the tag.
    """
    cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ChapterError(f"{name}: expected one cell tagged 'parameters', found {len(cells)}")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                found[statement.targets[0].id] = ast.literal_eval(statement.value)
            except ValueError:  # computed, for instance read from the environment: taken as text
                found[statement.targets[0].id] = ""
    return found


def check_parameters(given: Mapping[str, Any], known: Mapping[str, Any], chapter: str) -> dict[str, Any]:
    """The given values, converted to what is meant (see :mod:`robrep.book.parameters`).

    Raises:
        ChapterError: a name that the notebook's ``parameters`` cell does not assign, or a value that does not fit.
    """
    try:
        return check(given, known)
    except ValueError as error:
        raise ChapterError(f"{chapter}: {error}") from None


def slide_only(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is text that the page leaves out and the chapter's slides have."""
    given = cell["metadata"]
    return cell["cell_type"] == "markdown" and "remove-cell" in given.get("tags", []) and "slideshow" in given


def run_key(nb: Any, values: Mapping[str, Any], inputs: Path) -> str:
    """Hash of all that a page is made from: cells, parameters, robrep, key packages, recorded data.

    Text that only slides have is left out: decks take it from the notebook itself.

    Args:
        nb: the notebook.
        values: the parameters, defaults included.
        inputs: the folder ``book``, whose ``results`` and ``published`` chapters read.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    cells = [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in nb.cells if not slide_only(cell)]
    read = [path for folder in ("results", "published") for path in sorted((inputs / folder).rglob("*"))]
    data = [[path.relative_to(inputs).as_posix(), file_hash(path)] for path in read if path.is_file()]
    python = list(sys.version_info[:2])
    return digest([cells, dict(values), code_hash(kit=True), python, versions, data])


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def memory_settings() -> dict[str, str]:
    """Settings of glibc's memory for a process that trains; {} on other systems, or where the user has set one."""
    library, number = platform.libc_ver()
    # glibc gives large blocks back to the system at once and fetches them again: 17 % of a training's CPU time, 3 % so.
    # Older versions than the one measured refuse so high a threshold; the second setting alone would be worse.
    settings = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
    new = library == "glibc" and tuple(map(int, number.split(".")[:2])) >= (2, 36)
    return settings if new and not set(settings) & set(os.environ) else {}


@contextmanager
def batch_environment(results: Path, scale: str | None = None) -> Iterator[None]:
    """The environment of a batch run; as it was before on leaving.

    Live records go to ``results``, never over the committed ones; the kernel is this interpreter's; nothing makes the
    chapter believe that a live front end is looking on (a widget would hang).
    """
    change: dict[str, str | None] = {
        "ROBREP_RESULTS": str(results.resolve()),
        "ROBREP_BATCH": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PATH": None,
        "JPY_SESSION_NAME": None,
        "PLOTLY_RENDERER": None,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **memory_settings(),
    }
    if scale in SMALL:  # kernels this small gain nothing from a second thread, and wait for it under load
        change["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    before = {name: os.environ.get(name) for name in change}
    _set_environment(change)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def clean(nb: Any) -> Any:
    """The executed notebook without papermill's traces; the injected parameters stay, hidden from the page."""
    nb.metadata.pop("papermill", None)
    for cell in nb.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
    return nb


def strip_ansi(text: str) -> str:
    """``text`` without the colour codes that IPython puts into tracebacks."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def failure(error: Any, nb: Any, name: str) -> str:
    """What to show when a cell failed: its number, its first lines, the end of its traceback."""
    # papermill saves the notebook with markers and its own parameters cell; neither counts for the reader
    added = ("injected-parameters", "papermill-error-cell-tag")
    cells = [cell for cell in nb.cells if not set(added) & set(cell.metadata.get("tags", []))]
    failed = [any(out.output_type == "error" for out in cell.get("outputs", [])) for cell in cells]
    number = failed.index(True) + 1 if True in failed else None
    source = error.source.splitlines()
    shown = source[:6] + ([f"... ({len(source) - 6} more lines)"] if len(source) > 6 else [])
    trace = strip_ansi("\n".join(error.traceback)).splitlines()[-15:]
    where = f"cell {number} of {len(cells)}" if number else "the parameters"
    lines = [f"{name}: {where} failed with {error.ename}: {strip_ansi(str(error.evalue))}"]
    lines += ["  its source:", *(f"    {line}" for line in shown)]
    lines += ["  the end of its traceback:", *(f"    {line}" for line in trace)]
    return "\n".join(lines)


def execute(source: Path, target: Path, values: Mapping[str, Any], results: Path) -> int:
    """Execute ``source`` with ``values`` and write it to ``target`` (only when every cell passed).

    Args:
        source: the notebook; its folder is the working directory.
        target: where the executed copy goes.
        values: parameters, checked and converted.
        results: folder for the records that the chapter writes.

    Returns:
        The number of code cells.

    Raises:
        ChapterError: a cell failed or took too long, or the kernel did not start.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nbformat
        import papermill
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from papermill.exceptions import PapermillExecutionError
    logging.getLogger("papermill").setLevel(logging.ERROR)
    scale = values.get("SCALE") or parameters(read_notebook(source), source.stem).get("SCALE")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, batch_environment(results, scale):
        copy = Path(folder) / source.name
        try:
            nb = papermill.execute_notebook(
                source.resolve(),
                copy.resolve(),
                parameters=dict(values),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=180,
                execution_timeout=CELL_SECONDS.get(str(scale)),
                request_save_on_cell_execute=False,
                cwd=source.resolve().parent,
                extra_arguments=["--log-level=CRITICAL"],  # the kernel's own warnings are not the chapter's
            )
        except PapermillExecutionError as error:
            raise ChapterError(failure(error, read_notebook(copy), source.stem)) from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise ChapterError(f"{source.stem}: {type(error).__name__}: {str(error).strip()}") from None
    with atomic_write(target) as temporary:
        nbformat.write(clean(nb), temporary)
    return sum(cell.cell_type == "code" for cell in nb.cells)


def run_chapter(source: Path, build: Path, given: Mapping[str, str] | None = None) -> tuple[Run, bool]:
    """Run one chapter unless the copy at hand was made from the very same things.

    Args:
        source: the notebook.
        build: the build folder; the copy goes to ``runs``, records to ``results``.
        given: parameters as text, from the command line.

    Returns:
        The run, and whether it was made now (False: unchanged).

    Raises:
        ChapterError: see ``check_parameters`` and ``execute``.
    """
    nb = read_notebook(source)
    known = parameters(nb, source.stem)
    values = check_parameters(given or {}, known, source.stem)
    key = run_key(nb, {**known, **values}, source.parent)
    target, note = build / "runs" / source.name, build / "runs" / f"{source.stem}.json"
    if (last := last_run(source.stem, build)) and last.key == key:
        return last, False
    note.unlink(missing_ok=True)
    start = time.perf_counter()
    cells = execute(source, target, values, build / "results")
    scale = str(values.get("SCALE", known.get("SCALE", "")))
    run = Run(source.stem, key, scale, cells, round(time.perf_counter() - start, 1))
    with atomic_write(note) as temporary:
        temporary.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    return run, True


def in_worker(path: Path, build: Path, values: Mapping[str, str]) -> tuple[Run, bool]:
    """:func:`run_chapter` in a worker; one that is stopped begins no other chapter."""
    try:
        return run_chapter(path, build, values)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def listen() -> None:
    """Stop at the first Ctrl-C, or signal to end, by a KeyboardInterrupt; those that follow are ignored."""

    def stop(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        logging.disable()  # what is cut off would complain
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)


def last_run(chapter: str, build: Path) -> Run | None:
    """The run at hand, or None when there is none (or it is not whole)."""
    note = build / "runs" / f"{chapter}.json"
    try:
        run = Run(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return run if (build / "runs" / f"{chapter}.ipynb").is_file() else None
