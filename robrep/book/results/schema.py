"""What the JSON files of recorded runs and published numbers must hold, and the checks that say what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 1
SCALES = ("smoke", "demo", "lite", "full")
SPLITS = ("train", "val", "test")
# The least and the largest value of a unit; a unit that is not named here has no bounds
RANGES = {"fraction": (0, 1), "%": (0, 100), **dict.fromkeys(("s", "min", "h", "MiB", "GiB"), (0, math.inf))}


class _Field(NamedTuple):
    """What one field of a JSON file must be: its types, whether it may be missing, whether it may be null."""

    types: tuple[type, ...]
    optional: bool = False
    null: bool = False


_TEXT, _COUNT, _NUMBER = _Field((str,)), _Field((int,)), _Field((int, float))
_MAYBE_TEXT, _MAYBE_NUMBER = _Field((str,), True), _Field((int, float), True)
METRIC = {
    "value": _NUMBER,
    "low": _MAYBE_NUMBER,
    "high": _MAYBE_NUMBER,
    "n": _Field((int,), True),
    "split": _MAYBE_TEXT,
    "unit": _MAYBE_TEXT,
    "over": _MAYBE_TEXT,
    "attack": _MAYBE_TEXT,
}
DATA = {
    "name": _TEXT,
    "split": _TEXT,
    "n_train": _COUNT,
    "n_test": _COUNT,
    "note": _TEXT,
    "fingerprint": _TEXT,
}
RECORD = {
    "schema": _COUNT,
    "chapter": _TEXT,
    "run": _TEXT,
    "scale": _TEXT,
    "dataset": _TEXT,
    "row": _TEXT,
    "variant": _TEXT,
    "seed": _COUNT,
    "settings": _Field((dict,)),
    "read": _Field((list,), True),
    "data": _Field((dict,)),
    "metrics": _Field((dict,)),
    "curves": _Field((dict,)),
    "hardware": _Field((dict,)),
    "versions": _Field((dict,)),
    "commit": _Field((str,), null=True),
    "code": _TEXT,
    "date": _TEXT,
    "minutes": _NUMBER,
    "weights": _Field((str,), null=True),
    "weights_sha256": _Field((str,), null=True),
}
PAPER = {
    "schema": _COUNT,
    "paper": _TEXT,
    "title": _TEXT,
    "spread_meaning": _TEXT,
    "values": _Field((list,)),
}
VALUE = {
    "table": _TEXT,
    "row": _TEXT,
    "column": _TEXT,
    "value": _NUMBER,
    "decimals": _COUNT,
    "spread": _Field((int, float), null=True),
    "unit": _TEXT,
    "dataset": _TEXT,
    "threat": _Field((dict,), null=True),
    "labels": _Field((int, str)),
    "head": _TEXT,
    "note": _TEXT,
    "match": _Field((dict,), True),
}
THREAT = {"norm": _TEXT, "eps": _NUMBER}
MATCH = {
    **{name: _TEXT for name in ("chapter", "row", "metric")},
    **{name: _MAYBE_TEXT for name in ("variant", "options", "scale")},
}


def check_fields(facts: Any, schema: Mapping[str, _Field], where: str, path: str) -> None:
    """Refuse ``facts`` unless it is a mapping with just the fields of ``schema``; ``where`` names the file."""
    inside = path or "the whole"
    if not isinstance(facts, dict):
        raise ValueError(f"{where}: {inside} is {type(facts).__name__}, expected an object")
    dot = f"{path}." if path else ""
    for name, wanted in schema.items():
        if name not in facts:
            if not wanted.optional:
                raise ValueError(f"{where}: the field {dot}{name} is missing")
            continue
        value = facts[name]
        if value is None and wanted.null:
            continue
        kinds = " or ".join(t.__name__ for t in wanted.types) + (" or null" if wanted.null else "")
        if not isinstance(value, wanted.types) or isinstance(value, bool):
            raise ValueError(f"{where}: {dot}{name} is {value!r}, expected {kinds}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {dot}{name} is {value}, expected a finite number")
    if unknown := sorted(set(facts) - set(schema)):
        raise ValueError(f"{where}: {dot}{unknown[0]} is no field of this schema")


def check_record(facts: Any, where: str) -> None:
    """Refuse a record that breaks the schema, with a ValueError that names the file and the field."""
    check_schema_number(facts, where)
    check_fields(facts, RECORD, where, "")
    if facts["scale"] not in SCALES:
        raise ValueError(f"{where}: scale is {facts['scale']!r}, expected one of {', '.join(SCALES)}")
    check_least(facts, {"seed": 0, "minutes": 0}, where, "")
    check_fields(facts["data"], DATA, where, "data")
    check_least(facts["data"], {"n_train": 0, "n_test": 1}, where, "data.")
    if facts["data"]["split"] not in SPLITS:
        raise ValueError(f"{where}: data.split is {facts['data']['split']!r}, expected one of {', '.join(SPLITS)}")
    if facts["dataset"] != facts["data"]["name"]:
        raise ValueError(f"{where}: dataset is {facts['dataset']!r}, but data.name is {facts['data']['name']!r}")
    if not facts["metrics"]:
        raise ValueError(f"{where}: metrics is empty, expected at least one number")
    for name, metric in facts["metrics"].items():
        check_metric(metric, where, f"metrics.{name}")
    for name, curve in facts["curves"].items():
        _check_curve(curve, where, f"curves.{name}")
    if (facts["weights"] is None) != (facts["weights_sha256"] is None):
        raise ValueError(f"{where}: weights and weights_sha256 must both be given or both be null")
    if facts["weights"] is not None and Path(facts["weights"]).name != facts["weights"]:
        raise ValueError(f"{where}: weights is {facts['weights']!r}, expected the name of a file beside the record")


def check_least(facts: Mapping[str, Any], least: Mapping[str, int], where: str, dot: str) -> None:
    """Refuse a number below its lower bound."""
    for name, bound in least.items():
        if facts[name] < bound:
            raise ValueError(f"{where}: {dot}{name} is {facts[name]}, expected at least {bound}")


def check_metric(facts: Any, where: str, path: str) -> None:
    """Refuse a metric whose fields do not fit: a number outside its unit's range or its interval, half an interval."""
    check_fields(facts, METRIC, where, path)
    dot = f"{path}." if path else ""
    if ("low" in facts) != ("high" in facts):
        raise ValueError(f"{where}: {dot}low and {dot}high must both be given, or neither")
    if "low" in facts and not facts["low"] <= facts["value"] <= facts["high"]:
        came = f"low {facts['low']}, value {facts['value']}, high {facts['high']}"
        raise ValueError(f"{where}: {path or 'the interval'} is {came}, expected them in this order")
    check_range(facts, ("value", "low", "high"), where, dot)
    check_least({"n": 1} | facts, {"n": 1}, where, dot)


