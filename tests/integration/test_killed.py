"""Ends that nobody asked for politely: SIGKILL of the program or of a runner, Ctrl-C, two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Runs the trivial trainer at once, unless there is a file `hold` beside it and as many trials have
# ended as it says: then it waits until that file is gone.
GATE = """
import os, runpy, sys, time
from pathlib import Path
hold = Path(__file__).with_name("hold")
runs = Path(os.environ["SWEEP_RUN_DIR"]).parents[1]
while hold.exists() and len(list(runs.glob("*/attempt-*/outcome.json"))) >= int(hold.read_text()):
    time.sleep(0.02)
sys.argv[0] = {trainer!r}
runpy.run_path({trainer!r}, run_name="__main__")
"""


class Gated:
    """A study whose trials wait at a gate once so many have ended."""

    def __init__(self, sweep):
        path = sweep.write(few=True)
        text = path.read_text(encoding="utf-8")
        trainer = text.partition('"{python}", "')[2].partition('"')[0]
        gate = path.with_name("gate.py")
        gate.write_text(GATE.format(trainer=trainer), encoding="utf-8")
        sweep.edit(path, trainer, str(gate))
        self.sweep, self.path, self.hold = sweep, str(path), path.with_name("hold")

    def shut(self, after):
        """Hold every trial that starts when so many have ended."""
        self.hold.write_text(str(after), encoding="utf-8")

    def open(self):
        self.hold.unlink()

    def outcomes(self):
        return list((self.sweep.home / "runs/trivial").glob("*/attempt-*/outcome.json"))

    def held(self, command, after, wait_until):
        """The attempt that is held at the gate, as its running.json says it."""

        def found():
            assert command.process.poll() is None, command.finish().text
            running = self.sweep.running()
            return running[0] if len(self.outcomes()) == after and running else None

        return wait_until(found, f"{after} trials ended and another one is held")

    def each_counts_once(self):
        """Five trials, each with one attempt that was measured."""
        measured = [f["id"] for f in self.sweep.facts(self.path) if f["outcome"] == "reached"]
        assert len(measured) == len(set(measured)) == 5


@pytest.fixture
def gated(sweep):
    return Gated(sweep)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def trial_of(running):
    return Path(running["folder"]).parent.name


def test_the_program_is_killed(sweep, gated, wait_until, alive):
    gated.shut(after=2)
    first = sweep.start("stage1", gated.path)
    running = gated.held(first, 2, wait_until)
    first.kill()
    before = {path: path.stat().st_mtime_ns for path in gated.outcomes()}
    assert alive(running["pid"]), "the runner outlives the program"
    # two where the end of the last one was not recorded yet
    assert sweep("status", gated.path, "--json").json()["stages"][0]["running"] in (1, 2)

    second = sweep.start("stage1", gated.path, "--json")
    words = f"{trial_of(running)}: still running, taken over"
    wait_until(lambda: words in second.said("err"), words)
    gated.open()
    done = second.finish()
    assert done.code == 0, done.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    gated.each_counts_once()
    assert len(sweep.attempts()) == 5, "nothing was run twice"
    assert sweep("db", "verify", gated.path).out.endswith("agree\n")


@pytest.mark.long
def test_what_ended_while_nobody_watched_is_kept(sweep, gated, wait_until, alive):
    gated.shut(after=1)
    first = sweep.start("stage1", gated.path)
    running = gated.held(first, 1, wait_until)
    first.kill()
    gated.open()
    outcome = Path(running["folder"]) / "outcome.json"
    wait_until(outcome.exists, "the trial ends by itself")
    wait_until(lambda: not alive(running["pid"]), "its runner has gone")
    written = outcome.stat().st_mtime_ns
    sweep("stage1", gated.path)
    assert outcome.stat().st_mtime_ns == written
    gated.each_counts_once()
    assert len(sweep.attempts()) == 5


@pytest.mark.long
def test_a_runner_is_killed(sweep, gated, wait_until, alive):
    gated.shut(after=1)
    command = sweep.start("stage1", gated.path, "--json")
    running = gated.held(command, 1, wait_until)
    kill(running["pid"])
    wait_until(lambda: not alive(running["trainer"]), "the trainer goes with its runner")
    gated.open()
    done = command.finish()
    assert done.code == 0, done.text
    assert done.json()["failed"] == 0
    of_trial = [f for f in sweep.facts(gated.path) if f["id"] == trial_of(running)]
    assert [(f["outcome"], f["reason"]) for f in of_trial] == [
        ("failed", "lost"),
        ("reached", "target"),
    ]
    gated.each_counts_once()


@pytest.mark.long
def test_both_are_killed(sweep, gated, wait_until, alive):
    gated.shut(after=1)
    first = sweep.start("stage1", gated.path)
    running = gated.held(first, 1, wait_until)
    first.kill()
    kill(running["pid"])
    gated.open()
    done = sweep("stage1", gated.path, "--json")
    assert not alive(running["trainer"])
    assert done.json()["failed"] == 0
    gated.each_counts_once()


@pytest.mark.long
def test_ctrl_c_once(sweep, gated, wait_until):
    gated.shut(after=1)
    command = sweep.start("stage1", gated.path, "--json")
    running = gated.held(command, 1, wait_until)
    command.interrupt(until="running trials may finish")
    gated.open()
    done = command.finish()
    assert done.code == 130
    assert done.json()["exit"] == 130
    assert "the same command goes on from here" in done.err
    assert len(gated.outcomes()) == len(sweep.attempts()) == 2, "it ended, and no other was started"
    assert sweep("show", trial_of(running), "--study", gated.path, "--json").json()["attempts"]
    assert sweep("stage1", gated.path, "--json").json()["exit"] == 0
    gated.each_counts_once()
    assert len(sweep.attempts()) == 5


@pytest.mark.long
def test_cancel(sweep, gated, wait_until):
    """One running trial ends, the sweep goes on without it, and only `retry --failed` runs it again."""
    gated.shut(after=1)
    command = sweep.start("stage1", gated.path, "--json")
    running = gated.held(command, 1, wait_until)
    trial = trial_of(running)
    done = sweep("cancel", trial, "--study", gated.path, "--json").json()
    assert done == {"trial": trial, "attempt": 1, "cancelled": True}
    gated.open()
    assert command.finish().json()["exit"] == 1
    (attempt,) = sweep("show", trial, "--study", gated.path, "--json").json()["attempts"]
    assert (attempt["outcome"], attempt["reason"], attempt["message"]) == (
        "failed",
        "killed",
        "cancelled",
    )
    assert "has ended" in sweep("cancel", trial, "--study", gated.path, exit=2).err
    sweep("stage1", gated.path, exit=1)
    assert len(sweep.attempts()) == 5
    sweep("retry", gated.path, "--failed")
    gated.each_counts_once()


@pytest.mark.long
def test_ctrl_c_twice(sweep, wait_until, alive):
    study = str(sweep.write(trivial="", tau_s=20.0, step_s=0.02, steps=4000))
    command = sweep.start("run", study, "--json")
    wait_until(lambda: " step 3: " in command.said("err"), "a trial has measured something")
    (running,) = sweep.running()
    command.interrupt(until="running trials may finish")
    assert alive(running["trainer"])
    command.interrupt(until="ending the running trials")
    done = command.finish()
    assert done.code == 130
    assert not alive(running["trainer"])
    assert not alive(running["pid"])
    document = done.json()
    assert document["exit"] == 130
    assert document["failed"] == 0, "what we ended ourselves is no failure"


@pytest.mark.long
def test_a_second_one_is_refused(sweep, gated, wait_until):
    gated.shut(after=0)
    first = sweep.start("stage1", gated.path)
    gated.held(first, 0, wait_until)
    refused = sweep("stage1", gated.path, "--json", exit=5)
    assert "study trivial is being run by" in refused.err
    assert f":{first.process.pid}:" in refused.err
    assert refused.json()["exit"] == 5
    assert sweep("status", gated.path).code == 0  # looking is free
    gated.open()
    assert first.finish().code == 0
    assert len(sweep.attempts()) == 5


@pytest.mark.long
def test_two_at_the_same_moment(sweep):
    study = str(sweep.write(few=True))
    both = [sweep.start("stage1", study, "--json") for _ in range(2)]
    codes = sorted(command.finish().code for command in both)
    assert codes in ([0, 5], [0, 0])  # [0, 0]: the second began after the first had ended
    assert len(sweep.attempts()) == 5


@pytest.mark.long
def test_two_studies_at_the_same_time(sweep):
    studies = [str(sweep.write(name, few=True)) for name in ("one", "two", "three")]
    for command in [sweep.start("stage1", study, "--json") for study in studies]:
        done = command.finish()
        assert done.code == 0, done.text
        assert done.json()["reached"] == 5


@pytest.mark.long
def test_the_reader_of_our_output_goes_away(sweep):
    """`sweep stage1 | head -1`: the sweep itself goes on to its end."""
    study = str(sweep.write(few=True))
    program = subprocess.Popen(
        [sys.executable, "-m", "sweeper.cli", "stage1", study],
        cwd=sweep.folder,
        env=sweep.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline().startswith("study trivial")
    program.stdout.close()
    code = program.wait(timeout=60)
    assert "Traceback" not in program.stderr.read()
    program.stderr.close()
    assert code == 0
    stage = json.loads(sweep("status", study, "--json").out)["stages"][0]
    assert stage["closed"]
    assert stage["reached"] == 5
