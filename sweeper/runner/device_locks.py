"""The folder in which every sweep of a host says which device it has: one locked file a device.

It must not know attempts or what a device is; names in, locks and notes out.

The lock is the kernel's (flock), so it ends with the process that holds it, however that ends, and it
works across users and containers that share the folder. What the file says is for people, and for
whoever takes the device next. Users who share the folder can disturb one another (take a lock and
keep it); they cannot make us write or read elsewhere: links are never followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "SWEEP_DEVICE_LOCKS"
DEFAULT_FOLDER = "/tmp/sweep-devices"  # noqa: S108 - shared on purpose; see _open_folder
_FOLDER_MODE = 0o1777
FILE_MODE = 0o666
_MOST_BYTES = 1 << 16
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LocksUnusable(Exception):  # noqa: N818 - it reads as what it says
    """No lock can be had at all; the message says why and what to do."""


def folder() -> Path:
    """Where the locks of this host lie: SWEEP_DEVICE_LOCKS, or /tmp/sweep-devices."""
    return Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)


class DeviceLock:
    """A device's file, locked by this process until `release` or its end."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self.name = name
        self.notes = read_document(descriptor)
        """What the file said when it was taken: of the attempt before, and of the device."""

    def write(self, notes: Mapping[str, Any]) -> None:
        """Replace what the file says; a full disk leaves it saying less, and the lock as it is."""
        self.notes = dict(notes)
        text = json.dumps(self.notes, allow_nan=False).encode() + b"\n"
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Give the device back; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def take(name: str, *, shared: bool = False) -> DeviceLock | None:
    """The lock of a device, or None when another process has it; never waits.

    Several processes may hold a `shared` lock together, none of them beside an exclusive one.

    Raises:
        LocksUnusable: the folder or the file cannot be used safely.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    place = open_folder()
    try:
        for _ in range(10):  # a file that is deleted while we lock it is no lock: again
            descriptor = _open_file(place, file_name(name))
            try:
                fcntl.flock(descriptor, kind)
                if _is_at(place, file_name(name), descriptor):
                    return DeviceLock(descriptor, name)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                raise LocksUnusable(f"{folder()}: cannot lock: {error.strerror}") from None
            os.close(descriptor)
    finally:
        os.close(place)
    raise LocksUnusable(f"{folder() / file_name(name)}: is deleted again and again")


def held_by(name: str) -> Mapping[str, Any] | None:
    """What the holder of a device says of itself, or None when nobody has it (or nobody can tell)."""
    try:
        lock = take(name, shared=True)
    except LocksUnusable:
        return None
    if lock is not None:
        lock.release()
        return None
    return notes_of(name)


def notes_of(name: str) -> Mapping[str, Any]:
    """What a device's file says now, whoever has it."""
    with contextlib.suppress(LocksUnusable, OSError):
        place = open_folder()
        try:
            descriptor = os.open(file_name(name), _FLAGS & ~os.O_RDWR, dir_fd=place)
        finally:
            os.close(place)
        try:
            return read_document(descriptor)
        finally:
            os.close(descriptor)
    return {}


def open_folder() -> int:
    """A descriptor of the folder, made for everyone if it is not there.

    Raises:
        LocksUnusable: it cannot be made or opened, or is not safe to share.
    """
    path = folder()
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            place = os.open(path, flags)
        except FileNotFoundError:
            mask = os.umask(0)  # made in one step, so that nobody finds it closed to them
            try:
                path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            finally:
                os.umask(mask)
            place = os.open(path, flags)
    except OSError as error:
        raise LocksUnusable(
            f"{path}: {error.strerror}; make it a folder that all users of the devices can write "
            f"(mode 1777), or name another one in {VARIABLE}"
        ) from None
    found = os.fstat(place)
    open_to_all = found.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    mine = found.st_uid in (0, os.geteuid())
    if (open_to_all or not mine) and not found.st_mode & stat.S_ISVTX:
        os.close(place)
        raise LocksUnusable(
            f"{path}: anybody who can write there could replace locks; its owner should "
            f"`chmod +t` it, or name another folder in {VARIABLE}"
        )
    return place


def _open_file(place: int, name: str) -> int:
    """A device's file. It is created in a step of its own: where a folder is sticky, Linux refuses
    O_CREAT on a file that another user made.
    """
    for _ in range(10):
        try:
            descriptor = os.open(name, _FLAGS, dir_fd=place)
        except FileNotFoundError:
            try:
                descriptor = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, FILE_MODE, dir_fd=place)
                os.fchmod(descriptor, FILE_MODE)
            except FileExistsError:
                continue
            except OSError as error:
                raise LocksUnusable(f"{folder() / name}: {error.strerror}") from None
        except OSError as error:
            raise LocksUnusable(
                f"{folder() / name}: {error.strerror}; it should be a plain file of mode 0666"
            ) from None
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return descriptor
        os.close(descriptor)
        raise LocksUnusable(f"{folder() / name}: is no plain file of its own; remove it")
    raise LocksUnusable(f"{folder() / name}: comes and goes")


def _is_at(place: int, name: str, descriptor: int) -> bool:
    """Whether a name still leads to the file that is open."""
    try:
        there = os.stat(name, dir_fd=place, follow_symlinks=False)
    except OSError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def read_document(descriptor: int) -> dict[str, Any]:
    """The JSON object in an open file; empty where there is none (torn, foreign, too long)."""
    try:
        document = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def file_name(name: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
