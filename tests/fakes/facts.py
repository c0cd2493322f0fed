"""Synthetic facts of a two-stage sweep with replicates, censored and failed trials, and confirm.

They must not be shown as measurements anywhere: every curve here is an exponential with noise.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.space import Bool, Categorical, Float, Integer, Point, Space, Value
from sweeper.study import Confirm, Group, Limits, Objective, Stage1, Stage2, Study, TrainerCommand
from sweeper.trial import (
    OUTCOME_OF,
    AttemptFacts,
    Evaluation,
    Lock,
    Phases,
    PlannedTrial,
    Reason,
    StageName,
    StagePlan,
    TrialFacts,
)

TARGET = 2.5
START_LOSS = 5.5
FLOOR_LOSS = 2.2
TOKENS_PER_STEP = 64
EVALUATE_EVERY = 20
NEVER_S = 20.0  # a trial that is stopped would have needed so long
BEGAN_AT = 1_760_000_000.0


def make_space() -> Space:
    """Four parameters: two numeric, one categorical, one on or off."""
    parameters = (
        Float("optim.lr", 0.001, 0.1, scale="log", baseline=0.003),
        Integer("data.batch_size", 8, 32, step=8, baseline=8),
        Categorical("optim.method", ("newton_schulz", "polar_express"), baseline="newton_schulz"),
        Bool("model.projection", baseline=False),
    )
    return Space({p.name: p for p in parameters})


def make_study(**changes: Any) -> Study:
    """A study around that space; keyword arguments replace its fields."""
    study = Study(
        name="synthetic",
        title="Synthetic sweep",
        folder=Path("studies/synthetic"),
        objective=Objective(metric="val_loss", target=TARGET, fallback=(2.8, 3.2)),
        trainer=TrainerCommand(command=("{python}", "-m", "trainer"), config="base.toml"),
        limits=Limits(steps=600, trial_s=20.0),
        space=make_space(),
        stage1=Stage1(group=(Group(name="A", vary={"optim.lr": (0.003, 0.01, 0.03)}),)),
        stage2=Stage2(from_top=3, runs=12, replicates=3),
        confirm=Confirm(top=2, repeats=4),
    )
    return study.model_copy(update=changes)


def make_curve(
    seconds_to_target: float,
    *,
    step_s: float,
    tokens_per_step: int = TOKENS_PER_STEP,
    target: float = TARGET,
    stop_s: float | None = None,
    floor: float = FLOOR_LOSS,
) -> tuple[Evaluation, ...]:
    """An exponential from START_LOSS to `floor` that crosses the target at the given second."""
    rate = math.log((START_LOSS - floor) / (target - floor)) / seconds_to_target
    found: list[Evaluation] = []
    for step in itertools.count(0, EVALUATE_EVERY):
        train = step * step_s
        if stop_s is not None and train > stop_s:
            break
        value = floor + (START_LOSS - floor) * math.exp(-rate * train)
        clock = Phases(startup=0.4, train=train, eval=0.01 * len(found))
        found.append(Evaluation(step, step * tokens_per_step, clock, value))
        if stop_s is None and value <= target:
            break
    return tuple(found)


def make_attempt(
    reason: Reason,
    curve: Sequence[Evaluation] = (),
    *,
    attempt: int = 1,
    began_at: float = BEGAN_AT,
    message: str = "",
    cap_s: float | None = None,
) -> AttemptFacts:
    """An attempt that ended for a reason, with what its curve says."""
    last = curve[-1] if curve else None
    phases = last.clock if last else Phases(startup=0.4)
    wall = sum(phases.as_dict().values()) + 0.2
    return AttemptFacts(
        attempt=attempt,
        outcome=OUTCOME_OF[reason],
        reason=reason,
        message=message,
        curve=tuple(curve),
        phases=phases,
        steps=last.step if last else 0,
        tokens=last.tokens if last else 0,
        best_loss=min((e.value for e in curve), default=None),
        tokens_per_s=last.tokens / phases.train if last and phases.train else None,
        cap_s=cap_s,
        wall_s=wall,
        started_at=began_at,
        ended_at=began_at + wall,
        device={"name": "cpu", "model": "Synthetic CPU"},
        fingerprint={"trainer": "abc123", "data": "sha256:feed"},
    )


class Clockwork:
    """Plans and facts with exact times: a trial is a point and the seconds it needs."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.now = BEGAN_AT
        self.trials: list[TrialFacts] = []

    def trial(
        self,
        stage: StageName,
        trial_id: str,
        values: Mapping[str, Value],
        seconds: float | None,
        *,
        reason: Reason | None = None,
        label: str | None = None,
        groups: tuple[str, ...] = ("A",),
        block: int = 0,
        step_s: float = 0.01,
        stop_s: float = 5.0,
        failed_before: int = 0,
        message: str = "",
    ) -> TrialFacts:
        """Add a trial: reached after `seconds`, or (None) ended for `reason` at `stop_s`, which
        must be under `NEVER_S`."""
        point = self.study.space.point({**self.study.space.baseline(), **values})
        planned = PlannedTrial(
            id=trial_id,
            stage=stage,
            label=label or f"{trial_id} {self.study.space.show(values)}".strip(),
            groups=groups,
            point=point,
            seed=len(self.trials) + 1,
            replicate_of=self._first_of(stage, point),
            block=block,
        )
        tokens = TOKENS_PER_STEP * int(point.get("data.batch_size", 8))
        attempts = []
        for number in range(1, failed_before + 1):
            attempts.append(make_attempt(Reason.LOST, attempt=number, began_at=self.now))
            self.now += 1.0
        if seconds is not None:
            ended = make_attempt(
                reason or Reason.TARGET,
                make_curve(seconds, step_s=step_s, tokens_per_step=tokens),
                attempt=failed_before + 1,
                began_at=self.now,
            )
        else:
            why = reason or Reason.CAP
            measured = OUTCOME_OF[why] == "censored"
            curve = (
                make_curve(NEVER_S, step_s=step_s, tokens_per_step=tokens, stop_s=stop_s)
                if measured
                else ()
            )
            ended = make_attempt(
                why,
                curve,
                attempt=failed_before + 1,
                began_at=self.now,
                message=message,
                cap_s=stop_s if why is Reason.CAP else None,
            )
        self.now += ended.wall_s
        facts = TrialFacts(planned, (*attempts, ended))
        self.trials.append(facts)
        return facts

    def stage(
        self, name: StageName, *, entries: int | None = None, closed: bool = True, **plan: Any
    ) -> StageFacts:
        """The stage of every trial added under that name."""
        facts = tuple(t for t in self.trials if t.trial.stage == name)
        effective = plan.pop("effective_target", TARGET)
        return StageFacts(
            plan=StagePlan(
                study=self.study.name,
                stage=name,
                target=TARGET,
                trials=tuple(t.trial for t in facts),
                entries=entries or len(facts),
                distinct=len({t.trial.point for t in facts}),
                **plan,
            ),
            facts=facts,
            effective_target=effective,
            closed=closed,
            created_at=BEGAN_AT,
            closed_at=self.now if closed else None,
            definition_hash="0" * 64,
        )

    def facts(self, **stages: StageFacts) -> StudyFacts:
        """The study's facts with these stages."""
        return StudyFacts(self.study, stages, {"sweep": "0.1.0", "python": "3.11.9"})  # type: ignore[arg-type]

    def _first_of(self, stage: StageName, point: Point) -> str | None:
        same = (t.trial.id for t in self.trials if t.trial.stage == stage)
        points = {t.trial.id: t.trial.point for t in self.trials}
        return next((i for i in same if points[i] == point), None)


