"""The same curves at many targets: how many configurations reach each, and how fast.

It must not know how a profile is drawn; it ranks nothing, so that many targets cost one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.ranking import by_point, middle
from sweeper.analysis.verdict import Verdict
from sweeper.objective import times_to_targets
from sweeper.trial import AttemptFacts, Clock

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


def profile(facts: StudyFacts, judged: Verdict) -> tuple[AtTarget, ...]:
    """Every target shown, loosest first: the judged one, and TARGETS evenly spaced ones.

    Those go from the tightest that anybody came down to up to LOOSEST of the way to the highest
    first value. None where nothing finite was measured, or nothing lies between.
    """
    goals = _goals(facts, judged)
    if not goals:
        return ()
    tried = list(by_point(facts.present(SEARCH_STAGES)).values())
    tried.sort(
        key=lambda measured: measured[0][0].trial.id
    )  # of equal times the first one is named
    seconds = np.array([_seconds([a for _, a in of], goals, facts.clock) for of in tried])
    firsts = [measured[0][0].trial for measured in tried]
    place = {trial.point: number for number, trial in enumerate(firsts)}

    def at(goal: float, column: np.ndarray) -> AtTarget:
        def of(number: int | None) -> float | None:
            found = math.inf if number is None else float(column[number])
            return found if found < math.inf else None

        fastest = int(column.argmin())
        reached = int(np.isfinite(column).sum())
        return AtTarget(
            target=goal,
            reached=reached,
            configurations=len(column),
            fastest_s=of(fastest),
            fastest=firsts[fastest].label if reached else None,
            winner_s=of(place.get(judged.winner.point) if judged.winner else None),
            baseline_s=of(place.get(judged.baseline.point) if judged.baseline else None),
        )

    return tuple(map(at, goals, seconds.T))


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


def _seconds(runs: Sequence[AttemptFacts], goals: Sequence[float], clock: Clock) -> list[float]:
    """One configuration's seconds to every goal; infinite where it did not reach, or took no time."""
    at_goals = zip(*(times_to_targets(run, goals, clock) for run in runs), strict=True)
    middles = map(middle, at_goals)
    return [m.seconds if m.reached and m.seconds > 0 else math.inf for m in middles]
