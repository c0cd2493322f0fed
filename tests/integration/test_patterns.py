"""A script that cannot be touched: its numbers are read from what it prints."""

from __future__ import annotations

import pytest

from sweeper.pattern_sets import SETS

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


@pytest.mark.long
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


# The same training in the manner of two libraries: it only prints otherwise.
PRINTS = {
    "huggingface": """
        logs = {"eval_loss": round(loss, 4), "eval_runtime": 0.001, "epoch": it / 60}
        bar = f"{it * 100 // 120:3d}%|##        | {it}/120 [00:01<00:01, 90.00it/s]"
        print("\\r" + bar, end="", file=sys.stderr, flush=True)
        print(logs, flush=True)
""",
    "lightning": """
        bar = f"{it % 60 * 100 // 60:3d}%|##        | {it % 60}/60 [00:01<00:01, 90.00it/s, v_num=0, "
        print(f"\\rEpoch {it // 60}: {bar}train_loss=2.000, val_loss={loss:.4f}]", end="", flush=True)
""",
}


@pytest.mark.long
@pytest.mark.parametrize("name", list(PRINTS))
def test_the_same_script_in_the_manner_of_a_library(sweep, untouched, name):
    lines = SCRIPT.splitlines(keepends=True)
    start = next(i for i, line in enumerate(lines) if 'print(f"step {it}' in line)
    text = "".join(["import sys\n", *lines[:start], PRINTS[name], lines[start + 1]])
    untouched.with_name("train.py").write_text(text, encoding="utf-8")
    own = STUDY[STUDY.index("evaluated = ") : STUDY.index("[limits]")]
    sweep.edit(untouched, own, f'set = "{name}"\n\n')
    sweep.edit(untouched, "target = 2.0", f'target = 2.0\nmetric = "{name_of(name)}"')
    done = sweep("stage1", str(untouched), "--json").json()
    assert (done["distinct"], done["failed"]) == (5, 0)
    # As above: 12 x 1.25 x ln 3 steps at batch 16 and a rate of 0.01, 12 x ln 3 of them at 32. A bar on
    # stderr is read beside the lines on stdout: a look or two later, of 50 ms each.
    steps = {
        (fact["point"]["lr"], fact["point"]["batch"]): next(
            step for _, step, _, value in fact["curve"] if value <= 2.0
        )
        for fact in sweep.facts(untouched)
        if fact["outcome"] == "reached"
    }
    late = 12 if name == "huggingface" else 0
    assert 14 - late <= steps[0.01, 32] <= 14 + late
    assert {fact["clock_source"] for fact in sweep.facts(untouched)} == {"runner"}


def name_of(name):
    return SETS[name].metric


@pytest.mark.long
def test_from_a_bare_script_to_its_best_settings(sweep):
    """`sweep init`, then two stages and the report, on a script that has never heard of sweep."""
    (sweep.folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    words = ["--param", "learning_rate=1e-3..1e-1:log@3e-3", "--param", "batch_size=8..128:log@32"]
    made = sweep("init", "train.py", *words, "--target", "2.0", "--gpus", "0", "--json").json()
    assert (made["reader"], made["entries"]) == ("nanogpt", 7)
    first = sweep("stage1", "--json").json()
    assert (first["reached"] + first["censored"], first["failed"]) == (first["distinct"], 0)
    assert first["best"]["point"]["learning_rate"] == 0.01
    second = sweep("stage2", "--json").json()
    assert second["failed"] == 0
    assert second["best"]["steps_to_target"] < 25
    assert "learning_rate" in sweep("report").text
