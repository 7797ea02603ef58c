"""Clean and robust accuracy with intervals, judged by noise that the attack has not seen."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from robrep.attacks import L2, Linf, Threat, attack_mode
from robrep.attacks.threats import check_count
from robrep.checks import check_images, check_labels, looking, one_of
from robrep.files import atomic_write, code_hash, digest, set_aside
from robrep.gaussians import upcast
from robrep.heads import device_of
from robrep.identity import identity
from robrep.objectives import check_model, draws_noise, predict, samplers, samples_of
from robrep.passes import Batches, Processes, autocast, images_of, normal, random_state, true_float32
from robrep.progress import Progress, printable
from robrep.random import as_seed, fold
from robrep.rates import Z95, Rate, curve, paired_bootstrap, wilson
from robrep.suites import SuiteAttack, as_suite
from robrep.training import Examples, Precision

__all__ = [
    "Evaluation", "Rate", "Stage", "Z95", "accuracy", "adversarial_images", "against_radius", "draws_noise",
    "evaluate", "paired_bootstrap", "predict", "robust_accuracy", "wilson",
]  # fmt: skip


class _Judge:
    """A model, its images and their labels: which images it gets right, batch by batch."""

    def __init__(self, model: nn.Module, x: Examples, y: Tensor, seed: int, batch_size: int | None) -> None:
        check_model(model)
        check_labels(y, len(x))
        self.model, self.x, self.y, self.seed, self.device = model, x, y, seed, device_of(model)
        self.batches = Batches(self.device, batch_size)

    def images(self, ids: Tensor) -> Tensor:
        return images_of(self.x, ids).to(self.device)

    def labels(self, ids: Tensor) -> Tensor:
        return self.y[ids].to(self.device)

    @torch.no_grad()
    def logits(self, images: Tensor, ids: Tensor) -> Tensor:
        """In true float32, with noise that no attack has seen."""
        with true_float32(self.device):
            logits = predict(self.model, images, ids=ids.to(self.device), seed=fold(self.seed, "verdict"))
        check_labels(self.y[ids], len(images), logits.shape[1])
        if logits.isnan().any():
            bad = int(logits.isnan().any(1).sum())
            raise FloatingPointError(f"model gives logits that are not a number for {bad} of {len(images)} images")
        return logits

    def right(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Which of these images, by default the clean ones, are classified right; bool, on the CPU."""

        def work(rows: Tensor) -> Tensor:
            some = ids[rows]
            logits = self.logits(self.images(some) if images is None else images[rows].to(self.device), some)
            return (logits.argmax(1) == self.labels(some)).cpu()

        parts = [right for _, right in self.batches.run(torch.arange(len(ids)), work)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def check_noise(self, state: list[Any] | None) -> None:
        """Refuse noise that does not come from an image's id.

        Args:
            state: the global random states before the model was called.

        Raises:
            ValueError: the model draws from the global random state; or a module in it that samples meets other noise
                when the image is alone.
        """
        few, drew = torch.arange(min(len(self.x), 4)), state != random_state(self.device)
        if not drew and not draws_noise(self.model):
            return
        images = self.images(few)
        together, again = self.logits(images, few), self.logits(images, few)
        if drew and not torch.equal(together, again):
            raise ValueError(
                "model draws noise from the global random state, so its number would change with the batches, expected "
                "noise from ids and seed, as Classifier draws it, or a deterministic model"
            )
        if not draws_noise(self.model):
            return
        alone, spread = self.logits(images[:1], few[:1])[0], together[0].max() - together[0].min()
        if not bool((alone - together[0]).abs().max() <= 1e-3 * spread):
            name = ", ".join(name or "itself" for name in samplers(self.model))
            raise ValueError(
                f"model draws noise ({name}) that does not follow the image: alone in a batch the image gets other "
                "logits, expected a model that keeps the images in order and takes the noise from ids and seed"
            )


def accuracy(model: nn.Module, x: Examples, y: Tensor, *, seed: int = 0, batch_size: int | None = None) -> Rate:
    """Share of images classified right, in true float32 (no autocast, TF32 off).

    Args:
        model: images to logits, in whatever mode; evaluated in evaluation mode.
        x: uint8 images, or floats in [0, 1].
        y: class indices (N,).
        seed: seed of the noise of a model that samples.
        batch_size: images in a pass; None for 500 on a CPU and 2,048 on a GPU.

    Raises:
        TypeError, ValueError: images or labels that do not fit, a model that gives no logits, or is on several devices.
    """
    with torch.inference_mode(False), attack_mode(model):
        return Rate(_Judge(model, x, y, int(as_seed(seed)), batch_size).right(torch.arange(len(x))))


def adversarial_images(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Any,
    threat: Threat,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    precision: Precision = "32-true",
) -> Tensor:
    """x' in A(x) that makes ``model`` wrong: one batch, shape of ``x``, on the model's device, at least in float32.

    A model that samples is attacked through its average: each gradient is that of -log of the mean probability over
    the model's own number of samples, with fresh noise in every step.

    Args:
        model: images to logits; attacked in evaluation mode.
        x: images in [0, 1].
        y: class indices (N,).
        attack, threat: such as ``PGD(100)`` (which climbs the cross-entropy) and ``Linf(0.1)``.
        ids, seed: name the random streams.
        precision: of the attack's passes.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: ``attack`` is a suite of several.
    """
    several = as_suite(attack)
    if len(several) > 1:
        raise ValueError(f"attack is a suite of {len(several)} attacks, expected a single one (see evaluate)")
    check_model(model)
    (one,) = several
    device = device_of(model)
    x, y, ids = (t.to(device) for t in (x, y, torch.arange(len(x)) if ids is None else ids))
    with torch.inference_mode(False), attack_mode(model), autocast(device, precision):
        images = upcast(normal(x)).contiguous()
        return one.run(model, images, normal(y), threat, ids=normal(ids), seed=fold(int(as_seed(seed)), "attack"))


@dataclass(frozen=True)
class Stage:
    """What one attack of a suite did.

    Attributes:
        name: the attack's name.
        attacked: number of images it was tried on.
        broken: how many of them it broke.
        robust: images that are right and that neither it nor an attack before it broke.
        seconds: wall time.
        refused: why it was left out; "" if it ran.
    """

    name: str
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
        robust: images that are right and that no attack broke.
        stages: what each attack did, in order.
        x_adv: floats (N, C, H, W) on the CPU: for a broken image what broke it, for another the last that was tried;
            None where they were not kept.
        threat: the ball in words.
        unconfirmed: how many images an attack seemed to break that were right at a second look (they count as robust).
    """

    clean: Rate
    robust: Rate
    stages: tuple[Stage, ...]
    x_adv: Tensor | None = field(repr=False)
    threat: str
    unconfirmed: int = 0

    def __str__(self) -> str:
        wide = max(len(stage.name) for stage in self.stages) + 2
        lines = [f"{self.clean.n} images, {self.threat}", f"{'clean':{wide}}{self.clean}"]
        for s in self.stages:
            did = f"left out: {s.refused}" if s.refused else f"broke {s.broken} of {s.attacked}"
            lines.append(f"{s.name:{wide}}{s.robust}  ({did})")
        lines.append(f"{'all':{wide}}{self.robust}")
        if self.unconfirmed:
            lines.append(
                f"unconfirmed: {self.unconfirmed} of {self.clean.n} images were broken at a first look and right at a "
                "second; the model does not repeat itself, so the number is not reliable (see robrep.audit)"
            )
        return printable("\n".join(lines))


@torch.inference_mode(False)
def evaluate(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attacks: Any,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    individually: bool = False,
    after: Rate | None = None,
    precision: Precision = "32-true",
    progress: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep: bool = True,
    spread: bool = True,
) -> Evaluation:
    """Attack a classifier with every attack of a suite, each on the images that are still right.

    The verdict on each x' is the model's prediction in true float32 (no autocast, TF32 off; a model in half precision
    computes in its own), with noise that no attack has seen. What is wrong is looked at a second time, in another
    batch. A model that samples, wherever in ``model`` it sits, is attacked through the average of its samples. No
    attack starts from another attack's result. Neither batches, nor precision, nor processes change a verdict on x'.

    Args:
        model: images to logits (N, C), or to an output that has them as ``logits``; evaluated in evaluation mode.
        x: uint8 images, or floats in [0, 1]; half precision is attacked in float32.
        y: class indices (N,).
        attacks: the name of a suite (:data:`robrep.suites.SUITES`), one attack, or several.
        threat: the ball, such as ``Linf(8 / 255)``; with a radius for each image, N of them.
        seed: seed of all random streams.
        batch_size: images in a pass; None for 500 on a CPU and 2,048 on a GPU. Where memory runs out, a batch is
            halved and tried again. It does not change the result, up to rounding.
        individually: try every attack on all images that are right, so that each stage's numbers are those of its
            attack alone (``broken`` of ``attacked``); the worst case is the same, for more time.
        after: what an earlier evaluation of the same images left; others count as broken and are not attacked.
        precision: of the attacks' passes; with mixed precision gradients are rougher and faster.
        progress: a name for the evaluation, shown with the number of images done; None for silence.
        cache: a folder where each attack's result on each batch is kept, so that an evaluation that was cut short goes
            on there. Results of another model, attack or threat (code, attributes and weights; see
            :func:`robrep.identity.identity`), of other images or another state of ``robrep`` are not taken. Where one
            of them cannot be identified nothing is kept, with a warning.
        keep: whether the result has x'; False where the rates are all that is wanted.
        spread: under ``torchrun`` each process attacks its share of the images, and all get the whole result; all of
            them must make the same call. False for processes that do work of their own.

    Raises:
        TypeError, ValueError: images or labels that do not fit; a model that gives no logits, is on several devices or
            draws noise that does not come from ids and seed; an unknown suite; an ``after`` of other images; radii that
            are not one for each image; an attack that leaves the ball; no attack that can be used at all.
        FloatingPointError: the model gives logits that are not a number, or an attack meets such a gradient.
        torch.OutOfMemoryError: memory runs out with a single image.
    """
    suite, seed, processes = as_suite(attacks), int(as_seed(seed)), Processes(spread)
    one_of("precision", precision, get_args(Precision))
    n, join = len(x), processes.join
    judge, everyone = _Judge(model, x, y, seed, batch_size), torch.arange(n)
    check_count("after", after and after.correct, n)
    check_count("eps", threat.eps, n)
    mine, device = processes.share(everyone), judge.device
    if processes.world > 1:
        words = re.sub(" at 0x[0-9a-f]+", "", f"{[str(a) for a in suite]} {threat}")
        processes.agree(f"{words} {seed} {identity([*model.state_dict().values(), y])}")
    state, clean = random_state(device), torch.zeros(n, dtype=torch.bool)
    with attack_mode(model):
        clean[mine] = judge.right(mine)
        judge.check_noise(state)
    refusals = [attack.refuses(model, threat) for attack in suite]
    if all(refusals):
        raise ValueError(f"attacks has none that can attack this model in the {threat}: {'; '.join(refusals)}")
    store = _Store(cache, suite, seed, precision, model=model, threat=threat, x=x, y=y)
    averaged = f", gradients averaged over {samples} samples" if (samples := samples_of(model)) else ""
    reachable = clean if after is None else clean & after.correct.cpu()
    alive, doubtful = reachable.clone(), torch.zeros(n, dtype=torch.bool)
    x_adv = torch.cat([images_of(x, ids).cpu() for ids in everyone.split(500)]) if keep else None
    if x_adv is not None:
        x_adv[~torch.isin(everyone, mine)] = 0  # another process has these
    stages = []

    def results(number: int, tried: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """ids and x', from the cache or by attacking."""

        def work(ids: Tensor) -> Tensor:
            images, ball = judge.images(ids), threat.take(ids)
            with autocast(device, precision):
                found = suite[number].run(
                    model, images, judge.labels(ids), ball, ids=ids.to(device), seed=fold(seed, "attack")
                )
            return _inside(suite[number].name, found, images, ball)

        for ids, found in store.load(number, tried):
            yield ids, found
            tried = tried[~torch.isin(tried, ids)]
        for ids, found in judge.batches.run(tried, work):
            store.save(number, ids, found)
            yield ids, found

    show = progress is not None and processes.rank == 0
    with Progress(progress or "", len(mine) * len(suite), "image", show=show) as bar, attack_mode(model):
        for number, attack in enumerate(suite):
            began, why = time.perf_counter(), refusals[number]
            tried = mine[:0] if why else mine[(reachable if individually else alive)[mine]]
            broken = torch.zeros(n, dtype=torch.bool)
            bar.update(len(mine) - len(tried))
            for ids, found in results(number, tried):
                wrong, left = ~judge.right(ids, found), alive[ids]
                look = (wrong & left).nonzero().squeeze(1).flip(0)  # broken for the first time: in another batch, too?
                again = look[judge.right(ids[look], found[look.to(found.device)])]
                doubtful[ids[again]], wrong[again] = True, False
                broken[ids] = wrong
                if x_adv is not None:
                    x_adv[ids[left]] = found.to(x_adv)[left]
                alive[ids[wrong]] = False
                bar.update(len(ids))
            attacked, broke = (int(join(count)) for count in (torch.tensor(len(tried)), broken.sum()))
            robust, seconds = Rate(join(alive.clone()), f"{attack} in {threat}{averaged}"), time.perf_counter() - began
            stages.append(Stage(attack.name, attacked, broke, robust, seconds, why))
    together = " | ".join(stage.robust.attack for stage in stages if not stage.refused)
    return Evaluation(
        clean=Rate(join(clean)),
        robust=Rate(join(alive), together),
        stages=tuple(stages),
        x_adv=x_adv if x_adv is None else join(x_adv),
        threat=str(threat),
        unconfirmed=int(join((doubtful & alive).sum())),
    )


def _inside(name: str, found: Any, images: Tensor, ball: Threat) -> Tensor:
    """x' in the dtype of the images; refused if an attack (perhaps the reader's own) left the ball or [0, 1].

    It may leave the ball by what its dtype rounds.
    """
    if not isinstance(found, Tensor) or found.shape != images.shape:
        came = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(f"attack {name} gives {came}, expected x' of the images' shape {tuple(images.shape)}")
    with looking(True):  # on a GPU too: an attack there gives NaN where a gradient was not finite
        x_adv = check_images(found.detach(), "x_adv").to(images)
    slack: float | Tensor = 1e-5
    if getattr(type(ball), "distance", None) in (Linf.distance, L2.distance):  # what one rounding of each pixel moves
        slack = ball.distance(images + torch.finfo(found.dtype).eps, images).clamp(min=slack)
    far = ball.distance(x_adv, images) - torch.as_tensor(ball.eps).to(images)
    if bool((far > slack).any()):
        by = far.max().item()
        raise ValueError(f"x_adv leaves the {ball} by {by:.2g}, expected an attack ({name}) that stays inside")
    return x_adv


class _Store:
    """Each attack's x' on each batch, in one folder for each attack; nothing at all without a cache.

    Args:
        cache: where the folders are made.
        suite: the attacks.
        settings: numbers and words that the results depend on.
        objects: what else they depend on, by the names that messages give it.
    """

    def __init__(
        self, cache: str | os.PathLike[str] | None, suite: Sequence[SuiteAttack], *settings: Any, **objects: Any
    ) -> None:
        self.folders: list[Path] = []
        if cache is None:
            return
        try:
            task = [code_hash(), *settings, *(identity(value, name) for name, value in objects.items())]
            keys = [digest([*task, attack.name, identity(attack, f"attack {attack.name!r}")]) for attack in suite]
        except TypeError as error:  # one evaluation could be taken for another
            warnings.warn(f"evaluate keeps nothing in the cache: {error}", stacklevel=4)
            return
        self.folders = [Path(cache) / "evaluations" / key[:32] for key in keys]

    def load(self, number: int, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What was kept of these images: some ids and their x'. A damaged file is set aside, with a warning.

        Another process may be writing here: its unfinished files, whose names begin with a dot, are left alone.
        """
        for path in sorted(self.folders[number].glob("[!.]*.npz")) if self.folders else ():
            try:
                with path.open("rb") as file, np.load(file) as kept:
                    known, x_adv = torch.from_numpy(kept["ids"]), torch.from_numpy(kept["x_adv"])
            except (ValueError, EOFError, OSError, KeyError, BadZipFile) as error:
                set_aside(path, error)
                continue
            wanted = torch.isin(known, ids)
            if wanted.any():
                yield known[wanted], x_adv[wanted]
                ids = ids[~torch.isin(ids, known)]

    def save(self, number: int, ids: Tensor, x_adv: Tensor) -> None:
        """Keep x'."""
        if self.folders:
            name = f"{int(ids[0]):08}-{int(ids[-1]):08}-{len(ids)}.npz"
            with atomic_write(self.folders[number] / name) as temporary:
                np.savez(temporary, x_adv=x_adv.cpu().numpy(), ids=ids.numpy())


def robust_accuracy(model: nn.Module, x: Examples, y: Tensor, attacks: Any, threat: Threat, **settings: Any) -> Rate:
    """Share of images classified right both as they are and at every x' that the attacks find.

    Images that are wrong already are not attacked. The verdict draws noise that no attack has seen. This is
    ``evaluate(..., keep=False).robust``; :func:`evaluate` explains the arguments and ``settings``.

    Returns:
        The robust accuracy against these attacks, an upper bound of the true one.
    """
    return evaluate(model, x, y, attacks, threat, keep=False, **settings).robust


def against_radius(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    attack: Any,
    threat: Callable[[float], Threat],
    radii: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int | None = None,
    **settings: Any,
) -> dict[str, list[float]]:
    """Robust accuracy against the attack's radius, as a curve that a record and a figure understand.

    An image that is broken at one radius is broken at every larger one, for the small ball lies in the large one: it
    is not attacked again, and the curve cannot rise.

    Args:
        model, x, y, attack, seed, batch_size, settings: as for :func:`evaluate`.
        threat: the kind of ball, such as ``Linf``.
        radii: its radii; at 0 the images stay as they are.

    Returns:
        Lists ``x`` (the radii), ``y``, ``low`` and ``high`` (Wilson's interval) of one length, in the order given.
    """
    rates: dict[float, Rate] = {}
    left: Rate | None = None
    settings |= {"seed": seed, "batch_size": batch_size}
    for eps in sorted(set(radii)):
        if eps:
            left = robust_accuracy(model, x, y, attack, threat(eps), after=left, **settings)
        else:
            left = accuracy(model, x, y, seed=seed, batch_size=batch_size)
        rates[eps] = left
    return curve(radii, [rates[eps] for eps in radii])
