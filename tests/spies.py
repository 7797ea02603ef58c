"""What was called, with what: for tests that hold a chapter's settings to what runs."""

from __future__ import annotations

from typing import Any

import pytest

from robrep.attacks import APGD, PGD


def attacked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, int, float]]:
    """Kind, steps and radius of every attack that is made from now on."""
    seen: list[tuple[type, int, float]] = []
    for kind in (PGD, APGD):

        def spy(self: Any, objective: Any, x: Any, threat: Any, *given: Any, real: Any = kind.__call__, **options: Any):
            seen.append((type(self), self.steps, threat.eps))
            return real(self, objective, x, threat, *given, **options)

        monkeypatch.setattr(kind, "__call__", spy)
    return seen


def spied(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[dict[str, Any]]:
    """The options of every call of a function, in a module or a chapter's names, and what was ``given`` beside them."""
    calls: list[dict[str, Any]] = []
    real = where[name] if isinstance(where, dict) else getattr(where, name)

    def spy(*args: Any, **options: Any) -> Any:
        calls.append(options | {"given": args})
        return real(*args, **options)

    (monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr)(where, name, spy)
    return calls
