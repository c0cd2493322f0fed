"""Stage 2: from the facts of stage 1 to a designed fraction around its best points.

It must not know what the parameters mean, or how a fraction is optimised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.design.fraction import Fraction, design_fraction
from sweeper.design.groups import is_forbidden, label
from sweeper.design.model_matrix import Factor
from sweeper.design.region import (
    Measured,
    Region,
    Top,
    choose_region,
    choose_top,
    noise_sd,
)
from sweeper.errors import PlanError
from sweeper.space import Float, Integer, Point, Value
from sweeper.study import Study
from sweeper.trial import Lock, PlannedTrial, Reason, StagePlan, TrialFacts

SEED_OFFSET = 1000
"""Stage 2 runs with other seeds than stage 1: the incumbent was picked for a fast run."""

__all__ = ["Measured", "Region", "Top", "choose_region", "choose_top", "plan_stage2"]


def plan_stage2(
    study: Study,
    facts: Sequence[TrialFacts],
    *,
    from_top: int,
    runs: int,
    seed: int,
    target: float | None = None,
) -> StagePlan:
    """Choose the top, lock, widen, and design `runs` runs (method section 5).

    Of the runs, `study.stage2.replicates` repeat the incumbent. With nothing left to vary the top
    points are replicated. The plan's target is the one that the top was ranked by.

    Args:
        study: The study.
        facts: All trials of stage 1.
        from_top: How many points the region is built around.
        runs: Number of trials.
        seed: Decides the design and its order; the same seed and facts give the same plan.
        target: The target that stage 1 was judged at; None means the study's.

    Raises:
        PlanError: stage 1 has measured nothing, or `runs` are too few for what varies.
    """
    goal = study.objective.target if target is None else target
    top = choose_top(study, facts, from_top, goal)
    region = choose_region(study, facts, top)
    if len(region.varying) == 1:
        region = _lock_the_last(region, top)
    if not region.varying:
        return _replicate_top(study, top, region, runs)
    names = list(region.varying)
    dropped = [pair for pair in study.stage2.interactions if not set(pair) <= set(names)]
    blank = _Completion(study, facts, region, top)
    try:
        fraction = design_fraction(
            [_factor(study, name, levels) for name, levels in region.varying.items()],
            runs=runs,
            incumbent={name: blank.incumbent[name] for name in names},
            interactions=[p for p in study.stage2.interactions if p not in dropped],
            replicates=min(study.stage2.replicates, runs - 1),
            forbidden=blank.is_forbidden,
            seed=seed,
        )
    except ValueError as error:
        raise PlanError(f"stage 2 of {study.name} cannot be designed: {error}") from None
    points = [blank.point(assignment) for assignment in fraction.assignments]
    notes = [*top.notes]
    notes += [f"interaction {' x '.join(p)} dropped: not both of them vary" for p in dropped]
    if fraction.kind == "full factorial":
        notes.append(f"{runs} runs cover all {len(set(points))} points; the rest are replicates")
    design = _properties(study, facts, top, fraction)
    return _plan(study, top, region, points, design=design, notes=notes)


class _Completion:
    """Points of the region as whole points of the space, and which of them may not be run."""

    def __init__(self, study: Study, facts: Sequence[TrialFacts], region: Region, top: Top) -> None:
        self._study = study
        baseline = study.space.baseline()
        fixed: dict[str, Value] = {name: lock.value for name, lock in region.locked.items()}
        best: Mapping[str, Value] = top.points[0].point
        inactive = {n: v for n, v in baseline.items() if n not in best}
        self._fixed = {**inactive, **best, **fixed}
        self._out_of_memory = {
            f.trial.point
            for f in facts
            if f.attempts and all(a.reason is Reason.OOM for a in f.attempts)
        }
        here = {name: best.get(name, levels[0]) for name, levels in region.varying.items()}
        self.incumbent = {**self._fixed, **here}

    def point(self, assignment: Mapping[str, Value]) -> Point:
        return self._study.space.point({**self._fixed, **assignment})

    def is_forbidden(self, assignment: Mapping[str, Value]) -> bool:
        point = self.point(assignment)
        return point in self._out_of_memory or is_forbidden(self._study, point)


def _factor(study: Study, name: str, levels: tuple[Value, ...]) -> Factor:
    parameter = study.space.parameters[name]
    if isinstance(parameter, Float | Integer):
        return Factor(name, levels, "numeric", parameter.scale)
    return Factor(name, levels, "categorical")


def _lock_the_last(region: Region, top: Top) -> Region:
    """A single varying parameter is no design: its best value is known already (method 5.4)."""
    ((name, levels),) = region.varying.items()
    lock = Lock(
        top.points[0].point.get(name, levels[0]),
        "the only parameter left to vary: locked at its best value, so that the runs go to replicates",
    )
    return Region({}, {**region.locked, name: lock})


def _replicate_top(study: Study, top: Top, region: Region, runs: int) -> StagePlan:
    points = [top.points[i % len(top.points)].point for i in range(runs)]
    note = f"nothing is left to vary: {runs} runs replicate the top {len(top.points)}"
    design = {"kind": "replicates", "runs": runs, "d_efficiency": None, "max_alias": None}
    design |= {"balance": {}, "parameters": [], "dropped": []}
    return _plan(study, top, region, points, design=design, notes=[*top.notes, note])


def _properties(
    study: Study, facts: Sequence[TrialFacts], top: Top, fraction: Fraction
) -> dict[str, Any]:
    """What is printed before a second is spent, as JSON values."""
    spread, freedom = noise_sd(study, facts, top.target, top.kth)
    alias = fraction.max_alias
    levels = {factor.name: factor.levels for factor in fraction.factors}
    return {
        "kind": fraction.kind,
        "runs": len(fraction.runs),
        "d_efficiency": fraction.d_efficiency,
        "max_alias": alias.correlation if alias else 0.0,
        "max_alias_terms": [alias.term, alias.with_term] if alias else [],
        "balance": {
            name: [[level, count] for level, count in zip(levels[name], counts, strict=True)]
            for name, counts in fraction.balance.items()
        },
        "parameters": list(fraction.terms),
        "dropped": [{"term": d.label, "why": d.reason} for d in fraction.dropped],
        "residual_df": fraction.residual_df,
        "noise_sd": spread,
        "noise_df": freedom,
        "detectable": {
            effect.term: math.expm1(effect.log_effect)
            for effect in fraction.detectable_effects(spread)
        }
        if spread > 0
        else {},
    }


def _plan(
    study: Study,
    top: Top,
    region: Region,
    points: Sequence[Point],
    *,
    design: Mapping[str, Any],
    notes: Sequence[str],
) -> StagePlan:
    trials: list[PlannedTrial] = []
    first: dict[Point, str] = {}
    digits = max(2, len(str(len(points))))
    for number, point in enumerate(points, start=1):
        trial_id = f"s2-{number:0{digits}d}"
        original = first.setdefault(point, trial_id)
        repeat = original != trial_id
        trials.append(
            PlannedTrial(
                id=trial_id,
                stage="stage2",
                label=label(study.space, point),
                groups=("stage2",),
                point=point,
                seed=study.seed + SEED_OFFSET + (number if repeat else 0),
                replicate_of=original if repeat else None,
            )
        )
    return StagePlan(
        study=study.name,
        stage="stage2",
        target=top.target,
        trials=tuple(trials),
        entries=len(trials),
        distinct=len(first),
        locked=region.locked,
        varying=region.varying,
        design=design,
        notes=tuple(notes),
    )
