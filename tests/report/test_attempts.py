"""What the report and an export say of phases, extensions, and each attempt's seconds; its commands."""

from __future__ import annotations

import dataclasses
import json

from sweeper.cli import build_parser
from sweeper.commands.exported import read_trials
from sweeper.commands.output import attempt_document
from sweeper.objective import crossing, near_misses
from sweeper.report import json_report, write_report
from sweeper.report.attempts import about_of
from sweeper.report.checker import check, numbers_in, unknown_numbers
from sweeper.study_file import load
from sweeper.trial import Reason
from tests.fakes.facts import TARGET, Clockwork, make_study, make_sweep

SCALED = """
[study]
name = "mine"
[objective]
target = 2.0
[trainer]
command = ["train", "--config", "{config}"]
config = "base.toml"
[limits]
steps = 100
trial_s = 60
[space.lr]
type = "float"
low = 0.001
high = 0.1
baseline = 0.01
[[stage1.group]]
name = "A"
vary = { lr = [0.01, 0.02] }
[scale.small.study]
name = "mine-small"
"""


def sweep_with_phase_and_extension():
    """A sweep whose trial s1-A1 began with a phase's checkpoint and was extended afterwards."""
    facts = make_sweep()
    work = Clockwork(make_study())
    work.trial("prepare", "p-one-1", {}, None, reason=Reason.STEPS, stop_s=2.0)
    phases = work.stage("prepare", design={"kind": "prepare", "about": {}})
    work.trial("extend", "x-s1-A1-1", {}, 9.0)
    about = {"of": "s1-A1", "attempt": 1, "from_step": 77, "steps": 900, "target": 2.375}
    extended = work.stage("extend", design={"kind": "extend", "about": {"x-s1-A1-1": about}})
    stage = facts.stages["stage1"]
    first = stage.facts[0]
    said = {"start": "resumed", "of": "p-one-1", "attempt": 1, "step": 61, "extends": False}
    begun = dataclasses.replace(
        first.attempts[0], device={**first.attempts[0].device, "starts_from": said}
    )
    first = dataclasses.replace(first, attempts=(begun,))
    stage = dataclasses.replace(stage, facts=(first, *stage.facts[1:]))
    return dataclasses.replace(
        facts,
        stages={**facts.stages, "stage1": stage},
        unranked={"prepare": phases, "extend": extended},
    )


def test_a_report_has_extensions_phases_and_the_seconds_of_every_attempt(tmp_path):
    facts = sweep_with_phase_and_extension()
    written = write_report(facts, tmp_path)
    assert check(tmp_path, facts) == []
    found = json.loads(written.json.read_text())

    (row,) = found["extensions"]
    parent = facts.stages["stage1"].facts[0].counted
    own = facts.unranked["extend"].facts[0].counted
    assert (row["of"], row["from_step"], row["to_step"], row["until"]) == ("s1-A1", 77, 900, 2.375)
    assert (row["best_before"], row["best"]) == (parent.best_loss, own.best_loss)
    assert row["train_s"] == own.phases.train

    rows = {r["id"]: r for r in found["timeline"]}
    assert rows["p-one-1"]["stage"] == "prepare"
    assert rows["s1-A1"]["phases"]["train"] == round(parent.phases.train, 3)
    assert rows["s1-A1"]["begins_with"]["of"] == "p-one-1"
    wall_s = sum(r["wall_s"] for r in found["timeline"])
    train_s = sum(r["phases"].get("train", 0.0) for r in found["timeline"])
    share = found["phase_shares"]["train"]
    assert abs(share - 100 * train_s / wall_s) < 1e-9, "what the page's caption says is in the JSON"
    text, page = written.markdown.read_text(), written.html.read_text()
    for shown in (text, page):
        assert "p-one-1 at step 61" in shown
        assert "s1-A1 at step 77" in shown
        assert "of phases and extensions" in shown
    assert "## Extensions" in text
    assert 'id="h-extensions"' in page
    assert sum(row["trials"] for row in found["stages"]) == 17 + 12 + 12, "and no ranking has them"

    others = dataclasses.replace(facts, unranked={})
    assert any(line.startswith("extensions") for line in check(tmp_path, others))


