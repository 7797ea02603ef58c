"""Clean and robust accuracy with intervals, judged by noise that the attack has not seen."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import Threat, attack_mode
from robrep.attacks.threats import check_count
from robrep.checks import check_images, check_labels, positive_int
from robrep.data import floats
from robrep.files import atomic_write, code_hash, digest
from robrep.heads import device_of
from robrep.objectives import draws_noise, predict
from robrep.progress import Progress
from robrep.random import fold, generator
from robrep.suites import SuiteAttack, as_suite
from robrep.training import Examples, Precision, best_precision

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a rate (Wilson 1927): (low, high), 95 % for the default ``z``.

    Unlike the bootstrap it has a width at 0 and at n successes.

    Raises:
        ValueError: ``n`` below 1, or ``successes`` outside 0 ... n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} and n is {n}, expected 0 <= successes <= n and n at least 1")
    rate, t = successes / n, z * z / n
    centre = (rate + t / 2) / (1 + t)
    half = z / (1 + t) * math.sqrt(rate * (1 - rate) / n + t / (4 * n))
    # at the ends the exact bound is the end itself; rounding would miss it
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


@dataclass(frozen=True)
class Rate:
    """A share of images with Wilson's 95 % interval, which spans images, not training seeds.

    Attributes:
        correct: bool, shape (N,): which images count.
        attack: the attack and its ball in words; "" for clean images.
    """

    correct: Tensor = field(repr=False)
    attack: str = ""

    def __post_init__(self) -> None:
        if self.correct.dtype != torch.bool or self.correct.ndim != 1 or not len(self.correct):
            came = f"{self.correct.dtype} of shape {tuple(self.correct.shape)}"
            raise ValueError(f"correct is {came}, expected bool of shape (N,), N at least 1")

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.correct)

    @property
    def value(self) -> float:
        """The share in [0, 1]."""
        return int(self.correct.sum()) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(int(self.correct.sum()), self.n)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval[1]

    def first(self, n: int) -> Rate:
        """The rate of the first ``n`` images."""
        return Rate(self.correct[: positive_int("n", n)], self.attack)

    def to_dict(self) -> dict[str, float | int | str]:
        """What a record keeps: value, low, high, n, attack."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "attack": self.attack}

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.n}"


def paired_bootstrap(a: Tensor, b: Tensor, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Difference of two rates measured on the same images: (mean(a) - mean(b), low, high), 95 % by the bootstrap.

    Args:
        a, b: bool or float, shape (N,), in the same order of images.
        draws: number of resampled image sets.
        seed: seed of the resampling.

    Raises:
        ValueError: shapes that differ, or nothing in them.
    """
    positive_int("draws", draws)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}, expected the same (N,), N at least 1")
    d = a.double().cpu() - b.double().cpu()
    index = torch.randint(len(d), (draws, len(d)), generator=generator("bootstrap", seed))
    low, high = torch.quantile(d[index].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return d.mean().item(), low, high


def _batches(model: nn.Module, x: Examples, y: Tensor, batch_size: int) -> Any:
    """(images, labels, ids) on the model's device; images as floats in [0, 1]."""
    check_labels(y, len(x))
    device = device_of(model)
    for ids in torch.arange(len(x)).split(positive_int("batch_size", batch_size)):
        yield _images(x, ids).to(device), y[ids].to(device), ids.to(device)


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, seed: int) -> Tensor:
    """Which images of a batch are classified right, with noise that no attack has seen."""
    logits = predict(model, images, ids=ids, seed=fold(seed, "verdict"))
    check_labels(labels, len(images), logits.shape[1])
    return logits.argmax(1) == labels


@torch.no_grad()
def accuracy(model: nn.Module, x: Examples, y: Tensor, *, seed: int = 0, batch_size: int = 500) -> Rate:
    """Share of images classified right.

    Args:
        model: images to logits, in whatever mode; evaluated in evaluation mode.
        x: uint8 images, or floats in [0, 1].
        y: class indices (N,).
        seed: seed of the noise of a model that samples.
        batch_size: images in a pass.
    """
    right = []
    with attack_mode(model):
        for images, labels, ids in _batches(model, x, y, batch_size):
            right.append(_right(model, images, labels, ids, seed))
    return Rate(torch.cat(right).cpu())


