"""The way from the baseline to the winner, one parameter at a time, in seconds.

It must not know how sure a step is: a step is measured where its point was run, else expected by a
model of main effects, and which of the two is said. (Ablation paths: Fawcett and Hoos 2016.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.analysis import censored
from sweeper.analysis.attribution import Split
from sweeper.analysis.censored import EXACT, CensoredFit, NotEstimableError
from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.effects import RUNS_PER_PARAMETER, Column, model_columns, model_matrix
from sweeper.analysis.response import Observed, Response, observe, pooled
from sweeper.space import Point, Space, Value, show_value


@dataclass(frozen=True)
class Step:
    """One parameter goes to the winner's value; `value` is the response after it.

    `measured`: the point on the way was run and reached. `split` is the step's part in tokens and in
    time per token, where both its ends were measured.
    """

    parameter: str
    before: Value | None
    after: Value | None
    value: float
    difference: float
    measured: bool
    split: Split | None


@dataclass(frozen=True)
class Path:
    """From the baseline's value over every step to the winner's.

    `unexplained` is the winner's value less the last expected one: parameters that act together, and
    noise. It is 0 where the last step's point is the winner itself, which was measured.
    """

    response: Response
    start: float
    steps: tuple[Step, ...]
    end: float
    unexplained: float

    def words(self) -> str:
        """`12.3 s -> batch_size 8 to 16: 9.10 s (-26 %) -> ...` in one line."""
        unit = "" if self.response.final else " s"
        parts = [f"{self.response.value_words(self.start)}{unit}"]
        for step in self.steps:
            to = "off" if step.after is None else show_value(step.after)
            how = "" if step.measured else ", expected"
            name = step.parameter.rsplit(".", 1)[-1]
            parts.append(
                f"{name} to {to}: {self.response.value_words(step.value)}{unit} "
                f"({self.response.words(step.difference)}{how})"
            )
        text = ", then ".join(parts)
        if abs(self.unexplained) > 1e-9:
            text += (
                f"; the winner itself took {self.response.value_words(self.end)}{unit}, "
                f"{self.response.words(self.unexplained)} from what the steps expect"
            )
        return text

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        shown = self.response.shown
        return {
            "words": self.words(),
            "start": shown(self.start),
            "end": shown(self.end),
            "unexplained": shown(self.unexplained),
            "steps": [
                {
                    "parameter": step.parameter,
                    "from": step.before,
                    "to": step.after,
                    "value": shown(step.value),
                    "change": shown(step.difference),
                    "measured": step.measured,
                    "learning": math.exp(step.split.learning) if step.split else None,
                    "speed": math.exp(step.split.speed) if step.split else None,
                }
                for step in self.steps
            ],
        }


def path(
    facts: StudyFacts, baseline: Mapping[str, Value], winner: Point, *, target: float
) -> Path | None:
    """The greedy path: at every point the parameter that saves most goes first.

    All values are of stages 1 and 2; the model is main effects over all of their runs. None where the
    baseline or the winner was not measured there, or nothing can be expected of a point between.
    """
    response = Response.of(facts.study, target)
    runs = observe(facts.present(SEARCH_STAGES), response, facts.study.limits)
    known = {p: seen for p, seen in pooled(runs).items() if seen.known == EXACT}
    space = facts.study.space
    try:
        here = space.point(dict(baseline))
    except (KeyError, ValueError):
        return None
    if here not in known or winner not in known or here == winner:
        return None
    model = _Model.of(space, runs)
    start = known[here]
    names = [n for n in space.parameters if here.get(n) != winner.get(n)]
    steps: list[Step] = []
    value, seen = start.value, known.get(here)
    while names:
        choices: list[tuple[float, str, Point, Observed | None]] = []
        for name in names:
            there = _moved(space, here, name, winner)
            if there is None:
                continue
            reached = known.get(there)
            expected = None if model is None else model.difference(here, there)
            if reached is not None:
                choices.append((reached.value, name, there, reached))
            elif expected is not None:
                choices.append((value + expected, name, there, None))
        if not choices:
            return None
        after, name, there, reached = min(choices, key=lambda choice: choice[0])
        split = (
            reached.split - seen.split
            if reached and seen and reached.split and seen.split
            else None
        )
        steps.append(
            Step(
                name,
                here.get(name),
                there.get(name),
                after,
                after - value,
                reached is not None,
                split,
            )
        )
        names = [n for n in names if n != name and there.get(n) != winner.get(n)]
        here, value, seen = there, after, reached
    end = known[winner].value
    return Path(response, start.value, tuple(steps), end, end - value)


def _moved(space: Space, here: Point, name: str, winner: Point) -> Point | None:
    """The point with one parameter as the winner has it, and what that switches on or off."""
    values: dict[str, object] = {**winner, **here}
    if name in winner:
        values[name] = winner[name]
    else:
        values.pop(name, None)
    try:
        return space.point(values)
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True)
class _Model:
    space: Space
    columns: tuple[Column, ...]
    fitted: CensoredFit

    @classmethod
    def of(cls, space: Space, runs: Sequence[Observed]) -> _Model | None:
        """Main effects of everything that varies, quadratic where the runs can carry it."""
        levels = {
            name: tuple(dict.fromkeys(run.point[name] for run in runs if name in run.point))
            for name in space.parameters
        }
        crossed = sum(run.known == EXACT for run in runs)
        known = np.array([run.known for run in runs], dtype=np.int8)
        values = np.array([run.value for run in runs])
        for quadratic in (True, False):
            columns = model_columns(space, levels, quadratic=quadratic)
            if RUNS_PER_PARAMETER * (len(columns) + 1) > crossed:
                continue
            try:
                design = model_matrix(space, columns, [run.point for run in runs])
                return cls(space, columns, censored.fit(design, values, known))
            except NotEstimableError:
                continue
        return None

    def difference(self, here: Point, there: Point) -> float:
        """The expected value of one point less that of another."""
        rows = model_matrix(self.space, self.columns, [here, there])
        return float((rows[1] - rows[0]) @ self.fitted.coefficients)