def test_the_hour_of_a_report_is_a_value_of_it():
    known = set(numbers_in("2026-11-21T13:28:00+00:00"))
    assert unknown_numbers("2026-11-21 13:28 UTC", known) == []


def test_an_export_names_the_parent_and_a_replay_leaves_the_unranked_out(tmp_path):
    facts = sweep_with_phase_and_extension()
    documents = [
        attempt_document(facts.study, t.trial, a, TARGET, about_of(stage, t.trial.id))
        for stage in facts.every()
        for t in stage.facts
        for a in t.attempts
    ]
    by_id = {d["id"]: d for d in documents}
    keys = ("parent", "parent_attempt", "parent_step", "extends", "target")
    said = {name: tuple(by_id[name][key] for key in keys) for name in by_id}
    assert said["s1-A1"] == ("p-one-1", 1, 61, False, TARGET)
    assert said["x-s1-A1-1"] == ("s1-A1", 1, 77, True, 2.375)
    assert said["s1-A2"] == (None, None, None, False, TARGET)
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps(d) + "\n" for d in documents if d["stage"] != "confirm"))
    read = {t.trial.stage for t in read_trials(path, facts.study)}
    assert read == {"stage1", "stage2"}


def test_the_commands_that_repeat_a_sweep_name_scale_block_target_and_options(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "study.toml").write_text(SCALED)
    (folder / "base.toml").write_text("lr = 0.01\n")
    small = load(folder, scale="small")
    assert small.command("report") == "sweep report mine --scale small"
    assert load(folder / "study.toml").command("report") == "sweep report mine"
    (folder / "other.toml").write_text(SCALED)
    assert load(folder / "other.toml").command("plan") == "sweep plan mine/other.toml"

    block = small.block("NVIDIA H100")
    facts = sweep_with_phase_and_extension()
    study = facts.study.model_copy(update={"words": block.words})
    asked = dataclasses.replace(facts.stages["stage2"], options={"from_top": 9})
    facts = dataclasses.replace(facts, study=study, stages={**facts.stages, "stage2": asked})
    named = "mine --scale small --node-kind 'NVIDIA H100'"
    lines = json_report.document(facts, generated_at=1.0)["reproduce"]["commands"]
    assert lines == [
        f"sweep stage1 {named}",
        f"sweep stage2 {named} --from-top 9",
        f"sweep confirm {named} --top {study.confirm.top} --repeats {study.confirm.repeats}",
        f"sweep extend s1-A1 --study {named} --steps 900 --to 2.375",
        f"sweep report {named}",
    ]

    # For another target than the study's: said by the command line now, or by what was planned then.
    now = study.model_copy(update={"switches": ("--target", repr(TARGET))})
    other = study.objective.model_copy(update={"target": 9.0})
    then = study.model_copy(update={"objective": other})
    for changed in (now, then):
        document = json_report.document(dataclasses.replace(facts, study=changed), generated_at=1.0)
        lines = document["reproduce"]["commands"]
        assert all(line.endswith(f" --target {TARGET!r}") for line in lines[:3])
    for line in lines:
        build_parser().parse_args(line.replace("'NVIDIA H100'", "H100").split()[1:])


def test_an_export_keeps_what_the_larger_slice_said(tmp_path):
    """Otherwise a near miss would be a crossing for `sweep replay`."""
    facts = make_sweep()
    known = facts.stages["stage1"].facts[0]
    attempt = known.counted
    last = attempt.curve[-1]
    refusal = last._replace(slice="confirmation", value=TARGET + 0.125)
    later = last._replace(step=last.step + 1, tokens=last.tokens + 100)
    attempt = dataclasses.replace(attempt, curve=(*attempt.curve, refusal, later))
    document = attempt_document(facts.study, known.trial, attempt, TARGET)
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps(document) + "\n")
    (read,) = read_trials(path, facts.study)
    assert near_misses(read.attempts[0].curve, TARGET) == near_misses(attempt.curve, TARGET) != ()
    found = crossing(read.attempts[0].curve, TARGET, "train")
    assert found.upper_s == later.clock.train
    assert found.lower_s == last.clock.train
