"""Processes are told apart by pid, start time and boot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sweeper.runner import processes

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def scripted(*looks):
    """A `find` that sees so many processes at each look, new ones every time; who they were."""
    born = []

    def find():
        if find.looks == len(looks):
            raise AssertionError("one look more than there should be")
        new = [subprocess.Popen(SLEEP) for _ in range(looks[find.looks])]
        find.looks += 1
        born.extend(new)
        return [processes.look_at(process.pid) for process in new]

    find.looks = 0
    return find, born


@pytest.fixture
def sleeper():
    process = subprocess.Popen(SLEEP, env={**os.environ, processes.MARKER: "token-1"})
    yield process
    process.kill()
    process.wait()


def test_one_process(sleeper):
    found = processes.look_at(sleeper.pid)
    assert found is not None
    assert (found.pid, found.parent) == (sleeper.pid, os.getpid())
    boot = processes.boot_id()
    assert processes.lives(sleeper.pid, found.start_time, boot)
    assert not processes.lives(sleeper.pid, found.start_time - 1, boot), "a reused pid"
    assert not processes.lives(sleeper.pid, found.start_time, "another boot")
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.lives(sleeper.pid, found.start_time, boot), "a zombie does not live"


def test_nobody():
    assert processes.look_at(2**22 + 1) is None


def test_a_signal_goes_to_this_process_only(sleeper):
    found = processes.look_at(sleeper.pid)
    processes.send(found._replace(start_time=found.start_time - 1), signal.SIGKILL)
    assert sleeper.poll() is None
    processes.send(found, signal.SIGKILL)
    assert sleeper.wait(timeout=10) == -signal.SIGKILL
    processes.send(found, signal.SIGKILL)  # gone: nothing happens


def test_the_marker_is_compared_whole(sleeper, eventually):
    eventually(lambda: processes.has_marker(sleeper.pid, "token-1"), "exec has happened")
    assert not processes.has_marker(sleeper.pid, "token")
    assert not processes.has_marker(sleeper.pid, "token-11")
    assert [p.pid for p in processes.marked("token-1")] == [sleeper.pid]


def test_who_cannot_be_killed_is_left_over():
    me = processes.look_at(os.getpid())
    harmless = me._replace(start_time=me.start_time - 1)
    assert processes.kill_all(lambda: [harmless], within_s=0.05) == [harmless]


@pytest.mark.parametrize(
    ("looks", "gone"),
    [
        ((1, 0, 1, 0, 0, 0), None),  # what a look missed is found by the next
        ((1, 0, 0, 1, 0, 0, 0), None),  # two looks that find nothing are not enough
        ((0,), None),  # nothing was ever there: one look is
        ((1, 0), [False, True]),  # who knows for certain need not look again
        ((0, 0, 0, 0, 1, 0), [False] * 5 + [True]),  # nor do empty looks count against that
        ((1, 0), [True, True]),  # what was found is looked for again all the same
    ],
)
def test_looks_go_on_until_nothing_can_be_left(looks, gone):
    find, born = scripted(*looks)
    said = iter(gone or ())
    sure = {"gone": lambda: next(said)} if gone else {}
    try:
        assert processes.kill_all(find, within_s=60.0, **sure) == []
        assert find.looks == len(looks)
        assert [child.wait(timeout=10) for child in born] == [-signal.SIGKILL] * sum(looks)
    finally:
        for child in born:
            child.kill()
            child.wait()


def test_every_round_does_what_is_to_be_done_meanwhile(sleeper, eventually):
    eventually(lambda: processes.has_marker(sleeper.pid, "token-1"), "exec has happened")
    rounds = []
    left = processes.kill_all(
        lambda: processes.marked("token-1"), within_s=60.0, meanwhile=lambda: rounds.append(1)
    )
    assert left == []
    assert sleeper.wait(timeout=10) == -signal.SIGKILL
    assert len(rounds) >= 1 + processes.EMPTY_LOOKS
