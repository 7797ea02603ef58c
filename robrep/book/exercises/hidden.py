"""What design tasks are judged on: classifiers that a seed draws, and a budget of calls.

An answer may run in another process, so whatever it gets is a module that can be pickled by its class's name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robrep.book.exercises.core import Wrong, attacked_images, call


class Budget(nn.Module):
    """A model that answers a number of calls, each for ``rows`` images or a part of them, and then refuses."""

    def __init__(self, model: nn.Module, calls: int, rows: int) -> None:
        super().__init__()
        self.model, self.calls, self.rows, self.spent = model, calls, rows, 0

    def forward(self, x: Tensor) -> Any:
        self.spent += len(x)
        if self.spent > self.calls * self.rows:
            raise RuntimeError(f"the budget of {self.calls} calls of the model is spent")
        return self.model(x)


def attack_within(answer: Any, calls: int, model: nn.Module, x: Tensor, *more: Any) -> Tensor:
    """The images that ``answer(model, x, *more)`` finds within a budget of calls; ``more`` ends with the radius.

    They are checked to be in the ball around ``x`` and in [0, 1].
    """
    given = [value.clone() if isinstance(value, Tensor) else value for value in (x, *more)]
    try:
        found = call(answer, Budget(model, calls, len(x)), *given)
    except Wrong as wrong:
        if "the budget of" not in wrong.seen:
            raise
        hint = f"every call of the model on all images counts, with a gradient or without: {calls} in all."
        raise Wrong(wrong.seen, hint) from None
    return attacked_images(found, x, more[-1] + ROUNDING)


def averaged_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int = 20, step: float = 0.125, samples: int = 1
) -> Tensor:
    """PGD on the cross-entropy in the l-infinity ball, from a random start: the reference of design tasks.

    Each gradient averages the probabilities of ``samples`` calls; a step is ``step`` times eps long.
    """
    u = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        u = u.detach().requires_grad_()
        log_p = torch.stack([-cross_entropy(model(u), y) for _ in range(samples)]).logsumexp(0)
        (g,) = torch.autograd.grad(-log_p.sum(), u)
        u = (u + step * eps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return u.detach()


def share_right(model: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> float:
    """Accuracy in [0, 1]; of a model that draws noise, by the probabilities averaged over ``draws`` calls."""
    with torch.no_grad():
        p = torch.stack([model(x).softmax(1) for _ in range(draws)]).mean(0)
    return (p.argmax(1) == y).double().mean().item()
