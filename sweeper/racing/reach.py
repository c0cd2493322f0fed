"""Whether the target is within reach: an early word, and the switch to a fallback.

It must not forecast from formulas, and never switches on a forecast: only limits used up count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.objective import lowest, time_to_target
from sweeper.racing.standing import Run, Standing
from sweeper.study import Study
from sweeper.trial import AttemptFacts, Clock, Reason, TrialFacts

USED_UP = (Reason.TIMEOUT, Reason.STEPS)
ANNOUNCE_AFTER = 2
_TAIL = 0.25


@dataclass(frozen=True)
class Reach:
    """What is known about the target so far.

    `used_up` counts distinct points that used up their limits without reaching, `reached` those that
    reached. While none has, `nearest` is the lowest loss seen, and `lowest_possible` what it would come
    to if it went on for as long again, falling as in its last quarter: a hopeful straight line.
    """

    used_up: int
    reached: int
    nearest: float | None
    lowest_possible: float | None

    def words(self, target: float) -> str:
        """An announcement, or nothing: the target looks out of reach."""
        far = self.lowest_possible is not None and self.lowest_possible > target
        if self.reached or self.used_up < ANNOUNCE_AFTER or not far or self.nearest is None:
            return ""
        return (
            f"the target {target:g} looks out of reach: {self.used_up} configurations used up their "
            f"limits, the nearest came down to {self.nearest:.4g}, and twice the limit would bring "
            f"it to {self.lowest_possible:.4g} at best"
        )


def reach(standing: Standing) -> Reach:
    """What a stage's runs say about its target."""
    used_up = points_used_up(standing)
    if standing.medians:
        return Reach(used_up, len(standing.medians), None, None)
    losses = [(x, r) for r in standing.runs if r.attempt and (x := lowest(r.attempt)) is not None]
    if not losses:
        return Reach(used_up, 0, None, None)
    nearest, run = min(losses, key=lambda found: found[0])
    assert run.attempt is not None
    probes = [(e.clock.seconds(standing.clock), e.value) for e in run.attempt.curve if _ok(e)]
    end_s = probes[-1][0]
    tail = [value for at_s, value in probes if at_s >= (1 - _TAIL) * end_s]
    slope = max(0.0, tail[0] - min(tail)) / (_TAIL * end_s) if end_s > 0 else 0.0
    return Reach(used_up, 0, nearest, nearest - slope * end_s)


def points_used_up(standing: Standing) -> int:
    """How many distinct points used up their limits without reaching."""
    return len({r.trial.point for r in standing.runs if _used_up(r)})


def fallback(standing: Standing, ladder: Sequence[float], k: int) -> tuple[float, str] | None:
    """The fallback to switch to, with the reason, or None: the target stays.

    Only when k distinct points have used up their limits and none has reached. The hardest fallback
    that k points crossed, else the hardest that any did; None where nobody crossed any.
    """
    if standing.medians or (used_up := points_used_up(standing)) < k:
        return None
    crossed = {goal: _crossed(standing, goal) for goal in sorted(ladder) if goal > standing.target}
    for wanted in (k, 1):
        for goal, count in crossed.items():
            if count >= wanted:
                words = (
                    f"{used_up} configurations used up their limits and none reached "
                    f"{standing.target:g}: the target is {goal:g} from here on, which {count} crossed"
                )
                return goal, words
    return None


def stretch(
    standing: Standing, ladder: Sequence[float], k: int, slack: float
) -> tuple[float, str] | None:
    """The next stretch target, with the reason, or None: some are told apart, or somebody is missing.

    Only when every point that was run reached, at least k of them (two at least), and the slowest is
    within `slack` of the fastest.
    """
    times = standing.fastest
    points = {r.trial.point for r in standing.runs}
    harder = [goal for goal in ladder if goal < standing.target]
    if not harder or len(times) < max(2, k) or points != standing.medians.keys():
        return None
    if times[-1] > slack * times[0]:
        return None
    goal = max(harder)
    words = (
        f"all {len(times)} configurations reached {standing.target:g} within noise of each other "
        f"({times[0]:.1f} s to {times[-1]:.1f} s, {slack:.2f} x is noise): the target is {goal:g} from "
        "here on"
    )
    return goal, words


def _crossed(standing: Standing, goal: float) -> int:
    return len(
        {
            r.trial.point
            for r in standing.runs
            if r.attempt and r.time and _reached(r.attempt, goal, standing.clock)
        }
    )


def _used_up(run: Run) -> bool:
    reached = run.reached_s is not None
    return not reached and run.attempt is not None and run.attempt.reason in USED_UP


def _ok(evaluation: object) -> bool:
    value = getattr(evaluation, "value", math.nan)
    return getattr(evaluation, "slice", "") == "probe" and math.isfinite(value)


def effective_target(study: Study, facts: Sequence[TrialFacts], target: float) -> float | None:
    """The target if anything reached it, else the tightest fallback that anything crossed, else None."""
    attempts_made = [f.counted for f in facts if f.counted is not None]
    for candidate in (target, *study.objective.easier(target)):
        if any(_reached(a, candidate, study.objective.clock) for a in attempts_made):
            return candidate
    return None


def _reached(attempt: AttemptFacts, target: float, clock: Clock) -> bool:
    time = time_to_target(attempt, target, clock)
    return time is not None and time.reached
