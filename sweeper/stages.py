"""The three stages as seen by the loop: a plan made from facts, and which of its trials are ready.

It must not know executors or databases; it joins design and racing to what has been measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sweeper.design.groups import plan_stage1, winner
from sweeper.objective import time_to_target
from sweeper.racing.cap import Cap, cap
from sweeper.space import Value
from sweeper.study import Study
from sweeper.trial import PlannedTrial, StageName, StagePlan, TrialFacts


class Stage(Protocol):
    """One stage of one study; every method is a pure function of the facts given."""

    @property
    def name(self) -> StageName:
        """Which stage."""
        ...

    @property
    def keep(self) -> int | None:
        """How many of its points the next stage looks at; None: all of them."""
        ...

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """The plan as far as the facts decide it; what `before` had decided stays, so do trial ids."""
        ...

    def cap(self, trial: PlannedTrial, facts: Sequence[TrialFacts], target: float) -> Cap | None:
        """The bound for a trial that starts now, or None."""
        ...


@dataclass(frozen=True)
class Stage1:
    """The broad stage: groups open up as the groups they depend on get a winner."""

    study: Study
    keep: int
    name: StageName = "stage1"
    _plans: dict[str, StagePlan] = field(default_factory=dict, init=False, compare=False)

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """Re-plan with the winners that the facts decide; a winner that others were built on stays."""
        decided: dict[str, Mapping[str, Value]] = dict(before.design["winners"]) if before else {}
        for group in self.study.stage1.group:
            if group.best_of is None or group.best_of.group in decided:
                continue
            levels = winner(self.study, group.best_of.group, facts, self.study.objective.target)
            if levels is not None:
                decided[group.best_of.group] = levels
        known = repr(decided)  # the same winners make the same plan, and are asked for often
        if known not in self._plans:
            plan = plan_stage1(self.study, decided)
            self._plans[known] = replace(plan, design={**plan.design, "winners": decided})
        return self._plans[known]

    def cap(self, trial: PlannedTrial, facts: Sequence[TrialFacts], target: float) -> Cap | None:
        """Method section 4; groups that others depend on are judged against their own best too."""
        racing = self.study.racing
        if not racing.cap or self.study.objective.goal == "final":
            return None
        needed = {g.best_of.group for g in self.study.stage1.group if g.best_of is not None}
        clock = self.study.objective.clock
        group_best: float | None = None
        for group in needed.intersection(trial.groups):
            for other in facts:
                attempt = other.counted
                found = time_to_target(attempt, target, clock) if attempt else None
                if group in other.trial.groups and found is not None and found.reached:
                    group_best = min(group_best or found.seconds, found.seconds)
            if group_best is None:  # nobody in it has reached: whoever does may be its winner
                return None
        return cap(facts, target, clock, k=self.keep, slack=racing.slack, group_best=group_best)


@dataclass(frozen=True)
class FixedStage:
    """A stage whose plan was made whole before it began: the fraction, or the confirmation."""

    study: Study
    fixed: StagePlan
    keep: int | None

    @property
    def name(self) -> StageName:
        """Which stage."""
        return self.fixed.stage

    def plan(
        self,
        facts: Sequence[TrialFacts],  # noqa: ARG002
        before: StagePlan | None = None,  # noqa: ARG002
    ) -> StagePlan:
        """The plan as it was frozen."""
        return self.fixed

    def cap(
        self,
        trial: PlannedTrial,  # noqa: ARG002
        facts: Sequence[TrialFacts],
        target: float,
    ) -> Cap | None:
        """Method section 4; confirm (keep None) is never capped."""
        racing, objective = self.study.racing, self.study.objective
        if self.keep is None or not racing.cap or objective.goal == "final":
            return None
        return cap(facts, target, objective.clock, k=self.keep, slack=racing.slack)
