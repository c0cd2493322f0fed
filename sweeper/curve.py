"""A curve kept for long: the same evaluations, in a few bytes a number.

It must not know files or databases; standard library only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Literal, TypeAlias, overload

from sweeper.trial import Evaluation, Phases, SliceName

Column: TypeAlias = "array[Any] | float"
"""Numbers, or the one number that they all are."""

_SLICES: tuple[SliceName, ...] = ("probe", "confirmation")


class Curve(Sequence[Evaluation]):
    """Evaluations as columns of numbers, none rounded; equal to the tuple that it was made of.

    A column that has one value throughout (a phase that never took time) is kept as that value. 100
    evaluations with one running phase take 3.8 kB, where the tuple takes 25 kB; reading them makes
    them anew.
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
        return column if isinstance(column, array) else repeat(column, self._length)


def _column(kind: Literal["b", "q", "d"], values: Iterable[float]) -> Column:
    found = list(values)  # from a list, an array takes no room for more
    if found and found.count(found[0]) == len(found):
        return found[0]
    return array(kind, found)


def _at(column: Column, place: int) -> Any:
    return column[place] if isinstance(column, array) else column
