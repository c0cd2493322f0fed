"""The best point that nobody ran, as the model of stage 2 expects it.

It must not know how the model was fitted; what it says is a prediction, never a result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeper.analysis.effects import ALPHA, Effects, model_matrix
from sweeper.analysis.intervals import t_quantile
from sweeper.analysis.response import Observed, Response
from sweeper.analysis.wording import significant
from sweeper.space import Point, Space, Value

MOST_UNTESTED = 20_000


@dataclass(frozen=True)
class Untested:
    """The point of stage 2's region that the model expects to be best of those nobody ran.

    `value`, `low` and `high` are of one future run there (95 %, noise included), on the response's
    scale; `of_best` is the same model's value at the best point that was run. `chance` is how likely
    the model finds it that the untested point is better in expectation.
    """

    values: Mapping[str, Value]
    point: Point
    value: float
    low: float
    high: float
    of_best: float
    best: str
    chance: float


def best_untested(
    space: Space,
    locked: Mapping[str, Value],
    varying: Mapping[str, Sequence[Value]],
    runs: Sequence[Observed],
    effects: Effects,
) -> Untested | None:
    """What the model of stage 2 expects of the points nobody ran; None without a model or a point."""
    from scipy.special import stdtr  # noqa: PLC0415 - its import is for reports

    model = effects.model
    if model is None or math.prod(map(len, varying.values())) > MOST_UNTESTED:
        return None
    tested = {run.point: run for run in runs}
    points: list[Point] = []
    for cell in itertools.product(*varying.values()):
        try:
            point = space.point({**locked, **dict(zip(varying, cell, strict=True))})
        except (KeyError, ValueError):
            continue
        if point not in tested:
            points.append(point)
    if not points or not tested:
        return None
    fresh = model_matrix(space, effects.columns, points)
    place = int(np.argmin(fresh @ model.coefficients))
    known = model_matrix(space, effects.columns, list(tested))
    leader = int(np.argmin(known @ model.coefficients))
    value, error = model.predict(fresh[place])
    of_best, _ = model.predict(known[leader])
    gain, doubt = model.predict(fresh[place] - known[leader])
    half = t_quantile(model.degrees, ALPHA) * math.hypot(error, model.sigma)
    chance = float(stdtr(model.degrees, -gain / doubt)) if doubt > 0 else float(gain < 0)
    point = points[place]
    return Untested(
        {name: point[name] for name in varying if name in point},
        point,
        value,
        value - half,
        value + half,
        of_best,
        tested[list(tested)[leader]].label,
        chance,
    )


def in_words(untested: Untested, response: Response, space: Space) -> str:
    """The prediction in one sentence."""
    unit = "" if response.final else " s"
    return (
        f"Of the points of stage 2's region that nobody ran, the model expects "
        f"{space.show(untested.values)} to be the best: {response.value_words(untested.value)}{unit} "
        f"[{response.value_words(untested.low)}, {response.value_words(untested.high)}] for one run, "
        f"where it gives the best point that was run ({untested.best}) "
        f"{response.value_words(untested.of_best)}{unit}; "
        f"the chance that it is better is {significant(100 * untested.chance, 2)} %."
    )
