"""Whatever a trainer started is gone when its outcome is there: real processes, killed for real."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from sweeper.paths import write_json
from sweeper.runner import processes
from sweeper.spec import Control
from sweeper.trial import Outcome, Reason


def test_a_trainer_that_ignores_term_is_killed_after_the_grace(attempt):
    outcome = attempt("--never", "--ignore-term", trial_s=0.5).start().finish()
    assert (outcome.reason, outcome.signal) == (Reason.TIMEOUT, signal.SIGKILL)
    assert outcome.outcome is Outcome.CENSORED


@pytest.mark.parametrize("kind", ["--grandchild", "--daemon", "--bare-daemon", "--hold-stdout"])
def test_what_a_trainer_leaves_behind_when_it_exits_is_ended(attempt, kind):
    one = attempt(kind, "--virtual-clock").start()
    outcome = one.finish()
    assert outcome.reason is Reason.TARGET
    assert list(one.paths.folder.glob("*.pid")), "the trainer started a child"
    assert outcome.leftovers == []


def test_a_stopped_trainer_takes_every_kind_of_child_along(attempt):
    one = attempt(
        "--never", "--grandchild", "--daemon", "--bare-daemon", "--hold-stdout", "--ignore-term"
    ).start()
    one.until("evaluated")
    write_json(one.paths.control, Control(cancel=True).to_json())
    outcome = one.finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.KILLED)
    assert outcome.message == "cancelled"


def test_children_of_a_trainer_that_crashes_are_ended(attempt):
    outcome = attempt("--grandchild", "--daemon", "--crash-at", "3").start().finish()
    assert outcome.reason is Reason.CRASHED


def test_children_of_a_command_that_only_spawns_are_ended(attempt):
    outcome = attempt("--hold-stdout", "--daemon", "--spawn-only").start().finish()
    assert (outcome.outcome, outcome.exit_code) == (Outcome.FAILED, 0)


@pytest.mark.parametrize("shell", ["{trainer}; exit $?", "{trainer} & wait", "setsid -w {trainer}"])
def test_a_trainer_behind_a_wrapper_is_ended_with_it(attempt, trainer_command, shell):
    inner = shlex.join([*trainer_command, "--never", "--ignore-term", "--grandchild"])
    one = attempt(argv=["/bin/sh", "-c", shell.format(trainer=inner)], trial_s=0.5).start()
    one.child("grandchild")
    assert one.finish().reason is Reason.TIMEOUT


def test_a_wrapper_that_forwards_nothing_and_dies_of_term(attempt, trainer_command):
    code = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"
    argv = [sys.executable, "-S", "-c", code, *trainer_command, "--never", "--ignore-term"]
    assert attempt(argv=argv, trial_s=0.5).start().finish().reason is Reason.TIMEOUT


@pytest.mark.long
def test_torchrun_is_ended_with_its_workers(attempt):
    """Its agent starts workers in sessions of their own, and waits for them when it is told to end."""
    trainer = Path(__file__).resolve().parents[1] / "fakes" / "trivial_trainer.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    argv = [*torchrun, str(trainer), "--never", "--ignore-term", "--grandchild"]
    one = attempt(argv=argv, startup_s=60.0).start().until("evaluated")
    one.child("grandchild")
    write_json(one.paths.control, Control(cancel=True).to_json())
    assert one.finish().reason is Reason.KILLED


def test_a_frozen_trainer_is_ended(attempt):
    one = attempt("--never", silence_s=0.7).start().until("evaluated")
    os.kill(one.until_trainer(), signal.SIGSTOP)
    outcome = one.finish()
    assert outcome.reason is Reason.HUNG
    assert "silent" in outcome.message


def test_a_frozen_trainer_is_woken_to_end_itself(attempt):
    one = attempt("--never", "--drain", silence_s=0.7, grace_s=20.0).start().until("evaluated")
    os.kill(one.until_trainer(), signal.SIGSTOP)
    outcome = one.finish()
    assert (outcome.reason, outcome.exit_code) == (Reason.HUNG, 0)
    assert one.said("checkpoint_saved")


def test_term_to_the_runner_ends_the_trainer_and_says_so(attempt):
    one = attempt("--never", "--grandchild").start().until("evaluated")
    one.runner.terminate()
    outcome = one.finish()
    assert outcome.reason is Reason.KILLED
    assert "from outside" in outcome.message


def test_a_second_term_does_not_wait_for_the_grace(attempt):
    one = attempt("--never", "--ignore-term", grace_s=600.0).start().until("evaluated")
    one.runner.terminate()
    one.until("evaluated")
    os.kill(one.runner.pid, signal.SIGINT)
    os.kill(one.runner.pid, signal.SIGINT)
    one.runner.send_signal(signal.SIGINT)
    assert one.finish().reason is Reason.KILLED


def test_hangup_is_nothing_to_a_runner(attempt):
    one = attempt("--virtual-clock", "--startup", "0.5").start()
    one.until_trainer()
    one.runner.send_signal(signal.SIGHUP)
    assert one.finish().reason is Reason.TARGET


def test_a_killed_runner_takes_its_trainer_along_and_its_marker_finds_the_rest(attempt, eventually):
    one = attempt("--never", "--grandchild", "--daemon").start().until("evaluated")
    known = one.running()
    grandchild = one.child("grandchild")
    one.runner.kill()
    one.exit()
    trainer = known.trainer
    eventually(lambda: processes.look_at(trainer) is None, "the trainer died with its runner")
    assert not one.paths.outcome.exists()
    assert grandchild in {p.pid for p in processes.marked(known.token)}
    assert processes.kill_all(lambda: processes.marked(known.token), within_s=10.0) == []
    one.assert_all_gone()


def test_a_trainer_killed_from_outside(attempt):
    one = attempt("--never").start().until("evaluated")
    os.kill(one.until_trainer(), signal.SIGKILL)
    outcome = one.finish()
    assert (outcome.reason, outcome.signal) == (Reason.KILLED, signal.SIGKILL)


def test_a_fork_chain_that_runs_away_from_the_signals(attempt, tmp_path):
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "deadline = time.monotonic() + 20\n"
        "while time.monotonic() < deadline:\n"
        "    time.sleep(0.01)\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "    os.setsid()\n"
    )
    one = attempt(argv=[sys.executable, "-S", "-c", code], startup_s=0.5).start()
    outcome = one.finish()
    assert outcome.outcome is Outcome.FAILED
    assert outcome.leftovers == []
