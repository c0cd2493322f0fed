"""Geometric means of ratios with t-intervals, and how many more pairs would decide.

It must not know what the ratios are of; the only distribution used is Student's t (scipy).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PAIRS = 200


@dataclass(frozen=True)
class Interval:
    """A ratio and its interval at level 1 - alpha; `low` and `high` are None with one value."""

    ratio: float
    low: float | None
    high: float | None
    n: int
    alpha: float

    @property
    def excludes_one(self) -> bool:
        """Whether the interval leaves out "no difference"."""
        return self.low is not None and self.high is not None and not self.low <= 1.0 <= self.high

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON values."""
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "confidence": None if self.low is None else 1 - self.alpha,
        }


def t_quantile(df: int, alpha: float) -> float:
    """Two-sided quantile of Student's t: P(|t| > q) = alpha."""
    from scipy.special import stdtrit  # noqa: PLC0415 - its import is for reports; scipy.stats has 2 s

    return float(stdtrit(df, 1 - alpha / 2))


def geometric(logs: Sequence[float], alpha: float) -> Interval:
    """Geometric mean of exp(logs) with its t-interval.

    Raises:
        ValueError: There are no values.
    """
    if not logs:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(logs) / len(logs)
    if len(logs) == 1:
        return Interval(math.exp(mean), None, None, 1, alpha)
    half = t_quantile(len(logs) - 1, alpha) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs), alpha)


def pairs_needed(logs: Sequence[float], alpha: float) -> int | None:
    """How many pairs in all would separate the mean from 0, were mean and spread as they are now.

    None when the spread is not known yet, or when it would be more than `MOST_PAIRS`.
    """
    if len(logs) < 2:
        return None
    mean, spread = abs(math.fsum(logs) / len(logs)), statistics.stdev(logs)
    for n in range(2, MOST_PAIRS + 1):
        if t_quantile(n - 1, alpha) * spread / math.sqrt(n) < mean:
            return n
    return None
