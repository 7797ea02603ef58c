"""Run a chapter's experiment without its pages: ``python -m robrep.book.reproduce CHAPTER NAME=value ...``

A chapter marks the cells that make up its experiment with the tag ``reproduce``: settings, data, training, evaluation,
recording. This module runs the cell tagged ``parameters``, sets the parameters named on the command line, and runs
those cells in order, as a plain script: what is recorded is what the chapter computes, by the same lines. Under
``torchrun`` every process runs them, training is spread over the processes, and the first one records. For example::

    python -m robrep.book.reproduce vae_urkle SCALE=lite
    torchrun --nproc-per-node 4 -m robrep.book.reproduce vae_urkle SCALE=full ROWS=vae_urkle
    python -m robrep.book.reproduce vae_urkle SWEEP=yes PART=1/4        # a quarter of the recorded sweeps

What would that cost on this machine? With ``STEPS=N`` the first training of a row makes N steps and stops, and what
they cost is said and recorded (see :func:`try_out`)::

    python -m robrep.book.reproduce simclr_urkle SCALE=full ROWS=simclr_urkle STEPS=2
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robrep.book.experiment import Experiment
from robrep.book.parameters import ParameterError, check
from robrep.checks import one_of, positive_int
from robrep.training import watcher


@dataclass
class FirstSteps:
    """What :func:`first_steps` saw.

    Attributes:
        count: steps after which the training stops.
        losses: the loss of each step made.
        seconds: wall time of each.
        total: steps that the whole training has; 0 before it has begun.
    """

    count: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    total: int = 0

    @property
    def fastest(self) -> float:
        """Seconds of the fastest step; the first one is often slow.

        Raises:
            ValueError: no step was made.
        """
        if not self.seconds:
            raise ValueError("no step was made: nothing was trained")
        return min(self.seconds)

    @property
    def hours(self) -> float:
        """What all steps would take at the speed of the fastest; raises as ``fastest`` does."""
        return self.fastest * self.total / 3600

    def see(self, loss: float, seconds: float, total: int) -> None:
        """Note one step; raises :class:`Enough` after the last."""
        self.losses.append(loss)
        self.seconds.append(seconds)
        self.total = total
        if len(self.losses) == self.count:
            raise Enough


class Enough(Exception):
    """Ends a training that :func:`first_steps` watches."""


@contextmanager
def first_steps(count: int) -> Iterator[FirstSteps]:
    """Leave the block after the first ``count`` steps of :func:`robrep.training.fit`: what would all of them cost?

    The steps are those of the whole training, with its schedule and precision; no checkpoint is written in its first
    epoch. What follows ``fit`` in the block is not run. For example::

        with first_steps(2) as seen:
            fit(method, x, y, epochs=2_000, batch_size=1_024)
        print(seen.losses, seen.hours)
    """
    seen = FirstSteps(positive_int("count", count))
    token = watcher.set(seen.see)
    try:
        yield seen
    except Enough:
        pass
    finally:
        watcher.reset(token)


def find_chapter(name: str) -> Path:
    """The notebook of a chapter: a path to an ``.ipynb``, or a name looked up in ``book/`` of the checkout.

    The checkout is the nearest folder with a ``_config.yml`` above the working directory, else the one that robrep was
    installed from in editable mode.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the checkout has no chapter of that name.
    """
    if name.endswith(".ipynb"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"chapter is {name!r}, expected the path of a notebook that exists")
        return Path(name)
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[2]):
        book = folder / "book"
        if (folder / "_config.yml").is_file() and book.is_dir():
            names = sorted(p.stem for p in book.glob("*.ipynb") if parameter_cell(p, optional=True) is not None)
            return book / f"{one_of('chapter', name, names)}.ipynb"
    raise FileNotFoundError(f"chapter is {name!r}, but there is no checkout of the book here; give a notebook's path")


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, each with ``index``, ``source`` and ``tags``."""
    found = []
    for index, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            tags = cell["metadata"].get("tags", [])
            found.append({"index": index, "source": "".join(cell["source"]), "tags": tags})
    return found


def parameter_cell(notebook: Path, *, optional: bool = False) -> dict[str, Any] | None:
    """The cell tagged ``parameters``.

    Raises:
        ValueError: there is not exactly one, unless ``optional``.
    """
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["tags"]]
    if len(tagged) == 1:
        return tagged[0]
    if optional:
        return None
    raise ValueError(f"{notebook} has {len(tagged)} cells tagged 'parameters', expected one")


def defaults(notebook: Path) -> dict[str, Any]:
    """Names and values of the parameters, which must be literals."""
    cell = parameter_cell(notebook)
    assert cell is not None
    values = {}
    for statement in ast.parse(cell["source"]).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            (target,) = statement.targets
            if isinstance(target, ast.Name):
                values[target.id] = ast.literal_eval(statement.value)
    return ({"PART": "1/1"} if "SWEEP" in values else {}) | values  # a share of the sweeps; no notebook asks for it


def parse(arguments: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """``NAME=value`` texts to the values that are meant (see :mod:`robrep.book.parameters`).

    Raises:
        ValueError: a text without "=", an unknown name, a name given twice, or a value that does not fit.
    """
    values: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"argument is {argument!r}, expected NAME=value")
        if name in values:
            raise ValueError(f"{name} is given twice, as {values[name]!r} and {text!r}, expected one value")
        values[name] = text
    return check(values, known)


