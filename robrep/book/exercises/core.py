"""What the checks of all chapters share: registration, verdicts, hints, and tools that compare answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from robrep.checks import one_of
from robrep.gaussians import Gaussian
from robrep.progress import printable


class Wrong(Exception):
    """An answer is wrong: what was seen, and a hint."""

    def __init__(self, seen: str, hint: str) -> None:
        super().__init__(seen)
        self.seen, self.hint = seen, hint


class Unanswered(Exception):
    """The reader's function returned None, as ``...`` does; or it is still the code that was given.

    The text, if there is one, says what the given code does wrong, without a hint: a hint comes after an attempt.
    """


KINDS = ("warm-up", "design", "interpret", "bug")
WORDS = 15  # that an answer in prose has at least


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: chapter and exercise, such as "vae_urkle.wilson".
        check: called with the answer, and with a seed if ``kind`` is "design"; returns if the answer is right, else
            raises with a hint. It may return a sentence, which is printed with the pass.
        hints: from gentle to nearly the solution.
        learned: a sentence to end on when it is passed.
        kind: "warm-up" (the equation in code), "design" (judged on models or data that the seed draws and the reader
            has not seen), "interpret" (a figure, read in prose, which a teacher judges by a rubric) or "bug" (a
            plausible implementation to be mended).
    """

    name: str
    check: Callable[..., str | None]
    hints: tuple[str, ...]
    learned: str = ""
    kind: str = "warm-up"


@dataclass(frozen=True)
class Verdict:
    """What ``check`` found; true if the answer passed or was noted.

    Attributes:
        name: the exercise.
        state: "passed", "wrong", "empty" (the reader's function returned nothing, or the code is still the given one),
            or "noted" (an answer in prose, which is not judged here).
        message: the line that was printed.
    """

    name: str
    state: str
    message: str

    def __bool__(self) -> bool:
        return self.state in ("passed", "noted")

    @property
    def answered(self) -> bool:
        return self.state != "empty"

    def _ipython_display_(self) -> None:
        """Show nothing: ``check`` has printed its line already."""


EXERCISES: dict[str, Exercise] = {}
_attempted: set[str] = set()  # the exercises whose hints are open


def exercise(name: str, *hints: str, learned: str = "", kind: str = "warm-up") -> Callable[[Callable], Callable]:
    """Register the decorated check as exercise ``name`` with at least one hint."""

    def register(function: Callable[..., str | None]) -> Callable[..., str | None]:
        EXERCISES[name] = Exercise(name, function, hints, learned, one_of("kind", kind, KINDS))
        return function

    return register


def interpret(name: str, *hints: str) -> None:
    """Register an exercise that asks for prose about a figure: two or three sentences, judged by a rubric."""

    def noted(answer: Any) -> None:
        if answer is None or answer is ... or answer.strip(" .\n") == "":
            raise Unanswered
        if (words := len(answer.split())) < WORDS:
            raise Wrong(
                f"Your answer has {words} words.", "say what you see and why it is so, in two or three sentences."
            )

    exercise(name, *hints, kind="interpret")(noted)


def check(name: str, answer: Any, *, seed: int = 0) -> Verdict:
    """Check an answer and print one line: passed, or the first thing that is wrong with a hint.

    There is no hint before the first attempt: an exercise that is not answered is only named.

    Args:
        name: the exercise, such as "vae_urkle.wilson".
        answer: the reader's function (or number, or text, where the exercise asks for one).
        seed: draws the models or data that judge a design task. A grader takes another one than the chapters.

    Returns:
        The verdict. The global random state is left as it was.

    Raises:
        ValueError: no such exercise.
    """
    task = EXERCISES[one_of("exercise", name, EXERCISES)]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = task.check(answer, seed) if task.kind == "design" else task.check(answer)
        if task.kind == "interpret":
            state, message = "noted", f"✎ {name}: noted. Compare it with the model answer, point by point."
        else:
            state, message = "passed", " ".join(filter(None, [f"✓ {name}: passed.", found, task.learned]))
    except Unanswered as unanswered:
        state, message = "empty", f"… {name}: not answered yet. {unanswered}".rstrip()
    except Wrong as wrong:
        state, message = "wrong", f"✗ {name}: not yet. {wrong.seen} Hint: {wrong.hint}"
    if state != "empty":
        _attempted.add(name)
    message = printable(message)
    print(message)
    return Verdict(name, state, message)


