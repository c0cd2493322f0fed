"""From a curve and a target to a time-to-target, which is either reached or censored.

It must not know processes, databases or files; it is method section 1, "Crossing time".
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, compress, count
from operator import lt, neg
from typing import NamedTuple, TypeVar

from sweeper.curve import column
from sweeper.trial import AttemptFacts, Clock, Evaluation, Outcome, Reason

T = TypeVar("T")


class TimeToTarget(NamedTuple):
    """Seconds on one clock until a target was crossed, or after which it had not been.

    `seconds` is the crossing time when `reached`, else the time up to which the target was not
    crossed (censored). `lower_s` and `upper_s` are the stamps of the two evaluations around the
    crossing: their distance is the resolution. `steps` and `tokens` are interpolated likewise and
    None when censored, `steps` also where the script tells none. `confirmed` says that a larger slice
    agreed.
    """

    reached: bool
    seconds: float
    steps: float | None = None
    tokens: float | None = None
    lower_s: float = 0.0
    upper_s: float = 0.0
    confirmed: bool = False


def crossing(curve: Sequence[Evaluation], target: float, clock: Clock) -> TimeToTarget | None:
    """First crossing of the target that counts, or None.

    A probe at or below the target counts unless a confirmation slice measured at the same step is
    above it. The time is interpolated linearly between the last probe that did not count and the
    first that did; if the former was already at or below the target (confirmation refused it), the
    time is the latter's. A NaN after a crossing does not undo it.
    """
    return Descent(curve).crossing(target, clock)


class Descent:
    """Where a curve first came down to each level: its crossing of any target, on any clock.

    One look at the whole curve; a crossing then takes a few steps. It is kept as long as the curve,
    of which it holds places, no evaluations: 13 bytes for each level.

    `depths` are minus the levels that a target has to be at, and so ascending; `numbers` say which of
    the finite probes came down to each, and `probes` where in the curve those are.
    """

    __slots__ = ("_confirmed", "_curve", "depths", "numbers", "probes")

    def __init__(self, curve: Sequence[Evaluation]) -> None:
        self._curve = curve
        values, slices = column(curve, "value"), column(curve, "slice")
        self.probes: Sequence[int] = range(len(values))
        larger: dict[int, float] = {}
        if "confirmation" in slices or not all(map(math.isfinite, values)):  # most curves: neither
            read = list(zip(column(curve, "step"), values, slices, strict=True))
            larger = {step: value for step, value, kind in read if kind == "confirmation"}
            of = (n for n, (_, x, kind) in enumerate(read) if kind == "probe" and math.isfinite(x))
            self.probes = array("I", of)
        counted = self.of_probes(values)
        steps: Sequence[int] = ()
        if larger:  # what was refused by a NaN counts at no target
            refused = {step: math.inf if math.isnan(x) else x for step, x in larger.items()}
            steps = self.of_probes(column(curve, "step"))
            pairs = zip(counted, steps, strict=True)
            counted = [max(value, refused.get(step, -math.inf)) for value, step in pairs]
        lows = list(accumulate(counted, min, initial=math.inf))
        fell = list(map(lt, lows[1:], lows))
        self.numbers = array("I", list(compress(count(), fell)))
        self.depths = array("d", list(map(neg, compress(counted, fell))))
        none = bytes(len(self.numbers))
        self._confirmed = bytes(steps[n] in larger for n in self.numbers) if larger else none

    def of_probes(self, found: Sequence[T]) -> Sequence[T]:
        """Of something that every evaluation of the curve has: what the finite probes have."""
        whole = len(found) == len(self.probes)
        return found if whole else [found[place] for place in self.probes]

    def crossing(self, target: float, clock: Clock) -> TimeToTarget | None:
        """See the function of that name."""
        level = bisect_left(self.depths, -target)
        if level == len(self.depths):
            return None
        number = self.numbers[level]
        at = self._curve[self.probes[number]]
        start = self._curve[self.probes[number - 1]] if number else at
        share = 1.0
        if start.value > target:
            share = (start.value - target) / (start.value - at.value)
        lower, upper = start.clock.seconds(clock), at.clock.seconds(clock)
        return TimeToTarget(
            True,
            lower + share * (upper - lower),
            start.step + share * (at.step - start.step) if at.step else None,
            start.tokens + share * (at.tokens - start.tokens),
            lower,
            upper,
            bool(self._confirmed[level]),
        )


def near_misses(curve: Sequence[Evaluation], target: float) -> tuple[tuple[Evaluation, float], ...]:
    """Probes at or below the target that the confirmation slice refused, each with its value there."""
    larger = {e.step: e.value for e in curve if e.slice == "confirmation"}
    return tuple(
        (probe, larger[probe.step])
        for probe in curve
        if probe.slice == "probe"
        and probe.value <= target
        and probe.step in larger
        and not larger[probe.step] <= target
    )


def time_to_target(attempt: AttemptFacts, target: float, clock: Clock) -> TimeToTarget | None:
    """Time-to-target of an ended attempt, for any target, at any time after it ran.

    Returns None for an attempt that measured nothing about its configuration (failed, invalid).
    """
    if attempt.outcome not in (Outcome.REACHED, Outcome.CENSORED):
        return None
    known: TimeToTarget | None = attempt.derived.get((target, clock))
    if known is None:  # a race asks for all of them whenever one trial has ended
        stopped_s = attempt.phases.seconds(clock)
        never = TimeToTarget(reached=False, seconds=stopped_s, lower_s=stopped_s, upper_s=math.inf)
        known = attempt.derived[target, clock] = descent(attempt).crossing(target, clock) or never
    return known


def descent(attempt: AttemptFacts) -> Descent:
    """The look at an attempt's curve; kept, because it answers for every target."""
    if Descent not in attempt.derived:
        attempt.derived[Descent] = Descent(attempt.curve)
    known: Descent = attempt.derived[Descent]
    return known


_CUT_OFF = (Reason.DIVERGED, Reason.TIMEOUT, Reason.CAP, Reason.FORECAST, Reason.BUDGET)


def final_value(attempt: AttemptFacts) -> float | None:
    """The metric at the budget's end (goal "final"), or None for a run that did not come to it.

    The last finite value of the larger slice, where there is one, else of the probe.
    """
    if "final" not in attempt.derived:  # asked for by every ranking, and a curve is long
        attempt.derived["final"] = _final_value(attempt)
    final: float | None = attempt.derived["final"]
    return final


def _final_value(attempt: AttemptFacts) -> float | None:
    measured = attempt.outcome in (Outcome.REACHED, Outcome.CENSORED)
    if not measured or attempt.reason in _CUT_OFF:
        return None
    values, slices = column(attempt.curve, "value"), column(attempt.curve, "slice")
    if "confirmation" in slices:
        read = zip(values, slices, strict=True)
        larger: list[float] = [x for x, kind in read if kind == "confirmation" and math.isfinite(x)]
        if larger:
            return larger[-1]
    probes = descent(attempt).probes
    if not probes:
        return None
    last: float = values[probes[-1]]
    return last


def best_value(curve: Sequence[Evaluation]) -> float | None:
    """Lowest finite probe value, or None when there is none."""
    return min(Descent(curve).of_probes(column(curve, "value")), default=None)


def lowest(attempt: AttemptFacts) -> float | None:
    """`best_value` of an attempt's curve; kept, because it is asked for again and again."""
    if best_value not in attempt.derived:
        values = descent(attempt).of_probes(column(attempt.curve, "value"))
        attempt.derived[best_value] = min(values, default=None)
    known: float | None = attempt.derived[best_value]
    return known
