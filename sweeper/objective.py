"""From a curve and a target to a time-to-target, which is either reached or censored.

It must not know processes, databases or files; it is method section 1, "Crossing time".
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sweeper.curve import column, seconds
from sweeper.trial import AttemptFacts, Clock, Evaluation, Outcome, Reason


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
    (found,) = Descent(curve).crossings((target,), clock)
    return found


class Descent:
    """Where a curve first came down to each level: its crossings of any target, on any clock.

    One look at the whole curve; a crossing then takes a few steps. It is kept as long as the curve,
    of which it holds places, no evaluations: 13 bytes for each level.
    """

    __slots__ = ("_confirmed", "_curve", "_depths", "_places")

    def __init__(self, curve: Sequence[Evaluation]) -> None:
        self._curve = curve
        self._depths = array("d")  # minus the level that the target has to be at, and so ascending
        self._places = array("I")
        self._confirmed = array("b")
        values, slices, steps = (column(curve, name) for name in ("value", "slice", "step"))
        confirmations = {}
        if "confirmation" in slices:  # most curves have none
            read = zip(steps, values, slices, strict=True)
            confirmations = {step: value for step, value, kind in read if kind == "confirmation"}
        lowest = math.inf
        for place, value in enumerate(values):  # reports read millions of them
            if not -math.inf < value < lowest or slices[place] != "probe":
                continue
            confirmation = confirmations.get(steps[place])
            if confirmation is None:
                lowest = value
            elif confirmation < lowest:
                lowest = max(value, confirmation)
            else:
                continue
            self._depths.append(-lowest)
            self._places.append(place)
            self._confirmed.append(confirmation is not None)

    def crossings(self, targets: Iterable[float], clock: Clock) -> list[TimeToTarget | None]:
        """See `crossing`: one for each target."""
        names = ("value", "slice", "step", "tokens")
        values, slices, steps, tokens = (column(self._curve, name) for name in names)
        stamps = seconds(self._curve, clock)
        found: list[TimeToTarget | None] = []
        for target in targets:
            level = bisect_left(self._depths, -target)
            if level == len(self._depths):
                found.append(None)
                continue
            at = start = self._places[level]
            for before in range(at - 1, -1, -1):
                if slices[before] == "probe" and math.isfinite(values[before]):
                    start = before
                    break
            share = 1.0
            if values[start] > target:
                share = (values[start] - target) / (values[start] - values[at])
            lower, upper = stamps[start], stamps[at]
            found.append(
                TimeToTarget(
                    True,
                    lower + share * (upper - lower),
                    steps[start] + share * (steps[at] - steps[start]) if steps[at] else None,
                    tokens[start] + share * (tokens[at] - tokens[start]),
                    lower,
                    upper,
                    bool(self._confirmed[level]),
                )
            )
        return found


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
        (known,) = times_to_targets(attempt, (target,), clock)
        attempt.derived[target, clock] = known
    return known


def times_to_targets(
    attempt: AttemptFacts, targets: Iterable[float], clock: Clock
) -> list[TimeToTarget]:
    """Times-to-target of an attempt that measured something, one for each target; none is kept."""
    if Descent not in attempt.derived:
        attempt.derived[Descent] = Descent(attempt.curve)
    descent: Descent = attempt.derived[Descent]
    stopped_s = attempt.phases.seconds(clock)
    never = TimeToTarget(reached=False, seconds=stopped_s, lower_s=stopped_s, upper_s=math.inf)
    return [time or never for time in descent.crossings(targets, clock)]


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
    read = zip(column(attempt.curve, "slice"), column(attempt.curve, "value"), strict=True)
    last = {kind: value for kind, value in read if math.isfinite(value)}
    return last.get("confirmation", last.get("probe"))


def best_value(curve: Sequence[Evaluation]) -> float | None:
    """Lowest finite probe value, or None when there is none."""
    read = zip(column(curve, "slice"), column(curve, "value"), strict=True)
    return min((x for kind, x in read if kind == "probe" and math.isfinite(x)), default=None)


def lowest(attempt: AttemptFacts) -> float | None:
    """`best_value` of an attempt's curve; kept, because it is asked for again and again."""
    if best_value not in attempt.derived:
        attempt.derived[best_value] = best_value(attempt.curve)
    known: float | None = attempt.derived[best_value]
    return known