def hint(name: str, number: int = 1) -> None:
    """Print one of an exercise's hints, once an answer has been checked; later ones say more.

    Raises:
        ValueError: no such exercise, or no such hint.
    """
    hints = EXERCISES[one_of("exercise", name, EXERCISES)].hints
    if name not in _attempted:
        print(printable(f"{name}: the hints open after your first attempt. Check an answer, right or wrong."))
        return
    if not 1 <= number <= len(hints):
        raise ValueError(f"number is {number}, but {name} has hints 1 to {len(hints)}")
    print(printable(f"Hint {number} of {len(hints)}: {hints[number - 1]}"))


# --- tools for checks -------------------------------------------------------------------------------------------------


def call(answer: Any, *given: Any) -> Any:
    """The answer's value; None means unanswered, an error becomes a hint instead of a traceback."""
    if answer is None or answer is ...:
        raise Unanswered
    if not callable(answer):
        raise Wrong(f"The answer is a {type(answer).__name__}.", "pass the function itself, without calling it.")
    try:
        value = answer(*given)
    except Exception as error:  # whatever a reader's code can raise
        raise Wrong(
            f"Your function raised {type(error).__name__}: {error}.",
            f"it is called with {len(given)} arguments, tensors in float64; see the exercise's text for their shapes.",
        ) from error
    if value is None or value is ...:
        raise Unanswered
    return value


def returned(value: Any, shape: Sequence[int], hint: str) -> Tensor:
    """The value as a detached float64 tensor of the expected shape."""
    if not isinstance(value, Tensor):
        raise Wrong(f"Your function returned a {type(value).__name__}, expected a tensor.", hint)
    if value.shape != torch.Size(shape):
        raise Wrong(f"The result has shape {tuple(value.shape)}, expected {tuple(shape)}.", hint)
    return value.detach().double()


def attacked_images(value: Any, x: Tensor, eps: float, name: str = "x") -> Tensor:
    """The value as images that an attack may return: shaped like ``x``, detached, within eps of it, in [0, 1]."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise Wrong(f"The images {name}' carry a gradient.", f"{name}' is data for the outer step: detach it.")
    got = returned(value, x.shape, f"return the images {name}', of the shape of {name}.")
    if ((got - x).abs() > eps + 1e-9).any():
        far = f"{name}' is up to {(got - x).abs().max():.3g} away."
        raise Wrong(far, "project back into the ball after each step.")
    if (got < 0).any() or (got > 1).any():
        raise Wrong(f"{name}' has left [0, 1].", "clamp to [0, 1] as well.")
    return got


def one_number(value: Any) -> Tensor:
    """The value, a number or a tensor that holds one, as a float64 tensor of shape (1,)."""
    if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
        raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number.")
    return torch.tensor([float(value)], dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def compare(got: Tensor, truth: Tensor, case: str, mistakes: Sequence[tuple[Tensor, str]], other: str) -> None:
    """Pass if ``got`` is the truth; else name the first known mistake that gives what was got."""
    if close(got, truth):
        return
    at = int((got - truth).abs().nan_to_num(torch.inf).flatten().argmax())
    seen = f"For {case} you have {got.flatten()[at]:.6g} where {truth.flatten()[at]:.6g} is right."
    raise Wrong(seen, next((text for wrong, text in mistakes if close(got, wrong)), other))


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL[p || q] in each dimension, by torch.distributions."""
    return kl_divergence(Normal(p.mean, p.scale), Normal(q.mean, q.scale))


class LinearGaussian(nn.Module):
    """A Gaussian encoder with mean W x and unit scale: KL[p(z|x) || p(z|x')] is |W (x' - x)|^2 / 2."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Gaussian:
        mean = x.flatten(1) @ self.weight.T
        return Gaussian(mean, torch.ones_like(mean))
