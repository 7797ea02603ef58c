"""Checks that attack nothing: what a model's outputs and gradients look like at and around its images."""

from __future__ import annotations

import torch
from torch import Tensor

from robrep.attacks.threats import rows as column
from robrep.audit.report import Finding, Landscape, Limits, worst
from robrep.audit.subject import Subject, of
from robrep.objectives import samples_of
from robrep.passes import random_state
from robrep.random import fold

LINE = 41  # points on a line through an image
GRID = 21  # points along each side of the landscape
LOOKED_AT = 8  # images whose lines are looked at
RESPONSE = 1e-3  # of an image's spread of logits: more is not rounding

# shares of images, unless another thing is named
CHANGED = Limits(0.0, 0.02)  # their logits move with the batch
ZERO = Limits(0.01, 0.05)  # their gradient is exactly zero (lower end of a 95 % interval)
BEATEN = Limits(0.1, 0.3)  # a random step does as well as the gradient's
SLOPE = Limits(0.3, 0.6)  # their gradient is not the slope
FLAT = Limits(0.05, 0.2)  # of points on lines: the same margin a thousandth of the radius further
TURNS = Limits(0.15, 0.3)  # of points on lines: there the line turns round
NOISE = Limits(0.5, 0.8)  # of a step's gain: lost under another draw of the noise


