"""The checks behind the exercises: each tells what went wrong and gives a hint, not only a verdict.

In a chapter an exercise is three cells: the reader's function whose body is ``...``, followed by
``check("vae_urkle.kl", my_kl)``; then one folded cell with the solution and the same check, tagged ``solution`` and
``hide-cell`` (and, for Colab and JupyterLab, ``"cellView": "form"`` and ``"jupyter": {"source_hidden": true}``).
``make book SOLUTIONS=no`` leaves every cell tagged ``solution`` out of the pages and of the notebooks offered for
download: that is the student's version, and the same notebook is the teacher's.

Answers are checked in float64 against an independent reference: the equation written out, a distribution of
``torch.distributions``, or a case whose answer is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from robrep.checks import one_of
from robrep.gaussians import Gaussian


class _Wrong(Exception):
    """An answer is wrong: what was seen, and a hint."""

    def __init__(self, seen: str, hint: str) -> None:
        super().__init__(seen)
        self.seen, self.hint = seen, hint


class _Unanswered(Exception):
    """The reader's function returned None, as ``...`` does."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: chapter and exercise, such as "vae_urkle.kl".
        check: called with the answer; returns if it is right, else raises with a hint.
        hints: from gentle to nearly the solution.
        learned: a sentence to end on when it is passed.
    """

    name: str
    check: Callable[[Any], None]
    hints: tuple[str, ...]
    learned: str = ""


@dataclass(frozen=True)
class Verdict:
    """What ``check`` found; true if the answer passed.

    Attributes:
        name: the exercise.
        passed: whether every case was right.
        answered: False where the reader's function still returned nothing.
        message: the line that was printed.
    """

    name: str
    passed: bool
    answered: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def _ipython_display_(self) -> None:
        """Show nothing: ``check`` has printed its line already."""


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, *hints: str, learned: str = "") -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the decorated check as exercise ``name`` with at least one hint."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[name] = Exercise(name, function, hints, learned)
        return function

    return register


def check(name: str, answer: Any, *, strict: bool = False) -> Verdict:
    """Check an answer and print one line: passed, or the first thing that is wrong with a hint.

    Args:
        name: the exercise, such as "vae_urkle.kl".
        answer: the reader's function (or number, where the exercise asks for one).
        strict: raise on anything but a pass, for tests.

    Returns:
        The verdict. The global random state is left as it was.

    Raises:
        ValueError: no such exercise.
        AssertionError: with ``strict``, the answer did not pass.
    """
    task = EXERCISES[one_of("exercise", name, EXERCISES)]
    passed, answered = False, True
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            task.check(answer)
        passed, message = True, f"✓ {name}: passed. {task.learned}".rstrip()
    except _Unanswered:
        answered, message = False, f"… {name}: not answered yet. Hint: {task.hints[0]}"
    except _Wrong as wrong:
        message = f"✗ {name}: not yet. {wrong.seen} Hint: {wrong.hint}"
    print(message)
    if strict and not passed:
        raise AssertionError(message)
    return Verdict(name, passed, answered, message)


def hint(name: str, number: int = 1) -> None:
    """Print one of an exercise's hints; later ones say more.

    Raises:
        ValueError: no such exercise, or no such hint.
    """
    hints = EXERCISES[one_of("exercise", name, EXERCISES)].hints
    if not 1 <= number <= len(hints):
        raise ValueError(f"number is {number}, but {name} has hints 1 to {len(hints)}")
    print(f"Hint {number} of {len(hints)}: {hints[number - 1]}")


# --- tools for checks -------------------------------------------------------------------------------------------------


def _call(answer: Any, *given: Any) -> Any:
    """The answer's value; None means unanswered, an error becomes a hint instead of a traceback."""
    if answer is None or answer is ...:
        raise _Unanswered
    if not callable(answer):
        raise _Wrong(f"The answer is a {type(answer).__name__}.", "pass the function itself, without calling it.")
    try:
        value = answer(*given)
    except Exception as error:  # whatever a reader's code can raise
        raise _Wrong(
            f"Your function raised {type(error).__name__}: {error}.",
            f"it is called with {len(given)} arguments, tensors in float64; see the exercise's text for their shapes.",
        ) from error
    if value is None or value is ...:
        raise _Unanswered
    return value


