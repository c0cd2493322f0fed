"""What the loop tells whoever watches a stage, event by event, as it happens.

It must not know terminals, tables or colours: implementations live in `report.console`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sweeper.objective import TimeToTarget
from sweeper.trial import AttemptFacts, PlannedTrial, StagePlan


class Progress(Protocol):
    """A watcher of one command. No method may raise, block, or change what the loop does."""

    def stage_started(self, plan: StagePlan, done: int) -> None:
        """A stage begins or goes on; `done` of the plan's trials have ended before."""
        ...

    def trial_started(self, trial: PlannedTrial, slot: str) -> None:
        """An attempt at a trial was started on a slot (`cpu0`, `gpu1`)."""
        ...

    def bounded(self, trial: PlannedTrial, cap_s: float | None) -> None:
        """A running trial has this cap now, in seconds on the ranking clock (None: none)."""
        ...

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """A running trial measured its metric at `step`, after `train_s` train seconds."""
        ...

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """An attempt ended; None where it measured nothing about its configuration."""
        ...

    def stage_ended(self, summary: Mapping[str, Any]) -> None:
        """The stage is over (or was stopped); `summary` has the keys of `stage1 --json`."""
        ...

    def note(self, text: str, kind: str = "") -> None:
        """One sentence for a person: an open level was decided, a target fell back, a warning.

        `kind` is `unreachable` or `breaker` where somebody who is away wants to know at once.
        """
        ...

    def close(self) -> None:
        """Give the terminal back; safe to call twice."""
        ...
