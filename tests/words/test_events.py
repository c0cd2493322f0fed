"""Parsing one line and folding a stream, with every hostile value a foreign writer may send."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.events import (
    Event,
    EventError,
    Fold,
    finite,
    fold_lines,
    metric_value,
    parse_line,
    strict,
)


def line(event="step", **more):
    return json.dumps({"v": 1, "seq": 0, "event": event, "step": 1} | more)


def test_what_a_foreign_writer_must_give():
    event = parse_line('{"v":1,"seq":3,"event":"step","step":7}')
    assert (event.event, event.seq, event.step, event.tokens, event.clock) == (
        "step",
        3,
        7,
        0,
        None,
    )


def test_phases_that_are_missing_are_zero_and_unknown_ones_are_ignored():
    event = parse_line(line(clock={"train": 2, "coffee": "x"}))
    assert (event.clock.train, event.clock.eval) == (2.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "x" * 10_000, '{"v":2}', '{"v":"1"}', line(event=3),
        line(event=None), line(step=-1), line(step=1.5), line(step=True), line(step=2**63),
        line(step=int("9" * 400)), line(step=None), line(seq="0"), line(tokens=-1),
        line(clock=3), line(clock={"train": "1"}), line(clock={"train": True}),
        line(clock={"train": -1}), line(clock={"train": int("9" * 400)}),
        line(clock={"train": math.nan}), line(clock={"train": math.inf}),
        line("evaluated"), line("evaluated", metrics=3), '{"v":1,"seq":0,"event":"step"}',
        '{"v":1,"event":"step","step":0}', "[" * 100_000, '{"v":1e999}',
    ],
)  # fmt: skip
def test_what_is_no_event(text):
    with pytest.raises(EventError) as caught:
        parse_line(text)
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=200))
def test_no_bytes_hurt(data):
    with contextlib.suppress(EventError):
        parse_line(data)


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), (2.5, 2.5), (None, None), ("3", None), (True, None), (10**400, None), ([], None)],
)
def test_metric_values(value, number):
    event = Event("evaluated", 0, 0, 0, None, {"metrics": {"val_loss": value}})
    seen = metric_value(event, "val_loss")
    assert seen == number if number is not None else math.isnan(seen)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_bare_words_of_foreign_writers_are_divergence(word):
    text = line("evaluated", metrics={}).replace("{}", f'{{"val_loss":{word}}}')
    fold = fold_lines([text], "val_loss")
    assert fold.diverged


def test_divergence_is_of_the_last_probe():
    fold = Fold("val_loss")
    for value, which in ((None, "probe"), (3.0, "probe"), (None, "confirmation")):
        fold.add(parse_line(line("evaluated", metrics={"val_loss": value}, slice=which)))
    assert not fold.diverged
    assert not Fold("val_loss").diverged


def test_another_metric_is_ignored_and_counted():
    fold = fold_lines([line("evaluated", metrics={"accuracy": 1.0})], "val_loss")
    assert (fold.curve, fold.ignored, fold.events) == ([], 1, 1)


def test_unknown_events_are_ignored_and_counted():
    fold = fold_lines([line("coffee"), line("step")], "val_loss")
    assert (fold.events, fold.ignored) == (2, 1)


def test_a_torn_last_line_is_dropped_and_one_elsewhere_is_an_error():
    assert fold_lines([line(), line()[:20]], "val_loss").events == 1
    with pytest.raises(EventError, match="line 1"):
        fold_lines([line()[:20], line()], "val_loss")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_strict_values_are_strict_json(value):
    text = json.dumps(strict(value), allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    assert "\\u0000" not in text


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_ordinary_text_is_left_as_it_is(text):
    assert strict({text: [text]}) == {text: [text]}


@pytest.mark.parametrize("value", [math.nan, -math.inf, 10**400, True, "3", None, [3]])
def test_what_is_no_finite_number(value):
    assert finite(value) is None
    assert finite(3) == 3.0
