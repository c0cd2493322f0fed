"""The times of all configurations of stages 1 and 2, as numbers: what is asked at many targets.

It must not know what they are asked for; a ranking (`ranking.py`) says the same of one target, with
all that is known of every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.ranking import by_point, middle
from sweeper.objective import times_to_targets
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
        self._runs = [[attempt for _, attempt in measured] for measured in tried]

    def __len__(self) -> int:
        return len(self._runs)

    def seconds(self, targets: Sequence[float], clock: Clock) -> np.ndarray:
        """Seconds to each target, a row each, of each configuration; infinite where it did not reach."""
        found = [_seconds(runs, targets, clock) for runs in self._runs]
        return np.array(found, dtype=float).reshape(len(self), len(targets)).T


def _seconds(runs: Sequence[AttemptFacts], targets: Sequence[float], clock: Clock) -> list[float]:
    of_runs = (times_to_targets(run, targets, clock) for run in runs)
    middles = (middle(at_target) for at_target in zip(*of_runs, strict=True))
    return [m.seconds if m.reached else math.inf for m in middles]
