"""Attacks on classifiers by name, alone and in suites: which search, which loss, which targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robrep.attacks import APGD, L2, PGD, Linf, Square, Threat
from robrep.checks import one_of, optional, positive_int
from robrep.heads import gradients_disabled
from robrep.objectives import LOSSES, classifier_objective, draws_noise, likely_targets, predict
from robrep.random import fold


class SuiteAttack(Protocol):
    """One attack of a suite."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def refuses(self, model: nn.Module, threat: Threat) -> str:
        """Why it cannot attack this model, in words; "" if it can."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, ids: Tensor, seed: int) -> Tensor:
        """x' in A(x) for one batch of images; the model is in evaluation mode already."""

    def __str__(self) -> str:
        """The attack and its settings in words."""


@dataclass(frozen=True)
class ClassifierAttack:
    """An attack with the loss it makes large.

    Args:
        name: what tables call it.
        attack: any attack in the common call shape.
        loss: a name of :data:`robrep.objectives.LOSSES`.
        targets: for a targeted loss, how many of the most likely wrong classes (on the clean image) are tried, one
            after the other; 0 for a loss without targets. At most C - 1 are. Any wrong class counts as success.

    Raises:
        ValueError, TypeError: an unknown loss, or targets that do not go with it, when the attack is made.
    """

    name: str
    attack: Any
    loss: str = "cross_entropy"
    targets: int = 0

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        if self.targets:
            positive_int("targets", self.targets)
        if self.loss.startswith("targeted") != bool(self.targets):
            expected = "at least 1 with" if self.loss.startswith("targeted") else "0 without"
            raise ValueError(f"targets is {self.targets} with loss {self.loss!r}, expected {expected} a targeted loss")

    def __str__(self) -> str:
        targets = f", {self.targets} targets" if self.targets else ""
        return f"{self.attack} on {self.loss.replace('_', ' ')}{targets}"

    def refuses(self, model: nn.Module, threat: Threat) -> str:
        return ""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, ids: Tensor, seed: int) -> Tensor:
        objective, seed = classifier_objective(model, self.loss), fold(seed, self.name)
        if not self.targets:
            return self.attack(objective, x, threat, y, ids=ids, seed=seed)
        with torch.no_grad():
            ranked = likely_targets(predict(model, x, ids=ids, seed=fold(seed, "rank")), y, self.targets)
        x_adv, left = x.clone(), torch.arange(len(x), device=x.device)
        for rank in range(ranked.shape[1]):
            found = self.attack(
                objective, x[left], threat.take(left), y[left], ranked[left, rank], ids=ids[left], seed=fold(seed, rank)
            )
            x_adv[left] = found
            with torch.no_grad():
                wrong = predict(model, found, ids=ids[left], seed=fold(seed, "wrong")).argmax(1) != y[left]
            left = left[~wrong]
            if not len(left):
                break
        return x_adv


@dataclass(frozen=True)
class FAB:
    """Targeted FAB (Croce and Hein 2020): walks towards the decision boundary and looks for the nearest point of it.

    The implementation is pyautoattack's (``pip install 'robrep[autoattack]'``). It draws no random start; its steps
    still round with the batch, so that an image near the boundary may fare differently in another one. It is not made
    for models that sample.

    Args:
        steps: iterations for each target.
        targets: number of target classes, at most C - 1.
        name: what tables call it.
    """

    steps: int = 100
    targets: int = 9
    name: str = "FAB-T"

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)
        positive_int("targets", self.targets)

    def __str__(self) -> str:
        return f"FAB-{self.steps}, {self.targets} targets"

    def refuses(self, model: nn.Module, threat: Threat) -> str:
        if draws_noise(model):
            return "it is not made for models that sample"
        if not isinstance(threat, Linf | L2) or isinstance(threat.eps, Tensor):
            return "it knows l-inf and l2 balls of one radius"
        return ""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, ids: Tensor, seed: int) -> Tensor:
        fab_pt = optional("pyautoattack.fab_pt", "autoattack")

        def logits(v: Tensor) -> Tensor:  # it computes in float32
            return predict(model, v.to(x)).float()

        with torch.no_grad():
            classes = logits(x[:1]).shape[1]
        fab = fab_pt.FABAttack_PT(
            logits,
            norm="Linf" if isinstance(threat, Linf) else "L2",
            n_restarts=1,
            n_iter=self.steps,
            eps=threat.eps,
            targeted=True,
            n_target_classes=min(self.targets, classes - 1),
            device=x.device,
        )
        # it seeds the global random state and calls backward(): keep both from the caller
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices), gradients_disabled(model):
            x_adv = fab.perturb(x.float().clone(), y).detach().to(x)
        return threat.projection(x)(x_adv)  # it may leave the ball by rounding


