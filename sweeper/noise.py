"""How far equal runs differ, and how much longer than another a run is watched because of it.

It must not know which runs race, or what is planned from their times; it is method section 4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

_ONE_IN_A_HUNDRED = 2.33  # one-sided normal quantile

LEAST_DEGREES = 4
"""Degrees of freedom below which a spread between equal runs is not believed."""

UNKNOWN_SPREAD = math.log(1.10) / (_ONE_IN_A_HUNDRED * math.sqrt(2))
"""Standard deviation of log time until replicates know better: the one whose slack is 1.10."""

PAIR_FACTOR = 2.0
"""A run that is compared with one other is watched for so many times the other's time."""


def pooled_spread(groups: Iterable[Iterable[float]]) -> tuple[float | None, int]:
    """Standard deviation of the logarithm between equal runs, and its degrees of freedom.

    Each group holds the times (or final metrics) of equal runs; what is not above 0 and finite does
    not count. None where no group has two.
    """
    logs = [[math.log(x) for x in group if 0 < x < math.inf] for group in groups]
    repeated = [values for values in logs if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    if not degrees:
        return None, 0
    squares = math.fsum(statistics.variance(v) * (len(v) - 1) for v in repeated)
    return math.sqrt(squares / degrees), degrees


def known_spread(spread: float | None, degrees: int, *, unknown: float = UNKNOWN_SPREAD) -> float:
    """The spread to reckon with: the measured one from `LEAST_DEGREES` on, else `unknown`."""
    return unknown if spread is None or degrees < LEAST_DEGREES else spread


def slack(spread: float) -> float:
    """The factor above the k-th best time at which a trial is cut off (method 4): exp(2.33 sqrt(2) s).

    `spread` is the standard deviation s of log time between equal runs; an equal of the k-th then
    falls out in about 1 % of cases.
    """
    return math.exp(_ONE_IN_A_HUNDRED * math.sqrt(2) * spread)
