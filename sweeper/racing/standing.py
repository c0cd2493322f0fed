"""Where a stage stands at one target: every run's time, every point's median, the replicate spread.

It must not know what is decided from it.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweeper.noise import Repeats, known_spread, slack, spread_of_the_best
from sweeper.objective import TimeToTarget, time_to_target
from sweeper.racing.changes import changed
from sweeper.space import Point
from sweeper.trial import CONTROL, AttemptFacts, Clock, PlannedTrial, TrialFacts


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

    `medians` holds the points whose median run reached, in no order; of an even number of runs it is the
    slower of the two in the middle, and a run that did not reach counts as slower than any that did: so
    it is known whatever was cut off beyond it. `first` has the time of each point's first run, infinite
    where it did not reach. `fastest` are their times, ascending. `reached` has the time of
    every trial that reached. `ended` counts the runs that have a time, `seen` their points. `repeats`
    are the points of which several runs have one.
    """

    target: float
    clock: Clock
    runs: tuple[Run, ...]
    ended: int
    seen: int
    medians: Mapping[Point, float]
    fastest: tuple[float, ...]
    first: Mapping[Point, float]
    reached: Mapping[str, float]
    repeats: Sequence[Repeats]

    def kth(self, k: int) -> float | None:
        """The k-th smallest time over distinct points, or None until k have reached."""
        return self.fastest[k - 1] if 0 < k <= len(self.fastest) else None

    def best(self, k: int) -> list[Point]:
        """The (at most) k points with the smallest medians, the fastest first."""
        return sorted(self.medians, key=self.medians.__getitem__)[:k]

    def noise(self, k: int) -> tuple[float | None, int]:
        """See `noise.spread_of_the_best`, where k points are kept."""
        kth = self.kth(k)
        return spread_of_the_best(self.repeats, math.inf if kth is None else kth)

    def slack(self, declared: float | None, k: int) -> float:
        """See `noise.slack`; 1.10 until there are 4 degrees; a declared slack always wins."""
        return slack(known_spread(*self.noise(k))) if declared is None else declared


class Times:
    """Works out standings; what has not changed since the last one is not worked out again.

    Facts are frozen: a place of the row with the same object has the same run, and a point all of
    whose runs are the same has the same median.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._forget_all(math.nan)

    def _forget_all(self, target: float) -> None:
        self._target = target
        self._facts: Sequence[TrialFacts] = ()
        self._runs: list[Run] = []
        self._ended = 0
        self._of_point: dict[Point, dict[int, float]] = defaultdict(dict)
        self._medians: dict[Point, float] = {}
        self._fastest: list[float] = []
        self._reached: dict[str, float] = {}
        self._controls: dict[Point, int] = defaultdict(int)
        self._first: dict[Point, float] = {}
        self._repeats: dict[Point, Repeats] = {}

    def standing(self, facts: Iterable[TrialFacts], target: float) -> Standing:
        """The standing of these trials at a target."""
        facts = tuple(facts)
        if target != self._target:
            self._forget_all(target)
        news = changed(self._facts, facts)
        points = {self._forget(place) for place in news if place < len(self._facts)}
        del self._runs[len(facts) :]
        points |= {self._take(place, facts[place]) for place in news if place < len(facts)}
        self._facts = facts
        for point in points:
            self._settle(point)
        return Standing(
            target,
            self._clock,
            tuple(self._runs),
            self._ended,
            len(self._first),
            self._medians.copy(),
            tuple(self._fastest),
            self._first.copy(),
            self._reached.copy(),
            tuple(self._repeats.values()),
        )

    def _forget(self, place: int) -> Point:
        """Let the run in a place of the row count no more; the point whose times are others now."""
        run = self._runs[place]
        if run.time is not None:
            self._ended -= 1
            del self._of_point[run.trial.point][place]
            self._controls[run.trial.point] -= CONTROL in run.trial.groups
        self._reached.pop(run.trial.id, None)
        return run.trial.point

    def _take(self, place: int, facts: TrialFacts) -> Point:
        """Have a trial's run in a place of the row; the point whose times are others now."""
        trial, attempt = facts.trial, facts.counted
        time = None if attempt is None else time_to_target(attempt, self._target, self._clock)
        run = Run(trial, attempt, time)
        self._runs[place : place + 1] = [run]
        if time is not None:
            self._ended += 1
            self._of_point[trial.point][place] = time.seconds if time.reached else math.inf
            self._controls[trial.point] += CONTROL in trial.groups
        if run.reached_s is not None:
            self._reached[trial.id] = run.reached_s
        return trial.point

    def _settle(self, point: Point) -> None:
        """Work out a point's median and spread anew."""
        if (before := self._medians.pop(point, None)) is not None:
            _drop(self._fastest, before)
        self._repeats.pop(point, None)
        self._first.pop(point, None)
        of = self._of_point[point]
        times = [of[place] for place in sorted(of)]
        median = statistics.median_high(times) if times else math.inf
        if math.isfinite(median):
            self._medians[point] = median
            insort(self._fastest, median)
        if times:
            self._first[point] = times[0]
        if len(times) > 1:
            control = self._controls[point] > 0
            self._repeats[point] = Repeats.of(times, control=control)


def _drop(ascending: list[float], value: float) -> None:
    del ascending[bisect_left(ascending, value)]
