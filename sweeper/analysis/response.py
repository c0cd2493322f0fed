"""What analysis compares: log seconds to a target, bounds included, or the metric at the budget's end.

It must not know which parameters were varied, or how a comparison is made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.attribution import Split
from sweeper.analysis.censored import ABOVE, EXACT
from sweeper.analysis.dataset import StageFacts
from sweeper.analysis.wording import change, more_or_less, significant
from sweeper.objective import TimeToTarget, final_value, time_to_target
from sweeper.space import Point
from sweeper.study import Limits, Study
from sweeper.trial import AttemptFacts, Clock, Reason, StageName


@dataclass(frozen=True)
class Response:
    """What is asked of a run: log seconds to `target` on `clock`, or (`final`) its last metric.

    A difference of two such values is a log ratio of times, or a difference of the metric.
    """

    target: float
    clock: Clock
    metric: str
    final: bool = False

    @classmethod
    def of(cls, study: Study, target: float) -> Response:
        """What the study's goal asks."""
        objective = study.objective
        return cls(target, objective.clock, objective.metric, objective.goal == "final")

    def shown(self, difference: float) -> float:
        """A difference as people read it: a ratio of times, or a difference of the metric."""
        return difference if self.final else math.exp(difference)

    def words(self, difference: float) -> str:
        """`+6.0 %`, or `-0.0123` of the metric."""
        if not self.final:
            return change(math.exp(difference))
        sign = "-" if difference < 0 else "+"
        return f"{sign}{significant(abs(difference), 3)}"

    def faster_or_slower(self, difference: float) -> str:
        """`6.0 % slower`, or `0.0123 higher`."""
        if not self.final:
            return more_or_less(math.exp(difference), "slower", "faster")
        return f"{significant(abs(difference), 3)} {'higher' if difference >= 0 else 'lower'}"

    def value_words(self, value: float) -> str:
        """A value, not a difference: seconds, or the metric."""
        return significant(value if self.final else math.exp(value), 4)


@dataclass(frozen=True)
class Estimate:
    """A difference with its interval at level 1 - alpha; an end that nothing bounds is None.

    `n` counts the values that it was estimated from. Without any interval both ends are None and
    `is_bounded` is false.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    alpha: float
    is_bounded: bool = True

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out "no difference"."""
        if not self.is_bounded:
            return False
        return (self.low is not None and self.low > 0) or (self.high is not None and self.high < 0)

    def as_dict(self, response: Response) -> dict[str, Any]:
        """JSON values: `ratio` of times (or `difference` of the metric) and its interval."""
        ends = (self.low, self.high)
        low, high = (None if end is None else response.shown(end) for end in ends)
        return {
            "difference" if response.final else "ratio": response.shown(self.value),
            "low": low,
            "high": high,
            "n": self.n,
            "confidence": 1 - self.alpha if self.is_bounded else None,
        }

    def bracket(self, response: Response) -> str:
        """`[-1.0 %, +13 %]`; an open end is `...`, no interval is nothing."""
        if not self.is_bounded or (self.low is None and self.high is None):
            return ""
        ends = ("..." if end is None else response.words(end) for end in (self.low, self.high))
        return f"[{', '.join(ends)}]"


@dataclass(frozen=True)
class Observed:
    """What was seen of one run, or of all runs of a point.

    `value` is on the response's scale; where `known` is ABOVE it is a bound. `tokens` is log tokens
    to the target (of a bound: until it ended), `speed` log seconds per token, which a run that did
    not reach tells too; value = tokens + speed where the value is exact. Both are None without a
    token count, and when the final metric is asked for.
    """

    ids: tuple[str, ...]
    label: str
    stage: StageName
    point: Point
    value: float
    known: int
    tokens: float | None
    speed: float | None

    @property
    def split(self) -> Split | None:
        """Learning and speed, which add up to the value, where it is exact and tokens counted."""
        if self.known != EXACT or self.tokens is None or self.speed is None:
            return None
        return Split(self.value, self.tokens, self.speed)


def observe(
    stages: Iterable[StageFacts], response: Response, limits: Limits
) -> tuple[Observed, ...]:
    """Every measured run of the stages, in plan order.

    A run that was stopped by forecast enters as not reached by the cap it was judged against, one
    that diverged by the trial's limit (method section 4): neither is random censoring.
    """
    found: list[Observed] = []
    for stage in stages:
        for facts, attempt in stage.measured():
            trial = facts.trial
            seen = (
                _final(attempt)
                if response.final
                else _timed(attempt, response, limits, stage.effective_target)
            )
            if seen is not None:
                found.append(Observed((trial.id,), trial.label, trial.stage, trial.point, *seen))
    return tuple(found)


def pooled(runs: Sequence[Observed]) -> Mapping[Point, Observed]:
    """One value per point: the median run, where a bound counts as slower than every exact value."""
    of_point: dict[Point, list[Observed]] = {}
    for run in runs:
        of_point.setdefault(run.point, []).append(run)
    return {point: _middle(found) for point, found in of_point.items()}


def _middle(runs: Sequence[Observed]) -> Observed:
    ordered = sorted(runs, key=lambda run: (run.known, run.value))
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    exact = all(run.known == EXACT for run in middle)
    counted = middle if exact else ordered
    ids = tuple(i for run in runs for i in run.ids)
    first = runs[0]
    return Observed(
        ids,
        first.label,
        first.stage,
        first.point,
        statistics.fmean(run.value for run in middle)
        if exact
        else statistics.median(run.value for run in ordered),
        EXACT if exact else ABOVE,
        _mean([run.tokens for run in counted]),
        _mean([run.speed for run in counted]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _final(attempt: AttemptFacts) -> tuple[float, int, None, None] | None:
    value = final_value(attempt)
    return None if value is None else (value, EXACT, None, None)


def _timed(
    attempt: AttemptFacts, response: Response, limits: Limits, judged_at: float
) -> tuple[float, int, float | None, float | None] | None:
    time = time_to_target(attempt, response.target, response.clock)
    if time is None:
        return None
    if time.reached:
        if time.seconds <= 0:
            return None
        value = math.log(time.seconds)
        tokens = math.log(time.tokens) if time.tokens else None
        return value, EXACT, tokens, None if tokens is None else value - tokens
    seconds = _bound_s(attempt, time, response, limits, judged_at)
    if seconds <= 0:
        return None
    spent = attempt.phases.seconds(response.clock)
    speed = math.log(spent / attempt.tokens) if attempt.tokens and spent > 0 else None
    value = math.log(seconds)
    return value, ABOVE, None if speed is None else value - speed, speed


def _bound_s(
    attempt: AttemptFacts,
    time: TimeToTarget,
    response: Response,
    limits: Limits,
    judged_at: float,
) -> float:
    if attempt.reason is Reason.DIVERGED:
        return max(limits.trial_s, time.seconds)
    # The forecast spoke of the stage's own target: of an easier one nothing was said.
    if attempt.reason is Reason.FORECAST and response.target <= judged_at:
        return max(attempt.cap_s or 0.0, time.seconds)
    return time.seconds
