"""The order of waiting trials: cheap and promising first inside a group, so that caps tighten early.

It must not know what runs where; the order decides when a trial runs, never whether.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, compress

from sweeper.racing.standing import Run, Standing
from sweeper.space import Point, Value
from sweeper.trial import PlannedTrial, Reason

SHRINKAGE = 1.0
"""Runs' worth of doubt in the mean of one level: a level seen once counts half."""
NEWS = 0.02
"""Share of ended runs that must be new before expectations are worked out again."""


class Order:
    """Works out orders of a plan's trials; their expectations only when there is something new.

    That is with every ended run up to 50 of them, then whenever 2 % more have ended: an end among
    thousands changes no mean, and thousands of expectations would be the largest cost of a trial.
    """

    def __init__(self, baseline: Mapping[str, Value], limit_s: float) -> None:
        """`limit_s` stands for the time of a trial that diverged or used up its steps."""
        self._baseline = baseline
        self._limit_s = limit_s
        self._known_at = (math.nan, 0)
        self._effects: Mapping[tuple[str, Value], float] = {}
        self._trials: Sequence[PlannedTrial] = ()
        self._groups: list[tuple[str, ...]] = []
        self._away: list[int] = []
        self._within: dict[tuple[str, ...], list[int]] = {}

    def promising_first(
        self, trials: Sequence[PlannedTrial], ready: Sequence[int], standing: Standing
    ) -> list[PlannedTrial]:
        """Groups in plan order; inside a group by expected log time, then by nearness to the baseline.

        The expectation adds up what each level has done in this stage so far (a mean of residuals,
        shrunk towards 0), with trials that did not reach counted at the time up to which they were
        watched. A trial that is the original of a replicate comes before it.

        Args:
            trials: All trials of the plan, in its order.
            ready: For each of them 1 if it could start now (only these are put into order), else 0.
            standing: What is known.
        """
        target, seen = self._known_at
        news = target != standing.target or not seen <= standing.ended < max(
            seen + 1, seen * (1 + NEWS)
        )
        if news:
            self._known_at = (standing.target, standing.ended)
            self._effects = _effects(standing, self._limit_s)
        if trials is not self._trials:
            self._trials = trials
            self._groups = [trial.groups[:1] for trial in trials]
            self._away = [
                sum(1 for n, v in t.point.items() if self._baseline.get(n) != v) for t in trials
            ]
            news = True
        if news:
            self._sort()
        groups = dict.fromkeys(compress(self._groups, ready))
        places = (filter(ready.__getitem__, self._within[group]) for group in groups)
        return [trials[place] for place in chain.from_iterable(places)]

    def _sort(self) -> None:
        """The places of each group's trials: by expectation, then nearness, then as planned."""
        effect = defaultdict(float, self._effects).__getitem__
        expected = [round(math.fsum(map(effect, trial.point.items())), 6) for trial in self._trials]
        self._within = defaultdict(list)
        keys = list(zip(expected, self._away, strict=True))
        for place in sorted(range(len(keys)), key=keys.__getitem__):
            self._within[self._groups[place]].append(place)


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
