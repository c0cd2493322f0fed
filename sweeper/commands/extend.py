"""The verb that goes on with a trial that has ended, from its checkpoint, as a trial of its own.

It must not know how anything is trained. What is extended is never ranked: others had no such chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeper import starts
from sweeper.app import App
from sweeper.attempts import configuration
from sweeper.checkpoints import last_checkpoint
from sweeper.commands import frozen, schedules
from sweeper.commands.look import find_trial
from sweeper.commands.stages import Work, check_command, run_stage, watcher
from sweeper.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_STOPPED_EARLY,
    CheckpointUnusable,
    StudyError,
)
from sweeper.objective import crossing
from sweeper.paths import Home
from sweeper.storage.base import StageRecord
from sweeper.study import START_FROM, Study
from sweeper.sweep import StageEnd, Stop
from sweeper.trial import AttemptFacts, Outcome, PlannedTrial, StagePlan, TrialFacts

ENDINGS = {
    "budget": EXIT_STOPPED_EARLY,
    "breaker": EXIT_STOPPED_EARLY,
    "interrupted": EXIT_INTERRUPTED,
}


@dataclass(frozen=True)
class Extension:
    """A trial that goes on: the new one, and what its stage's plan keeps about it."""

    trial: PlannedTrial
    about: Mapping[str, Any]


def extend(args: argparse.Namespace) -> int:
    """Show the schedule that will be applied, then go on from the trial's checkpoint."""
    if args.target is not None:
        raise StudyError("--target: expected --to X, the value at which the extended trial ends")
    with App(args) as app:
        study = app.study()
        check_command(study)
        store = app.store()
        known = find_trial(store, study, args.trial)
        ran = store.stage(study.name, known.trial.stage)
        changed = frozen.has_changed(study, ran, exploratory=args.exploratory)
        asked = extension(
            study, app.home, known, store.stage(study.name, "extend"), steps=args.steps, to=args.to
        )
        text = _schedule(study, app.home, asked)
        app.say(f"{asked.trial.id}: {asked.trial.label}\n{text}")
        if args.show:
            app.out({"trial": asked.trial.id, **asked.about, "schedule": text})
            return EXIT_DONE
        stop = Stop()
        with app.lease(study) as lease, app.interruptible(stop):
            progress = watcher(app, study)
            executor = app.executor(study, progress.note)
            work = Work(app, args, study, store, lease, executor, progress, stop)
            stage = starts.UnrankedStage(
                study, "extend", (asked.trial,), {asked.trial.id: dict(asked.about)}
            )
            starts.grow(store, stage)
            try:
                target = study.objective.target
                end = run_stage(work, stage, target, {}, changed=changed)
            finally:
                progress.close()
        return _told(app, known, asked, end, text)


def extension(
    study: Study,
    home: Home,
    known: TrialFacts,
    record: StageRecord | None,
    *,
    steps: int | None,
    to: float | None,
) -> Extension:
    """The trial that goes on with another, to `steps` in all and `to` a value of the metric.

    Asked for again before it has ended, it is the same trial.

    Raises:
        StudyError: nothing is asked for, or nothing would be left to do.
        CheckpointUnusable: it left no checkpoint, or the study cannot go on from one.
    """
    trial, counted = known.trial, known.counted
    if steps is None and to is None:
        raise StudyError(f"{trial.id}: how far? expected --steps N (in all), --to X, or both")
    if counted is None or counted.outcome not in (Outcome.REACHED, Outcome.CENSORED):
        state = f"ended as {counted.reason.value}" if counted else "has not ended"
        raise StudyError(f"{trial.id}: only a trial that was measured can go on; this one {state}")
    if not study.trainer.resume:
        raise CheckpointUnusable(
            f"{study.name}: [trainer] resume does not say how its trainer goes on from a checkpoint; "
            'such as resume = ["--resume", "{checkpoint}"]'
        )
    path = last_checkpoint(home.attempt(study.name, trial.id, counted.attempt))
    if path is None:
        raise CheckpointUnusable(
            f"{trial.id}: it left no checkpoint, or it was deleted when its stage was closed "
            '([checkpoints] keep = "all" keeps every one); nothing was changed'
        )
    before = counted.device.get("starts_from") or {}
    offset = {key: before[key] for key in ("step", "tokens", "clock") if key in before}
    done = counted.steps + int(offset.get("step", 0))
    here = _about(record, trial.id)
    limit = steps or _limit(study, trial, record)
    if limit <= done:
        raise StudyError(
            f"{trial.id}: its checkpoint is at step {done} and it would end after {limit}: nothing is "
            f"left to do; expected --steps N with N above {done}"
        )
    if to is not None and crossing(counted.curve, to, study.objective.clock) is not None:
        raise StudyError(
            f"{trial.id}: it has reached {study.objective.metric} {to:g} already "
            f"(best {counted.best_loss:.4g}); expected a lower --to"
        )
    phase = study.phases[trial.groups[0]].set if trial.stage == "prepare" else {}
    about = {
        "of": trial.id,
        "attempt": counted.attempt,
        "checkpoint": str(path),
        "before": offset,
        "from_step": done,
        "steps": limit,
        "target": to,
        "changes": {**here.get("changes", {}), **phase, **counted.device.get("adjusted", {})},
    }
    goal = "" if to is None else f", or until {study.objective.metric} is {to:g}"
    label = f"{trial.id} from step {done} to {limit}{goal}"
    new = PlannedTrial(
        id=_id(record, about),
        stage="extend",
        label=label,
        groups=("extend",),
        point=trial.point,
        seed=trial.seed,
    )
    return Extension(new, about)


