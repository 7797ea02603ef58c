"""The judge: which submission's codes stay useful under attack, and which robustness is not to be believed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robrep.attacks import Linf, Threat
from robrep.audit import Audit, audit
from robrep.book.grade.remote import unpack
from robrep.book.project import Game
from robrep.book.project.cell import ATTACK, replies, sent, tell_attacks, tell_network, weights_of
from robrep.book.project.network import BATCH, CONSTANTS, Network, Refused, checked
from robrep.data import Dataset, as_float, load
from robrep.evaluation import evaluate
from robrep.heads import Classifier, encode
from robrep.random import generator
from robrep.rates import Rate, paired_bootstrap
from robrep.suites import SuiteAttack, suite

SECONDS = 60.0  # to build and trace an encoder, and for an attack on one encoder
MEMORY = 8.0  # GiB
WIDTH = 512  # largest dimension of a code
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError)  # of a network that the judge runs


@dataclass(eq=False)
class Entry:
    """A team's line of the leaderboard.

    Attributes:
        team: the folder's name.
        refused: why the encoder cannot be judged; "" if it can.
        clean, robust: accuracies of the judge's head on the hidden images; None of a refused encoder.
        audit: what the audit found.
        place: 1 for the best; teams that the images cannot tell from the best of their place share it. None if the
            encoder is refused or its robustness is not believed.
        numbers: how many its weights hold.
        attack: the share of the other teams' right images that its attack breaks; None without an attack.
        attack_refused: what went wrong with the attack, on some of them at least.
        seconds: what judging the encoder took.
    """

    team: str
    refused: str = ""
    clean: Rate | None = None
    robust: Rate | None = None
    audit: Audit | None = None
    place: int | None = None
    numbers: int = 0
    attack: Rate | None = None
    attack_refused: str = ""
    seconds: float = 0.0
    model: Classifier | None = field(default=None, repr=False)

    @property
    def doubt(self) -> str:
        """Why its robustness is not believed: the first finding of the audit that is not fine; else ""."""
        found = [f for f in self.audit.findings if f.verdict == "broken"] if self.audit else []
        return f"{found[0].question} {found[0].text}" if found else ""


@dataclass(frozen=True)
class Board:
    """A judged class.

    Attributes:
        entries: ranked teams first, the best at the top; then those not believed, then those refused.
        threat: the ball in words.
        seed: what drew the hidden images.
        images: how many they are.
    """

    entries: list[Entry]
    threat: str
    seed: int
    images: int


@dataclass(frozen=True)
class Rounded:
    """An attack of a suite whose images are rounded to 8 bits, as a file would hold them."""

    attack: SuiteAttack

    @property
    def name(self) -> str:
        return self.attack.name

    def refuses(self, model: nn.Module, threat: Threat) -> str:
        return self.attack.refuses(model, threat)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, ids: Tensor, seed: int) -> Tensor:
        return self.attack.run(model, x, y, threat, ids=ids, seed=seed).mul(255).round().div(255)

    def __str__(self) -> str:
        return f"{self.attack}, rounded to 8 bits"


@dataclass(frozen=True)
class Known:
    """Adversarial images that are there already: another encoder's, or those of a participant's attack."""

    name: str
    x_adv: Tensor = field(repr=False)

    def refuses(self, model: nn.Module, threat: Threat) -> str:
        return ""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, ids: Tensor, seed: int) -> Tensor:
        return threat.projection(x)(self.x_adv[ids.cpu()].to(x))

    def __str__(self) -> str:
        return self.name


def hidden(images: Dataset, game: Game, seed: int) -> tuple[Tensor, Tensor]:
    """The hidden test images: drawn from the test split, each turned, shifted and zoomed a little; and their labels."""
    ids = torch.randperm(len(images.y_test), generator=generator("hidden", seed))[: game.images]
    changed = game.change(images.images("test", ids), ids, seed)
    return changed.mul(255).round().div(255), images.labels("test", ids)


def head_on(encoder: Network, images: Dataset) -> nn.Linear:
    """Logistic regression on standardised codes of the training images: the same for any scale of the codes.

    Raises:
        Refused: a code is not finite, or all codes are equal.
    """
    from sklearn.linear_model import LogisticRegression

    codes = encode(encoder, images.x_train, BATCH)
    assert isinstance(codes, Tensor)
    if bad := int((~codes.isfinite()).any(1).sum()):
        raise Refused(f"encoder gives codes that are not finite for {bad} of {len(codes)} training images")
    z = codes.double().cpu()
    mean, spread = z.mean(0), z.std(0)
    if not spread.any():
        raise Refused("encoder gives every image the same code")
    scale = torch.where(spread > 0, spread, 1.0)
    fitted = LogisticRegression(max_iter=2000).fit(((z - mean) / scale).numpy(), images.y_train.numpy())
    weight = torch.from_numpy(np.asarray(fitted.coef_)) / scale
    linear = nn.Linear(*weight.T.shape).to(codes)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(torch.from_numpy(np.asarray(fitted.intercept_)) - weight @ mean)
    return linear.requires_grad_(False)


def network_of(folder: Path, game: Game, shape: tuple[int, int, int], seconds: float, memory: float) -> Network:
    """A submission's encoder, as data, within the game's limits.

    Raises:
        Refused: it cannot be judged.
    """
    weights = weights_of(folder, game.numbers)
    nothing: dict[str, Any] = {"refused": "its process ended without a reply"}
    *_, reply = nothing, *replies(tell_network, folder, shape, seconds=seconds, memory=memory)
    if "graph" not in reply:
        raise Refused(str(reply.get("refused", "its process has written into the judge's reply")))
    try:
        constants = unpack(reply["constants"])
        assert all(isinstance(t, Tensor) for t in constants.values())
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError):
        raise Refused("its process has written into the judge's reply") from None
    if (count := sum(t.numel() for t in constants.values())) > CONSTANTS:
        raise Refused(
            f"encoder holds {count:,} numbers in plain tensors, expected at most {CONSTANTS:,}: register them as "
            "buffers, so that they are part of the weights"
        )
    graph = reply["graph"]
    if not isinstance(graph, dict):
        raise Refused("its process has written into the judge's reply")
    network = Network(graph, constants | weights)
    return checked(network, shape, flops=game.flops, entries=game.entries, width=WIDTH)


def judge(
    folders: Sequence[Path],
    game: Game,
    *,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    seconds: float = SECONDS,
    memory: float = MEMORY,
) -> Board:
    """Judge a class's submissions.

    Args:
        folders: one for each team, of different names.
        game: one of :data:`robrep.book.project.GAMES`.
        seed: draws the hidden images; None for a seed drawn after all submitted encoders have been read.
        device: of the judge's own computations; participants' attacks run on the CPU.
        seconds: to build and trace an encoder, and for an attack on each encoder.
        memory: what a participant's process may use, GiB.
    """
    images = load(game.data)
    threat: Any = Linf(game.eps)
    entries = [Entry(folder.name) for folder in folders]
    for entry, folder in zip(entries, folders, strict=True):
        began = time.perf_counter()
        try:
            network = network_of(folder, game, images.shape, seconds, memory).to(device)
            entry.model = Classifier(network, head_on(network, images), samples=0).eval()
            entry.numbers = sum(t.numel() for t in network.weights.values())
        except FAILURES as error:
            entry.refused = _why(error)
        entry.seconds = time.perf_counter() - began
    seed = secrets.randbits(31) if seed is None else seed
    x, y = hidden(images, game, seed)
    judged = {entry.team: entry for entry in entries if entry.model is not None}
    limits = {"max_steps": game.steps, "max_queries": game.queries}
    attacks = [Rounded(a) for a in suite("autoattack", **limits) if a.name != "FAB-T"]  # slow
    found: dict[str, Tensor] = {}
    for team, entry in judged.items():
        began = time.perf_counter()
        try:
            found[team] = _attacked(entry, x, y, attacks, threat, game, seed)
        except FAILURES as error:
            entry.refused, entry.clean, entry.robust = _why(error), None, None
        entry.seconds += time.perf_counter() - began
    judged = {team: entry for team, entry in judged.items() if not entry.refused}
    _exchanged(judged, found, x, y, threat, seed)
    _attacks_of(entries, folders, judged, x, y, threat, seed, seconds, memory)
    return Board(_ranked(entries, seed), str(threat), seed, len(x))


def _why(error: Exception) -> str:
    """Why an encoder is not judged, in one sentence."""
    return (
        str(error) if isinstance(error, Refused) else f"encoder cannot be judged ({' '.join(str(error).split())[:300]})"
    )


def _attacked(entry: Entry, x: Tensor, y: Tensor, attacks: list[Rounded], threat: Any, game: Game, seed: int) -> Tensor:
    """Measure and audit an encoder; what the judge's attacks found."""
    assert entry.model is not None
    result = evaluate(entry.model, x, y, attacks, threat, seed=seed, batch_size=BATCH)
    assert result.x_adv is not None
    entry.clean, entry.robust = result.clean, result.robust
    if result.clean.correct[: game.audited].any():
        entry.audit = audit(entry.model, x[: game.audited], y[: game.audited], threat, seed=seed)
    return result.x_adv


