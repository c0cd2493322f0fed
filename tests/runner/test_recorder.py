"""The normalised stream: numbered, stamped, thinned, and foldable by everyone else."""

from __future__ import annotations

import json
import math
import os

import pytest

from sweeper.events import Event, fold_lines, parse_line
from sweeper.runner import recorder as recorder_module
from sweeper.runner.recorder import Recorder
from sweeper.trial import Phases


@pytest.fixture
def recorder(tmp_path):
    return Recorder(tmp_path / "events.jsonl", "val_loss", spawned_at=10.0)


def written(tmp_path):
    return [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]


def event(name="step", step=0, clock=None, **body):
    return Event(name, 0, step, step * 100, clock, body)


def evaluated(step, value, clock=None, **body):
    return event("evaluated", step, clock, metrics={"val_loss": value}, **body)


def test_steps_are_thinned_to_one_a_second_and_the_last_is_kept(recorder, tmp_path):
    for i in range(100):
        recorder.add(event(step=i, clock=Phases(train=i / 20)), 10 + i / 20)
    recorder.finish()
    steps = [e["step"] for e in written(tmp_path)]
    assert steps == [0, 20, 40, 60, 80, 99]
    assert recorder.fold.step == 99


def test_the_stream_folds_to_what_was_read(recorder, tmp_path):
    for i in range(50):
        recorder.add(event(step=i, clock=Phases(train=i / 10)), 10 + i / 100)
        if i % 7 == 0:
            recorder.add(evaluated(i, 4 - i / 50, Phases(train=i / 10)), 10 + i / 100)
    recorder.finish()
    again = fold_lines((tmp_path / "events.jsonl").read_bytes().splitlines(), "val_loss")
    assert again.curve == recorder.fold.curve
    assert (again.clock, again.step, again.tokens) == (
        recorder.fold.clock,
        recorder.fold.step,
        recorder.fold.tokens,
    )


def test_the_runners_clock_starts_with_the_first_step(recorder, tmp_path):
    recorder.add(event("run_started"), 12.0)
    recorder.add(evaluated(0, 4.0), 15.0)
    recorder.add(evaluated(10, 3.0), 17.5)
    recorder.finish()
    assert recorder.clock_source == "runner"
    stamps = [(e["clock"]["startup"], e["clock"]["train"]) for e in written(tmp_path)]
    assert stamps == [(2.0, 0.0), (5.0, 0.0), (5.0, 2.5)]
    assert recorder.clock_at(20.0).train == 5.0


def test_what_another_run_did_before_the_checkpoint_is_taken_off(tmp_path):
    start_from = {"start": "extended", "checkpoint": "c.pt", "of": "p-one-1", "attempt": 1}
    recorder = Recorder(tmp_path / "events.jsonl", "val_loss", 10.0, start_from)
    before = {"step": 40, "tokens": 4000, "clock": {"train": 8.0, "eval": 1.0}}
    recorder.add(event("run_started", 40, Phases(train=8.0, eval=1.0), resumed_from=before), 10)
    recorder.add(evaluated(50, 2.5, Phases(train=10.0, eval=1.5)), 12)
    recorder.add(event(step=60, clock=Phases(train=12.0, eval=1.5)), 14)
    recorder.finish()
    started, probe, step = written(tmp_path)
    assert (probe["step"], probe["tokens"]) == (10, 1000)
    assert (probe["clock"]["train"], probe["clock"]["eval"]) == (2.0, 0.5)
    assert (step["step"], step["clock"]["train"]) == (20, 4.0)
    assert started["counts_from"]["step"] == 40
    assert recorder.fold.curve[0].clock.train == 2.0
    # Weights alone: the trainer begins at 0 by itself. And what the spec says counts before its word.
    for name, given, expected in (("a", start_from, 0), ("b", {**start_from, "offset": {}}, 40)):
        other = Recorder(tmp_path / name, "val_loss", 10.0, given)
        resumed = {"resumed_from": before} if expected else {}
        other.add(event("run_started", expected, Phases(), **resumed), 10)
        assert other.fold.step == expected


def test_a_clock_that_comes_too_late_is_not_mixed_in(recorder):
    recorder.add(evaluated(0, 4.0), 15.0)
    recorder.add(evaluated(10, 3.0, Phases(train=99.0)), 16.0)
    assert recorder.clock_source == "runner"
    assert [e.clock.train for e in recorder.fold.curve] == [0.0, 1.0]


