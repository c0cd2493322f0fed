"""The loop on recorded curves: caps that move while trials run, fallbacks, several slots, and words."""

import json
import math

import pytest

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.savings import rules
from sweeper.executors.replay import Recording
from sweeper.replay import (
    recorded_plan,
    recording_of,
    recordings_of,
    replay,
    with_racing,
    without_racing,
)
from sweeper.stages import FixedStage, Stage1
from sweeper.study_file import load
from sweeper.trial import Evaluation, Outcome, Phases, PlannedTrial, Reason, StagePlan
from tests.loop.test_sweep import STUDY, seconds_of


def recording(spec, *, floor=1.0, every=0.5, most_s=60.0):
    tau = seconds_of(spec) / math.log((4 - floor) / (2 - floor)) if floor < 2 else 5.0
    curve = []
    for i in range(int(most_s / every)):
        t = i * every
        loss = floor + (4 - floor) * math.exp(-t / tau)
        clock = Phases(startup=1.0, train=t, eval=0.01 * i)
        curve.append(Evaluation(i, i * 1000, clock, loss))
        if loss <= 2.0:
            break
    return Recording(tuple(curve), curve[-1].clock, Reason.STEPS)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.replace("CAP", "true"))
    return load(tmp_path / "study.toml")


def times(run):
    reached = [f for f in run.end.facts if f.counted.outcome is Outcome.REACHED]
    return sorted((f.counted.phases.train, f.trial.id) for f in reached)


@pytest.mark.parametrize("slots", [1, 3])
def test_racing_saves_time_and_keeps_the_top(study, slots):
    free = replay(
        without_racing(study), Stage1(without_racing(study), 2), recording, target=2.0, slots=slots
    )
    raced = replay(study, Stage1(study, 2), recording, target=2.0, slots=slots)
    assert {f.counted.outcome for f in free.end.facts} == {Outcome.REACHED}
    assert times(free)[:2] == times(raced)[:2]
    assert raced.train_s < free.train_s
    cut = [f.counted for f in raced.cut()]
    assert cut
    for attempt in cut:
        assert attempt.message.startswith(f"stopped at {attempt.phases.train:.1f} s: ")
        assert attempt.cap_s is not None
    assert any("cannot enter the top 2, the 2nd best is " in a.message for a in cut)


def test_a_cap_is_lowered_while_a_trial_runs(study):
    """With three slots the slow arm starts uncapped, and ends at a cap that others set meanwhile."""
    plain = with_racing(study, forecast=False, order=False)
    raced = replay(plain, Stage1(plain, 2), recording, target=2.0, slots=3)
    assert any("cap" in note and "(was none)" in note for note in raced.notes)
    first = {f.trial.id: f.counted for f in raced.end.facts}
    assert first["s1-B1"].reason is Reason.CAP
    assert first["s1-B1"].phases.train < seconds_of_fact(raced, "s1-B1")


def seconds_of_fact(run, name):
    point = next(f.trial.point for f in run.end.facts if f.trial.id == name)

    class Spec:
        argv = (f"--lr={point['lr']}", f"--batch={point['batch']}")

    return seconds_of(Spec)


def test_a_stop_comes_at_the_first_evaluation_at_or_after_the_cap(study):
    plain = with_racing(study, forecast=False)
    raced = replay(plain, Stage1(plain, 2), recording, target=2.0)
    for fact in raced.cut():
        curve = fact.counted.curve
        assert curve[-1].clock.train >= fact.counted.cap_s > curve[-2].clock.train


def test_a_time_that_becomes_slower_reopens_who_it_cut_off(study):
    """A point's second run is far slower: its median moves, and the cap that its first run set."""
    free = without_racing(study)
    known = replay(free, Stage1(free, 2), recording, target=2.0).end.facts
    best, second, *_, third = sorted(known, key=lambda f: f.counted.phases.train)
    from dataclasses import replace

    again = replace(second.trial, id="s1-again", seed=7, replicate_of=second.trial.id)
    slow = recording_of(third.counted)
    stretched = [e._replace(clock=e.clock._replace(train=3 * e.clock.train)) for e in slow.curve]

    def find(spec):
        if spec.trial == "s1-again":
            return Recording(tuple(stretched), stretched[-1].clock, Reason.STEPS)
        return recordings_of(known)(spec)

    plan = recorded_plan(study, "stage1", [best, second, third], 2.0)
    plan = replace(plan, trials=(*plan.trials, again))
    racing = with_racing(study, forecast=False, order=False, slack=1.0)
    run = replay(racing, FixedStage(racing, plan, 2), find, target=2.0)
    tries = {f.trial.id: [a.reason for a in f.attempts] for f in run.end.facts}
    assert tries[third.trial.id] == [Reason.CAP, Reason.TARGET]
    words = next(n for n in run.notes if "run again" in n)
    cap_s = next(f for f in run.end.facts if f.trial.id == third.trial.id).attempts[0].cap_s
    assert words.startswith(
        f"{third.trial.id}: run again: it was cut off by a cap of {cap_s:.1f} s"
    )
    told = StageFacts(plan, run.end.facts, 2.0)
    found = {r.name: r for r in rules(StudyFacts(racing, {"stage1": told}))}["reopen"]
    lost = next(f for f in run.end.facts if f.trial.id == third.trial.id).attempts[0]
    assert (found.trials, found.saved_s) == (1, pytest.approx(-lost.phases.train))
    assert tries["s1-again"] == [Reason.CAP]  # it had twice its point's first time already