def _tensor(value: Any, shape: Sequence[int], hint: str) -> Tensor:
    """The value as a detached float64 tensor of the expected shape."""
    if not isinstance(value, Tensor):
        raise _Wrong(f"Your function returned a {type(value).__name__}, expected a tensor.", hint)
    if value.shape != torch.Size(shape):
        raise _Wrong(f"The result has shape {tuple(value.shape)}, expected {tuple(shape)}.", hint)
    return value.detach().double()


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _compare(got: Tensor, truth: Tensor, case: str, mistakes: Sequence[tuple[Tensor, str]], other: str) -> None:
    """Pass if ``got`` is the truth; else name the first known mistake that gives what was got."""
    if _close(got, truth):
        return
    at = int((got - truth).abs().nan_to_num(torch.inf).flatten().argmax())
    seen = f"For {case} you have {got.flatten()[at]:.6g} where {truth.flatten()[at]:.6g} is right."
    raise _Wrong(seen, next((text for wrong, text in mistakes if _close(got, wrong)), other))


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL[p || q] in each dimension, by torch.distributions."""
    return kl_divergence(Normal(p.mean, p.scale), Normal(q.mean, q.scale))


# --- VAE + Urkle ------------------------------------------------------------------------------------------------------


@exercise(
    "vae_urkle.kl",
    "in each dimension, KL is half of: log of the ratio of variances, plus a quadratic term, minus 1; then sum.",
    "p.scale and q.scale are standard deviations: square them first. The ratio under the log is q's over p's.",
    "0.5 * (log(v2 / v1) + (v1 + (m1 - m2)**2) / v2 - 1), summed over the last axis, where v1 and v2 are variances.",
)
def _check_kl(answer: Any) -> None:
    """answer(p, q) -> (N,): KL[p || q] of diagonal Gaussians, summed over dimensions."""
    one = Gaussian(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    two = Gaussian(one.mean + 1, one.scale * 2)
    many = Gaussian(_random(0, 5, 3), _random(1, 5, 3).exp()), Gaussian(_random(2, 5, 3), _random(3, 5, 3).exp())
    cases = (("KL[N(0, 1) || N(1, 2²)]", one, two), ("five pairs in three dimensions", *many))
    for case, p, q in cases:
        n, d = p.mean.shape
        value = _call(answer, p, q)
        each = _kl(p, q)
        if isinstance(value, Tensor) and value.shape == (n, d):
            raise _Wrong(f"The result has shape ({n}, {d}).", "sum over the dimensions: one number for each pair.")
        if isinstance(value, Tensor) and value.ndim == 0:
            raise _Wrong("The result is one number.", "keep the batch: one number for each pair, shape (N,).")
        got = _tensor(value, (n,), "return one number for each pair, shape (N,): sum over the last axis only.")
        v, w, square = p.scale**2, q.scale**2, (p.mean - q.mean) ** 2
        half = each.sum(1)
        mistakes = [
            (_kl(q, p).sum(1), "you computed KL[p' || p]: the clean distribution comes first."),
            (each.mean(1), "you averaged over the dimensions: the bound needs their sum."),
            (
                _kl(Gaussian(p.mean, p.scale.sqrt()), Gaussian(q.mean, q.scale.sqrt())).sum(1),
                "you used the scale as the variance: square the standard deviations.",
            ),
            (_kl(Gaussian(p.mean, v), Gaussian(q.mean, w)).sum(1), "you squared the scale twice."),
            (2 * half, "the factor 1/2 is missing."),
            (half + d / 2, "the -1 in each dimension is missing: KL of a distribution with itself must be 0."),
            (0.5 * (torch.log(v / w) + (v + square) / w - 1).sum(1), "the ratio under the log is upside down."),
            (0.5 * (torch.log(w / v) + (v + square) / v - 1).sum(1), "divide by the second variance, not the first."),
            (0.5 * (torch.log(w / v) + v / w - 1).sum(1), "the distance of the means is missing."),
            (0.5 * (0.5 * torch.log(w / v) + (v + square) / w - 1).sum(1), "the log is of the ratio of variances."),
        ]
        other = "check the terms one by one with p = q (0) and with equal scales ((m1 - m2)² / 2 / scale²)."
        _compare(got, half, case, mistakes, other)


@exercise(
    "vae_urkle.project",
    "two limits hold at once: within eps of the clean image, and within [0, 1]. Both are limits on single pixels.",
    "a pixel x may become anything between max(0, x - eps) and min(1, x + eps).",
    "x_adv.clamp(x - eps, x + eps).clamp(0, 1), or torch.minimum and torch.maximum.",
    learned="For the l-infinity ball and the box the order does not matter; for an l2 ball it does.",
)
def _check_project(answer: Any) -> None:
    """answer(x_adv, x, eps) -> images: the closest point to x_adv in the l-infinity ball around x and in [0, 1]."""
    x = torch.rand(4, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.03, 0.97, 0.5])
    eps = 0.1
    outside = x + 0.5 * _random(1, *x.shape)
    outside[0, 0, 0] = torch.tensor([-0.3, 1.3, -0.3, 1.3, 0.52])
    given = outside.clone()
    got = _tensor(_call(answer, given, x.clone(), eps), x.shape, "return an image of the shape of x.")
    if not torch.equal(given, outside):
        raise _Wrong("Your function changed its input x_adv in place.", "return a new tensor (clamp, not clamp_).")
    delta = outside - x
    truth = torch.minimum(torch.maximum(outside, (x - eps).clamp(min=0)), (x + eps).clamp(max=1))
    largest = delta.abs().amax((1, 2, 3), keepdim=True)
    mistakes = [
        (x + delta.clamp(-eps, eps), "this stays in the ball but leaves [0, 1]: an image cannot be darker than black."),
        (outside.clamp(0, 1), "this is an image, but it is further than eps from the clean one."),
        (truth - x, "you returned the change delta: add it to x."),
        (delta.clamp(-eps, eps), "you returned the change delta: add it to x, then clip to [0, 1]."),
        (outside.clamp(-eps, eps), "clamp the change x_adv - x, not the image, to [-eps, eps]."),
        (
            x + eps * delta.sign(),
            "this moves every pixel to the ball's edge: pixels already inside stay where they are.",
        ),
        ((x + eps * delta.sign()).clamp(0, 1), "pixels already inside the ball must stay where they are."),
        (
            (x + delta * (eps / largest).clamp(max=1)).clamp(0, 1),
            "this shrinks the whole change, as for an l2 ball: for l-infinity each pixel is clamped by itself.",
        ),
    ]
    _compare(got, truth, "the worst pixel", mistakes, "a pixel ends between max(0, x - eps) and min(1, x + eps).")
    inside = truth
    again = _tensor(_call(answer, inside.clone(), x.clone(), eps), x.shape, "return an image of the shape of x.")
    _compare(again, inside, "a point already inside", [], "a point that is already allowed must not move.")


class _Curved(nn.Module):
    """A small Gaussian encoder whose mean and scale both depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.to_mean = nn.Parameter(_random(10, 6, 3))
        self.to_scale = nn.Parameter(0.3 * _random(11, 6, 3))

    def forward(self, x: Tensor) -> Gaussian:
        flat = x.flatten(1)
        return Gaussian((flat @ self.to_mean).tanh(), nn.functional.softplus(flat @ self.to_scale) + 0.2)


@exercise(
    "vae_urkle.random_start",
    "KL[p(z|x) || p(z|x + delta)] is never negative and is 0 at delta = 0. What is the slope at a minimum?",
    "make delta require a gradient, compute p from x (detached) and p' from x + delta, and sum KL over the batch.",
    "torch.autograd.grad(kl(p.detach(), encoder(x + delta)).sum(), delta)[0], after delta.requires_grad_().",
    learned="At delta = 0 every component is 0, so the sign of what rounding leaves there is noise.",
)
def _check_random_start(answer: Any) -> None:
    """answer(encoder, x, delta) -> gradient of KL[p(z|x) || p(z|x + delta)] in delta, or how many are nonzero at 0."""
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        if answer != 0:
            raise _Wrong(
                f"You say that {answer:g} components are not zero.", EXERCISES["vae_urkle.random_start"].hints[0]
            )
        return
    encoder, x = _Curved(), torch.rand(3, 1, 2, 3, dtype=torch.float64) * 0.5 + 0.25
    shape_hint = "return the gradient itself, of the shape of delta (autograd.grad returns a tuple: take its first)."
    shift = 0.1 * torch.rand(x.shape, dtype=torch.float64) + 0.01

    def objective(delta: Tensor, swap: bool = False) -> Tensor:
        with torch.no_grad():
            p, q = encoder(x), encoder(x + delta)
            return (_kl(q, p) if swap else _kl(p, q)).sum(1)

    def slope(swap: bool = False) -> Tensor:
        """By central differences, one pixel of all images at a time."""
        result, h = torch.zeros_like(x), 1e-5
        for i in range(x[0].numel()):
            step = torch.zeros_like(x)
            step.view(len(x), -1)[:, i] = h
            up, down = objective(shift + step, swap), objective(shift - step, swap)
            result.view(len(x), -1)[:, i] = (up - down) / (2 * h)
        return result

    got = _tensor(_call(answer, encoder, x.clone(), shift.clone()), x.shape, shape_hint)
    truth = slope()
    if not torch.allclose(got, truth, rtol=1e-5, atol=1e-7):
        for wrong, text in (
            (torch.zeros_like(x), "away from delta = 0 it is not zero: p must come from x alone, p' from x + delta."),
            (truth / len(x), "you averaged over the batch: sum, so that each image's gradient is its own."),
            (truth.sign(), "return the gradient, not its sign."),
            (-truth, "the sign is turned round: the attack ascends."),
            (slope(swap=True), "you computed KL[p' || p]: the clean distribution comes first."),
        ):
            if torch.allclose(got, wrong, rtol=1e-5, atol=1e-7):
                raise _Wrong("At a random delta the gradient is not right.", text)
        raise _Wrong(
            "At a random delta the gradient is not right.",
            "compare it with a difference quotient of KL[p(z|x) || p(z|x + delta)] in one pixel.",
        )
    zero = torch.zeros_like(x)
    got = _tensor(_call(answer, encoder, x.clone(), zero.clone()), x.shape, shape_hint)
    if not torch.allclose(got, zero, atol=1e-10):
        raise _Wrong(
            f"At delta = 0 you have components up to {got.abs().max():.3g}.",
            "KL has its minimum there, so the gradient must vanish.",
        )


