"""Ends that nobody asked for politely: SIGKILL of the program or of a runner, Ctrl-C, two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# A trial takes about tau_s ln 3 real seconds in steps of 20 ms: long enough to be killed in.
REAL = {"trivial": "", "tau_s": 0.4, "slow_tau_s": 0.8, "step_s": 0.02}


@pytest.fixture
def study(sweep):
    return str(sweep.write(**REAL))


def counted(sweep, study):
    """How often each trial has an attempt that was measured to its end."""
    return Counter(f["id"] for f in sweep.facts(study) if f["outcome"] in ("reached", "censored"))


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def until_running(sweep, wait_until, *, finished):
    """An attempt under way, after at least so many that have ended."""

    def found():
        ended = list((sweep.home / "runs/trivial").glob("*/attempt-*/outcome.json"))
        running = sweep.running()
        return running[0] if len(ended) >= finished and running else None

    return wait_until(found, f"{finished} trials ended and another one runs")


def test_the_program_is_killed(sweep, study, wait_until, alive):
    first = sweep.start("stage1", study)
    running = until_running(sweep, wait_until, finished=2)
    kill(first.pid)
    first.wait()
    before = {
        path.parent: path.stat().st_mtime_ns
        for path in (sweep.home / "runs/trivial").glob("*/attempt-*/outcome.json")
    }
    assert alive(running["pid"]), "the runner outlives the program"

    done = sweep("stage1", study, "--json")
    trial = Path(running["folder"]).parent.name
    assert f"{trial}: still running, taken over" in done.err or trial in {
        p.parent.name for p in before
    }
    assert done.json()["exit"] == 0
    assert all((p / "outcome.json").stat().st_mtime_ns == m for p, m in before.items())
    assert counted(sweep, study) == dict.fromkeys(counted(sweep, study), 1)
    assert len(counted(sweep, study)) == 9
    assert len(sweep.attempts()) == 9
    assert sweep("db", "verify", study).out.endswith("agree\n")


def test_what_ended_while_nobody_watched_is_kept(sweep, study, wait_until, alive):
    first = sweep.start("stage1", study)
    running = until_running(sweep, wait_until, finished=1)
    kill(first.pid)
    first.wait()
    outcome = Path(running["folder"]) / "outcome.json"
    wait_until(outcome.exists, "the trial ends by itself")
    wait_until(lambda: not alive(running["pid"]), "its runner has gone")
    written = outcome.stat().st_mtime_ns
    sweep("stage1", study)
    assert outcome.stat().st_mtime_ns == written
    assert len(sweep.attempts()) == 9
    assert set(counted(sweep, study).values()) == {1}


def test_a_runner_is_killed(sweep, study, wait_until, alive):
    process = sweep.start("stage1", study, "--json")
    running = until_running(sweep, wait_until, finished=1)
    kill(running["pid"])
    wait_until(lambda: not alive(running["trainer"]), "the trainer is gone with its runner")
    done = sweep.finish(process)
    assert done.code == 0, done.text
    facts = sweep.facts(study)
    trial = Path(running["folder"]).parent.name
    assert [(f["outcome"], f["reason"]) for f in facts if f["id"] == trial] == [
        ("failed", "lost"),
        ("reached", "target"),
    ]
    assert done.json()["failed"] == 0
    assert set(counted(sweep, study).values()) == {1}
    assert len(counted(sweep, study)) == 9


def test_both_are_killed(sweep, study, wait_until, alive):
    first = sweep.start("stage1", study)
    running = until_running(sweep, wait_until, finished=1)
    kill(first.pid)
    kill(running["pid"])
    first.wait()
    done = sweep("stage1", study, "--json")
    assert not alive(running["trainer"])
    assert done.json()["exit"] == 0
    assert set(counted(sweep, study).values()) == {1}
    assert len(counted(sweep, study)) == 9


def test_ctrl_c_once(sweep, study, wait_until, interrupt):
    process = sweep.start("stage1", study, "--json")
    running = until_running(sweep, wait_until, finished=1)
    interrupt(process)
    done = sweep.finish(process)
    assert done.code == 130
    assert "running trials may finish" in done.err
    assert "the same command goes on from here" in done.err
    assert done.json()["exit"] == 130
    assert (Path(running["folder"]) / "outcome.json").exists(), "the running trial was let finish"
    assert sweep.running() == []
    before = len(sweep.attempts())
    assert before < 9
    again = sweep("stage1", study, "--json").json()
    assert again["exit"] == 0
    assert set(counted(sweep, study).values()) == {1}
    assert len(sweep.attempts()) == 9


def test_ctrl_c_twice(sweep, wait_until, interrupt, alive):
    study = str(sweep.write(trivial="", tau_s=20.0, step_s=0.02, steps=4000))
    process = sweep.start("run", study, "--json")
    running = until_running(sweep, wait_until, finished=0)
    interrupt(process)
    wait_until(lambda: process.poll() is None, "it waits for the trial", 1.0)
    interrupt(process)
    done = sweep.finish(process)
    assert done.code == 130
    assert "ending the running trials" in done.err
    assert not alive(running["trainer"])
    assert not alive(running["pid"])
    document = done.json()
    assert document["exit"] == 130
    assert document["failed"] == 0, "what we ended ourselves is no failure"


def test_a_second_one_is_refused(sweep, study, wait_until):
    first = sweep.start("stage1", study)
    until_running(sweep, wait_until, finished=0)
    refused = sweep("stage1", study, "--json", exit=5)
    assert "study trivial is being run by" in refused.err
    assert f":{first.pid}" in refused.err
    assert refused.json()["exit"] == 5
    assert sweep("status", study).code == 0  # looking is free
    assert sweep.finish(first).code == 0
    assert len(sweep.attempts()) == 9


def test_two_at_the_same_moment(sweep):
    study = str(sweep.write())
    both = [sweep.start("stage1", study, "--json") for _ in range(2)]
    codes = sorted(sweep.finish(process).code for process in both)
    assert codes in ([0, 5], [0, 0])  # [0, 0]: the second began after the first had ended
    assert len(sweep.attempts()) == 9


def test_two_studies_at_the_same_time(sweep):
    studies = [str(sweep.write(name)) for name in ("one", "two")]
    both = [sweep.start("stage1", study, "--json") for study in studies]
    for process in both:
        done = sweep.finish(process)
        assert done.code == 0, done.text
        assert done.json()["reached"] == 9


def test_the_reader_of_our_output_goes_away(sweep, study):
    """`sweep stage1 | head -1`: the sweep itself goes on to its end."""
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
    assert stage["reached"] + stage["censored"] == 9
