"""`sweep init` as it is typed: scripts are really run, files are really planned and checked."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper import cli
from sweeper.study_file import load

ROOT = Path(__file__).resolve().parents[2]
ARGPARSE = """\
import argparse, math, time
parser = argparse.ArgumentParser()
parser.add_argument("--learning_rate", type=float, default=0.01)
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--max_iters", type=int, default=500)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--quiet", action="store_true")
arguments = parser.parse_args()
print("hello", arguments.seed, flush=True)
for it in range(0, arguments.max_iters, 10):
    loss = 1 + 3 * math.exp(-it / 50)
    {print}
    time.sleep(0.02)
"""
NANOGPT = 'print(f"step {it}: train loss {loss:.4f}, val loss {loss:.4f}", flush=True)'
PROTOCOL = """\
import json, os; line = {"v": 1, "seq": it, "event": "evaluated", "step": it, "metrics": {"mine": loss}}
    open(os.environ["SWEEP_EVENTS"], "a").write(json.dumps(line) + chr(10))"""
LR, BATCH = "learning_rate=1e-3..1e-1:log", "batch_size=8..128:log"


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """`init(line that prints, *words)`: the exit code, the JSON document, what people read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(line, *words, script="train.py"):
        if line is not None:
            (tmp_path / script).write_text(ARGPARSE.replace("{print}", line), encoding="utf-8")
        before, _, after = " ".join(words).partition(" -- ")
        tail = ["--", *after.split()] if after else []
        code = cli.main(["init", script, "--json", *before.split(), *tail])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


def test_a_script_becomes_a_study_that_can_be_planned_and_checked(init, tmp_path, capsys):
    code, said, _ = init(NANOGPT, f"--param {LR} --param {BATCH} --target 2.0 --gpus 0")
    assert code == 0
    assert (said["reader"], said["metric"], said["entries"]) == ("nanogpt", "val_loss", 6)
    assert said["evaluations"][:2] == [[0, 4.0], [10, 3.4562]]
    study = load(tmp_path / "study.toml")
    assert study.trainer.command == (
        "{python}", "train.py", "--learning_rate={learning_rate}", "--batch_size={batch_size}",
        "--seed={seed}",
    )  # fmt: skip
    assert study.space.baseline() == {"learning_rate": 0.01, "batch_size": 32}
    assert (study.limits.steps, study.resources.gpus, study.name) == (500, 0, "train")
    for words in (["plan", "study.toml"], ["check", "study.toml", "--offline"]):
        assert cli.main(words) == 0
    assert "s1-A3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "reader", "metric"),
    [
        ('print(f"step:{it}/500 val_loss:{loss:.4f} train_time:{it}ms step_avg:1ms", flush=True)',
         "modded-nanogpt", "val_loss"),
        ('print({"eval_loss": loss, "eval_runtime": 0.01, "epoch": it / 500}, flush=True)',
         "huggingface", "eval_loss"),
        (r'print(f"\rEpoch 0:  2%|2 | {it}/500 [00:01<00:01, val_loss={loss:.3f}]", end="", flush=True)',
         "lightning", "val_loss"),
        (PROTOCOL, "protocol", "mine"),
    ],
    ids=["modded-nanogpt", "huggingface", "lightning", "protocol"],
)  # fmt: skip
def test_each_kind_of_output_is_told(init, tmp_path, line, reader, metric):
    code, said, err = init(line, f"--param {LR} --target 2.0 --gpus 0")
    assert code == 0, err
    assert (said["reader"], said["metric"]) == (reader, metric)
    assert load(tmp_path / "study.toml").objective.metric == metric


def test_an_expression_of_ones_own(init, tmp_path):
    line = 'print(f"[{it}] v={loss:.3f}", flush=True)'
    code, said, _ = init(
        line,
        rf"--param {LR} --target 2 --gpus 0 --metric bpb --pattern \[(?P<step>\d+)\].v=(?P<bpb>\S+)",
    )
    assert (code, said["reader"]) == (0, "own patterns")
    assert list(load(tmp_path / "study.toml").trainer.patterns) == ["evaluated"]


def test_words_after_the_dashes_are_the_scripts(init, tmp_path):
    code, said, _ = init(
        NANOGPT, "--param lr=0.1,0.2 --target 2 --gpus 0 -- --learning_rate={lr} --seed 7"
    )
    assert code == 0
    assert said["command"] == ["{python}", "train.py", "--learning_rate={lr}", "--seed", "7"]


