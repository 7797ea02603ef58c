"""The audit: all checks, in an order in which each can rely on the ones before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robrep.attacks import L2, PGD, Attack, Linf
from robrep.audit import attacking, local
from robrep.audit.report import Audit, Finding
from robrep.audit.subject import Subject, of, untouched
from robrep.checks import check_labels
from robrep.heads import device_of
from robrep.objectives import check_model, draws_noise
from robrep.passes import images_of, normal, true_float32
from robrep.progress import Progress
from robrep.random import as_seed, fold
from robrep.rates import Rate
from robrep.training import Examples

CHECKS = 13  # about as many as are made
BY_GRADIENT = ("zero-gradient", "step", "slope", "landscape", "steps", "loss", "radius")


@torch.inference_mode(False)
def audit(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    threat: Linf | L2,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    progress: str | None = None,
) -> Audit:
    """Ask whether the robustness that an attack measures is real.

    The model is audited in evaluation mode. Its modes, parameters and buffers and the global random states are as they
    were afterwards, whatever the model does to them.

    Args:
        model: images to logits (N, C); what samples inside it takes ``ids`` and ``seed``, as a ``Classifier`` does.
        x: uint8 images, or floats in [0, 1], N x C x H x W; 100 are enough for the limits, and cost seconds where a
            pass is cheap (the audit makes about 800 passes, the half of them with a gradient).
        y: class indices (N,).
        threat: the ball in which robustness is claimed, of a radius above 0.
        attack: the attack whose number is doubted, run on the cross-entropy; None for ``PGD(20)``.
        seed: seed of every random stream.
        progress: a name for the audit, shown with the number of checks done; None for silence.

    Returns:
        Findings in plain words; see :class:`~robrep.audit.Audit`.

    Raises:
        TypeError: ``x``, ``y`` or ``model`` of a wrong kind, or a threat that is neither ``Linf`` nor ``L2``.
        ValueError: images, labels or a radius that do not fit, a model that gives no logits, is on several devices, or
            gets no image right.
    """
    if not isinstance(threat, Linf | L2):
        raise TypeError(f"threat is a {type(threat).__name__}, expected Linf or L2")
    eps = torch.as_tensor(threat.eps, dtype=torch.float64)
    if not bool((eps > 0).all()):
        raise ValueError(f"threat is the {threat}, expected a radius above 0")
    check_labels(y, len(x))
    check_model(model)
    attack, device = PGD(20) if attack is None else attack, device_of(model)
    images = images_of(x, torch.arange(len(x))).detach().to(device)
    s = Subject(model, images, normal(y).to(device), threat, int(as_seed(seed)))
    with (
        untouched(model),
        true_float32(device),
        Progress(progress or "", CHECKS, "check", show=progress is not None) as bar,
    ):
        return _audit(s, attack, str(threat), eps.mean().item(), bar)


def _audit(s: Subject, attack: Attack, threat: str, radius: float, bar: Progress) -> Audit:
    findings: list[Finding] = []
    left_out: dict[str, str] = {}
    curve: dict[str, list[float]] = {"x": [], "y": [], "low": [], "high": []}
    landscape = None

    def add(finding: Finding) -> Finding:
        findings.append(finding)
        bar.update()
        return finding

    logits = s.logits(s.x, s.rows, fold(s.seed, "verdict"))
    classes, n = logits.shape[1], len(s.x)
    check_labels(s.y, n, classes)
    if bad := int((~logits.isfinite()).any(1).sum()):
        text = f"The logits of {of(bad, n)} are infinite or not a number."
        add(Finding("finite", "broken", text, {"not_finite": bad / n}, "find the operation that overflows."))
        left_out = dict.fromkeys(("repeat", "batch", "graph", *BY_GRADIENT, "black-box"), "The outputs are no numbers.")
        return Audit(
            findings, left_out, Rate((logits.argmax(1) == s.y).cpu()), {}, curve, None, str(attack), threat, radius
        )

    add(local.repeat(s))
    s.sampled = draws_noise(s.model) and not torch.equal(logits, s.logits(s.x, s.rows, fold(s.seed, "other")))
    s.sampled &= not s.unrepeatable
    right = s.right(s.x, s.rows)
    if not right.any():
        raise ValueError(f"model gets none of {n} images right, expected some that an attack can break")
    if s.unrepeatable:
        left_out["batch"] = "It does not even get the same answer in the same one."
    else:
        add(local.batch(s))

    attacks = attacking.Attacks(s, right)
    if add(local.graph(s)).verdict == "broken":
        left_out |= dict.fromkeys(BY_GRADIENT, "There is no gradient.")
        add(attacking.black_box(attacks))
    else:
        add(local.zero_gradient(s, classes))
        add(local.step(s))
        add(local.slope(s))
        attacks.run(str(attack), attack)
        here = attacks.stages[str(attack)]
        survivor = int((attacks.alive if attacks.alive.any() else right).nonzero()[0])
        finding, landscape = local.landscape(s, survivor)
        add(finding)
        if s.sampled:
            add(local.sampling_noise(s, getattr(attack, "steps", 1)))
        add(attacking.stronger(attacks, attack))
        add(attacking.other_loss(attacks, attack))
        if s.sampled or s.unrepeatable:
            add(attacking.average(attacks, attack))
        add(attacking.black_box(attacks))
        finding, curve = attacking.radius(s, right, attack, here)
        add(finding)
    if s.infinite:
        text = "A gradient is infinite or not a number for at least one image; an attack that meets it has to stop."
        advice = "find the operation whose slope overflows (a root or a norm at 0, a logarithm)."
        add(Finding("finite", "broken", text, {}, advice))
    return Audit(findings, left_out, Rate(right.cpu()), attacks.stages, curve, landscape, str(attack), threat, radius)
