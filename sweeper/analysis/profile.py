"""The same curves at many targets: how many configurations reach each, and how fast.

It must not know how a profile is drawn; it ranks nothing, so that many targets cost one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.times import SearchTimes
from sweeper.analysis.verdict import Verdict

TARGETS = 24
LOOSEST = 0.3
"""Of the way from the judged target to the highest first value."""


@dataclass(frozen=True)
class AtTarget:
    """How the configurations of stages 1 and 2 stand at one target, in the metric's unit.

    `reached` of them reached it after some time; `fastest` is the label of the first, None where
    there is none. Seconds are on the clock that ranks, None for who did not reach.
    """

    target: float
    reached: int
    configurations: int
    fastest_s: float | None
    fastest: str | None
    winner_s: float | None
    baseline_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


def profile(facts: StudyFacts, judged: Verdict, times: SearchTimes) -> tuple[AtTarget, ...]:
    """Every target shown, loosest first: the judged one, and TARGETS evenly spaced ones.

    Those go from the tightest that anybody came down to up to LOOSEST of the way to the highest
    first value. None where nothing finite was measured, or nothing lies between.
    """
    goals = _goals(facts, judged)
    if not goals:
        return ()
    seconds = times.seconds(goals, facts.clock)
    seconds[seconds <= 0] = np.inf  # nobody was seen on the way there: no time to compare
    place = {point: number for number, point in enumerate(times.points)}

    def at(goal: float, column: np.ndarray) -> AtTarget:
        def of(number: int | None) -> float | None:
            found = math.inf if number is None else float(column[number])
            return found if found < math.inf else None

        fastest = int(column.argmin())
        reached = int(np.isfinite(column).sum())
        return AtTarget(
            target=goal,
            reached=reached,
            configurations=len(times),
            fastest_s=of(fastest),
            fastest=times.labels[fastest] if reached else None,
            winner_s=of(place.get(judged.winner.point) if judged.winner else None),
            baseline_s=of(place.get(judged.baseline.point) if judged.baseline else None),
        )

    return tuple(map(at, goals, seconds))


def _goals(facts: StudyFacts, judged: Verdict) -> list[float]:
    """The targets from the loosest to the tightest."""
    losses = [row.best_loss for row in judged.ranking if row.best_loss is not None]
    firsts = [
        attempt.curve[0].value
        for stage in facts.present(SEARCH_STAGES)
        for _, attempt in stage.measured()
        if attempt.curve and math.isfinite(attempt.curve[0].value)
    ]
    if not losses or not firsts:
        return []
    tightest, loosest = min(losses), judged.target + LOOSEST * (max(firsts) - judged.target)
    if not loosest > tightest:
        return []
    step = (loosest - tightest) / (TARGETS - 1)
    goals = {round(tightest + i * step, 6) for i in range(TARGETS)} | {judged.target}
    return sorted(goals, reverse=True)
