"""The three stages as seen by the loop: a plan made from facts, and the race that its trials run.

It must not know executors or databases; it joins design, racing and analysis to what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sweeper.analysis.confirm import confirmation, looks
from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.design.confirm import extend_confirm
from sweeper.design.groups import plan_stage1, winner
from sweeper.racing.race import Race
from sweeper.space import Value
from sweeper.study import Study
from sweeper.trial import StageName, StagePlan, TrialFacts


class Stage(Protocol):
    """One stage of one study; plans are pure functions of the facts given."""

    @property
    def name(self) -> StageName:
        """Which stage."""
        ...

    @property
    def keep(self) -> int | None:
        """How many of its points the next stage looks at; None: all of them."""
        ...

    @property
    def race(self) -> Race:
        """The rules that may end its trials early."""
        ...

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """The plan as far as the facts decide it; what `before` had decided stays, so do trial ids."""
        ...


@dataclass(frozen=True)
class Stage1:
    """The broad stage: groups open up as the groups they depend on get a winner."""

    study: Study
    keep: int
    name: StageName = "stage1"
    race: Race = field(init=False, compare=False)
    _plans: dict[str, StagePlan] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        groups = self.study.stage1.group
        needed = frozenset(g.best_of.group for g in groups if g.best_of is not None)
        object.__setattr__(self, "race", Race(self.study, self.keep, needed, ordered=True))

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """Re-plan with the winners that the facts decide; a winner that others were built on stays."""
        decided: dict[str, Mapping[str, Value]] = dict(before.design["winners"]) if before else {}
        for group in self.study.stage1.group:
            if group.best_of is None or group.best_of.group in decided:
                continue
            levels = winner(self.study, group.best_of.group, facts, self.study.objective.target)
            if levels is not None:
                decided[group.best_of.group] = levels
        known = repr(
            decided
        )  # the same winners make the same plan, and are asked for again and again
        if known not in self._plans:
            plan = plan_stage1(self.study, decided)
            self._plans[known] = replace(plan, design={**plan.design, "winners": decided})
        return self._plans[known]


@dataclass(frozen=True)
class FixedStage:
    """A stage whose plan was made whole before it began: the fraction, or a recorded stage.

    `earlier` are the facts of the stages before: their points compete for the `keep` places too.
    `needed` and `ordered` are for a recorded stage 1 (see `Race`).
    """

    study: Study
    fixed: StagePlan
    keep: int | None
    earlier: Sequence[TrialFacts] = ()
    needed: frozenset[str] = frozenset()
    ordered: bool = False
    race: Race = field(init=False, compare=False)

    def __post_init__(self) -> None:
        race = Race(self.study, self.keep, self.needed, self.earlier, ordered=self.ordered)
        object.__setattr__(self, "race", race)

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


@dataclass(frozen=True)
class ConfirmStage:
    """Blocks up to the first look; each look that leaves finalists undecided adds those to the next.

    Looks are at 4, 6, 8 and 10 blocks, at alpha = 0.05 over their number (method section 6): looking
    after every block would call equal finalists separated far too often. Nothing here is capped.
    """

    study: Study
    fixed: StagePlan
    name: StageName = "confirm"
    keep: int | None = None
    race: Race = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "race", Race(self.study, None))

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """The plan so far, or with the next blocks when the last look decided too little."""
        plan = self.fixed if before is None else before
        budget = int(plan.design["blocks"])
        have = max(trial.block for trial in plan.trials)
        if have >= budget or not facts or any(f.counted is None for f in facts):
            return plan
        seen = StageFacts(plan=plan, facts=tuple(facts), effective_target=plan.target)
        found = confirmation(StudyFacts(self.study, {"confirm": seen}))
        if found is None or found.settled:
            return plan
        return extend_confirm(self.study, plan, next(n for n in looks(budget) if n > have))
