"""Parameters, their scales and levels, and points in canonical form with a hash.

It must not know that the numbers are learning rates, or what a trial costs.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Value = bool | int | float | str
Scale = Literal["linear", "log"]


def canonical_float(value: float) -> float:
    """Round to 12 significant digits, so that 0.1 + 0.2 and 0.3 are one level, and -0.0 is 0.0."""
    return float(f"{value:.12g}") + 0.0


def _is_finite(value: float) -> bool:
    """Also of whole numbers that no float can hold: they are as good as infinite."""
    return -math.inf < value < math.inf and abs(value) <= sys.float_info.max


def show_value(value: Value) -> str:
    """A value as people write it: 0.003, 32, on, polar_express."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Float:
    """A real parameter on [low, high].

    `levels` is the number of levels that stage 2 gives it when it varies. `baseline` is the value a
    point has where nothing else is said. `when` lists, for other parameters, the values that make
    this one active.
    """

    name: str
    low: float
    high: float
    scale: Scale = "linear"
    levels: int = 5
    baseline: float | None = None
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def coerce(self, value: object) -> float:
        """The value as this parameter stores it; ValueError says what is allowed."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise ValueError(
                f"got {value!r}, expected a finite number in [{self.low}, {self.high}]"
            )
        number = canonical_float(float(value))
        if not self.low <= number <= self.high:
            raise ValueError(f"got {value!r}, expected a number in [{self.low}, {self.high}]")
        return number

    def position(self, value: Value) -> float:
        """Where the value stands on the declared scale (the logarithm for `log`)."""
        return math.log(float(value)) if self.scale == "log" else float(value)

    def value_at(self, position: float) -> float:
        """The value at a position on the declared scale, clipped to the range."""
        value = math.exp(position) if self.scale == "log" else position
        return canonical_float(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Integer:
    """A whole-number parameter on [low, high] in steps of `step` counted from `low`."""

    name: str
    low: int
    high: int
    step: int = 1
    scale: Scale = "linear"
    levels: int = 5
    baseline: int | None = None
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def coerce(self, value: object) -> int:
        """The value as this parameter stores it; ValueError says what is allowed."""
        allowed = f"a whole number in [{self.low}, {self.high}]"
        if self.step != 1:
            allowed += f" in steps of {self.step} from {self.low}"
        whole = isinstance(value, int | float) and _is_finite(value) and value == int(value)
        if isinstance(value, bool) or not whole:
            raise ValueError(f"got {value!r}, expected {allowed}")
        number: int = int(value)  # type: ignore[call-overload]
        if not self.low <= number <= self.high or (number - self.low) % self.step:
            raise ValueError(f"got {value!r}, expected {allowed}")
        return number

    def position(self, value: Value) -> float:
        """Where the value stands on the declared scale (the logarithm for `log`)."""
        return math.log(float(value)) if self.scale == "log" else float(value)

    def value_at(self, position: float) -> int:
        """The nearest allowed value to a position on the declared scale."""
        value = math.exp(position) if self.scale == "log" else position
        steps: int = round((min(max(value, self.low), self.high) - self.low) / self.step)
        return self.low + self.step * min(steps, (self.high - self.low) // self.step)


@dataclass(frozen=True)
class Categorical:
    """A parameter with a short list of unordered choices."""

    name: str
    choices: tuple[Value, ...]
    baseline: Value | None = None
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def coerce(self, value: object) -> Value:
        """The choice equal to the value; ValueError lists the choices."""
        for choice in self.choices:
            if type(choice) is type(value) and choice == value:
                return choice
        raise ValueError(f"got {value!r}, expected one of {', '.join(map(repr, self.choices))}")


@dataclass(frozen=True)
class Bool:
    """A parameter that is on or off."""

    name: str
    baseline: bool | None = None
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def choices(self) -> tuple[bool, bool]:
        """Off, then on."""
        return (False, True)

    def coerce(self, value: object) -> bool:
        """The value itself; ValueError when it is not a truth value."""
        if not isinstance(value, bool):
            raise ValueError(f"got {value!r}, expected true or false")  # noqa: TRY004
        return value


Parameter = Float | Integer | Categorical | Bool
NUMERIC = (Float, Integer)

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


class Point(Mapping[str, Value]):
    """One value per active parameter: immutable, ordered by name, hashable, with a stable id.

    Build points with `Space.point`, which coerces values and drops inactive parameters; two points
    are equal exactly when their canonical JSON is.
    """

    __slots__ = ("_values", "id")

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(sorted(values.items()))
        self.id = hashlib.sha256(_CANONICAL.encode(self._values).encode()).hexdigest()[:12]

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, Value]:
        """Names with values: the inherited view looks each one up, and is read for every trial."""
        return self._values.items()

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.id == self.id

    def __repr__(self) -> str:
        return f"Point({self.show()})"

    def show(self, names: tuple[str, ...] | None = None) -> str:
        """`lr=0.003 batch=32`: the last part of each dotted name, for the named parameters."""
        chosen = self._values if names is None else [n for n in names if n in self._values]
        return " ".join(f"{n.rsplit('.', 1)[-1]}={show_value(self._values[n])}" for n in chosen)


@dataclass(frozen=True)
class Space:
    """The parameters of a study by dotted name."""

    parameters: Mapping[str, Parameter]

    def active(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether a parameter counts here: its `when` holds, and the parameters in it count too."""
        for other, allowed in self.parameters[name].when.items():
            if (
                other not in values
                or values[other] not in allowed
                or not self.active(other, values)
            ):
                return False
        return True

    def point(self, values: Mapping[str, object]) -> Point:
        """Canonical point from raw values.

        Raises:
            KeyError: a name that is not in the space.
            ValueError: a value outside its parameter, or an active parameter without a value; the
                message starts with the parameter's name.
        """
        coerced: dict[str, Value] = {}
        for name, value in values.items():
            try:
                coerced[name] = self.parameters[name].coerce(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        missing = [n for n in self.parameters if n not in coerced and self.active(n, coerced)]
        if missing:
            raise ValueError(f"{missing[0]}: has no value here and no baseline")
        return Point({n: v for n, v in coerced.items() if self.active(n, coerced)})

    def short_name(self, name: str) -> str:
        """The shortest tail of a dotted name that no other parameter shares: `lr`, or `muon.lr`."""
        parts = name.split(".")
        for length in range(1, len(parts)):
            tail = ".".join(parts[-length:])
            if not any(n != name and f".{n}".endswith(f".{tail}") for n in self.parameters):
                return tail
        return name

    def show(self, values: Mapping[str, Value]) -> str:
        """`lr=0.003 polar_express variance_reduction`: short, in the order given.

        A word stands for itself, and what is on for its name.
        """
        shown = []
        for name, value in values.items():
            short = self.short_name(name)
            if isinstance(value, str):
                shown.append(value)
            else:
                shown.append(short if value is True else f"{short}={show_value(value)}")
        return " ".join(shown)

    def baseline(self) -> dict[str, Value]:
        """The declared baseline values, by name; parameters without one are absent."""
        found = {name: parameter.baseline for name, parameter in self.parameters.items()}
        return {name: value for name, value in found.items() if value is not None}
