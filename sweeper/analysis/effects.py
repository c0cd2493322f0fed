"""Main effects of stage 2's varying parameters on log time (or the final metric), bounds included.

It must not know what the parameters do; where the runs cannot carry an effect it says why instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.analysis import censored
from sweeper.analysis.censored import EXACT, CensoredFit, FloatArray, NotEstimableError
from sweeper.analysis.dataset import StudyFacts
from sweeper.analysis.ranking import tightest_target
from sweeper.analysis.response import Estimate, Observed, Response, observe
from sweeper.analysis.wording import change, count, significant
from sweeper.space import NUMERIC, Space, Value, show_value

ALPHA = 0.05
RUNS_PER_PARAMETER = 2
"""Crossed runs that a parameter needs. Bench `coverage`: with profile likelihood two are enough, and
leaving curvature out to have three made intervals at 60 % censored hold the truth in 79 to 89 %."""
CROSSED = 0.9  # the analysis target: the tightest that so many runs crossed


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
    """The higher level against the lower, all else equal.

    For a quadratic term: the middle of the range against the mean of its two ends. `learning` is
    tokens to the target, `speed` seconds per token: time = learning x speed exactly, because
    learning's value is time's without speed's. Both are None without token counts.
    """

    column: Column
    response: Response
    time: Estimate
    learning: Estimate | None = None
    speed: Estimate | None = None

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out "no difference"."""
        return self.time.excludes_zero

    @property
    def ratio(self) -> float:
        """Ratio of times (or the metric's difference)."""
        return self.response.shown(self.time.value)

    @property
    def low(self) -> float | None:
        """Lower end of the interval, None where nothing bounds it."""
        return None if self.time.low is None else self.response.shown(self.time.low)

    @property
    def high(self) -> float | None:
        """Upper end of the interval, None where nothing bounds it."""
        return None if self.time.high is None else self.response.shown(self.time.high)

    def words(self) -> str:
        """`lr 0.01 to 0.04: -9.1 % time [-13 %, -4.9 %] (tokens -12 %, time per token +3.0 %)`."""
        what = self.response.metric if self.response.final else "time"
        text = f"{self.column.words()}: {self.response.words(self.time.value)} {what}"
        text = f"{text} {self.time.bracket(self.response)}".rstrip()
        if self.learning and self.speed:
            tokens, pace = change(math.exp(self.learning.value)), change(math.exp(self.speed.value))
            text += f" (tokens {tokens}, time per token {pace})"
        return text

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        split = {
            name: None if part is None else part.as_dict(self.response)
            for name, part in (("learning", self.learning), ("speed", self.speed))
        }
        return {
            "parameter": self.column.parameter,
            "term": self.column.kind,
            "from": self.column.low,
            "to": self.column.high,
            **self.time.as_dict(self.response),
            "decided": self.decided,
            "words": self.words(),
            **split,
        }


@dataclass(frozen=True)
class Effects:
    """Effects at one target, or the reason why there are none. `runs` counts those that crossed.

    `model` is the fitted model with its columns, for predictions; None where there is none.
    """

    target: float
    runs: int
    not_crossed: int
    residual_sd: float | None
    effects: tuple[Effect, ...]
    why_none: str = ""
    model: CensoredFit | None = None
    columns: tuple[Column, ...] = ()

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


@dataclass(frozen=True)
class StageEffects:
    """Effects at the target, and at the analysis target where most runs crossed.

    The two are one where 90 % crossed the target. `turned` names columns whose effect has another
    sign at the other target.
    """

    at_target: Effects
    at_analysis: Effects

    @property
    def shown(self) -> Effects:
        """Those at the target where there are any, else those at the analysis target."""
        return (
            self.at_analysis
            if self.at_analysis.effects and not self.at_target.effects
            else self.at_target
        )

    @property
    def turned(self) -> tuple[str, ...]:
        """Columns whose effect changes its sign between the targets."""
        there = {effect.column: effect.time.value for effect in self.at_analysis.effects}
        return tuple(
            effect.column.words()
            for effect in self.at_target.effects
            if effect.time.value * there.get(effect.column, 0.0) < 0
        )