def test_an_event_without_a_clock_gets_the_trainers_last(recorder):
    recorder.add(event(step=1, clock=Phases(train=3.0)), 15.0)
    recorder.add(evaluated(1, 4.0), 19.0)
    assert recorder.clock_source == "trainer"
    assert recorder.fold.curve[0].clock.train == 3.0


def test_what_json_or_a_database_cannot_hold_is_replaced(recorder, tmp_path):
    body = {"class": "x\0", "message": "\ud800", "list": [math.inf, {"deep": math.nan}], "n": 3}
    recorder.add(event("run_failed", 1, Phases(), **body), 11.0)
    recorder.add(evaluated(1, math.inf, Phases()), 11.0)
    recorder.finish()
    text = (tmp_path / "events.jsonl").read_text()
    assert "\\u0000" not in text
    assert "\\ud800" not in text
    failed, measured = written(tmp_path)
    assert failed["list"] == [None, {"deep": None}]
    assert measured["metrics"] == {"val_loss": None}
    for line in text.splitlines():
        parse_line(line)


def test_a_body_that_is_too_deep_loses_it_only(recorder, tmp_path):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    recorder.add(event("run_started", 0, Phases(), config=deep), 11.0)
    recorder.finish()
    assert [e["event"] for e in written(tmp_path)] == ["run_started"]


def test_evaluations_are_bounded(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "MOST_OF_A_KIND", 5)
    for i in range(10):
        recorder.add(evaluated(i, 3.0, Phases(train=float(i))), 11.0)
    recorder.finish()
    kinds = [e["event"] for e in written(tmp_path)]
    assert (kinds.count("evaluated"), kinds.count("warning")) == (5, 1)
    assert recorder.fold.ignored == 5


def test_bad_lines_are_counted_and_warned_about_ten_times(recorder, tmp_path):
    for i in range(100):
        recorder.bad(f"line {i}", 11.0)
    recorder.finish()
    assert (recorder.bad_lines, recorder.first_bad) == (100, "line 0")
    assert len(written(tmp_path)) == 10


def test_unknown_events_are_not_passed_on(recorder, tmp_path):
    assert recorder.add(event("coffee", 1, Phases()), 11.0) is None
    recorder.finish()
    assert written(tmp_path) == []
    assert (recorder.read, recorder.fold.ignored) == (1, 1)


def test_a_disk_that_is_full_is_said_and_tried_again(recorder, tmp_path):
    real = recorder._descriptor
    recorder._descriptor = os.open("/dev/full", os.O_WRONLY)
    recorder.add(event(step=1, clock=Phases()), 11.0)
    with pytest.raises(OSError, match="No space left"):
        recorder.flush()
    recorder._descriptor = real
    recorder.flush()
    assert len(written(tmp_path)) == 1


def test_what_an_evaluation_took_is_off_the_runners_clock(recorder):
    recorder.add(evaluated(0, 4.0, eval_s=3.0), 15.0)  # before training: nothing to take off
    recorder.add(event(step=5), 20.0)
    assert recorder.clock_at(20.0) == Phases(startup=5.0, train=5.0)
    recorder.add(evaluated(5, 3.0, eval_s=2.0), 22.5)
    recorder.add(event(step=6), 25.0)
    recorder.add(evaluated(6, 2.0, eval_s=60.0), 26.0)  # it cannot have begun before step 6
    told = [(round(e.clock.train, 6), round(e.clock.eval, 6)) for e in recorder.fold.curve]
    assert told == [(0.0, 0.0), (5.5, 2.0), (8.0, 3.0)]
    recorder.add(evaluated(7, 2.0, eval_s="soon"), 27.0)
    assert recorder.fold.curve[-1].clock.train == pytest.approx(9.0)


def test_no_cap_falls_for_an_evaluation_under_way(recorder):
    recorder.add(event(step=0), 20.0)
    recorder.add(evaluated(5, 3.0, eval_s=2.0), 30.0)
    assert recorder.clock_at(31.5) == Phases(startup=10.0, train=8.0, eval=3.5)
    assert recorder.clock_at(35.0) == Phases(startup=10.0, train=11.0, eval=4.0)
    assert recorder.clock_at(35.0).seconds("wall") == 25.0
