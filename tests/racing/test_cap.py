"""The cap: who can no longer matter, how long is waited, and in which words it is said."""

import math
import random

import pytest

from sweeper.racing.cap import ordinal
from sweeper.racing.race import Race
from sweeper.study import Question, Rivals, question_partners
from sweeper.trial import CONTROL, Reason
from tests.racing.conftest import TARGET, Bench


@pytest.fixture
def bench():
    """What has been seen decides, nothing that is expected."""
    return Bench(expect=False)


def rivals_of(*names, several_bases=False):
    """These trials compete for being the winner that another group takes."""
    one = Rivals(frozenset(names), several_bases)
    return lambda trials: {trial.id: [one] for trial in trials if trial.id in names}


def asked(bench, facts, *, keep=2, rivals=lambda trials: {}):
    race = Race(bench.study, keep, rivals)
    return race, race.standing(facts, TARGET), bench.plan(facts)


def cap_of(bench, facts, trial, **options):
    race, standing, plan = asked(bench, facts, **options)
    return race.cap(trial, standing, plan)


def watch_of(bench, facts, trial, **options):
    race, standing, plan = asked(bench, facts, **options)
    return race.watch(trial, standing, plan)


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
    assert bound.seconds == pytest.approx(1.10 * 38.9, rel=1e-2)
    assert bound.why.startswith("cannot enter the top 2, the 2nd best is 38.9 s x 1.10")
    asked_s = math.sqrt(1.10) * 38.9  # read up to half the slack
    assert watch_of(bench, facts, facts[-1].trial).top_s == pytest.approx(asked_s, rel=1e-2)


def test_before_all_points_are_seen_the_kth_best_is_expected_among_those_that_are():
    bench = Bench()
    unseen = 9 * [None]
    facts = several(bench, 10.0, 38.9, 60.0, *unseen)
    waiting = facts[-1].trial
    early = cap_of(bench, facts, waiting, keep=3)  # 3 of 12: one of 3 places is among them
    assert early.seconds == pytest.approx(1.10 * 38.9, rel=1e-2)
    assert early.why.startswith(
        "not expected in the top 3 after 3 of 12 points, the 2nd best is 38.9 s x 1.10"
    )
    later = several(bench, 10.0, 38.9, 60.0, 70.0, 80.0, *unseen[:7])
    assert cap_of(bench, later, waiting, keep=3).why.startswith("cannot enter the top 3, the 3rd")
    assert cap_of(bench, several(bench, 10.0, *unseen), waiting, keep=3) is None
    stopped = bench.facts(facts[2].trial, stopped=43.0, reason=Reason.CAP, cap_s=42.9)
    late = [*several(bench, 10.0, 38.9), stopped, *several(bench, 60.0, 70.0, start=4)]
    asked_s = math.sqrt(1.10) * 60.0
    assert watch_of(bench, late, stopped.trial, keep=3).top_s == pytest.approx(asked_s, rel=1e-2)
    race, standing, plan = asked(bench, facts, keep=3)
    race.last = True  # whoever is left will never be seen: they failed
    assert race.cap(waiting, standing, plan).why.startswith("cannot enter the top 3, the 3rd best")


def test_where_fewer_have_reached_than_are_expected_the_last_known_place_stands():
    bench = Bench()
    stopped = [
        bench.facts(
            bench.trial(f"s1-A{i}", lr=0.001 * i), stopped=50.0, reason=Reason.CAP, cap_s=50.0
        )
        for i in range(3, 8)
    ]
    facts = [*several(bench, 10.0, 38.9), *stopped]
    unseen = bench.facts(bench.trial("s1-A9", lr=0.5))
    bound = cap_of(bench, [*facts, unseen], unseen.trial, keep=4)
    assert "not expected in the top 4 after 7 of 8 points, the 2nd best is 38.9 s" in bound.why
    assert cap_of(bench, facts, stopped[0].trial, keep=4) is None
    assert watch_of(bench, facts, stopped[0].trial, keep=4) == (0.0, math.inf)


def test_a_declared_slack_and_the_switch():
    tight = Bench(slack=1.0, expect=False)
    facts = several(tight, 10.0, 20.0, None)
    bound = cap_of(tight, facts, facts[-1].trial)
    assert bound.seconds == pytest.approx(20.0, rel=1e-2)
    off = Bench(cap=False, expect=False)
    assert cap_of(off, several(off, 10.0, 20.0, None), facts[-1].trial) is None