def adversarial_images(
    model: nn.Module, x: Tensor, y: Tensor, attack: Any, threat: Threat, *, ids: Tensor | None = None, seed: int = 0
) -> Tensor:
    """x' in A(x) that makes ``model`` wrong: one batch, shape of ``x``.

    A model that samples is attacked through its average: each gradient is that of -log of the mean probability over
    the model's own number of samples, with fresh noise in every step.

    Args:
        model: images to logits; attacked in evaluation mode.
        x: images in [0, 1].
        y: class indices (N,).
        attack, threat: such as ``PGD(100)`` (which climbs the cross-entropy) and ``Linf(0.1)``.
        ids, seed: name the random streams.

    Raises:
        ValueError: ``attack`` is a suite of several.
    """
    several = as_suite(attack)
    if len(several) > 1:
        raise ValueError(f"attack is a suite of {len(several)} attacks, expected a single one (see evaluate)")
    (one,) = several
    ids = torch.arange(len(x), device=x.device) if ids is None else ids
    with attack_mode(model):
        return one.run(model, x, y, threat, ids=ids, seed=fold(seed, "attack"))


@dataclass(frozen=True)
class Stage:
    """What one attack of a suite did.

    Attributes:
        name: the attack's name.
        attack: the attack and its settings in words.
        attacked: number of images it was tried on.
        broken: how many of them it broke.
        robust: images that are right and that neither it nor an attack before it broke.
        seconds: wall time.
        refused: why it was left out; "" if it ran.
    """

    name: str
    attack: str
    attacked: int
    broken: int
    robust: Rate
    seconds: float
    refused: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Robust accuracy as the pointwise worst case over a suite of attacks.

    Attributes:
        clean: accuracy on the images as they are.
        robust: images that are right and that no attack broke, checked once more at the end.
        stages: what each attack did, in order.
        x_adv: floats (N, C, H, W) on the CPU: for a broken image what broke it, for another the last that was tried.
        split: of the data, in the caller's words.
        threat: the ball in words.
        mean_code: for a model that samples, the accuracy of its mean code on the same x'.
        unconfirmed: how many images an attack had broken that were right in the last check (they count as robust).
    """

    clean: Rate
    robust: Rate
    stages: tuple[Stage, ...]
    x_adv: Tensor = field(repr=False)
    split: str
    threat: str
    mean_code: Rate | None = None
    unconfirmed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Numbers and words for a record, without the images."""
        stages = [
            {
                "name": s.name,
                "attack": s.attack,
                "attacked": s.attacked,
                "broken": s.broken,
                "robust": s.robust.to_dict(),
                "seconds": s.seconds,
                "refused": s.refused,
            }
            for s in self.stages
        ]
        return {
            "clean": self.clean.to_dict(),
            "robust": self.robust.to_dict(),
            "stages": stages,
            "split": self.split,
            "threat": self.threat,
            "mean_code": self.mean_code and self.mean_code.to_dict(),
            "unconfirmed": self.unconfirmed,
        }

    def __str__(self) -> str:
        wide = max(len(stage.name) for stage in self.stages) + 2
        lines = [f"{self.clean.n} images of the {self.split} split, {self.threat}", f"{'clean':{wide}}{self.clean}"]
        for s in self.stages:
            did = f"left out: {s.refused}" if s.refused else f"broke {s.broken} of {s.attacked}"
            lines.append(f"{s.name:{wide}}{s.robust}  ({did})")
        lines.append(f"{'all':{wide}}{self.robust}")
        if self.mean_code is not None:
            lines.append(f"{'mean code':{wide}}{self.mean_code}")
        return "\n".join(lines)


