"""The facts of one study as analysis reads them: plans, attempts, and the targets that count.

It must not know where the facts were stored, or how a verdict is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.objective import TimeToTarget, time_to_target
from sweeper.space import Point
from sweeper.study import Study
from sweeper.trial import AttemptFacts, Clock, Outcome, StageName, StagePlan, TrialFacts

STAGES: tuple[StageName, ...] = ("stage1", "stage2", "confirm")
UNRANKED: tuple[StageName, ...] = ("prepare", "extend")
SEARCH_STAGES: tuple[StageName, ...] = ("stage1", "stage2")


@dataclass(frozen=True)
class StageFacts:
    """A frozen plan and its trials in plan order, with every attempt that has ended.

    `effective_target` is the target the stage is judged at (a fallback, where the declared one was
    out of reach). `created_at` and `closed_at` are Unix times; a stage that is not `closed` still
    misses trials. `definition_hash` is the hash that the plan was frozen on, `options` what the command
    line asked for.
    """

    plan: StagePlan
    facts: tuple[TrialFacts, ...]
    effective_target: float
    closed: bool = False
    created_at: float = 0.0
    closed_at: float | None = None
    definition_hash: str = ""
    exploratory: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def measured(self) -> Iterator[tuple[TrialFacts, AttemptFacts]]:
        """Trials whose counted attempt says something about the configuration, in plan order."""
        for trial in self.facts:
            attempt = trial.counted
            if attempt and attempt.outcome in (Outcome.REACHED, Outcome.CENSORED):
                yield trial, attempt

    def times(self, target: float, clock: Clock) -> Iterator[tuple[TrialFacts, TimeToTarget]]:
        """Time-to-target of every measured trial, at any target and on any clock."""
        for trial, attempt in self.measured():
            time = time_to_target(attempt, target, clock)
            if time is not None:
                yield trial, time


@dataclass(frozen=True)
class StudyFacts:
    """A study with the stages that have a plan, every attempt with its verdict of validity.

    `versions` (of packages) are for the record. `banner` is what must be said of all times together.
    `unranked` are the stages that no verdict looks at: phases, and extensions of trials.
    """

    study: Study
    stages: Mapping[StageName, StageFacts]
    versions: Mapping[str, str] = field(default_factory=dict)
    banner: str = ""
    unranked: Mapping[StageName, StageFacts] = field(default_factory=dict)

    @property
    def clock(self) -> Clock:
        """The clock that ranks."""
        return self.study.objective.clock

    @property
    def target(self) -> float:
        """The target that the study is judged at: the latest stage's effective one."""
        for name in reversed(STAGES):
            if name in self.stages:
                return self.stages[name].effective_target
        return self.study.objective.target

    def present(self, names: tuple[StageName, ...] = STAGES) -> Iterator[StageFacts]:
        """The stages that have a plan, in the order in which they run."""
        for name in names:
            if name in self.stages:
                yield self.stages[name]

    def every(self) -> Iterator[StageFacts]:
        """All stages that have a plan in the order in which they run, the unranked ones too."""
        found = {**self.unranked, **self.stages}
        for name in ("prepare", *STAGES, "extend"):
            if name in found:
                yield found[name]

    def baseline(self) -> Point | None:
        """The point of all declared baselines, or None when they do not make a whole point."""
        try:
            return self.study.space.point(self.study.space.baseline())
        except (KeyError, ValueError):
            return None
