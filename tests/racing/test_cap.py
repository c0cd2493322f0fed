"""The cap: who can no longer matter, how long is waited, and in which words it is said."""

import math
import random

import pytest

from sweeper.racing.cap import ordinal
from sweeper.racing.race import Race
from sweeper.study import Question, question_partners
from sweeper.trial import Reason
from tests.racing.conftest import TARGET, Bench


def cap_of(bench, facts, trial, *, keep=2, needed=()):
    race = Race(bench.study, keep, frozenset(needed))
    return race.cap(trial, race.standing(facts, TARGET), bench.plan(facts))


def several(bench, *times, start=1):
    return [
        bench.facts(bench.trial(f"s1-A{i}", lr=0.001 * i), seconds)
        for i, seconds in enumerate(times, start=start)
    ]


def test_nothing_is_capped_until_k_points_have_reached(bench):
    facts = several(bench, 10.0, None)
    assert cap_of(bench, facts, facts[1].trial) is None
    replicate = bench.facts(bench.trial("s1-A9", lr=0.001, seed=2), 11.0)
    assert cap_of(bench, [*facts, replicate], facts[1].trial) is None  # one point, run twice
    assert cap_of(bench, [*facts, *several(bench, 20.0, start=5)], facts[1].trial) is not None


def test_the_cap_is_the_kth_time_with_slack_and_says_so(bench):
    facts = several(bench, 10.0, 38.9, 60.0, None)
    bound = cap_of(bench, facts, facts[-1].trial)
    assert bound.base_s == pytest.approx(38.9, rel=1e-2)
    assert bound.seconds == pytest.approx(1.10 * bound.base_s)
    assert bound.why == f"cannot enter the top 2, the 2nd best is {bound.base_s:.1f} s x 1.10"


def test_a_declared_slack_and_the_switch():
    tight = Bench(slack=1.0)
    facts = several(tight, 10.0, 20.0, None)
    bound = cap_of(tight, facts, facts[-1].trial)
    assert bound.seconds == bound.base_s
    off = Bench(cap=False)
    assert cap_of(off, several(off, 10.0, 20.0, None), facts[-1].trial) is None


def test_slack_comes_from_replicates_once_there_are_four_degrees_of_freedom(bench):
    draw = random.Random(3)
    facts, spread = [], 0.04
    for i in range(1, 6):
        for seed in (1, 2):
            seconds = 10.0 * i * math.exp(draw.gauss(0, spread))
            facts.append(
                bench.facts(bench.trial(f"s1-A{i}-{seed}", seed=seed, lr=0.001 * i), seconds)
            )
    race = Race(bench.study, 2)
    few, many = race.standing(facts[:6], TARGET), race.standing(facts, TARGET)
    assert (few.degrees, few.slack(None)) == (3, pytest.approx(1.10))
    assert many.degrees == 5
    assert many.slack(None) == pytest.approx(math.exp(2.33 * math.sqrt(2) * many.spread))
    assert 0.01 < many.spread < 0.12


def test_a_point_counts_with_its_median_and_a_run_that_missed_as_slower(bench):
    race = Race(bench.study, 1)
    one = [
        bench.facts(bench.trial(f"r{s}", seed=s), t) for s, t in ((1, 10.0), (2, 30.0), (3, 14.0))
    ]
    missed = bench.facts(bench.trial("r4", seed=4), stopped=20.0, reason=Reason.CAP, cap_s=20.0)
    assert race.standing(one, TARGET).kth(1) == pytest.approx(14.0, rel=1e-2)
    assert race.standing([one[0], missed], TARGET).kth(1) is None
    assert race.standing([one[0], one[2], missed], TARGET).kth(1) == pytest.approx(14.0, rel=1e-2)


def test_the_winner_of_a_group_that_others_depend_on_is_not_cut_off(bench):
    facts = several(bench, 10.0, 12.0)
    slow = [bench.facts(bench.trial(f"s1-B{i}", groups=("B",), batch=16 + i), t)
            for i, t in ((1, 50.0), (2, None))]  # fmt: skip
    waiting = bench.facts(bench.trial("s1-C1", groups=("C",), batch=40))
    every = [*facts, *slow, waiting]
    assert cap_of(bench, every, slow[1].trial).base_s == pytest.approx(12.0, rel=1e-2)
    bound = cap_of(bench, every, slow[1].trial, needed=["B"])
    assert bound.base_s == pytest.approx(50.0, rel=1e-2)
    assert bound.why.startswith("cannot win its group")
    assert cap_of(bench, every, waiting.trial, needed=["C"]) is None  # nobody in it has reached
    assert cap_of(bench, every, waiting.trial, needed=["B"]).base_s < 13


def test_arms_of_a_question_get_twice_their_partners_time(bench):
    question = Question(text="?", parameter="method")
    bench.study = bench.study.model_copy(update={"questions": (question,)})
    facts = several(bench, 10.0, 12.0)
    arms = [bench.facts(bench.trial(f"s1-B{m}", method=m, batch=64), t)
            for m, t in (("a", 11.5), ("b", None))]  # fmt: skip
    alone = bench.facts(bench.trial("s1-C1", batch=32))
    bound = cap_of(bench, [*facts, *arms, alone], arms[1].trial)
    assert bound.seconds == pytest.approx(23.0, rel=1e-2)
    assert "its partner in a question" in bound.why
    assert cap_of(bench, [*facts, *arms, alone], alone.trial).seconds < 13.3
    before = [*facts, bench.facts(arms[0].trial), arms[1]]
    first = cap_of(bench, before, arms[0].trial)  # no partner has reached yet: twice the k-th
    assert first.seconds == pytest.approx(24.0, rel=1e-2)
    off = Bench(questions=False)
    off.study = off.study.model_copy(update={"questions": (question,)})
    assert cap_of(off, [*facts, *arms], arms[1].trial).seconds < 13.3


def test_partners_differ_in_the_parameter_alone(bench):
    points = [bench.trial(str(n), **values).point for n, values in enumerate((
        {"method": "a", "batch": 8}, {"method": "b", "batch": 8}, {"method": "b", "batch": 16},
        {"method": "a", "batch": 8, "lr": 0.02},
    ))]  # fmt: skip
    found = question_partners([Question(text="?", parameter="method")], points)
    assert found == {points[0]: (points[1],), points[1]: (points[0],)}
    narrow = Question(text="?", parameter="method", at={"batch": 16})
    assert question_partners([narrow], points) == {}


def test_never_below_the_grace_floor():
    patient = Bench(grace_s=30.0)
    facts = several(patient, 10.0, 12.0, None)
    bound = cap_of(patient, facts, facts[-1].trial)
    assert bound.seconds == 30.0
    assert "grace_s" in bound.why


def test_ordinals():
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "102nd",
    ]  # fmt: skip
