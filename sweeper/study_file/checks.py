"""What a study's parts must be to one another: names that exist, values inside the space, order.

It must not know the text of the file; a problem is told by the path of its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sweeper.configuration import PLACES, get_key, leaves, places
from sweeper.space import NUMERIC, Categorical, Integer, Parameter, Space
from sweeper.study import START_FROM, Study, Tie
from sweeper.study_file.group_checks import group_problems
from sweeper.study_file.lines import Path as KeyPath
from sweeper.study_file.source import Problem, nearest, show
from sweeper.study_file.value_checks import name_problems, point_problems, value_problems

_METRIC_GROUPS = ("metric", "latest")
_PATTERN_GROUPS = (
    *_METRIC_GROUPS,
    *("step", "epoch", "batch", "of", "tokens", "loss", "train_s", "train_ms", "step_ms", "eval_s"),
)


def problems(study: Study) -> Iterator[Problem]:
    """Everything wrong with a study whose parts are each right on their own."""
    yield from _objective(study)
    yield from _command(study)
    yield from _patterns(study)
    yield from _base_keys(study)
    yield from _frozen(study)
    yield from _starts(study)
    yield from _ties(study)
    yield from _on_oom(study)
    for place, partial in enumerate(study.forbid):
        at: KeyPath = ("forbid", place)
        if not partial:
            yield Problem(
                at, "an empty table would forbid everything; name a parameter, or remove it"
            )
        yield from point_problems(study, partial, at)
    yield from _questions(study)
    yield from group_problems(study)
    for place, pair in enumerate(study.stage2.interactions):
        at = ("stage2", "interactions", place)
        for side, name in enumerate(pair):
            yield from name_problems(study, name, (*at, side))
        if pair[0] == pair[1]:
            yield Problem(at, f"{show(pair[0])} twice; expected two different parameters")


def _objective(study: Study) -> Iterator[Problem]:
    objective = study.objective
    for place, value in enumerate(objective.fallback):
        if value <= objective.target:
            yield Problem(
                ("objective", "fallback", place),
                f"got {show(value)}, expected a number above target = {show(objective.target)}: "
                "a fallback is easier to reach",
            )
    if list(objective.fallback) != sorted(set(objective.fallback)):
        yield Problem(
            ("objective", "fallback"),
            f"got {show(objective.fallback)}, expected rising numbers: the hardest fallback first",
        )
    for place, value in enumerate(objective.stretch):
        if value >= objective.target:
            yield Problem(
                ("objective", "stretch", place),
                f"got {show(value)}, expected a number below target = {show(objective.target)}: "
                "a stretch target is harder to reach",
            )


def _command(study: Study) -> Iterator[Problem]:
    trainer = study.trainer
    known = [*PLACES, *study.space.parameters]
    used: set[str] = set()
    for index, argument in enumerate(trainer.command):
        at: KeyPath = ("trainer", "command", index)
        try:
            names = places(argument)
        except ValueError:
            yield Problem(
                at,
                f"got {show(argument)}, expected braces only around a name, such as {{config}}; "
                "put an argument that needs plain braces into a script",
            )
            return
        for name in names:
            if name not in known:
                yield Problem(
                    at,
                    f"nothing fills {{{name}}}{nearest(name, known)}; "
                    f"known: {', '.join(PLACES)}, and every parameter of the space",
                )
            elif name in study.space.parameters and _conditional_gap(study.space, name):
                yield Problem(
                    at, f"{{{name}}} is not always active; give it a baseline to stand here then"
                )
        used.update(names)
    if trainer.resume and not any("{checkpoint}" in argument for argument in trainer.resume):
        yield Problem(
            ("trainer", "resume"),
            f"got {show(trainer.resume)}, expected arguments with {{checkpoint}} in one of them, such "
            'as ["--resume", "{checkpoint}"]',
        )
    if trainer.config is None and "config" in used:
        yield Problem(
            ("trainer", "command"),
            "{config} has nothing to stand for; name the trainer's configuration in config = ...",
        )
    if trainer.config is not None and "config" not in used:
        yield Problem(
            ("trainer", "command"),
            f"config = {show(trainer.config)} never reaches the trainer; "
            "give {config} its place in the command, or remove config",
        )
    if trainer.config is None:
        for name in study.space.parameters:
            if name not in used and name != START_FROM:
                yield Problem(
                    ("space", name),
                    f"nothing carries this parameter to the trainer; put {{{name}}} into "
                    "trainer.command, or name a config that has this key",
                )


def _conditional_gap(space: Space, name: str) -> bool:
    parameter = space.parameters[name]
    return bool(parameter.when) and parameter.baseline is None


def _patterns(study: Study) -> Iterator[Problem]:
    metric = study.objective.metric
    known = [metric, *_PATTERN_GROUPS] if metric.isidentifier() else list(_PATTERN_GROUPS)
    found: set[str] = set()
    for name, pattern in study.trainer.patterns.items():
        at: KeyPath = ("trainer", "patterns", name)
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            yield Problem(at, f"not a regular expression: {error}; got {show(pattern)}")
            continue
        for group in groups:
            if group not in known:
                yield Problem(
                    at,
                    f"unknown group (?P<{group}>...){nearest(group, known)}; "
                    f"known: {', '.join(known)}",
                )
        found.update(groups)
    if study.trainer.patterns and not found & {metric, *_METRIC_GROUPS}:
        group = metric if metric.isidentifier() else "metric"
        yield Problem(
            ("trainer", "patterns"),
            f"no pattern has a group (?P<{group}>...), so the metric would never be read; "
            "add one, or change objective.metric",
        )


def _base_keys(study: Study) -> Iterator[Problem]:
    if study.trainer.config is None or study.trainer.new_keys:
        return
    known = list(leaves(study.base))
    for name in study.space.parameters:
        if name not in known and name != START_FROM:
            yield Problem(
                ("space", name),
                f"{show(name)} is not a key of {study.trainer.config}{nearest(name, known)}; "
                "add it there, or set trainer.new_keys = true",
            )


def _frozen(study: Study) -> Iterator[Problem]:
    """A frozen key, or a frozen table with all its keys, is the base's for every trial."""
    for place, key in enumerate(study.frozen):
        varied = [n for n in study.space.parameters if n == key or n.startswith(f"{key}.")]
        if varied:
            what = show(key) if varied == [key] else f"{show(key)} and so {show(varied[0])}"
            yield Problem(
                ("frozen", place),
                f"{what} is frozen, and [space] varies it; remove it from one of the two",
            )
        elif study.base:
            try:
                get_key(study.base, key)
            except KeyError:
                yield Problem(
                    ("frozen", place),
                    f"{show(key)} is not a key of {study.trainer.config}"
                    f"{nearest(key, leaves(study.base))}",
                )
    yield from _frozen_run(study)


