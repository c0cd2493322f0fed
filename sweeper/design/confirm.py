"""The confirm plan: finalists and baseline with fresh seeds, interleaved in randomised blocks.

It must not know how the finalists were found, or when enough has been seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sweeper.design.groups import label
from sweeper.errors import PlanError
from sweeper.space import Point
from sweeper.study import Study
from sweeper.trial import PlannedTrial, StagePlan

SEED_OFFSET = 2000
"""Confirm runs with seeds that no earlier stage used."""


def plan_confirm(
    study: Study,
    finalists: Sequence[Point],
    baseline: Point | None,
    repeats: int,
    seed: int,
    *,
    target: float | None = None,
) -> StagePlan:
    """`repeats` blocks, each with every finalist and the baseline once, in random order.

    All arms of a block share its seed, so that they are compared in pairs. Trials are `c-02-1`:
    block, then arm in the order given; the baseline comes last, unless it is a finalist itself.

    Args:
        study: The study.
        finalists: Best first; equal points count once.
        baseline: None when the study declares no whole baseline.
        repeats: Number of blocks.
        seed: Decides the order within the blocks.
        target: The effective target; None means the study's.

    Raises:
        PlanError: no finalist.
    """
    arms = list(dict.fromkeys(finalists))
    if not arms:
        raise PlanError(f"{study.name}: no finalist to confirm; run `sweep stage1` first")
    notes = []
    if baseline is not None and baseline in arms:
        notes.append("the baseline is a finalist itself: it has no arm of its own")
    elif baseline is not None:
        arms.append(baseline)
    if baseline is None:
        notes.append("no baseline arm: not every parameter has a baseline")
    order = random.Random(seed)  # noqa: S311 - a design, not a secret
    trials = []
    digits = max(2, len(str(repeats)))
    for block in range(1, repeats + 1):
        places = list(enumerate(arms, start=1))
        order.shuffle(places)
        for arm, point in places:
            groups = ["finalist"] if point in finalists else []
            groups += ["baseline"] if point == baseline else []
            first = f"c-{1:0{digits}d}-{arm}"
            trials.append(
                PlannedTrial(
                    id=f"c-{block:0{digits}d}-{arm}",
                    stage="confirm",
                    label=label(study.space, point),
                    groups=tuple(groups),
                    point=point,
                    seed=study.seed + SEED_OFFSET + block,
                    replicate_of=None if block == 1 else first,
                    block=block,
                )
            )
    return StagePlan(
        study=study.name,
        stage="confirm",
        target=study.objective.target if target is None else target,
        trials=tuple(trials),
        entries=len(trials),
        distinct=len(arms),
        design={"kind": "randomised blocks", "runs": len(trials), "blocks": repeats},
        notes=tuple(notes),
    )
