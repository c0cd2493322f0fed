"""The arms of a study side by side at every evaluation: the metric by step, and steps to each level.

It must not know how it is shown; an arm that never came to a level has no number there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.dataset import StudyFacts
from sweeper.space import Point
from sweeper.trial import AttemptFacts, StageName

MOST_ARMS = 6
LEVELS = 6


@dataclass(frozen=True)
class Arm:
    """One configuration: its runs' mean metric by step, over the steps that all its runs looked at."""

    label: str
    role: str
    point: Point
    runs: int
    curve: Mapping[int, float]

    def steps_to(self, level: float) -> float | None:
        """Steps until the mean curve came to `level`, interpolated, or None: it never did."""
        before: tuple[int, float] | None = None
        for step, value in self.curve.items():
            if value <= level:
                if before is None:
                    return float(step)
                share = (before[1] - level) / (before[1] - value)
                return before[0] + share * (step - before[0])
            before = (step, value)
        return None


@dataclass(frozen=True)
class StepTable:
    """Arms in the order baseline, first group, winner; rows where all of them were looked at."""

    arms: tuple[Arm, ...]
    steps: tuple[int, ...]
    levels: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `changes` are percent of the first arm's value at the same step."""
        first = self.arms[0].curve
        return {
            "arms": [{"label": a.label, "role": a.role, "runs": a.runs} for a in self.arms],
            "rows": [
                {
                    "step": step,
                    "values": [arm.curve[step] for arm in self.arms],
                    "changes": [100 * (arm.curve[step] / first[step] - 1) for arm in self.arms],
                }
                for step in self.steps
            ],
            "levels": [
                {"level": level, "steps": [arm.steps_to(level) for arm in self.arms]}
                for level in self.levels
            ],
        }


def step_table(facts: StudyFacts, winner: Point | None) -> StepTable | None:
    """The baseline, the arms of stage 1's first group and the winner; None with fewer than two.

    Runs of an arm are those of one stage only: the confirm stage where it has the arm, else the
    first that has. So all of an arm's seeds were drawn for the same purpose.
    """
    labels = {t.trial.point: t.trial.label for s in facts.present() for t in s.facts}
    roles: dict[Point, str] = {}
    baseline = facts.baseline()
    if baseline is not None:
        roles[baseline] = "baseline"
    first_group = facts.study.stage1.group[0].name
    for trial in facts.stages["stage1"].facts if "stage1" in facts.stages else ():
        if first_group in trial.trial.groups and len(roles) < MOST_ARMS - 1:
            roles.setdefault(trial.trial.point, "arm")
    if winner is not None and roles.get(winner) != "baseline":
        roles[winner] = "winner"
    arms = [
        arm
        for point, role in roles.items()
        if (arm := _arm(facts, point, labels.get(point, role), role)) is not None
    ]
    if len(arms) < 2:
        return None
    shared = [step for step in arms[0].curve if all(step in arm.curve for arm in arms)]
    return StepTable(tuple(arms), tuple(shared), _levels(arms, shared)) if shared else None


def _arm(facts: StudyFacts, point: Point, label: str, role: str) -> Arm | None:
    names: tuple[StageName, ...] = ("confirm", "stage1", "stage2")
    for name in names:
        stage = facts.stages.get(name)
        runs = [a for t, a in stage.measured() if t.trial.point == point] if stage else []
        if runs:
            return Arm(label, role, point, len(runs), _mean_curve(runs))
    return None


def _mean_curve(runs: Sequence[AttemptFacts]) -> Mapping[int, float]:
    curves = [
        {e.step: e.value for e in run.curve if e.slice == "probe" and math.isfinite(e.value)}
        for run in runs
    ]
    shared = set.intersection(*(set(curve) for curve in curves))
    return {step: statistics.fmean(curve[step] for curve in curves) for step in sorted(shared)}


def _levels(arms: Sequence[Arm], steps: Sequence[int]) -> tuple[float, ...]:
    """Round levels between where the arms began and the lowest that any of them came to."""
    high = max(arm.curve[steps[0]] for arm in arms)
    low = min(min(arm.curve.values()) for arm in arms)
    if not high > low:
        return ()
    power = 10.0 ** math.floor(math.log10((high - low) / LEVELS))
    spacing = next(m * power for m in (1, 2, 5, 10) if m * power * LEVELS >= high - low)
    first = math.ceil(low / spacing - 1e-9)
    found = [round(i * spacing, 10) for i in range(first, first + LEVELS + 1)]
    return tuple(level for level in reversed(found) if level < high)
