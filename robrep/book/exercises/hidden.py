"""What design tasks are judged with: a budget of calls.

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
    return attacked_images(found, x, more[-1])
