"""Runs a stage again on recorded trials: the very loop, on a virtual clock, with nothing stored.

It must not know where the recordings came from, or which rules are compared.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.executors.replay import Find, Recording, ReplayExecutor
from sweeper.objective import TimeToTarget
from sweeper.paths import Home
from sweeper.search.base import Search
from sweeper.search.memory import MemorySearch
from sweeper.spec import AttemptSpec
from sweeper.stages import Stage
from sweeper.storage.memory import MemoryStore
from sweeper.study import Study
from sweeper.sweep import StageEnd, StageRun
from sweeper.trial import (
    AttemptFacts,
    Outcome,
    Phases,
    PlannedTrial,
    Reason,
    StageName,
    StagePlan,
    TrialFacts,
)

NEVER_RECORDED = Recording((), Phases(), Reason.ENVIRONMENT, "this point was never recorded")


@dataclass
class Notes:
    """A watcher that keeps what the loop had to say."""

    said: list[str] = field(default_factory=list)

    def stage_started(self, plan: StagePlan, done: int) -> None:
        """Nothing to show."""

    def trial_started(self, trial: PlannedTrial, slot: str) -> None:
        """Nothing to show."""

    def bounded(self, trial: PlannedTrial, cap_s: float | None) -> None:
        """Nothing to show."""

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """Nothing to show."""

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """Nothing to show."""

    def stage_ended(self, summary: Mapping[str, Any]) -> None:
        """Nothing to show."""

    def note(self, text: str, kind: str = "") -> None:  # noqa: ARG002 - all kinds count alike
        """Kept."""
        self.said.append(text)

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True)
class Replayed:
    """A stage as it went in virtual time: its end, the virtual seconds it took, what was said."""

    end: StageEnd
    virtual_s: float
    notes: tuple[str, ...]

    @property
    def train_s(self) -> float:
        """Train seconds of every attempt together."""
        return math.fsum(a.own_train_s for f in self.end.facts for a in f.attempts)

    def cut(self) -> Iterable[TrialFacts]:
        """Trials that a rule ended early."""
        early = (Reason.CAP, Reason.FORECAST)
        return (f for f in self.end.facts if f.counted and f.counted.reason in early)


def replay(
    study: Study,
    stage: Stage,
    find: Find,
    *,
    target: float,
    slots: int = 1,
    search: Callable[[str], Search] | None = None,
    scratch: Path | None = None,
) -> Replayed:
    """Run a stage of a study on recordings.

    Args:
        study: The study, whose [racing] decides what is cut.
        stage: Its stage.
        find: The recording of a spec.
        target: The target that trials run for.
        slots: So many at once.
        search: Opens the search library's study; default one in memory.
        scratch: A folder for run folders, which are deleted at the end; default a temporary one.

    Raises:
        PlanError: as the loop does.
    """
    store, notes = MemoryStore(), Notes()
    executor = ReplayExecutor(find, slots=slots)
    with tempfile.TemporaryDirectory(prefix="sweep-replay-", dir=scratch or _memory()) as folder:
        end = StageRun(
            study=study,
            stage=stage,
            store=store,
            search=search or (lambda _: MemorySearch()),
            executor=executor,
            home=Home(Path(folder)),
            lease=store.acquire(study.name, "replay", ttl_s=1e9),
            progress=notes,
            target=target,
        ).run()
    return Replayed(end, executor.now_s, tuple(notes.said))


def _memory() -> Path | None:
    """A folder that lives in memory, where there is one: hundreds of small files are synchronised."""
    folder = Path("/dev/shm")  # noqa: S108 - a private folder is made inside it
    return folder if os.access(folder, os.W_OK) else None


def recording_of(attempt: AttemptFacts) -> Recording:
    """What an attempt's facts say about how it went."""
    return Recording(
        tuple(attempt.curve), attempt.phases, attempt.reason, attempt.message or "as recorded"
    )


def recordings_of(facts: Iterable[TrialFacts]) -> Find:
    """Finds the counted attempt of a trial by its id; failed tries before it are played first."""
    known = {f.trial.id: f for f in facts}

    def find(spec: AttemptSpec) -> Recording:
        recorded = known.get(spec.trial)
        if recorded is None or recorded.counted is None:
            return NEVER_RECORDED
        if recorded.counted.outcome is Outcome.FAILED:
            tries = recorded.attempts
            return recording_of(tries[min(spec.attempt, len(tries)) - 1])
        return recording_of(recorded.counted)

    return find


def recorded_plan(
    study: Study, stage: StageName, facts: Iterable[TrialFacts], target: float
) -> StagePlan:
    """The plan that recorded trials of one stage make, in their order."""
    trials = tuple(f.trial for f in facts if f.trial.stage == stage)
    return StagePlan(
        study=study.name,
        stage=stage,
        target=target,
        trials=trials,
        entries=len(trials),
        distinct=len({t.point for t in trials}),
        design={"kind": "recorded", "blocks": len({t.block for t in trials})},
    )


def without_racing(study: Study) -> Study:
    """The study with every rule of [racing] that ends a trial early switched off."""
    off = ("cap", "expect", "forecast", "rungs", "order", "fallback")
    return with_racing(study, **dict.fromkeys(off, False))


def with_racing(study: Study, **switches: Any) -> Study:
    """The study with other switches of [racing]."""
    return study.model_copy(update={"racing": study.racing.model_copy(update=switches)})


def spent_by_trial(ends: Iterable[StageEnd]) -> Mapping[str, float]:
    """Train seconds per trial over all its attempts."""
    every = itertools.chain.from_iterable(end.facts for end in ends)
    return {f.trial.id: math.fsum(a.own_train_s for a in f.attempts) for f in every}
