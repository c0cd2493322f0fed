"""The times of all configurations of stages 1 and 2, as numbers: what is asked at many targets.

It must not know what they are asked for; a ranking (`ranking.py`) says the same of one target, with
all that is known of every run, and `objective.Descent` says it of one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.ranking import by_point
from sweeper.curve import column, seconds
from sweeper.objective import descent
from sweeper.trial import AttemptFacts, Clock


class SearchTimes:
    """Every configuration with the runs that measured it, in the order of their first trials' ids.

    That is the order in which a ranking names equal times. `points` and `labels` are those of the
    first trials.
    """

    def __init__(self, facts: StudyFacts) -> None:
        tried = list(by_point(facts.present(SEARCH_STAGES)).values())
        tried.sort(key=lambda measured: measured[0][0].trial.id)
        self.points = [measured[0][0].trial.point for measured in tried]
        self.labels = [measured[0][0].trial.label for measured in tried]
        self._runs = _Runs([attempt for measured in tried for _, attempt in measured])
        runs = np.array([len(measured) for measured in tried], dtype=int)
        first = np.cumsum(runs) - runs
        self._configuration = np.repeat(np.arange(len(tried)), runs)
        self._middle = first + (runs - 1) // 2, first + runs // 2

    def __len__(self) -> int:
        return len(self.points)

    def seconds(self, targets: Sequence[float], clock: Clock) -> np.ndarray:
        """Seconds to each target, a row each, of each configuration; infinite where it did not reach.

        The median over runs, as `ranking.middle` has it: who did not reach comes last.
        """
        found = np.empty((len(targets), len(self)))
        for row, target in zip(found, targets, strict=True):
            of_runs = self._runs.seconds(target, clock)
            ordered = of_runs[np.lexsort((of_runs, self._configuration))]
            low, high = self._middle
            row[:] = (ordered[low] + ordered[high]) / 2
        return found


class _Runs:
    """The levels that all runs came down to in one table: a target is looked for in all at once."""

    def __init__(self, runs: Sequence[AttemptFacts]) -> None:
        self._runs = runs
        self._descents = [descent(run) for run in runs]
        levels = np.array([len(of.depths) for of in self._descents], dtype=int)
        probes = np.array([len(of.probes) for of in self._descents], dtype=int)
        self._ends = np.cumsum(levels)
        self._firsts = self._ends - levels
        self._depths = _joined(of.depths for of in self._descents)
        numbers = _joined(of.numbers for of in self._descents).astype(int)
        self._at = np.repeat(np.cumsum(probes) - probes, levels) + numbers
        self._start = self._at - (numbers > 0)
        of_each = zip(self._descents, runs, strict=True)
        self._values = _joined(of.of_probes(column(run.curve, "value")) for of, run in of_each)
        self._stamps: dict[Clock, np.ndarray] = {}

    def seconds(self, target: float, clock: Clock) -> np.ndarray:
        """Seconds of each run to a target, infinite where it did not reach: `Descent.crossing`."""
        deeper = np.concatenate(([0], np.cumsum(self._depths < -target)))
        level = self._firsts + deeper[self._ends] - deeper[self._firsts]
        reached = level < self._ends
        at, start = self._at[level[reached]], self._start[level[reached]]
        above, value = self._values[start], self._values[at]
        share = np.ones(len(at))
        np.divide(above - target, above - value, out=share, where=above > target)
        stamps = self._on(clock)
        found = np.full(len(self._ends), np.inf)
        found[reached] = stamps[start] + share * (stamps[at] - stamps[start])
        return found

    def _on(self, clock: Clock) -> np.ndarray:
        """The stamps of all finite probes on a clock."""
        if clock not in self._stamps:
            of_each = zip(self._descents, self._runs, strict=True)
            read = (of.of_probes(seconds(run.curve, clock)) for of, run in of_each)
            self._stamps[clock] = _joined(read)
        return self._stamps[clock]


def _joined(parts: Iterable[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.empty(0), *parts])
