"""Confirm: every block holds every arm once, in an order of its own, with a seed of its own."""

from __future__ import annotations

import pytest

from sweeper.design.confirm import plan_confirm
from sweeper.design.groups import complete, plan_stage1
from sweeper.errors import PlanError


@pytest.fixture
def points(study):
    return [t.point for t in plan_stage1(study, {}).trials]


def test_blocks(study, points):
    baseline = complete(study, {})
    finalists = [p for p in points if p != baseline][:3]
    plan = plan_confirm(study, finalists, baseline, 10, 4)
    assert len(plan.trials) == plan.entries == 40
    assert plan.distinct == 4
    assert plan.trials[0].id.startswith("c-01-")
    blocks = {n: [t for t in plan.trials if t.block == n] for n in range(1, 11)}
    for number, block in blocks.items():
        assert {t.id for t in block} == {f"c-{number:02d}-{arm}" for arm in (1, 2, 3, 4)}
        assert {t.point for t in block} == {*finalists, baseline}
        assert len({t.seed for t in block}) == 1
    assert len({block[0].seed for block in blocks.values()}) == 10
    assert len({tuple(t.id[-1] for t in block) for block in blocks.values()}) > 3
    assert list(plan.trials) == sorted(plan.trials, key=lambda t: t.block)
    marked = {t.point for t in plan.trials if "baseline" in t.groups}
    assert marked == {baseline}
    assert all(t.replicate_of == f"c-01-{t.id[-1]}" for t in plan.trials if t.block > 1)
    assert plan_confirm(study, finalists, baseline, 10, 4) == plan
    assert plan_confirm(study, finalists, baseline, 10, 5) != plan


def test_baseline_among_the_finalists(study, points):
    baseline = complete(study, {})
    plan = plan_confirm(study, [baseline, points[1], baseline], baseline, 2, 1)
    assert plan.distinct == 2
    arms = {t.id[-1]: t.groups for t in plan.trials}
    assert arms == {"1": ("finalist", "baseline"), "2": ("finalist",)}
    assert plan.notes == ("the baseline is a finalist itself: it has no arm of its own",)


def test_without_baseline_or_finalist(study, points):
    plan = plan_confirm(study, points[:2], None, 3, 1, target=5.5)
    assert plan.target == 5.5
    assert plan.distinct == 2
    assert plan.notes == ("no baseline arm: not every parameter has a baseline",)
    with pytest.raises(PlanError, match="no finalist to confirm"):
        plan_confirm(study, [], None, 3, 1)
