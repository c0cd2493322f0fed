"""Points are canonical: equal exactly when they mean the same, with ids that never move."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.space import Bool, Categorical, Float, Integer, Point, Space

SPACE = Space(
    {
        "optim.lr": Float("optim.lr", 1e-4, 1.0, scale="log", baseline=0.01),
        "optim.shift": Float("optim.shift", -1.0, 1.0, baseline=0.0),
        "batch": Integer("batch", 8, 128, step=8, scale="log", baseline=32),
        "method": Categorical("method", ("slow", "fast", 3), baseline="slow"),
        "decay": Bool("decay", baseline=False),
        "strength": Float("strength", 0.0, 1.0, baseline=0.1, when={"decay": (True,)}),
        "shape": Bool("shape", baseline=True, when={"strength": (0.5, 1.0)}),
    }
)
values = st.fixed_dictionaries(
    {
        "optim.lr": st.floats(1e-4, 1.0),
        "optim.shift": st.floats(-1.0, 1.0),
        "batch": st.integers(1, 16).map(lambda n: 8 * n),
        "method": st.sampled_from(["slow", "fast", 3]),
        "decay": st.booleans(),
        "strength": st.sampled_from([0.0, 0.5, 1.0]),
        "shape": st.booleans(),
    }
)


@given(values, st.randoms(use_true_random=False))
def test_order_and_rounding_do_not_matter(raw, random):
    names = list(raw)
    random.shuffle(names)
    shuffled = {name: raw[name] for name in names}
    shuffled["optim.lr"] *= 1 + 1e-15
    shuffled["batch"] = float(shuffled["batch"])
    point, other = SPACE.point(raw), SPACE.point(shuffled)
    if point["optim.lr"] == other["optim.lr"]:  # else the noise fell on a rounding edge
        assert point == other
        assert point.id == other.id
        assert hash(point) == hash(other)


@given(values)
def test_a_point_is_a_fixed_point(raw):
    point = SPACE.point(raw)
    assert SPACE.point(point) == point
    assert SPACE.point(json.loads(json.dumps(dict(point)))) == point
    assert all(name in raw for name in point)


@given(values, values)
def test_equal_ids_mean_equal_values(one, other):
    a, b = SPACE.point(one), SPACE.point(other)
    assert (a.id == b.id) == (dict(a) == dict(b))


@given(values)
def test_inactive_parameters_drop_out(raw):
    off = SPACE.point({**raw, "decay": False})
    assert "strength" not in off
    assert "shape" not in off
    assert off == SPACE.point({**raw, "decay": False, "strength": 0.25, "shape": not raw["shape"]})
    on = SPACE.point({**raw, "decay": True, "strength": 0.0})
    assert "strength" in on
    assert "shape" not in on


def test_zero_has_one_sign():
    assert SPACE.point({**SPACE.baseline(), "optim.shift": -0.0}) == SPACE.point(SPACE.baseline())


def test_ids_are_the_same_in_every_process_and_version():
    point = Point({"b": 1, "a": 0.1, "c": True})
    assert point.id == "8d86c9c3478f"
    code = "from sweeper.space import Point; print(Point({'c': True, 'a': 0.1, 'b': 1}).id)"
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    out = subprocess.run(  # noqa: PLW1510 - the assertion shows stderr
        [sys.executable, "-c", code], capture_output=True, text=True, env=env
    )
    assert out.stdout.strip() == point.id, out.stderr
    assert Point({"b": True}).id != Point({"b": 1}).id != Point({"b": 1.0}).id


@settings(max_examples=200)
@given(st.floats(-20, 5), st.sampled_from(["optim.lr", "optim.shift", "batch"]))
def test_value_at_stays_inside_and_comes_back(position, name):
    parameter = SPACE.parameters[name]
    value = parameter.value_at(position)
    assert parameter.coerce(value) == value
    again = parameter.value_at(parameter.position(value))
    assert again == pytest.approx(value, rel=1e-11)


@pytest.mark.parametrize("wrong", [True, "1", None, math.nan, math.inf, 2.0, 0.0])
def test_float_refuses(wrong):
    with pytest.raises(ValueError, match=r"expected a (finite )?number in \[0.0001, 1.0\]"):
        SPACE.parameters["optim.lr"].coerce(wrong)


@pytest.mark.parametrize("wrong", [True, "8", 12, 8.5, math.nan, 136, 0])
def test_integer_refuses(wrong):
    with pytest.raises(ValueError, match=r"expected a whole number in \[8, 128\] in steps of 8"):
        SPACE.parameters["batch"].coerce(wrong)


@pytest.mark.parametrize("wrong", ["Slow", True, 3.0, None])
def test_categorical_refuses(wrong):
    with pytest.raises(ValueError, match="expected one of 'slow', 'fast', 3"):
        SPACE.parameters["method"].coerce(wrong)


def test_missing_value_is_named():
    with pytest.raises(ValueError, match=r"^optim\.lr: has no value here and no baseline"):
        SPACE.point({"batch": 8})


def test_short_names_are_unique():
    names = ["muon.lr", "adam.lr", "a.b.lr", "batch", "x.batch.size", "y.size"]
    space = Space({name: Float(name, 0, 1) for name in names})
    shown = [space.short_name(name) for name in names]
    assert shown == ["muon.lr", "adam.lr", "b.lr", "batch", "batch.size", "y.size"]


def test_shown_for_people():
    raw = {"method": "fast", "decay": True, "optim.lr": 0.003, "shape": False}
    assert SPACE.show(raw) == "fast decay lr=0.003 shape=off"
