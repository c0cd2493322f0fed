"""How busy processors are, as the kernel counts: in all, for the hypervisor, for a process tree.

It must not know attempts or what a share of foreign work means for them; outside Linux nothing is known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import NamedTuple

_STAT = "/proc/stat"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CoreTimes(NamedTuple):
    """Cumulative seconds since boot, added up over some processors."""

    busy_s: float
    steal_s: float


def core_times(cores: Collection[int]) -> CoreTimes | None:
    """What these processors have done so far; None where that is not known."""
    wanted = {f"cpu{core}".encode() for core in cores}
    busy = steal = found = 0
    try:
        with open(_STAT, "rb") as file:  # noqa: PTH123 - once a second
            for line in file:
                if not line.startswith(b"cpu"):
                    break
                name, *fields = line.split()
                if name in wanted:
                    user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, fields[:8])
                    busy += user + nice + system + irq + softirq
                    steal += stolen
                    found += 1
    except (OSError, ValueError):
        return None
    return CoreTimes(busy / _TICKS_PER_S, steal / _TICKS_PER_S) if found else None


def tree_s(root: int) -> float:
    """Processor seconds of a process and its descendants, those that they have waited for included."""
    total = 0.0
    waiting, seen = [root], set()
    while waiting:
        pid = waiting.pop()
        if pid in seen:
            continue
        seen.add(pid)
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                stat = file.read()
            fields = stat[stat.rindex(b")") + 2 :].split()
            total += sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S
        waiting.extend(_children(pid))
    return total


def _children(pid: int) -> list[int]:
    """Children of every thread of a process; none where the kernel was built without that file."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += [int(child) for child in file.read().split()]
    return found
