"""The study mainrun end to end, its small form with a budget of few steps."""

import json
import shutil
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "mainrun"


@pytest.fixture
def shortened(sweep):
    """A copy of the study whose small form has 16 steps instead of 120."""
    folder = sweep.folder / "mainrun"
    shutil.copytree(STUDY, folder)
    study, small = folder / "study.toml", folder / "small.toml"
    sweep.edit(study, "steps = 120\n", "steps = 16\n")
    sweep.edit(study, '"]\nhigh = 40\nbaseline = 12', '"]\nhigh = 8\nbaseline = 2')
    sweep.edit(study, "[0, 24]", "[0, 8]")
    sweep.edit(small, "max_steps = 120", "max_steps = 16")
    sweep.edit(small, "warmup_steps = 12", "warmup_steps = 2")
    sweep.edit(small, "every_tokens = 12_288", "every_tokens = 4096")
    sweep.edit(small, "probe_tokens = 10_240", "probe_tokens = 2048")
    return folder


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_small_form_beats_the_optimised_arm_under_the_frozen_protocol(shortened, sweep):
    words = ("run", str(shortened), "--scale", "small", "--top", "1", "--repeats", "2", "--json")
    document = sweep.start(*words).finish(within_s=240).json()
    assert document["exit"] in (0, 4)  # 4: in so few steps nobody need come to the level
    assert document["goal"] == "final"
    assert document["failed"] == document["missing"] == 0
    report = sweep.home / "reports" / "mainrun-small"
    found = json.loads((report / "report.json").read_text())
    assert found["winner"]["final"] < found["baseline"]["final"]
    assert found["speedup"]["of"] == "metric"
    assert found["reproduce"]["frozen"]["data.batch_size"] == 32
    arms = {arm["role"] for arm in found["steps"]["arms"]}
    assert arms == {"baseline", "arm", "winner"}
    claims = {row["id"]: row for row in found["claims"]["rows"]}
    assert claims["gain-30"]["contradiction"]
    assert claims["gain-24"]["measured"]["n"] == 3
    assert claims["floor"]["measured"]["n"] == 2
    assert claims["floor"]["measured"]["mean"] > 0
    # The frozen protocol: every trial had the same steps and scored the same tokens.
    scored, steps = set(), set()
    for folder in sweep.attempts("mainrun-small"):
        events = [json.loads(line) for line in (folder / "trainer.jsonl").read_text().splitlines()]
        scored.add(json.dumps(events[0]["scored"]["probe"]))
        steps.add(events[-1]["step"])
    assert len(scored) == 1
    assert steps == {16}
    sweep("report", str(shortened), "--scale", "small", "--check")


def test_a_study_that_touches_the_frozen_protocol_is_refused(shortened, sweep):
    sweep.edit(
        shortened / "study.toml",
        'bases = [{ "optim.adam.matrix_lr" = 3e-3 }]\n\n# -',
        'bases = [{ "eval.probe_tokens" = 4096 }]\n\n# -',
    )
    done = sweep("plan", str(shortened), exit=2)
    assert '"eval.probe_tokens" is frozen: every trial has the base\'s value' in done.err
    assert "study.toml:" in done.err


def test_the_claims_arithmetic_needs_no_run(sweep):
    rows = sweep("report", str(STUDY), "--claims", "--json").json()["rows"]
    refuted = {row["id"] for row in rows if row["contradiction"]}
    assert refuted == {"gain-30", "baseline-1.6"}
