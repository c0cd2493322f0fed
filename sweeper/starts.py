"""Where trials begin: afresh, from a file, from a phase that the study runs first, from one another.

It must not know trainers or databases: a checkpoint is a file that a trial's events name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper.attempts import FROM_THE_START, Begin
from sweeper.checkpoints import last_checkpoint
from sweeper.errors import CheckpointUnusable
from sweeper.paths import Home
from sweeper.racing.race import Race
from sweeper.space import Point
from sweeper.storage.base import Store
from sweeper.study import START_FROM, Study, content_sha256
from sweeper.trial import PlannedTrial, StageName, StagePlan, TrialFacts


@dataclass(frozen=True)
class UnrankedStage:
    """Runs that are no part of any ranking: a study's phases, or trials that go on on request.

    Nothing here is raced. `wanted` is added to what the stage's plan has already; where a plan was
    frozen with other facts about a trial, those stay.
    """

    study: Study
    name: StageName
    wanted: tuple[PlannedTrial, ...]
    about: dict[str, Any] = field(default_factory=dict)
    keep: int | None = None
    race: Race = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "race", Race(self.study, None))

    def plan(
        self,
        facts: Sequence[TrialFacts],  # noqa: ARG002 - nothing depends on what was measured
        before: StagePlan | None = None,
    ) -> StagePlan:
        """The plan so far, and what is wanted besides."""
        plan = before or StagePlan(
            study=self.study.name,
            stage=self.name,
            target=self.study.objective.target,
            trials=(),
            entries=0,
            distinct=0,
            design={"kind": self.name, "about": {}},
        )
        known = {trial.id for trial in plan.trials}
        trials = (*plan.trials, *(t for t in self.wanted if t.id not in known))
        return replace(
            plan,
            trials=trials,
            entries=len(trials),
            distinct=len({t.point for t in trials}),
            design={**plan.design, "about": {**self.about, **plan.design["about"]}},
        )


def phase_trials(study: Study, trials: Iterable[PlannedTrial]) -> tuple[PlannedTrial, ...]:
    """The phases whose checkpoints these trials begin with: one for each phase and seed."""
    found = {}
    for trial in trials:
        name = trial.point.get(START_FROM)
        start = study.starts[str(name)] if name is not None else None
        if start is not None and start.phase is not None:
            one = phase_trial(study, start.phase, trial.seed)
            found[one.id] = one
    return tuple(found.values())


def grow(store: Store, stage: UnrankedStage) -> None:
    """Add to the stage's frozen plan, where there is one, what is wanted besides."""
    record = store.stage(stage.study.name, stage.name)
    if record is not None and (plan := stage.plan((), record.plan)) != record.plan:
        store.update_plan(plan)


def phase_point(study: Study, phase: str) -> Point:
    """What a phase trains: every baseline, with what the phase sets; how it starts is no part."""
    values = {**study.space.baseline(), **study.phases[phase].set}
    whole = study.space.point({n: v for n, v in values.items() if n in study.space.parameters})
    return Point({name: value for name, value in whole.items() if name != START_FROM})


def phase_trial(study: Study, phase: str, seed: int) -> PlannedTrial:
    """A phase's run with a seed."""
    return PlannedTrial(
        id=f"p-{phase}-{seed}",
        stage="prepare",
        label=f"phase {phase}, seed {seed}: {study.phases[phase].steps} steps",
        groups=(phase,),
        point=phase_point(study, phase),
        seed=seed,
    )


def begin(study: Study, home: Home, trial: PlannedTrial, plan: StagePlan) -> Begin:
    """Where a trial begins, and what else is otherwise in it.

    Raises:
        CheckpointUnusable: what it begins with is not there.
    """
    if trial.stage == "prepare":
        return phase_begin(study, trial.groups[0])
    if trial.stage == "extend":
        about = plan.design["about"][trial.id]
        path = Path(about["checkpoint"])
        _need_file(path, f"{trial.id}: the checkpoint of {about['of']}")
        return Begin(
            checkpoint=path,
            of=about["of"],
            attempt=about["attempt"],
            extends=True,
            before=about["before"],
            arguments=study.trainer.resume,
            steps=about["steps"],
            changes=about["changes"],
            own_target=True,
            target=about["target"],
        )
    name = trial.point.get(START_FROM)
    if name is None:
        return FROM_THE_START
    start = study.starts[str(name)]
    found = Begin(start=str(name), arguments=start.arguments, steps=start.steps)
    if (file := study.checkpoint_of(str(name))) is not None:
        _need_file(file, f"[start.{name}] checkpoint")
        return replace(found, checkpoint=file, sha256=content_sha256(file))
    if start.phase is None:
        return found
    phase_id = phase_trial(study, start.phase, trial.seed).id
    attempt, left = left_by(study, home, phase_id)
    if left is None:
        raise CheckpointUnusable(
            f"{trial.id} starts from phase {start.phase} with seed {trial.seed}, and {phase_id} has "
            "left no checkpoint; see `sweep show "
            f"{phase_id}`, and let its trainer save one at the end (ours: [checkpoint] at_end = true)"
        )
    return replace(found, checkpoint=left, of=phase_id, attempt=attempt)


def need_files(study: Study) -> None:
    """Nothing when every checkpoint that the study names is there.

    Raises:
        CheckpointUnusable: one is not.
    """
    for name in study.starts:
        if (path := study.checkpoint_of(name)) is not None:
            _need_file(path, f"{study.name}: [start.{name}] checkpoint")


def need_same_file(begin: Begin, definition: Mapping[str, Any]) -> None:
    """Nothing when the file that a trial begins with is the one that its plan was frozen with.

    Raises:
        CheckpointUnusable: its content is another.
    """
    frozen = definition.get("start", {}).get(begin.start, {}).get("sha256")
    if begin.sha256 is not None and frozen not in (None, begin.sha256):
        raise CheckpointUnusable(
            f"[start.{begin.start}] checkpoint: {begin.checkpoint} is another file than when the plan "
            f"was frozen (SHA-256 {begin.sha256[:12]}..., was {str(frozen)[:12]}...): its trials would "
            "not be the same configuration. Put the former file back, or give the study a new name"
        )


def phase_begin(study: Study, phase: str) -> Begin:
    """How a phase's own run begins: afresh, for its steps, without a target."""
    found = study.phases[phase]
    return Begin(steps=found.steps, changes=found.set, own_target=True)


def left_by(study: Study, home: Home, trial_id: str) -> tuple[int, Path | None]:
    """The last attempt of a trial that has left a checkpoint, and the checkpoint."""
    for number in sorted(_attempts(home, study.name, trial_id), reverse=True):
        paths = home.attempt(study.name, trial_id, number)
        if paths.outcome.exists() and (left := last_checkpoint(paths)) is not None:
            return number, left
    return 0, None


def _attempts(home: Home, study: str, trial_id: str) -> Iterator[int]:
    for folder in (home.study(study) / trial_id).glob("attempt-*"):
        number = folder.name.removeprefix("attempt-")
        if number.isdigit():
            yield int(number)


def _need_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise CheckpointUnusable(
            f"{what}: {path} is not there; expected a checkpoint of this study's trainer "
            "(was it deleted, or is what it was on not mounted?)"
        )
