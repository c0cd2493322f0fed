"""What the verdict says in each case, word by word where it matters."""

from __future__ import annotations

import dataclasses

import pytest

from sweeper.analysis.verdict import verdict
from sweeper.analysis.wording import change, count, duration, listed, more_or_less, significant
from sweeper.trial import Reason
from tests.fakes.facts import Clockwork, make_study, make_sweep


@pytest.fixture
def work() -> Clockwork:
    return Clockwork(make_study())


def judged(work: Clockwork, **changes):
    return verdict(work.facts(stage1=work.stage("stage1")), **changes)


def test_nothing_measured_yet(work):
    facts = work.facts(stage1=work.stage("stage1", closed=False))
    found = verdict(facts)
    assert (found.kind, found.sentence) == (
        "nothing_measured",
        "Nothing has been measured yet.",
    )


def test_everything_failed(work):
    for number in range(3):
        values = {"optim.lr": 0.01 * (number + 1)}
        work.trial("stage1", f"t{number}", values, None, reason=Reason.CRASHED)
    found = judged(work)
    assert found.sentence == "Nothing was measured: 3 trials failed (crashed 3)."
    assert any("3 trials failed" in line for line in found.missing)


def test_none_reached_says_how_close_and_what_is_in_reach(work):
    for name, lr, stop in (("a", 0.01, 15.0), ("b", 0.02, 12.0), ("c", 0.03, 10.0)):
        values = {"optim.lr": lr}
        work.trial("stage1", name, values, None, reason=Reason.STEPS, stop_s=stop, label=name)
    found = judged(work)
    assert found.kind == "nothing_reached"
    assert found.winner is None
    assert found.sentence.startswith("No configuration reached val_loss 2.5: the closest, a, came")
    assert "3 configurations came down to" in found.sentence
    assert f"down to {significant(found.reachable_target, 5)}" in found.sentence
    assert "the nearest fallback is" in found.sentence


def test_one_reached_is_a_winner_of_single_runs(work):
    work.trial("stage1", "a", {"optim.lr": 0.02}, 2.0, label="A", step_s=0.001)
    work.trial("stage1", "base", {}, 4.0, label="base", step_s=0.001)
    work.trial("stage1", "c", {"optim.lr": 0.1}, None, stop_s=4.0)
    found = judged(work)
    assert found.kind == "unconfirmed"
    assert found.sentence == (
        "A was the fastest of 3 configurations (2 reached the target): val_loss 2.5 in 2.00 s of "
        "training, 2.00x faster than the baseline in single runs, not confirmed."
    )
    assert not found.speedup.confirmed
    assert found.speedup.interval.low is None
    assert "stage2 has not been planned" in found.missing


def test_a_baseline_that_missed_makes_the_speedup_a_bound(work):
    work.trial("stage1", "a", {"optim.lr": 0.02}, 2.0, label="A")
    work.trial("stage1", "base", {}, None, stop_s=4.0)
    assert "at least 2.0" in judged(work).sentence


def test_without_a_baseline_there_is_no_speedup(work):
    work.trial("stage1", "a", {"optim.lr": 0.02}, 2.0, label="A")
    found = judged(work)
    assert found.speedup is None
    assert "The baseline was not measured" in " ".join(found.paragraphs)


def test_the_baseline_itself_may_win(work):
    work.trial("stage1", "base", {}, 2.0, label="base")
    work.trial("stage1", "a", {"optim.lr": 0.02}, 3.0)
    found = judged(work)
    assert found.speedup is None
    assert "The best configuration is the baseline itself" in " ".join(found.paragraphs)


def test_confirmed():
    found = verdict(make_sweep())
    assert found.kind == "confirmed"
    assert found.speedup.confirmed
    assert "faster than the baseline (n = 4 blocks)" in found.sentence
    assert found.winner.runs[0].stage == "confirm"
    assert any("faster than the baseline" in line for line in found.decided)
    assert "fewer tokens" in " ".join(found.paragraphs)