@exercise(
    "vae_urkle.bounded_softmax",
    "mix the probabilities with a floor: p becomes K p + exp(-M). What must K be for the C classes to sum to 1?",
    "K = 1 - C exp(-M). It has to be positive.",
    "return torch.log(K * logits.softmax(-1) + exp(-M)), math.log(C)",
    learned="The paper's example M = 3 is legal for 10 classes (ln 10 = 2.30) but not for 100 (ln 100 = 4.61).",
)
def _check_bounded_softmax(answer: Any) -> None:
    """answer(logits, M) -> (log-probabilities (N, C) that are nowhere below -M, smallest legal M for C classes)."""
    for classes, bound in ((10, 5.0), (100, 6.0)):
        logits = 4 * _random(classes, 6, classes)
        logits[0, 0] += 200  # as sure as can be
        value = _call(answer, logits.clone(), bound)
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise _Wrong(
                f"Your function returned a {type(value).__name__}.", "return a pair: log-probabilities, smallest M."
            )
        if any(part is None or part is ... for part in value):
            raise _Unanswered
        got = _tensor(value[0], logits.shape, "one log-probability for each class.")
        p, floor = logits.softmax(1), math.exp(-bound)
        log_p = logits.log_softmax(1)
        bounded = (1 - classes * floor) * p + floor
        mistakes = [
            (bounded, "these are probabilities: return their logarithm."),
            (log_p, "this is the ordinary softmax: its loss has no bound."),
            (log_p.clamp(min=-bound), "clamping keeps the bound, but the probabilities of a row no longer sum to 1."),
            (torch.log((1 - floor) * p + floor), "K must give back one floor for each of the C classes."),
            (torch.log(p + floor), "without K the probabilities of a row sum to more than 1."),
            (
                torch.log((p + floor) / (1 + classes * floor)),
                "the floor becomes exp(-M)/(1 + C exp(-M)), below exp(-M).",
            ),
            (torch.log((1 - floor) * p + floor / classes), "the floor of each class is exp(-M) itself, not exp(-M)/C."),
        ]
        _compare(
            got, bounded.log(), f"{classes} classes and M = {bound:g}", mistakes,
            "each row's exponentials must sum to 1, and none may be below exp(-M).",
        )  # fmt: skip
        least = float(value[1])
        if not math.isclose(least, math.log(classes), rel_tol=1e-6):
            hints = {
                math.log(10): "that is right for 10 classes only: use the number of columns.",
                math.log2(classes): "use the natural logarithm: the losses are in nats.",
                math.log10(classes): "use the natural logarithm: the losses are in nats.",
                float(classes): "solve 1 - C exp(-M) = 0 for M.",
                bound: "that is the M given; which is the smallest that keeps K positive?",
            }
            text = next((h for v, h in hints.items() if math.isclose(least, v, rel_tol=1e-6)), "solve K = 0 for M.")
            seen = f"For {classes} classes you have a smallest M of {least:.4g}, right is {math.log(classes):.4g}."
            raise _Wrong(seen, text)


