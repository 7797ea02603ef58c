"""The parameters of a chapter, checked in one place for papermill, ``reproduce``, ``make`` and a plan of runs.

A parameter arrives as text (a command line, papermill's ``-r``), as what YAML makes of it (``no``, a list in place of a
tuple), or as a Python value. Each becomes the value that is meant, or one sentence names it before anything runs.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from robrep.book.results.schema import SCALES
from robrep.checks import one_of

_WORDS = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}


class ParameterError(ValueError):
    """A chapter's parameter cannot be meant as it is; the message is ready to be shown."""


def check(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters as the values that are meant.

    Args:
        given: name to value or text.
        known: every parameter of the chapter, with its default, whose type the value takes.

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    return {one_of("parameter", name, known): convert(name, value, known[name]) for name, value in given.items()}


def checked(namespace: Mapping[str, Any], table: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The parameters in a chapter's namespace as the values that are meant; where records go, they can be written.

    An :class:`~robrep.book.experiment.Experiment` begins with it, since papermill writes into a notebook whatever it is
    given.

    Args:
        namespace: where the parameters are looked for, by the names that chapters give them.
        table: the chapter's settings, name to its values at all scales; ``SETTINGS`` may name no others, and takes
            values of the same kinds.

    Raises:
        ParameterError: a value that does not fit, by name, or a name that is nearly a parameter's.
        OSError: the run will be recorded, and its record cannot be written; the message names the way out.
    """
    from robrep.book.results import check_writable

    try:
        found = _checked(namespace, table)
    except ValueError as error:
        raise ParameterError(error) from None
    if not found.get("RECORDED"):
        check_writable()
    return found


def _checked(namespace: Mapping[str, Any], table: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    plain = (bool, int, float, str, dict)
    for name in (name for name, value in namespace.items() if name.isupper() and isinstance(value, plain)):
        if name not in _RULES and (close := difflib.get_close_matches(name, _RULES, 1, 0.75)):
            raise ValueError(f"parameter is {name!r}, which no chapter has (did you mean {close[0]!r}?)")
    found = {name: rule(name, namespace[name]) for name, rule in _RULES.items() if name in namespace}
    for name, value in found.get("SETTINGS", {}).items():
        found["SETTINGS"][name] = like(f"SETTINGS[{name!r}]", value, table[one_of("SETTINGS", name, table)])
    return found


def convert(name: str, value: Any, default: Any) -> Any:
    """One parameter as the value that is meant: by its name, if all chapters share it, else of its default's type.

    Raises:
        ValueError: it does not fit.
    """
    rules: dict[type, Callable[[str, Any], Any]] = {
        bool: _truth, int: _integer, float: _number, dict: _mapping, tuple: _sequence, list: _sequence
    }  # fmt: skip
    return _RULES.get(name, rules.get(type(default), _text))(name, value)


def _read(value: Any) -> Any:
    """Text as the Python or JSON value that it spells; anything else, and other text, as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of numpy or torch
        return value.item()
    if not isinstance(value, str):
        return value
    for reader in (ast.literal_eval, json.loads):
        try:
            return reader(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def _refuse(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name} is {value!r}, expected {expected}")


def _truth(name: str, value: Any) -> bool:
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise _refuse(name, value, "yes or no")
    return found


def _integer(name: str, value: Any) -> int:
    found = _read(value)
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise _refuse(name, value, "an integer")
    return int(found)


def _natural(name: str, value: Any) -> int:
    found = _read(value)
    if isinstance(found, bool) or not isinstance(found, Integral) or found < 0:
        raise _refuse(name, value, "an integer of at least 0")
    return int(found)


def _number(name: str, value: Any) -> float:
    found = _read(value)
    if isinstance(found, bool) or not isinstance(found, Real) or not math.isfinite(found):
        raise _refuse(name, value, "a finite number")
    return float(found)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "text")
    return value


def _mapping(name: str, value: Any) -> dict[str, Any]:
    found = _read(value) if value != "" else {}
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise _refuse(name, value, "a mapping from names to values, such as {'epochs': 2}")
    return dict(found)


def _sequence(name: str, value: Any) -> tuple[Any, ...]:
    found = _read(value)
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise _refuse(name, value, "a list such as [0, 1, 2]")
    return _tuple(found)


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    found = _read(value)
    many = found if isinstance(found, list | tuple | range) else [found]
    if not many:
        raise _refuse(name, value, "at least one seed")
    return tuple(_natural(f"{name}[{i}]", seed) for i, seed in enumerate(many))


def _scale(name: str, value: Any) -> str:
    return one_of(name, value, SCALES)


def share_of(value: str) -> tuple[int, int]:
    """ "2/8" as (2, 8): the second of eight parts."""
    part, parts = value.split("/")
    return int(part), int(parts)


def _part(name: str, value: Any) -> str:
    text = str(value).replace(" ", "")
    if not re.fullmatch(r"[1-9]\d*/[1-9]\d*", text) or share_of(text)[0] > share_of(text)[1]:
        raise _refuse(name, value, "the part of all runs to make, such as 1/4")
    return text


def _names(name: str, value: Any) -> str:
    many = value if isinstance(value, list | tuple) else [value]
    return ",".join(part.strip() for each in many for part in _text(name, each).split(","))


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def like(name: str, value: Any, line: Sequence[Any]) -> Any:
    """A setting of one of the kinds that its line in the table holds.

    Raises:
        ValueError: it is of another kind.
    """
    kinds = {float if isinstance(v, Real) and not isinstance(v, bool) else type(v) for v in line}
    found = _tuple(value if kinds == {str} else _read(value))
    if kinds == {bool}:
        return _truth(name, value)
    kind = float if isinstance(found, Real) and not isinstance(found, bool) else type(found)
    if kind not in kinds or (kind is float and not math.isfinite(found)):
        shown = " or ".join(dict.fromkeys(repr(v) for v in line))
        raise _refuse(name, value, f"something like {shown}")
    return found


# What the parameters mean that chapters share
_RULES: dict[str, Callable[[str, Any], Any]] = {
    "SCALE": _scale,
    "DATASET": _text,
    "SEED": _natural,
    "SEEDS": _seeds,
    "ROWS": _names,
    "SETTINGS": _mapping,
    "SWEEP": _truth,
    "RECORDED": _truth,
    "PART": _part,
}