def played(study, *seconds, slots=1, keep=3, spoiled=None, **racing):
    """Points that take so long, in this order, where `keep` are kept.

    One that takes None fails; the second run of `spoiled[0]` ends as `spoiled[1]`.
    """
    racing = with_racing(study, **{"forecast": False, "order": False, **racing})
    points = [
        study.space.point({"lr": 0.002 + 0.001 * i, "batch": 64}) for i in range(len(seconds))
    ]
    trials = tuple(
        PlannedTrial(f"t{i}", "stage1", "", ("A",), point, 1) for i, point in enumerate(points)
    )
    plan = StagePlan("toy", "stage1", 2.0, trials, len(trials), len(trials))

    def find(spec):
        end_s = seconds[int(spec.trial[1:])]
        if end_s is None:
            return Recording((), Phases(), Reason.CRASHED)
        if spoiled is not None and (spec.trial, spec.attempt) == (spoiled[0], 2):
            return Recording((), Phases(), spoiled[1])
        clocks = [Phases(train=0.5 * i) for i in range(int(2 * end_s) + 1)]
        curve = tuple(Evaluation(i, i, c, 4 - 2 * c.train / end_s) for i, c in enumerate(clocks))
        return Recording(curve, curve[-1].clock, Reason.STEPS)

    return replay(racing, FixedStage(racing, plan, keep), find, target=2.0, slots=slots)


def tries_of(run):
    return {f.trial.id: [a.reason for a in f.attempts] for f in run.end.facts}


WRONG = (10.0, 11.0, 30.0, 40.0, 45.0, 46.0, 47.0, 48.0)
"""Nothing like what is expected after the first two: a third place that is far behind."""


@pytest.mark.parametrize("slots", [1, 2])
def test_who_was_not_expected_in_the_top_is_run_again_only_where_that_was_wrong(study, slots):
    run = played(study, *WRONG, slots=slots)
    assert tries_of(run)["t2"] == [Reason.CAP, Reason.TARGET]
    assert all(of == [Reason.CAP, Reason.CAP] for name, of in tries_of(run).items() if name > "t2")
    first = [f.attempts[0] for f in run.end.facts]
    assert all("not expected in the top 3 after" in a.message for a in first[2:])
    began = sorted((a.started_at, a.attempt) for f in run.end.facts for a in f.attempts)
    assert [attempt for _, attempt in began] == 8 * [1] + 6 * [2]
    words = next(n for n in run.notes if n.startswith("t2: run again"))
    assert "and the others were not as fast as expected" in words
    free = played(study, *WRONG, cap=False)
    assert times(free)[:3] == times(run)[:3]


def test_whoever_had_come_furthest_is_run_again_first(study):
    """So the third best is known before the others have had their second runs, and caps them."""

    def names_again(run):
        began = sorted((a.started_at, f.trial.id) for f in run.end.facts for a in f.attempts[1:])
        return [name for _, name in began]

    run = played(study, *WRONG[:2], *reversed(WRONG[2:]), order=True)
    assert names_again(run) == ["t7", "t6", "t5", "t4", "t3", "t2"]
    as_planned = played(study, *WRONG[:2], *reversed(WRONG[2:]))
    assert names_again(as_planned) == ["t2", "t3", "t4", "t5", "t6", "t7"]
    assert [name for name, of in tries_of(run).items() if of[1:] == [Reason.TARGET]] == ["t7"]


def test_who_was_expected_to_be_out_is_out_and_not_run_again(study):
    seconds = (10.0, 11.0, 40.0, 39.0, 10.5, 38.0, 37.0, 12.5)
    run = played(study, *seconds)
    assert all(len(of) == 1 for of in tries_of(run).values())
    plain = played(study, *seconds, expect=False)
    assert run.train_s < plain.train_s
    assert times(run)[:3] == times(plain)[:3]


def test_failed_points_do_not_keep_the_others_waiting_to_be_seen(study):
    """A third of the points never has a time: whoever was cut off for them is run again all the same."""
    run = played(study, 10.0, 11.0, 30.0, 40.0, None, None, None)
    assert tries_of(run)["t2"] == [Reason.CAP, Reason.TARGET]
    assert run.end.ending == "complete"
    assert (
        times(run)[:3]
        == times(played(study, 10.0, 11.0, 30.0, 40.0, None, None, None, cap=False))[:3]
    )


