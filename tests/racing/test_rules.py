"""Order, forecast, rungs and reachability: what each says of curves whose end is known."""

import random

import pytest

from sweeper.racing.forecast import Curves, LeaveOneOut, Track, expected_s, is_late
from sweeper.racing.order import Order
from sweeper.racing.race import Race
from sweeper.racing.reach import fallback, reach
from sweeper.racing.rungs import cut
from sweeper.trial import Reason, TrialFacts
from tests.racing.conftest import TARGET, Bench, falling


def finished(bench, times, **shape):
    facts = [
        bench.facts(
            bench.trial(f"s1-A{i}", lr=0.001 * (i + 1)), t, curve=falling(t, every=0.5, **shape)
        )
        for i, t in enumerate(times)
    ]
    race = Race(bench.study, 2)
    standing = race.standing(facts, TARGET)
    return facts, standing, Curves("train").finished(standing)


def test_order_prefers_levels_that_did_well_and_keeps_groups_in_plan_order(bench):
    known = [
        bench.facts(bench.trial("a", batch=8), 30.0),
        bench.facts(bench.trial("b", batch=16), 10.0),
        bench.facts(bench.trial("c", batch=8, lr=0.02), 28.0),
        bench.facts(bench.trial("d", batch=16, lr=0.02), 11.0),
    ]
    standing = Race(bench.study, 2).standing(known, TARGET)
    waiting = [
        bench.trial("x8", batch=8, lr=0.05),
        bench.trial("x16", batch=16, lr=0.05),
        bench.trial("y16", groups=("B",), batch=16, lr=0.1),
    ]
    order = Order(bench.study.space.baseline(), 100).promising_first(waiting, [1, 1, 1], standing)
    assert [t.id for t in order] == ["x16", "x8", "y16"]


def test_order_without_knowledge_starts_near_the_baseline(bench):
    standing = Race(bench.study, 2).standing([], TARGET)
    waiting = [bench.trial("far", batch=64, lr=0.5), bench.trial("near", batch=8)]
    order = Order(bench.study.space.baseline(), 100).promising_first(waiting, [1, 1], standing)
    assert [t.id for t in order] == ["near", "far"]


def test_a_forecast_follows_the_quickest_finisher_from_the_same_loss(bench):
    _, _, curves = finished(bench, [10.0, 20.0])
    slow = Track.of(falling(40.0, until=20.0), "train")
    # from the loss of 40 s' curve at 20 s, the quickest needs half of its own 10 s
    assert expected_s(slow, curves, TARGET) == pytest.approx(25.0, rel=0.05)
    assert is_late(slow, curves, TARGET, cap_s=30.0) is None
    assert is_late(slow, curves, TARGET, cap_s=15.0) == pytest.approx(25.0, rel=0.05)
    early = Track.of(falling(40.0, until=5.0), "train")
    assert is_late(early, curves, TARGET, cap_s=11.0) is None  # before half the cap


def test_leave_one_out_trusts_alike_curves_and_refuses_late_drops(bench):
    draw = random.Random(1)
    _, _, alike = finished(bench, [10 + draw.random() * 20 for _ in range(12)])
    good = LeaveOneOut().trust(alike, TARGET, 5)
    assert good.granted
    assert not LeaveOneOut().trust(alike[:4], TARGET, 5).granted  # fewer than k curves

    def plateau(seconds):
        """Stays high until shortly before it crosses, where the others had long crossed."""
        curve = list(falling(seconds * 3, every=0.5, until=seconds * 0.9))
        last = curve[-1]
        drop = falling(1.0, every=0.25)[-1]
        step = int(last.step + 10)
        clock = type(last.clock)(startup=0.5, train=seconds)
        return (*curve, type(last)(step, last.tokens + 500, clock, drop.value))

    facts = [
        bench.facts(bench.trial("p", lr=0.05), 20.0, curve=plateau(20.0)),
    ]
    standing = Race(bench.study, 2).standing(facts, TARGET)
    bad = LeaveOneOut().trust([*alike, *Curves("train").finished(standing)], TARGET, 5)
    assert bad.wrong > 0
    assert not bad.granted


def test_leave_one_out_remembers_only_what_still_holds(bench):
    _, _, alike = finished(bench, [10, 12, 14, 16, 18, 20])
    check = LeaveOneOut()
    assert check.trust(alike[:5], TARGET, 5) == LeaveOneOut().trust(alike[:5], TARGET, 5)
    assert check.trust(alike, TARGET, 5) == LeaveOneOut().trust(alike, TARGET, 5)
    assert check.trust(alike[2:], TARGET, 2) == LeaveOneOut().trust(alike[2:], TARGET, 2)