def true_seconds(values: Mapping[str, Value]) -> tuple[float, float]:
    """Seconds to the target and seconds per step of a made-up landscape."""
    log_lr = math.log(float(values["optim.lr"]) / 0.02)
    batch = float(values["data.batch_size"])
    steps = 250 * math.exp(0.25 * log_lr**2) * (16 / batch) ** 0.4
    step_s = 0.006 + 0.0005 * batch
    if values["optim.method"] == "polar_express":
        steps, step_s = steps * 0.93, step_s * 1.05
    if values["model.projection"]:
        steps, step_s = steps * 0.9, step_s * 1.02
    return steps * step_s, step_s


def make_sweep(*, confirm: bool = True, stage2: bool = True, seed: int = 7) -> StudyFacts:
    """A whole sweep: 20 entries of 17 trials, 12 designed runs, 4 blocks of confirm."""
    study = make_study()
    work, draw = Clockwork(study), random.Random(seed)
    base = study.space.baseline()

    def measured(values: Mapping[str, Value], noise: float = 0.03) -> dict[str, float]:
        seconds, step_s = true_seconds({**base, **values})
        wobble = math.exp(draw.gauss(0, noise))
        return {"seconds": seconds * wobble, "step_s": step_s}

    rates = (0.003, 0.005, 0.01, 0.02, 0.03, 0.06)
    plans = [({"optim.lr": lr}, "A") for lr in rates]
    plans += [({"optim.lr": 0.02, "data.batch_size": b}, "B") for b in (16, 24, 32)]
    plans += [({"optim.lr": lr, "optim.method": "polar_express"}, "C") for lr in (0.01, 0.02, 0.03)]
    plans += [({"optim.lr": lr, "model.projection": True}, "D") for lr in (0.01, 0.02)]
    for number, (values, group) in enumerate(plans, start=1):
        work.trial("stage1", f"s1-{group}{number}", values, groups=(group,), **measured(values))
    both = {"optim.lr": 0.02, "optim.method": "polar_express", "model.projection": True}
    work.trial("stage1", "s1-D16", {"optim.lr": 0.1}, None, groups=("D", "E"), stop_s=6.0)
    work.trial("stage1", "s1-D17", {"optim.lr": 0.001}, None, reason=Reason.STEPS, stop_s=8.0)
    why = "RuntimeError: loss is <nan> & gone"
    crashed = {"optim.lr": 0.1, "data.batch_size": 32}
    work.trial("stage1", "s1-E18", crashed, None, reason=Reason.CRASHED, message=why)
    stages: dict[str, StageFacts] = {"stage1": work.stage("stage1", entries=20)}
    if stage2:
        stages["stage2"] = _stage2(work, both, measured)
    if confirm:
        finalists = [
            ("c-a", {**both, "data.batch_size": 16}),
            ("c-b", {**both, "data.batch_size": 24}),
            ("c-0", {}),
        ]
        for block in range(1, 5):
            for name, values in draw.sample(finalists, len(finalists)):
                label = "baseline" if name == "c-0" else study.space.show(values)
                work.trial(
                    "confirm", f"{name}-{block}", values, label=label, block=block,
                    groups=("baseline",) if name == "c-0" else ("finalist",),
                    **measured(values, noise=0.02),
                )  # fmt: skip
        stages["confirm"] = work.stage("confirm")
    return work.facts(**stages)


def _stage2(work: Clockwork, both: Mapping[str, Value], measured: Any) -> StageFacts:
    rates, batches = (0.01, 0.02, 0.04), (8, 16, 24)
    cells = list(itertools.product(rates, batches))
    for number, (lr, batch) in enumerate([*cells, (0.02, 16), (0.02, 16), (0.02, 16)], start=1):
        values = {**both, "optim.lr": lr, "data.batch_size": batch}
        work.trial("stage2", f"s2-{number:02d}", values, groups=("fraction",), **measured(values))
    return work.stage(
        "stage2",
        locked={
            "optim.method": Lock("polar_express", "3 of the top 3, and 3 of 17 in stage 1: 0.5 %"),
            "model.projection": Lock(True, "paired effect -8 % [-11 %, -5 %]"),
        },
        varying={"optim.lr": rates, "data.batch_size": batches},
        design={
            "kind": "full factorial",
            "runs": 12,
            "d_efficiency": 0.97,
            "max_alias": 0.11,
            "balance": {"optim.lr": [3, 6, 3], "data.batch_size": [3, 6, 3]},
        },
    )
