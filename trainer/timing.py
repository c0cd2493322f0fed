"""Owns the phase clock: where every second since the process started has gone.

It must not know what happens in a phase, nor import torch; the device's barrier is given to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PHASES = ("startup", "data", "compile", "train", "eval", "checkpoint", "idle")
_imported_at = time.monotonic()


def _note_fork() -> None:
    """In a forked child, the modules are the parent's: the child began at the fork, not before."""
    global _imported_at  # noqa: PLW0603 - one instant per process, like the process itself
    _imported_at = time.monotonic()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def process_started_at() -> float:
    """The instant, on the monotonic clock, at which this process was started or forked.

    Linux says it in /proc/self/stat, in ticks since boot, so interpreter start and imports count.
    Elsewhere it is the instant of the fork, or that at which this module was imported.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s
    except (OSError, ValueError, IndexError, AttributeError):
        return _imported_at
    started_at = time.monotonic() - age_s
    # A sandbox that reports nonsense must not put the start after our own first line.
    return min(started_at, _imported_at)


class PhaseClock:
    """A stopwatch that is always in exactly one phase, beginning with `startup`.

    Instants come from `time.monotonic`, and each is read after `synchronize`, so that work queued
    on a device is charged to the phase that queued it.
    """

    def __init__(self, started_at: float | None = None) -> None:
        self.synchronize: Callable[[], None] = _no_device
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = PHASES[0]
        self._since_at = process_started_at() if started_at is None else started_at

    @property
    def current(self) -> str:
        """The phase that is running."""
        return self._phase

    def enter(self, phase: str) -> None:
        """End the running phase now and begin `phase`."""
        if phase not in self._seconds:
            raise ValueError(f"unknown phase {phase!r}; expected one of {', '.join(PHASES)}")
        now_at = self._now()
        self._seconds[self._phase] += now_at - self._since_at
        self._phase, self._since_at = phase, now_at

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Spend the block in `phase`, then return to the phase before."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def carry(self, seconds: Mapping[str, float]) -> None:
        """Add what an earlier process of the same run has used, so that phases stay cumulative."""
        for phase in PHASES:
            self._seconds[phase] += seconds.get(phase, 0.0)

    def read(self) -> dict[str, float]:
        """Cumulative seconds per phase, the running one included."""
        seconds = dict(self._seconds)
        seconds[self._phase] += self._now() - self._since_at
        return seconds

    def _now(self) -> float:
        self.synchronize()
        return time.monotonic()


def _no_device() -> None:
    """A CPU has nothing to wait for."""
