"""The continuation study from its plan to its report, shortened, and a trial that goes on afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORTER = {
    "steps = 400": "steps = 40",
    "steps = 360": "steps = 28",
    "[scale.small.phase.one]\nsteps = 40": "[scale.small.phase.one]\nsteps = 12",
    "target = 2.25": "target = 2.95",
    "fallback = [2.4, 2.6]": "fallback = [3.2]",
    "top = 2\nrepeats = 4": "top = 1\nrepeats = 2",
    "from_top = 3\nruns = 6": "from_top = 3\nruns = 6\nreplicates = 1",
    '  { "schedule.kind" = "cosine", "schedule.floor" = 0.0 },\n': "",
    '  { "schedule.kind" = "linear", "schedule.floor" = 0.1 },\n': "",
}
SMALL = ("--scale", "small")


@pytest.fixture
def study(sweep):
    """The study as it is shipped, with fewer steps and an easier target."""
    folder = sweep.folder / "continuation"
    shutil.copytree(ROOT / "studies" / "continuation", folder)
    path = folder / "study.toml"
    for before, after in reversed(SHORTER.items()):
        sweep.edit(path, before, after)
    small = folder / "small.toml"
    text = small.read_text().replace("every_tokens = 32768", "every_tokens = 4096")
    for before, after in {
        "warmup_steps = 10": "warmup_steps = 2",
        "layers = 2": "layers = 1",
        "probe_tokens = 8192": "probe_tokens = 1024",
        "confirmation_tokens = 12288": "confirmation_tokens = 2048",
    }.items():
        assert before in text
        text = text.replace(before, after)
    small.write_text(text)
    return str(path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_both_strategies_side_by_side_and_a_trial_that_is_extended(sweep, study):
    plan = sweep("plan", study, *SMALL, "--svg", "drawn", "--json").json()
    assert plan["schedules"].keys() == {"extended", "restarted", "scratch"}
    assert plan["schedules"]["extended"].startswith("cosine, steps 12 to 39")
    assert plan["schedules"]["restarted"].startswith("cosine, steps 0 to 27")
    assert {p.name for p in (sweep.folder / "drawn").iterdir()} == {
        f"{name}.svg" for name in plan["schedules"]
    }

    done = sweep.start("run", study, *SMALL).finish(within_s=300)
    assert done.code == 0, done.text
    assert "schedule of extended: cosine, steps 12 to 39" in done.out
    document = json.loads(
        (sweep.home / "reports" / "continuation-small" / "report.json").read_text()
    )
    asked = {q["text"]: q for q in document["questions"]}
    assert any("Extended" in text for text in asked)
    trials = sweep("export", study, *SMALL, "--trials", "--json").json()["trials"]
    begun = {t["point"]["start_from"]: t for t in trials if t["stage"] == "stage1"}
    assert begun["extended"]["device"]["starts_from"]["step"] == 12
    assert begun["extended"]["device"]["starts_from"]["of"] == "p-one-1"
    assert begun["restarted"]["device"]["starts_from"].get("step", 0) == 0
    assert "starts_from" not in begun["scratch"]["device"]
    for one in begun.values():  # all count from where they started, not from their phase
        assert one["steps"] <= 40
    seeds = {t["seed"] for t in trials}
    assert {p.name for p in (sweep.home / "runs" / "continuation-small").glob("p-one-*")} == {
        f"p-one-{seed}" for seed in seeds
    }

    # Only what a closed stage keeps has a checkpoint; the phases do.
    words = ("p-one-1", "--study", study, *SMALL)
    shown = sweep("extend", *words, "--steps", "20", "--show").out
    assert "p-one-1 from step 12 to 20" in shown
    assert "constant, steps 12 to 19" in shown
    extended = sweep("extend", *words, "--steps", "20", "--json").json()
    assert (extended["trial"], extended["reason"], extended["steps"]) == (
        "x-p-one-1-1", "steps", 20,
    )  # fmt: skip
    again = sweep("extend", *words, "--steps", "20", "--json").json()
    assert again["trial"] == "x-p-one-1-1"
    assert (
        sweep("show", "x-p-one-1-1", "--study", study, *SMALL, "--json").json()["attempts"][0][
            "steps"
        ]
        == 20
    )
    refusals = [
        (("--steps", "12"), 2, "at step 12 and it would end after 12: nothing is left to do"),
        ((), 2, "how far? expected --steps N (in all), --to X, or both"),
        (("--to", "9.0", "--steps", "30"), 2, "has reached val_loss 9 already"),
    ]
    for more, code, says in refusals:
        assert says in sweep("extend", *words, *more, exit=code).err
    said = sweep("db", "verify", study, *SMALL, "--json", exit=None).json()["differences"]
    assert not [words for words in said if words.startswith(("p-", "x-"))]

    # The extension is new to the report and to an export, each with what it goes on with.
    assert "extensions" in sweep("report", study, *SMALL, "--check", exit=1).out
    sweep("report", study, *SMALL)
    assert sweep("report", study, *SMALL, "--check").code == 0
    document = json.loads(
        (sweep.home / "reports" / "continuation-small" / "report.json").read_text()
    )
    (row,) = document["extensions"]
    assert (row["id"], row["of"], row["from_step"], row["to_step"], row["steps"]) == (
        "x-p-one-1-1", "p-one-1", 12, 20, 20,
    )  # fmt: skip
    began = {r["id"]: r["begins_with"] for r in document["timeline"]}
    assert began["x-p-one-1-1"]["extends"]
    assert began["p-one-1"] is None
    commands = document["reproduce"]["commands"]
    assert commands[0] == "sweep stage1 continuation --scale small"
    assert "sweep extend p-one-1 --study continuation --scale small --steps 20" in commands
    exported = sweep("export", study, *SMALL, "--trials", "--json").json()["trials"]
    parents = {t["id"]: (t["parent"], t["parent_step"], t["extends"]) for t in exported}
    assert parents["x-p-one-1-1"] == ("p-one-1", 12, True)
    assert parents["p-one-1"] == (None, None, False)
    assert all("train" in t["phases"] for t in exported)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_checkpoints_that_are_missing_or_of_another_model_are_clear_errors(sweep, study):
    path = Path(study)
    there = '[start.scratch]\ncheckpoint = "gone.pt"\narguments = ["--init-from", "{checkpoint}"]\n'
    sweep.edit(path, "[start.scratch]\n", there)
    said = sweep("stage1", study, *SMALL, exit=3).err
    assert "[start.scratch] checkpoint" in said
    assert "gone.pt is not there" in said
    assert not sweep.attempts("continuation-small")

    (path.parent / "gone.pt").write_bytes(b"no checkpoint")
    sweep("stage1", study, *SMALL, "--max-trials", "3", exit=None)
    trials = sweep("export", study, *SMALL, "--trials", "--json").json()["trials"]
    broken = [t for t in trials if t["point"].get("start_from") == "scratch"]
    for one in broken:
        assert one["outcome"] == "failed"