@pytest.mark.parametrize("reason", [Reason.CRASHED, Reason.OOM, Reason.SHARED_DEVICE])
def test_a_second_run_that_fails_is_not_started_for_ever(study, reason):
    run = played(study, *WRONG, spoiled=("t2", reason))
    tries = tries_of(run)["t2"]
    assert tries[:2] == [Reason.CAP, reason]
    again = [Reason.TARGET] if reason is Reason.SHARED_DEVICE else []  # measured once more
    assert tries[2:] == again
    assert run.end.ending == "complete"


def test_stage_two_starts_with_the_caps_of_stage_one(study):
    first = replay(study, Stage1(study, 2), recording, target=2.0)
    plan = recorded_plan(study, "stage1", first.end.facts, 2.0)
    from dataclasses import replace

    trials = tuple(replace(t, id=f"s2-{n}", seed=t.seed + 1000) for n, t in enumerate(plan.trials))
    second = replace(plan, stage="stage2", trials=trials)
    stage = FixedStage(study, second, 1, earlier=first.end.facts)
    run = replay(study, stage, recording, target=2.0)
    alone = replay(study, FixedStage(study, second, 1), recording, target=2.0)
    assert run.train_s < alone.train_s
    slowest = max(run.end.facts, key=lambda f: seconds_of_fact(run, f.trial.id))
    assert slowest.counted.outcome is Outcome.CENSORED


def test_the_target_falls_back_once_k_have_used_up_their_limits(study):
    seen = []

    def find(spec):
        seen.append(spec.target)
        return recording(spec, floor=2.2)

    run = replay(study, Stage1(study, 2), find, target=2.0)
    assert run.end.record.effective_target == 2.5
    assert seen[:2] == [2.0, 2.0]
    assert seen[-1] == 2.5
    assert any("the target is 2.5 from here on" in note for note in run.notes)
    assert any("looks out of reach" in note for note in run.notes)
    fixed = with_racing(study, fallback=False)
    seen.clear()
    late = replay(fixed, Stage1(fixed, 2), find, target=2.0)
    assert set(seen) == {2.0}
    assert late.end.record.effective_target == 2.5  # judged at the end, as before
    assert run.train_s < late.train_s


def test_the_trial_limit_holds_in_virtual_time(study):
    run = replay(study, Stage1(study, 2), lambda s: recording(s, floor=2.6), target=2.0)
    ended = [f.counted for f in run.end.facts]
    assert {a.reason for a in ended} == {Reason.TIMEOUT}
    assert all(a.phases.seconds("wall") <= study.limits.trial_s + 1.0 + 0.5 for a in ended)


def test_what_was_never_recorded_is_a_failure_and_not_a_time(study):
    free = without_racing(study)
    known = replay(free, Stage1(free, 2), recording, target=2.0).end.facts
    plan = recorded_plan(study, "stage1", known, 2.0)
    run = replay(study, FixedStage(study, plan, 2), recordings_of(known[1:]), target=2.0)
    assert run.end.facts[0].counted.reason is Reason.ENVIRONMENT
    assert all(f.counted.outcome is not Outcome.FAILED for f in run.end.facts[1:])


def test_84_trials_take_little_processor_time(study):
    """48 + 36 trials of 60 evaluations each; the bound is generous: what is meant is "no minutes"."""
    import time

    def long(spec):
        return recording(spec, every=seconds_of(spec) / 55)

    free = without_racing(study)
    known = replay(free, Stage1(free, 2), recording, target=2.0).end.facts
    from dataclasses import replace

    base = recorded_plan(study, "stage1", known, 2.0)
    trials = tuple(
        replace(base.trials[n % len(base.trials)], id=f"s1-X{n}", seed=n) for n in range(84)
    )
    began = time.process_time()
    run = replay(
        study, FixedStage(study, replace(base, trials=trials), 5), long, target=2.0, slots=4
    )
    assert len(run.end.facts) == 84
    assert all(f.counted is not None for f in run.end.facts)
    assert time.process_time() - began < 20


def test_the_command_shows_what_rules_save(study, tmp_path, capsys):
    from sweeper.cli import main
    from sweeper.commands.output import attempt_document

    free = without_racing(study)
    known = replay(free, Stage1(free, 2), recording, target=2.0).end.facts
    lines = [
        json.dumps(attempt_document(study, f.trial, a, 2.0)) for f in known for a in f.attempts
    ]
    export = tmp_path / "trials.jsonl"
    export.write_text("\n".join(lines) + "\n")
    home = ["--home", str(tmp_path / "home")]
    assert main(["replay", str(export), str(study.folder), "--json", *home]) == 0
    document = json.loads(capsys.readouterr().out)
    played = {one["rules"]: one for one in document["stages"]["stage1"]}
    assert played["nothing"]["saved"] == 0
    assert played["cap"]["saved"] > 0.05
    assert all(one["top_kept"] and one["winner_kept"] for one in played.values())
    export.write_text(lines[0] + "\n{}\n")
    assert main(["replay", str(export), str(study.folder), *home]) == 2
    assert "line 2" in capsys.readouterr().err