def _moved(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of logits differ by more than rounding explains; bool (N,)."""
    spread = (a.amax(1) - a.amin(1)).clamp(min=1e-12)
    return ~((a - b).abs().amax(1) <= RESPONSE * spread)


def repeat(s: Subject) -> Finding:
    """Two calls with the same seed agree, and leave the model as it is."""
    before, buffers = random_state(s.x.device), [b.clone() for b in s.model.buffers()]
    a = s.logits(s.x, s.rows, s.seed)
    drawn = before != random_state(s.x.device)
    b = s.logits(s.x, s.rows, s.seed)
    changed = any(not torch.equal(old, new) for old, new in zip(buffers, s.model.buffers(), strict=True))
    n, moved, other = len(a), int(_moved(a, b).sum()), int((a.argmax(1) != b.argmax(1)).sum())
    s.unrepeatable = moved > 0
    numbers = {"moved": moved / n, "reclassified": other / n, "draws": float(drawn), "changed": float(changed)}
    text = f"Two calls with the same seed agree for all {n} images."
    advice = ""
    if moved:
        text = (
            f"Called twice with the same images and the same seed, the model moves the logits of {of(moved, n)} and "
            f"gives another class to {other}. An attack climbs one random function and is judged by another."
        )
        advice = (
            "let the model take its noise from ids and seed, as Classifier does, and attack its average over many "
            "draws; or take the randomness out and measure again."
        )
    if drawn:
        text += " It draws from the global random state" + ("." if moved else ", without effect.")
    if changed:
        text += " Being evaluated changes its buffers, so what it says depends on what it saw before."
        advice = advice or "stop it from updating statistics in evaluation mode."
    return Finding("repeat", "suspicious" if moved or changed else "fine", text, numbers, advice)


def batch(s: Subject) -> Finding:
    """Alone, in half the batch and in another order an image gets the same logits."""
    together, back, half = s.logits(s.x, s.rows, s.seed), s.rows.flip(0), s.rows[: max(len(s.rows) // 2, 1)]
    moved = _moved(together, s.logits(s.x[back], back, s.seed).flip(0))
    moved[half] |= _moved(together[half], s.logits(s.x[half], half, s.seed))
    alone = s.rows[:: max(len(s.rows) // 16, 1)]
    single = torch.cat([s.logits(s.x[i : i + 1], s.rows[i : i + 1], s.seed) for i in alone.tolist()])
    moved[alone] |= _moved(together[alone], single)
    n, count, other = len(moved), int(moved.sum()), int((single.argmax(1) != together[alone].argmax(1)).sum())
    text = f"Alone, in half the batch and in another order each of {n} images gets the same logits."
    if count:
        text = (
            f"The logits of {of(count, n)} change with the other images of the batch; alone, {other} of {len(alone)} "
            "images get another class. A robust accuracy of this model is a property of the batches, and an attack on "
            "one image moves its neighbours too."
        )
    advice = "use stored statistics at test time (batch norm in evaluation mode), and measure again."
    numbers = {"moved": count / n, "reclassified_alone": other / len(alone)}
    return Finding("batch", CHANGED.verdict(count / n), text, numbers, advice)


def graph(s: Subject) -> Finding:
    """There is a gradient with respect to the image."""
    some = s.rows[:2]
    try:
        s.gradient(s.x[some], some, s.seed, "cross_entropy")
    except (ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        text = (
            "Automatic differentiation finds no way back from the loss to the image. No attack by gradients can be run "
            f"on this model; a robust accuracy under one is the accuracy at its start. The error was: {said}"
        )
        advice = "take the detach, no_grad, numpy or integer operation out of the model, or replace it in the attack."
        return Finding("graph", "broken", text, {"reached": 0.0}, advice)
    return Finding("graph", "fine", "The loss has a gradient with respect to the image.", {"reached": 1.0})


def zero_gradient(s: Subject, classes: int) -> Finding:
    """Gradients at a random point of the ball are not exactly zero, for any loss."""
    start, seed = s.threat.start(s.x, s.rows, fold(s.seed, "zero")), fold(s.seed, "zero")
    # where the label has lost already a loss may be constant (DLR is, if two classes stand above it)
    rows = (s.score(start, s.rows, seed) <= 0).nonzero().squeeze(1)
    if not len(rows):
        return Finding("zero-gradient", "fine", "A random point of the ball is misclassified already, for every image.")
    names = {"cross_entropy": "cross-entropy", "margin": "margin", "dlr": "DLR"}
    zero, n = {}, len(rows)  # how many
    for name in names:
        if name != "dlr" or classes > 2:
            g = s.gradient(start[rows], rows, seed, name)
            s.infinite |= not bool(g.isfinite().all())
            zero[name] = int((g.flatten(1) == 0).all(1).sum())
    blind, seeing = (choose(zero, key=lambda k: zero[k]) for choose in (max, min))
    verdict = ZERO.share(zero[blind], n)
    told = ", ".join(f"{names[k]} {of(v, n)}" for k, v in zero.items())
    text, advice = f"At a random point of the ball they are exactly zero for: {told}.", ""
    if verdict != "fine" and ZERO.share(zero[seeing], n) == "fine":
        text += (
            f" The {names[blind]} is flat in floating point (outputs this large saturate it): an attack that climbs "
            f"it stands still. The {names[seeing]} still shows the way."
        )
        advice = f"attack with the {names[seeing]}, and report the lowest robust accuracy of all losses."
    elif verdict != "fine":
        text += " An attack that follows these gradients stands still, whatever its loss and however many its steps."
        advice = (
            "find the operation that stops them (rounding, a step, a saturated sigmoid) and put a smooth one in its "
            "place for the attack; until then believe only attacks without gradients."
        )
    return Finding("zero-gradient", verdict, text, {k: v / n for k, v in zero.items()}, advice)


def step(s: Subject) -> Finding:
    """A step along the gradient raises the margin more than random steps of the same length."""
    seed, draws, size = fold(s.seed, "step"), 5, column(s.threat.eps / 4, s.x)
    here = s.score(s.x, s.rows, seed)

    def gain(direction: Tensor) -> Tensor:
        return s.score((s.x + size * direction).clamp(0, 1), s.rows, seed) - here

    ahead = gain(s.threat.direction(s.gradient(s.x, s.rows, seed)))
    others = torch.stack([gain(s.random_directions(s.rows, f"step {i}")) for i in range(draws)])
    numbers = {"beaten": (others >= ahead).double().mean().item()}
    numbers |= {"gain": ahead.mean().item(), "random_gain": others.mean().item()}
    text = (
        f"A step of a quarter of the radius raises the margin by {numbers['gain']:.3g} on average along the gradient "
        f"and by {numbers['random_gain']:.3g} in a random direction; the random one does as well in "
        f"{100 * numbers['beaten']:.0f} % of {others.numel()} comparisons."
    )
    advice = "plot the margin around an image: the gradient does not describe it."
    return Finding("step", BEATEN.verdict(numbers["beaten"]), text, numbers, advice)


def slope(s: Subject) -> Finding:
    """The derivative along the gradient is what a small step measures."""
    seed, x = fold(s.seed, "slope"), s.x.clamp(0.05, 0.95)  # room for a step both ways
    g = s.gradient(x, s.rows, seed)
    d, h = s.threat.direction(g), column(s.threat.eps / 50, x)
    ahead, behind = (s.score(x + sign * h * d, s.rows, seed) for sign in (1, -1))
    predicted = 2 * (g * d * h).flatten(1).sum(1)
    ratio = torch.where(predicted > 0, (ahead - behind) / predicted.clamp(min=1e-30), 0.0)
    n, wrong = len(x), ((ratio < 0.5) | (ratio > 2)).double().mean().item()
    numbers = {"wrong": wrong, "median_ratio": ratio.median().item()}
    text = (
        f"A small step along the gradient raises the margin by {numbers['median_ratio']:.2f} times what the gradient "
        f"promises (median); for {of(wrong * n, n)} it is off by more than a factor of two."
    )
    advice = (
        "look for a part of the model that the gradient passes by (a detach, a backward pass written by hand) or that "
        "is rough on this scale (rounding, noise)."
    )
    return Finding("slope", SLOPE.verdict(wrong), text, numbers, advice)


def landscape(s: Subject, image: int) -> tuple[Finding, Landscape]:
    """Lines through some images are neither stairs nor rough; and the plane through one image, to be drawn."""
    seed, rows = fold(s.seed, "landscape"), s.rows[:: max(len(s.rows) // LOOKED_AT, 1)][:LOOKED_AT]
    x, t = s.x[rows], torch.linspace(-1, 1, LINE).tolist()
    eps = column(s.threat.take(rows).eps, x)
    flat = turns = 0.0
    for direction in (s.threat.direction(s.gradient(x, rows, seed)), s.random_directions(rows, "line")):
        line, beside = (torch.cat([(x + (u + du) * eps * direction).clamp(0, 1) for u in t]) for du in (0, 1e-3))
        values, close = (s.score(points, rows.repeat(LINE), seed).view(LINE, -1) for points in (line, beside))
        elsewhere = (line != beside).flatten(1).any(1).view(LINE, -1)
        flat += ((values == close) & elsewhere).double().mean().item() / 2
        rise = values.diff(dim=0).sign()
        turns += (rise[1:] * rise[:-1] < 0).double().mean().item() / 2
    numbers = {"flat": flat, "turns": turns}
    text = (
        f"On lines through {of(len(rows), len(s.rows))}, {100 * flat:.0f} % of the points have exactly the margin of "
        f"a point a thousandth of the radius further, and at {100 * turns:.0f} % the line turns round."
    )
    if FLAT.verdict(flat) != "fine":
        text += " The surface is flat or a staircase: where it rises, no slope says so."
    if TURNS.verdict(turns) != "fine":
        text += " The surface is so rough that the slope at one point says little about the next."
    advice = (
        "smooth the surface for the attack (average over noise, put a smooth operation in place of the rounding), and "
        "use an attack without gradients."
    )
    verdict = worst(FLAT.verdict(flat), TURNS.verdict(turns))
    return Finding("landscape", verdict, text, numbers, advice), _plane(s, image, seed)


def _plane(s: Subject, image: int, seed: int) -> Landscape:
    at, u = s.rows[image : image + 1], torch.linspace(-1, 1, GRID)
    x, eps = s.x[at], torch.as_tensor(s.threat.take(at).eps, dtype=torch.float64).mean().item()
    g, second = s.gradient(x, at, seed), s.random_directions(at, "plane")
    blind = not bool(g.any())
    first = s.random_directions(at, "another") if blind else s.threat.direction(g)
    points = torch.cat([(x + eps * (a * first + b * second)).clamp(0, 1) for b in u.tolist() for a in u.tolist()])
    values = s.score(points, at.repeat(GRID * GRID), seed).view(GRID, GRID)
    return Landscape(u * eps, u * eps, values.cpu(), image, blind)


def sampling_noise(s: Subject, steps: int) -> Finding:
    """A step that raises the margin of one draw of a random model raises that of another."""
    start = s.threat.start(s.x, s.rows, fold(s.seed, "noise"))
    seeds = [fold(s.seed, "noise", i) for i in range(6)]
    first, second = (s.gradient(start, s.rows, seed) for seed in seeds[:2])
    cosine = torch.cosine_similarity(first.flatten(1), second.flatten(1), dim=1, eps=1e-30).mean().item()
    margins = torch.stack([s.score(start, s.rows, seed) for seed in seeds])
    ahead = (start + column(2.5 / steps * s.threat.eps, s.x) * s.threat.direction(first)).clamp(0, 1)
    own, other = ((s.score(ahead, s.rows, seeds[i]) - margins[i]).mean().item() for i in (0, 1))
    kept = other / own if own > 0 else 0.0
    numbers = {"cosine": cosine, "own": own, "other": other, "kept": kept, "spread": margins.std(0).mean().item()}
    samples = samples_of(s.model)
    text = (
        f"With {samples} sample{'s' if samples != 1 else ''} in a gradient the margin of an image varies by "
        f"{numbers['spread']:.2g} from draw to draw, and the gradients of two draws have a cosine of {cosine:.2f}. A "
        f"step of the attack that raises the margin by {own:.2g} under its own draw raises it by {other:.2g} under "
        "another."
    )
    advice = "average each gradient over more samples, or take larger steps."
    return Finding("noise", NOISE.verdict(1 - kept), text, numbers, advice)
