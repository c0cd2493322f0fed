"""A compact curve: the same evaluations as the tuple it was made of, in a fraction of the memory."""

import math
import pickle
import struct
import sys
from array import array

import pytest

from sweeper.curve import Curve, column, seconds
from sweeper.trial import Evaluation, Phases


def evaluations(number):
    return tuple(
        Evaluation(
            10 * n,
            2**40 + n,
            Phases(startup=1 / 3, train=n / 7, eval=0.1 * n),
            4.0 - n / 30,
            "confirmation" if n % 10 == 9 else "probe",
        )
        for n in range(number)
    )


@pytest.mark.parametrize("number", [0, 1, 2, 100])
def test_it_is_the_tuple_that_it_was_made_of(number):
    rows = evaluations(number)
    curve = Curve(rows)
    assert len(curve) == number
    assert bool(curve) is bool(rows)
    assert curve == rows
    assert rows == curve
    assert tuple(curve) == rows
    assert [curve[n] for n in range(-number, number)] == [*rows, *rows]
    assert tuple(reversed(curve)) == rows[::-1]
    assert curve[1:-1:2] == rows[1:-1:2]
    assert hash(curve) == hash(rows)
    assert pickle.loads(pickle.dumps(curve)) == rows
    assert curve != Curve([*rows, *evaluations(1)])
    with pytest.raises(IndexError):
        curve[number]


@pytest.mark.parametrize("number", [0, 1, 2, 100])
def test_its_columns_are_those_of_the_evaluations(number):
    rows = evaluations(number)
    curve = Curve(rows)
    assert Curve.of(curve) is curve
    assert Curve.of(rows) == rows
    for name in ("step", "tokens", "value", "slice"):
        assert list(column(curve, name)) == list(column(rows, name))
    for clock in ("train", "train+eval", "wall"):
        assert list(seconds(curve, clock)) == list(seconds(rows, clock))
    assert curve.take(range(0, number, 3)) == rows[::3]


@pytest.mark.parametrize("number", [0, 1, 2, 100])
def test_it_comes_from_columns_in_network_byte_order(number):
    rows = evaluations(number)
    confirmations = bytes(e.slice == "confirmation" for e in rows)
    numbers = [(e.step, e.tokens, e.value, *e.clock) for e in rows]
    kinds = "qqd" + 7 * "d"
    columns = [
        b"".join(struct.pack(f">{kind}", row[place]) for row in numbers)
        for place, kind in enumerate(kinds)
    ]
    curve = Curve.unpacked(confirmations, columns)
    assert curve == rows
    assert [type(value) for row in curve for value in row] == [
        type(value) for row in rows for value in row
    ]


def test_kinds_of_numbers_stay():
    one = Curve(evaluations(3))[1]
    assert [type(value) for value in one] == [int, int, Phases, float, str]
    assert all(type(seconds) is float for seconds in one.clock)


def test_what_diverged_is_not_a_number_and_nothing_else_changes():
    rows = (*evaluations(3), Evaluation(30, 3, Phases(train=1.0), math.nan))
    curve = Curve(rows)
    assert [e.value for e in curve][:3] == [e.value for e in rows][:3]
    assert math.isnan(curve[-1].value)
    assert (curve[-1].step, curve[-1].clock) == (30, Phases(train=1.0))


def test_a_hundred_evaluations_take_little_more_than_two_kilobytes():
    rows = [e._replace(clock=Phases(train=e.clock.train), slice="probe") for e in evaluations(100)]
    curve = Curve(rows)
    columns = [c for c in curve._columns if isinstance(c, array | range)]
    assert len(columns) == 4
    assert sum(map(sys.getsizeof, [curve, curve._columns, *columns])) < 2200


def test_evenly_spaced_steps_take_no_room():
    even, rows = evaluations(100), [e._replace(step=e.step + e.step % 7) for e in evaluations(100)]
    assert isinstance(Curve(even).column("step"), range)
    assert isinstance(Curve(rows).column("step"), array)
    assert tuple(Curve(rows)) == tuple(rows)
