"""A chapter declares what it trains and how it is judged; an :class:`Experiment` runs it and records what it did.

Everything that a run does comes from one immutable :class:`Settings` object, which is recorded. A chapter reads::

    exp = Experiment("vae_urkle", globals())

    @exp.networks(keep=("encoder", "head"))
    def networks(row, s, d): ...                            # name to module, with the weights that the seed gives

    exp.row("vae_urkle", "VAE + Urkle", lambda n, s: VAEUrkle(n.encoder, n.decoder, attack(s), ball(s), s.beta_robust))

    @exp.training
    def train(t):                                           # by t.s, on t.d, the networks t.n
        t.fit(t.method(), epochs=t.s.epochs, batch_size=t.s.batch_size, lr=t.s.lr)

    @exp.judge
    def judge(t): ...                                       # metrics, curves

    trained = exp.train()                                   # the chapter's rows, or what is recorded of them
    exp.sweep("vae_urkle", seeds=(0, 1, 2), beta_robust=[0.0, 0.1, 1.0])

A run is known by chapter, scale, data set, row, seed and the settings that it read: a recorded run is found by them and
by no name, and a run that was made here before is not made again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from robrep import data
from robrep.book import results
from robrep.book.parameters import checked, like, share_of
from robrep.book.results.schema import SCALES
from robrep.checks import one_of
from robrep.files import user_cache
from robrep.training import History, fit

LONG = ("lite", "full")  # scales whose trainings keep checkpoints


@dataclass(frozen=True)
class Line:
    """One setting of a chapter: what it is, and its value at each scale."""

    about: str
    values: Mapping[str, Any]  # by scale, or by scale and data set: "lite cifar10"

    def at(self, scale: str, dataset: str = "") -> Any:
        """The value at a scale, or the one that a data set has there."""
        return self.values.get(f"{scale} {dataset}", self.values[scale])


@functools.cache
def table(chapter: str) -> dict[str, Line]:
    """The settings of a chapter, from ``robrep/book/settings/<chapter>.yaml``.

    Each line has ``about`` and either ``value`` or one value for each scale; a key such as ``lite cifar10`` holds for
    one data set. Lists become tuples, and "8/255" is a number.

    Raises:
        ValueError: a line without ``about``, or one that leaves out a scale.
    """
    import yaml

    lines = {}
    for name, line in yaml.safe_load(settings_file(chapter).read_text(encoding="utf-8")).items():
        values = {key: _value(value) for key, value in line.items() if key != "about"}
        if "value" in values:
            values = dict.fromkeys(SCALES, values["value"]) | values
            del values["value"]
        unknown = {key.split()[0] for key in values} - set(SCALES)
        if "about" not in line or unknown or not set(SCALES) <= set(values):
            raise ValueError(f"{chapter}.yaml: {name} is {line}, expected about, and value or {', '.join(SCALES)}")
        lines[name] = Line(line["about"], values)
    return lines


def settings_file(chapter: str) -> Path:
    """Where the settings of a chapter stand.

    Raises:
        ValueError: there is no such chapter.
    """
    folder = Path(str(files("robrep.book"))) / "settings"
    return folder / f"{one_of('chapter', chapter, sorted(p.stem for p in folder.glob('*.yaml')))}.yaml"


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_value, value))
    if isinstance(value, str) and value.replace("/", "", 1).replace(".", "").isdigit() and "/" in value:
        above, below = value.split("/")
        return float(above) / float(below)
    return value


class Settings(Mapping[str, Any]):
    """The settings of one run: ``s.eps`` or ``s["eps"]``; they cannot be changed, and note which of them were read.

    Attributes:
        chapter: whose settings they are.
        scale: the scale.
        was_read: the names that were asked for so far.
    """

    chapter: str
    scale: str
    was_read: set[str]

    def __init__(self, chapter: str, scale: str, values: Mapping[str, Any]) -> None:
        vars(self).update(chapter=chapter, scale=scale, was_read=set(), _values=dict(values))

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(f"setting is {name!r}, expected one of {', '.join(self)}")
        self.was_read.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"{vars(self).get('chapter')} has no setting {name!r}")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings cannot be changed; ask for other ones: run(..., {name}={value!r})")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Settings({self.plain()})"

    def plain(self) -> dict[str, Any]:
        """All of them as a dict, which counts as reading none."""
        return dict(self._values)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """The same with other values.

        Raises:
            ValueError: an unknown name, or a value of another kind than its line in the table has.
        """
        lines, values = table(self.chapter), self.plain()
        for name, value in changes.items():
            line = lines[one_of("setting", name, lines)]
            values[name] = like(name, value, tuple(line.values.values()))
        return Settings(self.chapter, self.scale, values)

    def differing(self) -> dict[str, Any]:
        """What is otherwise than in the chapter's table at this scale and on this data set, in the table's order."""
        of_scale = at_scale(self.chapter, self.scale, self._values["dataset"])
        return {name: value for name, value in self._values.items() if value != of_scale[name]}

    def variant(self) -> str:
        """What differs from the table, as a part of a file's name; a long one is cut and distinguished by its hash."""
        text = "-".join(f"{name}={value}" for name, value in self.differing().items())
        cut = f"{text[:130]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"  # names of files end at 255 bytes
        return text if len(text) < len(cut) else cut


