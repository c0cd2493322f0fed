"""How likely a configuration reaches the target at all, with exact intervals.

It must not know how fast it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.dataset import StageFacts
from sweeper.analysis.wording import count
from sweeper.objective import time_to_target
from sweeper.space import Point
from sweeper.trial import AttemptFacts, Clock, Reason

ALPHA = 0.05
UNDECIDED = (Reason.CAP, Reason.BUDGET)
"""Stopped for others' sake: whether such a run would have reached is not known."""


@dataclass(frozen=True)
class Chance:
    """So many of the runs that could have reached did; the interval is Clopper and Pearson's (1934).

    Runs that were cut off by a cap or a budget are in `cut` and not in `runs`; forecast stops,
    divergence, timeouts and used up steps count as misses (method section 4).
    """

    label: str
    reached: int
    runs: int
    cut: int
    low: float
    high: float

    def words(self) -> str:
        """`A reached in 9 of 10 runs (P = 0.90 [0.55, 1.00])`."""
        cut = f"; {count(self.cut, 'run')} cut off by a cap or a budget" if self.cut else ""
        if not self.runs:
            return f"{self.label}: whether it reaches is not known{cut}"
        share = f"P = {self.reached / self.runs:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.label} reached in {self.reached} of {count(self.runs, 'run')} ({share}){cut}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **vars(self),
            "share": self.reached / self.runs if self.runs else None,
            "words": self.words(),
        }


def chance(
    stages: Iterable[StageFacts],
    points: Sequence[Point],
    *,
    target: float,
    clock: Clock,
    label: str,
) -> Chance:
    """P(reach) over all measured runs of some points (of all points where none are named)."""
    wanted = set(points)
    reached = missed = cut = 0
    for stage in stages:
        for trial, attempt in stage.measured():
            if wanted and trial.trial.point not in wanted:
                continue
            verdict = _reaches(attempt, target, clock)
            if verdict is None:
                cut += 1
            elif verdict:
                reached += 1
            else:
                missed += 1
    low, high = clopper_pearson(reached, reached + missed, ALPHA)
    return Chance(label, reached, reached + missed, cut, low, high)


def clopper_pearson(hits: int, of: int, alpha: float) -> tuple[float, float]:
    """The exact interval of a proportion at level 1 - alpha; (0, 1) of nothing."""
    from scipy.special import betaincinv  # noqa: PLC0415 - its import is for reports

    low = float(betaincinv(hits, of - hits + 1, alpha / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, of - hits, 1 - alpha / 2)) if hits < of else 1.0
    return low, high


def _reaches(attempt: AttemptFacts, target: float, clock: Clock) -> bool | None:
    time = time_to_target(attempt, target, clock)
    if time is not None and time.reached:
        return True
    # A run that stopped at an easier target of its own says nothing about a harder one.
    return None if attempt.reason in (*UNDECIDED, Reason.TARGET) else False
