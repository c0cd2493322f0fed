"""The validity gate on recorded telemetry: throttling, foreign work, slow hosts, other fingerprints."""

import json
import operator
import random
from dataclasses import replace

import pytest

from sweeper.commands import repair
from sweeper.commands.look import trial_document
from sweeper.commands.status import status_document
from sweeper.commands.verdicts import attempt_verdict, judged_trials
from sweeper.errors import MixedFingerprints
from sweeper.racing.validity import Judge, doubts_of, judge
from sweeper.report import console
from sweeper.study import Validity
from sweeper.trial import Evaluation, Outcome, Phases, Reason, TrialFacts
from tests.loop.test_sweep import Bench as Loop
from tests.loop.test_sweep import play
from tests.report.test_console import shown

ON = Validity()


def run(bench, name, *, pace=1.0, at=0.0, core=0, later=1.0, fingerprint=None, **observed):
    """A run of 20 evaluations that reached; from its middle on it takes `later` times as long."""
    values = name.partition(" ")[2]
    trial = bench.trial(name, batch=int(values or 16))
    seconds, curve = 0.0, []
    for n in range(21):
        curve.append(Evaluation(10 * n, 1000 * n, Phases(train=seconds), 4.0 - 0.1 * n))
        seconds += pace * (later if n >= 10 else 1.0)
    facts = bench.facts(trial, 1.0, curve=tuple(curve))
    device = {"kind": "cpu", "cores": [core], "observed": {"samples": 20, **observed}}
    attempt = replace(
        facts.attempts[0],
        device=device,
        started_at=1e9 + at,
        fingerprint=fingerprint or {},
    )
    return TrialFacts(trial, (attempt,))


def verdicts(*facts, settings=ON):
    return [f.attempts[0] for f in judge(facts, settings).facts]


def test_verdicts_given_bit_by_bit_are_those_given_at_once(bench):
    draw = random.Random(5)
    row = [TrialFacts(bench.trial(f"s1-{n}", batch=16 + n % 5)) for n in range(16)]
    earlier = quiet(bench)
    settings = Validity()
    grown = Judge(settings, earlier)
    for turn in range(60):
        place = draw.randrange(16)
        shares = {draw.choice(["foreign_share", "slowed_share"]): draw.choice([0.0, 0.12, 0.4])}
        pace, clock = draw.choice([1.0, 1.3, 1.6]), draw.choice([1900.0, 1500.0])
        number = f"{row[place].trial.id} {row[place].trial.point['batch']}"
        ran = run(
            bench, number, pace=pace, at=draw.randrange(9), core=draw.randrange(2),
            fingerprint={"hardware": draw.choice("xxxy")}, clock_mhz=clock, **shares,
        )  # fmt: skip
        again = replace(ran.attempts[0], attempt=len(row[place].attempts) + 1)
        kept = () if turn % 9 == 8 else (*row[place].attempts[-2:], again)
        row[place] = TrialFacts(row[place].trial, kept)
        before, judged = grown.judge(row), grown.judge(row)
        assert judged == judge(row, settings, earlier)
        assert all(map(operator.is_, before.facts, judged.facts))


def quiet(bench):
    return [run(bench, f"s1-{n} {16 + n}", foreign_share=0.02) for n in range(4)]


@pytest.mark.parametrize(
    ("slowed", "usual", "validity"),
    [(0.0, 0.0, "valid"), (0.1, 0.0, "suspect"), (0.4, 0.0, "invalid"), (0.4, 0.3, "suspect")],
)
def test_a_throttled_device(bench, slowed, usual, validity):
    """Relative to what the device always does: a card that is always hot is suspect, not useless."""
    others = [run(bench, f"s1-{n} {16 + n}", slowed_share=usual) for n in range(4)]
    judged = verdicts(run(bench, "s1-X 32", slowed_share=slowed), *others)[0]
    assert judged.validity == validity
    assert (judged.reason is Reason.THROTTLED) == (validity == "invalid")
    assert bool(doubts_of(judged)) == (validity != "valid")


