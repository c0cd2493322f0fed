"""The cap: after how many seconds a trial can no longer enter the top k (method section 4).

It must not know processes or databases; it sees the times of a stage and gives a bound.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.objective import time_to_target
from sweeper.trial import Clock, TrialFacts

UNKNOWN_NOISE_SLACK = 1.10
GRACE_FLOOR_S = 1.0


@dataclass(frozen=True)
class Cap:
    """A bound in seconds on the ranking clock, with the sentence that explains it."""

    seconds: float
    why: str


def kth_best(
    facts: Sequence[TrialFacts], target: float, clock: Clock, k: int
) -> tuple[float, float] | None:
    """(k-th smallest, smallest) time over distinct points, or None until k points have reached.

    A point's time is the median over its replicates that reached.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for trial in facts:
        attempt = trial.counted
        found = time_to_target(attempt, target, clock) if attempt else None
        if found is not None and found.reached:
            times[trial.trial.point.id].append(found.seconds)
    medians = sorted(statistics.median(values) for values in times.values())
    return (medians[k - 1], medians[0]) if len(medians) >= k else None


def cap(
    facts: Sequence[TrialFacts],
    target: float,
    clock: Clock,
    *,
    k: int,
    slack: float | None,
    group_best: float | None = None,
) -> Cap | None:
    """Seconds after which a trial cannot enter the top k; None while nothing can be said.

    `group_best` is the best time of the trial's group where another group depends on that group: its
    winner must not be cut off either. `slack` None means the method's default while the replicate
    spread is unknown.
    """
    best = kth_best(facts, target, clock, k)
    if best is None:
        return None
    factor = UNKNOWN_NOISE_SLACK if slack is None else slack
    bound = max(best[0], group_best or 0.0)
    if not math.isfinite(bound):
        return None
    seconds = max(GRACE_FLOOR_S, factor * bound)
    return Cap(
        seconds,
        f"cannot enter the top {k}: its last place stands at {best[0]:.1f} s x {factor:.2f}",
    )
