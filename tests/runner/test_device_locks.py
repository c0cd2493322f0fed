"""The folder of locks: real files, real processes that hold them, and people who put traps there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from sweeper.runner import processes, quarantine
from sweeper.runner.device_locks import LocksUnusable, held_by, take

HOLD = """
import sys
from sweeper.runner import device_locks
lock = device_locks.take(sys.argv[1], shared=sys.argv[2] == "shared")
lock.write({"holder": {"pid": 1, "study": "other"}})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def elsewhere():
    """`elsewhere("GPU-a")`: another process that has a device until it is killed."""
    started = []

    def hold(name, how="exclusive"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, name, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_device_is_taken_once(folder, elsewhere):
    other = elsewhere("GPU-a")
    assert take("GPU-a") is None
    assert take("GPU-a", shared=True) is None
    assert held_by("GPU-a")["holder"]["study"] == "other"
    assert take("GPU-b") is not None
    other.kill()
    other.wait()
    lock = take("GPU-a")
    assert lock.notes["holder"]["study"] == "other", "what the one before said is still there"
    assert held_by("GPU-a") is not None
    lock.release()
    lock.release()
    assert held_by("GPU-a") is None


def test_shared_locks_stand_beside_one_another_and_no_exclusive_one(elsewhere):
    elsewhere("core-1", "shared")
    mine = take("core-1", shared=True)
    assert mine is not None
    mine.release()
    assert take("core-1") is None


def test_everyone_may_use_the_folder_and_nobody_may_replace_a_lock(folder):
    before = os.umask(0o077)
    try:
        take("GPU-a").release()
        quarantine.begin("GPU-a", "test")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o666}
    assert {f.name for f in folder.iterdir()} == {"GPU-a", "GPU-a.quarantine"}


def test_names_cannot_leave_the_folder(folder):
    take("../../outside/GPU").release()
    assert [f.name for f in folder.iterdir()] == ["_.._outside_GPU"]


@pytest.mark.parametrize("trap", ["link", "hard link", "fifo", "folder"])
def test_traps_are_refused_and_left_as_they_are(folder, tmp_path, trap):
    folder.mkdir()
    folder.chmod(0o1777)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = folder / "GPU-a"
    if trap == "link":
        place.symlink_to(victim)
    elif trap == "hard link":
        place.hardlink_to(victim)
    elif trap == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(LocksUnusable, match="GPU-a"):
        take("GPU-a")
    assert held_by("GPU-a") is None
    assert victim.read_text() == "precious"


def test_a_folder_that_is_a_link_or_open_to_replacing_is_refused(folder, tmp_path):
    (tmp_path / "real").mkdir()
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(LocksUnusable, match="SWEEP_DEVICE_LOCKS"):
        take("GPU-a")
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LocksUnusable, match=r"chmod \+t"):
        take("GPU-a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
def test_another_user_may_take_what_is_free_and_sees_who_has_it(folder, elsewhere):
    take("GPU-a").release()  # made by us, in a sticky folder
    folder.parent.chmod(0o755)
    code = (
        "import os, sys\n"
        "from sweeper.runner import device_locks\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "lock = device_locks.take('GPU-a')\n"
        "who = device_locks.held_by('GPU-b')\n"
        "lock.write({'holder': {'user': 'nobody'}})\n"
        "print(lock is not None, who['holder']['study'])\n"
    )
    elsewhere("GPU-b")
    for parent in folder.parents:  # pytest's own folders are ours alone
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True other\n", "")
    assert take("GPU-a").notes == {"holder": {"user": "nobody"}}


def test_garbage_in_a_file_is_nothing(folder):
    take("GPU-a").release()
    for text in ("", "{", "[1]", "[" * 100_000, '{"holder": 5}', "\0" * 9):
        (folder / "GPU-a").write_text(text)
        lock = take("GPU-a")
        assert isinstance(lock.notes, dict)
        lock.release()


def test_a_file_that_was_deleted_under_a_holder_is_a_new_lock(folder):
    first = take("GPU-a")
    (folder / "GPU-a").unlink()
    second = take("GPU-a")
    assert second is not None, "sweep cannot keep root from deleting files"
    first.release()
    assert take("GPU-a") is None


class TestQuarantine:
    def test_without_a_reason_that_can_end_it_stands_until_the_file_is_removed(self, folder):
        path = quarantine.begin("GPU-a", "looks broken")
        said = quarantine.standing("GPU-a", None)
        assert "looks broken" in said
        assert str(path) in said
        path.unlink()
        assert quarantine.standing("GPU-a", None) == ""

    def test_it_ends_with_the_processes_that_it_is_for(self, folder):
        sleeper = subprocess.Popen(["sleep", "60"])
        path = quarantine.begin("core-1", "left", pids=[sleeper.pid])
        assert json.loads(path.read_text())["pids"] == [
            [sleeper.pid, processes.look_at(sleeper.pid).start_time]
        ]
        assert "left" in quarantine.standing("core-1", None)
        sleeper.kill()
        sleeper.wait()
        assert quarantine.standing("core-1", None) == ""
        assert not path.exists()

    @pytest.mark.parametrize("text", ["", "{", '{"pids": 5}', '{"pids": [["a", 2], [3]]}', "[]"])
    def test_a_file_that_says_nothing_useful_stands(self, folder, text):
        path = quarantine.begin("GPU-a", "x")
        path.write_text(text)
        assert "GPU-a is quarantined" in quarantine.standing("GPU-a", None)