def _about(record: StageRecord | None, trial_id: str) -> Mapping[str, Any]:
    """What the plan of extensions keeps about one of them; empty for any other trial."""
    found: Mapping[str, Any] = record.plan.design["about"].get(trial_id, {}) if record else {}
    return found


def _limit(study: Study, trial: PlannedTrial, record: StageRecord | None) -> int:
    """The steps that a trial was limited to, as its trainer counts."""
    plan: StagePlan | None = record.plan if record else None
    if trial.stage == "extend" and plan is not None:
        return int(plan.design["about"][trial.id]["steps"])
    if trial.stage == "prepare":
        return study.phases[trial.groups[0]].steps
    name = trial.point.get(START_FROM)
    own = study.starts[str(name)].steps if name is not None else None
    return own or study.limits.steps


def _id(record: StageRecord | None, about: Mapping[str, Any]) -> str:
    """`x-s1-A3-1` for the first extension of s1-A3; the same again for the same request."""
    known: Mapping[str, Any] = record.plan.design["about"] if record else {}
    for name, other in known.items():
        if {**other} == {**about}:
            return name
    number = 1 + sum(1 for other in known.values() if other["of"] == about["of"])
    return f"x-{about['of']}-{number}"


def _schedule(study: Study, home: Home, asked: Extension) -> str:
    """The schedule as it will be planned anew, where the study has a command that shows it."""
    if not study.trainer.schedule:
        return "[trainer] schedule is not set: its learning rates cannot be shown before"
    plan = starts.UnrankedStage(
        study, "extend", (asked.trial,), {asked.trial.id: dict(asked.about)}
    )
    begin = starts.begin(study, home, asked.trial, plan.plan(()))
    config = configuration(study, asked.trial, begin, target=begin.target)
    arguments = [w.replace("{checkpoint}", str(begin.checkpoint)) for w in begin.arguments]
    return schedules.show(study, config, arguments)


def _told(app: App, known: TrialFacts, asked: Extension, end: StageEnd, schedule: str) -> int:
    """Say what came of it."""
    found = {f.trial.id: f for f in end.facts}.get(asked.trial.id)
    counted = found.counted if found else None
    code = ENDINGS.get(end.ending, EXIT_DONE)
    if code == EXIT_DONE and (counted is None or counted.outcome is Outcome.FAILED):
        code = EXIT_SOME_FAILED
    if counted is None:
        app.say(f"{asked.trial.id}: {end.why or 'not run'}")
    elif counted.outcome is Outcome.FAILED:
        app.say(f"{asked.trial.id} failed ({counted.reason.value}): {counted.message}")
    else:
        was = known.counted
        assert was is not None
        app.say(
            f"{asked.trial.id}: steps {was.steps} -> {counted.steps}, best {_best(was)} -> "
            f"{_best(counted)}, train {was.phases.train:.2f} s -> {counted.phases.train:.2f} s; "
            "in no ranking, because others had no such chance"
        )
    app.out(
        {
            "trial": asked.trial.id,
            **asked.about,
            "schedule": schedule,
            "reason": counted.reason.value if counted else None,
            "best_loss": counted.best_loss if counted else None,
            "train_s": counted.phases.train if counted else None,
            "exit": code,
        }
    )
    return code


def _best(facts: AttemptFacts) -> str:
    return "none" if facts.best_loss is None else f"{facts.best_loss:.4g}"