def evaluate(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attacks: Any,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 500,
    individually: bool = False,
    after: Rate | None = None,
    precision: Precision = "32-true",
    split: str = "test",
    progress: str | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Attack a classifier with every attack of a suite, each on the images that are still right.

    The verdict on each x' is the model's prediction, in full precision, with noise that no attack has seen. A model
    that samples is attacked through the average of its samples. All attacks start from the clean image.

    Args:
        model: images to logits; evaluated in evaluation mode.
        x: uint8 images, or floats in [0, 1].
        y: class indices (N,).
        attacks: the name of a suite (:data:`robrep.suites.SUITES`), one attack, or several.
        threat: the ball, such as ``Linf(8 / 255)``; with a radius for each image, N of them.
        seed: seed of all random streams.
        batch_size: images in a pass; it does not change the result, up to rounding.
        individually: try every attack on all images that are right, so that each stage's numbers are those of its
            attack alone (``broken`` of ``attacked``); the worst case is the same, for more time.
        after: what an earlier evaluation of the same images left; others count as broken and are not attacked.
        precision: of the attacks' passes; with mixed precision gradients are rougher and faster.
        split: what the images are, for the table.
        progress: a name for the evaluation, shown with the number of images done; None for silence.
        cache: a folder where each attack's result on each batch is kept, so that an evaluation that was cut short goes
            on there. Results of other settings, weights, images or of another state of ``robrep`` are not taken. An
            attack that is a bare function is not kept: nothing tells it from another.

    Raises:
        TypeError, ValueError: images or labels that do not fit, an unknown suite, an ``after`` of other images, radii
            that are not one for each image, an attack that leaves the ball, no attack that can be used at all.
    """
    suite, n = as_suite(attacks), len(x)
    check_labels(y, n)
    if after is not None and after.n != n:
        raise ValueError(f"after is a rate of {after.n} images, expected {n}, one for each of x")
    if isinstance(threat.eps, Tensor):
        check_count("eps", threat.eps, y)
    refusals = [attack.refuses(model, threat) for attack in suite]
    if all(refusals):
        raise ValueError(f"attacks has none that can attack this model in the {threat}: {'; '.join(refusals)}")
    store = _Store(cache, model, x, y, suite, threat, (seed, batch_size, individually, precision), after)
    clean = accuracy(model, x, y, seed=seed, batch_size=batch_size)
    reachable = clean.correct if after is None else clean.correct & after.correct
    alive = reachable.clone()
    x_adv = torch.cat([_images(x, ids) for ids in torch.arange(n).split(batch_size)])
    stages = []
    device = device_of(model)
    with Progress(progress or "", n * len(suite), "image", show=progress is not None) as bar, attack_mode(model):
        for number, attack in enumerate(suite):
            began, tried = time.perf_counter(), (reachable if individually else alive).nonzero().squeeze(1)
            why = refusals[number]
            broken = torch.zeros(n, dtype=torch.bool)
            bar.update(n if why else n - len(tried))
            for part, ids in enumerate(() if why or not len(tried) else tried.split(batch_size)):
                found = store.load(number, part, ids)
                if found is None:
                    images, labels, on = _images(x, ids).to(device), y[ids].to(device), ids.to(device)
                    with _autocast(device, precision):
                        found = attack.run(model, images, labels, threat.take(ids), ids=on, seed=fold(seed, "attack"))
                    found = store.save(number, part, ids, found.to(x_adv))
                wrong = ~_right(model, found.to(device), y[ids].to(device), ids.to(device), seed).cpu()
                broken[ids] = wrong
                new = ids[alive[ids]]  # broken for the first time, or not at all
                x_adv[new] = found[alive[ids]]
                alive[ids[wrong]] = False
                bar.update(len(ids))
            stages.append(
                Stage(
                    attack.name,
                    str(attack),
                    0 if why else len(tried),
                    int(broken.sum()),
                    Rate(alive.clone(), _words(attack, threat, model)),
                    time.perf_counter() - began,
                    why,
                )
            )
    _check_ball(x, x_adv, threat, batch_size)
    still = accuracy(model, x_adv, y, seed=seed, batch_size=batch_size).correct & reachable
    mean_model = getattr(model, "mean_code", None) if draws_noise(model) else None
    mean_code = None if mean_model is None else accuracy(mean_model, x_adv, y, batch_size=batch_size)
    together = " | ".join(stage.robust.attack for stage in stages if not stage.refused)
    return Evaluation(
        clean=clean,
        robust=Rate(still, together),
        stages=tuple(stages),
        x_adv=x_adv,
        split=split,
        threat=str(threat),
        mean_code=mean_code,
        unconfirmed=int((still & ~alive).sum()),
    )


def _images(x: Examples, ids: Tensor) -> Tensor:
    return check_images(floats(x[ids]))


def _words(attack: SuiteAttack, threat: Threat, model: nn.Module) -> str:
    averaged = f", gradients averaged over {model.samples} samples" if getattr(model, "samples", 0) else ""
    return f"{attack} in {threat}{averaged}"


def _autocast(device: torch.device, precision: Precision) -> Any:
    kinds = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
    kind = kinds.get(best_precision(device) if precision == "auto" else precision, torch.float32)
    return torch.autocast(device.type, kind, enabled=kind is not torch.float32)


def _check_ball(x: Examples, x_adv: Tensor, threat: Threat, batch_size: int) -> None:
    """Refuse what an attack (perhaps the reader's own) found outside the ball or outside [0, 1]."""
    for ids in torch.arange(len(x)).split(batch_size):
        found = check_images(x_adv[ids], "x_adv")
        ball = threat.take(ids)
        far = (ball.distance(found, _images(x, ids)) - ball.eps).max().item()
        if far > 1e-5:
            raise ValueError(f"x_adv leaves the {threat} by {far:.2g}, expected an attack that stays inside")


def _bytes(t: Tensor) -> bytes:
    return t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def _shown(value: Any) -> Any:
    """All settings of an attack or a threat model, JSON-able; tensors in full."""
    if isinstance(value, Tensor):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {f.name: _shown(getattr(value, f.name)) for f in fields(value)}]
    return repr(value)


class _Store:
    """Each attack's x' on each batch, in one folder for one evaluation; nothing at all without a cache."""

    def __init__(
        self,
        cache: str | os.PathLike[str] | None,
        model: nn.Module,
        x: Examples,
        y: Tensor,
        suite: Sequence[SuiteAttack],
        threat: Threat,
        settings: tuple[Any, ...],
        after: Rate | None,
    ) -> None:
        self.folder: Path | None = None
        if cache is None:
            return
        content = hashlib.blake2b(digest_size=16)
        for value in (*model.parameters(), *model.buffers(), y, *([] if after is None else [after.correct])):
            content.update(_bytes(value))
        for ids in torch.arange(len(x)).split(1000):
            content.update(_bytes(x[ids]))
        # what a module does also hangs on its plain attributes (a Classifier's number of samples)
        plain = [
            [type(m).__qualname__, {k: repr(v) for k, v in vars(m).items() if k != "training" and _is_plain(v)}]
            for m in model.modules()
        ]
        shown = [_shown(attack) for attack in suite]
        # an attack that shows nothing but an address could not be told from another
        self.nameless = {number for number, attack in enumerate(shown) if " at 0x" in str(attack)}
        key = [str(model), plain, shown, _shown(threat), settings, code_hash()]
        self.folder = Path(cache) / "evaluations" / digest([key, content.hexdigest()])[:32]

    def _path(self, number: int, part: int) -> Path | None:
        if self.folder is None or number in self.nameless:
            return None
        return self.folder / f"{number}-{part}.safetensors"

    def load(self, number: int, part: int, ids: Tensor) -> Tensor | None:
        """The x' kept for these images, or None; a damaged file counts as none."""
        path = self._path(number, part)
        if path is None or not path.exists():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            kept = load_file(path)
        except (SafetensorError, OSError):
            return None
        return kept["x_adv"] if torch.equal(kept.get("ids", ids[:0]), ids) else None

    def save(self, number: int, part: int, ids: Tensor, x_adv: Tensor) -> Tensor:
        """Keep x' and give it back."""
        path = self._path(number, part)
        if path is not None:
            from safetensors.torch import save_file

            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                save_file({"x_adv": x_adv.contiguous(), "ids": ids}, temporary)
        return x_adv


def robust_accuracy(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attacks: Any,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 500,
    after: Rate | None = None,
    progress: str | None = None,
) -> Rate:
    """Share of images classified right both as they are and at every x' that the attacks find.

    Images that are wrong already are not attacked. The verdict draws noise that no attack has seen. This is
    ``evaluate(...).robust``, where the arguments are explained.

    Returns:
        The robust accuracy against these attacks, an upper bound of the true one.
    """
    return evaluate(
        model, x, y, attacks, threat, seed=seed, batch_size=batch_size, after=after, progress=progress
    ).robust


def against_radius(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attack: Any,
    threat: Callable[[float], Threat],
    radii: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int = 500,
) -> dict[str, list[float]]:
    """Robust accuracy against the attack's radius, as a curve that a record and a figure understand.

    An image that is broken at one radius is broken at every larger one, for the small ball lies in the large one: it
    is not attacked again, and the curve cannot rise.

    Args:
        model, x, y, attack, seed, batch_size: as for :func:`evaluate`.
        threat: the kind of ball, such as ``Linf``.
        radii: its radii; at 0 the images stay as they are.

    Returns:
        Lists ``x`` (the radii), ``y``, ``low`` and ``high`` (Wilson's interval) of one length, in the order given.
    """
    rates: dict[float, Rate] = {}
    left: Rate | None = None
    for eps in sorted(set(radii)):
        if eps:
            left = robust_accuracy(model, x, y, attack, threat(eps), seed=seed, batch_size=batch_size, after=left)
        else:
            left = accuracy(model, x, y, seed=seed, batch_size=batch_size)
        rates[eps] = left
    return {
        "x": list(radii),
        "y": [rates[eps].value for eps in radii],
        "low": [rates[eps].low for eps in radii],
        "high": [rates[eps].high for eps in radii],
    }