def stage2_effects(facts: StudyFacts, *, target: float | None = None) -> StageEffects | None:
    """Main effects in stage 2 at the target, and at the tightest that 90 % of its runs crossed;
    None when stage 2 varies nothing.
    """
    stage = facts.stages.get("stage2")
    if stage is None or not stage.plan.varying:
        return None
    goal = stage.effective_target if target is None else target
    space, limits = facts.study.space, facts.study.limits

    def effects(at: float) -> Effects:
        response = Response.of(facts.study, at)
        runs = observe([stage], response, limits)
        return fit(space, stage.plan.varying, runs, response)

    first = effects(goal)
    everyone = first.runs + first.not_crossed
    enough = math.ceil(CROSSED * everyone)
    if first.runs >= enough:
        return StageEffects(first, first)
    points = len({trial.trial.point for trial, _ in stage.measured()})
    easier = tightest_target([stage], math.ceil(CROSSED * points))
    return StageEffects(first, first if easier is None else effects(max(goal, easier)))


def fit(
    space: Space,
    varying: Mapping[str, Sequence[Value]],
    runs: Sequence[Observed],
    response: Response,
) -> Effects:
    """The censored linear model of all runs at one target, each effect with its interval."""
    crossed = sum(run.known == EXACT for run in runs)
    lost = len(runs) - crossed
    for quadratic in (True, False):
        columns = model_columns(space, varying, quadratic=quadratic)
        if RUNS_PER_PARAMETER * (len(columns) + 1) <= crossed:
            break
    else:
        how = "ended" if response.final else f"crossed {significant(response.target, 6)}"
        parameters = len(columns) + 1
        why = (
            f"{count(crossed, 'run')} {how}, and {parameters} parameters need "
            f"{RUNS_PER_PARAMETER * parameters}"
        )
        return Effects(response.target, crossed, lost, None, (), why)
    if crossed < CROSSED * len(runs) and columns != model_columns(space, varying, quadratic=True):
        why = (
            f"{crossed} of {len(runs)} runs crossed {significant(response.target, 6)}: too few for "
            "curvature, and without it the others' bounds would bend the effects"
        )
        return Effects(response.target, crossed, lost, None, (), why)
    design = model_matrix(space, columns, [run.point for run in runs])
    known = np.array([run.known for run in runs], dtype=np.int8)
    try:
        model = censored.fit(design, np.array([run.value for run in runs]), known)
    except NotEstimableError as error:
        return Effects(response.target, crossed, lost, None, (), str(error))
    speed = _exact(design, [run.speed for run in runs])
    learning = None
    if speed is not None:
        learning = censored.fit(design, np.array([run.tokens for run in runs]), known)
    effects = tuple(
        _effect(place, column, response=response, model=model, learning=learning, speed=speed)
        for place, column in enumerate(columns, start=1)
    )
    return Effects(
        response.target, crossed, lost, model.sigma, effects, model=model, columns=columns
    )


def _exact(design: FloatArray, values: Sequence[float | None]) -> CensoredFit | None:
    """The model of values that every run has, also those that did not reach."""
    if any(value is None for value in values):
        return None
    exact = np.zeros(len(values), dtype=np.int8)
    return censored.fit(design, np.array(values, dtype=np.float64), exact)


def _effect(
    place: int,
    column: Column,
    *,
    response: Response,
    model: CensoredFit,
    learning: CensoredFit | None,
    speed: CensoredFit | None,
) -> Effect:
    weight = 2.0 if column.kind == "linear" else 1.0  # from -1 to +1 on the scaled axis

    def estimate(of: CensoredFit) -> Estimate:
        low, high = of.interval(place, ALPHA)
        return Estimate(
            weight * float(of.coefficients[place]),
            None if low is None else weight * low,
            None if high is None else weight * high,
            of.uncensored,
            ALPHA,
        )

    time = estimate(model)
    if learning is None or speed is None:
        return Effect(column, response, time)
    pace, tokens = estimate(speed), estimate(learning)
    exact = Estimate(time.value - pace.value, tokens.low, tokens.high, tokens.n, ALPHA)
    return Effect(column, response, time, exact, pace)


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


def model_matrix(
    space: Space, columns: Sequence[Column], points: Sequence[Mapping[str, Value]]
) -> FloatArray:
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
