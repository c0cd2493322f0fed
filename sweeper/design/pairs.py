"""Compares the levels of a group in pairs that share a base, by time or by loss.

It must not know how levels and bases were declared, or what is done with the winner.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.noise import PAIR_FACTOR
from sweeper.objective import TimeToTarget, final_value, time_to_target
from sweeper.space import Value
from sweeper.trial import AttemptFacts, Clock, Reason

Level = tuple[tuple[str, Value], ...]
Scores = Mapping[Level, float]

_HARDLY_ANY_TIME_S = 1e-9


@dataclass(frozen=True)
class Cell:
    """All measured attempts at one level on one base; none when it failed."""

    level: Level
    base: int
    attempts: Sequence[AttemptFacts]


def best_level(cells: Sequence[Cell], scores: Scores) -> Level:
    """The level with the lowest score; the first declared among equals."""
    declared = list(dict.fromkeys(cell.level for cell in cells))
    return min((level for level in declared if level in scores), key=lambda level: scores[level])


def by_time(cells: Sequence[Cell], target: float, clock: Clock, *, limit_s: float) -> Scores | None:
    """Mean paired log-ratio of time-to-target per level; None when nothing reached.

    A censored cell counts as at least its bound, `limit_s` where it used up its steps or diverged,
    and never as faster than a cell that reached on the same base. Over several bases more than
    `PAIR_FACTOR` x the best of its base counts as that: so long every trial was given, whatever was cut
    off, and one base where a level is far behind does not outweigh all the others.
    """
    times: dict[tuple[Level, int], float] = {}
    floors: dict[tuple[Level, int], float] = {}
    for cell in cells:
        found = [(a, t) for a in cell.attempts if (t := time_to_target(a, target, clock))]
        reached = [t.seconds for _, t in found if t.reached]
        if reached and 2 * len(reached) >= len(found):
            times[cell.level, cell.base] = max(statistics.median(reached), _HARDLY_ANY_TIME_S)
        elif found:
            floors[cell.level, cell.base] = max(censored_s(a, t, limit_s) for a, t in found)
    if not times:
        return None
    for (level, base), floor in floors.items():
        slowest = [seconds for (_, other), seconds in times.items() if other == base]
        times[level, base] = max([floor, _HARDLY_ANY_TIME_S, *slowest])
    bases = {base for _, base in times}
    if len(bases) > 1:
        best = {b: min(s for (_, base), s in times.items() if base == b) for b in bases}
        times = {key: min(s, PAIR_FACTOR * best[key[1]]) for key, s in times.items()}
    return _mean_differences({key: math.log(seconds) for key, seconds in times.items()})


def by_final(cells: Sequence[Cell]) -> Scores | None:
    """Mean paired difference of the final metric per level; None when no run came to its end.

    A cell without one counts as the worst of its base.
    """
    values: dict[tuple[Level, int], float] = {}
    without: list[tuple[Level, int]] = []
    for cell in (cell for cell in cells if cell.attempts):
        found = [value for a in cell.attempts if (value := final_value(a)) is not None]
        if found and 2 * len(found) >= len(cell.attempts):
            values[cell.level, cell.base] = statistics.median(found)
        else:
            without.append((cell.level, cell.base))
    if not values:
        return None
    for level, base in without:
        rivals = [value for (_, other), value in values.items() if other == base]
        values[level, base] = max(rivals, default=max(values.values()))
    return _mean_differences(values)


def censored_s(attempt: AttemptFacts, time: TimeToTarget, limit_s: float) -> float:
    """Seconds up to which a censored attempt counts as not reached (method section 2)."""
    if attempt.reason in (Reason.STEPS, Reason.DIVERGED):
        return max(limit_s, time.seconds)
    return max(attempt.cap_s or 0.0, time.seconds)


def by_loss(cells: Sequence[Cell], clock: Clock) -> Scores:
    """Mean paired difference of the best loss at equal seconds per level.

    Per base, the seconds are those that every attempt there has; a diverged attempt does not shorten
    them, and one without a loss by then counts as the worst first loss of its base.
    """
    losses: dict[tuple[Level, int], float] = {}
    for base in {cell.base for cell in cells}:
        here = [cell for cell in cells if cell.base == base and cell.attempts]
        ends = [
            a.curve[-1].clock.seconds(clock)
            for cell in here
            for a in cell.attempts
            if a.reason is not Reason.DIVERGED and a.curve
        ]
        common = min(ends, default=math.inf)
        worst = max(
            (e.value for c in here for a in c.attempts for e in a.curve if math.isfinite(e.value)),
            default=0.0,
        )
        for cell in here:
            best = [_best_until(a, common, clock) for a in cell.attempts]
            finite = [value for value in best if value is not None]
            losses[cell.level, base] = statistics.median(finite) if finite else worst
    return _mean_differences(losses)


def _best_until(attempt: AttemptFacts, seconds: float, clock: Clock) -> float | None:
    values = [
        e.value
        for e in attempt.curve
        if e.slice == "probe" and math.isfinite(e.value) and e.clock.seconds(clock) <= seconds
    ]
    return min(values, default=None)


def _mean_differences(values: Mapping[tuple[Level, int], float]) -> Scores:
    """Per level the mean of (its value - another level's) over all pairs that share a base.

    Infinity for a level without a partner, which wins only when nobody has one.
    """
    differences: dict[Level, list[float]] = defaultdict(list)
    for (level, base), value in values.items():
        differences[level]  # a level without any partner is in the table too
        for (other, place), rival in values.items():
            if place == base and other != level:
                differences[level].append(value - rival)
    return {
        level: statistics.fmean(found) if found else math.inf
        for level, found in differences.items()
    }