def test_slack_comes_from_replicates_once_there_are_four_degrees_of_freedom(bench):
    draw = random.Random(3)
    facts, spread = [], 0.04
    for i in range(1, 8):
        for seed in (1, 2):
            seconds = 10.0 * i * math.exp(draw.gauss(0, spread))
            facts.append(
                bench.facts(bench.trial(f"s1-A{i}-{seed}", seed=seed, lr=0.001 * i), seconds)
            )
    race = Race(bench.study, 5)
    few, many = race.standing(facts[:6], TARGET), race.standing(facts, TARGET)
    assert (few.noise(5)[1], few.slack(None, 5)) == (3, pytest.approx(1.10))
    found, degrees = many.noise(5)
    assert degrees in (4, 5)  # the fifth best, where its second run was the faster one, is beyond
    assert many.slack(None, 5) == pytest.approx(math.exp(2.33 * math.sqrt(2) * found))
    assert 0.01 < found < 0.12
    assert many.noise(3)[1] < degrees < many.noise(20)[1] == 7


def test_noise_is_that_of_the_best_and_of_the_control(bench):
    fast = [bench.facts(bench.trial(f"f{s}", seed=s), t) for s, t in ((1, 10.0), (2, 10.5))]
    slow = [
        bench.facts(bench.trial(f"s{s}", groups=g, seed=s, lr=0.5), t)
        for s, t, g in ((1, 80.0, ("A",)), (2, 99.0, ("A",)))
    ]
    race = Race(bench.study, 1)
    alone = race.standing(fast, TARGET).noise(1)
    assert race.standing([*fast, *slow], TARGET).noise(1) == alone
    control = bench.facts(bench.trial("c1", groups=(CONTROL,), seed=3, lr=0.5), 90.0)
    spread, degrees = race.standing([*fast, *slow, control], TARGET).noise(1)
    assert degrees == 3
    assert spread > alone[0]


def test_what_a_control_repeats_is_never_cut_off_and_its_repeats_have_twice_its_time(bench):
    facts = several(bench, 10.0, 12.0)
    original = bench.facts(bench.trial("s1-B1", lr=0.5))
    control = bench.facts(bench.trial("s1-control-01", groups=(CONTROL,), seed=501, lr=0.5))
    every = [*facts, original, control]
    assert cap_of(bench, every, original.trial) is None
    measured = [*facts, bench.facts(original.trial, 40.0), control]
    bound = cap_of(bench, measured, control.trial)
    assert bound.seconds == pytest.approx(80.0, rel=1e-2)
    assert (
        bound.why == "cannot enter the top 2, and has had 2 x the 40.0 s of its point's first run"
    )


def test_a_repeat_has_twice_its_points_time_only_where_that_is_among_the_best(bench):
    facts = several(bench, 10.0, 12.0, 40.0)
    for original, seconds in ((facts[1], 24.0), (facts[2], 13.2)):
        point = original.trial.point
        again = bench.facts(bench.trial("again", seed=7, lr=point["lr"]))
        bound = cap_of(bench, [*facts, again], again.trial)
        assert bound.seconds == pytest.approx(seconds, rel=1e-2)
    off = Bench(expect=False, replicates=False)
    again = off.facts(off.trial("again", seed=7, lr=0.002))
    assert cap_of(off, [*facts, again], again.trial).seconds == pytest.approx(13.2, rel=1e-2)


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
    assert cap_of(bench, every, slow[1].trial).seconds == pytest.approx(13.2, rel=1e-2)
    group = rivals_of("s1-B1", "s1-B2")
    bound = cap_of(bench, every, slow[1].trial, rivals=group)
    assert bound.seconds == pytest.approx(55.0, rel=1e-2)
    assert bound.why.startswith(
        "cannot win its group, whose best is 50.0 s x 1.10; cannot enter the"
    )
    wide = rivals_of("s1-B1", "s1-B2", several_bases=True)  # ratios are averaged over bases
    bound = cap_of(bench, every, slow[1].trial, rivals=wide)
    assert bound.seconds == pytest.approx(100.0, rel=1e-2)
    assert bound.why.startswith("cannot win its group, whose best on this base is 50.0 s x 2.00;")
    alone = rivals_of("s1-C1")
    assert cap_of(bench, every, waiting.trial, rivals=alone) is None  # nobody in it has reached
    assert watch_of(bench, every, waiting.trial, rivals=alone).winner_s == math.inf
    assert cap_of(bench, every, waiting.trial, rivals=group).seconds < 13.3


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
    off = Bench(questions=False, expect=False)
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
    patient = Bench(grace_s=30.0, expect=False)
    facts = several(patient, 10.0, 12.0, None)
    bound = cap_of(patient, facts, facts[-1].trial)
    assert bound.seconds == 30.0
    assert "grace_s" in bound.why


def test_ordinals():
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "102nd",
    ]  # fmt: skip
