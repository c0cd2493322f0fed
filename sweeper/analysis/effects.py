"""Main effects of stage 2's varying parameters on log time, where enough runs crossed to say.

It must not know what the parameters do; ordinary least squares with t-intervals, and nothing where
the runs cannot carry it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.intervals import t_quantile
from sweeper.analysis.ranking import rank, tightest_target
from sweeper.space import NUMERIC, Point, Space, Value, show_value
from sweeper.trial import Clock

ALPHA = 0.05
RUNS_PER_PARAMETER = 3  # method section 5: at most a third as many parameters as uncensored runs
CROSSED = 0.9  # with fewer crossings, dropping those that did not cross would bend the effects

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One column of the model: what it is of, and the two levels that it compares."""

    parameter: str
    kind: str  # "linear", "quadratic" or "level"
    low: Value
    high: Value

    def words(self) -> str:
        """`lr 0.001 to 0.01`, or `lr, middle of 0.001 to 0.01 against its ends`."""
        levels = f"{show_value(self.low)} to {show_value(self.high)}"
        if self.kind == "quadratic":
            return f"{self.parameter}, middle of {levels} against its ends"
        return f"{self.parameter} {levels}"


@dataclass(frozen=True)
class Effect:
    """Ratio of times at the higher level over the lower, all else equal, with its 95 % interval.

    For a quadratic term: of the middle of the range over the mean of its two ends.
    """

    column: Column
    ratio: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out "no difference"."""
        return not self.low <= 1.0 <= self.high

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "parameter": self.column.parameter,
            "term": self.column.kind,
            "from": self.column.low,
            "to": self.column.high,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "decided": self.decided,
        }


@dataclass(frozen=True)
class Effects:
    """Effects at one target, or the reason why there are none. `runs` counts those that crossed."""

    target: float
    runs: int
    not_crossed: int
    residual_sd: float | None
    effects: tuple[Effect, ...]
    why_none: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "target": self.target,
            "runs": self.runs,
            "not_crossed": self.not_crossed,
            "residual_sd_log_time": self.residual_sd,
            "confidence": 1 - ALPHA,
            "effects": [effect.as_dict() for effect in self.effects],
            "why_none": self.why_none,
        }


def stage2_effects(facts: StudyFacts, *, target: float | None = None) -> Effects | None:
    """Main effects in stage 2, at the target where 90 % of its runs crossed it, else at the
    tightest target that 90 % did cross; None when stage 2 varies nothing.
    """
    stage = facts.stages.get("stage2")
    if stage is None or not stage.plan.varying:
        return None
    goal = stage.effective_target if target is None else target
    rows = rank([stage], target=goal, clock=facts.clock)
    enough = math.ceil(CROSSED * len(rows))
    if sum(row.reached for row in rows) < enough:
        reachable = tightest_target([stage], enough)
        goal = goal if reachable is None else reachable
    return fit(facts.study.space, stage, target=goal, clock=facts.clock)


def fit(space: Space, stage: StageFacts, *, target: float, clock: Clock) -> Effects:
    """Least squares on log time of every run that crossed, at one target."""
    rows = rank([stage], target=target, clock=clock)
    runs = [(row.point, run.time) for row in rows for run in row.runs]
    crossed = [(point, time.seconds) for point, time in runs if time.reached and time.seconds > 0]
    lost = len(runs) - len(crossed)
    for quadratic in (True, False):
        columns = model_columns(space, stage.plan.varying, quadratic=quadratic)
        if RUNS_PER_PARAMETER * (len(columns) + 1) <= len(crossed):
            break
    else:
        why = (
            f"{len(crossed)} runs crossed {target:g}, and {len(columns) + 1} parameters need "
            f"{RUNS_PER_PARAMETER * (len(columns) + 1)}"
        )
        return Effects(target, len(crossed), lost, None, (), why)
    points = [point for point, _ in crossed]
    design = model_matrix(space, columns, points)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        why = "the runs that crossed do not tell the parameters apart"
        return Effects(target, len(crossed), lost, None, (), why)
    response = np.log([seconds for _, seconds in crossed])
    return _least_squares(design, response, columns, target=target, lost=lost)


def model_columns(
    space: Space, varying: Mapping[str, Sequence[Value]], *, quadratic: bool
) -> tuple[Column, ...]:
    """Columns after the intercept: linear and quadratic per numeric parameter with levels to carry
    it, one per further level of any other.
    """
    columns = []
    for name, levels in varying.items():
        if len(levels) < 2:
            continue
        if isinstance(space.parameters[name], NUMERIC):
            ends = (min(levels), max(levels))
            columns.append(Column(name, "linear", *ends))
            if quadratic and len(levels) > 2:
                columns.append(Column(name, "quadratic", *ends))
        else:
            columns += [Column(name, "level", levels[0], level) for level in levels[1:]]
    return tuple(columns)


def model_matrix(space: Space, columns: Sequence[Column], points: Sequence[Point]) -> FloatArray:
    """Shape (runs, 1 + columns). Numeric levels are scaled to [-1, 1] on the declared scale; a
    quadratic column is 1 - x^2, so that its coefficient is the middle against the ends.
    """
    matrix = np.ones((len(points), 1 + len(columns)))
    for place, column in enumerate(columns, start=1):
        for row, point in enumerate(points):
            value = point.get(column.parameter, column.low)
            if column.kind == "level":
                matrix[row, place] = float(value == column.high)
                continue
            parameter = space.parameters[column.parameter]
            assert isinstance(parameter, NUMERIC)  # model_columns asks the same
            low, high = parameter.position(column.low), parameter.position(column.high)
            x = 2 * (parameter.position(value) - low) / (high - low) - 1
            matrix[row, place] = x if column.kind == "linear" else 1 - x * x
    return matrix


def _least_squares(
    design: FloatArray,
    response: FloatArray,
    columns: Sequence[Column],
    *,
    target: float,
    lost: int,
) -> Effects:
    runs, parameters = design.shape
    coefficients, *_ = np.linalg.lstsq(design, response, rcond=None)
    residual = response - design @ coefficients
    sd = math.sqrt(float(residual @ residual) / (runs - parameters))
    spread = sd * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    half = t_quantile(runs - parameters, ALPHA) * spread
    effects = []
    for place, column in enumerate(columns, start=1):
        weight = 2.0 if column.kind == "linear" else 1.0  # from -1 to +1 on the scaled axis
        middle, reach = weight * float(coefficients[place]), weight * float(half[place])
        effects.append(
            Effect(column, math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))
        )
    return Effects(target, runs, lost, sd, tuple(effects))
