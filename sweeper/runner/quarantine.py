"""Devices that are set aside because something is left on them: a file beside the lock, with the reason.

It must not know attempts; a quarantine ends when its reason has gone or somebody removes the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.runner import nvml, processes
from sweeper.runner.device_locks import (
    FILE_MODE,
    LocksUnusable,
    file_name,
    folder,
    open_folder,
    read_document,
)


def begin(
    name: str,
    reason: str,
    *,
    pids: Sequence[int] = (),
    memory_below: int | None = None,
    by: Mapping[str, Any] | None = None,
) -> Path:
    """Set a device aside until its memory (bytes) is not above `memory_below` and `pids` have ended.

    Raises:
        LocksUnusable: the file cannot be written.
    """
    known = [p for p in map(processes.look_at, pids) if p is not None]
    document = {
        "reason": reason,
        "memory_below": memory_below,
        "pids": [[p.pid, p.start_time] for p in known],
        "boot": processes.boot_id(),
        "at": time.time(),
        "by": dict(by or {}),
    }
    path = _path(name)
    temporary = f".{path.name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    place = open_folder()
    try:
        descriptor = os.open(temporary, flags, FILE_MODE, dir_fd=place)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(json.dumps(document, allow_nan=False) + "\n")
        try:
            os.rename(temporary, path.name, src_dir_fd=place, dst_dir_fd=place)
        except PermissionError:  # another user's quarantine stands there: it says enough
            os.unlink(temporary, dir_fd=place)
    except OSError as error:
        raise LocksUnusable(f"{path}: {error.strerror}") from None
    finally:
        os.close(place)
    return path


def standing(name: str, gpus: nvml.Gpus | None) -> str:
    """That a device is in quarantine, in words, or ""; ends a quarantine whose reason is over."""
    found = _read(name)
    if found is None:
        return ""
    path, said = found
    if _is_over(name, said, gpus):
        _remove(name)
        return ""
    reason = str(said.get("reason", "no reason given"))[:300]
    return (
        f"{name} is quarantined: {reason}. It is used again when that is over, or {path} is removed"
    )


def _is_over(name: str, said: Mapping[str, Any], gpus: nvml.Gpus | None) -> bool:
    """Whether what a quarantine was for has gone; False when nobody can tell."""
    limit, pids = said.get("memory_below"), said.get("pids") or []
    well_formed = isinstance(pids, list) and all(
        isinstance(entry, list) and [type(value) for value in entry] == [int, int] for entry in pids
    )
    if not well_formed or (limit is None and not pids):
        return False
    if any(processes.lives(pid, start, str(said.get("boot"))) for pid, start in pids):
        return False
    if limit is None:
        return True
    if gpus is None or not isinstance(limit, int):
        return False
    try:
        used = gpus.read(name).memory_bytes
    except nvml.NvmlError:
        return False
    return used is not None and used <= limit


def _path(name: str) -> Path:
    return folder() / f"{file_name(name)}.quarantine"


def _read(name: str) -> tuple[Path, Mapping[str, Any]] | None:
    path = _path(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return path, {"reason": f"the file cannot be read: {error.strerror}"}
    try:
        return path, read_document(descriptor)
    finally:
        os.close(descriptor)


def _remove(name: str) -> None:
    """Another user's file stays, and is judged anew each time."""
    with contextlib.suppress(OSError):
        _path(name).unlink()
