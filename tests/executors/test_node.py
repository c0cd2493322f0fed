"""An attempt's keeper on another machine, tried on this one without any cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sweeper.executors.node import Keeper, look
from sweeper.paths import AttemptPaths, write_json
from sweeper.runner import processes
from sweeper.spec import AttemptOutcome, AttemptSpec, Control, Running
from sweeper.trial import Outcome, Reason

TRAINER = Path(__file__).resolve().parents[1] / "fakes" / "trivial_trainer.py"


def asked(paths: AttemptPaths, *options: str) -> AttemptSpec:
    return AttemptSpec(
        study="tests", trial="t1", attempt=1,
        argv=["/planned/with/python", "-S", str(TRAINER), "--config", str(paths.config), *options],
        cwd="/", run_dir=str(paths.folder), metric="val_loss", clock="train", target=2.0, trial_s=60,
        silence_s=60, startup_s=60, grace_s=1, max_steps=5000,
        env={"SWEEP_EVENTS": str(paths.raw_events)}, device={"kind": "cpu", "slot": "n/cpu0"},
    )  # fmt: skip


def planned(tmp_path, *options: str) -> tuple[AttemptPaths, dict[str, bytes]]:
    """An attempt as a driver elsewhere planned it, in a folder that does not exist here."""
    paths = AttemptPaths(tmp_path / "elsewhere" / "t1" / "attempt-1")
    spec = json.dumps(asked(paths, *options).to_json()).encode()
    config = f'run_dir = "{paths.folder}"\nstep_s = 0.01\n'.encode()
    return paths, {"spec.json": spec, "config.toml": config}


def keeper(paths, files, *, lease_s=60.0, reaches=lambda: None, gpus=(), place=0, of=1) -> Keeper:
    return Keeper(
        {
            "folder": str(paths.folder), "files": files, "python": "/planned/with/python",
            "gpus": list(gpus), "place": place, "of": of, "node": "n", "lease_s": lease_s,
        },
        reaches,
    )  # fmt: skip


def until_ended(kept: Keeper) -> bytes:
    """The whole event stream, turn by turn."""
    events, deadline = b"", time.monotonic() + 60
    while True:
        answer = kept.turn("", len(events))
        events += answer["events"]
        if answer["ended"] and not kept.turn("", len(events))["events"]:
            return events
        assert time.monotonic() < deadline


def test_an_attempt_of_a_folder_that_is_not_here(tmp_path):
    paths, files = planned(tmp_path, "--virtual-clock")
    kept = keeper(paths, files)
    events = until_ended(kept)
    back = kept.collect()
    assert not paths.folder.exists()
    assert kept.paths.folder != paths.folder
    assert back["files"]["events.jsonl"] == events
    assert back["left"] == []
    assert not {"spec.json", "config.toml", "lease"} & set(back["files"])
    outcome = AttemptOutcome.from_json(json.loads(back["files"]["outcome.json"]))
    assert (outcome.outcome, outcome.reason) == (Outcome.REACHED, Reason.TARGET)
    assert outcome.device["node"] == "n"
    assert outcome.device["slot"] == "n/cpu0"
    assert len(outcome.device["cores"]) == 1
    # its configuration names the folder that it has here
    assert str(kept.paths.folder) in kept.paths.config.read_text()
    kept.forget()
    assert not kept.paths.folder.exists()


def test_orders_reach_it(tmp_path):
    paths, files = planned(tmp_path, "--hang-at", "3")
    kept = keeper(paths, files)
    while not kept.turn("", 0, 0.1)["events"]:
        pass
    order = json.dumps(Control(cancel=True).to_json())
    while not kept.turn(order, 0)["ended"]:
        pass
    outcome = AttemptOutcome.read(kept.paths.outcome)
    assert (outcome.reason, outcome.message) == (Reason.KILLED, "cancelled")
    kept.forget()


def test_a_node_that_is_cut_off_ends_what_it_runs(tmp_path):
    """Nobody asks, and the head does not answer: the lease ends, and with it the trainer."""
    paths, files = planned(tmp_path, "--hang-at", "3")
    silence = threading.Event()
    kept = keeper(paths, files, lease_s=1.0, reaches=silence.wait)
    deadline = time.monotonic() + 60
    while not kept.ended:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    outcome = AttemptOutcome.read(kept.paths.outcome)
    assert outcome.reason is Reason.LOST
    assert "lease was not renewed for 1 s" in outcome.message
    silence.set()
    kept.forget()


def test_the_head_answers_so_it_goes_on_although_nobody_asks(tmp_path):
    paths, files = planned(tmp_path, "--hang-at", "3")
    answered = threading.Semaphore(0)
    kept = keeper(paths, files, lease_s=1.0, reaches=answered.release)
    for _ in range(30):  # renewals, six in the length of a lease: five leases
        assert answered.acquire(timeout=20)
    assert not kept.ended
    kept.turn(json.dumps(Control(cancel=True).to_json()), 0)
    until_ended(kept)
    kept.forget()


KEEP = """
import json, sys, time
from sweeper.executors.node import Keeper
kept = Keeper(json.loads(sys.argv[1]), lambda: None)
print("kept", flush=True)
time.sleep(600)
"""


def test_a_worker_that_is_killed_leaves_nothing_on_the_device(tmp_path):
    """A shared folder: the runner is told to end when its worker is gone, and leaves its outcome."""
    paths = AttemptPaths(tmp_path / "home" / "t1" / "attempt-1")
    paths.folder.mkdir(parents=True)
    write_json(paths.spec, asked(paths, "--hang-at", "3", "--ignore-term").to_json())
    paths.config.write_text("step_s = 0.01\n")
    parcel = {
        "folder": str(paths.folder), "files": None, "python": "/planned/with/python", "gpus": [],
        "place": 0, "of": 1, "node": "n", "lease_s": 60.0,
    }  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    worker = subprocess.Popen(
        [sys.executable, "-c", KEEP, json.dumps(parcel)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    deadline = time.monotonic() + 60
    while not (paths.events.exists() and b'"step"' in paths.events.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    token = Running.read(paths.running).token
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    while not paths.outcome.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert AttemptOutcome.read(paths.outcome).reason is Reason.KILLED
    while processes.marked(token):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_outcome_that_is_there_is_not_replaced(tmp_path):
    """An orchestrator gave it up while it was out of reach; what it measured does not count any more."""
    paths = AttemptPaths(tmp_path / "home" / "t1" / "attempt-1")
    paths.folder.mkdir(parents=True)
    write_json(paths.spec, asked(paths, "--hang-at", "3").to_json())
    paths.config.write_text("step_s = 0.01\n")
    kept = keeper(paths, None)
    while not (paths.events.exists() and b'"step"' in paths.events.read_bytes()):
        kept.turn("", 0, 0.1)
    paths.outcome.write_text("given up")
    os.kill(Running.read(paths.running).pid, signal.SIGTERM)
    while not kept.turn("", 0)["ended"]:
        pass
    assert paths.outcome.read_text() == "given up"


def test_gpus_that_no_driver_shows_are_told_apart_by_name(tmp_path):
    paths, files = planned(tmp_path, "--virtual-clock")
    kept = keeper(paths, files, gpus=["0", "3"], place=1, of=4)
    until_ended(kept)
    spec = AttemptSpec.read(kept.paths.spec)
    assert (spec.device["kind"], spec.device["uuid"]) == ("cuda", "n-0,n-3")
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "0,3"
    assert spec.argv[0] == sys.executable
    assert spec.lease_s == 60
    kept.forget()


@pytest.mark.parametrize("mark", ["the mark", "another"])
def test_a_shared_folder_is_one_with_the_mark(tmp_path, mark):
    (tmp_path / "mark").write_text("the mark")
    said = look(str(tmp_path / "mark"), mark)
    assert said["shared"] is (mark == "the mark")
    assert said["processor"]
