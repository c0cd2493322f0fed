"""The order of waiting trials: cheap and promising first inside a group, so that caps tighten early.

It must not know what runs where; the order decides when a trial runs, never whether.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sweeper.racing.standing import Run, Standing
from sweeper.space import Point, Value
from sweeper.trial import PlannedTrial, Reason

SHRINKAGE = 1.0
"""Runs' worth of doubt in the mean of one level: a level seen once counts half."""


def promising_first(
    ready: Sequence[PlannedTrial],
    standing: Standing,
    *,
    baseline: Mapping[str, Value],
    limit_s: float,
) -> list[PlannedTrial]:
    """Groups in plan order; inside a group by expected log time, then by nearness to the baseline.

    The expectation adds up what each level has done in this stage so far (a mean of residuals, shrunk
    towards 0), with trials that did not reach counted at the time up to which they were watched. A
    trial that is the original of a replicate comes before it.

    Args:
        ready: Trials that could start now, in plan order.
        standing: What is known.
        baseline: The study's baselines, for what nothing is known about.
        limit_s: Stands for the time of a trial that diverged or used up its steps.
    """
    groups: dict[tuple[str, ...], int] = {}
    for trial in ready:
        groups.setdefault(trial.groups[:1], len(groups))
    effects = _effects(standing, limit_s)
    place = {trial.id: number for number, trial in enumerate(ready)}

    def key(trial: PlannedTrial) -> tuple[float, ...]:
        expected = math.fsum(effects.get((n, v), 0.0) for n, v in trial.point.items())
        away = sum(1 for n, v in trial.point.items() if baseline.get(n) != v)
        return (groups[trial.groups[:1]], round(expected, 6), away, place[trial.id])

    return sorted(ready, key=key)


def _effects(standing: Standing, limit_s: float) -> Mapping[tuple[str, Value], float]:
    logs: dict[Point, list[float]] = defaultdict(list)
    for run in standing.runs:
        seconds = _seconds(run, limit_s)
        if seconds > 0:
            logs[run.trial.point].append(math.log(seconds))
    if len(logs) < 2:
        return {}
    known = {point: statistics.fmean(values) for point, values in logs.items()}
    mean = statistics.fmean(known.values())
    by_level: dict[tuple[str, Value], list[float]] = defaultdict(list)
    for point, value in known.items():
        for level in point.items():
            by_level[level].append(value - mean)
    return {level: math.fsum(v) / (len(v) + SHRINKAGE) for level, v in by_level.items()}


def _seconds(run: Run, limit_s: float) -> float:
    if run.time is None or run.attempt is None:
        return 0.0
    if not run.time.reached and run.attempt.reason in (Reason.STEPS, Reason.DIVERGED):
        return max(limit_s, run.time.seconds)
    return run.time.seconds
