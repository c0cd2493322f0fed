"""Where a stage stands at one target: every run's time, every point's median, the replicate spread.

It must not know what is decided from it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeper.noise import known_spread, pooled_spread, slack
from sweeper.objective import TimeToTarget, time_to_target
from sweeper.space import Point
from sweeper.trial import AttemptFacts, Clock, PlannedTrial, TrialFacts


@dataclass(frozen=True)
class Run:
    """A trial with its counted attempt and time; both None where nothing was measured yet."""

    trial: PlannedTrial
    attempt: AttemptFacts | None
    time: TimeToTarget | None

    @property
    def reached_s(self) -> float | None:
        """Seconds to the target, or None."""
        return self.time.seconds if self.time is not None and self.time.reached else None


@dataclass(frozen=True)
class Standing:
    """What is known at one target on one clock; derived from facts alone.

    `medians` holds the points whose median run reached, fastest first; a run that did not reach
    counts as slower than any that did. `spread` is the pooled standard deviation of log time between
    runs of one point, None below one degree of freedom.
    """

    target: float
    clock: Clock
    runs: tuple[Run, ...]
    medians: Mapping[Point, float]
    spread: float | None
    degrees: int

    def kth(self, k: int) -> float | None:
        """The k-th smallest time over distinct points, or None until k have reached."""
        times = list(self.medians.values())
        return times[k - 1] if 0 < k <= len(times) else None

    def slack(self, declared: float | None) -> float:
        """See `noise.slack`; 1.10 until there are 4 degrees; a declared slack always wins."""
        return slack(known_spread(self.spread, self.degrees)) if declared is None else declared


class Times:
    """Works out standings; what has not changed since the last one is not worked out again.

    Facts are frozen: a trial whose facts are the same object has the same run, and a point all of
    whose runs are the same has the same median.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._target = math.nan
        self._runs: dict[str, tuple[TrialFacts, Run]] = {}
        self._of_point: dict[Point, dict[str, float]] = {}
        self._medians: dict[Point, float] = {}

    def standing(self, facts: Iterable[TrialFacts], target: float) -> Standing:
        """The standing of these trials at a target."""
        facts = list(facts)
        if target != self._target or len(self._runs.keys() - {f.trial.id for f in facts}) > 0:
            self._target = target
            self._runs, self._of_point, self._medians = {}, {}, {}
        changed: set[Point] = set()
        for one in facts:
            known = self._runs.get(one.trial.id)
            if known is None or known[0] is not one:
                changed |= self._take(one, known[1] if known else None)
        for point in changed:
            times = self._of_point[point].values()
            median = statistics.median(times) if times else math.inf
            self._medians.pop(point, None)
            if math.isfinite(median):
                self._medians[point] = median
        spread, degrees = pooled_spread(t.values() for t in self._of_point.values() if len(t) > 1)
        self._medians = dict(sorted(self._medians.items(), key=lambda item: item[1]))
        runs = tuple(self._runs[one.trial.id][1] for one in facts)
        return Standing(target, self._clock, runs, dict(self._medians), spread, degrees)

    def _take(self, facts: TrialFacts, before: Run | None) -> set[Point]:
        """Take over a trial's facts; the points whose times may be others now."""
        trial, attempt = facts.trial, facts.counted
        time = None if attempt is None else time_to_target(attempt, self._target, self._clock)
        self._runs[trial.id] = (facts, Run(trial, attempt, time))
        changed = set()
        if before is not None and before.time is not None:
            self._of_point[before.trial.point].pop(trial.id, None)
            changed.add(before.trial.point)
        if time is not None:
            seconds = time.seconds if time.reached else math.inf
            self._of_point.setdefault(trial.point, {})[trial.id] = seconds
            changed.add(trial.point)
        return changed