def _exchanged(
    judged: dict[str, Entry], found: dict[str, Tensor], x: Tensor, y: Tensor, threat: Threat, seed: int
) -> None:
    """Try on each encoder what was found on the others: an attack that its own gradients mislead needs none of them."""
    for team, entry in judged.items():
        others = [Known(f"found on {other}", x_adv) for other, x_adv in found.items() if other != team]
        if others:
            assert entry.model is not None
            entry.robust = evaluate(
                entry.model, x, y, others, threat, seed=seed, batch_size=BATCH, after=entry.robust, keep=False
            ).robust


def _attacks_of(
    entries: list[Entry],
    folders: Sequence[Path],
    judged: dict[str, Entry],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int,
    seconds: float,
    memory: float,
) -> None:
    """Run each team's attack on the other teams' encoders; what it breaks counts for it and against them."""
    for entry, folder in zip(entries, folders, strict=True):
        others = {team: other for team, other in judged.items() if team != entry.team}
        if not others or not (folder / ATTACK).exists():
            continue
        broken: list[Tensor] = []
        answered: dict[str, Tensor] = {}
        given = folder, {team: sent(other.model) for team, other in others.items()}, x, y, threat.eps, seed
        for reply in replies(tell_attacks, *given, seconds=seconds * len(others), memory=memory):
            x_adv = _images(reply, x)
            if x_adv is None:
                entry.attack_refused = str(reply.get("refused", "attack.py has written into the judge's reply"))
            else:
                answered[str(reply.get("model"))] = x_adv
        for team, other in others.items():
            assert other.model is not None and other.clean is not None and other.robust is not None
            left = other.clean
            if team in answered:
                known = Known(f"the attack of {entry.team}", answered[team])
                left = evaluate(other.model, x, y, [known], threat, seed=seed, batch_size=BATCH, keep=False).robust
                other.robust = Rate(other.robust.correct & left.correct, f"{other.robust.attack} | {known}")
            broken.append(~left.correct[other.clean.correct])
        if len(every := torch.cat(broken)):
            entry.attack = Rate(every)


def _images(reply: dict[str, object], x: Tensor) -> Tensor | None:
    """The images of a reply, (N, C, H, W) in [0, 1]; None if it holds something else."""
    try:
        images = unpack(reply["x_adv"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    fits = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape == x.shape
    return as_float(images) if fits else None


def _ranked(entries: list[Entry], seed: int) -> list[Entry]:
    """The entries as the leaderboard lists them, with their places."""
    believed = [e for e in entries if e.robust is not None and not e.doubt]
    believed.sort(key=lambda e: -e.robust.value)  # type: ignore[union-attr]
    best: Entry | None = None
    for place, entry in enumerate(believed, 1):
        assert entry.robust is not None
        if best is None or _better(best, entry, seed):
            best, entry.place = entry, place
        else:
            entry.place = best.place
    rest = [e for e in entries if e not in believed]
    return believed + sorted(rest, key=lambda e: bool(e.refused))


def _better(a: Entry, b: Entry, seed: int) -> bool:
    """Whether the same images show that one encoder is more robust than the other."""
    assert a.robust is not None and b.robust is not None
    return paired_bootstrap(a.robust.correct, b.robust.correct, seed=seed)[1] > 0
