"""The best point, and the best that nobody ran, as the model of stage 2 expects them.

It must not know how the model was fitted; what it says is a prediction, never a result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeper.analysis.dataset import StageFacts
from sweeper.analysis.effects import ALPHA, Effects, fit, model_matrix
from sweeper.analysis.intervals import t_quantile
from sweeper.analysis.response import Observed, Response, observe
from sweeper.analysis.wording import significant
from sweeper.space import Point, Space, Value
from sweeper.study import Study

MOST_UNTESTED = 20_000


@dataclass(frozen=True)
class Predicted:
    """Levels of the varying parameters, and what the model gives one run of them, in words."""

    assignment: Mapping[str, Value]
    words: str


def predicted_best(study: Study, stage: StageFacts, *, target: float) -> Predicted | None:
    """The best levels by the model of stage 2's effects (method section 5.5), run or not.

    Main effects add up, so each parameter's best level is its own. None where the runs cannot carry
    the model.
    """
    varying, response = stage.plan.varying, Response.of(study, target)
    runs = observe([stage], response, study.limits)
    effects = fit(study.space, varying, runs, response)
    model = effects.model
    if model is None:
        return None

    def predict(values: Mapping[str, Value]) -> float:
        row = model_matrix(study.space, effects.columns, [values])[0]
        return model.predict(row)[0]

    best = {name: levels[0] for name, levels in varying.items()}
    for name, levels in varying.items():
        others = dict(best)
        best[name] = min(levels, key=lambda level: predict({**others, name: level}))
    unit = response.metric if response.final else "s"
    return Predicted(best, f"{response.value_words(predict(best))} {unit}")


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
