"""A study from its file to its report, and every command that looks at what was run."""

from __future__ import annotations

import csv
import io
import json
import shlex
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("whole path")  # its fixtures are made once

SUMMARY_KEYS = {
    "study", "stage", "target", "effective_target", "planned", "distinct", "reached", "censored",
    "failed", "reused", "best", "top", "wall_s", "train_s", "saved_s", "exit",
}  # fmt: skip
ATTEMPT_KEYS = {
    "study", "stage", "id", "label", "groups", "point", "seed", "outcome", "reason",
    "time_to_target_s", "censored_at_s", "target", "steps", "tokens", "phases", "best_loss",
    "tokens_per_s", "peak_memory_bytes", "device", "fingerprint", "validity", "curve",
}  # fmt: skip
PLAN_KEYS = {
    "study", "stage", "target", "entries", "distinct", "points", "locked", "varying", "open",
    "depends_on", "design", "forecast",
}  # fmt: skip
BEST = {"optim.lr": 0.01, "data.batch": 64, "model.tau_s": 1.0}


@pytest.fixture(scope="module")
def finished(module_sweep):
    """(the program, the study's path, the document of `sweep run --json`), run once."""
    study = module_sweep.write()
    return module_sweep, str(study), module_sweep("run", str(study), "--json").json()


def test_the_best_configuration_wins(finished):
    sweep, _, document = finished
    assert document.keys() >= SUMMARY_KEYS
    assert document["exit"] == 0
    assert document["stage"] == "confirm"
    best = document["best"]
    assert best.keys() >= {
        "id", "label", "time_to_target_s", "steps_to_target", "seconds_per_step", "point",
    }  # fmt: skip
    assert best["point"] == BEST
    assert best["time_to_target_s"] == pytest.approx(1.0986, abs=0.01)  # ln 3
    assert [row["time_to_target_s"] for row in document["top"]] == sorted(
        row["time_to_target_s"] for row in document["top"]
    )
    assert document["saved_s"].keys() >= {"cap", "forecast", "dedupe"}
    for name in ("report.html", "report.md", "report.json"):
        assert (sweep.home / "reports" / "trivial" / name).stat().st_size > 1000


def test_running_it_again_runs_nothing(finished):
    sweep, study, document = finished
    before = sweep.attempts()
    again = sweep("run", study, "--json")
    assert again.json() | {"wall_s": 0} == document | {"wall_s": 0}
    assert sweep.attempts() == before
    assert "started on" not in again.err


@pytest.mark.long
@pytest.mark.parametrize("stage", ["stage1", "stage2", "confirm"])
def test_one_stage_again(finished, stage):
    sweep, study, _ = finished
    document = sweep(stage, study, "--json").json()
    assert document.keys() >= SUMMARY_KEYS
    assert document["stage"] == stage
    assert document["failed"] == document["censored"] == 0
    assert document["best"]["point"]["model.tau_s"] == 1.0


def test_counts_add_up(finished):
    sweep, study, _ = finished
    first = sweep("stage1", study, "--json").json()
    assert first["planned"] == 11
    assert first["distinct"] == first["reached"] == 9
    assert first["reused"] == 2
    second = sweep("stage2", study, "--json").json()
    assert second["planned"] == second["reached"] == 8


def test_status(finished):
    sweep, study, _ = finished
    document = sweep("status", study, "--json").json()
    assert document.keys() >= {"study", "stages", "incumbent", "eta_s"}
    assert [s["stage"] for s in document["stages"]] == ["stage1", "stage2", "confirm"]
    for stage in document["stages"]:
        assert stage.keys() >= {
            "stage", "planned", "done", "running", "reached", "censored", "failed",
        }  # fmt: skip
        assert stage["planned"] == stage["done"] == stage["reached"], document
        assert stage["running"] == 0
    assert document["incumbent"]["point"] == BEST
    assert document["eta_s"] is None
    shown = sweep("status", study)
    assert shown.out.startswith(f"study trivial: {study} (given on the command line")
    assert "stage2" in shown.out


