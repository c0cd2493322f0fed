"""Owns the machinery of configurations: typed, bounded keys, read strictly from plain tables.

It must not know a single key; the sections that it reads are dataclasses made of `setting` fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KIND_NAMES: Mapping[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a string",
    tuple: "a list of numbers",
}


def setting(
    default: object,
    doc: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with its meaning and bounds (`low`/`high` allowed, `above`/`below` not)."""
    bounds = {"low": low, "above": above, "high": high, "below": below, "choices": choices}
    return field(default=default, metadata={"doc": doc, **bounds})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, what was there, and what may be there."""

    key: str
    value: object
    expected: str
    nearest: str | None = None

    def __str__(self) -> str:
        hint = f"; the nearest known key is {self.nearest}" if self.nearest else ""
        return f"{self.key} = {shown(self.value)}: expected {self.expected}{hint}"


def read(root: Any, raw: Mapping[str, Any], problems: list[Problem]) -> Any:
    """A `root` from the table `raw`, with defaults where a value is wrong; adds to `problems`."""
    return _section(root, root, raw, "", problems)


def describe(root: type) -> dict[str, dict[str, Any]]:
    """Every dotted key of `root` with type, default, bounds, choices and meaning, as JSON values.

    Bounds: `low` and `high` are allowed values, `above` and `below` are not; null means unbounded.
    """
    entries: dict[str, dict[str, Any]] = {}
    for key, kind, spec in _leaves(root, ""):
        default = spec.default
        entries[key] = {
            "type": _kind_name(kind),
            "optional": _optional(kind),
            "default": list(default) if isinstance(default, tuple) else default,
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in spec.metadata.items()
                if name != "doc"
            },
            "description": spec.metadata["doc"],
        }
    return entries


def shown(value: object) -> str:
    """The value as JSON, for a message; cut when it is long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def _bare(kind: Any) -> Any:
    """The type without "or None"; `tuple` for a list of numbers."""
    if _optional(kind):
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return typing.get_origin(kind) or kind


def _kind_name(kind: Any) -> str:
    bare = _bare(kind)
    return "list[float]" if bare is tuple else {str: "string"}.get(bare, bare.__name__)


def _leaves(section: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(section)
    for spec in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from _leaves(hints[spec.name], f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", hints[spec.name], spec


def _section(
    root: type, section: Any, raw: Mapping[str, Any], prefix: str, problems: list[Problem]
) -> Any:
    hints = typing.get_type_hints(section)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if name not in hints:
            problems.append(Problem(key, value, "a known key", _nearest(root, key)))
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                values[name] = _section(root, hints[name], value, f"{key}.", problems)
            else:
                problems.append(Problem(key, value, "a table of keys"))
        else:
            spec = next(spec for spec in dataclasses.fields(section) if spec.name == name)
            parsed, expected = _value(value, hints[name], spec.metadata)
            if expected:
                problems.append(Problem(key, value, expected))
            else:
                values[name] = parsed
    return section(**values)


def _value(value: Any, kind: Any, bounds: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The parsed value and None, or anything and what was expected instead."""
    expected = _expectation(kind, bounds)
    if value is None:
        return None, None if _optional(kind) else expected
    bare = _bare(kind)
    if bare is tuple:
        if not isinstance(value, list | tuple):
            return value, expected
        items = [_value(item, float, bounds) for item in value]
        return tuple(item for item, _ in items), expected if any(e for _, e in items) else None
    if isinstance(value, bool) is not (bare is bool):
        return value, expected
    if bare is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, bare):
        return value, expected
    return value, None if _within(value, bounds) else expected


def _within(value: Any, bounds: Mapping[str, Any]) -> bool:
    if bounds["choices"] is not None:
        return value in bounds["choices"]
    if isinstance(value, bool | str):
        return True
    low, above, high, below = (bounds[name] for name in ("low", "above", "high", "below"))
    return (
        math.isfinite(value)
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def _expectation(kind: Any, bounds: Mapping[str, Any]) -> str:
    if bounds["choices"] is not None:
        return "one of " + ", ".join(map(repr, bounds["choices"]))
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    limits = [
        f"{word} {bounds[name]:g}" for name, word in words.items() if bounds[name] is not None
    ]
    return " ".join([KIND_NAMES[_bare(kind)], " and ".join(limits)]).strip()


def _nearest(root: type, key: str) -> str | None:
    known = [known for known, _, _ in _leaves(root, "")]
    last = key.rsplit(".", 1)[-1]
    same_name = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(
        key, same_name or known, n=1, cutoff=0.0 if same_name else 0.6
    )
    return close[0] if close else None
