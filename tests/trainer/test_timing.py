"""Shows that every second since the start of the process belongs to exactly one phase."""

import json
import os
import subprocess
import sys
import time

import pytest

from trainer.timing import PHASES, PhaseClock, process_started_at


def test_phases_add_up_to_the_age_of_the_clock():
    started_at = time.monotonic() - 5.0
    clock = PhaseClock(started_at)
    clock.enter("train")
    with clock.during("eval"):
        assert clock.current == "eval"
    assert clock.current == "train"
    before, seconds, after = time.monotonic(), clock.read(), time.monotonic()
    assert tuple(seconds) == PHASES
    assert before - started_at <= sum(seconds.values()) + 1e-6
    assert sum(seconds.values()) <= after - started_at + 1e-6
    assert seconds["startup"] >= 5.0
    assert seconds["compile"] == 0.0


def test_reading_does_not_end_a_phase():
    clock = PhaseClock()
    clock.enter("data")
    first = clock.read()
    while time.monotonic() <= clock._since_at:
        pass
    assert clock.read()["data"] >= first["data"]
    assert clock.current == "data"


def test_a_phase_ends_even_when_its_block_fails():
    clock = PhaseClock()
    clock.enter("train")
    with pytest.raises(KeyError), clock.during("eval"):
        raise KeyError
    assert clock.current == "train"


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="unknown phase 'lunch'"):
        PhaseClock().enter("lunch")


def test_the_device_is_waited_for_before_each_reading():
    clock, calls = PhaseClock(), []
    clock.synchronize = lambda: calls.append(clock.current)
    clock.enter("train")
    clock.read()
    clock.enter("eval")
    assert calls == ["startup", "train", "train"]


def test_the_start_of_the_process_counts_what_came_before_the_first_line():
    """A child sleeps before it imports us; its clock must include that and be bounded by ours."""
    code = (
        "import time; time.sleep(0.3)\n"
        "from trainer.timing import process_started_at\n"
        "print(time.monotonic() - process_started_at())"
    )
    before_at = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    age_s = float(result.stdout)
    # The kernel counts in ticks of 10 ms.
    assert 0.3 <= age_s <= time.monotonic() - before_at + 0.05


def test_the_start_is_in_the_past():
    assert process_started_at() <= time.monotonic()


def test_what_an_earlier_process_has_used_is_carried_on():
    clock = PhaseClock(time.monotonic())
    clock.carry({"train": 7.0, "eval": 2.0})
    seconds = clock.read()
    assert (seconds["train"], seconds["eval"]) == (7.0, 2.0)
    assert seconds["startup"] < 5.0


def in_a_fork(work):
    """What `work` returns, as JSON, from a forked child."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(write_end, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        answer = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(answer)


def test_a_forked_child_began_at_the_fork_not_when_its_parent_imported_us():
    """The parent must be older than the kernel's tick, so that its age cannot pass for the child's."""
    while time.monotonic() - process_started_at() < 0.2:
        time.sleep(0.05)
    forked_at = time.monotonic()
    child = in_a_fork(lambda: [process_started_at(), time.monotonic()])
    # The kernel counts in ticks of 10 ms.
    assert forked_at - 0.03 <= child[0] <= child[1]


def test_a_forked_child_began_at_the_fork_even_where_the_kernel_does_not_tell(monkeypatch):
    def not_there(*_):
        raise OSError

    monkeypatch.setattr(time, "clock_gettime", not_there)
    forked_at = time.monotonic()
    child = in_a_fork(lambda: [process_started_at(), time.monotonic()])
    assert forked_at <= child[0] <= child[1]
