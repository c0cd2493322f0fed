"""What stage 1's groups must be: names of their own, levels inside the space, winners of earlier groups.

It must not know the text of the file; a problem is told by the path of its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from sweeper.space import Value
from sweeper.study import Group, Study
from sweeper.study_file.lines import Path as KeyPath
from sweeper.study_file.source import Problem, nearest, show
from sweeper.study_file.value_checks import point_problems, value_problems

_GROUP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?<![0-9])")


def group_problems(study: Study) -> Iterator[Problem]:
    """Everything wrong with the groups of a study whose parts are each right on their own."""
    yield from _group_names(study)
    for place, group in enumerate(study.stage1.group):
        yield from _group(study, group, ("stage1", "group", place))
    yield from _dependencies(study)


def _group_names(study: Study) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for place, group in enumerate(study.stage1.group):
        at: KeyPath = ("stage1", "group", place, "name")
        if not _GROUP_NAME.fullmatch(group.name):
            yield Problem(
                at,
                f"got {show(group.name)}, expected letters, digits and underscores, a letter first "
                "and no digit last: trials are named after it, such as s1-A3",
            )
        elif group.name in seen:
            yield Problem(
                at,
                f"{show(group.name)} is also the name of group {seen[group.name]}; rename one",
            )
        seen.setdefault(group.name, place + 1)


def _dependencies(study: Study) -> Iterator[Problem]:
    groups = {group.name: group for group in study.stage1.group}
    earlier: list[str] = []
    for place, group in enumerate(study.stage1.group):
        at: KeyPath = ("stage1", "group", place, "best_of")
        if group.best_of is not None:
            wanted = group.best_of.group
            if cycle := _cycle(groups, group.name):
                yield Problem(
                    at,
                    f"a cycle: {' takes the best of '.join(cycle)}; "
                    "a group can only take the best of one declared before it",
                )
            elif wanted not in groups:
                yield Problem(
                    (*at, "group"), f"there is no group {show(wanted)}{nearest(wanted, groups)}"
                )
            elif wanted not in earlier:
                yield Problem(
                    (*at, "group"),
                    f"group {show(wanted)} comes later; move it above group {show(group.name)}",
                )
            else:
                yield from _best_of_parameters(group, groups[wanted], at)
        earlier.append(group.name)


def _cycle(groups: Mapping[str, Group], start: str) -> list[str]:
    """The names on a way from a group back to itself, or none."""
    way = [start]
    while True:
        group = groups.get(way[-1])
        if group is None or group.best_of is None:
            return []
        way.append(group.best_of.group)
        if way[-1] == start:
            return way
        if way[-1] in way[:-1]:
            return []


def _best_of_parameters(group: Group, winner_of: Group, at: KeyPath) -> Iterator[Problem]:
    assert group.best_of is not None
    offered = {name for level in winner_of.levels() for name in level}
    for index, name in enumerate(group.best_of.parameters):
        if name not in offered:
            yield Problem(
                (*at, "parameters", index),
                f"group {show(winner_of.name)} does not compare levels of {show(name)}"
                f"{nearest(name, offered)}; it compares {', '.join(sorted(offered)) or 'nothing'}",
            )
        elif any(name in row.values for row in group.rows()):
            yield Problem(
                (*at, "parameters", index),
                f"group {show(group.name)} sets {show(name)} itself; remove it there or here",
            )


def _group(study: Study, group: Group, at: KeyPath) -> Iterator[Problem]:
    used = [key for key in ("grid", "vary", "configs") if key in group.model_fields_set]
    if len(used) != 1:
        got = " and ".join(used) or "none of them"
        yield Problem(at, f"got {got}, expected exactly one of grid, vary and configs")
        return
    (kind,) = used
    if not getattr(group, kind):
        yield Problem((*at, kind), "is empty, so this group has no entry; add to it, or remove it")
    if not group.bases:
        yield Problem((*at, "bases"), "is empty, so this group has no entry; leave it out for {}")
    for name, values in {**group.grid, **group.vary}.items():
        yield from _level_list(study, name, values, (*at, kind, name))
    for index, config in enumerate(group.configs):
        yield from point_problems(study, config, (*at, "configs", index))
    for index, base in enumerate(group.bases):
        yield from point_problems(study, base, (*at, "bases", index))
        for name in group.grid.keys() & base.keys():
            yield Problem(
                (*at, "bases", index, name), f"grid sets {show(name)} already; remove it here"
            )
    yield from _gaps(study, group, at)


def _level_list(
    study: Study, name: str, values: tuple[Value, ...], at: KeyPath
) -> Iterator[Problem]:
    if not values:
        yield Problem(at, "got an empty list, so this group has no entry; add levels to it")
    for index, value in enumerate(values):
        if any(type(value) is type(other) and value == other for other in values[:index]):
            yield Problem((*at, index), f"{show(value)} is there twice; remove one of them")
        yield from value_problems(study, name, value, (*at, index))


def _gaps(study: Study, group: Group, at: KeyPath) -> Iterator[Problem]:
    """Parameters that no entry, tie or baseline gives a value."""
    given = set(group.best_of.parameters) if group.best_of else set()
    baseline = study.space.baseline()
    open_names = [n for n in study.space.parameters if n not in baseline and n not in given]
    for row in group.rows() if open_names else ():
        values = {**baseline, **row.values}
        for name in open_names:
            if name not in values and study.space.active(name, values):
                yield Problem(
                    at,
                    f"entry {row.index} leaves {show(name)} without a value; "
                    f"give [space.{show(name)}] a baseline, or set it in this group",
                )
                return
