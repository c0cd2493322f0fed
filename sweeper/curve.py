"""A curve kept for long: the same evaluations, in a few bytes a number.

It must not know files or databases; standard library only.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from operator import add, eq
from typing import Any, Literal, TypeAlias, TypeGuard, overload

from sweeper.trial import Clock, Evaluation, Phases, SliceName

Column: TypeAlias = "array[Any] | range | float"
"""Numbers, evenly spaced whole numbers, or the one number that they all are."""
Kind: TypeAlias = Literal["b", "q", "d"]

_SLICES: tuple[SliceName, ...] = ("probe", "confirmation")
_NAMES = ("step", "tokens", "value", *Phases._fields)
_DOUBLE: Kind = "d"
_KINDS: tuple[Kind, ...] = ("q", "q", _DOUBLE, *(_DOUBLE for _ in Phases._fields))


class Curve(Sequence[Evaluation]):
    """Evaluations as columns of numbers, none rounded; equal to the tuple that it was made of.

    A column that has one value throughout (a phase that never took time) is kept as that value, and
    steps or tokens between which there are always as many as a range. 100 evaluations with one running
    phase then take 2.1 kB, where the tuple takes 25 kB; reading them makes them anew.
    """

    __slots__ = ("_columns", "_length", "_slices")

    def __init__(self, evaluations: Iterable[Evaluation]) -> None:
        """Raises: OverflowError: a step or tokens from 2**63 on (no stream has any)."""
        rows = tuple(evaluations)
        self._length = len(rows)
        kinds: Iterable[int] = (_SLICES.index(e.slice) for e in rows)
        self._slices = _column("b", kinds)
        columns = [_column("q", (e.step for e in rows)), _column("q", (e.tokens for e in rows))]
        columns.append(_column("d", (e.value for e in rows)))
        columns += (_column("d", of) for of in zip(*(e.clock for e in rows), strict=True))
        self._columns = tuple(columns)

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation]) -> Curve:
        """The same evaluations in this form; nothing is done to those that have it."""
        return evaluations if isinstance(evaluations, cls) else cls(evaluations)

    @classmethod
    def unpacked(cls, confirmations: bytes, columns: Sequence[bytes]) -> Curve:
        """From columns in network byte order.

        Args:
            confirmations: A byte for each evaluation: 1 where it is one, 0 for a probe.
            columns: Eight bytes for each: step and tokens (integers), value and all phases (doubles).
        """
        numbers = tuple(map(_unpacked, _KINDS, columns))
        return cls._made(len(confirmations), _unpacked("b", confirmations), numbers)

    @classmethod
    def _made(cls, length: int, slices: Column, columns: tuple[Column, ...]) -> Curve:
        curve = cls.__new__(cls)
        curve._length, curve._slices, curve._columns = length, slices, columns  # noqa: SLF001 - its own
        return curve

    def column(self, name: str) -> Sequence[Any]:
        """One field of every evaluation, or one phase's seconds."""
        if not self._length:
            return ()
        if name == "slice":
            kinds = self._slices
            if isinstance(kinds, array):
                return [_SLICES[kind] for kind in kinds]
            return [_SLICES[_at(kinds, 0)]] * self._length
        found = self._columns[_NAMES.index(name)]
        return found if _are_many(found) else [found] * self._length

    def take(self, *places: Sequence[int]) -> Curve:
        """The evaluations at these places, one sequence of them after another; ranges are quickest."""
        columns = tuple(_taken(column, places) for column in self._columns)
        return self._made(sum(map(len, places)), _taken(self._slices, places), columns)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Evaluation]:
        if not self._length:
            return iter(())
        steps, tokens, values, *phases = (self._all(column) for column in self._columns)
        slices = map(_SLICES.__getitem__, self._all(self._slices))
        # what a named tuple's own constructor does, without a call of Python for each
        clocks = map(tuple.__new__, repeat(Phases), zip(*phases, strict=True))
        rows = zip(steps, tokens, clocks, values, slices, strict=True)
        return map(tuple.__new__, repeat(Evaluation), rows)

    @overload
    def __getitem__(self, index: int) -> Evaluation: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Evaluation, ...]: ...

    def __getitem__(self, index: int | slice) -> Evaluation | tuple[Evaluation, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        place = range(self._length)[index]  # negative ones too; IndexError as a tuple raises it
        step, tokens, value, *phases = (_at(column, place) for column in self._columns)
        kind = _SLICES[_at(self._slices, place)]
        return Evaluation(step, tokens, Phases(*phases), value, kind)

    def __reversed__(self) -> Iterator[Evaluation]:
        return reversed(tuple(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curve | tuple):
            return NotImplemented
        return tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Curve({list(self)})"

    def _all(self, column: Column) -> Iterable[Any]:
        return column if _are_many(column) else repeat(column, self._length)


def column(curve: Sequence[Evaluation], name: str) -> Sequence[Any]:
    """One field of every evaluation (`step`, `tokens`, `value`, `slice`), in their order."""
    return curve.column(name) if isinstance(curve, Curve) else [getattr(e, name) for e in curve]


def seconds(curve: Sequence[Evaluation], clock: Clock) -> Sequence[float]:
    """Seconds of every evaluation on a clock, in their order."""
    if not isinstance(curve, Curve):
        return [e.clock.seconds(clock) for e in curve]
    if clock == "train":
        return curve.column("train")
    if clock == "train+eval":
        return list(map(add, curve.column("train"), curve.column("eval")))
    took_time = [found for found in map(curve.column, Phases._fields) if any(found)]
    return list(map(sum, zip(*took_time, strict=True))) if took_time else [0.0] * len(curve)


def _are_many(column: Column) -> TypeGuard[array[Any] | range]:
    return isinstance(column, array | range)


def _unpacked(kind: Kind, packed: bytes) -> Column:
    found = array(kind, packed)
    if sys.byteorder == "little":
        found.byteswap()
    one = packed[: found.itemsize]
    return found[0] if found and packed == one * len(found) else _shortest(found)


def _taken(column: Column, places: Iterable[Sequence[int]]) -> Column:
    if not _are_many(column):
        return column
    found: array[Any] = array(column.typecode if isinstance(column, array) else "q")
    for part in places:
        if isinstance(part, range):
            found.extend(column[part.start : part.stop : part.step])
        else:
            found.extend(map(column.__getitem__, part))
    return found


def _column(kind: Kind, values: Iterable[float]) -> Column:
    found = list(values)  # from a list, an array takes no room for more
    if found and found.count(found[0]) == len(found):
        return found[0]
    return _shortest(array(kind, found))


def _shortest(column: array[Any]) -> array[Any] | range:
    """Evenly spaced whole numbers as a range: most trainers evaluate every so many steps."""
    if column.typecode != "q" or len(column) < 2 or column[0] == column[1]:
        return column
    every = column[1] - column[0]
    even = range(column[0], column[0] + every * len(column), every)
    return even if all(map(eq, even, column)) else column


def _at(column: Column, place: int) -> Any:
    return column[place] if _are_many(column) else column