def at_scale(chapter: str, scale: str, dataset: str = "") -> dict[str, Any]:
    """The values of a chapter's table at a scale, on its own data set or on another."""
    lines = table(chapter)
    dataset = dataset or lines["dataset"].at(scale)
    return {name: line.at(scale, dataset) for name, line in lines.items()} | {"dataset": dataset}


@dataclass(frozen=True)
class Data:
    """The parts of a data set that a run uses: images uint8 (N, C, H, W), labels int64 (N,).

    Attributes:
        dataset: the data set as it was loaded; of one with several tasks, as the chapter's task sees it.
        x_train, y_train, x_val, y_val, x_test, y_test: what is trained on, chosen on, and counted on.
        few: indices of a random part of the test images, on which many attacks run.
    """

    dataset: data.Dataset
    x_train: Any
    y_train: Tensor
    x_val: Any
    y_val: Tensor
    x_test: Any
    y_test: Tensor
    few: Tensor

    @property
    def x_few(self) -> Any:
        """The images of ``few``."""
        return self.x_test[self.few]

    @property
    def y_few(self) -> Tensor:
        """The labels of ``few``."""
        return self.y_test[self.few]

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.dataset.shape

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.dataset.classes)


def split(s: Settings, dataset: data.Dataset | None = None) -> Data:
    """The parts of a data set that these settings name.

    Read are ``dataset`` (unless one is given) and ``test_images``, and where the chapter has them ``train_split``
    ("train" or "train+val"), ``train_images``, ``val_images``, ``few_images`` and ``judged_on`` ("val" or "test").

    Raises:
        ValueError: ``judged_on`` is neither of the two.
    """
    if "judged_on" in s:
        one_of("judged_on", s.judged_on, ("val", "test"))  # before the training, after which it counts
    if dataset is None:
        dataset = data.load(s.dataset)
        dataset = dataset.task("digit") if dataset.tasks else dataset
    names = s.train_split.split("+") if "train_split" in s else ["train"]
    (x, y), *more = ((getattr(dataset, f"x_{part}"), getattr(dataset, f"y_{part}")) for part in names)
    if more:
        x, y = torch.cat([x, *(m[0] for m in more)]), torch.cat([y, *(m[1] for m in more)])
    train, val, test = (slice(s.get(n)) for n in ("train_images", "val_images", "test_images"))
    y_test = dataset.y_test[test]
    few = min(s.few_images if "few_images" in s else len(y_test), len(y_test))
    return Data(
        dataset,
        x[train],
        y[train],
        dataset.x_val[val],
        dataset.y_val[val],
        dataset.x_test[test],
        y_test,
        data.label_subset(y_test, few, classes=dataset.classes, balanced=False),
    )


