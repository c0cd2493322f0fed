"""From a curve and a target to a time-to-target, which is either reached or censored.

It must not know processes, databases or files; it is method section 1, "Crossing time".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.trial import AttemptFacts, Clock, Evaluation, Outcome, Reason


@dataclass(frozen=True)
class TimeToTarget:
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
    confirmations = {e.step: e.value for e in curve if e.slice == "confirmation"}
    before: Evaluation | None = None
    for probe in curve:  # reports read millions of them: the common case comes first
        if probe.slice != "probe":
            continue
        if probe.value > target:
            if probe.value < math.inf:
                before = probe
            continue
        if not math.isfinite(probe.value):
            continue
        confirmation = confirmations.get(probe.step)
        if confirmation is not None and not confirmation <= target:
            before = probe
            continue
        upper = probe.clock.seconds(clock)
        lower = before.clock.seconds(clock) if before else upper
        share = 1.0
        if before is not None and before.value > target:
            share = (before.value - target) / (before.value - probe.value)
        start = before or probe
        return TimeToTarget(
            reached=True,
            seconds=lower + share * (upper - lower),
            steps=start.step + share * (probe.step - start.step) if probe.step else None,
            tokens=start.tokens + share * (probe.tokens - start.tokens),
            lower_s=lower,
            upper_s=upper,
            confirmed=confirmation is not None,
        )
    return None


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
        known = attempt.derived[target, clock] = _time_to_target(attempt, target, clock)
    return known


def _time_to_target(attempt: AttemptFacts, target: float, clock: Clock) -> TimeToTarget:
    found = crossing(attempt.curve, target, clock)
    if found is not None:
        return found
    stopped_s = attempt.phases.seconds(clock)
    return TimeToTarget(reached=False, seconds=stopped_s, lower_s=stopped_s, upper_s=math.inf)


_CUT_OFF = (Reason.DIVERGED, Reason.TIMEOUT, Reason.CAP, Reason.FORECAST, Reason.BUDGET)


def final_value(attempt: AttemptFacts) -> float | None:
    """The metric at the budget's end (goal "final"), or None for a run that did not come to it.

    The last finite value of the larger slice, where there is one, else of the probe.
    """
    measured = attempt.outcome in (Outcome.REACHED, Outcome.CENSORED)
    if not measured or attempt.reason in _CUT_OFF:
        return None
    for kind in ("confirmation", "probe"):
        for evaluation in reversed(attempt.curve):
            if evaluation.slice == kind and math.isfinite(evaluation.value):
                return evaluation.value
    return None


def best_value(curve: Sequence[Evaluation]) -> float | None:
    """Lowest finite probe value, or None when there is none."""
    finite = [e.value for e in curve if e.slice == "probe" and math.isfinite(e.value)]
    return min(finite, default=None)
