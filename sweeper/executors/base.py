"""The seam between the loop and the places where attempts run.

It must not know what a trial is about or how it ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Slot:
    """A place for one attempt at a time.

    `device` is what the spec and the facts say about it (kind, uuid, index, name, cores); `env` is
    what the trainer needs to stay inside it (visible devices, thread counts).
    """

    name: str
    device: Mapping[str, Any]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Submitted:
    """One attempt in the hands of an executor; `folder` is the attempt's run folder.

    `fate` says, of an attempt that has gone without an outcome, what became of it, where that is known.
    """

    folder: Path
    slot: Slot
    fate: str = ""


class Executor(Protocol):
    """Starts runners, and says when they are gone.

    Every method returns promptly except `wait`, which returns at its deadline at the latest. An
    executor is used from one thread.
    """

    def slots(self) -> Sequence[Slot]:
        """All places, whether taken or free."""
        ...

    def trouble(self, slot: Slot) -> str:
        """Why nothing should be started in a free slot now (taken by others, quarantined), or ""."""
        ...

    def submit(self, spec: Path, slot: Slot) -> None:
        """Start `python -m sweeper.runner SPEC` in a free slot, whose `device` the spec repeats.

        Raises:
            EnvironmentUnusable: the runner cannot be started there.
        """
        ...

    def adopt(self, folder: Path) -> Slot | None:
        """Take over an attempt that an earlier orchestrator started.

        Returns the slot that it occupies while its runner lives, else None: then nothing of it runs
        any more, and its outcome file is there or never will be.
        """
        ...

    def wait(self, timeout_s: float) -> Sequence[Submitted]:
        """Attempts whose runner has gone since the last call; empty at the deadline."""
        ...

    def close(self) -> None:
        """Forget everything without stopping anything: runners outlive the loop."""
        ...
