"""Where a stage stands at one target: every run's time, every point's median, the replicate spread.

It must not know what is decided from it.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeper.objective import TimeToTarget, time_to_target
from sweeper.space import Point
from sweeper.trial import AttemptFacts, Clock, PlannedTrial, TrialFacts

LEAST_DEGREES = 4
UNKNOWN_NOISE_SLACK = 1.10
ONE_IN_A_HUNDRED = 2.33  # one-sided normal quantile


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
        """exp(2.33 sqrt(2) s): an equal of the k-th falls out in about 1 % of cases (method 4).

        1.10 until the spread has 4 degrees of freedom; a declared slack always wins.
        """
        if declared is not None:
            return declared
        if self.spread is None or self.degrees < LEAST_DEGREES:
            return UNKNOWN_NOISE_SLACK
        return math.exp(ONE_IN_A_HUNDRED * math.sqrt(2) * self.spread)


class Times:
    """Works out standings, and each attempt's time once: a curve is long, an ended one never changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[tuple[str, int, float, str], TimeToTarget | None] = {}

    def standing(self, facts: Iterable[TrialFacts], target: float) -> Standing:
        """The standing of these trials at a target."""
        runs = tuple(Run(f.trial, f.counted, self._time(f, target)) for f in facts)
        times: dict[Point, list[float]] = defaultdict(list)
        for run in runs:
            if run.time is not None:
                times[run.trial.point].append(run.time.seconds if run.time.reached else math.inf)
        medians = {point: statistics.median(values) for point, values in times.items()}
        reached = {p: s for p, s in medians.items() if math.isfinite(s)}
        spread, degrees = _spread(times.values())
        ordered = dict(sorted(reached.items(), key=lambda item: item[1]))
        return Standing(target, self._clock, runs, ordered, spread, degrees)

    def _time(self, facts: TrialFacts, target: float) -> TimeToTarget | None:
        attempt = facts.counted
        if attempt is None:
            return None
        key = (facts.trial.id, attempt.attempt, target, attempt.outcome.value)
        if key not in self._known:
            self._known[key] = time_to_target(attempt, target, self._clock)
        return self._known[key]


def _spread(times: Iterable[list[float]]) -> tuple[float | None, int]:
    logs = [[math.log(s) for s in of_point if 0 < s < math.inf] for of_point in times]
    repeated = [values for values in logs if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    if not degrees:
        return None, 0
    squares = math.fsum(statistics.variance(v) * (len(v) - 1) for v in repeated)
    return math.sqrt(squares / degrees), degrees
