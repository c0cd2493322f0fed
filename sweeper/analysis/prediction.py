"""The point of stage 2's region that its own model predicts to be the fastest.

It must not know whether that point will be run, or what a run costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweeper.analysis.dataset import StageFacts
from sweeper.analysis.effects import RUNS_PER_PARAMETER, model_columns, model_matrix
from sweeper.analysis.ranking import rank
from sweeper.space import Point, Space, Value
from sweeper.trial import Clock


@dataclass(frozen=True)
class Predicted:
    """Levels of the varying parameters, and the seconds to the target that the model gives them."""

    assignment: Mapping[str, Value]
    seconds: float


def predicted_best(
    space: Space, stage: StageFacts, *, target: float, clock: Clock
) -> Predicted | None:
    """The best levels by main effects on log time, over the runs that crossed (method section 5.5).

    Main effects add up, so each parameter's best level is its own. None where the runs cannot carry
    the model: fewer than three for each of its parameters, or not told apart.
    """
    rows = rank([stage], target=target, clock=clock)
    runs = [(row.point, run.time) for row in rows for run in row.runs]
    crossed = [(point, time.seconds) for point, time in runs if time.reached and time.seconds > 0]
    varying = stage.plan.varying
    for quadratic in (True, False):
        columns = model_columns(space, varying, quadratic=quadratic)
        if columns and RUNS_PER_PARAMETER * (len(columns) + 1) <= len(crossed):
            break
    else:
        return None
    design = model_matrix(space, columns, [point for point, _ in crossed])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    logs = np.log([seconds for _, seconds in crossed])
    coefficients, *_ = np.linalg.lstsq(design, logs, rcond=None)

    def predict(values: Mapping[str, Value]) -> float:
        return float((model_matrix(space, columns, [Point(values)]) @ coefficients)[0])

    best = {name: levels[0] for name, levels in varying.items()}
    for name, levels in varying.items():
        others = dict(best)
        best[name] = min(levels, key=lambda level: predict({**others, name: level}))
    return Predicted(best, math.exp(predict(best)))
