"""Checks that attack: stronger attacks hardly find more, and the whole of [0, 1] leaves no image robust."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robrep.attacks import APGD, L2, PGD, Attack, Linf, Square, random_objective
from robrep.audit.report import Finding, Limits, worst
from robrep.audit.subject import CALLS, Subject, of
from robrep.gaussians import upcast
from robrep.objectives import LOSSES, classifier_objective, predict
from robrep.random import fold
from robrep.rates import Rate, curve

STEPS = 3  # how many times the attack's own steps the longer one takes
FEWEST = 20  # steps of the longer one
RESTARTS = 3
ADAPTIVE = 50  # steps of AutoPGD
QUERIES = 500  # of the black-box attack
SAMPLES = 4  # how many times a random model's own samples the averaged attack takes
RADII = (0.5, 1.0, 2.0, 4.0)  # times the audited radius; the whole of [0, 1] comes on top

# shares of images, each the lower end of a 95 % interval
STRONGER = Limits(0.05, 0.1)  # a stronger attack by gradients breaks them on top
BLACK_BOX = Limits(0.02, 0.05)  # a black box breaks them on top of all of these
LEFT = Limits(0.02, 0.1)  # they survive when any image is allowed
RISES = Limits(0.02, 0.05)  # a larger radius gains them back


class Attacks:
    """Attacks one after the other, each on the images that the ones before have left.

    Attributes:
        alive: bool (N,), right as they are and after every attack so far.
        total: number of images that are right as they are.
        stages: what was left after each attack, by name.
    """

    def __init__(self, s: Subject, right: Tensor) -> None:
        self.s, self.alive, self.total = s, right.clone(), int(right.sum())
        self.stages: dict[str, Rate] = {}

    def run(self, name: str, attack: Attack, objective: Callable[..., Any] | None = None, repeats: int = 1) -> int:
        """How many images this attack breaks on top; it climbs the cross-entropy by default."""
        objective, before = objective or classifier_objective(self.s.model), int(self.alive.sum())
        for i in range(repeats):
            rows = self.alive.nonzero().squeeze(1)
            broken = self.s.broken(rows, attack, objective, f"{name} {i}", self.s.threat)
            self.alive[rows[broken]] = False
        self.stages[name] = Rate(self.alive.cpu().clone(), name)
        return before - int(self.alive.sum())

    def told(self, count: int) -> str:
        """A count of the attacked images in words."""
        return f"{of(count, self.total)} more"

    def shares(self, counts: dict[str, int]) -> dict[str, float]:
        return {name: count / self.total for name, count in counts.items()}

    def gained(self, check: str, gains: dict[str, int], text: str, advice: str) -> Finding:
        """The finding of stronger attacks by gradients that broke so many on top."""
        return Finding(check, STRONGER.share(sum(gains.values()), self.total), text, self.shares(gains), advice)


def averaged(model: nn.Module, calls: int) -> Callable[..., Tensor]:
    """Cross-entropy of a random model's probabilities, averaged over several calls."""

    @random_objective
    def objective(x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        draws = [upcast(predict(model, x, ids=ids, seed=fold(seed, i))).log_softmax(1) for i in range(calls)]
        return LOSSES["cross_entropy"](torch.stack(draws).logsumexp(0) - math.log(calls), y)

    return objective


def _longer(attack: Any) -> Any:
    """The attack with more steps, of the usual length: a step chosen too short would stay so."""
    steps = max(STEPS * getattr(attack, "steps", 1), FEWEST)
    if not hasattr(attack, "steps"):
        return PGD(steps)
    return replace(attack, steps=steps, **({"step_size": None} if hasattr(attack, "step_size") else {}))


def stronger(attacks: Attacks, attack: Attack) -> Finding:
    """More steps, and more random starts."""
    longer = _longer(attack)
    gains = {
        "steps": attacks.run(f"{longer.steps} steps", longer),
        "restarts": attacks.run(f"{RESTARTS} restarts", attack, repeats=RESTARTS),
    }
    text = (
        f"{longer.steps} steps break {attacks.told(gains['steps'])}; "
        f"{RESTARTS} more random starts break {attacks.told(gains['restarts'])}."
    )
    advice = "raise the attack's steps and restarts until the number no longer falls, and report that one."
    return attacks.gained("steps", gains, text, advice)


def other_loss(attacks: Attacks, attack: Attack) -> Finding:
    """The margin in place of the cross-entropy, and AutoPGD on the DLR."""
    model, apgd = attacks.s.model, APGD(ADAPTIVE)
    gains = {
        "margin": attacks.run("the margin as loss", attack, classifier_objective(model, "margin")),
        "dlr": attacks.run(f"{apgd} on the DLR", apgd, classifier_objective(model, "dlr")),
    }
    text = (
        f"The same attack on the margin in place of the cross-entropy breaks {attacks.told(gains['margin'])}; AutoPGD "
        f"with {ADAPTIVE} steps on the DLR breaks {attacks.told(gains['dlr'])}."
    )
    advice = "attack with several losses, and count an image as robust only if it survives all of them."
    return attacks.gained("loss", gains, text, advice)


def average(attacks: Attacks, attack: Attack) -> Finding:
    """A random model attacked through a better average than its own."""
    s, gains, told = attacks.s, {}, ""
    if (mean_code := getattr(s.model, "mean_code", None)) is not None:
        gains["mean_code"] = attacks.run("the mean code", attack, classifier_objective(mean_code))
        told = f"An attack on the mean code breaks {attacks.told(gains['mean_code'])}. "
    calls = SAMPLES if s.sampled else CALLS
    stage = f"{calls} times the samples" if s.sampled else f"{calls} calls averaged"
    gains["average"] = attacks.run(stage, attack, averaged(s.model, calls))
    how = f"over {stage}" if s.sampled else f"averaged over {calls} calls"
    text = f"{told}Gradients {how} break {attacks.told(gains['average'])}."
    advice = "average each gradient over more draws until the number no longer falls (expectation over transformation)."
    return attacks.gained("average", gains, text, advice)


def _black_box_objective(s: Subject) -> Callable[..., Any]:
    """The margin: of the mean code or, failing that, of one draw, if the model samples.

    A search that keeps what scores higher would keep lucky draws of a noise that changes with every query.
    """
    if not s.sampled:
        return classifier_objective(s.model, "margin")
    if (mean_code := getattr(s.model, "mean_code", None)) is not None:
        return classifier_objective(mean_code, "margin")

    @random_objective
    def objective(x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return LOSSES["margin"](predict(s.model, x, ids=ids, seed=fold(s.seed, "one draw")), y)

    return objective


def black_box(attacks: Attacks) -> Finding:
    """Random search on what every attack by gradients has left."""
    s, left = attacks.s, int(attacks.alive.sum())
    whom = "that every attack by gradients left" if attacks.stages else "(no attack by gradients was possible)"
    search = Square(QUERIES, leave_early=not s.unrepeatable)
    gain = attacks.run(f"black box, {QUERIES} queries", search, _black_box_objective(s))
    text = f"Square sees no gradient; with {QUERIES} queries it breaks {gain} of the {left} images {whom}."
    advice = "the gradients are masked: find what hides them, go around it in the attack, and report both numbers."
    numbers = attacks.shares({"gain": gain, "left": left})
    return Finding("black-box", BLACK_BOX.share(gain, attacks.total), text, numbers, advice)


def radius(s: Subject, right: Tensor, attack: Attack, here: Rate) -> tuple[Finding, dict[str, list[float]]]:
    """Robust accuracy falls with the radius, to nothing where any image is allowed; with the curve."""
    whole = 1.0 if isinstance(s.threat, Linf) else math.sqrt(s.x[0].numel())
    mean = torch.as_tensor(s.threat.eps, dtype=torch.float64).mean().item()
    if getattr(attack, "step_size", None) is not None:
        attack = replace(attack, step_size=None)  # type: ignore[type-var]  # a step grows with its radius
    rows, objective = right.nonzero().squeeze(1), classifier_objective(s.model)

    def rate(threat: Linf | L2) -> Rate:
        kept = right.clone()
        kept[rows[s.broken(rows, attack, objective, "radius", threat)]] = False
        return Rate(kept.cpu())

    rates = {0.0: Rate(right.cpu()), whole: rate(replace(s.threat, eps=whole)), mean: here}
    for factor in RADII:
        if factor != 1 and factor * mean < whole:
            rates[factor * mean] = rate(replace(s.threat, eps=factor * s.threat.eps))
    radii = sorted(rates)
    falling = curve(radii, [rates[r] for r in radii])
    y, n = falling["y"], len(right)
    left, rises = y[-1], max(max(y[i:]) - v for i, v in enumerate(y))
    told = ", ".join(f"{100 * v:.0f} % at {r:.3g}" for r, v in zip(radii, y, strict=True))
    text = f"Accuracy against the radius: {told}."
    fails, falls = LEFT.share(round(left * n), n), RISES.share(round(rises * n), n)
    if fails != "fine":
        text += (
            " At the last radius any image of [0, 1] is allowed and nothing can be robust: "
            f"{of(left * n, n)} survive because the attack fails."
        )
    if falls != "fine":
        text += f" It rises by {100 * rises:.0f} points, though the larger ball holds the smaller one."
    advice = "repair the attack until this curve falls to zero, then read the rest of it."
    return Finding("radius", worst(fails, falls), text, {"left": left, "rises": rises}, advice), falling