def test_a_low_clock_needs_a_slow_run_to_be_invalid(bench):
    others = [run(bench, f"s1-{n} 32", clock_mhz=1900.0) for n in range(3)]
    fast, slow = (run(bench, "s1-X 32", pace=p, clock_mhz=1500.0) for p in (1.0, 1.3))
    assert verdicts(fast, *others)[0].validity == "suspect"
    judged = verdicts(slow, *others)[0]
    assert judged.reason is Reason.THROTTLED
    assert "1500 MHz" in judged.message


def test_foreign_work_on_its_processors(bench):
    others = quiet(bench)
    some, much = (run(bench, "s1-X 64", foreign_share=s) for s in (0.12, 0.4))
    assert verdicts(some, *others)[0].validity == "suspect"
    judged = verdicts(much, *others)[0]
    assert (judged.outcome, judged.reason) == (Outcome.INVALID, Reason.SHARED_DEVICE)
    assert "40%" in judged.message
    assert "otherwise: target" in judged.message
    stolen = verdicts(run(bench, "s1-X 64", steal_share=0.3), *others)[0]
    assert stolen.reason is Reason.SHARED_DEVICE


def test_some_foreign_work_and_a_slow_run_together_are_enough(bench):
    others = [*quiet(bench), run(bench, "s1-Y 64")]
    judged = verdicts(run(bench, "s1-X 64", pace=1.3, foreign_share=0.12), *others)[0]
    assert judged.reason is Reason.SHARED_DEVICE


@pytest.mark.parametrize(("pace", "validity"), [(1.1, "valid"), (1.3, "suspect"), (1.6, "invalid")])
def test_a_slow_host_shows_in_equal_configurations(bench, pace, validity):
    slow = run(bench, "s1-X 32", pace=pace)
    usual = run(bench, "s1-Y 32")
    elsewhere = run(bench, "s1-Z 32", pace=0.2, core=1)  # another device's pace says nothing
    judged = verdicts(slow, usual, elsewhere)
    assert [a.validity for a in judged] == [validity, "valid", "valid"]


def test_a_host_that_became_slow_in_the_middle(bench):
    judged = verdicts(run(bench, "s1-X 64", later=1.6), *quiet(bench))
    assert [a.validity for a in judged] == ["suspect"] + 4 * ["valid"]
    loaded = run(bench, "s1-X 64", later=1.6, foreign_share=0.2)
    assert verdicts(loaded, *quiet(bench))[0].reason is Reason.SHARED_DEVICE
    by_design = [run(bench, f"s1-{n} {16 + n}", later=1.6) for n in range(4)]
    assert {a.validity for a in verdicts(*by_design)} == {"valid"}


def test_runs_between_slow_controls_are_suspect(bench):
    pace = {0: 1.0, 20: 1.0, 40: 1.4, 60: 1.4, 80: 1.0}
    controls = [run(bench, f"s1-C{at} 16", pace=p, at=at) for at, p in pace.items()]
    early, late = run(bench, "s1-X 32", at=10), run(bench, "s1-Y 64", at=50)
    judged = {f.trial.id: f.attempts[0] for f in judge([*controls, early, late], ON).facts}
    assert judged["s1-X 32"].validity == "valid"
    assert judged["s1-Y 64"].validity == "suspect"
    assert "control runs around it" in doubts_of(judged["s1-Y 64"])[0]


def test_foreign_results_are_never_thrown_away(bench):
    """Nobody watched their device: an unequal pace makes them suspect, and the report says so."""
    fast, slow = run(bench, "s1-X 32"), run(bench, "s1-Y 32", pace=6.0)
    unwatched = [
        TrialFacts(f.trial, (replace(f.attempts[0], device={"kind": "cpu"}),)) for f in (fast, slow)
    ]
    assert [a.validity for a in verdicts(*unwatched)] == ["valid", "suspect"]


def test_a_gate_that_would_reject_nearly_everything_says_so_instead(bench):
    loads = (0.3, 0.8, 0.9, 0.95, 0.3)
    facts = [run(bench, f"s1-{n} {16 + n}", foreign_share=s, core=n) for n, s in enumerate(loads)]
    judged = judge(facts, ON)
    assert "would reject 5 of 5" in judged.banner
    assert {f.attempts[0].validity for f in judged.facts} == {"suspect"}


