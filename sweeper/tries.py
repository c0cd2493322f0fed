"""What becomes of a trial that failed: tried again or not, after which rest, and when the stage stops.

It must not know who starts trials, or where; it only looks at how attempts ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from sweeper.spec import CANCELLED
from sweeper.trial import AttemptFacts, Outcome, Reason, TrialFacts

# Attempts per trial that may end for such a reason before the trial has failed for good.
# Infrastructure is worth another try; a configuration that fails once fails again.
TRIES: Mapping[Reason, int] = {
    Reason.LOST: 5,
    Reason.KILLED: 3,
    Reason.DEVICE: 3,
    Reason.ENVIRONMENT: 2,
    Reason.HUNG: 2,
}
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0  # before another try; it doubles with every one
BREAKER_AFTER = 3  # so many first trials that fail in the same way stop the stage


def may_try_again(known: TrialFacts, counted: AttemptFacts) -> bool:
    """Whether a trial may be run once more, whose attempt that counts has failed."""
    same = sum(1 for a in known.attempts if a.reason is counted.reason)
    return counted.message != CANCELLED and same < TRIES.get(counted.reason, 1)


def rest_s(known: TrialFacts, reason: Reason, first_s: float = FIRST_REST_S) -> float | None:
    """Seconds that a trial rests after an attempt ended so; None: it was no infrastructure."""
    if reason not in TRIES:
        return None
    times = sum(a.reason is reason for a in known.attempts)
    return min(first_s * 2.0 ** (times - 1), LONGEST_REST_S)


def breaker(facts: Iterable[TrialFacts], may_shrink: Callable[[TrialFacts], bool]) -> str:
    """Why the stage stops because its first trials all failed alike, or "".

    Trials that `may_shrink` (run again, with less memory) and lost ones say nothing yet.
    """
    facts = list(facts)
    if any(f.attempts and f.attempts[-1].outcome is not Outcome.FAILED for f in facts):
        return ""  # so it is nearly always, and soon seen
    ended = [f.attempts[-1] for f in facts if f.attempts and not may_shrink(f)]
    reasons = Counter(a.reason for a in ended if a.reason is not Reason.LOST)
    for reason, count in reasons.items():
        if count >= BREAKER_AFTER:
            last = next(a.message for a in reversed(ended) if a.reason is reason)
            return f"the first {count} trials all failed ({reason.value}): {last}"
    return ""
