"""The confirm plan: finalists and baseline with fresh seeds, interleaved in randomised blocks.

It must not know how the finalists were found, or when enough has been seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

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
    blocks: int | None = None,
) -> StagePlan:
    """Up to `repeats` blocks, each with every finalist and the baseline once, in random order.

    All arms of a block share its seed, so that they are compared in pairs. Trials are `c-02-1`:
    block, then arm in the order given; the baseline comes last, unless it is a finalist itself.

    Args:
        study: The study.
        finalists: Best first; equal points count once.
        baseline: None when the study declares no whole baseline.
        repeats: Budget of blocks.
        seed: Decides the order within the blocks.
        target: The effective target; None means the study's.
        blocks: How many of them to lay out now (`extend_confirm` adds more); None means all.

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
    digits = max(2, len(str(repeats)))
    first: list[PlannedTrial] = []
    for arm, point in enumerate(arms, start=1):
        groups = ["finalist"] if point in finalists else []
        groups += ["baseline"] if point == baseline else []
        first.append(
            PlannedTrial(
                id=f"c-{1:0{digits}d}-{arm}",
                stage="confirm",
                label=label(study.space, point),
                groups=tuple(groups),
                point=point,
                seed=study.seed + SEED_OFFSET + 1,
                block=1,
            )
        )
    trials = _blocks(study, first, range(1, (blocks or repeats) + 1), digits, seed)
    return StagePlan(
        study=study.name,
        stage="confirm",
        target=study.objective.target if target is None else target,
        trials=tuple(trials),
        entries=len(trials),
        distinct=len(arms),
        design={
            "kind": "randomised blocks",
            "runs": len(trials),
            "blocks": repeats,
            "order_seed": seed,
        },
        notes=tuple(notes),
    )


def extend_confirm(study: Study, plan: StagePlan, blocks: int) -> StagePlan:
    """The plan laid out up to `blocks` blocks; what it had stays as it was."""
    first = sorted(
        (t for t in plan.trials if t.block == 1), key=lambda t: int(t.id.rpartition("-")[2])
    )
    have = max(t.block for t in plan.trials)
    digits = len(first[0].id.split("-")[1])
    more = _blocks(study, first, range(have + 1, blocks + 1), digits, plan.design["order_seed"])
    trials = (*plan.trials, *more)
    return replace(
        plan,
        trials=trials,
        entries=len(trials),
        design={**plan.design, "runs": len(trials)},
    )


def _blocks(
    study: Study,
    first: Sequence[PlannedTrial],
    numbers: range,
    digits: int,
    seed: int,
) -> list[PlannedTrial]:
    """Blocks with every arm of the first once, each in a random order of its own."""
    trials = []
    for block in numbers:
        arms = list(enumerate(first, start=1))
        random.Random(seed * 1000 + block).shuffle(arms)  # noqa: S311 - a design, not a secret
        for arm, trial in arms:
            trials.append(
                replace(
                    trial,
                    id=f"c-{block:0{digits}d}-{arm}",
                    seed=study.seed + SEED_OFFSET + block,
                    replicate_of=None if block == 1 else trial.id,
                    block=block,
                )
            )
    return trials