@pytest.mark.parametrize("stage", ["1", "2"])
def test_plan(finished, stage):
    sweep, study, _ = finished
    document = sweep("plan", study, "--stage", stage, "--json").json()
    assert document.keys() >= PLAN_KEYS
    assert document["frozen"] is True
    assert document["open"] == {}
    for point in document["points"]:
        assert point.keys() >= {"id", "label", "groups", "point", "replicate_of"}
    assert len({p["id"] for p in document["points"]}) == len(document["points"])
    if stage == "1":
        assert document["depends_on"] == {"C": "A"}
        assert document["entries"] == 11
        winners = {p["point"]["model.tau_s"] for p in document["points"] if "C" in p["groups"]}
        assert winners == {1.0}
    else:
        assert len(document["points"]) == 8
        assert document["design"].keys() >= {
            "kind", "runs", "d_efficiency", "max_alias", "balance",
        }  # fmt: skip
        assert document["varying"]
        for lock in document["locked"].values():
            assert lock.keys() == {"value", "why"}
    assert "s1-A1" in sweep("plan", study).out


def test_a_plan_before_anything_ran(sweep_without_database):
    sweep = sweep_without_database
    document = sweep("plan", str(sweep.write()), "--json").json()
    assert document["frozen"] is False
    assert document["open"] == {"model.tau_s": 2.0}
    assert document["forecast"]["trial_s"] is None
    assert "open" in sweep("plan", str(sweep.folder / "trivial")).out


def test_show(finished):
    sweep, study, document = finished
    best = sweep("status", study, "--json").json()["incumbent"]["id"]
    shown = sweep("show", best, "--study", study, "--json").json()
    assert shown["id"] == best
    assert shown["point"] == BEST
    assert shown["attempts"][0].keys() >= ATTEMPT_KEYS
    assert shown["attempts"][0]["reason"] == "target"
    text = sweep("show", best, "--study", study).out
    assert best in text
    assert "reached" in text
    assert document["best"]["point"] == shown["point"]


def test_show_of_a_trial_that_is_none(finished):
    sweep, study, _ = finished
    done = sweep("show", "s1-A9", "--study", study, exit=2)
    assert "no trial 's1-A9'" in done.err
    assert "s1-A" in done.err.partition("did you mean")[2]


def test_logs(finished):
    sweep, study, _ = finished
    assert sweep("logs", "s1-A1", "--study", study).out == ""
    assert "no trial 'nope'" in sweep("logs", "nope", "--study", study, exit=2).err


def test_export_best(finished):
    sweep, study, _ = finished
    toml = tomllib.loads(sweep("export", study, "--best").out)
    assert toml["optim"]["lr"] == 0.01
    assert toml["data"]["batch"] == 64
    assert toml["model"] == {"tau_s": 1.0, "step_s": 0.1}
    assert json.loads(sweep("export", study, "--best", "--format", "json").out) == toml
    words = shlex.split(sweep("export", study, "--best", "--format", "args").out)
    assert "trivial_trainer.py" in words[1]
    path = sweep.folder / "best.toml"
    done = sweep("export", study, "--best", "--out", str(path))
    assert tomllib.loads(path.read_text(encoding="utf-8")) == toml
    assert str(path) in done.text


def test_export_trials(finished):
    sweep, study, _ = finished
    lines = sweep("export", study, "--trials", "--format", "jsonl").out.splitlines()
    facts = [json.loads(line) for line in lines]
    assert len(facts) == 9 + 8 + 6
    assert len({(f["stage"], f["id"]) for f in facts}) == len(facts)
    for fact in facts:
        assert fact.keys() >= ATTEMPT_KEYS
        assert fact["outcome"] == "reached"
        assert fact["censored_at_s"] is None
        train_s, step, tokens, loss = fact["curve"][-1]
        assert step == fact["steps"]
        assert tokens == fact["tokens"]
        assert loss <= 2.0
        assert fact["time_to_target_s"] <= train_s
    rows = list(
        csv.DictReader(io.StringIO(sweep("export", study, "--trials", "--format", "csv").out))
    )
    assert [row["id"] for row in rows] == [fact["id"] for fact in facts]
    assert {float(row["point.optim.lr"]) for row in rows} == {f["point"]["optim.lr"] for f in facts}


@pytest.mark.parametrize("words", [("--best", "--format", "csv"), ("--trials", "--format", "toml")])
def test_export_in_a_form_that_there_is_not(finished, words):
    sweep, study, _ = finished
    done = sweep("export", study, *words, exit=2)
    assert words[-1] in done.err
    assert "expected" in done.err


def test_report_for_another_target(finished):
    sweep, study, _ = finished
    folder = sweep.folder / "elsewhere"
    paths = sweep("report", study, "--out", str(folder), "--target", "3", "--json").json()
    assert Path(paths["html"]) == folder / "report.html"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["target"] == 3


