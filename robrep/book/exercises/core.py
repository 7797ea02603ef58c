"""What the checks of all chapters share: registration, verdicts, hints, and tools that compare answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    except Unanswered:
        answered, message = False, f"… {name}: not answered yet. Hint: {task.hints[0]}"
    except Wrong as wrong:
        message = f"✗ {name}: not yet. {wrong.seen} Hint: {wrong.hint}"
    message = printable(message)
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
