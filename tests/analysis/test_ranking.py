"""Ranking, the summary of a stage and its exit code, on facts with known times."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.ranking import (
    best,
    busy_s,
    failures,
    rank,
    stage_summary,
    tightest_target,
    top,
)
from sweeper.errors import (
    EXIT_DONE,
    EXIT_NOTHING_REACHED,
    EXIT_SOME_FAILED,
    EXIT_STOPPED_EARLY,
)
from sweeper.trial import Reason
from tests.fakes.facts import TARGET, Clockwork, make_study, make_sweep

CONTRACT = {
    "study", "stage", "target", "effective_target", "planned", "distinct", "reached", "censored",
    "failed", "reused", "best", "top", "wall_s", "train_s", "saved_s", "exit",
}  # fmt: skip
BEST = {
    "id", "label", "time_to_target_s", "steps_to_target", "seconds_per_step", "point",
}  # fmt: skip


@pytest.fixture
def work() -> Clockwork:
    return Clockwork(make_study())


def one_stage(work: Clockwork, **plan: object) -> tuple[StudyFacts, StageFacts]:
    stage = work.stage("stage1", **plan)
    return work.facts(stage1=stage), stage


def test_rows_that_reached_come_first_then_those_that_came_far(work):
    work.trial("stage1", "slow", {"optim.lr": 0.02}, 4.0)
    work.trial("stage1", "fast", {"optim.lr": 0.01}, 2.0)
    # Both censored: `near` came lower because it was watched longer on the same curve.
    work.trial("stage1", "far", {"optim.lr": 0.1}, None, reason=Reason.STEPS, stop_s=1.0)
    work.trial("stage1", "near", {"optim.lr": 0.05}, None, stop_s=5.0)
    _, stage = one_stage(work)
    rows = rank([stage], target=TARGET, clock="train")
    assert [row.id for row in rows] == ["fast", "slow", "near", "far"]
    assert rows[0].seconds == pytest.approx(2.0, rel=0.05)
    assert best(rows) is rows[0]
    assert [row.id for row in top(rows, 5)] == ["fast", "slow"]


def test_a_censored_row_never_precedes_one_that_reached_however_short_it_was_watched(work):
    work.trial("stage1", "reached", {"optim.lr": 0.01}, 9.0)
    work.trial("stage1", "stopped", {"optim.lr": 0.02}, None, stop_s=0.5)
    _, stage = one_stage(work)
    rows = rank([stage], target=TARGET, clock="train")
    assert [(row.id, row.reached) for row in rows] == [("reached", True), ("stopped", False)]
    assert rows[1].as_dict()["time_to_target_s"] is None
    assert rows[1].as_dict()["censored_at_s"] == pytest.approx(0.4, abs=0.21)


def test_replicates_are_one_row_with_their_median(work):
    for name, seconds in (("a", 3.0), ("b", 2.0), ("c", 5.0)):
        work.trial("stage1", name, {"optim.lr": 0.01}, seconds)
    _, stage = one_stage(work)
    (row,) = rank([stage], target=TARGET, clock="train")
    assert row.id == "a"
    assert row.seconds == pytest.approx(3.0, rel=0.05)
    assert row.reached_runs == 3


@pytest.mark.parametrize(
    ("reached", "censored", "row_reached"), [(2, 1, True), (1, 1, False), (1, 2, False)]
)
def test_a_median_reached_only_if_the_middle_runs_did(work, reached, censored, row_reached):
    for number in range(reached):
        work.trial("stage1", f"r{number}", {"optim.lr": 0.01}, 3.0 + number)
    for number in range(censored):
        work.trial("stage1", f"c{number}", {"optim.lr": 0.01}, None, stop_s=2.0)
    _, stage = one_stage(work)
    (row,) = rank([stage], target=TARGET, clock="train")
    assert row.reached is row_reached
    assert row.reached_runs == reached
    if not row_reached:  # a bound: each missed run counts with the time that it was watched
        assert row.seconds < 3.2
        assert row.steps is None


def test_the_same_curves_rank_at_any_target_and_clock(work):
    work.trial("stage1", "a", {"optim.lr": 0.01}, 3.0)
    _, stage = one_stage(work)
    (tight,) = rank([stage], target=TARGET, clock="train")
    (loose,) = rank([stage], target=3.5, clock="train")
    (wall,) = rank([stage], target=TARGET, clock="wall")
    (never,) = rank([stage], target=2.3, clock="train")
    assert loose.seconds < tight.seconds < wall.seconds
    assert not never.reached


def test_summary_has_the_keys_of_the_contract_and_is_strict_json():
    facts = make_sweep()
    for name in facts.stages:
        summary = stage_summary(facts, name)
        assert set(summary) >= CONTRACT
        assert set(summary["best"]) >= BEST
        assert set(summary["saved_s"]) == {"cap", "forecast", "dedupe"}
        json.dumps(summary, allow_nan=False)
        assert summary["best"] == summary["top"][0]
        assert summary["best"]["seconds_per_step"] * summary["best"]["steps_to_target"] == (
            pytest.approx(summary["best"]["time_to_target_s"], rel=1e-12)
        )


def test_summary_counts_add_up_to_what_was_planned():
    facts = make_sweep()
    summary = stage_summary(facts, "stage1")
    parts = ("reached", "censored", "failed", "invalid", "missing", "reused")
    assert sum(summary[part] for part in parts) == summary["planned"] == 20
    assert (summary["trials"], summary["distinct"], summary["reused"]) == (17, 17, 3)
    assert summary["saved_s"]["dedupe"] > 0


def test_a_trial_without_an_attempt_is_missing_not_failed(work):
    work.trial("stage1", "a", {"optim.lr": 0.01}, 3.0)
    work.trial("stage1", "b", {"optim.lr": 0.02}, 3.0)
    _, stage = one_stage(work)
    begun = dataclasses.replace(stage.facts[1], attempts=())
    stage = dataclasses.replace(stage, facts=(stage.facts[0], begun), closed=False)
    summary = stage_summary(work.facts(stage1=stage), "stage1")
    assert (summary["missing"], summary["failed"], summary["reached"]) == (1, 0, 1)


def test_exit_codes(work):
    work.trial("stage1", "a", {"optim.lr": 0.01}, 3.0)
    facts, _ = one_stage(work)
    assert stage_summary(facts, "stage1")["exit"] == EXIT_DONE
    assert stage_summary(facts, "stage1", stopped_early=True)["exit"] == EXIT_STOPPED_EARLY
    work.trial("stage1", "b", {"optim.lr": 0.1}, None, reason=Reason.OOM)
    facts, stage = one_stage(work)
    assert stage_summary(facts, "stage1")["exit"] == EXIT_SOME_FAILED
    (failure,) = failures([stage])
    assert (failure.id, failure.reason) == ("b", Reason.OOM)


def test_a_failure_that_a_later_attempt_made_good_is_none(work):
    work.trial("stage1", "a", {"optim.lr": 0.01}, 3.0, failed_before=2)
    facts, stage = one_stage(work)
    assert failures([stage]) == ()
    assert stage_summary(facts, "stage1")["exit"] == EXIT_DONE


def test_nothing_reached_exits_4_and_names_the_closest(work):
    work.trial("stage1", "a", {"optim.lr": 0.01}, None, reason=Reason.STEPS, stop_s=3.0)
    facts, _ = one_stage(work)
    summary = stage_summary(facts, "stage1")
    assert summary["exit"] == EXIT_NOTHING_REACHED
    assert summary["best"] is None
    assert summary["top"] == []
    assert summary["closest"]["id"] == "a"


def test_reaching_a_fallback_is_not_nothing(work):
    # 3.2 is the loosest fallback; a curve that needs 4 s to 2.5 passes it well before 3.5 s.
    work.trial("stage1", "a", {"optim.lr": 0.01}, None, reason=Reason.STEPS, stop_s=14.0)
    facts, stage = one_stage(work)
    assert min(e.value for e in stage.facts[0].attempts[0].curve) < 3.2
    assert stage_summary(facts, "stage1")["exit"] == EXIT_DONE


def test_when_everything_failed_the_code_says_so(work):
    work.trial("stage1", "a", {"optim.lr": 0.01}, None, reason=Reason.CRASHED)
    facts, _ = one_stage(work)
    assert stage_summary(facts, "stage1")["exit"] == EXIT_SOME_FAILED


def test_tightest_target_is_what_k_points_came_down_to(work):
    for name, lr, stop in (("a", 0.01, 2.0), ("b", 0.02, 4.0), ("c", 0.03, 6.0)):
        work.trial("stage1", name, {"optim.lr": lr}, None, reason=Reason.STEPS, stop_s=stop)
    _, stage = one_stage(work)
    lowest = sorted(min(e.value for e in t.attempts[0].curve) for t in stage.facts)
    assert tightest_target([stage], 2) == lowest[1]
    assert tightest_target([stage], 4) is None
    reached = [row.reached for row in rank([stage], target=lowest[1], clock="train")]
    assert sum(reached) == 2


def test_wall_is_the_union_of_overlapping_attempts(work):
    facts = work.trial("stage1", "a", {"optim.lr": 0.01}, 3.0)
    (attempt,) = facts.attempts
    at = [
        dataclasses.replace(attempt, started_at=start, wall_s=wall)
        for start, wall in ((100.0, 10.0), (105.0, 10.0), (200.0, 5.0), (201.0, 1.0))
    ]
    assert busy_s(at) == pytest.approx(20.0)
    assert busy_s([]) == 0.0
    assert math.isfinite(busy_s(at))
