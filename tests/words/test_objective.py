"""Crossing times: the rules of method section 1, one by one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.curve import Curve
from sweeper.objective import Descent, best_value, crossing, near_misses, time_to_target
from sweeper.trial import AttemptFacts, Evaluation, Outcome, Phases, Reason


def probe(step, value, train=None, *, slice="probe", eval=0.0):  # noqa: A002 - the words of the field
    clock = Phases(startup=1.0, train=float(step if train is None else train), eval=eval)
    return Evaluation(step, step * 100, clock, value, slice)


def confirm(step, value):
    return probe(step, value, slice="confirmation")


def test_no_crossing():
    assert crossing([], 2.0, "train") is None
    assert crossing([probe(0, 4.0), probe(10, 2.1)], 2.0, "train") is None


def test_linear_between_the_evaluations_around_it():
    found = crossing([probe(0, 4.0), probe(10, 3.0), probe(20, 1.0)], 2.0, "train")
    assert (found.seconds, found.steps, found.tokens) == (15.0, 15.0, 1500.0)
    assert (found.lower_s, found.upper_s, found.confirmed) == (10.0, 20.0, False)


def test_exactly_at_the_target():
    found = crossing([probe(0, 4.0), probe(10, 2.0)], 2.0, "train")
    assert found.seconds == 10.0


def test_met_at_the_first_look():
    found = crossing([probe(0, 1.0, train=0.0)], 2.0, "train")
    assert (found.seconds, found.lower_s, found.upper_s) == (0.0, 0.0, 0.0)


def test_a_confirmation_that_agrees():
    found = crossing([probe(0, 3.0), probe(10, 1.0), confirm(10, 1.9)], 2.0, "train")
    assert (found.seconds, found.confirmed) == (5.0, True)


@pytest.mark.parametrize("refusal", [2.01, math.nan, math.inf])
def test_a_confirmation_that_refuses_moves_the_time_to_the_next(refusal):
    curve = [probe(0, 3.0), probe(10, 1.9), confirm(10, refusal), probe(20, 1.8)]
    found = crossing(curve, 2.0, "train")
    assert (found.seconds, found.lower_s, found.upper_s) == (20.0, 10.0, 20.0)


def test_near_misses_are_what_the_larger_slice_refused():
    first, second = probe(10, 1.9), probe(20, 1.8)
    curve = [probe(0, 3.0), confirm(0, 3.1), first, confirm(10, 2.1), second, confirm(20, 1.9)]
    assert near_misses(curve, 2.0) == ((first, 2.1),)
    assert near_misses(curve[:3], 2.0) == ()
    assert near_misses([first, confirm(10, math.nan)], 2.0)[0][0] is first


def test_a_refusal_is_no_crossing():
    assert crossing([probe(0, 3.0), probe(10, 1.9), confirm(10, 2.1)], 2.0, "train") is None


def test_nan_after_a_crossing_does_not_undo_it():
    assert crossing([probe(0, 3.0), probe(10, 1.0), probe(20, math.nan)], 2.0, "train").seconds == 5


def test_nan_before_it_is_passed_over():
    assert crossing([probe(0, 3.0), probe(5, math.nan), probe(10, 1.0)], 2.0, "train").seconds == 5


def test_the_first_crossing_counts_also_if_the_loss_comes_back():
    curve = [probe(0, 3.0), probe(10, 1.0), probe(20, 3.0), probe(30, 1.0)]
    assert crossing(curve, 2.0, "train").seconds == 5.0


@pytest.mark.parametrize(("clock", "seconds"), [("train", 5.0), ("train+eval", 6.0), ("wall", 7.0)])
def test_every_clock(clock, seconds):
    curve = [probe(0, 3.0), probe(10, 1.0, eval=2.0)]
    assert crossing(curve, 2.0, clock).seconds == pytest.approx(seconds)


@given(
    st.lists(
        st.tuples(st.floats(0.5, 4.0), st.sampled_from(["probe", "confirmation"])), max_size=20
    ),
    st.floats(0.5, 4.0),
)
def test_a_crossing_lies_between_its_stamps_and_is_monotone_in_the_target(points, target):
    curve = [probe(i, value, slice=which) for i, (value, which) in enumerate(points)]
    found = crossing(curve, target, "train")
    if found is not None:
        assert found.lower_s <= found.seconds <= found.upper_s
        probes = [e for e in curve if e.slice == "probe"]
        easier = crossing(probes, target + 0.1, "train")
        harder = crossing(probes, target, "train")
        assert easier.seconds <= harder.seconds + 1e-9


def read_literally(curve, target):
    """The rule of a crossing, as it is written: its time and stamps on the train clock."""
    larger = {e.step: e.value for e in curve if e.slice == "confirmation"}
    finite = [e for e in curve if e.slice == "probe" and math.isfinite(e.value)]
    for before, at in zip([None, *finite], finite, strict=False):
        if at.value <= target and larger.get(at.step, -math.inf) <= target:
            start = before or at
            share = 1.0
            if start.value > target:
                share = (start.value - target) / (start.value - at.value)
            lower, upper = start.clock.train, at.clock.train
            return lower + share * (upper - lower), lower, upper, at.step in larger
    return None


values = st.one_of(st.floats(0.5, 4.0), st.sampled_from([1.0, 2.0, math.nan, math.inf, -math.inf]))


@given(
    st.lists(st.tuples(st.integers(0, 9), values, st.booleans()), max_size=20),
    st.lists(values.filter(math.isfinite), max_size=5),
)
def test_one_look_at_a_curve_answers_for_every_target(points, targets):
    kinds = {False: "probe", True: "confirmation"}
    curve = [
        probe(step, value, train=place, eval=0.1 * step, slice=kinds[large])
        for place, (step, value, large) in enumerate(points)
    ]
    descent = Descent(curve)
    compact = Descent(Curve(curve))
    clocks = ("train", "train+eval", "wall")
    for target in targets:
        for clock in clocks:
            assert compact.crossing(target, clock) == descent.crossing(target, clock)
        found = crossing(curve, target, "train")
        seen = found and (found.seconds, found.lower_s, found.upper_s, found.confirmed)
        assert seen == read_literally(curve, target)


def facts(reason, outcome, curve=()):
    return AttemptFacts(1, outcome, reason, curve=curve, phases=Phases(startup=9, train=30.0))


def test_time_to_target_of_an_attempt():
    curve = (probe(0, 3.0), probe(10, 1.0))
    reached = facts(Reason.TARGET, Outcome.REACHED, curve)
    assert time_to_target(reached, 2.0, "train").seconds == 5.0
    harder = time_to_target(reached, 0.5, "train")
    assert (harder.reached, harder.seconds, harder.upper_s) == (False, 30.0, math.inf)
    capped = facts(Reason.CAP, Outcome.CENSORED, curve)
    assert time_to_target(capped, 2.0, "train").reached
    for outcome in (Outcome.FAILED, Outcome.INVALID):
        assert time_to_target(facts(Reason.CRASHED, outcome, curve), 2.0, "train") is None


def test_best_value():
    assert best_value([probe(0, 3.0), probe(1, math.nan), probe(2, 2.5), confirm(2, 1.0)]) == 2.5
    assert best_value([probe(0, math.nan)]) is None