class _Linear(nn.Module):
    """A Gaussian encoder with mean W x and unit scale: KL[p(z|x) || p(z|x')] is |W (x' - x)|^2 / 2."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Gaussian:
        mean = x.flatten(1) @ self.weight.T
        return Gaussian(mean, torch.ones_like(mean))


class _OnePixel(nn.Module):
    """A Gaussian encoder of one pixel whose scale depends on it, so that the order inside KL matters."""

    def forward(self, x: Tensor) -> Gaussian:
        pixel = x.flatten(1)
        return Gaussian(3 * pixel, 0.3 + pixel)


@exercise(
    "vae_urkle.urkle",
    "three parts: a random start in the ball, ascent on KL with projection, KL at the image found.",
    "the attack's gradient is with respect to the image only (torch.autograd.grad), with p detached; the value "
    "returned keeps its gradients.",
    "x_adv = x + eps * (2 * rand - 1); repeat: g = autograd.grad(kl(p.detach(), encoder(x_adv)).sum(), x_adv)[0], "
    "x_adv = project(x_adv + 2.5 * eps / steps * g.sign(), x, eps); return kl(encoder(x), encoder(x_adv)).",
    learned="For a linear encoder the maximum is known, (eps ||w||_1)² / 2, and your attack finds it.",
)
def _check_urkle(answer: Any) -> None:
    """answer(encoder, x, eps, steps) -> (N,): KL[p(z|x) || p(z|x')] at the worst x' found in the l-infinity ball."""
    eps, steps, n = 0.1, 20, 3  # an odd number, so that wrong gradients of both signs cannot cancel
    w = _random(20, 1, 9)
    middle = torch.full((n, 1, 3, 3), 0.5, dtype=torch.float64)
    exact = (eps * w.abs().sum()).square().item() / 2
    encoder = _Linear(w.clone())
    value = _call(answer, encoder, middle.clone(), eps, steps)
    if encoder.weight.grad is not None:
        raise _Wrong(
            "The attack left gradients in the encoder's parameters.",
            "use torch.autograd.grad(score, x_adv) instead of score.backward().",
        )
    if isinstance(value, Tensor) and value.ndim == 0:
        raise _Wrong("The result is one number.", "return one value for each image; the training loss averages them.")
    got = _tensor(value, (n,), "one value for each image, shape (N,).")
    found = f"On a linear encoder you find {got.min():.4g} to {got.max():.4g}; the maximum is {exact:.4g}."
    if (got > exact * (1 + 1e-6)).any():
        raise _Wrong(found, "more than the maximum: x' has left the ball. Project after every step, and last of all.")
    if (got.abs() < 1e-9).all():
        raise _Wrong(found, "nothing moved: at delta = 0 the gradient is exactly zero, so start at a random point.")
    if (got < 0.98 * exact).any():
        low = got.min().item() < 0.02 * exact
        raise _Wrong(
            found,
            "so little: do you ascend (x + step), and keep the moved x' from step to step?" if low
            else "the attack stops early: steps of 2.5 eps / steps along the gradient's sign reach the ball's edge.",
        )  # fmt: skip

    if not value.requires_grad:
        raise _Wrong(
            "The value has no gradient.", "detach inside the attack only: the last KL is what training minimises."
        )
    value.sum().backward()
    both = n * eps**2 * w.abs().sum() * w.sign()
    if encoder.weight.grad is None or not _close(encoder.weight.grad, both, 1e-5):
        raise _Wrong(
            "The value's gradient in the encoder's weights is not that of KL.",
            "let it flow through both p(z|x) and p(z|x'): detach p inside the attack only, and x' but not p(z|x').",
        )

    thrice = _Linear(w.repeat(3, 1))
    got = _tensor(_call(answer, thrice, middle.clone(), eps, steps), (n,), "one value for each image.")
    if _close(got, torch.full_like(got, exact), 0.02):
        raise _Wrong("With three equal outputs KL must be three times as large.", "sum over the dimensions of z.")
    if not _close(got, torch.full_like(got, 3 * exact), 0.02):
        raise _Wrong(f"With three equal outputs you find {got.mean():.4g}, right is {3 * exact:.4g}.", "sum over z.")

    up, down = eps * w.clamp(min=0).sum(), eps * (-w).clamp(min=0).sum()  # from a black image pixels can only rise
    ends = torch.stack([up, down]).square() / 2
    black = torch.zeros(n, 1, 3, 3, dtype=torch.float64)
    got = _tensor(_call(answer, _Linear(w.clone()), black, eps, steps), (n,), "one value for each image.")
    seen = f"Around a black image you find up to {got.max():.4g}; the maximum is {ends.max():.4g}."
    if (got > ends.max() * (1 + 1e-6)).any():
        raise _Wrong(seen, "x' has left [0, 1]: no pixel can be darker than black.")
    if (got < 0.98 * ends.min()).any():
        raise _Wrong(seen, "clip to [0, 1] after each step, but let the attack go on from there.")

    pixel, one = torch.linspace(0.3, 0.7, 8, dtype=torch.float64).view(8, 1, 1, 1), _OnePixel()
    got = _tensor(_call(answer, one, pixel.clone(), eps, steps), (8,), "one value for each image.")
    p, sides = one(pixel), [one(pixel - eps), one(pixel + eps)]

    def at_an_end(values: list[Tensor]) -> bool:
        return bool(torch.stack([(got - v).abs() <= 0.01 * v for v in values]).any(0).all())

    if not at_an_end([_kl(p, q).sum(1) for q in sides]):
        swapped = at_an_end([_kl(q, p).sum(1) for q in sides])
        raise _Wrong(
            "Where the scale depends on the image, the value is not KL at an end of the interval.",
            "you computed KL[p' || p]: the clean distribution comes first." if swapped
            else "the attack must climb KL[p(z|x) || p(z|x')] itself, not another distance.",
        )  # fmt: skip


@exercise(
    "vae_urkle.predict",
    "draw z = mean + scale * noise for each sample, classify each, and average what?",
    "average probabilities: first the softmax of each sample's logits, then the mean over samples.",
    "head(p.mean + p.scale * noise).softmax(-1).mean(0)",
    learned="The average of probabilities is what the bound speaks about; averaged logits are surer than the model is.",
)
def _check_predict(answer: Any) -> None:
    """answer(head, p, noise) -> (N, C): probabilities averaged over the samples; noise is (S, N, D)."""
    n, d, samples = 5, 2, 4000
    w = torch.tensor([1.5, -1.0], dtype=torch.float64)
    p = Gaussian(_random(30, n, d), 0.5 + _random(31, n, d).abs())
    draws = _random(32, samples, n, d)
    normal = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))

    def head(z: Tensor) -> Tensor:
        """Logits whose softmax is (Phi(wz), Phi(-wz)), for which the average over z is known."""
        score = (z * w).sum(-1)
        return torch.stack([normal.cdf(score), normal.cdf(-score)], -1).clamp(min=1e-300).log()

    value = _call(answer, head, p, draws.clone())
    got = _tensor(value, (n, 2), "one row of probabilities for each image, shape (N, C): average over the samples.")
    logits = head(p.mean + p.scale * draws)
    truth = logits.softmax(-1).mean(0)
    mistakes = [
        (logits.mean(0).softmax(-1), "you averaged logits: take the softmax of each sample first."),
        (logits.log_softmax(-1).mean(0), "you averaged log-probabilities: average the probabilities."),
        (logits.log_softmax(-1).mean(0).exp(), "you averaged log-probabilities: average the probabilities."),
        (truth.log(), "these are log-probabilities: the exercise asks for probabilities."),
        (head(p.mean).softmax(-1), "you used the mean only: draw z with the noise given."),
        (head((p.mean + p.scale * draws).mean(0)).softmax(-1), "you averaged z: average after the head."),
        (logits.mean(0), "you averaged logits and left out the softmax."),
        (logits.softmax(-1)[0], "this is one sample: average over all of them."),
        (logits.softmax(-1).sum(0), "divide by the number of samples."),
        (head(p.mean + p.scale**2 * draws).softmax(-1).mean(0), "the scale is a standard deviation already."),
        (
            head(p.mean + p.scale.sqrt() * draws).softmax(-1).mean(0),
            "the scale is a standard deviation, not a variance.",
        ),
        (head(p.mean + draws).softmax(-1).mean(0), "multiply the noise by the scale."),
    ]
    _compare(got, truth, f"{samples} samples", mistakes, "z = mean + scale * noise; softmax; mean over the first axis.")
    # the reference itself against the integral: E Phi(w z) = Phi(w mu / sqrt(1 + sum (w s)^2))
    exact = normal.cdf((p.mean * w).sum(1) / (1 + (p.scale * w).square().sum(1)).sqrt())
    if not torch.allclose(got[:, 0], exact, atol=0.03):
        raise _Wrong("The average is not the integral over z.", "use every sample of the noise given.")


@exercise(
    "vae_urkle.wilson",
    "ask which rates p would make the share seen unsurprising: |share - p| <= z sqrt(p (1 - p) / n), z = 1.96.",
    "the standard error is taken at p, not at the share: that makes a quadratic equation for the two ends.",
    "with t = z² / n: centre (share + t/2) / (1 + t), half width z / (1 + t) * sqrt(share (1 - share) / n + t/(4 n)).",
    learned="0 right of 500 still leaves a rate of up to 0.76 % possible.",
)
def _check_wilson(answer: Any) -> None:
    """answer(k, n) -> (low, high): the 95 % interval of a rate, in [0, 1]."""
    z = 1.959963984540054
    for k, n in ((50, 500), (3, 10), (0, 500), (500, 500)):
        value = _call(answer, k, n)
        try:
            low, high = (float(v) for v in value)
        except (TypeError, ValueError):
            raise _Wrong(f"Your function returned {value!r}.", "return a pair: low, high.") from None
        # the ends solve (share - p)^2 = z^2 p (1 - p) / n
        share = k / n
        a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        truth = ((-b - root) / (2 * a), (-b + root) / (2 * a))

        def same(pair: tuple[float, float], low: float = low, high: float = high) -> bool:
            return all(math.isclose(u, v, abs_tol=2e-4) for u, v in zip((low, high), pair, strict=True))

        if same(truth):
            continue
        seen = f"For {k} of {n} you have [{low:.4g}, {high:.4g}], right is [{truth[0]:.4g}, {truth[1]:.4g}]."
        wald = z * math.sqrt(share * (1 - share) / n)
        text = "solve the quadratic (share - p)² = z² p (1 - p) / n for p."
        if low == high == share:
            text = "a share of 0 is no proof of 0: one more image could be right."
        elif same((share - wald, share + wald)) or same((max(0.0, share - wald), min(1.0, share + wald))):
            text = "this is share ± z standard errors, which has no width at 0: take the error at p, not at the share."
        elif same(truth[::-1]):
            text = "the lower end comes first."
        elif same((100 * truth[0], 100 * truth[1])):
            text = "return rates in [0, 1], not percent."
        elif 0 < low < truth[0] + 0.05 and truth[1] - 0.05 < high and high - low < truth[1] - truth[0]:
            text = "too narrow: 95 % on both sides together needs z = 1.96."
        raise _Wrong(seen, text)


# --- Attacks ----------------------------------------------------------------------------------------------------------


def _norms(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@exercise(
    "attacks.project_l2",
    "shrink the change of an image only if it is too long, and then all its pixels by one factor.",
    "the norm runs over all of an image's pixels: (x_adv - x).flatten(1).norm(dim=1), one for each image.",
    "factor = (eps / norm).clamp(max=1), shaped (N, 1, 1, 1); then (x + (x_adv - x) * factor).clamp(0, 1).",
    learned="Clipping comes last and is safe: x is in [0, 1], so each clipped pixel moves towards it.",
)
def _check_project_l2(answer: Any) -> None:
    """answer(x_adv, x, eps) -> the point of the l2 ball and of [0, 1]."""
    eps = 0.5
    x = 0.5 + 0.1 * _random(40, 4, 1, 3, 3).clamp(-2, 2)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.02, 0.99
    delta = 0.4 * _random(41, 4, 1, 3, 3)
    delta[0, 0, 0, 0], delta[1, 0, 0, 0] = -0.6, 0.7
    delta[3] = 0.02 * delta[3]
    value = _call(answer, x + delta, x.clone(), eps)
    got = _tensor(value, x.shape, "return an image of the shape of x.")
    norm = _norms(delta)
    truth = (x + delta * (eps / norm).clamp(max=1)).clamp(0, 1)
    whole = delta.norm()
    mistakes = [
        (x + delta * (eps / norm).clamp(max=1), "this stays in the ball but leaves [0, 1]."),
        ((x + delta * eps / norm).clamp(0, 1), "a point that is inside the ball already must stay where it is."),
        (x + delta * eps / norm, "a point that is inside the ball already must stay; and clip to [0, 1]."),
        ((x + delta.clamp(-eps, eps)).clamp(0, 1), "this is the l-infinity ball: here all pixels share one budget."),
        (
            (x + delta * (eps / whole).clamp(max=1)).clamp(0, 1),
            "you took one norm over the whole batch: each image has its own.",
        ),
        (truth - x, "you returned the change: add it to x."),
        (
            (x + delta * (eps / delta.flatten(1).abs().sum(1).view(-1, 1, 1, 1)).clamp(max=1)).clamp(0, 1),
            "this is the l1 norm: take the square root of the sum of squares.",
        ),
        (
            (x + delta * (eps / norm**2).clamp(max=1)).clamp(0, 1),
            "the square root is missing from the norm.",
        ),
        (
            (x + ((x + delta).clamp(0, 1) - x) * (eps / _norms((x + delta).clamp(0, 1) - x)).clamp(max=1)),
            "you clipped first: allowed, but the equation shrinks first, and gives another point.",
        ),
    ]
    _compare(got, truth, "the worst pixel", mistakes, "shrink by min(1, eps / norm), then clip to [0, 1].")
    still = _tensor(_call(answer, x.clone(), x.clone(), eps), x.shape, "return an image of the shape of x.")
    _compare(still, x, "x' = x", [], "where nothing changed the norm is 0: guard the division.")


@exercise(
    "attacks.steepest",
    "l-infinity lets every pixel move by the full length, so only the signs matter; l2 keeps the proportions.",
    "for p = 2 divide each image's gradient by its own norm, and keep the norm away from 0.",
    "g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)",
    learned="With it, the objective rises to first order by eps times the dual norm: l1 for l-infinity, l2 for l2.",
)
def _check_steepest(answer: Any) -> None:
    """answer(g, p) -> directions of length 1 in the norm p, shape of g."""
    g = _random(42, 3, 2, 3, 3) * torch.tensor([1.0, 1e-6, 30.0], dtype=torch.float64).view(3, 1, 1, 1)
    g[0, 0, 0, 0] = 0
    for p in (math.inf, 2):
        got = _tensor(_call(answer, g.clone(), p), g.shape, "return a tensor of the shape of g.")
        norm = _norms(g)
        truth = g.sign() if p == math.inf else g / norm
        peak = g.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
        mistakes = [
            (g, "this is the gradient itself: its length must not matter."),
            (-truth, "the objective is to be made large: do not turn the gradient round."),
            (g / g.norm(), "you took one norm over the whole batch: each image has its own."),
            (g / norm**2, "divide by the norm, not by its square."),
            (g / peak, "this has largest component 1: it is neither the l-infinity nor the l2 direction."),
            (g / norm if p == math.inf else g.sign(), "the two norms are the wrong way round."),
            (g / g.flatten(1).abs().sum(1).view(-1, 1, 1, 1), "this divides by the l1 norm."),
        ]
        _compare(got, truth, f"p = {p}", mistakes, "the direction has length 1 in its own norm, for each image.")
        zero = _tensor(_call(answer, torch.zeros_like(g), p), g.shape, "return a tensor of the shape of g.")
        _compare(zero.nan_to_num(nan=1.0), torch.zeros_like(g), "a gradient of zero", [], "0 / 0 is NaN: guard it.")


@exercise(
    "attacks.dlr",
    "the numerator is the largest *other* logit minus the label's; the denominator does not know the label.",
    "mask the label's logit with minus infinity before the maximum; sort all logits for the denominator.",
    "top = logits.topk(3, dim=1).values; (other - own) / (top[:, 0] - top[:, 2])",
    learned="Multiply the logits by 1,000 and nothing changes: this loss cannot be saturated.",
)
def _check_dlr(answer: Any) -> None:
    """answer(logits, y) -> (N,): difference of logits ratio, large where the label loses."""
    n, classes = 5, 6
    z = 3 * _random(43, n, classes)
    rank = z.argsort(1, descending=True)
    y = rank[torch.arange(n), torch.tensor([0, 0, 1, 2, 4])]  # right, right, and wrong in three ways
    got = _tensor(_call(answer, z.clone(), y.clone()), (n,), "one value for each image, shape (N,).")
    own = z.gather(1, y[:, None])[:, 0]
    other = z.scatter(1, y[:, None], -math.inf).amax(1)
    top = z.sort(1, descending=True).values
    truth = (other - own) / (top[:, 0] - top[:, 2])
    rest = z.scatter(1, y[:, None], -math.inf).sort(1, descending=True).values
    mistakes = [
        (-truth, "this falls as the label loses: an attack makes the objective large."),
        (other - own, "this is the margin: divide it."),
        (own - other, "this is minus the margin: turn it round, and divide it."),
        ((top[:, 0] - own) / (top[:, 0] - top[:, 2]), "leave the label out of the maximum."),
        ((top[:, 1] - own) / (top[:, 0] - top[:, 2]), "the best other class is second only where the label is first."),
        ((other - own) / (top[:, 0] - top[:, 1]), "the denominator has the third largest logit: with the second, "
         "a right image scores -1 whatever you do."),
        ((other - own) / (rest[:, 0] - rest[:, 2]), "the denominator sorts all logits, the label's included."),
        ((other - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2), "that is the denominator of the targeted loss."),
    ]  # fmt: skip
    _compare(got, truth, f"{n} images of {classes} classes", mistakes, "compare numerator and denominator one by one.")
    scaled = _tensor(_call(answer, 1000 * z, y.clone()), (n,), "one value for each image, shape (N,).")
    _compare(scaled, truth, "logits 1,000 times as large", [], "a common factor of the logits must cancel.")


@exercise(
    "attacks.eot",
    "average what: logits, log-probabilities, probabilities or losses? The equation says it.",
    "the probability of the label, averaged over s, then minus its logarithm.",
    "logits.log_softmax(-1).logsumexp(0) - log S is the log of the averaged probabilities.",
    learned="logsumexp averages probabilities without ever leaving the logarithm.",
)
def _check_eot(answer: Any) -> None:
    """answer(logits, y) -> (N,): minus the log of the averaged probability of the label."""
    samples, n, classes = 7, 4, 5
    z, y = 2 * _random(44, samples, n, classes), torch.tensor([0, 4, 2, 1])
    got = _tensor(_call(answer, z.clone(), y.clone()), (n,), "one loss for each image, shape (N,).")
    index = y.expand(samples, n)[..., None]
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    truth = -p.mean(0).gather(1, y[:, None])[:, 0].log()
    mistakes = [
        (-truth, "this is the log-probability: an attack makes the *loss* large."),
        (-log_p.gather(2, index)[..., 0].mean(0), "you averaged losses: average probabilities, then the log."),
        (-z.mean(0).log_softmax(-1).gather(1, y[:, None])[:, 0], "you averaged logits: take each softmax first."),
        (-p.sum(0).gather(1, y[:, None])[:, 0].log(), "divide by the number of samples."),
        (p.mean(0).gather(1, y[:, None])[:, 0], "this is the averaged probability: minus its logarithm is the loss."),
        (-log_p[0].gather(1, y[:, None])[:, 0], "this is one sample: average over all of them."),
        (-log_p.gather(2, index)[..., 0].sum(0), "you added the samples' losses: average their probabilities."),
    ]
    _compare(got, truth, f"{samples} samples", mistakes, "softmax, mean over the first axis, minus log of the label's.")
    big = torch.zeros(2, 1, 3, dtype=torch.float64)
    big[:, 0, 1] = 1000.0
    got = _tensor(_call(answer, big, torch.tensor([0])), (1,), "one loss for each image, shape (N,).")
    if not torch.isfinite(got).all():
        raise _Wrong(
            "With logits of 1,000 the loss is not finite.",
            "a softmax underflows to 0: stay in logarithms with log_softmax and logsumexp.",
        )
    _compare(got, torch.tensor([1000.0], dtype=torch.float64), "logits of 1,000", [], "stay in logarithms throughout.")


@exercise(
    "attacks.worst_case",
    "an image is robust only if it survives everything: join image by image, before you count.",
    "all() over attacks and restarts, and the clean image is one of the things to survive.",
    "(right.flatten(0, 1).all(0) & clean).float().mean().item()",
    learned="The lowest accuracy of a single attack is larger, unless that attack breaks all that any of them breaks.",
)
def _check_worst_case(answer: Any) -> None:
    """answer(right, clean) -> robust accuracy; right is bool (attacks, restarts, N), clean bool (N,)."""
    right = torch.rand(3, 4, 200, generator=torch.Generator().manual_seed(45)) > 0.06
    clean = torch.rand(200, generator=torch.Generator().manual_seed(46)) > 0.1
    right[0, 1] = right[0, 1] & (torch.rand(200, generator=torch.Generator().manual_seed(47)) > 0.3)
    value = _call(answer, right.clone(), clean.clone())
    try:
        got = torch.tensor([float(value)], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise _Wrong(f"Your function returned a {type(value).__name__}.", "return one number in [0, 1].") from None
    share = right.double().mean(-1)

    def number(v: Tensor | float) -> Tensor:
        return torch.as_tensor(v, dtype=torch.float64).reshape(1)

    robust = right.flatten(0, 1).all(0) & clean
    mistakes = [
        (number(right.flatten(0, 1).all(0).double().mean()), "an image that is wrong without an attack is not robust."),
        (number(share.min()), "this is the best single run: join image by image first."),
        (number((right & clean).double().mean(-1).min()), "this is the best single run: join image by image first."),
        (number(right.all(1).double().mean(-1).min()), "this joins restarts but not attacks."),
        (number((right.all(1) & clean).double().mean(-1).min()), "this joins restarts but not attacks."),
        (number((right[:, -1].all(0) & clean).double().mean()), "you kept the last restart: every restart counts."),
        (number(share.mean()), "an average over attacks is no worst case."),
        (number((right.flatten(0, 1).any(0) & clean).double().mean()), "any() asks for one failed attack: use all()."),
        (number(robust.double().sum()), "return a share in [0, 1], not a count."),
        (number(1 - robust.double().mean()), "this is the share that was broken."),
        (number(100 * robust.double().mean()), "return a share in [0, 1], not percent."),
    ]
    _compare(got, number(robust.double().mean()), "200 images", mistakes, "all() over attacks and restarts, and clean.")


@exercise(
    "attacks.radius",
    "first a lower bound of the share of votes, then sigma times the normal quantile of that bound.",
    "the Clopper-Pearson lower bound is scipy.stats.beta.ppf(alpha, k, n - k + 1), and 0 for k = 0.",
    "low = beta.ppf(alpha, k, n - k + 1) if k else 0; radius = sigma * norm.ppf(low) if low > 0.5 else 0",
    learned="With every one of n votes the bound is alpha^(1/n): more votes, and only more votes, certify further.",
)
def _check_radius(answer: Any) -> None:
    """answer(k, n, sigma, alpha) -> certified l2 radius, 0 where the model abstains."""
    from scipy.stats import beta, norm

    def bounded(k: int, n: int, level: float) -> float:
        return float(beta.ppf(level, k, n - k + 1)) if k else 0.0

    for k, n, sigma, alpha in ((990, 1000, 0.25, 0.001), (1000, 1000, 0.5, 0.001), (70, 100, 0.25, 0.05),
                               (480, 1000, 0.25, 0.001), (51, 100, 0.25, 0.001), (0, 100, 0.25, 0.001)):  # fmt: skip
        value = _call(answer, k, n, sigma, alpha)
        try:
            got = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise _Wrong(
                f"Your function returned a {type(value).__name__}.", "return one number, the radius."
            ) from None
        low, share = bounded(k, n, alpha), k / n
        truth = sigma * float(norm.ppf(low)) if low > 0.5 else 0.0
        if math.isclose(got, truth, abs_tol=1e-6):
            continue
        seen = f"For {k} of {n} votes, sigma {sigma:g} and alpha {alpha:g} you have {got:.4g}, right is {truth:.4g}."
        text = "a lower bound of the share first, then sigma times the quantile of the normal distribution."
        if truth == 0:
            text = "with a bound of at most 1/2 no class is certain to win: abstain, with radius 0."
        elif 0 < share < 1 and math.isclose(got, sigma * float(norm.ppf(share)), abs_tol=1e-6):
            text = "the share itself is no bound: the next votes may turn out worse. Take a lower confidence bound."
        elif math.isclose(got, sigma * float(norm.ppf(bounded(k, n, alpha / 2))), abs_tol=1e-6):
            text = "a one-sided bound puts all of alpha on its side: do not halve it."
        elif math.isclose(got, float(norm.ppf(low)), abs_tol=1e-6):
            text = "multiply by sigma."
        elif math.isclose(got, low, abs_tol=1e-6):
            text = "this is the bound of the share: the radius is sigma times its normal quantile."
        elif math.isclose(got, sigma * low, abs_tol=1e-6):
            text = "the quantile (norm.ppf) is missing."
        elif not math.isfinite(got):
            text = "with every vote for one class the share is 1 and its quantile infinite: use the lower bound."
        raise _Wrong(seen, text)


# --- Smooth encoders --------------------------------------------------------------------------------------------------


def _pairs() -> list[tuple[str, Gaussian, Gaussian]]:
    one = Gaussian(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    two = Gaussian(one.mean + 1, one.scale * 2)
    many = Gaussian(_random(70, 5, 3), _random(71, 5, 3).exp()), Gaussian(_random(72, 5, 3), _random(73, 5, 3).exp())
    return [("N(0, 1) and N(1, 2²)", one, two), ("five pairs in three dimensions", *many)]


@exercise(
    "smooth_encoders.w2",
    "a Gaussian with a diagonal covariance is a product of Gaussians on lines: what does it cost to move one of them?",
    "on a line the Monge map is a shift and a stretch: the squared shift plus the squared difference of the scales.",
    "((p.mean - q.mean)**2 + (p.scale - q.scale)**2).sum(-1)",
    learned="In (mean, scale) the 2-Wasserstein distance of diagonal Gaussians is the ordinary distance.",
)
def _check_w2(answer: Any) -> None:
    """answer(p, q) -> (N,): W2^2 of diagonal Gaussians."""
    for case, p, q in _pairs():
        got = _tensor(_call(answer, p, q), (len(p.mean),), "return one number for each pair: sum over the last axis.")
        # E|a - b|^2 when b is the monotone image of a: an integral over the quantiles, here by 400 midpoints
        u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        z = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)).icdf(u)
        z = z / z.square().mean().sqrt()
        moved = (p.mean - q.mean)[..., None] + (p.scale - q.scale)[..., None] * z
        truth = moved.square().mean(-1).sum(-1)
        means, v, w = (p.mean - q.mean).square().sum(-1), p.scale**2, q.scale**2
        mistakes = [
            (truth.sqrt(), "this is W2: the exercise asks for its square."),
            (means, "the scales are missing: stretching costs too."),
            (means + (v - w).square().sum(-1), "take the difference of the standard deviations, not of the variances."),
            (means + (v + w).sum(-1), "this is the cost when the two are independent, not the least cost."),
            (
                means + (v - w).abs().sum(-1),
                "the least cost of the spread is (s - s')², not a difference of variances.",
            ),
            (truth / p.mean.shape[1], "you averaged over the dimensions: sum them."),
        ]
        _compare(got, truth, case, mistakes, "shift plus stretch: (m - m')² + (s - s')² in each dimension.")


def _entropic_reference(s: Tensor, s_: Tensor, gamma: float) -> Tensor:
    """psi by bisection on the derivative of gamma/2 E|a - b|^2 - H, in each dimension."""
    low, high = torch.zeros_like(s), s * s_
    for _ in range(200):
        psi = 0.5 * (low + high)
        rising = -gamma + psi / ((s * s_).square() - psi.square()) > 0
        low, high = torch.where(rising, low, psi), torch.where(rising, psi, high)
    return 0.5 * (low + high)


@exercise(
    "smooth_encoders.coupling",
    "write the cost of a covariance psi: -gamma psi - 1/2 ln(S S' - psi²), and set its derivative to zero.",
    "that gives psi² + psi/gamma - S S' = 0, with variances S and S'. Which of its roots keeps S S' - psi² positive?",
    "(sqrt(1 + 4 gamma² S S') - 1) / (2 gamma), where S = p.scale**2.",
    learned="The other root is below -sqrt(S S'), which no covariance can be.",
)
def _check_coupling(answer: Any) -> None:
    """answer(p, q, gamma) -> (N, D): covariances of the optimal coupling."""
    for gamma in (1.0, 0.3, 5.0):
        for case, p, q in _pairs():
            shape = tuple(p.mean.shape)
            got = _tensor(_call(answer, p, q, gamma), shape, "one covariance for each pair and dimension: (N, D).")
            truth = _entropic_reference(p.scale, q.scale, gamma)
            product, v = p.scale * q.scale, (p.scale * q.scale) ** 2
            mistakes = [
                (-(1 + 4 * gamma**2 * v).sqrt() / (2 * gamma) - 1 / (2 * gamma), "this is the other root."),
                (product, "this is the Monge map's covariance, the limit of large gamma."),
                (
                    (1 + 4 * gamma**2 * product).sqrt() / (2 * gamma) - 1 / (2 * gamma),
                    "square the standard deviations.",
                ),
                (truth / product, "this is the correlation: multiply it by both standard deviations."),
                ((1 + 4 * gamma**2 * v).sqrt() - 1, "divide by 2 gamma."),
                ((1 + 4 * gamma**2 * v).sqrt() / (2 * gamma), "the -1 is missing."),
            ]
            other = "solve psi² + psi/gamma = S S' for the positive root, in each dimension."
            _compare(got, truth, f"gamma = {gamma:g}, {case}", mistakes, other)


@exercise(
    "smooth_encoders.entropic",
    "put psi from the last exercise into gamma/2 E|a - b|² - H: what is E|a - b|², and what the entropy of the pair?",
    "E|a - b|² = (m - m')² + S + S' - 2 psi, and H = ln(2 pi e) + 1/2 ln(S S' - psi²) in each dimension.",
    "(gamma / 2 * ((m - m')**2 + S + S' - 2 * psi) - math.log(2 * math.pi * math.e) "
    "- 0.5 * torch.log(S * S' - psi**2)).sum(-1)",
    learned="Where gamma is large this form loses its digits; the library's does not.",
)
def _check_entropic(answer: Any) -> None:
    """answer(p, q, gamma) -> (N,): the entropy regularized Wasserstein term."""
    for gamma in (1.0, 0.3, 5.0):
        for case, p, q in _pairs():
            value = _call(answer, p, q, gamma)
            got = _tensor(value, (len(p.mean),), "return one number for each pair: sum over the last axis.")
            v, w, d = p.scale**2, q.scale**2, p.mean.shape[1]
            psi, shift = _entropic_reference(p.scale, q.scale, gamma), (p.mean - q.mean) ** 2
            cost = (shift + v + w - 2 * psi).sum(-1)
            entropy = (math.log(2 * math.pi * math.e) + 0.5 * torch.log(v * w - psi**2)).sum(-1)
            truth = gamma / 2 * cost - entropy
            mistakes = [
                (truth - gamma / 2 * shift.sum(-1), "the means are missing: this is the slip in the paper's summary."),
                (gamma / 2 * cost, "the entropy of the pair is missing."),
                (gamma / 2 * cost + entropy, "the entropy is subtracted: more of it makes the cost smaller."),
                (gamma * cost - entropy, "the cost is weighted by gamma / 2."),
                (
                    truth + d * math.log(2 * math.pi * math.e) / 2,
                    "the pair has two dimensions for each of z: ln(2 pi e).",
                ),
                (truth + d * math.log(2 * math.pi * math.e), "the constant ln(2 pi e) of the entropy is missing."),
                (gamma / 2 * (shift + v + w).sum(-1) - entropy, "the covariance enters the cost as well: - 2 psi."),
            ]
            other = "gamma / 2 times the expected squared distance, minus the entropy of the joint Gaussian."
            _compare(got, truth, f"gamma = {gamma:g}, {case}", mistakes, other)


@exercise(
    "smooth_encoders.beta",
    "at gamma = 0 the term WD is minus the two entropies. Which divergence is prior cross-entropy minus entropy?",
    "at x' = x both points have the same code, so the same divergence stands there how often?",
    learned="So the fair baseline for SE is the plain ELBO, and a part of what SE does is the doubled prior.",
)
def _check_beta(answer: Any) -> None:
    """answer: the weight on KL[q || prior] in the SE-ELBO at gamma = 0 and x' = x."""
    if answer is None or answer is ...:
        raise _Unanswered
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise _Wrong(f"The answer is a {type(answer).__name__}.", "give the number itself.")
    if answer == 1:
        raise _Wrong("You say 1, as in a VAE.", "there are two prior terms and two entropies; count both points.")
    if answer != 2:
        raise _Wrong(f"You say {answer:g}.", "write the three terms at gamma = 0 with q(z|x') = q(z|x), and collect.")


@exercise(
    "smooth_encoders.scale",
    "with both codes N(0, S) the cost is S + ln(2 pi) plus WD. Differentiate in S, or search.",
    "the derivative is 1 + gamma - (1 + u) / (2 S), u = sqrt(1 + 4 gamma² S²): where it vanishes, u is linear in S.",
    "(1 + gamma) / (1 + 2 * gamma)",
    learned="From 1, the prior's variance, at gamma = 0 down to 1/2: coupled codes lean on each other.",
)
def _check_scale(answer: Any) -> None:
    """answer(gamma) -> the variance S of an unused dimension at which prior terms and WD are least."""
    for gamma in (0.5, 1.0, 10.0):
        value = _call(answer, gamma)
        if not isinstance(value, int | float) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise _Wrong(f"Your function returned a {type(value).__name__}.", "return one number.")
        got, low, high = float(value), 1e-6, 4.0

        def slope(v: float, gamma: float = gamma) -> float:
            psi = float(_entropic_reference(*(torch.tensor([v], dtype=torch.float64).sqrt(),) * 2, gamma))
            return 1 + gamma - gamma * v / psi  # psi is optimal, so its own change costs nothing to first order

        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if slope(middle) > 0 else (middle, high)
        if math.isclose(got, low, rel_tol=1e-3):
            continue
        text = "set the derivative in S to zero; at gamma = 0 the answer is 1."
        if math.isclose(got, math.sqrt(low), rel_tol=1e-3):
            text = "this is the standard deviation: return the variance."
        elif math.isclose(got, 1.0):
            text = "1 is right only without coupling: the entropy of the pair grows more slowly than the two alone."
        raise _Wrong(f"For gamma = {gamma:g} you have {got:.4g}, right is {low:.4g}.", text)


@exercise(
    "smooth_encoders.select",
    "it is the attack of the last chapter with another distance to climb.",
    "the answer is an image: start at random, climb W2², project after each step, and return x'.",
    "climb w2(p.detach(), encoder(x_adv)).sum() by torch.autograd.grad and return x_adv.detach().",
    learned="x' is data for the outer step: no gradient passes through the search.",
)
def _check_select(answer: Any) -> None:
    """answer(encoder, x, eps, steps) -> x': images in the ball whose code is far from that of x."""
    encoder, eps, steps = _Linear(_random(80, 4, 12)), 0.1, 20
    x = 0.5 + 0.02 * _random(81, 6, 1, 3, 4)
    x[0] = 0.0
    value = _call(answer, encoder, x.clone(), eps, steps)
    if isinstance(value, Tensor) and value.ndim == 1:
        raise _Wrong("Your function returned one number for each image.", "return the images x', not their distance.")
    if isinstance(value, Tensor) and value.requires_grad:
        raise _Wrong("The images x' carry a gradient.", "x' is data for the outer step: detach it.")
    got = _tensor(value, x.shape, "return the images x', of the shape of x.")
    if ((got - x).abs() > eps + 1e-9).any():
        raise _Wrong(f"x' is up to {(got - x).abs().max():.3g} away.", "project back into the ball after each step.")
    if (got < 0).any() or (got > 1).any():
        raise _Wrong("x' has left [0, 1].", "clamp to [0, 1] as well.")

    def distance(x_: Tensor) -> Tensor:
        p, q = encoder(x), encoder(x_)
        return ((p.mean - q.mean).square() + (p.scale - q.scale).square()).sum(1).detach()

    shift = torch.rand(x.shape, dtype=torch.float64) * 2 - 1
    chance = distance((x + eps * shift.sign()).clamp(0, 1))
    reached = distance(got)
    if (reached < 1e-12).any():
        raise _Wrong("For some image the code has not moved.", "the gradient at x' = x is zero: start at random.")
    if reached.mean() < 1.5 * chance.mean():
        raise _Wrong(
            f"The codes move by {reached.mean():.3g} on average; random signs reach {chance.mean():.3g}.",
            "ascend: add step * sign(gradient), many steps long, and keep the moved x' from step to step.",
        )
