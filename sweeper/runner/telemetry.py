"""Looks at a device while an attempt runs: each is a line of samples.jsonl, all together are shares.

It must not know what a share means for the attempt, or who is foreign: that it is told.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.runner import cpu, nvml

SAMPLE_EVERY_S = 1.0
RARE_AFTER, RARE_EVERY = 3600, 10
"""After so many samples only every tenth look is written: an hour by the second, then by 10 s."""
ENOUGH_SAMPLES = 5
"""Fewer looks than this say nothing about shares."""
AT_WORK = 0.5
"""From this utilisation on a device's clock says something about it."""


class Telemetry:
    """Samples as they are taken: written to their file, and counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._due_at = -math.inf
        self._looks = 0
        self._slowed: dict[str, int] = {}
        self._capped: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._clocks: list[float] = []
        self._first: tuple[float, cpu.CoreTimes, float] | None = None
        self._last: tuple[float, cpu.CoreTimes, float] | None = None
        self._cores = 0
        self.strangers: set[int] = set()

    def is_due(self, now: float) -> bool:
        """Whether it is time for another look; then it counts as taken."""
        if now < self._due_at:
            return False
        self._due_at = now + SAMPLE_EVERY_S
        self._looks += 1
        return True

    def gpu(self, uuid: str, reading: nvml.Reading, foreign: Sequence[int], at_s: float) -> None:
        """One look at a GPU, `at_s` seconds into the attempt."""
        if reading.throttle is not None:
            self._told[uuid] = self._told.get(uuid, 0) + 1
            self._slowed[uuid] = self._slowed.get(uuid, 0) + bool(reading.throttle & nvml.SLOWED)
            capped = bool(reading.throttle & nvml.POWER_CAPPED)
            self._capped[uuid] = self._capped.get(uuid, 0) + capped
        if reading.clock_mhz is not None and (reading.utilisation or 0.0) >= AT_WORK:
            self._clocks.append(reading.clock_mhz)
        self._write(
            {
                "device": uuid,
                "at_s": round(at_s, 3),
                "utilisation": reading.utilisation,
                "memory_bytes": reading.memory_bytes,
                "power_w": reading.power_w,
                "temperature_c": reading.temperature_c,
                "clock_mhz": reading.clock_mhz,
                "throttle": reading.throttle,
                "processes": len(reading.pids),
                **({"foreign": list(foreign)} if foreign else {}),
            }
        )

    def cores(self, cores: Sequence[int], root: int, at_s: float) -> None:
        """Processors are looked at from one sample to the next; the first has nothing to compare."""
        times = cpu.core_times(cores)
        if times is None:
            return
        own_s = cpu.tree_s(root)
        if _may_use(cores):  # our own work counts as ours where we share a processor
            own_s += sum(os.times()[:2])
        here = (at_s, times, own_s)
        before, self._last = self._last, here
        self._cores = len(cores)
        if before is None:
            self._first = here
            return
        found = _shares(before, here, len(cores))
        if found is not None:
            busy, foreign, steal = found
            self._write(
                {
                    "device": f"cores {','.join(map(str, cores))}",
                    "at_s": round(at_s, 3),
                    "utilisation": round(busy, 4),
                    "foreign_share": round(foreign, 4),
                    "steal_share": round(steal, 4),
                }
            )

    def slowed_share(self, uuid: str | None = None) -> float | None:
        """Share of looks under a thermal or hardware slowdown, of one GPU or of the worst."""
        shares = [
            self._slowed.get(name, 0) / told
            for name, told in self._told.items()
            if told >= ENOUGH_SAMPLES and uuid in (None, name)
        ]
        return max(shares, default=None)

    def core_shares(self) -> tuple[float | None, float | None]:
        """Shares of the processors' time that others and the hypervisor had, over the whole run."""
        if self._first is None or self._last is None or self._looks < ENOUGH_SAMPLES:
            return None, None
        found = _shares(self._first, self._last, self._cores)
        return (None, None) if found is None else found[1:]

    def summary(self) -> dict[str, Any]:
        """What all looks together say, as JSON values."""
        found: dict[str, Any] = {"samples": self._looks}
        foreign, steal = self.core_shares()
        capped = [c / self._told[name] for name, c in self._capped.items()]
        for key, value in (
            ("slowed_share", self.slowed_share()),
            ("power_capped_share", max(capped, default=None)),
            ("foreign_share", foreign),
            ("steal_share", steal),
            ("clock_mhz", self._usual_clock()),
        ):
            if value is not None:
                found[key] = round(value, 4)
        return found

    def _usual_clock(self) -> float | None:
        """The median clock while it worked, in MHz: idle devices lower theirs."""
        if len(self._clocks) < ENOUGH_SAMPLES:
            return None
        return sorted(self._clocks)[len(self._clocks) // 2]

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, sample: Mapping[str, Any]) -> None:
        if self._looks > RARE_AFTER and self._looks % RARE_EVERY:
            return
        with contextlib.suppress(OSError):  # the disk may be full: samples are the least of it
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            os.write(self._descriptor, json.dumps(sample, allow_nan=False).encode() + b"\n")


def _shares(
    before: tuple[float, cpu.CoreTimes, float], now: tuple[float, cpu.CoreTimes, float], cores: int
) -> tuple[float, float, float] | None:
    """Busy, foreign and stolen shares of some processors' time between two looks."""
    span_s = (now[0] - before[0]) * cores
    if span_s <= 0:
        return None
    busy_s = now[1].busy_s - before[1].busy_s
    foreign_s = busy_s - max(now[2] - before[2], 0.0)
    steal_s = now[1].steal_s - before[1].steal_s

    def share(seconds: float) -> float:
        return min(max(seconds / span_s, 0.0), 1.0)

    return share(busy_s), share(foreign_s), share(steal_s)


def _may_use(cores: Sequence[int]) -> bool:
    try:
        return bool(os.sched_getaffinity(0) & set(cores))
    except (AttributeError, OSError):
        return True