AUTOATTACK: tuple[SuiteAttack, ...] = (
    ClassifierAttack("APGD-CE", APGD(100, leave_early=True)),
    ClassifierAttack("APGD-T", APGD(100, leave_early=True), "targeted_dlr", targets=9),
    FAB(),
    ClassifierAttack("Square", Square(5000), "margin"),
)
SUITES: dict[str, tuple[SuiteAttack, ...]] = {
    "pgd-20": (ClassifierAttack("PGD-20", PGD(20)),),
    "pgd-100": (ClassifierAttack("PGD-100", PGD(100)),),
    # AutoAttack's standard version (Croce and Hein 2020)
    "autoattack": AUTOATTACK,
    # its version for models that sample: gradients are averaged by the model's own number of samples
    "autoattack-rand": (ClassifierAttack("APGD-CE", APGD(100)), ClassifierAttack("APGD-DLR", APGD(100), "dlr")),
    # a cheap relative of the standard version
    "short": (
        ClassifierAttack("APGD-CE", APGD(20, leave_early=True)),
        ClassifierAttack("APGD-DLR", APGD(20, leave_early=True), "dlr"),
        ClassifierAttack("Square", Square(200), "margin"),
    ),
    # Nguyen et al. 2022 on CIFAR-10: the protocol of RoCL (Kim et al. 2020)
    "urkle": (ClassifierAttack("PGD-20", PGD(20, relative_step=0.1)),),
    # Cemgil et al. 2019: 20 steps; the paper does not give their size
    "smooth-encoders": (ClassifierAttack("PGD-20", PGD(20)),),
    # Gowal et al. 2021
    "byorl": (
        ClassifierAttack("APGD-CE", APGD(100, restarts=5, leave_early=True)),
        ClassifierAttack("APGD-DLR", APGD(100, restarts=5, leave_early=True), "dlr"),
        ClassifierAttack("MultiTargeted", PGD(200, restarts=20, leave_early=True), "targeted_margin", targets=9),
        ClassifierAttack("Square", Square(5000), "margin"),
    ),
    # Zhu et al. 2020, as in their code: 7 steps of 0.01 (at 8/255) from the image itself, the best iterate
    "worst-case-mi": (ClassifierAttack("PGD-7", PGD(7, relative_step=0.31875, random_start=False, keep="best")),),
    # the CRoPD paper
    "cropd": (
        ClassifierAttack("PGD-10", PGD(10, relative_step=0.2)),
        ClassifierAttack("PGD-20", PGD(20, relative_step=0.1)),
        *AUTOATTACK,
    ),
}


def suite(
    name: str, *, max_steps: int | None = None, max_restarts: int | None = None, max_queries: int | None = None
) -> tuple[SuiteAttack, ...]:
    """The attacks of a suite.

    Args:
        name: one of ``SUITES``.
        max_steps, max_restarts, max_queries: scale every attack down to at most so many steps, restarts and (Square's)
            queries; None leaves them.

    Raises:
        ValueError: an unknown name, or a limit below 1.
    """
    given = {"steps": max_steps, "restarts": max_restarts, "queries": max_queries}
    limits = {field: positive_int(f"max_{field}", limit) for field, limit in given.items() if limit is not None}

    def cut(attack: Any) -> Any:
        if isinstance(attack, ClassifierAttack):
            return replace(attack, attack=cut(attack.attack))
        return replace(attack, **{k: min(getattr(attack, k), v) for k, v in limits.items() if hasattr(attack, k)})

    return tuple(cut(attack) for attack in SUITES[one_of("name", name, SUITES)])


def as_suite(attacks: Any) -> tuple[SuiteAttack, ...]:
    """A suite from its name, from one attack, or from several; a bare search (``PGD(20)``) climbs the cross-entropy.

    Raises:
        TypeError: something else.
        ValueError: an unknown name, no attack at all, or two attacks of one name.
    """
    if isinstance(attacks, str):
        return suite(attacks)
    several = attacks if isinstance(attacks, Sequence) else [attacks]
    made: list[SuiteAttack] = []
    for attack in several:
        if isinstance(attack, type):
            raise TypeError(f"attacks holds the class {attack.__name__}, expected an attack, as {attack.__name__}()")
        if hasattr(attack, "run"):
            made.append(attack)
        elif callable(attack):
            again = sum(str(attack) == str(getattr(other, "attack", None)) for other in made)
            made.append(ClassifierAttack(f"{attack}{f' (run {again + 1})' if again else ''}", attack))
        else:
            raise TypeError(f"attacks holds a {type(attack).__name__}, expected an attack or the name of a suite")
    names = [attack.name for attack in made]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"attacks are named {', '.join(names) or 'nothing'}, expected at least one, and each name once"
        )
    return tuple(made)
