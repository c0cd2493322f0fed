"""Attempts that take no time: a function gives the events and the outcome of a spec, N at a time.

It must not start processes or know why somebody simulates; the files it leaves are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.executors.base import Slot, Submitted
from sweeper.paths import AttemptPaths, write_json, write_whole
from sweeper.spec import AttemptOutcome, AttemptSpec

Play = Callable[[AttemptSpec], tuple[Iterable[str], AttemptOutcome]]
"""From a spec to the lines of events.jsonl (without line ends) and the outcome; deterministic."""


class SimulatedExecutor:
    """Plays attempts in virtual time: each lasts as long as its outcome's `wall_s` says.

    `wait` moves the virtual clock `now_s` to the next end and never sleeps; attempts that end at the
    same instant end in the order in which they were submitted. Files are written when an attempt
    ends, as a runner does.
    """

    def __init__(
        self,
        play: Play,
        *,
        slots: int = 1,
        device: Mapping[str, Any] | None = None,
    ) -> None:
        self._play = play
        self._slots = tuple(
            Slot(f"sim{i}", dict(device or {"kind": "simulated", "index": i}), {})
            for i in range(slots)
        )
        self._running: list[tuple[float, Submitted, list[str], AttemptOutcome]] = []
        self.now_s = 0.0
        self.played: list[AttemptSpec] = []

    def slots(self) -> Sequence[Slot]:
        """All places, whether taken or free."""
        return self._slots

    def trouble(self, slot: Slot) -> str:  # noqa: ARG002 - nobody else has it
        """Nothing is ever in the way."""
        return ""

    def submit(self, spec: Path, slot: Slot) -> None:
        """Play a spec; its end is found by a later `wait`."""
        asked = AttemptSpec.read(spec)
        lines, outcome = self._play(asked)
        self.played.append(asked)
        ends_at = self.now_s + outcome.wall_s
        self._running.append((ends_at, Submitted(spec.parent, slot), list(lines), outcome))

    def adopt(self, folder: Path) -> Slot | None:
        """The slot of an attempt of this very executor that has not ended: nothing outlives it."""
        return next((s.slot for _, s, _, _ in self._running if s.folder == folder), None)

    def wait(self, timeout_s: float) -> Sequence[Submitted]:  # noqa: ARG002 - nothing takes time
        """The attempts that end next; empty at once when nothing runs."""
        if not self._running:
            return []
        self.now_s = min(ends_at for ends_at, _, _, _ in self._running)
        ended = [r for r in self._running if r[0] <= self.now_s]
        self._running = [r for r in self._running if r[0] > self.now_s]
        for _, submitted, lines, outcome in ended:
            paths = AttemptPaths(submitted.folder)
            write_whole(paths.events, "".join(f"{line}\n" for line in lines), lasting=False)
            write_json(paths.outcome, outcome.to_json(), lasting=False)
        return [submitted for _, submitted, _, _ in ended]

    def close(self) -> None:
        """Forget everything."""
        self._running.clear()