def test_check(finished):
    sweep, study, _ = finished
    document = sweep("check", study, "--json").json()
    assert document["exit"] == 0
    assert [c["check"] for c in document["checks"]] == [
        "study", "trainer", "devices", "frozen plans", "database",
    ]  # fmt: skip
    assert all(c["ok"] for c in document["checks"])
    assert "11 entries, 9 distinct" in sweep("check", study).out


def test_studies(finished):
    sweep, _, _ = finished
    document = sweep("studies", "--json").json()
    names = {s["name"]: s for s in document["studies"]}
    assert names.keys() >= {"ngpt", "quickstart"}
    assert all(s["problem"] is None for s in names.values())
    assert "quickstart" in sweep("studies").out


def test_db_status(finished):
    sweep, _, _ = finished
    document = sweep("db", "status", "--json").json()
    assert document["embedded"] is False
    assert document["schema"]["state"] == "current"
    assert "***" in document["url"]
    assert sweep("db", "upgrade", "--json").json()["before"] == document["schema"]["head"]


@pytest.mark.long
def test_every_command_gives_one_json_document(finished):
    """With --json, whatever is asked: stdout is one document, also where something is wrong."""
    sweep, study, _ = finished
    for words in (
        ("export", study, "--best"),
        ("export", study, "--best", "--format", "args"),
        ("export", study, "--trials"),
        ("logs", "s1-A1", "--study", study),
        ("db", "url"),
        ("db", "status"),
        ("report", study),
    ):
        assert sweep(*words, "--json").json() is not None, words
    for words, code in (
        (("show", "nope", "--study", study), 2),
        (("plan", "no-such-study"), 2),
        (("db", "up"), 2),
        (("stage1", study, "--devices", "0"), 3),
    ):
        document = sweep(*words, "--json", exit=code).json()
        assert document["exit"] == code
        assert document["error"]


def test_target_of_the_command_line_is_another_plan(finished):
    """The plan was frozen on the study's own target: a different one is refused, not mixed in."""
    sweep, study, _ = finished
    done = sweep("stage1", study, "--target", "2.5", exit=2)
    assert "objective.target: 2.0 -> 2.5" in done.err


@pytest.mark.long
def test_target_of_the_command_line(sweep):
    study = sweep.write()
    document = sweep("stage1", str(study), "--target", "3.5", "--json").json()
    assert document["target"] == 3.5
    assert document["best"]["time_to_target_s"] < 0.3
    stage = sweep("status", str(study), "--json").json()["stages"][0]
    assert stage["target"] == stage["effective_target"] == 3.5


@pytest.mark.long
def test_max_trials_and_on(sweep):
    study = str(sweep.write())
    first = sweep("run", study, "--max-trials", "3", "--json", exit=6)
    assert first.json()["reached"] == 3
    assert "--max-trials is used up" in first.err
    assert len(sweep.attempts()) == 3
    before = [folder.stat().st_ino for folder in sweep.attempts()]
    rest = sweep("stage1", study, "--json").json()
    assert rest["reached"] == 9
    assert rest["exit"] == 0
    assert [folder.stat().st_ino for folder in sweep.attempts()][:3] == before
    assert len(sweep.attempts()) == 9


@pytest.mark.long
def test_from_top_is_part_of_the_frozen_plan(sweep):
    study = str(sweep.write())
    sweep("stage1", study)
    done = sweep("stage2", study, "--from-top", "3", "--max-trials", "1", exit=6)
    assert "--max-trials is used up" in done.text
    refused = sweep("stage2", study, "--from-top", "2", exit=2)
    assert "--from-top 3" in refused.err
    assert sweep("stage2", study, "--from-top", "3", "--json").json()["reached"] == 8
    assert sweep("stage2", study, "--json").json()["reached"] == 8  # 3 is what it was planned with


def test_the_embedded_database(sweep_of_its_own):
    sweep = sweep_of_its_own
    study = str(sweep.write())
    document = sweep("run", study, "--json").json()
    assert document["best"]["point"] == BEST
    state = sweep("db", "status", "--json").json()
    assert state["embedded"] is True
    assert sweep("status", study, "--json").json()["stages"][0]["reached"] == 9
    assert sweep("db", "down", "--json").json()["stopped"] is True
    assert sweep("db", "status", "--json").json()["running"] is False
