"""How much equal runs differ: the spread of log time over replicates, and the noise floor.

It must not know which configuration is good.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.dataset import StageFacts
from sweeper.analysis.intervals import t_quantile
from sweeper.objective import final_value
from sweeper.space import Point
from sweeper.trial import Clock, StageName

LEAST_FLOOR = 0.03  # method section 5: inert means within the noise floor, at least 3 %


@dataclass(frozen=True)
class Replicates:
    """Scores of equal points within one stage: seconds, or with goal "final" the final metric."""

    stage: StageName
    label: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Noise:
    """Pooled standard deviation of the log score over replicates, with its degrees of freedom."""

    sd: float | None
    df: int
    replicates: tuple[Replicates, ...]
    by_final: bool = False

    @property
    def floor(self) -> float | None:
        """The relative difference that two single runs of equals stay within 19 times in 20.

        None while there are no replicates: then nothing is known, not even that it is small.
        """
        if self.sd is None:
            return None
        floor = math.expm1(min(50.0, t_quantile(self.df, 0.05) * math.sqrt(2) * self.sd))
        return floor if self.by_final else max(LEAST_FLOOR, floor)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "sd_log_metric" if self.by_final else "sd_log_time": self.sd,
            "df": self.df,
            "floor": self.floor,
            "replicates": [
                {
                    "stage": r.stage,
                    "label": r.label,
                    "metric" if self.by_final else "seconds": list(r.values),
                }
                for r in self.replicates
            ],
        }


def replicate_noise(
    stages: Iterable[StageFacts], *, target: float, clock: Clock, by_final: bool = False
) -> Noise:
    """Spread of log time within equal points of one stage, pooled; only runs that reached count.

    `by_final` (goal "final"): of the metric at the budget's end, for the runs that came to it.
    """
    scores: dict[tuple[StageName, Point], list[float]] = {}
    labels: dict[tuple[StageName, Point], str] = {}
    for stage in stages:
        for facts, time in stage.times(target, clock):
            score = time.seconds if time.reached else None
            if by_final:
                score = final_value(facts.counted) if facts.counted else None
            if score is not None and score > 0:
                key = (facts.trial.stage, facts.trial.point)
                scores.setdefault(key, []).append(score)
                labels.setdefault(key, facts.trial.label)
    repeated = {key: seconds for key, seconds in scores.items() if len(seconds) > 1}
    df = sum(len(seconds) - 1 for seconds in repeated.values())
    squares = math.fsum(
        (len(s) - 1) * statistics.variance(map(math.log, s)) for s in repeated.values()
    )
    return Noise(
        sd=math.sqrt(squares / df) if df else None,
        df=df,
        replicates=tuple(Replicates(k[0], labels[k], tuple(s)) for k, s in repeated.items()),
        by_final=by_final,
    )