def reproduce(chapter: str, **parameters: Any) -> dict[str, Any]:
    """Run the experiment of ``chapter`` with these parameters; the cells' namespace is returned.

    Raises:
        FileNotFoundError, ValueError: no such chapter, an unknown parameter, a value that does not fit, or cells that
            are not marked.
        Exception: whatever a cell raises; a note names the notebook, the cell and the line.
    """
    namespace: dict[str, Any] = {}
    _run(find_chapter(chapter), parameters, namespace)
    return namespace


def declared(chapter: str, **parameters: Any) -> Experiment:
    """The experiment of ``chapter`` with all that it declares, before anything is trained: its marked cells up to the
    line that calls ``exp.train``.

    Raises:
        As :func:`reproduce`; ValueError too if no marked cell makes an experiment called ``exp``.
    """
    namespace: dict[str, Any] = {}
    _run(find_chapter(chapter), parameters, namespace, until="exp.train(")
    if "exp" not in namespace:
        raise ValueError(f"chapter is {chapter!r}, expected one whose cells make an experiment called exp")
    return namespace["exp"]


def try_out(chapter: str, steps: int, **parameters: Any) -> Path:
    """Make the first ``steps`` steps of the first training that a row of ``chapter`` makes, and record what they cost.

    The training is the chapter's own, at the settings, on the data, in the batches and with the schedule that it would
    have; only it ends early, and what follows it (a head, an evaluation) is left out. Recorded are the losses, the
    seconds of a step, the hours that all steps of this training would take at that speed, and the most memory that was
    in use.

    Args:
        chapter, parameters: as for :func:`reproduce`; ``ROWS`` names one row. What ``SETTINGS`` changes is a part
            of the record's name.
        steps: at least 1; the first one is often slow, so better two.

    Returns:
        The record's path.

    Raises:
        ValueError: ``ROWS`` does not name one row, or the chapter has none, or nothing was trained.
        Exception: as :func:`reproduce`.
    """
    from robrep.book import results

    notebook = find_chapter(chapter)
    parameters = check(parameters, defaults(notebook))
    row = parameters.get("ROWS", "")
    if not row or "," in row:
        raise ValueError(f"ROWS is {row!r}, expected the one row that makes its first steps")
    before = results.peak_memory()
    namespace: dict[str, Any] = {}
    with first_steps(steps) as seen:
        _run(notebook, parameters, namespace)
    n, seconds, peak = len(seen.losses), seen.fastest, results.peak_memory()
    exp: Experiment = namespace["exp"]
    s, d, row_and_changes = exp.settings, exp.data(), "-".join(filter(None, [row, exp.settings.variant()]))
    metrics = {
        "seconds": {"value": seconds, "unit": "s"},
        "steps": float(seen.total),
        "hours": {"value": seen.hours, "unit": "h"},
        "peak": {"value": peak, "unit": "MiB"},
        "before": {"value": before, "unit": "MiB"},
    }
    variant = re.sub(r"[^\w.=-]+", "_", row_and_changes)
    path = results.record(
        notebook.stem,
        results.run_name(exp.scale, d.dataset.name, "first_steps", exp.seed, variant),
        scale=exp.scale,
        row="first_steps",
        variant=variant,
        seed=exp.seed,
        settings=s.plain(),
        metrics=metrics,
        curves={"loss": {"x": [float(i) for i in range(1, n + 1)], "y": seen.losses}},
        data=results.data_facts(d.dataset, n_train=len(d.x_train)),
        minutes=sum(seen.seconds) / 60,
    )
    losses = ", ".join(f"{loss:.4g}" for loss in seen.losses)
    print(
        f"{row}: {n} of {seen.total:,} steps, loss {losses}; {seconds:,.1f} s a step, {seen.hours:,.1f} hours for all; "
        f"at most {peak / 1024:.1f} GiB of memory ({before / 1024:.1f} before); recorded as {path.name}"
    )
    return path


def _run(notebook: Path, parameters: Mapping[str, Any], namespace: dict[str, Any], until: str = "\0") -> None:
    """Run the marked cells of a notebook in ``namespace``, to the end or to the first line that holds ``until``."""
    known = defaults(notebook)
    parameters = check(parameters, known)
    marked = [cell for cell in cells(notebook) if "reproduce" in cell["tags"] and "parameters" not in cell["tags"]]
    if not marked:
        raise ValueError(f"{notebook} has no cell tagged 'reproduce'")
    namespace.update({"__name__": "__main__", **known, **parameters})
    for cell in marked:
        name = f"<{notebook.name}, cell {cell['index']}>"
        lines = cell["source"].splitlines(keepends=True)
        before = list(itertools.takewhile(lambda line: until not in line, lines))
        try:
            exec(compile("".join(before), name, "exec"), namespace)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
            if frames and frames[-1].lineno:
                error.add_note(f"{name}: {lines[frames[-1].lineno - 1].strip()}")
            raise
        if before != lines:
            return


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module's docstring."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    began, chapter = time.monotonic(), arguments[0]
    try:
        parameters = parse(arguments[1:], {"STEPS": 0} | defaults(find_chapter(chapter)))
    except (ValueError, FileNotFoundError) as error:
        print(f"robrep.book.reproduce: {error}", file=sys.stderr)
        return 2
    steps = parameters.pop("STEPS", 0)
    try:
        if steps:
            try_out(chapter, steps, **parameters)
        else:
            reproduce(chapter, **parameters)
    except ParameterError as error:
        print(f"robrep.book.reproduce: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrobrep.reproduce: stopped; runs that were finished are recorded, no other is", file=sys.stderr)
        return 130
    minutes = (time.monotonic() - began) / 60
    print(f"robrep.book.reproduce: {' '.join(arguments)}: done in {minutes:.1f} minutes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
