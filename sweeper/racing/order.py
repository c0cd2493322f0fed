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
NEWS = 0.02
"""Share of ended runs that must be new before expectations are worked out again."""


class Order:
    """Works out orders, each trial's expectation again only when there is something new to go by.

    That is with every ended run up to 50 of them, then whenever 2 % more have ended: an end among
    thousands changes no mean, and thousands of expectations would be the largest cost of a trial.
    """

    def __init__(self, baseline: Mapping[str, Value], limit_s: float) -> None:
        """`limit_s` stands for the time of a trial that diverged or used up its steps."""
        self._baseline = baseline
        self._limit_s = limit_s
        self._known_at = (math.nan, 0)
        self._effects: Mapping[tuple[str, Value], float] = {}
        self._expected: dict[str, tuple[Point, float, int]] = {}

    def promising_first(
        self, ready: Sequence[PlannedTrial], standing: Standing
    ) -> list[PlannedTrial]:
        """Groups in plan order; inside a group by expected log time, then by nearness to the baseline.

        The expectation adds up what each level has done in this stage so far (a mean of residuals,
        shrunk towards 0), with trials that did not reach counted at the time up to which they were
        watched. A trial that is the original of a replicate comes before it.

        Args:
            ready: Trials that could start now, in plan order.
            standing: What is known.
        """
        target, seen = self._known_at
        ended = sum(run.time is not None for run in standing.runs)
        if target != standing.target or not seen <= ended < max(seen + 1, seen * (1 + NEWS)):
            self._known_at = (standing.target, ended)
            self._effects = _effects(standing, self._limit_s)
            self._expected.clear()
        groups: dict[tuple[str, ...], int] = {}
        for trial in ready:
            groups.setdefault(trial.groups[:1], len(groups))
        return sorted(ready, key=lambda trial: (groups[trial.groups[:1]], self._expectation(trial)))

    def _expectation(self, trial: PlannedTrial) -> tuple[float, int]:
        """Expected log time against the mean, and how many parameters are off the baseline."""
        known = self._expected.get(trial.id)
        if known is None or known[0] is not trial.point:
            point, effects, baseline = trial.point, self._effects, self._baseline
            expected = math.fsum(effects.get(level, 0.0) for level in point.items())
            away = sum(1 for n, v in point.items() if baseline.get(n) != v)
            known = self._expected[trial.id] = (point, round(expected, 6), away)
        return known[1:]


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
