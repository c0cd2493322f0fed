"""Warm starts: the same attempts, forked; any fault falls back to a cold start."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sweeper.executors.base import Slot
from sweeper.executors.local import LocalExecutor
from sweeper.paths import AttemptPaths, write_json
from sweeper.readout import collect
from sweeper.runner import processes
from sweeper.spec import AttemptOutcome, AttemptSpec, Running
from sweeper.trial import Reason

FAKES = Path(__file__).resolve().parent.parent / "fakes"
SLOT = Slot("cpu0", {"kind": "cpu", "index": 0}, {"FROM_SLOT": "yes"})


@pytest.fixture
def executor():
    made = LocalExecutor([SLOT])
    yield made
    made.close()


def spec(tmp_path, name, *arguments, module="trivial_trainer", **more):
    folder = tmp_path / name
    folder.mkdir()
    value = AttemptSpec(
        study="toy",
        trial=name,
        attempt=1,
        argv=[sys.executable, "-m", module, *arguments],
        cwd=str(FAKES),
        run_dir=str(folder),
        metric="val_loss",
        clock="train",
        target=2.0,
        trial_s=30,
        silence_s=20,
        startup_s=20,
        grace_s=2,
        max_steps=1000,
        env={"SWEEP_TARGET": "2.0"},
        **more,
    )
    paths = AttemptPaths(folder)
    write_json(paths.spec, value.to_json())
    return paths


def finish(executor, paths, within_s=120):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if any(e.folder == paths.folder for e in executor.wait(1.0)):
            return AttemptOutcome.read(paths.outcome)
    raise AssertionError(f"not ended: {paths.runner_log.read_text()}")


def run(executor, paths):
    executor.submit(paths.spec, SLOT)
    return finish(executor, paths)


def test_warm_and_cold_measure_the_same(tmp_path, executor):
    words = ("--virtual-clock", "--reach-at", "20")
    cold = spec(tmp_path, "cold", *words)
    assert not run(executor, cold).warm
    executor.warm_up("trivial_trainer", FAKES)
    for name in ("warm1", "warm2"):
        warm = spec(tmp_path, name, *words)
        outcome = run(executor, warm)
        assert outcome.warm
        assert outcome.reason is Reason.TARGET
        one, other = collect(cold, "val_loss"), collect(warm, "val_loss")
        assert [(e.step, e.value) for e in one.curve] == [(e.step, e.value) for e in other.curve]
        assert other.device["start"] == "warm"
    assert executor.faults == ()


@pytest.mark.parametrize(
    ("words", "reason", "code", "number"),
    [
        (("--crash-at", "2", "--exit-code", "7", "--stderr", "woe"), Reason.CRASHED, 7, None),
        (("--crash-at", "2", "--signal", "11"), Reason.CRASHED, None, 11),
    ],
)
def test_endings_are_those_of_a_process(  # noqa: PLR0917
    tmp_path, executor, words, reason, code, number
):
    executor.warm_up("trivial_trainer", FAKES)
    outcome = run(executor, spec(tmp_path, "a", *words))
    assert outcome.warm
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (reason, code, number)


def test_the_kill_ladder_is_the_same(tmp_path, executor):
    executor.warm_up("trivial_trainer", FAKES)
    words = ("--never", "--run-for", "60", "--ignore-term", "--grandchild", "--daemon")
    paths = spec(tmp_path, "a", *words, cap_s=0.3)
    outcome = run(executor, paths)
    assert outcome.warm
    assert outcome.reason is Reason.CAP
    assert outcome.leftovers == []
    who = Running.read(paths.running)
    assert not Path(f"/proc/{who.trainer}").exists()


def test_output_folder_and_environment(tmp_path, executor):
    (tmp_path / "told.py").write_text(
        "import os, sys\n"
        "def preload():\n    global ready\n    ready = True\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv[1:], os.getcwd(), os.environ['FROM_SLOT'], os.environ['SWEEP_TARGET'])\n"
        "    print('to stderr', file=sys.stderr)\n"
        "    print(os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd'))[:3])\n"
        "    sys.exit(3)\n"
    )
    executor.warm_up("told", tmp_path)
    paths = spec(tmp_path, "a", "x y", "ü", module="told")
    document = AttemptSpec.read(paths.spec).to_json() | {"cwd": str(tmp_path)}
    write_json(paths.spec, document)
    outcome = run(executor, paths)
    assert outcome.warm
    assert outcome.exit_code == 3
    first, second = paths.stdout.read_text().splitlines()
    assert first == f"['x y', 'ü'] {tmp_path} yes 2.0"
    assert second == "True ['0', '1', '2']"
    assert paths.stderr.read_text() == "to stderr\n"


def test_a_killed_runner_takes_its_trainer_along(tmp_path, executor):
    executor.warm_up("trivial_trainer", FAKES)
    paths = spec(tmp_path, "a", "--never", "--run-for", "60")
    executor.submit(paths.spec, SLOT)
    deadline = time.monotonic() + 20
    while not (paths.running.exists() and Running.read(paths.running).trainer):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    who = Running.read(paths.running)
    assert [p.pid for p in processes.marked(who.token)] == [who.trainer]
    os.kill(who.pid, signal.SIGKILL)
    while not any(e.folder == paths.folder for e in executor.wait(1.0)):
        assert time.monotonic() < deadline
    while Path(f"/proc/{who.trainer}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("module", ["no_such_module", "threaded"])
def test_a_module_that_cannot_be_warm_is_started_cold(tmp_path, executor, module):
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    executor.warm_up(module, tmp_path)
    outcome = run(executor, spec(tmp_path, "a", "--virtual-clock", "--reach-at", "5"))
    assert not outcome.warm
    assert outcome.reason is Reason.TARGET
    assert len(executor.faults) == 1


def test_a_warm_parent_that_dies_is_given_up(tmp_path, executor):
    executor.warm_up("trivial_trainer", FAKES)
    assert run(executor, spec(tmp_path, "a", "--virtual-clock", "--reach-at", "5")).warm
    parent = executor._warm["cpu0"]._process
    parent.kill()
    parent.wait()
    outcome = run(executor, spec(tmp_path, "b", "--virtual-clock", "--reach-at", "5"))
    assert not outcome.warm
    assert outcome.reason is Reason.TARGET
    assert "warm parent" in executor.faults[0]


def children(pid):
    return [p.pid for p in processes.everyone() if p.parent == pid]


def wait_for(condition, within_s=60):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parent_and_waiting(tmp_path, executor):
    """After one warm attempt: the ids of the warm parent and of the runner that it has ready."""
    executor.warm_up("trivial_trainer", FAKES)
    assert run(executor, spec(tmp_path, "a", "--virtual-clock", "--reach-at", "5")).warm
    parent = executor._warm["cpu0"]._process.pid
    wait_for(lambda: len(children(parent)) == 1)
    return parent, *children(parent)


def test_the_next_runner_is_there_before_it_is_asked_for(tmp_path, executor):
    _, waiting = parent_and_waiting(tmp_path, executor)
    paths = spec(tmp_path, "b", "--virtual-clock", "--reach-at", "5")
    executor.submit(paths.spec, SLOT)
    assert finish(executor, paths).warm
    assert Running.read(paths.running).pid == waiting


def test_a_waiting_runner_that_was_killed_is_replaced(tmp_path, executor):
    _, waiting = parent_and_waiting(tmp_path, executor)
    os.kill(waiting, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{waiting}").exists())
    assert run(executor, spec(tmp_path, "b", "--virtual-clock", "--reach-at", "5")).warm
    assert executor.faults == ()


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_neither_warm_parent_nor_waiting_runner_is_left(tmp_path, executor, how):
    pid, waiting = parent_and_waiting(tmp_path, executor)
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
    executor.close()
    assert not Path(f"/proc/{pid}").exists()
    wait_for(lambda: not Path(f"/proc/{waiting}").exists())


def test_without_a_module_only_the_runner_is_forked(tmp_path, executor):
    executor.warm_up(None, FAKES)
    outcome = run(executor, spec(tmp_path, "a", "--virtual-clock", "--reach-at", "5"))
    assert not outcome.warm
    assert outcome.reason is Reason.TARGET
    assert executor.faults == ()
