"""The three stages as seen by the loop: a plan made from facts, and the race that its trials run.

It must not know executors or databases; it joins design, racing and analysis to what was measured.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from sweeper.analysis.confirm import confirmation, looks
from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.prediction import predicted_best
from sweeper.design.adaptive import add_point, point_of
from sweeper.design.confirm import extend_confirm
from sweeper.design.groups import is_forbidden, plan_stage1, rivals, winner
from sweeper.racing.race import Race
from sweeper.search.base import Seen, Suggest
from sweeper.space import NUMERIC, Point, Value
from sweeper.study import Study
from sweeper.telling import told
from sweeper.trial import StageName, StagePlan, TrialFacts

SUGGESTIONS = 2
"""So many times is the sampler asked for a point that was not run before."""
DRAWS = 50
"""Then so many random ones are looked at; on a small grid there may be none left."""


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
        race = Race(self.study, self.keep, partial(rivals, self.study), ordered=True)
        object.__setattr__(self, "race", race)

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


@dataclass(frozen=True)
class FixedStage:
    """A stage whose plan was made whole before it began: the fraction, or a recorded stage.

    `earlier` are the facts of the stages before: their points compete for the `keep` places too.
    `first` is for a recorded stage 1, whose trials may change places and decide groups.
    """

    study: Study
    fixed: StagePlan
    keep: int | None
    earlier: Sequence[TrialFacts] = ()
    first: bool = False
    race: Race = field(init=False, compare=False)

    def __post_init__(self) -> None:
        race = Race(self.study, self.keep, earlier=self.earlier)
        if self.first:
            race = Race(self.study, self.keep, partial(rivals, self.study), ordered=True)
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
class FractionStage(FixedStage):
    """Stage 2's fraction, and when all of it has run up to `extra` runs of what it predicts best.

    One at a time, each from all runs before it; it ends when the predicted best has been run.
    """

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """The fraction, or with the next point to try."""
        plan = self.fixed if before is None else before
        tried = len(plan.trials) - plan.design["runs"]
        ended = {f.trial.id for f in facts if f.counted is not None}
        if tried >= self.study.stage2.extra or any(t.id not in ended for t in plan.trials):
            return plan
        seen = StageFacts(plan=plan, facts=tuple(facts), effective_target=plan.target)
        found = predicted_best(self.study, seen, target=plan.target)
        if found is None:
            return plan
        rest = {n: v for n, v in plan.trials[0].point.items() if n not in plan.varying}
        inactive = {n: v for n, v in self.study.space.baseline().items() if n not in rest}
        point = self.study.space.point({**inactive, **rest, **found.assignment})
        had = {f.trial.point for f in (*facts, *self.earlier)}
        if point in had or is_forbidden(self.study, point):
            return plan
        grown = add_point(self.study, plan, point)
        words = f"{grown.trials[-1].id} is predicted to be the best: {found.words}"
        return replace(grown, notes=(*grown.notes, words))


@dataclass(frozen=True)
class AdaptiveStage:
    """Stage 2 whose points a sampler suggests, as many ahead as there are slots.

    The same caps hold as for a fraction; censored trials are told as such.
    """

    study: Study
    fixed: StagePlan
    keep: int | None
    earlier: Sequence[TrialFacts]
    suggest: Suggest
    ahead: int = 1
    name: StageName = "stage2"
    race: Race = field(init=False, compare=False)

    def __post_init__(self) -> None:
        race = Race(self.study, self.keep, earlier=self.earlier, foresees=False)
        object.__setattr__(self, "race", race)

    def plan(self, facts: Sequence[TrialFacts], before: StagePlan | None = None) -> StagePlan:
        """The plan so far, with suggestions for the slots that would have nothing to do."""
        plan = self.fixed if before is None else before
        ended = {f.trial.id: f for f in facts if f.counted is not None}
        while (
            len(plan.trials) < plan.design["runs"]
            and sum(t.id not in ended for t in plan.trials) < self.ahead
        ):
            plan = add_point(self.study, plan, self._next(plan, ended))
        return plan

    def _next(self, plan: StagePlan, ended: Mapping[str, TrialFacts]) -> Point:
        """A point that is allowed and, if the sampler can be brought to it, new."""
        now = [
            self._seen(ended[t.id]) if t.id in ended else Seen(t.point, None) for t in plan.trials
        ]
        seen = [*(self._seen(f) for f in self.earlier if f.counted is not None), *now]
        had = {one.point for one in seen}
        repeated: list[Point] = []
        for again in range(SUGGESTIONS + DRAWS):
            seed = (self.study.seed * 10_000 + len(plan.trials)) * 100 + again
            asked = again < SUGGESTIONS
            values = self.suggest(plan.varying, seen, seed) if asked else self._draw(plan, seed)
            point = point_of(self.study, plan, values)
            if point is not None and point not in had:
                return point
            repeated += [point] if point is not None else []
        return repeated[0] if repeated else plan.trials[0].point

    def _draw(self, plan: StagePlan, seed: int) -> Mapping[str, Value]:
        """A random point of the region, uniform on the declared scales."""
        draw = random.Random(seed)  # noqa: S311 - a design, not a secret
        values: dict[str, Value] = {}
        for name, levels in plan.varying.items():
            parameter = self.study.space.parameters[name]
            if isinstance(parameter, NUMERIC):
                ends = [parameter.position(level) for level in levels]
                values[name] = parameter.value_at(draw.uniform(min(ends), max(ends)))
            else:
                values[name] = draw.choice(levels)
        return values

    def _seen(self, facts: TrialFacts) -> Seen:
        assert facts.counted is not None
        return Seen(facts.trial.point, told(self.study, facts.counted, self.fixed.target))


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
