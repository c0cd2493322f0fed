"""The seam between everyone who needs facts and the database that keeps them.

It must not know SQL, and not what a good result is; every write is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sweeper.trial import AttemptFacts, PlannedTrial, StageName, StagePlan, TrialFacts


@dataclass(frozen=True)
class StageRecord:
    """A stage as it was frozen. `closed_at` (Unix time) is None while it is open."""

    study: str
    stage: StageName
    target: float
    effective_target: float
    definition: Mapping[str, Any]
    definition_hash: str
    plan: StagePlan
    options: Mapping[str, Any]
    exploratory: bool
    created_at: float
    closed_at: float | None


@dataclass(frozen=True)
class RunningAttempt:
    """An attempt that was begun and has no recorded outcome; `folder` is its run folder."""

    trial_id: str
    attempt: int
    folder: str
    slot: str


@dataclass(frozen=True)
class Lease:
    """The right to orchestrate one study; `token` grows with every new holder (fencing)."""

    study: str
    token: int
    holder: str


class Store(Protocol):
    """Facts in, facts out. Methods raise DatabaseUnusable when the database cannot be used."""

    def studies(self) -> Sequence[str]:
        """Names of all studies with a stage, oldest first."""
        ...

    def freeze(
        self,
        plan: StagePlan,
        *,
        definition: Mapping[str, Any],
        definition_hash: str,
        options: Mapping[str, Any],
        exploratory: bool = False,
    ) -> StageRecord:
        """Create the stage with its plan, or return the one that is there, unchanged."""
        ...

    def stage(self, study: str, stage: StageName) -> StageRecord | None:
        """The frozen stage, or None."""
        ...

    def stages(self, study: str) -> Sequence[StageRecord]:
        """All stages of a study in the order stage1, stage2, confirm."""
        ...

    def update_plan(self, plan: StagePlan) -> None:
        """Replace a stage's plan after an open level was resolved (trial ids never change)."""
        ...

    def set_effective_target(self, study: str, stage: StageName, target: float) -> None:
        """Record that a stage is judged at another target than declared."""
        ...

    def close_stage(self, study: str, stage: StageName) -> None:
        """Mark a stage as complete; repeating it changes nothing."""
        ...

    def begin(
        self, study: str, trial: PlannedTrial, attempt: int, *, folder: str, slot: str, lease: Lease
    ) -> None:
        """Record that an attempt is about to start; a lost lease raises StudyBusy."""
        ...

    def record(
        self, study: str, trial_id: str, facts: AttemptFacts, *, lease: Lease | None = None
    ) -> bool:
        """Record an ended attempt with its curve, once; False when it was there already."""
        ...

    def running(self, study: str) -> Sequence[RunningAttempt]:
        """Attempts that were begun and not recorded."""
        ...

    def facts(self, study: str, stage: StageName | None = None) -> Sequence[TrialFacts]:
        """Every trial of a stage (or of the study) in plan order, with its ended attempts."""
        ...

    def counts(self, study: str) -> Mapping[StageName, Mapping[str, int]]:
        """Per stage: planned, running, and ended trials per outcome, without reading curves."""
        ...

    def acquire(self, study: str, holder: str, *, ttl_s: float) -> Lease:
        """Take the study's lease; StudyBusy names the live holder and when its lease ends."""
        ...

    def renew(self, lease: Lease, *, ttl_s: float) -> None:
        """Extend a lease; StudyBusy when somebody else has taken it."""
        ...

    def release(self, lease: Lease) -> None:
        """Give a lease back; not holding it any more is fine."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...
