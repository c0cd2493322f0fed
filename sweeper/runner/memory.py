"""Whether the kernel has killed for memory: counters before and after an attempt.

It must not know whom it killed; an attempt that died of SIGKILL while a counter rose is taken for one.
"""

from __future__ import annotations

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def kills_so_far() -> int:
    """Processes that the kernel killed for memory, on this host and in our control group; 0 unknown."""
    return _counter(_VMSTAT, "oom_kill") + sum(_counter(path, "oom_kill") for path in _groups())


def _groups() -> list[Path]:
    """Files with our control groups' memory events, of either version of them."""
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            found.append(_CGROUP_ROOT / group.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(_CGROUP_ROOT / "memory" / group.lstrip("/") / "memory.oom_control")
    return found


def _counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = (line.split() for line in lines)
    return next((int(v[1]) for v in values if len(v) == 2 and v[0] == name), 0)
