"""The `[space]` tables of a study file as parameters, each checked on its own.

It must not know groups, stages or the trainer's other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sweeper.space import Bool, Categorical, Float, Integer, Parameter, Scale, Space, Value
from sweeper.study import Finite
from sweeper.study_file.lines import Path as KeyPath
from sweeper.study_file.source import Problem, Source, nearest, show


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    baseline: Value | None = None
    when: Mapping[str, tuple[Value, ...]] = {}


class _FloatTable(_Table):
    type: Literal["float"]
    low: Finite
    high: Finite
    scale: Scale = "linear"
    levels: int = Field(default=5, ge=2)


class _IntTable(_Table):
    type: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, gt=0)
    scale: Scale = "linear"
    levels: int = Field(default=5, ge=2)


class _CategoricalTable(_Table):
    type: Literal["categorical"]
    choices: tuple[Value, ...] = Field(min_length=1)


class _BoolTable(_Table):
    type: Literal["bool"]


_TABLES: Mapping[str, type[_Table]] = {
    "float": _FloatTable,
    "int": _IntTable,
    "bool": _BoolTable,
    "categorical": _CategoricalTable,
}


def read_space(
    source: Source, raw: Mapping[str, Any], base_value: Callable[[str], Value | None]
) -> Space:
    """The space; a parameter without a baseline takes `base_value(name)`, which may be None.

    Raises:
        StudyFileError: the first table that makes no parameter.
    """
    tables: dict[str, _Table] = {}
    for name, table in raw.items():
        at: KeyPath = ("space", name)
        if problem := _kind_problem(name, table):
            raise source.error(problem)
        tables[name] = source.fill(_TABLES[table["type"]], table, at)
        if problem := next(_range_problems(tables[name], at), None):
            raise source.error(problem)
    space = Space({name: _parameter(name, table) for name, table in tables.items()})
    if problem := next(_when_problems(space), None):
        raise source.error(problem)
    parameters = {}
    for name, table in tables.items():
        declared = table.baseline is not None
        value = table.baseline if declared else base_value(name)
        try:
            coerced = None if value is None else space.parameters[name].coerce(value)
        except ValueError as error:
            if declared:
                problem = Problem(("space", name, "baseline"), str(error))
            else:
                problem = Problem(
                    ("space", name),
                    f"the value in {source.document['trainer']['config']}: {error}; "
                    "give this parameter a baseline, or change that file",
                )
            raise source.error(problem) from None
        parameters[name] = _parameter(name, table, coerced)
    return Space(parameters)


def _kind_problem(name: str, table: object) -> Problem | None:
    at: KeyPath = ("space", name)
    if not isinstance(table, Mapping):
        return Problem(at, f"got {show(table)}, expected a table with type, low, high, ...")
    kind = table.get("type")
    if isinstance(kind, str) and kind in _TABLES:
        return None
    if kind is None and any(isinstance(value, Mapping) for value in table.values()):
        inner = next(key for key, value in table.items() if isinstance(value, Mapping))
        return Problem(
            at,
            f'a dotted name must stand in quotes: write [space."{name}.{inner}..."], '
            "or TOML reads it as nested tables",
        )
    known = ", ".join(map(show, _TABLES))
    if kind is None:
        return Problem((*at, "type"), f"missing; add type = one of {known}")
    return Problem(
        (*at, "type"), f"got {show(kind)}, expected one of {known}{nearest(str(kind), _TABLES)}"
    )


def _range_problems(table: _Table, at: KeyPath) -> Iterator[Problem]:
    if isinstance(table, _FloatTable | _IntTable):
        if table.low >= table.high:
            yield Problem(
                (*at, "low"),
                f"got {show(table.low)}, expected a number below high = {show(table.high)}; "
                "swap them, or leave a parameter with one value out of the space",
            )
        if table.scale == "log" and table.low <= 0:
            yield Problem(
                (*at, "low"),
                f'got {show(table.low)}, expected a number above 0, because scale = "log"; '
                'raise it, or use scale = "linear"',
            )
    if isinstance(table, _CategoricalTable):
        for place, choice in enumerate(table.choices):
            if choice != choice:  # noqa: PLR0124 - only NaN differs from itself
                yield Problem((*at, "choices", place), "got nan, expected a value equal to itself")
            if any(_same(choice, other) for other in table.choices[:place]):
                yield Problem(
                    (*at, "choices", place), f"{show(choice)} is there twice; remove one of them"
                )


def _same(one: Value, other: Value) -> bool:
    return type(one) is type(other) and one == other


def _when_problems(space: Space) -> Iterator[Problem]:
    for name, parameter in space.parameters.items():
        at: KeyPath = ("space", name, "when")
        for other, allowed in parameter.when.items():
            if other not in space.parameters:
                yield Problem((*at, other), f"no such parameter{nearest(other, space.parameters)}")
                return
            for place, value in enumerate(allowed):
                try:
                    space.parameters[other].coerce(value)
                except ValueError as error:
                    yield Problem((*at, other, place), f"{error}, which is what {other} may be")
            if not allowed:
                yield Problem((*at, other), "got an empty list: it would never be active")
        if name in _needed(space, name):
            yield Problem(at, "this parameter is active only when it is active itself: a cycle")


def _needed(space: Space, name: str) -> set[str]:
    """Every parameter on which this one's being active depends, however far away."""
    found: set[str] = set()
    ahead = list(space.parameters[name].when)
    while ahead:
        other = ahead.pop()
        if other not in found and other in space.parameters:
            found.add(other)
            ahead.extend(space.parameters[other].when)
    return found


def _parameter(name: str, table: _Table, baseline: Any = None) -> Parameter:
    fields = {k: v for k, v in dict(table).items() if k not in ("type", "baseline")}
    kinds: Mapping[type[_Table], Callable[..., Parameter]] = {
        _FloatTable: Float,
        _IntTable: Integer,
        _BoolTable: Bool,
        _CategoricalTable: Categorical,
    }
    return kinds[type(table)](name=name, baseline=baseline, **fields)
