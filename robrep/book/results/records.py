"""Recorded runs: one small JSON file a run, with its weights beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robrep.book.results.origin import commit, hardware, live_folder, recorded_folder, versions
from robrep.book.results.schema import SCALES, SCHEMA, check_record, plain, read_json
from robrep.book.results.showing import Metric, Table
from robrep.checks import one_of
from robrep.files import atomic_write, code_hash

MAX_WEIGHTS = 2_000_000  # bytes of one weights file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]*")


@dataclass(frozen=True)
class Run:
    """One recorded run, as read from its JSON file. See ``book/results/README.md`` for every field.

    ``run["robust"]`` is the metric of that name as a :class:`Metric`.
    """

    chapter: str
    run: str
    scale: str
    dataset: str
    row: str
    variant: str
    seed: int
    settings: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Metric]
    curves: dict[str, dict[str, Any]]
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    code: str
    date: str
    minutes: float
    weights: str | None
    weights_sha256: str | None
    path: Path = field(repr=False)
    read: list[str] | None = None  # the settings that the run read; None where it was not noted
    payload: bytes | None = field(default=None, repr=False, compare=False)  # the weights' file, from ``load_run``

    def metric(self, name: str) -> Metric:
        """The metric ``name``.

        Raises:
            KeyError: the run has no such metric; the message lists those it has.
        """
        if name not in self.metrics:
            raise KeyError(f"{self.run} has no metric {name!r}, it has {', '.join(sorted(self.metrics))}")
        return self.metrics[name]

    def __getitem__(self, name: str) -> Metric:
        return self.metric(name)

    @property
    def device(self) -> str:
        """The hardware in a few words, for a table."""
        gpu = self.hardware.get("gpu")
        if self.hardware.get("device") == "cuda" and gpu:
            return str(gpu)
        threads = self.hardware.get("threads", "?")
        return f"{self.hardware.get('cpu') or 'CPU'}, {threads} thread{'' if threads == 1 else 's'}"

    @property
    def precision(self) -> str:
        """The precision that it was trained in; "auto" where the settings leave it to a machine that is not known."""
        asked = str(self.settings.get("precision", "32-true"))
        return str(self.hardware.get("auto_precision", asked)) if asked == "auto" else asked


def run_name(scale: str, dataset: str, row: str, seed: int, variant: str = "") -> str:
    """``<scale>-<dataset>-<row>-<seed>[-<variant>]``, the name of a run and of its files.

    A variant may be any text: brackets, quotes and spaces are left out, other signs that a file name should not hold
    become "_" ("widths=(8, 8)" is named "widths=8_8").

    Args:
        scale: one of "smoke", "demo", "lite", "full".
        dataset: name of the data set.
        row: the method, as the chapter's tables name it, for example "vae_urkle".
        seed: the training seed.
        variant: what differs from the chapter's main run, for example "beta=0.5"; "" for the main run itself.

    Raises:
        ValueError: the scale is unknown, the seed is negative or no integer, or another part than the variant holds
            other characters than letters, digits and ``_ . = -``.
    """
    one_of("scale", scale, SCALES)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected an integer of at least 0")
    variant = re.sub(r"[^A-Za-z0-9_.=-]+", "_", re.sub(r"[\[\](){}'\" ]", "", variant))
    return _name("run", "-".join([scale, dataset, row, str(int(seed)), *([variant] if variant else [])]))


def data_facts(dataset: Any, *, split: str = "test", n_train: int | None = None, n_test: int | None = None) -> dict:
    """What a record says about its data, from a :class:`robrep.data.Dataset`.

    Args:
        dataset: the data set (``name``, ``note``, ``fingerprint`` and the tensors are read).
        split: the part the metrics were counted on: "train", "val" or "test".
        n_train: how many training images were used; all of them if not given.
        n_test: how many images of ``split`` were used; all of them if not given.
    """
    one_of("split", split, ("train", "val", "test"))
    return {
        "name": dataset.name,
        "split": split,
        "n_train": len(dataset.x_train) if n_train is None else n_train,
        "n_test": len(getattr(dataset, f"x_{split}")) if n_test is None else n_test,
        "note": dataset.note,
        "fingerprint": dataset.fingerprint,
    }


def round_weights(*modules: nn.Module) -> None:
    """Round the modules' weights, in place, to what a record keeps of them (float16).

    Call it before the evaluation whose numbers are recorded: they then belong to just the weights a reader loads.
    """
    with torch.no_grad():
        for module in modules:
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.half())


def record(
    chapter: str,
    run: str,
    *,
    settings: Mapping[str, Any],
    seed: int,
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    minutes: float,
    scale: str | None = None,
    row: str | None = None,
    variant: str = "",
    curves: Mapping[str, Mapping[str, Any]] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    read: Iterable[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one run as ``<folder>/<chapter>/<run>.json``, and its weights beside it.

    A run of the same name is replaced: recording again is how a number is renewed, and the file says when, from which
    commit and with which settings it was made. Both files are complete before either takes its place (the weights
    first), so a failure on the way, such as a full disk, leaves the old record or none. Of several processes that
    record the same run, one after the other writes (where the system has file locks), and the last one's record stays.
    Under ``torchrun`` only the first process writes.

    Args:
        chapter: the chapter's name, for example "vae_urkle"; becomes a folder.
        run: the run's name, as :func:`run_name` makes it of scale, data set, row, seed and variant.
        settings: every setting of the run; numbers, texts, lists and mappings only.
        seed: the training seed.
        metrics: name to a float, a :class:`Metric`, a ``Rate``, or a mapping with ``value`` and any of ``low``,
            ``high``, ``n``, ``split``, ``unit``, ``over``, ``attack``.
        data: ``name``, ``split``, ``n_train``, ``n_test``, ``note``, ``fingerprint``, as :func:`data_facts` gives them.
        minutes: wall time of the run in minutes.
        scale: one of "smoke", "demo", "lite", "full"; taken from ``settings["scale"]`` if not given.
        row: the method, as tables name it; taken from ``settings["row"]`` if not given.
        variant: "" for the chapter's main run of this row, else what differs (a point of a sweep: "beta=0.5"). Only
            main runs are held against published numbers.
        curves: name to lists ``x``, ``y`` and optionally ``low``, ``high`` of one length, and labels (text).
        modules: networks to keep, for example ``{"encoder": encoder, "head": head}``; floating tensors are stored as
            float16, together at most 2 MB.
        read: the settings that the run read, where that is known: others made no difference.
        folder: where to write instead of :func:`live_folder`.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: a field is missing, unknown or not finite; a value outside its interval or its unit's range; another
            name than :func:`run_name` gives; weights that are too large, or beyond float16.
        TypeError: a setting is something JSON cannot hold.
        OSError: the folder cannot be written.
    """
    settings = plain(settings, "settings")
    scale = settings.get("scale") if scale is None else scale
    row = settings.get("row") if row is None else row
    if scale is None or row is None:
        missing = "scale" if scale is None else "row"
        raise ValueError(f"{missing} is not given, expected it as an argument or in settings[{missing!r}]")
    place = Path(live_folder() if folder is None else folder) / _name("chapter", chapter)
    path = place / f"{_name('run', run)}.json"
    payload = None if modules is None else _pack(modules)
    from robrep.training import default_accelerator

    on_cuda = modules and any(p.is_cuda for m in modules.values() for p in m.parameters())
    facts = {
        "schema": SCHEMA,
        "chapter": chapter,
        "run": run,
        "scale": scale,
        "dataset": data.get("name"),
        "row": row,
        "variant": variant,
        "seed": plain(seed, "seed"),
        "settings": settings,
        **({} if read is None else {"read": sorted(read)}),
        "data": plain(data, "data"),
        "metrics": {name: Metric.of(m, f"metrics.{name}").to_dict() for name, m in metrics.items()},
        "curves": plain(curves or {}, "curves"),
        "hardware": hardware(default_accelerator() if modules is None else "cuda" if on_cuda else "cpu"),
        "versions": versions(),
        "commit": commit(),
        "code": code_hash(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": plain(minutes, "minutes"),
        "weights": None if payload is None else f"{run}.safetensors",
        "weights_sha256": None if payload is None else hashlib.sha256(payload).hexdigest(),
    }
    _check(facts, path)
    text = json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    weights = path.with_name(f"{run}.safetensors")
    if os.environ.get("RANK", "0") != "0":  # of several processes that train together, the first one writes
        return path
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place):
        with atomic_write(path) as json_file:
            json_file.write_text(text, encoding="utf-8")
            if payload is not None:
                with atomic_write(weights) as weights_file:
                    weights_file.write_bytes(payload)
        if payload is None:
            weights.unlink(missing_ok=True)  # those of an earlier run of this name would belong to nothing
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Of all processes that ask for the same folder, one at a time goes on; where there are no file locks, all do."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield
        return
    try:
        with suppress(OSError):  # a network's file system may have none
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _pack(modules: Mapping[str, nn.Module]) -> bytes:
    """All modules as one safetensors file, floating tensors in float16, names ``<module>.<tensor>``."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules[{name!r}] is a {type(module).__name__}, expected an nn.Module")
        if "." in name:
            raise ValueError(f"modules has the name {name!r}, expected a name without a dot")
        for key, tensor in module.state_dict().items():
            kept = tensor.detach().cpu()
            kept = kept.half() if kept.is_floating_point() else kept
            if kept.is_floating_point() and not kept.isfinite().all():
                raise ValueError(f"modules[{name!r}].{key} holds values that are not finite in float16")
            tensors[f"{name}.{key}"] = kept.clone().contiguous()  # a clone: safetensors refuses shared memory
    payload = save(tensors)
    if len(payload) > MAX_WEIGHTS:
        raise ValueError(
            f"the weights take {len(payload):,} bytes, expected at most {MAX_WEIGHTS:,}; keep fewer modules"
        )
    return payload


def _name(what: str, name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{what} is {name!r}, expected letters, digits and _ . = - (it becomes a file name)")
    return name


def runs(
    chapter: str,
    *,
    scale: str | None = None,
    dataset: str | None = None,
    row: str | None = None,
    seed: int | None = None,
    variant: str | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> list[Run]:
    """The recorded runs of a chapter, sorted by scale, data set, row, variant and seed.

    Args:
        chapter: the chapter's name.
        scale: only runs at this scale.
        dataset: only runs on this data set.
        row: only runs of this method.
        seed: only runs with this seed.
        variant: only this variant; "" gives the main runs, None all.
        folder: read this folder alone, instead of the live and the recorded one.

    Returns:
        The runs that match; an empty list if nothing was recorded.

    Raises:
        ValueError: a record breaks the schema; the message names the file and the field.
    """
    found: dict[str, Run] = {}
    for place in _folders(folder):
        for path in sorted((place / _name("chapter", chapter)).glob("[!.]*.json")):
            found[path.stem] = _load(path)
    wanted = {"scale": scale, "dataset": dataset, "row": row, "seed": seed, "variant": variant}
    kept = [r for r in found.values() if all(v is None or getattr(r, k) == v for k, v in wanted.items())]
    return sorted(kept, key=lambda r: (SCALES.index(r.scale), r.dataset, r.row, r.variant, r.seed, r.run))


def first_steps_table(chapter: str, names: Mapping[str, str], scale: str = "full") -> Table:
    """What the rows' first steps cost (see :func:`robrep.book.reproduce.try_out`), a line for each that was recorded.

    Args:
        chapter: the chapter's name.
        names: row to its name in the table, in the table's order.
        scale: whose settings the steps were made with.

    Raises:
        ValueError: no record holds first steps of these rows.
    """
    numbers = ("a step, s", "all steps, h", "memory, GiB")
    begun = runs(chapter, row="first_steps", scale=scale)
    found = [(row, run) for row in names for run in begun if f"{run.variant}-".startswith(f"{row}-")]
    if not found:
        raise ValueError(f"chapter is {chapter!r}, of which no first steps at scale {scale} are recorded")
    cells = [
        [
            names[row] + run.variant.removeprefix(row).replace("-", ", ", 1).replace("=", " = "),
            f"{len(run.curves['loss']['y'])} of {run['steps'].value:,.0f}",
            ", ".join(f"{loss:.3f}" for loss in run.curves["loss"]["y"]),
            run.precision,
            f"{run['seconds'].value:,.1f}",
            f"{run['hours'].value:,.0f}",
            f"{run['peak'].value / 1024:.1f}",
        ]
        for row, run in found
    ]
    devices = ", ".join(dict.fromkeys(run.device for _, run in found))
    caption = f"The first steps at the settings of {scale}, but for what a row names, on {devices}; hours are projected"
    return Table(cells, ("row", "steps made", "loss", "precision", *numbers), caption=caption, numbers=numbers)


def load_run(chapter: str, run: str, *, folder: str | os.PathLike[str] | None = None) -> Run:
    """The run of that name, with its weights as they are now; the live one if there is one.

    Raises:
        FileNotFoundError: there is none; the message lists the runs there are.
        ValueError: the record breaks the schema.
    """
    for place in reversed(_folders(folder)):
        path = place / _name("chapter", chapter) / f"{_name('run', run)}.json"
        if path.is_file():
            found = _load(path)
            if found.weights is None or (payload := _payload(found)) is None:
                with _locked(path.parent):  # it may just be recorded again; what is wrong now is wrong for good
                    found = _load(path)
                    payload = None if found.weights is None else _payload(found)
            return replace(found, payload=payload)
    known = ", ".join(r.run for r in runs(chapter, folder=folder)) or "none"
    raise FileNotFoundError(f"chapter {chapter!r} has no recorded run {run!r}; recorded: {known}")


def load_weights(run: Run, **modules: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Load a run's saved networks by one call: ``load_weights(run, encoder=encoder, head=head)``.

    Every given module is checked before any of them is changed; names and shapes must fit exactly. The values take
    each module's own dtype and device (float32 for a fresh module).

    Args:
        run: the run, from :func:`runs` or :func:`load_run`.
        **modules: the modules to fill, under the names they were recorded with; any subset of them.

    Returns:
        All saved state dicts by module name, floating tensors in float32.

    Raises:
        FileNotFoundError: the run kept no weights, or the file is missing.
        ValueError: the file is not the one recorded, or a module does not fit it.
    """
    from safetensors.torch import load

    if run.weights is None:
        raise FileNotFoundError(f"{run.run} was recorded without weights")
    path = run.path.with_name(run.weights)
    payload = _payload(run) if run.payload is None else run.payload
    if payload is None and not path.is_file():
        raise FileNotFoundError(f"{path}, the weights of {run.run}, is missing")
    if payload is None:
        raise ValueError(f"{path} is not the file that {run.run} recorded (its hash differs); record the run again")
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(load(payload).items()):  # safetensors gives them in any order
        owner, tensor_name = key.split(".", 1)
        saved.setdefault(owner, {})[tensor_name] = tensor.float() if tensor.is_floating_point() else tensor
    for name, module in modules.items():
        one_of("modules", name, saved)
        shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
        kept = {k: tuple(v.shape) for k, v in saved[name].items()}
        if wrong := sorted(k for k in shapes.keys() | kept.keys() if shapes.get(k) != kept.get(k)):
            k = wrong[0]
            raise ValueError(
                f"{name} does not fit the weights of {run.run}: {k} is {shapes.get(k, 'absent')} in the module, "
                f"{kept.get(k, 'absent')} in the file"
            )
    for name, module in modules.items():
        module.load_state_dict(saved[name], strict=True)
    return saved


