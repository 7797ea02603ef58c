"""What training steps and attacks cost on a GPU: ``python benchmarks/gpu.py``, three minutes.

Measured are

* a training step of every row of the chapters, at ``lite`` and ``full``: with augmentation, attack, losses, optimizer
  and, where there is one, the moving average; captured as a CUDA graph and launched kernel by kernel. Method, batch,
  optimizer and precision are those that the chapter itself hands to ``fit``.
* PGD-20 and APGD-100 on three classifiers.
* the suite ``autoattack`` beside pyautoattack's standard version, attack by attack, on the same classifier.

The floor of a step is the forward passes that its networks made in it, noted by hooks and made again in a bare loop,
each that had gradients with its backward pass: to the network's input where the network is under attack (in evaluation
mode), to input and weights where it is trained. The captured floor is the same loop as a CUDA graph. The floor of an
attack is ``steps`` forward passes and backward passes to the images. Steps, attacks and floors take turns; shown are
the ratio of the shortest times and the median of the ratios round by round. The first calls do not count.

Images are made up, in the real shapes; no data set is read. The measurement is kept as ``benchmark-gpu.json`` among the
recorded runs (``ROBREP_RESULTS``, else ``book/results``), or in ``--json FILE``. ``--show FILE`` prints one that was
kept. ``--device cpu --small`` makes the same calls at the chapters' smoke scale, and keeps nothing unless asked to.
"""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import attacks
import autoattack
import torch
from timing import as_json, measurement, options, over, report, show, take_turns, threads
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map

from robrep import data, steps
from robrep.attacks import Linf
from robrep.book import experiment, reproduce, results
from robrep.checks import positive_int
from robrep.encoders import ResNetEncoder
from robrep.evaluation import accuracy
from robrep.optimizers import make_optimizer
from robrep.random import noise, uniform
from robrep.training import HALF, best_precision