@pytest.mark.parametrize("again", [None, 2.4])
def test_a_winner_that_does_not_reach_again_is_not_confirmed(work, again):
    """`again`: the time of the one run of three that reaches in confirm, if any does."""
    work.trial("stage1", "A", {"optim.lr": 0.02}, 2.0, label="A")
    work.trial("stage1", "base", {}, 4.0, label="base")
    for block, seconds in enumerate((again, None, None), start=1):
        for name, values, found in (("A", {"optim.lr": 0.02}, seconds), ("base", {}, None)):
            work.trial(
                "confirm", f"{name}-{block}", values, found, label=name, block=block, stop_s=9.0
            )
    judged = verdict(work.facts(stage1=work.stage("stage1"), confirm=work.stage("confirm")))
    assert judged.kind == "unconfirmed"
    assert judged.winner.runs[0].stage == "stage1"
    assert judged.sentence.endswith("faster than the baseline in single runs, not confirmed.")
    assert "none of them reached" in " ".join(judged.paragraphs)


def test_finalists_that_cannot_be_told_apart_are_named(work):
    for block, (a, b, base) in enumerate(
        [(2.0, 2.2, 4.0), (2.2, 2.1, 4.0), (2.1, 2.15, 4.1), (2.0, 2.1, 3.9)], start=1
    ):
        for name, values, seconds in (
            ("A", {"optim.lr": 0.02}, a), ("B", {"optim.lr": 0.03}, b), ("base", {}, base),
        ):  # fmt: skip
            work.trial("confirm", f"{name}-{block}", values, seconds, label=name, block=block)
    found = verdict(work.facts(confirm=work.stage("confirm")))
    assert any("not distinguishable at this budget" in line for line in found.undecided)
    assert found.sentence.endswith("; not distinguishable from B at this budget.")
    assert "faster than the baseline" in found.sentence


def test_winner_not_separated_from_the_baseline(work):
    for block, (a, base) in enumerate([(2.0, 2.3), (2.3, 2.2), (2.1, 2.2), (2.2, 2.3)], start=1):
        for name, values, seconds in (("A", {"optim.lr": 0.02}, a), ("base", {}, base)):
            work.trial("confirm", f"{name}-{block}", values, seconds, label=name, block=block)
    found = verdict(work.facts(confirm=work.stage("confirm")))
    assert "not distinguishable from the baseline at this budget" in found.sentence
    assert not found.speedup.decided


def test_open_stages_and_exploratory_ones_are_said():
    facts = make_sweep()
    stage = facts.stages["stage2"]
    broken = dataclasses.replace(stage, facts=stage.facts[:10], closed=False, exploratory=True)
    found = verdict(dataclasses.replace(facts, stages={**facts.stages, "stage2": broken}))
    text = " ".join(found.missing)
    assert "stage2 misses 2 trials: s2-11 and s2-12" in text
    assert "stage2 is exploratory" in text


def test_another_target_is_said_and_judged():
    found = verdict(make_sweep(), target=3.2)
    assert found.target == 3.2
    assert "judged at val_loss 3.2; the study declares 2.5" in " ".join(found.paragraphs)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.123, "3.12 s"), (42.0, "42.0 s"), (99.99, "1 min 40 s"), (100.0, "1 min 40 s"),
        (3599.7, "1 h 00 min"), (26000, "7 h 13 min"),
    ],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_other_words():
    assert significant(0.000123456) == "0.000123"
    assert significant(1234567.0) == "1230000"
    assert significant(0) == "0"
    assert change(0.97) == "-3.0 %"
    assert change(1.5) == "+50 %"
    assert more_or_less(0.5, "more", "fewer") == "50 % fewer"
    assert count(1, "trial") == "1 trial"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([str(i) for i in range(9)]) == "0, 1, 2, 3, 4, 5 and 3 more"