@pytest.mark.parametrize(
    ("line", "words", "exit_", "expected"),
    [
        (None, f"--param {LR}", 2, ["train.py: there is no such file"]),
        (NANOGPT, "", 2, ["no parameter to sweep", "--param learning_rate=0.001..0.1:log"]),
        (NANOGPT, "--param lr=1..2", 2, ["no such option", "it has learning_rate, batch_size"]),
        (NANOGPT, f"--param {LR} --param {LR}", 2, ["is there twice"]),
        (NANOGPT, f"--param {LR} --gpus 0", 2, ["no target is named", "'nanogpt'", "of val_loss, 4 to"]),
        (NANOGPT, f"--param {LR} --no-run --target 1", 2, ["--no-run", "--set"]),
        (NANOGPT, f"--param {LR} --set nanogpt --pattern x", 2, ["not allowed with"]),
        (NANOGPT, f"--param {LR} --pattern (", 2, ["not a regular expression"]),
        (NANOGPT, f"--param {LR} --out nowhere/study.toml", 2, ["there is no folder nowhere"]),
        (NANOGPT, f"--param {LR} --cwd nowhere", 2, ["--cwd nowhere: is no folder"]),
        (NANOGPT, f"--param {LR} --gpus 1", 3, ["no GPU"]),
        ("raise RuntimeError('no data here')", f"--param {LR} --gpus 0", 3,
         ["failed after", "exit code 1", "no data here"]),
        ("print('loss is', loss, flush=True)", f"--param {LR} --gpus 0 -- --max_iters=40", 3,
         ["ended", "stdout: loss is ", "tried: protocol, modded-nanogpt (val_loss)", "--pattern"]),
        ("pass", f"--param {LR} --gpus 0 -- --max_iters=1", 3, ["ended", "stdout: hello 1"]),
        (NANOGPT, f"--param {LR} --gpus 0 --set lightning --deadline 0.5", 3,
         ["stopped after", "tried: lightning"]),
        (NANOGPT, f"--param {LR} --gpus 0 -- --bad=1", 3, ["exit code 2", "unrecognized arguments"]),
    ],
    ids=lambda v: None if isinstance(v, list | int) else str(v)[:40],
)  # fmt: skip
def test_what_cannot_be(init, tmp_path, line, words, exit_, expected):  # noqa: PLR0917
    code, said, _ = init(line, words)
    assert code == exit_
    for part in expected:
        assert part in said["error"]
    assert not (tmp_path / "study.toml").exists()


def test_a_file_that_is_there_is_never_replaced(init, tmp_path):
    (tmp_path / "study.toml").write_text("mine", encoding="utf-8")
    words = f"--param {LR} --target 2 --no-run --set nanogpt"
    code, said, _ = init(NANOGPT, words)
    assert code == 2
    assert "is there already" in said["error"]
    assert (tmp_path / "study.toml").read_text(encoding="utf-8") == "mine"
    assert init(NANOGPT, words + " --force")[0] == 0
    assert load(tmp_path / "study.toml").name == "train"


def test_a_program_in_another_folder_that_is_no_python(init, tmp_path):
    (tmp_path / "there").mkdir()
    script = tmp_path / "there" / "train.sh"
    script.write_text('#!/bin/sh\nfor i in 1 2 3; do echo "step $i val_loss $1.$i"; done\n')
    code, said, _ = init(None, "--param n=2..9 --target 1", script="there/train.sh")
    assert code == 2
    assert "may not be executed" in said["error"]
    script.chmod(0o755)
    words = "--param n=2..9 --target 1 --gpus 0 --out s.toml -- {n}"
    code, said, _ = init(None, words, script="there/train.sh")
    assert (code, said["reader"]) == (0, "plain")
    assert said["command"] == ["./train.sh", "{n}"]
    assert load(tmp_path / "s.toml").trainer.cwd == "there"
    code, said, _ = init(None, f"--cwd . --force {words}", script="there/train.sh")
    assert (code, said["command"][0]) == (0, "there/train.sh")
    assert load(tmp_path / "s.toml").trainer.cwd is None


def test_nothing_is_left_running(init, tmp_path):
    line = f'{NANOGPT}; it or open("pid", "w").write(str(__import__("os").getpid()))'
    assert init(line, f"--param {LR} --target 2 --gpus 0")[0] == 0
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_questions_on_a_terminal(tmp_path):
    """Answers: the suggested parameters but one, a range that is none and one that is, the target."""
    (tmp_path / "train.py").write_text(ARGPARSE.replace("{print}", NANOGPT), encoding="utf-8")
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SWEEP_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeper.cli", "init", "train.py", "--gpus", "0"],
        cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = ""

    def answer(question, text):
        nonlocal said
        before = len(said)
        deadline = time.monotonic() + 60
        while question not in said[before:]:
            assert time.monotonic() < deadline, said
            try:
                said += os.read(ours, 4096).decode()
            except OSError:
                pytest.fail(said)
        os.write(ours, text.encode() + b"\n")

    try:
        answer("[learning_rate, batch_size]: ", "batch_size")
        answer("[8..128:log]: ", "128..8")
        answer("[8..128:log]: ", "")
        answer("target: val_loss at or below: ", "2.5")
        answer("next: sweep plan", "")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(ours)
    assert "128 is not below 8" in said
    study = load(tmp_path / "study.toml")
    assert (study.objective.target, list(study.space.parameters)) == (2.5, ["batch_size"])