def _frozen_run(study: Study) -> Iterator[Problem]:
    """Keys that the sweep itself sets for each trial: frozen, they would silently stay the base's."""
    base = study.base.get("run", {})
    limit = study.limits.steps
    if study.is_frozen("run.max_steps") and base.get("max_steps", limit) != limit:
        yield Problem(
            ("limits", "steps"),
            f"got {limit}, and the frozen run.max_steps is {show(base['max_steps'])} in "
            f"{study.trainer.config}; make them equal",
        )
    repeats = {
        ("confirm", "repeats"): study.confirm.repeats > 1,
        ("stage2", "replicates"): study.stage2.replicates > 0,
        ("stage1", "duplicates"): study.stage1.duplicates == "replicate",
    }
    for at, repeated in repeats.items():
        if study.is_frozen("run.seed") and repeated:
            yield Problem(
                at,
                "run.seed is frozen, so that repeats would all be one and the same run and tell "
                "nothing about noise; thaw run.seed, or ask for no repeats",
            )
            return


def _starts(study: Study) -> Iterator[Problem]:
    """`[start]` and `[phase]` tables, and the parameter that chooses among them."""
    chosen = study.space.parameters.get(START_FROM)
    at: KeyPath = ("space", START_FROM)
    if chosen is None and study.starts:
        yield Problem(
            ("start",),
            f"nothing chooses among {', '.join(study.starts)}; add [space.{START_FROM}] with type = "
            '"categorical", these choices and a baseline',
        )
    elif chosen is not None and not study.starts:
        yield Problem(at, "chooses how trials start, and there is no [start.NAME] to choose")
    elif chosen is not None and not isinstance(chosen, Categorical):
        yield Problem((*at, "type"), 'expected "categorical", with names of [start] tables')
    elif isinstance(chosen, Categorical):
        for place, name in enumerate(chosen.choices):
            if name not in study.starts:
                yield Problem(
                    (*at, "choices", place),
                    f"there is no [start.{name}]{nearest(str(name), study.starts)}",
                )
        if chosen.when or chosen.baseline is None:
            yield Problem(at, "expected a baseline and no `when`: every trial starts somehow")
    for name in study.starts:
        yield from _start(study, name)
    known = list(leaves(study.base))
    for name, phase in study.phases.items():
        for key, value in phase.set.items():
            here: KeyPath = ("phase", name, "set", key)
            if study.is_frozen(key):
                yield Problem(here, f"{show(key)} is frozen; remove it from one of the two")
            elif key in study.space.parameters:
                yield from value_problems(study, key, value, here)
            elif key not in known and not study.trainer.new_keys:
                yield Problem(
                    here, f"{show(key)} is not a key of {study.trainer.config}{nearest(key, known)}"
                )


