"""The exact split of time-to-target into tokens to the target times seconds per token.

It must not know how many runs a difference was averaged over, or whether it is decided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeper.analysis.ranking import Row
from sweeper.objective import TimeToTarget


@dataclass(frozen=True)
class Split:
    """Logarithms with time = learning + speed, exactly.

    Of a run: log seconds, log tokens, log seconds per token. Of a difference: their log ratios.
    """

    time: float
    learning: float
    speed: float

    def __sub__(self, other: Split) -> Split:
        return Split(
            self.time - other.time, self.learning - other.learning, self.speed - other.speed
        )


def split(what: Row | TimeToTarget) -> Split | None:
    """The split of a row or run that reached, on the clock it was measured on; else None."""
    if not what.reached or not what.tokens or what.seconds <= 0:
        return None
    time, learning = math.log(what.seconds), math.log(what.tokens)
    return Split(time, learning, time - learning)


def difference(reference: Row | TimeToTarget, other: Row | TimeToTarget) -> Split | None:
    """How `other` differs from `reference`: above 0 means more of it, so slower."""
    first, second = split(reference), split(other)
    return second - first if first and second else None
