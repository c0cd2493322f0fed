"""Room on the run folder's disk: a floor under it, a reserve for the outcome, a bound on its logs.

It must not know what is written there or why an attempt is ended when room is short.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from sweeper.paths import PRIVATE_FILE

FLOOR_BYTES = 64 << 20
FLOOR_SHARE = 0.01
"""An attempt is ended when less than this is free: 64 MiB, or this share of a small disk."""
RESERVE_BYTES = 128 << 10
"""What an outcome may need: its longest parts are cut to a few KiB each."""
LOG_BYTES = 64 << 20
"""What stdout.log, stderr.log and trainer.jsonl may occupy, each."""
_HEAD, _TAIL = LOG_BYTES // 4, LOG_BYTES // 2
_BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02


def shortage(folder: Path) -> str:
    """In words, that the disk of a folder is nearly full; "" while it is not.

    Raises:
        OSError: the folder is gone.
    """
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    floor = min(FLOOR_BYTES, int(size * FLOOR_SHARE))
    if free >= floor:
        return ""
    return (
        f"the disk of {folder} has {free >> 10} KiB left, under the floor of {floor >> 10} KiB: "
        "ended before it is full; make room"
    )


class Reserve:
    """Disk space that is taken now, so that one file can be written when there is none left.

    Raises:
        OSError: there is not even that much room now.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".outcome.reserve"
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, PRIVATE_FILE)
        try:
            # Written, not only allocated: some file systems promise room that they do not keep.
            os.pwrite(self._descriptor, bytes(RESERVE_BYTES), 0)
        except OSError:
            self.release()
            raise

    def become(self, path: Path, text: str) -> bool:
        """Turn into the file `path` that holds `text`, whole; False when the text does not fit.

        Raises:
            OSError: the folder is gone or the disk cannot be written at all.
        """
        data = text.encode()
        if len(data) > RESERVE_BYTES:
            return False
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))
        os.fsync(self._descriptor)
        self._path.replace(path)
        os.close(self._descriptor)
        return True

    def release(self) -> None:
        """Give the room back."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


class Bounded:
    """A log that another process appends to, kept to LOG_BYTES of disk: its middle is given back.

    The beginning and the end stay. Offsets do not change and nothing is copied, so whoever writes or
    reads it notices nothing; the hole begins with a line that says how much is missing and reads as
    NUL bytes after it. `read_to` says how far it must have been read before it may go. Where a file
    system cannot make holes, nothing happens (`works` is False), and the floor under the disk holds.
    """

    def __init__(self, path: Path, read_to: Callable[[], int | None] = lambda: None) -> None:
        self._path, self._read_to = path, read_to
        self._gone_to = _HEAD
        self.works = True

    def keep(self) -> bool:
        """Look at the size, and make room if need be; True when some was made."""
        try:
            size = self._path.stat().st_size
            end = size - _TAIL
            read_to = self._read_to()
            if read_to is not None:
                end = min(end, read_to)
            end -= end % _BLOCK
            # in large bites, so that this is rare
            if not self.works or end - self._gone_to < LOG_BYTES - _HEAD - _TAIL:
                return False
            with self._path.open("rb+", buffering=0) as file:
                self.works = _punch(file.fileno(), self._gone_to, end - self._gone_to)
                if self.works:
                    self._gone_to = end
                    words = f"\n[sweep: {end - _HEAD} bytes were left out here]\n".encode()
                    os.pwrite(file.fileno(), words, _HEAD)
        except OSError:
            return False
        return self.works


def _punch(descriptor: int, start: int, length: int) -> bool:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        done: int = libc.fallocate(
            descriptor,
            _KEEP_SIZE | _PUNCH_HOLE,
            ctypes.c_longlong(start),
            ctypes.c_longlong(length),
        )
    except (OSError, AttributeError):
        return False
    return done == 0