def check_range(facts: Mapping[str, Any], names: Sequence[str], where: str, dot: str) -> None:
    """Refuse a number outside the range of its unit."""
    least, most = RANGES.get(facts.get("unit", ""), (-math.inf, math.inf))
    for name in names:
        if name in facts and not least <= facts[name] <= most:
            expected = f"{least} to {most}" if most < math.inf else f"at least {least}"
            raise ValueError(f"{where}: {dot}{name} is {facts[name]} of unit {facts['unit']}, expected {expected}")


def _check_curve(curve: Any, where: str, path: str) -> None:
    """A curve: lists x and y (and low, high) of one length, finite; anything else in it is a label (text)."""
    if not isinstance(curve, dict) or not {"x", "y"} <= set(curve):
        raise ValueError(f"{where}: {path} is no curve, expected an object with the lists x and y")
    for name, values in curve.items():
        if name not in ("x", "y", "low", "high"):
            if not isinstance(values, str):
                raise ValueError(
                    f"{where}: {path}.{name} is {values!r}, expected text (only x, y, low, high are lists)"
                )
            continue
        if not isinstance(values, list) or len(values) != len(curve["x"]):
            raise ValueError(f"{where}: {path}.{name} must be a list as long as {path}.x")
        numbers = [v for v in values if not isinstance(v, str)] if name == "x" else values
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
            raise ValueError(f"{where}: {path}.{name} holds something other than finite numbers")
    for below, above in (("low", "y"), ("y", "high"), ("low", "high")):
        if below in curve and above in curve and any(a > b for a, b in zip(curve[below], curve[above], strict=True)):
            raise ValueError(f"{where}: {path}.{below} is above {path}.{above} somewhere, expected low <= y <= high")


def check_schema_number(facts: Any, where: str) -> None:
    if isinstance(facts, dict) and "schema" in facts and facts["schema"] != SCHEMA:
        raise ValueError(f"{where}: schema is {facts['schema']!r}, this robrep reads schema {SCHEMA}")


def read_json(path: Path) -> Any:
    """The JSON in ``path``; a ValueError names the file if it is cut short, repeats a key, or holds NaN or Infinity."""

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):  # NaN, Infinity, and 1e999, which JSON allows
            raise ValueError(f"{path} holds {text}, expected finite numbers")
        return number

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for key, value in pairs:
            if key in facts:
                raise ValueError(f"{path} holds the key {key!r} twice in one object")
            facts[key] = value
        return facts

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=finite, parse_float=finite, object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid JSON (cut short?): {error}") from None


def plain(value: Any, path: str) -> Any:
    """``value`` with tuples as lists and zero-dimensional arrays as numbers; refuses what JSON cannot hold."""
    if hasattr(value, "item") and not isinstance(value, Mapping) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}, expected a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, Sequence) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0):
        items = value.tolist() if hasattr(value, "tolist") else value
        return [plain(v, f"{path}[{i}]") for i, v in enumerate(items)]
    raise TypeError(
        f"{path} is a {type(value).__name__}, expected a number, text, list or mapping (its repr() will do)"
    )