def _folders(folder: str | os.PathLike[str] | None) -> list[Path]:
    """Folders to read, the one that wins last."""
    if folder is not None:
        return [Path(folder)]
    recorded, live = recorded_folder(), live_folder()
    return [p for p in (recorded, live) if p is not None and (p is live or p != live)]


def _payload(run: Run) -> bytes | None:
    """The file of a run's weights, if it is the one that was recorded."""
    try:
        payload = run.path.with_name(str(run.weights)).read_bytes()
    except FileNotFoundError:
        return None
    return payload if hashlib.sha256(payload).hexdigest() == run.weights_sha256 else None


def _check(facts: Any, path: Path) -> None:
    """Refuse a record that breaks the schema, or that another place or name belongs to."""
    check_record(facts, str(path))
    name = run_name(facts["scale"], facts["dataset"], facts["row"], facts["seed"], facts["variant"])
    for field_, value, expected in (
        ("run", facts["run"], name),
        ("chapter", facts["chapter"], path.parent.name),
        ("run", facts["run"], path.stem),
        ("weights", facts["weights"] or f"{path.stem}.safetensors", f"{path.stem}.safetensors"),
    ):
        if value != expected:
            raise ValueError(f"{path}: {field_} is {value!r}, expected {expected!r}, as its place and its fields say")


def _load(path: Path) -> Run:
    facts = read_json(path)
    _check(facts, path)
    facts.pop("schema")
    facts["metrics"] = {name: Metric.of(m, f"metrics.{name}") for name, m in facts["metrics"].items()}
    return Run(**facts, path=path)
