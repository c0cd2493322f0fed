"""The examples of docs/your-script.md, really run: a loop of any Python script, and an awk program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def example(sweep):
    def copy(name):
        shutil.copytree(EXAMPLES / name, sweep.folder / name)
        return str(sweep.folder / name)

    return copy


def steps_to(facts, loss, parameter):
    """The step of each trial's first line at or below a loss, by its parameter's value."""
    return {
        fact["point"][parameter]: min(
            (step for _, step, _, value in fact["curve"] if value <= loss), default=None
        )
        for fact in facts
    }


@pytest.mark.long
def test_a_loop_of_any_python_script(sweep, example):
    study = example("any-loop")
    subprocess.run([sys.executable, "train.py"], cwd=study, check=True, timeout=60)
    assert {path.name for path in Path(study).iterdir()} == {"train.py", "study.toml"}
    done = sweep("stage1", study, "--json").json()
    assert (done["distinct"], done["failed"]) == (4, 0)
    facts = sweep.facts(Path(study))
    assert {fact["clock_source"] for fact in facts} == {"trainer"}
    steps = steps_to([f for f in facts if f["point"]["batch"] == 8], 0.05, "lr")
    assert 40 <= steps[0.1] <= 100, "plain descent: the error halves every 3 ln 2 / lr steps"
    assert done["best"]["point"]["lr"] in (0.03, 0.1)


@pytest.mark.long
def test_a_program_in_another_language(sweep, example):
    if shutil.which("awk") is None:
        pytest.skip("no awk here")
    study = example("awk")
    done = sweep("stage1", study, "--json").json()
    assert (done["reached"] + done["censored"], done["failed"]) == (3, 0)
    facts = sweep.facts(Path(study))
    assert {fact["clock_source"] for fact in facts} == {"runner"}
    steps = steps_to(facts, 0.02, "rate")
    assert steps[0.1] < 150
    assert all(later is None or later > 2 * steps[0.1] for later in (steps[0.03], steps[0.01]))
    # At an easier target every program is there with its first line: after 0 s, and nothing is divided.
    assert "0 s" in sweep("report", study, "--target", "50").text
