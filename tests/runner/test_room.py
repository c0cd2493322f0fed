"""Room on disk: a real full disk, a reserve that outlives it, and logs that do not grow for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sweeper.paths import AttemptPaths
from sweeper.runner import room
from sweeper.spec import AttemptOutcome
from sweeper.trial import Outcome, Reason

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, leave):
    """Fill a disk up to so many bytes."""
    disk = os.statvfs(place)
    size = disk.f_bavail * disk.f_frsize - leave
    (place / "ballast").write_bytes(bytes(size))


def test_plenty_of_room_is_no_shortage(tmp_path):
    assert room.shortage(tmp_path) == ""
    with pytest.raises(OSError, match="No such file"):
        room.shortage(tmp_path / "gone")


def test_the_floor_of_a_small_disk(small_disk):
    assert room.shortage(small_disk) == ""
    fill(small_disk, 100 << 10)
    assert "under the floor of 163 KiB" in room.shortage(small_disk)


def test_the_reserve_becomes_a_file_when_nothing_can_be_written(small_disk):
    reserve = room.Reserve(small_disk)
    fill(small_disk, 0)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "other").write_bytes(bytes(4096))
    assert reserve.become(small_disk / "outcome.json", "{}\n")
    assert (small_disk / "outcome.json").read_text() == "{}\n"
    assert {p.name for p in small_disk.iterdir()} == {"outcome.json", "ballast", "other"}


def test_a_text_that_does_not_fit_is_left_to_the_caller(tmp_path):
    reserve = room.Reserve(tmp_path)
    assert not reserve.become(tmp_path / "outcome.json", "x" * (room.RESERVE_BYTES + 1))
    reserve.release()
    assert list(tmp_path.iterdir()) == []


def disk_attempt(attempt, small_disk, *options, **spec):
    one = attempt(*options, run_dir=str(small_disk / "run"), **spec)
    one.paths = AttemptPaths(small_disk / "run")
    return one


def test_an_attempt_is_ended_before_its_disk_is_full(attempt, small_disk):
    one = disk_attempt(attempt, small_disk, "--never").start().until("evaluated")
    fill(small_disk, 100 << 10)
    outcome = one.finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.ENVIRONMENT)
    assert "under the floor" in outcome.message
    assert not (small_disk / "run" / ".outcome.reserve").exists()


def test_a_trainer_that_fills_the_disk_at_once_still_gets_an_outcome(attempt, small_disk):
    code = (
        "import os, time\n"
        "while True:\n"
        "    try:\n"
        "        open(os.environ['SWEEP_RUN_DIR'] + '/big', 'ab').write(bytes(1 << 16))\n"
        "        print('x' * 4000, flush=True)\n"
        "    except OSError:\n"
        "        time.sleep(0.01)\n"
    )
    one = disk_attempt(attempt, small_disk, argv=[sys.executable, "-S", "-c", code]).start()
    one.exit()
    one.assert_all_gone()
    outcome = AttemptOutcome.read(one.paths.outcome)
    assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.ENVIRONMENT)


def test_an_attempt_does_not_start_on_a_disk_that_is_nearly_full(attempt, small_disk):
    (small_disk / "run").mkdir()
    fill(small_disk, 260 << 10)  # the reserve takes half of it
    one = disk_attempt(attempt, small_disk, "--never").start()
    outcome = one.finish()
    assert outcome.reason is Reason.ENVIRONMENT
    assert one.running().trainer is None


def occupied(path):
    return path.stat().st_blocks * 512


def test_a_log_keeps_its_ends_and_gives_back_its_middle(tmp_path):
    path = tmp_path / "stdout.log"
    bound = room.Bounded(path)
    assert not bound.keep()
    line = b"x" * 1023 + b"\n"
    with path.open("ab", buffering=0) as writer:
        cut = 0
        for number in range(160):
            writer.write(b"%07d" % number + line * 1024)
            cut += bound.keep()
            assert occupied(path) <= room.LOG_BYTES + 2 * MIB
    if not bound.works:
        pytest.skip("this file system has no holes")
    assert cut >= 2
    text = path.read_bytes()
    assert path.stat().st_size == 160 * (MIB + 7)
    assert text.startswith(b"0000000xxx")
    assert b"0000159xxx" in text[-MIB - 7 :]
    head = text[: room.LOG_BYTES // 4 + 100]
    assert b"\n[sweep: " in head
    assert b" bytes were left out here]\n" in head


def test_nothing_goes_that_was_not_read(tmp_path):
    path = tmp_path / "stdout.log"
    read = 0
    bound = room.Bounded(path, lambda: read)
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"y" * MIB)
    assert not bound.keep()
    read = 40 * MIB
    assert bound.keep() == bound.works
    if bound.works:
        assert set(path.read_bytes()[40 * MIB :]) == {ord("y")}


def test_a_flood_of_output_does_not_fill_the_disk_and_is_still_read(attempt):
    code = (
        "import sys\n"
        "line = 'z' * 999 + '\\n'\n"
        "for i in range(120):\n"
        "    sys.stdout.write(line * 1000)\n"
        "    sys.stdout.write(f'step {i} val_loss {9 - i / 20:.4f}\\n')\n"
        "    sys.stdout.flush()\n"
    )
    one = attempt(
        argv=[sys.executable, "-S", "-c", code],
        reader="patterns",
        patterns={"evaluated": r"step (?P<step>\d+) val_loss (?P<val_loss>[\d.]+)"},
        target=1.0,
    ).start()
    outcome = one.finish()
    assert outcome.reason is Reason.STEPS
    assert [e["step"] for e in one.said("evaluated")] == list(range(120))
    assert one.paths.stdout.stat().st_size > 110 * 10**6
    if any(e["kind"] == "log" for e in one.said("warning")):
        assert occupied(one.paths.stdout) < 110 * 10**6
