"""The verb that runs a stage's decisions again on exported trials: what each rule saves, and loses.

It must not know how a rule decides; it plays the same trials under several sets of rules.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.wording import count, duration, listed
from sweeper.app import App
from sweeper.commands.exported import read_trials
from sweeper.errors import EXIT_DONE, PlanError
from sweeper.racing.standing import Times
from sweeper.replay import Replayed, recorded_plan, recordings_of, replay, with_racing
from sweeper.space import Point
from sweeper.stages import FixedStage
from sweeper.study import Study
from sweeper.trial import Reason, StageName, TrialFacts

OFF: Mapping[str, bool] = dict.fromkeys(
    ("cap", "expect", "questions", "order", "forecast", "rungs", "fallback"), False
)
RULES: Mapping[str, Mapping[str, bool]] = {
    "nothing": OFF,
    "cap": {**OFF, "cap": True},
    "cap + questions": {**OFF, "cap": True, "questions": True},
    "cap + expect": {**OFF, "cap": True, "expect": True},
    "cap + order": {**OFF, "cap": True, "order": True},
    "cap + expect + order": {**OFF, "cap": True, "expect": True, "order": True},
    "cap + order + forecast": {**OFF, "cap": True, "order": True, "forecast": True},
    "cap + order + rungs": {**OFF, "cap": True, "order": True, "rungs": True},
}
"""Sets of rules by name; beside them the study's own is played."""


@dataclass(frozen=True)
class Played:
    """One stage under one set of rules, against the same with no rule at all."""

    rules: str
    train_s: float
    saved: float
    virtual_s: float
    cut: tuple[str, ...]
    forecast: int
    top_kept: bool
    winner_kept: bool
    would_have_mattered: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **vars(self),
            "cut": list(self.cut),
            "would_have_mattered": [*self.would_have_mattered],
        }

    def words(self) -> str:
        """One line."""
        text = (
            f"{self.rules}: {duration(self.train_s)} of training, {100 * self.saved:.0f} % saved, "
            f"{count(len(self.cut), 'trial')} cut ({self.forecast} by forecast or rung)"
        )
        if not self.top_kept:
            text += "; the top k CHANGED"
        if not self.winner_kept:
            text += "; the winner was LOST"
        if self.would_have_mattered:
            text += f"; cut, though in the top k: {listed(self.would_have_mattered)}"
        return text


def replay_trials(args: argparse.Namespace) -> int:
    """Play every recorded stage under each set of rules, and say what they save or lose."""
    with App(args) as app:
        study = app.study()
        facts = read_trials(args.trials, study)
        known = [f for f in facts if f.counted is not None]
        if not known:
            raise PlanError(f"{args.trials}: none of its trials has ended")
        target = args.target if args.target is not None else study.objective.target
        document: dict[str, Any] = {"study": study.name, "target": target, "stages": {}}
        stages: tuple[tuple[StageName, int], ...] = (
            ("stage1", study.stage2.from_top),
            ("stage2", study.confirm.top),
        )
        for name, k in stages:
            if not any(f.trial.stage == name for f in known):
                continue
            played = compare(study, name, known, k, target, slots=args.slots or 1)
            trials = sum(1 for f in known if f.trial.stage == name)
            app.say(f"{name}, {count(trials, 'trial')}, top {k} at {target:g}:")
            for one in played:
                app.say(f"  {one.words()}")
            document["stages"][name] = [one.as_dict() for one in played]
        app.say("Trials that were cut when they were recorded are known only up to there.")
        app.out(document)
    return EXIT_DONE


def compare(
    study: Study,
    name: StageName,
    facts: Sequence[TrialFacts],
    k: int,
    target: float,
    *,
    slots: int = 1,
) -> list[Played]:
    """One stage under every set of rules, `nothing` first and the study's own last."""
    sets = {**RULES, "as the study says": study.racing.model_dump()}
    runs = {
        rules: _play(with_racing(study, **switches), name, facts, k, target=target, slots=slots)
        for rules, switches in sets.items()
    }
    free = runs["nothing"]
    top = _top(study, free, k, target)
    return [_judge(study, rules, run, free, top=top, target=target) for rules, run in runs.items()]


def _play(
    study: Study,
    name: StageName,
    facts: Sequence[TrialFacts],
    k: int,
    *,
    target: float,
    slots: int,
) -> Replayed:
    plan = recorded_plan(study, name, facts, target)
    earlier = [f for f in facts if f.trial.stage == "stage1"] if name == "stage2" else []
    stage = FixedStage(study, plan, k, earlier, first=name == "stage1")
    return replay(study, stage, recordings_of(facts), target=target, slots=slots)


def _top(study: Study, run: Replayed, k: int, target: float) -> list[Point]:
    return Times(study.objective.clock).standing(run.end.facts, target).best(k)


def _judge(
    study: Study,
    rules: str,
    run: Replayed,
    free: Replayed,
    *,
    top: Sequence[Point],
    target: float,
) -> Played:
    mine = _top(study, run, len(top), target)
    cut = {f.trial.id: f for f in run.cut()}
    mattered = [i for i, f in cut.items() if f.trial.point in top and f.trial.point not in mine]
    early = [f for f in cut.values() if f.counted and f.counted.reason is Reason.FORECAST]
    return Played(
        rules=rules,
        train_s=run.train_s,
        saved=1 - run.train_s / free.train_s if free.train_s > 0 else 0.0,
        virtual_s=run.virtual_s,
        cut=tuple(cut),
        forecast=len(early),
        top_kept=mine == list(top),
        winner_kept=mine[:1] == list(top[:1]),
        would_have_mattered=tuple(mattered),
    )
