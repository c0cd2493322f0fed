"""A script that cannot be touched: its numbers are read from what it prints."""

from __future__ import annotations

import pytest

# Like nanoGPT's train.py: flags, its own loop, lines for people; it has never heard of sweep.
SCRIPT = """\
import argparse
import math
import time

parser = argparse.ArgumentParser()
parser.add_argument("--learning_rate", type=float, required=True)
parser.add_argument("--batch_size", type=int, required=True)
parser.add_argument("--max_iters", type=int, default=120)
arguments = parser.parse_args()

print(f"tokens per iteration will be: {arguments.batch_size * 64:,}")
tau = 12 * (1 + 2 * math.log10(arguments.learning_rate / 0.01) ** 2)
tau *= 1 + math.log2(arguments.batch_size / 32) ** 2 / 4
for it in range(arguments.max_iters + 1):
    loss = 1 + 3 * math.exp(-it / tau)
    if it % 2 == 0:
        print(f"step {it}: train loss {loss - 0.01:.4f}, val loss {loss:.4f}", flush=True)
    time.sleep(0.01)
    print(f"iter {it}: loss {loss:.4f}, time {10 * arguments.batch_size / 32:.2f}ms", flush=True)
"""
STUDY = r"""
[study]
name = "untouched"

[objective]
target = 2.0

[trainer]
command = ["{python}", "train.py", "--learning_rate={lr}", "--batch_size={batch}"]

[trainer.patterns]
evaluated = 'step (?P<step>\d+): train loss [\d.]+, val loss (?P<val_loss>[\d.]+)'
step = 'iter (?P<step>\d+): loss (?P<loss>[\d.]+), time (?P<step_ms>[\d.]+)ms'

[limits]
steps = 120
trial_s = 30
grace_s = 1

[resources]
gpus = 0

[space.lr]
type = "float"
low = 0.001
high = 0.1
scale = "log"
levels = 3
baseline = 0.003

[space.batch]
type = "int"
low = 8
high = 128
step = 8
scale = "log"
levels = 3
baseline = 32

[[stage1.group]]
name = "A"
vary = { lr = [0.003, 0.01, 0.03] }

[[stage1.group]]
name = "B"
best_of = { group = "A", parameters = ["lr"] }
vary = { batch = [16, 32, 64] }

[stage2]
from_top = 3
runs = 6
replicates = 1
"""


@pytest.fixture
def untouched(sweep):
    folder = sweep.folder / "untouched"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    return folder / "study.toml"


def test_an_untouched_script_in_two_stages(sweep, untouched):
    study = str(untouched)
    first = sweep("stage1", study, "--json").json()
    assert first["reached"] + first["censored"] == first["distinct"] == 5
    # More steps than batch 32 needs, 12 x 1.25 x ln 3 = 16.5 of them, and each takes half the time:
    # 5 ms by the script's own word, whatever the clock on the wall says.
    assert first["best"]["point"] == {"lr": 0.01, "batch": 16}
    assert first["best"]["steps_to_target"] == pytest.approx(16.5, abs=0.1)
    assert first["best"]["time_to_target_s"] == pytest.approx(0.0824, abs=0.003)
    second = sweep("stage2", study, "--from-top", "3", "--json").json()
    assert second["planned"] == 6
    assert second["failed"] == 0
    assert second["best"]["time_to_target_s"] <= 0.086

    facts = sweep.facts(study)
    for fact in facts:
        assert fact["clock_source"] == "trainer"
        assert fact["curve"][-1][1] < 120, "it was stopped at its target or cap, not let run on"
    shown = sweep("logs", first["best"]["id"], "--study", study).out
    assert shown.startswith("tokens per iteration will be: 1,024\nstep 0: train loss 3.9900")
    args = sweep("export", study, "--best", "--format", "args").out
    assert "train.py --learning_rate=0.0" in args
    assert "lr = " in sweep("export", study, "--best").out
    assert "not importable" in sweep("check", study).out


def test_a_pattern_that_finds_nothing(sweep, untouched):
    sweep.edit(untouched, "step (?P<step>\\d+): train loss", "Step (?P<step>\\d+): train loss")
    done = sweep("stage1", str(untouched), exit=6)
    assert "without one evaluation of 'val_loss'" in done.text
    assert "[trainer.patterns]" in done.text


def test_a_pattern_that_is_none(sweep_without_database):
    sweep = sweep_without_database
    folder = sweep.folder / "untouched"
    folder.mkdir()
    study = folder / "study.toml"
    study.write_text(STUDY.replace("(?P<val_loss>", "(?P<val_los>"), encoding="utf-8")
    done = sweep("stage1", str(study), exit=2)
    assert "val_los" in done.err
    assert "trainer.patterns.evaluated" in done.err