ROWS = {  # the chapters' rows, in the chapters' own names
    "vae_urkle": ("vae_urkle", "vae", "standard", "at", "trades", "ae_trades"),
    "simclr_urkle": ("simclr", "rocl", "simclr_urkle", "at"),
    "byorl": ("byorl",),
    "worst_case_mi": ("worst_case",),
    "cropd": ("cropd",),
}
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("byorl", "full"): {"attack_steps": 4},  # with all 40 this one row takes minutes
    ("simclr_urkle", "smoke"): {"net": "resnet18"},
    ("byorl", "smoke"): {"net": "preact", "base": 8},
}
SHAPES = {"digits": (1, 8, 8), "colour-digits": (3, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
TEST_IMAGES = 512
CALLS = steps.WARM_UP + 1  # of a step, before it is measured: the last of them captures it


# --- images that are made up ------------------------------------------------------------------------------------------


def synthetic(name: str, train: int = 2_048) -> data.Dataset:
    """Images in the shape of a data set: each class has a coarse pattern, faint in some images and strong in others."""
    channels, height, width = SHAPES[name]
    patterns = F.interpolate(noise(0, torch.arange(10), (channels, 4, 4)).clamp(-1, 1), (height, width))
    parts: dict[str, Tensor] = {}
    for seed, (split, n) in enumerate({"train": train, "val": 1_100, "test": TEST_IMAGES}.items()):
        ids = torch.arange(n)
        strength = 0.02 + 0.2 * uniform(seed, ids, (1, 1, 1))
        grey = 0.05 * noise(seed, ids, SHAPES[name])
        images = 0.5 + strength * patterns[ids % 10] + grey
        parts |= {f"x_{split}": (255 * images.clamp(0, 1)).round().to(torch.uint8), f"y_{split}": ids % 10}
    return data.Dataset(name, tuple("0123456789"), **parts, note="made up")


@contextmanager
def made_up() -> Iterator[None]:
    """In the block, data sets are made up rather than loaded."""
    before = data.load
    data.load = synthetic  # type: ignore[assignment]
    try:
        yield
    finally:
        data.load = before


# --- what a chapter trains --------------------------------------------------------------------------------------------


class Training(Exception):
    """What a chapter handed to ``fit``; raised there, so that the chapter goes no further."""

    def __init__(self, method: nn.Module, x: Tensor, y: Tensor, **options: Any) -> None:
        super().__init__("a training that was about to begin")
        self.method, self.x, self.y, self.options = method, x, y, options


def fit(method: nn.Module, x: Tensor, y: Tensor, **options: Any) -> None:
    """In place of robrep's own: say what was to be trained."""
    raise Training(method, x, y, **options)


def declared(chapter: str, scale: str) -> experiment.Experiment:
    """A chapter's experiment, with the settings of its own table."""
    with made_up():
        return reproduce.declared(chapter, SCALE=scale, SETTINGS=CHANGES.get((chapter, scale), {}))


def training(exp: experiment.Experiment, row: str) -> Training:
    """What a row of a chapter's experiment hands to ``fit``.

    Raises:
        ValueError: nothing.
    """
    with made_up(), mock.patch.object(experiment, "fit", fit):
        try:
            exp.train_row(experiment.Trial(exp, row, 0, exp.settings))
        except Training as found:
            return found
    raise ValueError(f"row is {row!r}, expected one that {exp.chapter} trains")


# --- the floor of a step ----------------------------------------------------------------------------------------------


class Passes:
    """The forward passes of a method's networks while a block runs, to be made again.

    A network is any module with parameters that a method calls; what it calls itself is part of its pass.

    Attributes:
        counts: images that went through a network, by kind: an "attack" pass has a backward pass to its input, a
            "trained" one also to the weights, a "forward" one has none.
    """

    def __init__(self, method: nn.Module) -> None:
        self.calls: list[tuple[str, nn.Module, list[Any], Any, Any]] = []
        self.inputs: dict[Any, Tensor] = {}
        self.counts = {"forward": 0, "attack": 0, "trained": 0}
        self.depth, self.method, self.hooks = 0, method, []  # type: ignore[var-annotated]

    def __enter__(self) -> Passes:
        for module in self.method.modules():
            own = type(module).__module__.startswith("robrep.methods")
            if module is not self.method and not own and any(True for _ in module.parameters()):
                self.hooks += [
                    module.register_forward_pre_hook(self._before, with_kwargs=True),
                    module.register_forward_hook(self._after),
                ]
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.depth == 0:
            kind = "forward" if not torch.is_grad_enabled() else "trained" if module.training else "attack"
            leaves = tree_flatten((args, kwargs))[0]
            self.counts[kind] += next(len(v) for v in leaves if isinstance(v, Tensor))
            modes = [(m, m.training, getattr(m, "track_running_stats", None)) for m in module.modules()]
            self.calls.append((kind, module, modes, *tree_map(partial(self._kept, module, kind), (args, kwargs))))
        self.depth += 1

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.depth -= 1

    def _kept(self, module: nn.Module, kind: str, value: Any) -> Any:
        """A copy of an input that stays; passes of one kind share it."""
        if not isinstance(value, Tensor):
            return value
        wants = kind != "forward" and value.requires_grad
        key = module, wants, value.shape, value.dtype
        if key not in self.inputs:
            self.inputs[key] = value.detach().clone().requires_grad_(wants)
        return self.inputs[key]

    def again(self) -> None:
        """Make the same passes, and the backward pass of each that had gradients."""
        for kind, module, modes, args, kwargs in self.calls:
            before = [(m, m.training, getattr(m, "track_running_stats", None)) for m, *_ in modes]
            _set(modes)
            with torch.set_grad_enabled(kind != "forward"):
                outputs = tree_flatten(module(*args, **kwargs))[0]
                outputs = [v for v in outputs if isinstance(v, Tensor) and v.requires_grad]
            _set(before)
            inputs = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor) and v.requires_grad]
            weights = [p for p in module.parameters() if p.requires_grad] if kind == "trained" else []
            if outputs and inputs + weights:
                ones = [torch.ones_like(v) for v in outputs]
                torch.autograd.grad(outputs, inputs + weights, ones, allow_unused=True)


def _set(modes: list[Any]) -> None:
    for module, training, tracks in modes:
        module.training = training
        if tracks is not None:
            module.track_running_stats = tracks


