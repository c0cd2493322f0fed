"""Progress as lines and as a live view, and the tables, at any width, encoding and label."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from sweeper.analysis.ranking import stage_summary
from sweeper.objective import time_to_target
from sweeper.report import console as tables
from sweeper.report.json_report import document
from sweeper.report.lines import LinesProgress, QuietProgress
from sweeper.report.live import LiveProgress, expected_s, sparkline, time_left
from sweeper.study import Limits
from tests.fakes.facts import TARGET, make_sweep

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def facts():
    return make_sweep()


def play(progress, facts, *, stop_before_end=False):
    """Tell a watcher all of stage 1, as the loop would."""
    stage = facts.stages["stage1"]
    progress.stage_started(stage.plan, 0)
    for number, trial in enumerate(stage.facts):
        progress.trial_started(trial.trial, f"cpu{number % 2}")
        for attempt in trial.attempts:
            for e in attempt.curve:
                progress.evaluated(trial.trial, e.step, e.clock.train, e.value)
            found = time_to_target(attempt, TARGET, "train")
            progress.trial_ended(trial.trial, attempt, found)
        if stop_before_end and number == 8:
            return
    progress.note("an open level was decided")
    progress.stage_ended(stage_summary(facts, "stage1"))
    progress.close()
    progress.close()


def terminal(width=100, height=30, **options):
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=width, height=height, highlight=False,
        soft_wrap=True, **options,
    )  # fmt: skip
    return console, stream


def test_lines_are_plain_and_one_an_event(facts):
    stream = io.StringIO()
    play(LinesProgress(stream), facts)
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    events = sum(2 + len(t.attempts[0].curve) for t in facts.stages["stage1"].facts)
    assert lines[0] == "stage1: 17 trials, target 2.5"
    assert len(lines) == 1 + events + 1 + 1 + 5  # start, events, note, summary, top
    assert any(line.startswith("s1-A1 reached the target in 8.0") for line in lines)
    assert any("s1-E18 failed (crashed): RuntimeError" in line for line in lines)
    assert any("s1-D16 did not reach it (cap) after 6.00 s" in line for line in lines)


def test_a_label_cannot_move_the_cursor_or_break_a_line(facts):
    stage = facts.stages["stage1"]
    trial = stage.facts[0].trial
    evil = type(trial)(**{**vars(trial), "label": "a\nb\x1b[2Jc\rd"})
    stream = io.StringIO()
    LinesProgress(stream).trial_started(evil, "cpu0")
    assert stream.getvalue() == "s1-A1 started on cpu0: a b [2Jc d\n"


def test_a_reader_that_went_away_and_a_poor_encoding_stop_nothing(facts):
    closed = io.StringIO()
    closed.close()
    play(LinesProgress(closed), facts)
    raw = io.BytesIO()
    poor = io.TextIOWrapper(raw, encoding="ascii")
    progress = LinesProgress(poor)
    progress.note("schön → gut")
    poor.flush()
    assert raw.getvalue() == b"sch?n ? gut\n"


def test_quiet_says_nothing(facts, capsys):
    play(QuietProgress(), facts)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_the_live_view_never_passes_the_terminals_edge(facts, width):
    console, _ = terminal(width)
    progress = LiveProgress(console)
    play(progress, facts, stop_before_end=True)
    stage = facts.stages["stage1"]
    for number in (9, 10):
        progress.trial_started(stage.facts[number].trial, f"cpu{number}")
        progress.evaluated(stage.facts[number].trial, 20, 1.0, 3.1)
    probe, stream = terminal(width)
    probe.print(progress, soft_wrap=False)
    progress.close()
    shown = ESCAPE.sub("", stream.getvalue())
    lines = shown.splitlines()
    assert lines[0].startswith("stage1 9/17")
    assert set(lines[1].strip()) <= set("━╸╺ ")  # the bar has a line of its own
    assert "s1-" in shown
    if width >= 80:
        assert "fastest so far" in shown
    assert all(cell_len(line) <= width for line in shown.splitlines())


def test_the_live_view_fits_a_low_terminal(facts):
    console, _ = terminal(80, 8)
    progress = LiveProgress(console)
    play(progress, facts, stop_before_end=True)
    probe, stream = terminal(80, 8)
    probe.print(progress, soft_wrap=False)
    progress.close()
    assert len(ESCAPE.sub("", stream.getvalue()).splitlines()) <= 8


def test_the_live_view_keeps_to_ascii_where_it_must(facts):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    console = Console(file=stream, force_terminal=True, width=100, height=30, highlight=False)
    progress = LiveProgress(console)
    play(progress, facts)
    stream.flush()
    assert b"target 2.5" in raw.getvalue()


def test_the_live_view_leaves_the_summary_and_the_cursor(facts):
    console, stream = terminal(120)
    play(LiveProgress(console), facts)
    text = stream.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # shown again after it was hidden
    after = ESCAPE.sub("", text)
    assert "20 planned, 17 distinct" in after
    assert "ms a step" in after
    assert "an open level was decided" in after


def test_wide_characters_are_counted_by_their_cells(facts):
    console, _ = terminal(60)
    progress = LiveProgress(console)
    stage = facts.stages["stage1"]
    trial = stage.facts[0].trial
    wide = type(trial)(**{**vars(trial), "label": "学習率" * 30, "id": "日本語" * 10})
    progress.stage_started(stage.plan, 0)
    progress.trial_started(wide, "cpu0")
    progress.evaluated(wide, 20, 1.0, 3.1)
    probe, stream = terminal(60)
    probe.print(progress, soft_wrap=False)
    progress.close()
    assert all(cell_len(line) <= 60 for line in ESCAPE.sub("", stream.getvalue()).splitlines())


def test_sparkline():
    assert sparkline([3, 2, 1], 10) == "█▅▁"
    assert sparkline([1, 1], 10) == "▁▁"
    assert sparkline([], 10) == ""
    assert sparkline([float("nan"), 1.0, 2.0], 10) == "▁█"
    assert len(sparkline(list(range(99)), 16)) == 16
    assert sparkline([1, 2], 10, ascii_only=True).isascii()


def shown(renderable, width=100):
    console, stream = terminal(width)
    console.print(renderable)
    return ESCAPE.sub("", stream.getvalue())


def test_summary_table(facts):
    text = shown(tables.summary_table(stage_summary(facts, "stage1")))
    assert "stage1: 20 planned, 17 distinct: 14 reached, 2 censored, 1 failed, 3 reused" in text
    assert "s1-D14" in text
    assert "s1-E18 failed (crashed)" in text


def test_verdict_view(facts):
    text = shown(tables.verdict_view(document(facts, generated_at=0.0)), 200)
    assert "faster than the baseline" in text
    assert "optim.method" in text
    assert "not decided: optim.lr" in text


def test_status_table():
    text = shown(
        tables.status_table(
            {
                "study": "x",
                "stages": [
                    {"stage": "stage1", "planned": 17, "done": 5, "running": 2, "reached": 4,
                     "censored": 1, "failed": 0, "target": 2.0, "effective_target": 2.0},
                    {"stage": "stage2", "target": 2.0, "effective_target": 2.25},
                ],
                "incumbent": {"id": "s1-A1", "label": "lr=[red]1", "time_to_target_s": 3.2, "point": {}},
                "eta_s": 75.0,
            }
        )
    )  # fmt: skip
    assert "stage1" in text
    assert "lr=[red]1: 3.20 s" in text  # brackets of a label are not markup
    assert "about 75 s left" in text
    assert "stage2 is judged at 2.25 instead of 2" in text
    assert "stage1 is judged" not in text


def test_plan_table(facts):
    plan = facts.stages["stage2"].plan
    text = shown(
        tables.plan_table(
            {
                "study": plan.study,
                "stage": plan.stage,
                "target": plan.target,
                "entries": plan.entries,
                "distinct": plan.distinct,
                "points": [
                    {"id": t.id, "label": t.label, "groups": list(t.groups), "point": dict(t.point),
                     "replicate_of": t.replicate_of}
                    for t in plan.trials
                ],
                "locked": {n: {"value": x.value, "why": x.why} for n, x in plan.locked.items()},
                "varying": {n: list(v) for n, v in plan.varying.items()},
                "open": {"optim.method": "newton_schulz"},
                "depends_on": {"C": "A"},
                "design": dict(plan.design),
                "forecast": {"trial_s": 4.0, "total_s": 48.0},
                "notes": ["a note"],
            }
        ),
        140,
    )  # fmt: skip
    assert "12 entries, 9 distinct" in text
    assert "the same everywhere: projection=on method=polar_express" in text
    assert "= s2-05" in text
    assert "locked: optim.method = polar_express: 3 of the top 3" in text
    assert "varies: optim.lr in 0.01, 0.02, 0.04" in text
    assert "open: optim.method, assumed newton_schulz" in text
    assert "forecast: about 48 s" in text


def test_show_trial(facts):
    trial = facts.stages["stage1"].facts[0]
    (attempt,) = trial.attempts
    record = {
        "attempt": 1, "outcome": attempt.outcome.value, "reason": attempt.reason.value, "message": "",
        "time_to_target_s": 8.05, "censored_at_s": None, "best_loss": attempt.best_loss,
        "steps": attempt.steps, "phases": attempt.phases.as_dict(), "target": 3.25,
        "curve": [[e.clock.train, e.step, e.tokens, e.value] for e in attempt.curve],
    }  # fmt: skip
    planned = trial.trial
    base = {
        "study": "synthetic", "stage": "stage1", "id": planned.id, "label": planned.label,
        "seed": planned.seed, "point": dict(planned.point),
    }  # fmt: skip
    text = shown(tables.show_trial({**base, "attempts": [record]}))
    assert "attempt 1: reached (target) in 8.05 s" in text
    assert "optim.lr" in text
    assert "train s" in text
    assert "near miss" not in text
    assert "no attempt has ended yet" in shown(tables.show_trial({**base, "attempts": []}))

    # The stage went over to a fallback; at it, the larger slice refused what the probe had met.
    misses = [[0.1 * n, n, 3.24, None if n == 2 else 3.26] for n in range(1, 6)]
    record |= {"outcome": "censored", "reason": "steps", "near_misses": misses}
    text = shown(tables.show_trial({**base, "attempts": [record]}), 200)
    assert "attempt 1: censored (steps), but reached 3.25 in 8.05 s" in text
    assert (
        "near miss of target 3.25 at step 1: 3.24 on the probe, but 3.26 on the larger "
        "(confirmation) slice: it does not count"
    ) in text
    assert "at step 2: 3.24 on the probe, but no number on the larger" in text
    assert "at step 4" not in text
    assert "2 more near misses: see --json" in text
    record |= {"outcome": "reached", "time_to_target_s": None, "censored_at_s": 9.0}
    text = shown(tables.show_trial({**base, "attempts": [record]}), 200)
    assert "(steps), but did not reach 3.25 after 9.00 s" in text


def test_time_left_has_an_uncertainty_that_shrinks_with_what_is_known():
    assert time_left([], 5, 2) is None
    assert time_left([1.0], 0, 2) is None
    few = time_left([10.0, 14.0], 12, 2)
    many = time_left([10.0, 14.0] * 10, 12, 2)
    assert few[0] == many[0] == 72.0
    assert 0 < few[1] < many[1] < 72 < many[2] < few[2]


def test_a_forecast_is_the_median_of_what_others_still_needed():
    curve = [(0, 0.0, 6.0), (10, 1.0, 4.0), (20, 2.0, 3.0), (30, 3.0, 2.0)]
    assert expected_s([(10, 2.0, 3.5)], [curve], 2.0) == pytest.approx(2.0 + 15 * 2.0 / 10)
    assert expected_s([(0, 0.0, 6.0)], [curve], 2.0) is None
    assert expected_s([(10, 2.0, 3.5)], [], 2.0) is None


def test_the_cap_the_time_to_beat_and_what_racing_saved_are_shown(facts):
    progress = LiveProgress(terminal(120)[0], Limits(steps=10_000, trial_s=20.0))
    play(progress, facts, stop_before_end=True)
    stage = facts.stages["stage1"]
    capped = next(t for t in stage.facts if t.trial.id == "s1-D16")
    progress.trial_started(capped.trial, "cpu0")
    progress.trial_ended(capped.trial, capped.counted, None)
    progress.trial_started(stage.facts[10].trial, "cpu0")
    progress.bounded(stage.facts[10].trial, 3.4)
    for e in stage.facts[10].counted.curve[:6]:
        progress.evaluated(stage.facts[10].trial, e.step, e.clock.train, e.value)
    probe, stream = terminal(120)
    probe.print(progress, soft_wrap=False)
    progress.close()
    shown = ESCAPE.sub("", stream.getvalue())
    assert " of 3.40 s ≈ 3." in shown
    assert "to beat: 3." in shown
    assert "racing has saved at most 14.0 s" in shown
