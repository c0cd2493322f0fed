"""The babylm study: its plan, and its small form, shortened, from its file to report and doctor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sweeper.design.groups import plan_stage1
from sweeper.study_file import load

STUDY = Path(__file__).resolve().parents[2] / "studies" / "babylm"
LR, BATCH = "optim.adam.lr", "data.batch_size"
ENOUGH_S = 540.0  # it takes a minute or so; a busy machine may need a multiple
SHORTER = {
    "steps = 480": "steps = 20",
    "target = 3.0\nfallback = [3.2]": "target = 4.3\nfallback = [4.6]",
    "runs = 9 # up to five parameters may vary, beside two replicates\nreplicates = 2": (
        "runs = 7\nreplicates = 1"
    ),
    "top = 2\nrepeats = 3": "top = 1\nrepeats = 1",
    "[resources]\ngpus = 1\n": "[resources]\ngpus = 1\n\n[validity]\ngate = false\n",
}


def test_the_arms_of_the_document():
    plan = plan_stage1(load(STUDY), {})
    first, second = plan.trials[:2]
    assert (first.point[LR], first.point[BATCH]) == (1e-4, 24 * 3)
    assert (second.point[LR], second.point[BATCH]) == (2e-4, 32 * 8)
    assert second.point["schedule.warmup_share"] == 0.06
    assert plan.entries == plan.distinct == 15


@pytest.mark.parametrize(("scale", "entries"), [("small", 10), ("restart", 8)])
def test_the_smaller_forms_have_the_same_parameters(scale, entries):
    small = load(STUDY, scale=scale)
    assert plan_stage1(small, {}).distinct == entries
    assert set(load(STUDY).space.parameters) <= set(small.space.parameters)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_small_form_from_its_file_to_its_report(sweep, tmp_path):
    """20 steps, one layer and easy targets; everything else is the small form."""
    folder = tmp_path / "babylm"
    shutil.copytree(STUDY, folder, ignore=shutil.ignore_patterns("plateau"))
    text = (folder / "study.toml").read_text(encoding="utf-8")
    for old, new in SHORTER.items():
        assert old in text
        text = text.replace(old, new)  # (other tests run beside this one: times are not the point)
    (folder / "study.toml").write_text(text, encoding="utf-8")
    small = (folder / "small.toml").read_text(encoding="utf-8")
    for old, new in {
        "480": "20",
        "layers = 2": "layers = 1",
        "probe_tokens = 4096": "probe_tokens = 1024",
        "confirmation_tokens = 8192": "confirmation_tokens = 2048",
        "every_tokens = 32_768": "every_tokens = 4096",
    }.items():
        assert old in small
        small = small.replace(old, new)
    (folder / "small.toml").write_text(small, encoding="utf-8")

    done = sweep.start("run", str(folder), "--scale", "small", "--json").finish(ENOUGH_S)
    assert done.code == 0, done.text
    document = done.json()
    assert document["failed"] == 0
    assert document["best"]["point"][LR] > 5e-4  # the low rate is not the fastest
    report = sweep.home / "reports" / "babylm-small" / "report.html"
    assert report.stat().st_size > 10_000

    runs = list((sweep.home / "runs" / "babylm-small").glob("*/attempt-*/events.jsonl"))
    scored = [
        event["metrics"]["blimp"]
        for run in runs
        for event in map(json.loads, run.read_text(encoding="utf-8").splitlines())
        if event.get("slice") == "pairs"
    ]
    assert len(scored) >= 10
    assert all(0.2 < accuracy < 0.8 for accuracy in scored)  # hardly trained: near chance

    (run,) = sweep("doctor", str(runs[0].parent), "--json").json()["runs"]
    assert run["over"]
    assert "lr_zero" not in [finding["rule"] for finding in run["findings"]]