def captured(work: Callable[[], None], device: str) -> Callable[[], None] | None:
    """The work as a CUDA graph, or None where there are none."""
    if device not in steps.CAPTURE:
        return None
    if device == "cuda":  # as for a step: once on a stream of its own before
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
    return steps.CAPTURE[device](work)


# --- training steps ---------------------------------------------------------------------------------------------------


def step_of(training: Training, device: str, capture: bool) -> tuple[Any, steps.TrainingStep, Callable[[], None]]:
    """A copy of the method on the device, its step as ``fit`` makes it, and the call of one."""
    options, method = training.options, copy.deepcopy(training.method).to(device).train()
    precision = options.get("precision", "32-true")
    precision = best_precision(torch.device(device)) if precision == "auto" else precision
    batch_size = min(options["batch_size"], len(training.x))
    rate = torch.tensor(0.0, device=device)
    weights = [p for p in method.parameters() if p.requires_grad]
    optimizer = make_optimizer(options.get("optimizer", "adamw"), weights, rate, options.get("weight_decay", 0.0))
    scaler = torch.amp.GradScaler(device) if precision == "16-mixed" else None  # type: ignore[attr-defined]
    refusal = "" if capture else "capture is False"
    if scaler is not None:
        refusal = "the loss scaling of 16-mixed decides on the host"
    step = steps.TrainingStep(
        method, method, optimizer, training.y.to(device), x=training.x.to(device), batch_size=batch_size, steps=1_000,
        autocast=HALF.get(precision), scaler=scaler, refusal=refusal,
    )  # fmt: skip
    ids = torch.arange(batch_size, device=device)
    return method, step, partial(step, ids, None, seed=0, number=0, rate=1e-6)


