"""Stage 1: declared groups become a fixed list of trials, and a finished group gets its winner.

It must not know what the parameters mean, or which trials run when.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sweeper.design.pairs import Cell, Level, best_level, by_final, by_loss, by_time
from sweeper.errors import NothingFinished, PlanError
from sweeper.space import NUMERIC, Point, Space, Value
from sweeper.study import Group, Rivals, Row, Study
from sweeper.trial import CONTROL, AttemptFacts, Outcome, PlannedTrial, StagePlan, TrialFacts

Winners = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True)
class Entry:
    """A row of a group as a whole point; `open` names what is only assumed in it."""

    group: Group
    row: Row
    trial_id: str
    place: int
    point: Point
    open: tuple[str, ...]
    label: str


def plan_stage1(study: Study, winners: Winners) -> StagePlan:
    """The whole broad stage, with what is known about winners so far.

    `winners` maps a group to its winning settings (see `winner`); a group that takes the best of
    one without a winner assumes that one's first level, and its trials are marked as open. Ids,
    seeds and points of all other trials are the same for any winners.

    Among equal points the first entry of the group with the fewest dependencies is the original.
    Its equals are the same trial (`duplicates = "reuse"`), or trials of their own with a fresh seed
    at the place where they were declared (`"replicate"`).

    Raises:
        PlanError: every entry of a group is forbidden.
    """
    entries, notes = _allowed_entries(study, winners)
    originals = _originals(study, entries)
    trials: list[PlannedTrial] = []
    for entry in entries:
        original = originals[entry.point]
        trial = PlannedTrial(
            id=entry.trial_id,
            stage="stage1",
            label=entry.label,
            groups=(entry.group.name,),
            point=entry.point,
            seed=study.seed,
            open=entry.open,
        )
        if original is entry:
            trials.append(trial)
        elif study.stage1.duplicates == "replicate":
            seed = study.seed + entry.place
            trials.append(replace(trial, seed=seed, replicate_of=original.trial_id))
    if study.stage1.duplicates == "reuse":
        names: dict[Point, list[str]] = {}
        for entry in entries:
            names.setdefault(entry.point, []).append(entry.group.name)
        trials = [  # with the names of all groups that the point belongs to, its own first
            replace(t, groups=tuple(dict.fromkeys((*t.groups, *names[t.point])))) for t in trials
        ]
    dependent = [g for g in study.stage1.group if g.best_of is not None]
    opened = [entry for entry in entries if entry.open]
    return StagePlan(
        study=study.name,
        stage="stage1",
        target=study.objective.target,
        trials=tuple(_with_controls(study, trials)),
        entries=sum(1 for group in study.stage1.group for _ in group.rows()),
        distinct=len(originals),
        depends_on={g.name: g.best_of.group for g in dependent if g.best_of},
        open={name: entry.point[name] for entry in reversed(opened) for name in entry.open},
        design={"kind": "groups"},
        notes=tuple(notes),
    )


def complete(study: Study, values: Mapping[str, Value]) -> Point:
    """The point that these values make with ties and baselines.

    A tied parameter that `values` leaves out is its baseline times (followed / its baseline) to
    the power of the exponent, clipped to its range.
    """
    baseline = study.space.baseline()
    tied = {tie.parameter: tie for tie in study.ties}
    whole = {**baseline, **values}

    def settle(name: str) -> Value:
        if name not in tied or name in values:
            return whole[name]
        tie, parameter = tied[name], study.space.parameters[name]
        assert isinstance(parameter, NUMERIC)
        ratio = float(settle(tie.follows)) / float(baseline[tie.follows])
        value = float(baseline[name]) * ratio**tie.exponent
        return parameter.value_at(math.log(value) if parameter.scale == "log" else value)

    return study.space.point({name: settle(name) for name in whole})


def is_forbidden(study: Study, point: Mapping[str, Value]) -> bool:
    """Whether the study forbids the point: all values of one `[[forbid]]` table are in it."""
    parameters = study.space.parameters
    return any(
        all(name in point and point[name] == parameters[name].coerce(v) for name, v in f.items())
        for f in study.forbid
    )


def label(space: Space, values: Mapping[str, Value], always: Container[str] = ()) -> str:
    """What differs from the baseline, in the order of `values`, and what is `always` said."""
    baseline = space.baseline()
    return (
        space.show({n: v for n, v in values.items() if n in always or baseline.get(n) != v})
        or "baseline"
    )


def winner(
    study: Study, group: str, facts: Sequence[TrialFacts], target: float
) -> Mapping[str, Value] | None:
    """The winning settings of a group, or None while one of its trials has not ended.

    The level with the best mean paired log-ratio over the bases that it shares with other levels
    (method section 3; see `pairs.by_time`); each parameter of a `vary` group has its own winner. If
    nothing reached the target, the same on the fallback ladder, then by loss at equal train seconds.
    With goal "final" it is the mean paired difference of the final metric. A trial whose attempts all
    failed counts as ended: call this when nothing will be tried again.

    Args:
        study: The study that was planned.
        group: Name of a group of it.
        facts: All of stage 1. Only the group's own trials count, not their replicates in later
            groups: a winner must not change when those have run.
        target: The target that the stage is judged at.

    Raises:
        NothingFinished: everything in the group failed.
    """
    declared = next(g for g in study.stage1.group if g.name == group)
    if any(f.counted is None or f.trial.open for f in facts if group in f.trial.groups):
        return None  # so it is nearly always, and soon seen
    mine = [f for f in facts if group in f.trial.groups]
    if not mine:
        return None
    attempts: dict[tuple[Level, int], list[AttemptFacts]] = {}
    for row, trial in _ran_for(study, declared, mine):
        measured = attempts.setdefault((tuple(row.settings.items()), row.base), [])
        measured.extend(a for a in [_measured(trial)] if a is not None)
    cells = [Cell(level, base, tried) for (level, base), tried in attempts.items()]
    if not any(cell.attempts for cell in cells):
        raise NothingFinished(
            f"best_of group {group}: nothing finished, all {len(mine)} trials failed, so no level "
            "can win; see `sweep show` for why, then `sweep retry --failed`"
        )
    if not declared.vary:
        return _winning_level(study, cells, target)
    found: dict[str, Value] = {}
    for name in declared.vary:
        rivals = [cell for cell in cells if name in dict(cell.level)]
        if any(cell.attempts for cell in rivals):
            found.update(_winning_level(study, rivals, target))
        else:
            found[name] = declared.vary[name][0]
    return found


def rivals(study: Study, trials: Sequence[PlannedTrial]) -> Mapping[str, Sequence[Rivals]]:
    """For each trial of a group whose winner others take: the trials that it is compared with there.

    Those on its base, in a `vary` group of its parameter alone; it is one of them.
    """
    taken = {g.best_of.group for g in study.stage1.group if g.best_of is not None}
    found: dict[str, list[Rivals]] = {}
    for group in (g for g in study.stage1.group if g.name in taken):
        mine = [TrialFacts(t) for t in trials if group.name in t.groups]
        together: dict[tuple[int, str], set[str]] = {}
        for row, fact in _ran_for(study, group, mine):
            for name in row.settings if group.vary else ("",):
                together.setdefault((row.base, name), set()).add(fact.trial.id)
        for ids in together.values():
            one = Rivals(frozenset(ids), several_bases=len(group.bases) > 1)
            for trial_id in ids:
                found.setdefault(trial_id, []).append(one)
    return found


def _winning_level(study: Study, cells: Sequence[Cell], target: float) -> Mapping[str, Value]:
    clock = study.objective.clock
    if study.objective.is_final:
        finals = by_final(cells)
        return dict(best_level(cells, by_loss(cells, clock) if finals is None else finals))
    for goal in (target, *(f for f in study.objective.fallback if f > target)):
        scores = by_time(cells, goal, clock, limit_s=study.limits.trial_s)
        if scores is not None:
            return dict(best_level(cells, scores))
    return dict(best_level(cells, by_loss(cells, clock)))


def _measured(facts: TrialFacts) -> AttemptFacts | None:
    attempt = facts.counted
    measured = (Outcome.REACHED, Outcome.CENSORED)
    return attempt if attempt is not None and attempt.outcome in measured else None


def _ran_for(
    study: Study, group: Group, facts: Sequence[TrialFacts]
) -> Iterator[tuple[Row, TrialFacts]]:
    """Each row with the trial that ran for it, found by id, or by its values where it was reused."""
    by_id = {f.trial.id: f for f in facts}
    rows = list(group.rows())
    own = {_trial_id(group, row) for row in rows}
    reused = [f for f in facts if f.trial.id not in own]
    for row in rows:
        found = by_id.get(_trial_id(group, row)) or next(
            (f for f in reused if _agrees(study.space, row.values, f.trial.point)), None
        )
        if found is not None:
            yield row, found


def _agrees(space: Space, values: Mapping[str, Value], point: Point) -> bool:
    return all(
        name in point and point[name] == space.parameters[name].coerce(value)
        for name, value in values.items()
    )


def _trial_id(group: Group, row: Row) -> str:
    return f"s1-{group.name}{row.index}"


def _entries(study: Study, winners: Winners) -> Iterator[Entry]:
    groups = {group.name: group for group in study.stage1.group}
    place = 0
    for group in study.stage1.group:
        taken: dict[str, Value] = {}
        open_: tuple[str, ...] = ()
        if group.best_of is not None:
            source = group.best_of.group
            known = winners.get(source) or _assumed(groups[source])
            # a winning config may leave a parameter at its baseline
            taken = {name: known[name] for name in group.best_of.parameters if name in known}
            open_ = () if winners.get(source) else group.best_of.parameters
        for row in group.rows():
            place += 1
            point = complete(study, {**taken, **row.values})
            names = [n for n in (*row.settings, *row.values, *taken, *_tied(study)) if n in point]
            level = () if group.configs else row.settings
            shown = label(study.space, {name: point[name] for name in names}, level)
            yield Entry(group, row, _trial_id(group, row), place, point, open_, shown)


def _assumed(group: Group) -> Mapping[str, Value]:
    """The first level of every parameter that the group compares."""
    first: dict[str, Value] = {}
    for level in group.levels():
        for name, value in level.items():
            first.setdefault(name, value)
    return first


def _tied(study: Study) -> tuple[str, ...]:
    return tuple(tie.parameter for tie in study.ties)


def _allowed_entries(study: Study, winners: Winners) -> tuple[list[Entry], list[str]]:
    kept, notes = [], []
    for entry in _entries(study, winners):
        if is_forbidden(study, entry.point):
            notes.append(f"{entry.trial_id} is forbidden and left out: {entry.label}")
        else:
            kept.append(entry)
    for group in study.stage1.group:
        if not any(entry.group is group for entry in kept):
            raise PlanError(
                f"group {group.name}: every entry is forbidden; change its levels or [[forbid]]"
            )
    return kept, notes


def _originals(study: Study, entries: Sequence[Entry]) -> Mapping[Point, Entry]:
    """For every distinct point the entry that owns it.

    Groups that depend on fewer others come first, so that a winner found later never changes who
    owns a trial that may have run already.
    """
    depths: dict[str, int] = {}
    for group in study.stage1.group:
        depths[group.name] = 1 + depths[group.best_of.group] if group.best_of else 0
    owners: dict[Point, Entry] = {}
    for entry in sorted(entries, key=lambda e: (depths[e.group.name], e.place)):
        owners.setdefault(entry.point, entry)
    return owners


def _with_controls(study: Study, trials: Sequence[PlannedTrial]) -> Iterator[PlannedTrial]:
    """The trials, with the baseline repeated after every `control_every` of them."""
    every = study.stage1.control_every
    for count, trial in enumerate(trials, start=1):
        yield trial
        if every and count % every == 0:
            point = complete(study, {})
            original = next((t.id for t in trials if t.point == point and not t.open), None)
            yield PlannedTrial(
                id=f"s1-control-{count // every:02d}",
                stage="stage1",
                label="control: baseline",
                groups=(CONTROL,),
                point=point,
                seed=study.seed + 500 + count // every,
                replicate_of=original,
            )
