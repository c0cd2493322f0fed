"""The seam between everyone who needs facts and the database that keeps them.

It must not know SQL, and not what a good result is; every write is safe to repeat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sweeper.trial import (
    AttemptFacts,
    Brief,
    DeviceSample,
    Outcome,
    PlannedTrial,
    StageName,
    StagePlan,
    TrialFacts,
)

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
STAGES: Final[tuple[StageName, ...]] = ("prepare", "stage1", "stage2", "confirm", "extend")


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


class Readable(Protocol):
    """The half of a store that only reads.

    Methods raise DatabaseUnusable when the database cannot be used, DatabaseGone (one of them)
    where waiting may help.
    """

    def studies(self) -> Sequence[str]:
        """Names of all studies with a stage, oldest first."""
        ...

    def stage(self, study: str, stage: StageName) -> StageRecord | None:
        """The frozen stage, or None."""
        ...

    def stages(self, study: str, *, trials: bool = True) -> Sequence[StageRecord]:
        """All stages of a study in the order of STAGES.

        Without `trials` their plans have none: `counts` says how many there are.
        """
        ...

    def samples(self, study: str, trial_id: str, attempt: int) -> Sequence[DeviceSample]:
        """What was kept of an attempt's device, by device and time."""
        ...

    def running(self, study: str) -> Sequence[RunningAttempt]:
        """Attempts that were begun and not recorded, oldest first."""
        ...

    def facts(
        self,
        study: str,
        stage: StageName | None = None,
        *,
        trials: Collection[str] | None = None,
        curves: bool = True,
    ) -> Sequence[TrialFacts]:
        """Every trial of a stage (or of the study) in plan order, with its ended attempts.

        `trials` narrows to these ids. Without `curves` every curve is empty: a hundredth of the work.
        """
        ...

    def brief(self, study: str) -> Sequence[Brief]:
        """Every ended attempt of a study, those of a trial oldest first, without points and curves."""
        ...

    def counts(self, study: str) -> Mapping[StageName, Mapping[str, int]]:
        """Per stage, without reading curves: `planned` is all trials, `running` those with an
        attempt under way, and each outcome those of the others whose counted attempt has it.

        Every key is always there; what is left of `planned` waits for its first attempt.
        """
        ...

    def held(self, study: str) -> Lease | None:
        """The live lease of a study, whoever holds it, or None."""
        ...


class Store(Readable, Protocol):
    """Facts in, facts out.

    Text that no database can hold (NUL, lone surrogates, both possible in a trainer's output) comes
    back with U+FFFD in those places; all else comes back equal.
    """

    def freeze(
        self,
        plan: StagePlan,
        *,
        definition: Mapping[str, Any],
        definition_hash: str,
        options: Mapping[str, Any],
        exploratory: bool = False,
    ) -> StageRecord:
        """Create the stage with its plan, or return the one that is there.

        That one stays as it is, but for `exploratory`, which once set stays set.

        Raises:
            ValueError: a trial id is used twice, in this plan or in another stage of the study.
        """
        ...

    def update_plan(self, plan: StagePlan) -> None:
        """Replace a stage's plan after an open level was resolved.

        Trials may be added; none may go, and one that was tried keeps its point and seed.

        Raises:
            ValueError: there is no such stage, a trial is gone, or one that was tried has changed.
        """
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
        """Record that an attempt is about to start; repeating it changes nothing.

        An attempt that is running takes the new folder and slot, one that has ended stays as it is.

        Raises:
            StudyBusy: the lease is not the study's current one.
        """
        ...

    def record(
        self, study: str, trial_id: str, facts: AttemptFacts, *, lease: Lease | None = None
    ) -> bool:
        """Record an ended attempt with its curve, whole and once.

        Returns False when its outcome was there already, which stays as it was: a repeat after a
        lost connection says False too, so act on what is recorded, not on this answer. Attempts
        that were never begun are recorded as well. Without a lease nothing is fenced: for
        rebuilding a database from run folders only.

        Raises:
            StudyBusy: the lease is not the study's current one.
        """
        ...

    def record_samples(
        self, study: str, trial_id: str, attempt: int, samples: Sequence[DeviceSample]
    ) -> None:
        """Keep looks at an attempt's device; one that is there already stays as it was.

        Raises:
            ValueError: the attempt is not recorded.
        """
        ...

    def acquire(self, study: str, holder: str, *, ttl_s: float) -> Lease:
        """Take the study's lease; StudyBusy names the live holder and when its lease ends."""
        ...

    def renew(self, lease: Lease, *, ttl_s: float) -> None:
        """Extend a lease, also one that has run out but that nobody took; else StudyBusy."""
        ...

    def release(self, lease: Lease) -> None:
        """Give a lease back, for good; not holding it any more is fine."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


def storable(text: str) -> str:
    """The text with U+FFFD for what Postgres cannot hold: NUL and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def json_text(value: Mapping[str, Any]) -> str:
    """Strict JSON, key order kept; NaN and infinity are refused with ValueError."""
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"got {type(value).__name__}, expected JSON values")


def no_counts() -> dict[str, int]:
    """The keys of `Readable.counts`, all 0."""
    return dict.fromkeys(("planned", "running", *(outcome.value for outcome in Outcome)), 0)