def _start(study: Study, name: str) -> Iterator[Problem]:
    start, at = study.starts[name], ("start", name)
    named = [key for key in ("phase", "checkpoint") if getattr(start, key) is not None]
    if len(named) == 2:
        yield Problem(at, "got phase and checkpoint, expected at most one of both")
    elif start.phase is not None and start.phase not in study.phases:
        yield Problem(
            (*at, "phase"), f"there is no [phase.{start.phase}]{nearest(start.phase, study.phases)}"
        )
    elif bool(named) != any("{checkpoint}" in word for word in start.arguments):
        expected = (
            'arguments with {checkpoint} in one of them, such as ["--resume", "{checkpoint}"]'
            if named
            else "a phase or a checkpoint, for {checkpoint} to stand for"
        )
        yield Problem((*at, "arguments"), f"got {show(start.arguments)}, expected {expected}")
    if start.preview and start.phase is None:
        yield Problem((*at, "preview"), "stands in for a phase's checkpoint, and there is no phase")


def _on_oom(study: Study) -> Iterator[Problem]:
    if study.on_oom is None:
        return
    keys = {
        "micro_batch": study.on_oom.micro_batch,
        "accumulation": study.on_oom.accumulation,
    }
    known = [*study.space.parameters, *leaves(study.base)]
    for name, key in keys.items():
        at: KeyPath = ("on_oom", name)
        if key not in known:
            yield Problem(
                at,
                f"{show(key)} is no key of the trainer's configuration and no parameter of [space]"
                f"{nearest(key, known)}; name what holds the {name.replace('_', '-')}",
            )
        elif study.is_frozen(key):
            yield Problem(at, f"{show(key)} is frozen; remove it from one of the two")
        elif key in study.space.parameters:
            if not isinstance(parameter := study.space.parameters[key], Integer):
                kind = type(parameter).__name__.lower()
                yield Problem(at, f"{show(key)} is a {kind} parameter; only whole numbers halve")
            elif parameter.baseline is None and parameter.when:
                yield Problem(at, f"{show(key)} is not always active; give it a baseline")
        elif type(value := get_key(study.base, key)) is not int or value < 1:
            yield Problem(
                at, f"{show(key)} is {show(value)} in {study.trainer.config}, expected 1 or more"
            )
    if keys["micro_batch"] == keys["accumulation"]:
        yield Problem(("on_oom",), f"{show(keys['micro_batch'])} twice; name two different keys")


def _ties(study: Study) -> Iterator[Problem]:
    parameters = study.space.parameters
    by_name: dict[str, Tie] = {}
    for place, tie in enumerate(study.ties):
        at: KeyPath = ("tie", place)
        for key, name in (("parameter", tie.parameter), ("follows", tie.follows)):
            yield from name_problems(study, name, (*at, key))
            if name in parameters and (why := _untieable(parameters[name])):
                yield Problem((*at, key), f"{show(name)} {why}")
        if tie.parameter in by_name:
            yield Problem((*at, "parameter"), f"{show(tie.parameter)} is tied twice; keep one tie")
        by_name.setdefault(tie.parameter, tie)
        seen = [tie.parameter]
        while seen[-1] in by_name and seen.count(seen[-1]) == 1:
            seen.append(by_name[seen[-1]].follows)
        if seen.count(seen[-1]) > 1:
            yield Problem(at, f"a cycle: {' follows '.join(seen)}; remove one of these ties")


def _untieable(parameter: Parameter) -> str | None:
    if not isinstance(parameter, NUMERIC):
        return "is not numeric; only numbers scale with one another"
    if parameter.baseline is None or parameter.baseline <= 0:
        return "has no baseline above 0, from which it could scale; give it one"
    return None


def _questions(study: Study) -> Iterator[Problem]:
    for place, question in enumerate(study.questions):
        at: KeyPath = ("question", place)
        yield from name_problems(study, question.parameter, (*at, "parameter"))
        if len(question.levels) == 1:
            yield Problem(
                (*at, "levels"), "got one level, expected two or more to compare, or none"
            )
        if question.parameter in study.space.parameters:
            for index, value in enumerate(question.levels):
                yield from value_problems(study, question.parameter, value, (*at, "levels", index))
        yield from point_problems(study, question.at, (*at, "at"))
        if question.parameter in question.at:
            yield Problem(
                (*at, "at", question.parameter),
                "the question asks about this parameter; `at` can only fix others",
            )