def test_another_fingerprint_is_not_ranked_with_the_others(bench):
    old, new = ({"versions": {"torch": v}, "data_hash": "x", "trainer": None} for v in "12")
    facts = [run(bench, "s1-X 16", fingerprint=old), run(bench, "s1-Y 32", fingerprint=new, at=9)]
    judged = verdicts(*facts)
    assert judged[0].validity == "valid"
    assert judged[1].reason is Reason.FINGERPRINT
    assert "versions.torch: 1 and 2" in judged[1].message
    assert {a.validity for a in verdicts(*facts, settings=Validity(mixed=True))} == {"valid"}


def test_the_gate_can_be_switched_off_and_judges_twice_alike(bench):
    facts = [run(bench, "s1-X 64", foreign_share=0.4), *quiet(bench)]
    assert judge(facts, Validity(gate=False)).facts == tuple(facts)
    once = judge(facts, ON).facts
    assert judge(once, ON).facts == once


# -- in the loop -----------------------------------------------------------------------------------


def throttled(times):
    """s1-A2, the best configuration, is throttled in its first attempts."""

    def player(spec):
        lines, outcome = play(spec)
        hot = spec.trial == "s1-A2" and spec.attempt <= times
        return lines, replace(outcome, observed={"samples": 9, "slowed_share": 0.6 * hot})

    return player


def test_an_invalid_trial_is_run_once_more(tmp_path):
    bench = Loop(tmp_path, cap=True, player=throttled(1))
    end = bench.run()
    found = next(f for f in end.facts if f.trial.id == "s1-A2")
    assert [a.outcome for a in found.attempts] == [Outcome.INVALID, Outcome.REACHED]
    assert found.counted.validity == "valid"
    recorded = next(f for f in bench.store.facts("toy") if f.trial.id == "s1-A2")
    assert recorded.attempts[0].outcome is Outcome.REACHED  # facts stay as they were measured


def test_what_optuna_was_told_of_an_invalid_run_is_no_difference(tmp_path):
    """`db verify`: our tables have the time that was measured, Optuna that it does not count."""
    bench = Loop(tmp_path, cap=True, player=throttled(1))
    bench.run()
    assert bench.search.known()["s1-A2"].state == "failed"
    found = repair.search_differences(bench.study, bench.store, "stage1", bench.search, "toy")
    assert list(found) == []
    key = next(k for k, v in bench.search.known().items() if v.state == "complete")
    bench.search.told[key] = bench.search.told["s1-A2"]
    found = repair.search_differences(bench.study, bench.store, "stage1", bench.search, "toy")
    assert [words.partition(":")[0] for words in found] == [key]


def test_an_invalid_trial_is_never_ranked(tmp_path):
    """Twice throttled: nothing is built on it, and its time caps nobody."""
    bench = Loop(tmp_path, cap=True, player=throttled(9))
    end = bench.run()
    found = next(f for f in end.facts if f.trial.id == "s1-A2")
    assert [a.reason for a in found.attempts] == 2 * [Reason.THROTTLED]
    others = [f for f in end.facts if "B" in f.trial.groups]
    assert 0.01 not in {f.trial.point["lr"] for f in others}
    assert bench.run().facts == end.facts  # and not a third time by the next command


def show(bench, trial):
    """`show` of a trial: its document, and what a person reads."""
    every = judged_trials(bench.study, bench.store).facts
    facts = next(f for f in every if f.trial.id == trial)
    document = trial_document(bench.study, facts, bench.study.objective.target)
    return document, " ".join(shown(console.show_trial(document), 200).split())