def test_a_forecast_stops_only_where_it_may(bench):
    facts, _, _ = finished(bench, [10.0, 11, 12, 13, 14, 15])
    hopeless = falling(200.0, until=11.0, every=0.5)
    trial = bench.trial("late", batch=64)

    def verdict(study):
        race = Race(study, 2)
        standing = race.standing(facts, TARGET)
        return race.early(hopeless, race.cap(trial, standing, bench.plan(facts)), standing)

    early = verdict(bench.study)
    assert early.may_stop
    assert "forecast to cross at" in early.why
    assert not verdict(Bench(late_decay=True).study).may_stop
    assert verdict(Bench(forecast=False).study) is None
    assert verdict(Bench(cap=False).study) is None  # no k-th best: nothing may stop


def test_a_rung_keeps_who_may_still_enter_the_top(bench):
    facts, standing, curves = finished(bench, [10.0, 11, 12, 13, 14, 15, 16])
    tracks = Curves("train").tracks(standing)
    bad = Track.of(falling(60.0, until=8.0, every=0.5), "train")
    fallen = cut(bad, curves, tracks, k=2, cap_s=12.0)
    assert fallen is not None
    assert fallen.loss > fallen.bar
    level = Track.of(falling(11.0, until=8.0, every=0.5), "train")
    assert cut(level, curves, tracks, k=2, cap_s=12.0) is None
    assert cut(bad, curves[:1], tracks, k=2, cap_s=12.0) is None  # k have not reached
    race = Race(Bench(rungs=True).study, 2)
    standing = race.standing(facts, TARGET)
    bound = race.cap(bench.trial("x", batch=64), standing, bench.plan(facts))
    early = race.early(falling(60.0, until=8.0, every=0.5), bound, standing)
    assert early.may_stop
    assert early.why.startswith("rung at")


def out_of_reach(bench, count, best=2.3):
    shape = {"target": best + 0.001, "floor": best, "every": 5.0}
    return [
        bench.facts(
            bench.trial(f"s1-A{i}", lr=0.001 * (i + 1)),
            stopped=100.0,
            curve=falling(150.0 + 10 * i, until=100.0, **shape),
        )
        for i in range(count)
    ]


def test_reachability_is_announced_early_and_switches_only_after_k(bench):
    race = Race(bench.study, 3)
    two = race.standing(out_of_reach(bench, 2), TARGET)
    assert "looks out of reach" in reach(two).words(TARGET)
    assert race.fallback(two) is None
    three = race.standing(out_of_reach(bench, 3), TARGET)
    goal, why = race.fallback(three)
    assert goal == 2.5
    assert "3 configurations used up their limits" in why
    reached = [*out_of_reach(bench, 3), bench.facts(bench.trial("x", batch=8), 10.0)]
    assert race.fallback(race.standing(reached, TARGET)) is None
    assert reach(race.standing(reached, TARGET)).words(TARGET) == ""


def test_the_fallback_is_the_hardest_that_k_crossed_else_the_hardest_of_any(bench):
    race = Race(bench.study, 3)
    facts = [*out_of_reach(bench, 1, best=2.3), *out_of_reach(bench, 4, best=2.7)[1:]]
    standing = race.standing(facts, TARGET)
    assert fallback(standing, (2.5, 3.0), 3)[0] == 3.0
    assert fallback(standing, (2.5,), 3)[0] == 2.5
    assert fallback(standing, (2.1,), 3) is None


def test_trials_that_were_cut_are_no_evidence_against_the_target(bench):
    facts = [
        bench.facts(bench.trial(f"s1-A{i}", lr=0.001 * (i + 1)), stopped=20.0, reason=Reason.CAP)
        for i in range(5)
    ]
    assert Race(bench.study, 2).fallback(Race(bench.study, 2).standing(facts, TARGET)) is None


def test_a_standing_worked_out_bit_by_bit_is_the_one_worked_out_at_once(bench):
    race, draw = Race(bench.study, 2), random.Random(3)
    facts = [TrialFacts(bench.trial(f"s1-A{i}", lr=0.001 * (1 + i % 5))) for i in range(12)]
    for turn in range(30):
        place, target = draw.randrange(12), TARGET if turn < 20 else TARGET + 0.5
        reached_s = draw.uniform(1, 30)
        ended = bench.facts(facts[place].trial, reached_s, curve=falling(reached_s, every=0.5))
        facts[place] = TrialFacts(facts[place].trial) if turn % 7 == 6 else ended
        grown, whole = race.standing(facts, target), Race(bench.study, 2).standing(facts, target)
        assert grown.runs == whole.runs
        assert grown.medians == whole.medians
        assert (grown.fastest, grown.reached) == (whole.fastest, whole.reached)
        assert list(grown.fastest) == sorted(grown.medians.values())
        assert grown.ended == sum(run.time is not None for run in grown.runs)
        assert grown.seen == len({run.trial.point for run in grown.runs if run.time is not None})
        assert {*grown.repeats} == {*whole.repeats}
