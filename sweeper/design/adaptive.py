"""Stage 2 by a sampler: the region of the fraction, replicates of the incumbent, then point by point.

It must not know which sampler suggests the points, or how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sweeper.design.groups import is_forbidden, label
from sweeper.design.refine import SEED_OFFSET, choose_region, choose_top
from sweeper.errors import PlanError
from sweeper.space import Point, Value
from sweeper.study import Study
from sweeper.trial import PlannedTrial, Reason, StagePlan, TrialFacts


def plan_adaptive(
    study: Study,
    facts: Sequence[TrialFacts],
    *,
    from_top: int,
    runs: int,
    target: float,
) -> StagePlan:
    """The first trials of an adaptive stage 2: the incumbent with fresh seeds, as noise estimate.

    The region is the one that a fraction would be designed in (method section 5). `add_point` adds
    the others, up to `design["runs"]`.

    Raises:
        PlanError: stage 1 measured nothing, or left nothing to vary.
    """
    top = choose_top(study, facts, from_top, target)
    region = choose_region(study, facts, top)
    if not region.varying:
        raise PlanError(
            f"{study.name}: stage 1 left nothing to vary, so {study.stage2.strategy} has nothing to "
            'suggest; use strategy = "fraction", which replicates the top then'
        )
    best = top.points[0].point
    fixed: dict[str, Value] = {
        **{n: v for n, v in study.space.baseline().items() if n not in best},
        **best,
        **{n: lock.value for n, lock in region.locked.items()},
    }
    here = {n: best.get(n, levels[0]) for n, levels in region.varying.items()}
    lost = [
        f.trial.point
        for f in facts
        if f.attempts and all(a.reason is Reason.OOM for a in f.attempts)
    ]
    empty = StagePlan(
        study=study.name,
        stage="stage2",
        target=top.target,
        trials=(),
        entries=0,
        distinct=0,
        locked=region.locked,
        varying=region.varying,
        design={
            "kind": study.stage2.strategy,
            "runs": runs,
            "fixed": fixed,
            "out_of_memory": [dict(point) for point in dict.fromkeys(lost)],
        },
        notes=(*top.notes, f"{study.stage2.strategy} adds points one by one, up to {runs} runs"),
    )
    incumbent = study.space.point({**fixed, **here})
    plan = empty
    for _ in range(min(runs, max(1, study.stage2.replicates))):
        plan = add_point(study, plan, incumbent)
    return plan


def point_of(study: Study, plan: StagePlan, assignment: Mapping[str, Value]) -> Point | None:
    """A suggestion as a whole point; None where it must not be run (forbidden, out of memory)."""
    point = study.space.point({**plan.design["fixed"], **assignment})
    lost = (Point(values) for values in plan.design["out_of_memory"])
    return None if is_forbidden(study, point) or point in lost else point


def add_point(study: Study, plan: StagePlan, point: Point) -> StagePlan:
    """The plan with one trial more; a point that it has already is replicated with a fresh seed."""
    number = len(plan.trials) + 1
    digits = max(2, len(str(plan.design["runs"])))
    original = next((t.id for t in plan.trials if t.point == point), None)
    trial = PlannedTrial(
        id=f"s2-{number:0{digits}d}",
        stage="stage2",
        label=label(study.space, point),
        groups=("stage2",),
        point=point,
        seed=study.seed + SEED_OFFSET + (number if original else 0),
        replicate_of=original,
    )
    trials = (*plan.trials, trial)
    return replace(
        plan, trials=trials, entries=len(trials), distinct=len({t.point for t in trials})
    )
