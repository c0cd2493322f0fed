"""Processes as the kernel shows them: who lives, who descends from whom, and how all of them end.

It must not know attempts, run folders or why something is ended. Linux's /proc, prctl and pidfds are
used where they exist; elsewhere nothing is found and only process groups can be signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

MARKER = "SWEEP_ATTEMPT"
"""Environment variable that every process of an attempt inherits; its value is unique to it."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_DEAD_STATES = "ZXx"
EMPTY_LOOKS = 3
"""Looks at every process in a row that must find nothing, where something was found before."""


class Process(NamedTuple):
    """A process at one look; `start_time` (ticks since boot) tells it from the next of its id."""

    pid: int
    start_time: int
    parent: int
    group: int
    session: int
    state: str


def look_at(pid: int) -> Process | None:
    """One process, zombies included; None when there is none or /proc does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - thousands of looks a minute
            stat = file.read()
        rest = stat[stat.rindex(b")") + 2 :].split()
        state, parent, group, session = rest[:4]
        return Process(
            pid, int(rest[19]), int(parent), int(group), int(session), state.decode("ascii")
        )
    except (OSError, ValueError, IndexError):
        return None


def everyone() -> list[Process]:
    """Every living process that we may see; zombies are not alive."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - names are all we need
    except OSError:
        return []
    looks = (look_at(int(name)) for name in names if name.isdigit())
    return [p for p in looks if p is not None and p.state not in _DEAD_STATES]


def boot_id() -> str:
    """What tells this boot from the one before: process ids and start times repeat; "" elsewhere."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return ""


def lives(pid: int, start_time: int, boot: str) -> bool:
    """Whether exactly this process, and not a later one of its id, is alive."""
    if boot != boot_id():
        return False
    found = look_at(pid)
    if found is None and not sys.platform.startswith("linux"):
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
        return True
    return found is not None and found.start_time == start_time and found.state not in _DEAD_STATES


def has_marker(pid: int, token: str) -> bool:
    """Whether a process was started with this attempt's token in its environment."""
    return marker(pid) == token


def marker(pid: int) -> str | None:
    """The token that a process was started with, or None: it has none, or is another user's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            environment = file.read()
    except OSError:
        return None
    start = f"{MARKER}=".encode()
    found = (entry for entry in environment.split(b"\0") if entry.startswith(start))
    return next((os.fsdecode(entry[len(start) :]) for entry in found), None)


ROOM_FOR_MARKER = "." * 512
"""What a process that will fork trainers has in its environment, for `mark_self` to write over."""


def mark_self(token: str) -> bool:
    """In a forked child: write the token where others read it (/proc/PID/environ).

    That is the memory that the process was started with, which `os.environ` does not reach; a
    forked child has a copy of its parent's. False where there is no room for it.
    """
    try:
        import ctypes  # noqa: PLC0415

        if _LIBC is None:
            return False
        _LIBC.getenv.restype = ctypes.c_void_p
        address = _LIBC.getenv(MARKER.encode())
        room = len(ctypes.string_at(address)) if address else 0
        text = token.encode()
        if len(text) > room:
            return False
        ctypes.memmove(address, text + bytes(room - len(text)), room)
    except (ImportError, AttributeError):
        return False
    return True


def descendants(root: int, *, session: int | None, token: str) -> list[Process]:
    """Every living process that belongs to an attempt, `root` itself not included.

    That is: children and children's children of `root` (orphans come back to it when it is a
    subreaper), members of `session`, and whoever carries the token in its environment.
    """
    known = everyone()
    children: dict[int, list[Process]] = {}
    for process in known:
        children.setdefault(process.parent, []).append(process)
    found: dict[int, Process] = {}
    waiting = list(children.get(root, ()))
    while waiting:
        process = waiting.pop()
        if process.pid not in found and process.pid != root:
            found[process.pid] = process
            waiting.extend(children.get(process.pid, ()))
    for process in known:
        ours = process.session == session or has_marker(process.pid, token)
        if ours and process.pid not in (root, os.getpid()):
            found[process.pid] = process
    return list(found.values())


def marked(*tokens: str) -> list[Process]:
    """Every living process that carries one of these attempts' tokens, whoever its parent is now."""
    return [p for p in everyone() if p.pid != os.getpid() and marker(p.pid) in tokens]


def send(process: Process, number: int) -> None:
    """Signal exactly this process; nothing happens if it is gone or its id belongs to another."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except AttributeError:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
        return
    except OSError:
        return
    try:
        now = look_at(process.pid)
        if now is not None and now.start_time == process.start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def send_group(group: int, number: int) -> None:
    """Signal a process group; nothing happens if it is empty."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def kill_all(
    find: Callable[[], Iterable[Process]],
    *,
    within_s: float,
    meanwhile: Callable[[], None] = lambda: None,
    gone: Callable[[], bool] | None = None,
) -> list[Process]:
    """Kill whatever `find` finds, again and again until there is nothing; returns who is left.

    Looking again catches what was forked between a look and its signal. A look at every process takes
    milliseconds, and what forks and ends meanwhile may be in neither half of it: so nothing is left
    only where `gone` says so, which must know for certain, or, without it and once something was
    found, when `EMPTY_LOOKS` in a row find nothing. `meanwhile` runs in every round (reaping). A
    process that another user owns, or that hangs in the kernel, is left over after `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    pause_s = 0.005
    empty, met = 0, False
    while True:
        left = list(find())
        for process in left:
            send(process, signal.SIGKILL)
        meanwhile()
        met, empty = met or bool(left), 0 if left else empty + 1
        enough = gone() if gone is not None else not met or empty >= EMPTY_LOOKS
        if (not left and enough) or time.monotonic() >= deadline:
            return left
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.1)


def have_children() -> bool:
    """Whether this process has children, ended ones that nobody has collected included.

    A subreaper without children has no descendants at all: orphans would be its children. What
    carries the attempt's token and is no descendant, only a look at every process could find.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def become_subreaper() -> bool:
    """Ask that orphaned descendants become our children; False where that cannot be had."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """In a fresh child: be killed when the thread that started us ends; exit if it already has.

    The signal comes when that *thread* ends, so the child must be started from a thread that lives
    as long as the process that it belongs to.
    """
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != parent:
        os._exit(1)


def end_with_parent() -> None:
    """Be told to stop (TERM) when the thread that started this process ends, where that can be had."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, argument: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return _LIBC is not None and _LIBC.prctl(option, argument, 0, 0, 0) == 0
    except (AttributeError, OSError):
        return False


def _libc() -> Any:
    try:
        import ctypes  # noqa: PLC0415

        return ctypes.CDLL(None)
    except (ImportError, OSError):
        return None


# Loaded now, not in the child between fork and exec, where importing is not safe.
_LIBC = _libc()