def test_status_and_show_say_what_was_rejected_why_and_what_came_next(tmp_path):
    bench = Loop(tmp_path, cap=True, player=throttled(1))
    bench.run()
    status = status_document(bench.study, bench.store)
    words = "clocks were slowed down by heat or hardware in 60% of the looks"
    assert status["validity"] == {
        "rejected": 1,
        "suspect": 0,
        "commonest": {"words": words, "trial": "s1-A2", "attempts": 1},
        "banner": None,
    }
    line = "validity gate: 1 rejected; 1 for the commonest reason, for example s1-A2: "
    assert line + words in shown(console.status_table(status), 200)
    document, text = show(bench, "s1-A2")
    assert [a["verdict"] for a in document["attempts"]] == [
        {
            "verdict": "invalid",
            "reasons": [words],
            "next": "not ranked; the trial was run again as attempt 2",
        },
        {"verdict": "valid", "reasons": [], "next": None},
    ]
    assert text.count(words) == 1
    assert "run again as attempt 2" in text
    assert "validity gate" not in show(bench, "s1-A1")[1]


def test_a_time_that_was_rejected_for_good_is_no_incumbent_and_can_be_retried(tmp_path):
    bench = Loop(tmp_path, cap=True, player=throttled(2))
    bench.run()
    assert status_document(bench.study, bench.store)["incumbent"]["id"] != "s1-A2"
    text = show(bench, "s1-A2")[1]
    assert "rejected twice; `sweep retry --failed` runs it again" in text
    assert repair.failed_stages(bench.study, bench.store) == ["stage1"]
    end = bench.run(retry_failed=True)
    assert repair.failed_stages(bench.study, bench.store) == []
    counted = next(f for f in end.facts if f.trial.id == "s1-A2").counted
    assert (counted.attempt, counted.outcome) == (3, Outcome.REACHED)


def test_status_counts_equal_doubts_together_whatever_their_figures(tmp_path):
    def player(spec):
        lines, outcome = play(spec)
        share = {"s1-A1": 0.12, "s1-A3": 0.15}.get(spec.trial, 0.01)
        return lines, replace(outcome, observed={"samples": 9, "foreign_share": share})

    bench = Loop(tmp_path, player=player)
    bench.run()
    found = status_document(bench.study, bench.store)["validity"]
    assert (found["rejected"], found["suspect"]) == (0, 2)
    assert found["commonest"]["attempts"] == 2
    document, text = show(bench, "s1-A3")
    assert document["attempts"][0]["verdict"]["verdict"] == "suspect"
    assert "suspect: other processes used 15% of its processors' time" in text
    assert "it is ranked, and marked as suspect" in text


def test_status_says_nothing_of_the_gate_where_all_is_well(tmp_path):
    bench = Loop(tmp_path)
    bench.run()
    status = status_document(bench.study, bench.store)
    assert status["validity"] == {"rejected": 0, "suspect": 0, "commonest": None, "banner": None}
    assert "validity" not in shown(console.status_table(status), 200)


def test_what_comes_next_for_an_attempt_that_is_not_run_again_yet(bench):
    other = run(bench, "s1-Y 16", fingerprint={"data_hash": "y"}, at=9)
    hot = run(bench, "s1-X 64", slowed_share=0.6, fingerprint={"data_hash": "x"})
    judged = judge([hot, *quiet(bench), other], ON).facts
    said = {f.trial.id: attempt_verdict(f, f.attempts[0])["next"] for f in judged}
    assert said["s1-X 64"] == "not ranked; `sweep stage1` runs it once more"
    assert "mixed = true" in said["s1-Y 16"]
    assert said["s1-0 16"] is None


def test_another_fingerprint_stops_the_command(tmp_path):
    def player(spec):
        lines, outcome = play(spec)
        torch = "2" if spec.trial == "s1-A3" else "1"
        started = {"v": 1, "seq": 0, "event": "run_started", "step": 0, "tokens": 0}
        started |= {"clock": {"train": 0.0}, "versions": {"torch": torch}}
        return [json.dumps(started), *lines], outcome

    bench = Loop(tmp_path, player=player)
    with pytest.raises(MixedFingerprints, match=r"versions\.torch: 1 and 2.*mixed = true"):
        bench.run()
    (tmp_path / "mixed").mkdir()
    mixed = Loop(tmp_path / "mixed", player=player)
    mixed.study = mixed.study.model_copy(update={"validity": Validity(mixed=True)})
    assert mixed.run().ending == "complete"