def measure_step(training: Training, device: str, runs: int, until: float) -> dict[str, Any]:
    """A step launched and captured, each over its floor.

    Args:
        training: of one row.
        device: "cpu" or "cuda".
        runs: rounds that count, at most.
        until: no further round begins after it (``time.monotonic()``).

    Returns:
        batch_size, shape, parameters, precision, passes (images by kind), how (captured, or why not), ``launched`` and
        ``captured`` (what ``timing.over`` says, or None), images_per_second and peak (MiB of the GPU, or None).
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    method, launched, launch = step_of(training, device, capture=False)
    launch()
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    with Passes(method) as passes:
        launch()
    half = launched.autocast
    _, held, replay = step_of(training, device, capture=True)

    def floor() -> None:
        with torch.autocast(device, half, cache_enabled=False) if half else nullcontext():
            passes.again()

    for _ in range(CALLS):
        replay()
    works: dict[str, Callable[[], None]] = {"floor": floor, "launched": launch}
    if held.how.startswith("captured"):
        as_graph = captured(floor, device)
        works |= {"captured": replay} | ({} if as_graph is None else {"captured floor": as_graph})
    times = take_turns(works, runs, warm_up=1, device=device, until=until)
    batch_size = len(launched.ids)
    return {
        "batch_size": batch_size,
        "shape": list(training.x.shape[1:]),
        "parameters": sum(p.numel() for p in method.parameters()),
        "precision": str(half).removeprefix("torch.") if half else "float32",
        "passes": passes.counts,
        "how": held.how,
        "rounds": len(times["launched"]),
        "launched": over(times["launched"], times["floor"]),
        "captured": over(times["captured"], times["captured floor"]) if "captured floor" in times else None,
        "images_per_second": batch_size / min(times.get("captured", times["launched"])),
        "peak": peak,
    }


def in_words(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure_steps(scales: list[str], device: str, runs: int, until: float) -> list[dict[str, Any]]:
    """What :func:`measure_step` says of each row of the chapters at each scale; ``error`` where it failed."""
    left, rows = len(scales) * sum(map(len, ROWS.values())), []
    for scale in scales:
        for chapter, named in ROWS.items():
            exp: experiment.Experiment | None = None
            for name in named:
                row = {"chapter": chapter, "row": name, "scale": scale, "changes": CHANGES.get((chapter, scale), {})}
                share = max(0.0, until - time.monotonic()) / left
                try:
                    exp = exp or declared(chapter, scale)
                    row |= measure_step(training(exp, name), device, runs, time.monotonic() + share)
                except Exception as error:  # the other rows are measured all the same
                    row["error"] = in_words(error)
                rows.append(row)
                left -= 1
                print(f"{scale} {chapter} {name}: {row.get('error') or row['how']}", file=sys.stderr, flush=True)
    return rows


# --- attacks ----------------------------------------------------------------------------------------------------------


def resnet18() -> nn.Module:
    """The usual network, 11.2 million parameters."""
    return nn.Sequential(ResNetEncoder(18, gaussian=False), nn.Linear(512, 10)).eval()


NETWORKS = attacks.NETWORKS | {"resnet18": resnet18}


def measure_attacks(network: str, batch: int, device: str, runs: int, until: float) -> list[dict[str, Any]]:
    """PGD-20 and APGD-100 over their floors, on a network with random weights, from the clean images.

    Args:
        network: a name of ``NETWORKS``.
        batch: images in the batch, 3 x 32 x 32.
        device, runs, until: as for :func:`measure_step`.
    """
    torch.manual_seed(0)
    model, x = NETWORKS[network]().to(device), torch.rand(batch, 3, 32, 32).to(device)
    with torch.no_grad():
        y = model(x).argmax(1)
    rows = []
    attacked = {attack: work for (attack, _), work in attacks.ours(model, x, y).items()}
    start = partial(Linf(attacks.EPS).start, x, torch.arange(batch, device=device), 0)
    for n in (attacks.PGD_STEPS, attacks.APGD_STEPS):
        name = attacks.name(n)
        works = {"floor": partial(attacks.floor, model, x, y, n), name: attacked[name]}
        works |= {"random start": start} if n == attacks.PGD_STEPS else {}
        times = take_turns(works, runs, warm_up=1, device=device, until=until)
        shared = {"network": network, "parameters": sum(p.numel() for p in model.parameters()), "batch": batch}
        rows += [shared | {"attack": k, "of": name} | over(times[k], times["floor"]) for k in works if k != "floor"]
    return rows


def compare_autoattack(images: int, train: int, first: int, device: str, until: float) -> tuple[Any, list[Any]]:
    """Both implementations on a small classifier that was trained adversarially, l-inf, one batch, attack by attack.

    Args:
        images: test images.
        train: training images, which are made up as the test images are.
        first: so many attacks of the suite, at most.
        device: "cpu" or "cuda".
        until: no further attack begins after it (``time.monotonic()``).

    Returns:
        The clean accuracy, and rows as of ``autoattack.compare``.
    """
    dataset, rows = synthetic("cifar10", train), []
    model = autoattack.trained(dataset, None, 16).to(device)
    x, y = dataset.images("test", slice(images)).to(device), dataset.labels("test", slice(images)).to(device)
    peer = importlib.util.find_spec("pyautoattack") is not None
    for row in autoattack.compare(model, x, y, "linf", images, peer):
        rows.append(row)
        if len(rows) == first or time.monotonic() > until:
            break
    return accuracy(model, x, y).to_dict(), rows


# --- tables -----------------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def steps_table(facts: dict[str, Any]) -> results.Table:
    """The training steps."""

    def cells(row: dict[str, Any]) -> list[str]:
        changes = ", ".join(f"{k} = {v}" for k, v in row["changes"].items())
        first = [row["scale"], row["chapter"], row["row"] + (f" ({changes})" if changes else "")]
        if "error" in row:
            return [*first, "failed", *[""] * 6]
        one, graph = row["launched"], row["captured"]
        times = [milliseconds(one["seconds"]["minimum"]), f"{one['ratio']['median']:.2f}"]
        times += [milliseconds(graph["seconds"]["minimum"]), f"{graph['ratio']['median']:.2f}"] if graph else ["", ""]
        return [*first, str(row["batch_size"]), row["precision"], *times, f"{row['images_per_second']:,.0f}"]

    numbers = ["batch", "launched, ms", "over its floor", "captured, ms", "over the captured floor", "images a second"]
    columns = ["scale", "chapter", "row", numbers[0], "precision", *numbers[1:]]
    caption = f"A training step of each row, {machine(facts)}"
    return results.Table(map(cells, facts["rows"]), columns, caption=caption, numbers=numbers)


def attacks_table(facts: dict[str, Any]) -> results.Table:
    """The attacks."""
    numbers = ["batch", "shortest, ms", "median, ms", "over the floor", "in the median"]
    cells = [
        [f"{row['network']}, {row['parameters']:,} parameters", row["attack"], row["batch"]]
        + [milliseconds(row["seconds"][k]) for k in ("minimum", "median")]
        + [f"{row['ratio'][k]:.3f}" for k in ("minimum", "median")]
        for row in facts["attacks"]
    ]
    caption = f"Attacks on images of 3 x 32 x 32, {machine(facts)}"
    return results.Table(cells, ["network", "attack", *numbers], caption=caption, numbers=numbers)


def machine(facts: dict[str, Any]) -> str:
    """Where it was measured."""
    return f"{threads(facts)}, torch {facts['versions']['torch']}"


def autoattack_table(facts: dict[str, Any]) -> results.Table:
    """AutoAttack by the two libraries."""
    shown = facts["autoattack"]
    settings = facts["settings"] | {"batch": facts["settings"]["images"]}
    table = autoattack.table(facts | {"settings": settings, "clean": shown["clean"], "rows": shown["rows"]})
    caption = f"AutoAttack on a batch of {settings['images']} images that are made up, {machine(facts)}"
    return results.Table(table.rows, table.columns, caption=caption, numbers=sorted(table.numbers))


TABLES = {"attacks": attacks_table, "autoattack": autoattack_table}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, and keep the measurement; 1 if a row failed."""
    parser = options(__doc__, minutes=3, runs=20, batch=512, images=512, threads=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="smoke scale, small batches, one attack of the suite")
    args = parser.parse_args(arguments)
    if args.show:
        show(args.show)
        for table in json.loads(args.show.read_text(encoding="utf-8"))["tables"].values():
            print(results.Table(**table)._repr_markdown_())
        return 0
    try:
        for name in ("minutes", "runs", "batch", "images", "threads"):
            positive_int(name, getattr(args, name))
        if args.images > TEST_IMAGES:
            raise ValueError(f"images is {args.images}, expected at most {TEST_IMAGES}")
    except ValueError as error:
        parser.error(str(error))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("device is 'cuda', expected 'cpu': there is no CUDA device here")
    torch.set_num_threads(args.threads)
    scales, networks, train, first = ["lite", "full"], list(NETWORKS), 2_048, 4
    if args.small:
        scales, networks, train, first = ["smoke"], ["small"], 16, 1
        args.runs, args.batch, args.images = 1, 4, 8
    runs, batch, images = args.runs, args.batch, args.images
    file = args.json or (None if args.small else results.live_folder() / "benchmark-gpu.json")
    began, seconds = time.monotonic(), 60 * args.minutes
    settings = {"minutes": args.minutes, "runs": runs, "batch": batch, "images": images, "small": args.small}
    facts = measurement(settings, args.device, attacks=[], autoattack={}, rows=[])
    for network in networks:
        facts["attacks"] += measure_attacks(network, batch, args.device, runs, began + 0.15 * seconds)
    try:
        clean, compared = compare_autoattack(images, train, first, args.device, began + 0.4 * seconds)
        facts["autoattack"] = {"clean": clean, "rows": compared}
    except Exception as error:  # the steps are measured all the same
        facts["autoattack"] = {"error": in_words(error)}
        print(f"AutoAttack: {in_words(error)}", file=sys.stderr)
    if importlib.util.find_spec("pyautoattack") is not None:
        facts["versions"] = facts["versions"] | {"pyautoattack": importlib.metadata.version("pyautoattack")}
    facts["tables"] = {name: as_json(table(facts)) for name, table in TABLES.items() if "error" not in facts[name]}
    facts["rows"] = measure_steps(scales, args.device, runs, began + seconds)
    facts["minutes"] = (time.monotonic() - began) / 60
    report(facts, steps_table(facts), file)
    for table in facts["tables"].values():
        print(results.Table(**table)._repr_markdown_())
    return int(any("error" in part for part in (*facts["rows"], facts["autoattack"])))


if __name__ == "__main__":
    sys.exit(main())
