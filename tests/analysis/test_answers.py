"""Questions, path, sensitivity, chances, drift and predictions, against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy import stats

from sweeper.analysis.chances import chance, clopper_pearson
from sweeper.analysis.drift import drift
from sweeper.analysis.effects import stage2_effects
from sweeper.analysis.path import path
from sweeper.analysis.prediction import best_untested
from sweeper.analysis.questions import answers
from sweeper.analysis.response import Response, observe
from sweeper.analysis.sensitivity import every_second, sensitivity
from sweeper.analysis.times import SearchTimes
from sweeper.study import Question
from sweeper.trial import Evaluation, Phases, Reason
from tests.fakes.facts import TARGET, Clockwork, make_study, make_sweep

METHOD = Question(text="Does it pay?", parameter="optim.method")
RATES = (0.01, 0.02, 0.03, 0.06)


def asked(times, *questions, step_s=None):
    """Facts of stage 1 with both methods at each rate; a time of None was stopped at 9 s."""
    work = Clockwork(make_study(questions=questions))
    for lr, pair in zip(RATES, times, strict=False):
        for method, seconds in zip(("newton_schulz", "polar_express"), pair, strict=True):
            work.trial(
                "stage1", f"{method[:2]}-{lr}", {"optim.lr": lr, "optim.method": method}, seconds,
                step_s=(step_s or {}).get(method, 0.001), stop_s=9.0,
            )  # fmt: skip
    return work.facts(stage1=work.stage("stage1"))


def test_a_question_is_answered_by_pairs_with_an_exact_split():
    steps = {"newton_schulz": 0.001, "polar_express": 0.0011}
    times = [(2.0, 2.1), (3.0, 3.2), (4.0, 4.1), (5.0, 5.3)]
    (answer,) = answers(asked(times, METHOD, step_s=steps))
    (found,) = answer.comparisons
    assert (found.reference, found.level) == ("newton_schulz", "polar_express")
    assert len(found.pairs) == 4
    logs = [math.log(b / a) for a, b in times]
    assert found.time.value == pytest.approx(sum(logs) / 4, abs=0.01)
    interval = stats.ttest_1samp([p.difference for p in found.pairs], 0).confidence_interval(0.95)
    assert (found.time.low, found.time.high) == pytest.approx((interval.low, interval.high))
    assert found.learning + found.speed.value == pytest.approx(found.time.value, abs=1e-12)
    assert found.speed.value == pytest.approx(math.log(1.1), abs=1e-6)
    assert found.decided
    assert (
        "fewer tokens, 10.0 % more time per token, net 5.0 % slower [+2.1 %, +8.0 %], n = 4 pairs"
        in found.words()
    )
    assert [pair.at for pair in found.pairs] == [f"lr={lr}" for lr in RATES]


def test_fewer_than_three_pairs_are_never_decided():
    (answer,) = answers(asked([(2.0, 4.0), (3.0, 6.0)], METHOD))
    assert not answer.decided
    assert "3 pairs are needed" in answer.words()


def test_censored_pairs_are_bounds_and_where_neither_reached_nothing_is_said():
    times = [(2.0, 4.1), (3.0, 6.2), (4.0, 8.1), (2.5, None)]
    (answer,) = answers(asked(times, METHOD))
    (found,) = answer.comparisons
    assert [pair.known for pair in found.pairs] == [0, 0, 0, 1]
    assert found.time.value > math.log(2)
    assert found.decided
    (none,) = answers(asked([(None, None), (None, None)], METHOD))
    assert (
        none.words() == "not decided: no two points differ in this parameter alone and have a time"
    )
    assert none.comparisons[0].neither == 2


def test_levels_and_at_narrow_a_question():
    narrow = METHOD.model_copy(update={"at": {"optim.lr": 0.02}})
    rate = Question(text="Which?", parameter="optim.lr", levels=(0.01, 0.02, 0.03))
    times = [(2.0, 2.2), (1.5, 1.6), (3.0, 3.1), (5.0, 5.5)]
    one, many = answers(asked(times, narrow, rate))
    assert [len(c.pairs) for c in one.comparisons] == [1]
    assert {c.reference for c in many.comparisons} == {0.01}
    assert {c.level for c in many.comparisons} == {0.02, 0.03}
    assert many.words().startswith("0.02 was best where it was tried")


def test_goal_final_is_answered_on_the_metric():
    facts = asked([(2.0, 2.1), (3.0, 3.2), (4.0, 4.1)], METHOD)
    objective = facts.study.objective.model_copy(update={"goal": "final"})
    final = dataclasses.replace(
        facts, study=facts.study.model_copy(update={"objective": objective})
    )
    (answer,) = answers(final)
    (found,) = answer.comparisons
    last = [f.counted.curve[-1].value for f in facts.stages["stage1"].facts]
    expected = [b - a for a, b in zip(last[::2], last[1::2], strict=True)]
    assert found.time.value == pytest.approx(sum(expected) / 3)
    assert found.speed is None
    assert "%" not in found.words()


def test_the_path_goes_over_measured_points_and_adds_up():
    work = Clockwork(make_study())
    lr, both = {"optim.lr": 0.02}, {"optim.lr": 0.02, "optim.method": "polar_express"}
    work.trial("stage1", "base", {}, 8.0, step_s=0.001)
    work.trial("stage1", "lr", lr, 4.0, step_s=0.001)
    work.trial("stage1", "method", {"optim.method": "polar_express"}, 7.0, step_s=0.001)
    won = work.trial("stage1", "both", both, 3.5, step_s=0.001)
    facts = work.facts(stage1=work.stage("stage1"))
    found = path(facts, facts.study.space.baseline(), won.trial.point, target=TARGET)
    assert [step.parameter for step in found.steps] == ["optim.lr", "optim.method"]
    assert all(step.measured and step.split for step in found.steps)
    assert found.unexplained == 0
    total = found.start + sum(step.difference for step in found.steps)
    assert total == pytest.approx(found.end)
    assert math.exp(found.end) == pytest.approx(3.5, abs=0.03)


def test_a_step_that_nobody_ran_is_expected_by_the_model_and_said_so():
    facts = make_sweep()
    first = facts.stages["stage1"]
    kept = tuple(t for t in first.facts if "D" not in t.trial.groups)
    facts = dataclasses.replace(
        facts, stages={**facts.stages, "stage1": dataclasses.replace(first, facts=kept)}
    )
    best = min(facts.stages["stage2"].facts, key=lambda t: t.counted.phases.train)
    found = path(facts, facts.study.space.baseline(), best.trial.point, target=TARGET)
    assert any(not step.measured for step in found.steps)
    assert "expected" in found.words()
    assert found.end == pytest.approx(
        found.start + sum(s.difference for s in found.steps) + found.unexplained
    )


def test_sensitivity_says_who_wins_under_each_change():
    facts = make_sweep()
    found = {v.name: v for v in sensitivity(facts, SearchTimes(facts), target=TARGET)}
    assert set(found) == {
        "target 2.525 (+1 %)", "target 2.475 (-1 %)", "clock train+eval", "clock wall",
        "every second evaluation",
    }  # fmt: skip
    assert found["target 2.525 (+1 %)"].same
    assert found["clock wall"].winner.seconds > 0
    # runs stop at their target: a harder one is not seen, and that is said, not guessed
    assert (
        "so nothing is said" in found["target 2.475 (-1 %)"].words()
        or found["target 2.475 (-1 %)"].reached < found["target 2.475 (-1 %)"].rows
    )


def test_every_second_evaluation_keeps_the_crossing():
    curve = make_sweep().stages["stage1"].facts[0].counted.curve
    half = every_second(curve)
    assert len(half) == math.ceil(len(curve) / 2) + (len(curve) % 2 == 0)
    assert half[-1] == curve[-1]


@pytest.mark.parametrize("probes", range(7))
def test_every_second_evaluation_is_the_same_with_and_without_larger_slices(probes):
    plain = [Evaluation(n, n, Phases(train=n), 3.0 - n) for n in range(probes)]
    both = [e._replace(slice=kind) for e in plain for kind in ("probe", "confirmation")]
    kept = [e for e in plain if e.step % 2 == 0 or e.step == probes - 1]
    for curve in (plain, both):
        half = every_second(curve)
        assert [e for e in half if e.slice == "probe"] == kept
        larger = [e for e in curve if e.slice == "confirmation"]
        assert [e for e in half if e.slice == "confirmation"] == larger


def test_the_chance_to_reach_counts_misses_and_leaves_caps_out():
    work = Clockwork(make_study())
    for n, (seconds, reason) in enumerate(
        [
            (2.0, None),
            (2.1, None),
            (None, Reason.CAP),
            (None, Reason.DIVERGED),
            (None, Reason.STEPS),
        ]
    ):
        work.trial("stage1", f"t{n}", {"optim.lr": 0.02}, seconds, reason=reason)
    found = chance([work.stage("stage1")], (), target=TARGET, clock="train", label="A")
    assert (found.reached, found.runs, found.cut) == (2, 4, 1)
    low, high = stats.binomtest(2, 4).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert clopper_pearson(0, 0, 0.05) == (0.0, 1.0)


def test_drift_is_the_trend_of_repeats_in_time_per_token():
    work = Clockwork(make_study())
    for n in range(6):
        work.trial("stage1", f"t{n}", {"optim.lr": 0.02}, 3.0, step_s=0.001 * 1.1**n)
        work.now += 3600
    found = drift([work.stage("stage1")], "train")
    assert len(found.repeats) == 6
    assert math.exp(found.per_hour) == pytest.approx(1.1, abs=0.01)
    assert "drifted" in found.words()
    assert found.validity == {"valid": 6}


def test_the_best_untested_point_is_of_the_region_and_was_not_run():
    facts = make_sweep()
    stage = facts.stages["stage2"]
    part = dataclasses.replace(stage, facts=tuple(f for f in stage.facts if f.trial.id != "s2-06"))
    effects = stage2_effects(dataclasses.replace(facts, stages={"stage2": part})).shown
    response = Response.of(facts.study, TARGET)
    runs = observe([part], response, facts.study.limits)
    locked = {name: lock.value for name, lock in stage.plan.locked.items()}
    found = best_untested(facts.study.space, locked, stage.plan.varying, runs, effects)
    left_out = next(f for f in stage.facts if f.trial.id == "s2-06")
    assert found.point == left_out.trial.point
    assert found.low < math.log(left_out.counted.phases.train) < found.high
    assert 0 <= found.chance <= 1
