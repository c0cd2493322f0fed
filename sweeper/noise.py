"""How far equal runs differ, and how much longer than another a run is watched because of it.

It must not know which runs race, or what is planned from their times; it is method section 4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ONE_IN_A_HUNDRED = 2.33  # one-sided normal quantile

LEAST_DEGREES = 4
"""Degrees of freedom below which a spread between equal runs is not believed."""

UNKNOWN_SLACK = 1.10
UNKNOWN_SPREAD = math.log(UNKNOWN_SLACK) / (_ONE_IN_A_HUNDRED * math.sqrt(2))
"""Standard deviation of log time until replicates know better: the one whose slack is 1.10."""

PAIR_FACTOR = 2.0
"""A run that is compared with one other is watched for so many times the other's time."""


def pooled_spread(groups: Iterable[Iterable[float]]) -> tuple[float | None, int]:
    """Standard deviation of the logarithm between equal runs, and its degrees of freedom.

    Each group holds the times (or final metrics) of equal runs; what is not above 0 and finite does
    not count. None where no group has two.
    """
    return pooled(map(squares, groups))


def squares(group: Iterable[float]) -> tuple[float, int]:
    """What one group adds to `pooled_spread`: its squares about its mean, and its degrees."""
    logs = [math.log(x) for x in group if 0 < x < math.inf]
    if len(logs) < 2:
        return 0.0, 0
    return statistics.variance(logs) * (len(logs) - 1), len(logs) - 1


def pooled(parts: Iterable[tuple[float, int]]) -> tuple[float | None, int]:
    """`pooled_spread` from what each group adds."""
    parts = list(parts)
    degrees = sum(of for _, of in parts)
    return (math.sqrt(math.fsum(s for s, _ in parts) / degrees) if degrees else None), degrees


@dataclass(frozen=True)
class Repeats:
    """What the runs of one point add to a spread: see `squares`.

    `first` is the time of the first of them in plan order, infinite where it did not reach;
    `control`: it is the point that a study repeats on purpose.
    """

    first: float
    squares: tuple[float, int]
    control: bool = False

    @classmethod
    def of(cls, times: Sequence[float], *, control: bool) -> Repeats:
        """Times of equal runs in plan order; beyond `PAIR_FACTOR` x the first nothing is known."""
        return cls(times[0], squares(t for t in times if t <= PAIR_FACTOR * times[0]), control)


def spread_of_the_best(groups: Iterable[Repeats], kth: float) -> tuple[float | None, int]:
    """`pooled_spread` of the runs that were watched to their ends whatever was cut off.

    Those of the control, and of points whose first run was at least as fast as place k: all others
    may have been cut off, and noise from whichever pairs were left would make ties, and with them the
    next stage, depend on the caps. `kth` is infinite where nothing is cut off.
    """
    return pooled(g.squares for g in groups if g.first <= (math.inf if g.control else kth))


def known_spread(spread: float | None, degrees: int, *, unknown: float = UNKNOWN_SPREAD) -> float:
    """The spread to reckon with: the measured one from `LEAST_DEGREES` on, else `unknown`."""
    return unknown if spread is None or degrees < LEAST_DEGREES else spread


def slack(spread: float) -> float:
    """The factor above the k-th best time at which a trial is cut off (method 4): exp(2.33 sqrt(2) s).

    `spread` is the standard deviation s of log time between equal runs; an equal of the k-th then
    falls out in about 1 % of cases.
    """
    return math.exp(_ONE_IN_A_HUNDRED * math.sqrt(2) * spread)


def read_beyond(slack: float) -> float:
    """The factor above the k-th best time up to which a stage's times are read: half the slack.

    Trials are watched for the whole of it. So an estimate of the noise that doubles later, or that
    was not there yet, asks for no second run of those that were cut off before; half of 1.10 at most.
    """
    return math.sqrt(min(slack, UNKNOWN_SLACK))
