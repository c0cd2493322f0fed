"""Whether a name is a parameter of the space, and a value lies in its range; all other checks ask that.

It must not know the text of the file, or which table names a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sweeper.space import Value
from sweeper.study import Study
from sweeper.study_file.lines import Path as KeyPath
from sweeper.study_file.source import Problem, nearest, show


def name_problems(study: Study, name: str, at: KeyPath) -> Iterator[Problem]:
    """A name that is no parameter of the space."""
    space = study.space
    if name not in space.parameters and study.is_frozen(name):
        yield Problem(
            at,
            f"{show(name)} is frozen: every trial has the base's value; remove it here, or thaw it",
        )
    elif name not in space.parameters:
        yield Problem(
            at,
            f"{show(name)} is no parameter of [space]{nearest(name, space.parameters)}; "
            f"known: {', '.join(space.parameters)}",
        )


def point_problems(study: Study, values: Mapping[str, Value], at: KeyPath) -> Iterator[Problem]:
    """Names and values of a part of a point."""
    for name, value in values.items():
        yield from value_problems(study, name, value, (*at, name))


def value_problems(study: Study, name: str, value: Value, at: KeyPath) -> Iterator[Problem]:
    """A value that its parameter cannot have, or one of a parameter that is none."""
    if name not in study.space.parameters:
        yield from name_problems(study, name, at)
        return
    try:
        study.space.parameters[name].coerce(value)
    except ValueError as error:
        yield Problem(at, f"{error}; change the value, or widen [space.{show(name)}]")
