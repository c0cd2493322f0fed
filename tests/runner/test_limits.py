"""Limits without processes: instants go in, a stop comes out."""

from __future__ import annotations

import math

import pytest

from sweeper.events import Event, Fold
from sweeper.runner.limits import Limits
from sweeper.spec import AttemptSpec, Control
from sweeper.trial import Phases, Reason


class Run:
    """A run that began at instant 100, and its clock."""

    def __init__(self, **spec):
        asked = {
            "study": "s", "trial": "t", "attempt": 1, "argv": ["x"], "cwd": "/", "run_dir": "/",
            "metric": "val_loss", "clock": "train", "target": 2.0, "trial_s": 60.0,
            "silence_s": 10.0, "startup_s": 20.0, "grace_s": 5.0, "max_steps": 100,
        }  # fmt: skip
        self.limits = Limits(AttemptSpec(**(asked | spec)), 100.0)
        self.fold = Fold("val_loss")
        self.clock = Phases()

    def say(self, now, name="step", step=0, loss=None, which="probe", **clock):
        self.clock = Phases(**clock)
        body = {"slice": which, "metrics": {"val_loss": loss}}
        event = Event(name, 0, step, 0, self.clock, body)
        self.fold.add(event)
        self.limits.event(event, now)
        return self

    def evaluate(self, now, loss, step=0, which="probe", **clock):
        return self.say(now, "evaluated", step, loss, which, **clock)

    def at(self, now):
        stop = self.limits.check(now, self.clock, self.fold)
        return stop.reason if stop else None


def test_startup_ends_with_the_first_event_after_run_started():
    run = Run()
    assert run.at(119) is None
    assert run.at(121) is Reason.HUNG
    run.say(105, "run_started")
    assert run.at(121) is Reason.HUNG
    run.say(121, "step")
    assert run.at(121.5) is None


def test_silence_counts_from_the_last_event_or_output():
    run = Run().say(101)
    assert run.at(110.9) is None
    assert run.at(111.1) is Reason.HUNG
    run.limits.activity(111)
    assert run.at(120) is None
    assert run.at(121.1) is Reason.HUNG


def test_silence_is_no_matter_while_starting_up():
    assert Run(startup_s=1000).at(900) is None


def test_the_trial_limit_leaves_startup_and_compile_out():
    run = Run().say(500, startup=300.0, compile=90.0, train=50.0, eval=9.9)
    assert run.at(500) is None
    assert (
        run.say(501, startup=300.0, compile=90.0, train=50.0, eval=10.0).at(501) is Reason.TIMEOUT
    )


def test_the_wall_is_a_backstop_that_knows_later_compiling():
    run = Run(silence_s=1e9).say(200, compile=5.0, train=1.0)
    assert run.at(200 + 64.9) is None
    assert run.at(200 + 65.1) is Reason.TIMEOUT
    run.say(210, compile=35.0, train=2.0)
    assert run.at(200 + 94.9) is None
    assert run.at(200 + 95.1) is Reason.TIMEOUT


@pytest.mark.parametrize(("clock", "reason"), [("train", None), ("train+eval", Reason.CAP)])
def test_the_cap_is_on_the_ranking_clock(clock, reason):
    run = Run(clock=clock, cap_s=10.0).evaluate(150, 3.0, train=9.0, eval=2.0)
    assert run.at(150) is reason


def test_the_cap_waits_for_an_evaluation_but_not_for_ever():
    run = Run(cap_s=10.0).evaluate(101, 3.0, train=9.0)
    run.say(110, train=14.0)
    assert run.at(110) is None
    run.say(111, train=15.5)
    assert run.at(111) is Reason.CAP


def test_a_trial_that_is_not_evaluated_at_its_cap_is_told_which_limit_ended_it_and_what_to_do():
    said = {}
    for reader in ("events", "patterns"):
        run = Run(cap_s=10.0, cap_why="cannot enter the top 3", reader=reader).say(111, train=15.5)
        said[reader] = run.limits.check(111, run.clock, run.fold).message
    assert said["events"] == (
        "ended by its cap of 10 s (cannot enter the top 3): it trained for 15.5 s, more than 1.5 times "
        "the cap, without an evaluation after the cap; let the script evaluate more often, or set "
        "[racing] cap = false"
    )
    assert "it trained for 15.5 s by the runner's clock" in said["patterns"]


def test_an_evaluation_exactly_at_the_cap_is_at_the_cap():
    assert Run(cap_s=10.0).evaluate(101, 3.0, train=10.0).at(101) is Reason.CAP


def test_a_lowered_cap_and_back():
    run = Run(cap_s=100.0).evaluate(101, 3.0, train=20.0)
    run.limits.control(Control(cap_s=15.0))
    assert run.at(102) is Reason.CAP
    assert run.limits.cap_s == 15.0
    run.limits.control(Control())
    assert run.at(102) is None


def test_a_crossing_at_the_cap_may_be_confirmed_first():
    run = Run(cap_s=10.0).evaluate(101, 1.9, step=50, train=11.0)
    assert run.at(103) is None
    run.evaluate(104, 2.1, step=50, which="confirmation", train=11.0)
    assert run.at(104) is Reason.CAP


def test_a_trainer_that_goes_on_after_the_target_is_stopped():
    run = Run().evaluate(101, 1.9, step=50)
    assert run.at(105) is None  # it may be confirming
    run.say(105, step=50)
    assert run.at(105) is None
    run.say(105.1, step=51)
    assert run.at(105.1) is Reason.TARGET


def test_a_trainer_gets_a_second_to_say_that_it_finished():
    run = Run().evaluate(101, 1.9, step=50).say(101.1, step=51)
    assert run.at(101.9) is None
    run.say(101.95, "run_finished", step=51)
    assert run.at(105) is None


def test_a_refused_crossing_is_none():
    run = Run().evaluate(101, 1.9, step=50)
    run.evaluate(102, 2.5, step=50, which="confirmation").say(105, step=60)
    assert run.at(105) is None
    run.evaluate(106, 1.8, step=70).say(108, step=80)
    assert run.at(108) is Reason.TARGET


def test_a_script_that_is_only_read_is_stopped_at_once():
    assert Run(reader="patterns").evaluate(101, 1.9, step=5).at(101) is Reason.TARGET
    assert Run(reader="patterns").evaluate(101, math.nan, step=5).at(101) is Reason.DIVERGED


def test_divergence_like_the_target_waits_for_the_trainer():
    run = Run().evaluate(101, math.nan, step=50)
    assert run.at(103) is None
    assert run.say(103, step=51).at(103) is Reason.DIVERGED


def test_a_metric_that_comes_back_is_no_divergence():
    run = Run().evaluate(101, math.nan, step=50)
    run.at(101)
    run.evaluate(102, 3.0, step=60).say(104, step=70)
    assert run.at(104) is None


def test_after_its_last_event_a_trainer_has_the_grace_to_exit():
    run = Run().say(101).say(102, "run_finished")
    assert run.at(106.9) is None
    stop = run.limits.check(107.1, run.clock, run.fold)
    assert (stop.reason, stop.finished) == (Reason.HUNG, True)


def test_orders():
    run = Run().say(101)
    run.limits.control(Control(drain=True))
    assert run.at(101) is Reason.BUDGET
    run.limits.control(Control(cancel=True, drain=True))
    assert run.at(101) is Reason.KILLED