class Trial:
    """One row, trained and judged with one seed and one :class:`Settings`: made now, or loaded from its record.

    Attributes:
        row, title, seed, s: what it is, and the settings that it was made with.
        n: its networks, ``t.n.encoder``; drawn from the seed when they are first asked for.
        d: its :class:`Data`.
        history: the loss terms of each epoch.
        seconds: of training.
        metrics, curves: what was counted; ``t["robust"]`` is a :class:`~robrep.book.results.Metric`.
        record: the record that it was loaded from, None if it was made now.
        facts: what the record says of its data, if they are not ``d`` (:func:`robrep.book.results.data_facts`).
    """

    def __init__(self, exp: Experiment, row: str, seed: int, s: Settings) -> None:
        self.exp, self.row, self.seed, self.s = exp, row, seed, s
        self.title = exp.titles[row]
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.metrics: dict[str, results.Metric] = {}
        self.curves: dict[str, dict[str, Any]] = {}
        self.record: results.Run | None = None
        self.facts: dict[str, Any] = {}

    def __getitem__(self, metric: str) -> results.Metric:
        return self.metrics[one_of("metric", metric, self.metrics)]

    @property
    def main(self) -> bool:
        """Whether its settings are the chapter's own at this scale and data set, with no change."""
        return not self.s.variant()

    @property
    def minutes(self) -> float:
        """Minutes of training."""
        return self.seconds / 60

    @property
    def when(self) -> str:
        """Where its numbers come from, for a page."""
        return "this run" if self.record is None else f"recorded on {self.record.date[:10]}"

    @functools.cached_property
    def d(self) -> Data:
        """The parts of its data set."""
        return self.exp.data(self.s)

    @functools.cached_property
    def n(self) -> SimpleNamespace:
        """Its networks.

        Raises:
            FileNotFoundError: it is recorded, without weights.
        """
        if self.record is not None and not self.record.weights:
            raise FileNotFoundError(f"{self.record.run} was recorded without weights")
        return self.drawn()

    def drawn(self, d: Data | None = None) -> SimpleNamespace:
        """New networks for its data, or for other data, with the weights that the seed gives."""
        torch.manual_seed(self.seed)
        return SimpleNamespace(**self.exp.draw(self.row, self.s, self.d if d is None else d))

    def on_validation(self) -> bool:
        """Whether the setting ``judged_on`` has validation images counted; the record then says so, too."""
        if self.s.judged_on == "test":
            return False
        d = self.d
        self.facts = results.data_facts(d.dataset, split="val", n_train=len(d.x_train), n_test=len(d.x_val))
        return True

    def method(self) -> nn.Module:
        """What the row trains, around its networks."""
        return self.exp.methods[self.row](self.n, self.s)

    def fit(self, method: nn.Module, x: Any = None, y: Tensor | None = None, **options: Any) -> History:
        """:func:`robrep.training.fit` on the training images, or on others, with the seed, precision and cache of this
        run; history and seconds are kept."""
        given = {"precision": self.s.precision} if "precision" in self.s else {}
        given |= {"seed": self.seed, "cache": self.exp.cache, "progress": self.title} | options
        x, y = self.d.x_train if x is None else x, self.d.y_train if y is None else y
        history = fit(method, x, y, **given)
        self.history += [{k: v for k, v in epoch.items() if k not in ("lr", "seconds")} for epoch in history]
        self.seconds += sum(epoch["seconds"] for epoch in history)
        return history

    def note(self, found: Mapping[str, Any] | tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
        """Keep metrics, or metrics and curves."""
        metrics, curves = found if isinstance(found, tuple) else (found, {})
        self.metrics |= {name: results.Metric.of(value, name) for name, value in metrics.items()}
        self.curves |= {name: dict(curve) for name, curve in curves.items()}


class Experiment:
    """What a chapter trains and judges; see the module's docstring.

    Args:
        chapter: its name, as its notebook and its settings file have it.
        parameters: where SCALE, DATASET, SEED, ROWS, SETTINGS, SWEEP, SEEDS, RECORDED and PART are looked for: a
            notebook's ``globals()``. Every other name is left alone.

    Attributes:
        scale, seed: as asked for.
        settings: of this run: the table's column for the scale and the data set, with ``SETTINGS`` over it.
        sweeping: whether sweeps are run (SWEEP).
        seeds: of the sweeps (SEEDS).
        recorded: whether rows are loaded and none is trained (RECORDED).
        cache: where trainings keep their checkpoints; None at the short scales.
        titles: row to its name in tables.
        trials: what :meth:`run` made or loaded here.

    Raises:
        ParameterError: a parameter that does not fit, by name.
        OSError: runs would be recorded, and cannot be written.
    """

    def __init__(self, chapter: str, parameters: Mapping[str, Any]) -> None:
        lines = table(chapter)
        given = checked(parameters, {name: tuple(line.values.values()) for name, line in lines.items()})
        self.chapter, self.scale, self.seed = chapter, given.get("SCALE", "demo"), given.get("SEED", 0)
        column = at_scale(chapter, self.scale, given.get("DATASET", ""))
        self.settings = Settings(chapter, self.scale, column).changed(given.get("SETTINGS", {}))
        self.sweeping, self.recorded = given.get("SWEEP", False), given.get("RECORDED", False)
        self.seeds: tuple[int, ...] = given.get("SEEDS", (0, 1, 2))
        self.cache = user_cache() / "runs" if self.scale in LONG else None
        self.titles: dict[str, str] = {}
        self.methods: dict[str, Callable[[SimpleNamespace, Settings], nn.Module]] = {}
        self.own: dict[str, Callable[[Settings], Mapping[str, Any]]] = {}
        self.studies: dict[str, Callable[[Trial], Any]] = {}
        self.split: Callable[[Settings], Data] = split
        self.trials: dict[tuple[str, int, Settings], Trial] = {}
        self._given, self._default, self._unkept = given, list[str](), set[str]()
        self._kept: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        self._part = share_of(given.get("PART", "1/1"))
        self._asked: dict[tuple[str, int, Settings], int] = {}
        self._loaded: list[tuple[dict[str, Any], Data]] = []

    # --- what a chapter declares ----------------------------------------------------------------------------------

    def networks(self, *, keep: Sequence[str] = (), at: Sequence[str] = ("smoke", "demo")) -> Callable[[Any], Any]:
        """``draw(row, s, d)`` gives the networks of a row, by name.

        Args:
            keep: those whose weights a record keeps, of the main settings and seed 0.
            at: the scales where it does.
        """
        self._kept = tuple(keep), tuple(at)

        def declare(draw: Any) -> Any:
            self.draw: Callable[[str, Settings, Data], dict[str, nn.Module]] = draw
            return draw

        return declare

    def row(
        self, name: str, title: str, method: Any = None, *, default: bool = True, keep: bool = True, own: Any = None
    ) -> Any:
        """``method(n, s)`` gives what a row trains: the last argument, or the function that this decorates.

        Args:
            name, title: how records and tables call it.
            method: networks and settings to a training method.
            default: whether an empty ``ROWS`` means it too.
            keep: whether its record may keep weights.
            own: ``own(s)`` gives the settings that this row has otherwise, such as another network.
        """

        def declare(method: Any) -> Any:
            self._declare(name, title, default, keep)
            self.methods[name] = method
            if own is not None:
                self.own[name] = own
            return method

        if method is None:
            return declare
        declare(method)
        return None  # a cell that ends with the call shows nothing

    def study(self, name: str, title: str, *, default: bool = False, keep: bool = False) -> Callable[[Any], Any]:
        """``study(t)`` trains and judges a row all by itself; it gives metrics, or metrics and curves."""

        def declare(study: Any) -> Any:
            self._declare(name, title, default, keep)
            self.studies[name] = study
            return study

        return declare

    def _declare(self, name: str, title: str, default: bool, keep: bool) -> None:
        self.titles[name] = title
        if default and name not in self._default:
            self._default.append(name)
        if not keep:
            self._unkept.add(name)

    def training(self, train: Any) -> Any:
        """``train(t)`` trains ``t.method()`` and whatever else a row needs, such as heads."""
        self.train_row: Callable[[Trial], None] = train
        return train

    def judge(self, judge: Any) -> Any:
        """``judge(t)`` gives a trained row's metrics, or metrics and curves."""
        self.judge_row: Callable[[Trial], Any] = judge
        return judge

    def parts(self, parts: Any) -> Any:
        """``parts(s)`` gives a run's :class:`Data`, in place of :func:`split`."""
        self.split = parts
        return parts

    def once(self, make: Any) -> Any:
        """``make(s, *more)`` is called once for the values of all settings that it reads, and its result kept."""
        made: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

        @functools.wraps(make)
        def kept(s: Settings, *more: Any) -> Any:
            values = s.plain()
            for arguments, read, result in made:
                if arguments == more and all(values[name] == value for name, value in read.items()):
                    s.was_read.update(read)
                    return result
            own = Settings(s.chapter, s.scale, values)
            result = make(own, *more)
            made.append((more, {name: values[name] for name in own.was_read}, result))
            s.was_read.update(own.was_read)
            return result

        return kept

    # --- what it then does ----------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[str]:
        """The rows asked for: those of ROWS, else the chapter's own."""
        asked = [name for name in self._given.get("ROWS", "").split(",") if name]
        return [one_of("ROWS", name, self.titles) for name in asked] or list(self._default)

    @property
    def as_published(self) -> bool:
        """Whether this is the chapter as the book shows it: its demo, with no row, setting, data set or seed of one's
        own (records keep weights of seed 0 alone)."""
        own = any(self._given.get(name) for name in ("ROWS", "SETTINGS", "DATASET", "SWEEP", "SEED"))
        return self.scale == "demo" and not own

    def data(self, s: Settings | None = None) -> Data:
        """The :class:`Data` of these settings; loaded once."""
        s = self.settings if s is None else s
        for read, found in self._loaded:
            if all(s[name] == value for name, value in read.items()):
                return found
        own = Settings(s.chapter, s.scale, s.plain())
        found = self.split(own)
        self._loaded.append(({name: s[name] for name in own.was_read}, found))
        return found

    def train(self, *, live: Iterable[str] | None = None) -> dict[str, Trial]:
        """The rows asked for, or this PART of them, trained and judged, or loaded with RECORDED.

        Args:
            live: the only rows to be trained in the book's own run; there the others are loaded from their records.
        """
        rows, load = self.rows, set() if live is None or not self.as_published else set(self.titles) - set(live)
        mine = [row for row in rows if self._is_mine(row, self.seed, {})]
        return {row: self.load(row) if row in load else self.run(row) for row in mine}

    def _is_mine(self, row: str, seed: int, changes: Mapping[str, Any]) -> bool:
        """Whether a run belongs to this PART: runs are dealt out in the order in which they are first asked for."""
        key = row, seed, self._of(row, self.settings, changes)
        part, parts = self._part
        return self._asked.setdefault(key, len(self._asked)) % parts == part - 1

    def run(self, row: str, seed: int | None = None, **changes: Any) -> Trial:
        """Train, judge and record a row, or load it with RECORDED; what was made before is not made again.

        Args:
            row: a declared row.
            seed: this run's seed if not given.
            **changes: settings to change.

        Raises:
            ValueError: an unknown row or setting, or a value that does not fit.
            FileNotFoundError: with RECORDED, no recorded run has these settings.
        """
        s, seed = self._of(row, self.settings, changes), self.seed if seed is None else seed
        key = one_of("row", row, self.titles), seed, s
        if key not in self.trials:
            if self.recorded:
                self.trials[key] = self.restore(self._find(row, seed, s))
            else:
                self.trials[key] = self._made(Trial(self, row, seed, s))
        return self.trials[key]

    def _of(self, row: str, s: Settings, changes: Mapping[str, Any]) -> Settings:
        """The settings of a row: as asked for, with those that are its own."""
        if changes.get("dataset", own := s.plain()["dataset"]) != own:  # another data set may have a column of its own
            s, asked = (
                Settings(self.chapter, s.scale, at_scale(self.chapter, s.scale, changes["dataset"])),
                s.differing(),
            )
            changes = asked | dict(changes)
        s = s.changed(changes)
        return s.changed(self.own[row](s)) if row in self.own else s

    def _made(self, t: Trial) -> Trial:
        if t.row in self.studies:
            t.note(self.studies[t.row](t))
        else:
            self.train_row(t)
            if self.scale in self._kept[1]:
                results.round_weights(*vars(t.n).values())  # what is judged is what is saved
            for network in vars(t.n).values():
                network.eval()
            t.note(self.judge_row(t))
        t.curves |= _curves(t.history)
        names, scales = self._kept
        kept = names if t.main and t.seed == 0 and self.scale in scales and t.row not in self._unkept else ()
        facts = t.facts or results.data_facts(t.d.dataset, n_train=len(t.d.x_train), n_test=len(t.d.x_test))
        results.record(
            self.chapter,
            results.run_name(self.scale, facts["name"], t.row, t.seed, t.s.variant()),
            scale=self.scale,
            row=t.row,
            seed=t.seed,
            variant=t.s.variant(),
            settings=t.s.plain(),
            read=t.s.was_read | {"dataset"},
            metrics=t.metrics,
            curves=t.curves,
            data=facts,
            minutes=t.minutes,
            modules={name: getattr(t.n, name) for name in kept if hasattr(t.n, name)} or None,
        )
        return t

    def sweep(self, *rows: str, seeds: Iterable[int] | None = None, **changes: Any) -> None:
        """With SWEEP, run rows with several seeds and settings; a list varies a setting.

        ``sweep("se", seeds=(0, 1), gamma=[1.0, 10.0])`` is four runs. With PART, only this part of all runs is made.
        """
        if not self.sweeping:
            return
        grid = [value if isinstance(value, list) else [value] for value in changes.values()]
        for seed, row, *values in itertools.product([self.seed] if seeds is None else seeds, rows, *grid):
            point = dict(zip(changes, values, strict=True))
            if self._is_mine(row, seed, point):
                self.run(row, seed, **point)

    # --- what is recorded -----------------------------------------------------------------------------------------

    def find(
        self,
        row: str,
        *,
        scale: str = "",
        dataset: str = "",
        seed: int | None = None,
        folder: Path | None = None,
        **changes: Any,
    ) -> results.Run:
        """The recorded run of a row that has just these settings, as far as it read them.

        Args:
            row, seed, changes: as for :meth:`run`.
            scale, dataset: where it was run. If either is given, the settings are those of the table there, without
                SETTINGS; if neither is given, they are those of this run.
            folder: where to look; ``results.recorded_folder()`` holds the book's own runs. If None, there and where
                this machine records its own, which win.

        Raises:
            FileNotFoundError: there is none; the message says how the nearest differs.
        """
        s = self.settings
        if scale or dataset:
            s = Settings(self.chapter, scale or self.scale, at_scale(self.chapter, scale or self.scale, dataset))
        return self._find(row, self.seed if seed is None else seed, self._of(row, s, changes), folder)

    def _find(self, row: str, seed: int, s: Settings, folder: Path | None = None) -> results.Run:
        scale, asked = s.scale, s.plain()
        known = results.runs(self.chapter, scale=scale, dataset=asked["dataset"], row=row, seed=seed, folder=folder)
        by_row = self._read_by_row(row) if any(record.read is None for record in known) else None
        apart, same = [], []
        for record in reversed(known):
            was, read = self._recorded(record), by_row if record.read is None else record.read
            different = [k for k in was if was[k] != asked[k] and (read is None or k in read)]
            if not different:
                same.append(record)
                continue
            apart.append((len(different), f"{record.run}, has {different[0]} = {was[different[0]]!r}", different[0]))
        if same:  # older records say less of their settings; the one that says most, and whose variant is just this
            best = max(same, key=lambda record: (len(self._recorded(record)), record.variant == s.variant()))
            return results.load_run(self.chapter, best.run, folder=folder)
        what = f"{self.chapter} has no recorded run of {row} at {scale} on {asked['dataset']} with seed {seed}"
        if not apart:
            raise FileNotFoundError(what)
        _, nearest, name = min(apart)
        raise FileNotFoundError(f"{what} and {name} = {asked[name]!r}; the nearest, {nearest}")

    def _read_by_row(self, row: str) -> set[str] | None:
        """The settings that any run of a row read, for older records, which do not say; None if no run says."""
        told = [run.read for run in results.runs(self.chapter, row=row) if run.read is not None]
        return set().union(*told) if told else None

    def _recorded(self, record: results.Run) -> dict[str, Any]:
        """The settings of a record that the chapter still has, as their kinds are today."""
        lines = table(self.chapter)
        named = dict(piece.split("=", 1) for piece in record.variant.split("-") if piece.count("=") == 1)
        stated = named | record.settings  # an older record may name a setting in its variant alone
        values = {name: value for name, value in stated.items() if name in lines}
        kinds = {name: tuple(lines[name].values.values()) for name in values}
        return {name: like(name, values[name], kinds[name]) for name in values} | {"dataset": record.dataset}

    def load(self, row: str, **where: Any) -> Trial:
        """A recorded run as if it had just been made, with the networks whose weights it kept; as for :meth:`find`."""
        return self.restore(self.find(row, **where))

    def restore(self, record: results.Run) -> Trial:
        """The networks and numbers of a record; a setting that it does not know has its value of today."""
        values = at_scale(self.chapter, record.scale, record.dataset) | self._recorded(record)
        t = Trial(self, record.row, record.seed, Settings(self.chapter, record.scale, values))
        t.record, t.seconds = record, 60 * record.minutes
        t.metrics, t.curves = dict(record.metrics), dict(record.curves)
        terms = {k.removeprefix("training_"): c["y"] for k, c in record.curves.items() if k.startswith("training_")}
        t.history = [dict(zip(terms, epoch, strict=True)) for epoch in zip(*terms.values(), strict=True)]
        if record.weights:
            kept = {name: module for name, module in vars(t.n).items() if name in self._kept[0]}
            results.load_weights(record, **kept)
            for network in vars(t.n).values():
                network.eval()
        return t

    def points(
        self,
        row: str,
        setting: str,
        values: Iterable[Any],
        *,
        seeds: Iterable[int] = (0, 1, 2),
        scale: str = "demo",
        **changes: Any,
    ) -> dict[Any, list[results.Run]]:
        """The recorded runs of a sweep: value to one run for each seed."""
        seeds = tuple(seeds)
        return {
            value: [self.find(row, scale=scale, seed=seed, **changes | {setting: value}) for seed in seeds]
            for value in values
        }

    # --- what a page shows ----------------------------------------------------------------------------------------

    def unread(self) -> list[str]:
        """Settings that no run made here has read, in the table's order."""
        read = {name for t in self.trials.values() for name in t.s.was_read} | {"dataset"}
        return [name for name in table(self.chapter) if name not in read]

    def settings_table(self) -> results.Fold:
        """All settings with what they mean and their values at every scale, folded."""
        known = table(self.chapter)
        every = dict.fromkeys([*SCALES, *(key for line in known.values() for key in line.values)])  # "lite cifar10"
        keys = sorted(every, key=lambda key: SCALES.index(key.split()[0]))
        lines = [(name, line.about, *(_shown(line.at(*key.split())) for key in keys)) for name, line in known.items()]
        here = f"this run: {self.scale}" + ", with " * bool(self.settings.variant()) + self.settings.variant()
        return results.Fold(f"All settings ({here})", results.Table(lines, ("setting", "meaning", *keys)))


def rate_at(curve: Mapping[str, Sequence[float]], eps: float, n: int, attack: str = "") -> results.Metric:
    """The rate at ``eps`` of a curve over the radius, as :func:`robrep.evaluation.against_radius` gives it.

    Args:
        curve: lists ``x`` (the radii), ``y``, ``low`` and ``high``.
        eps: one of the radii.
        n: how many images were counted.
        attack: the attack in words; "" for clean images.

    Raises:
        ValueError: the curve has no point at ``eps``.
    """
    at = list(curve["x"]).index(eps)
    return results.Metric(curve["y"][at], curve["low"][at], curve["high"][at], n, None, "fraction", "images", attack)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float) and value == round(255 * value) / 255 and value not in (0.0, 1.0):
        return f"{round(255 * value)}/255"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The loss terms of each epoch, and what was watched in some of them, as curves over the epochs."""
    curves: dict[str, dict[str, Any]] = {}
    for term in sorted({term for epoch in history for term in epoch}):
        seen = [(i, epoch[term]) for i, epoch in enumerate(history, 1) if term in epoch]
        name = term if term.startswith("watched_") else f"training_{term}"
        curves[name] = {"x": [i for i, _ in seen], "y": [value for _, value in seen]}
    return curves
