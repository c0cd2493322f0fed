"""The verbs that run trials: stage1, stage2, confirm, and run, which does all of them and reports.

It must not know how the command line is parsed, or which executor and database serve it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import starts
from sweeper.analysis.confirm import looks
from sweeper.analysis.dataset import StudyFacts
from sweeper.analysis.ranking import search_ranking, stage_summary
from sweeper.app import App, need_stage
from sweeper.commands import frozen, node_kinds, schedules
from sweeper.commands.facts import judged_facts, stage_facts, study_facts
from sweeper.design.adaptive import plan_adaptive
from sweeper.design.confirm import extend_confirm, plan_confirm
from sweeper.design.groups import plan_stage1
from sweeper.design.refine import plan_stage2
from sweeper.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_REACHED,
    EXIT_SOME_FAILED,
    EXIT_STOPPED_EARLY,
    CheckpointUnusable,
    DatabaseUnusable,
    Interrupted,
    PlanError,
    TrainerUnusable,
)
from sweeper.executors.local import NOT_FOR_TRAINERS
from sweeper.notify import NotifyingProgress
from sweeper.progress import Progress
from sweeper.stages import AdaptiveStage, ConfirmStage, FractionStage, Stage, Stage1
from sweeper.storage.base import Lease, StageRecord, Store
from sweeper.study import Study
from sweeper.sweep import Budget, StageEnd, StageRun, Stop
from sweeper.telling import search_name
from sweeper.trial import Outcome, Reason, StageName, StagePlan, TrialFacts

# From worse to better: `run` ends with the worst code that any of its stages had.
SEVERITY = (
    EXIT_INTERRUPTED,
    EXIT_STOPPED_EARLY,
    EXIT_NOTHING_REACHED,
    EXIT_SOME_FAILED,
    EXIT_DONE,
)


def stage1(args: argparse.Namespace) -> int:
    """Plan once, then run or resume the broad stage."""
    return _command(args, [_run_stage1])


def stage2(args: argparse.Namespace) -> int:
    """Choose the top k, lock, design the fraction, run or resume it."""
    return _command(args, [_run_stage2])


def confirm(args: argparse.Namespace) -> int:
    """Replicate the finalists and the baseline, interleaved."""
    return _command(args, [_run_confirm])


def run(args: argparse.Namespace) -> int:
    """Everything, and the report at the end."""
    return _command(args, [_run_stage1, _run_stage2, _run_confirm], report=True)


def run_stages(args: argparse.Namespace, names: Sequence[StageName]) -> int:
    """The named stages, in order (for `retry`); phases are run by the stage that needs them."""
    steps = {"stage1": _run_stage1, "stage2": _run_stage2, "confirm": _run_confirm}
    chosen = dict.fromkeys("stage1" if name == "prepare" else name for name in names)
    return _command(args, [steps[name] for name in chosen])


@dataclass(frozen=True)
class Work:
    """What every stage of one command shares."""

    app: App
    args: argparse.Namespace
    study: Study
    store: Store
    lease: Lease
    executor: Any
    progress: Progress
    stop: Stop


def _command(
    args: argparse.Namespace,
    steps: Sequence[Callable[[Work], dict[str, Any]]],
    *,
    report: bool = False,
) -> int:
    if args.node_kind == node_kinds.EACH:
        return node_kinds.run_each(args, SEVERITY)
    with App(args) as app:
        study = app.study()
        check_command(study)
        stop = Stop()
        with app.lease(study) as lease, app.interruptible(stop):
            store = app.store()
            progress = watcher(app, study)
            executor = app.executor(study, progress.note)
            work = Work(app, args, study, store, lease, executor, progress, stop)
            codes: list[int] = []
            try:
                for step in steps:
                    summary = step(work)
                    codes.append(summary["exit"])
                    if summary["exit"] not in (EXIT_DONE, EXIT_SOME_FAILED):
                        break
            finally:
                progress.close()
            code = min(codes, key=SEVERITY.index)
            describe(work)
            if report:
                from sweeper.commands.output import write  # noqa: PLC0415

                write(app, study, store, out=None, target=None)
            app.out(summary | {"exit": code})
            return code


def describe(work: Work) -> None:
    """The verdict and our figures on the dashboard's page of every stage; never fails a sweep."""
    from sweeper.report import json_report, markdown, plots  # noqa: PLC0415

    facts = study_facts(work.study, work.store)
    document = json_report.document(facts, generated_at=time.time())
    note, drawn = markdown.note(document), plots.plots(document)
    opened = work.app.search(work.study, create=False)
    try:
        for stage in facts.present():
            declared = work.study.objective.target
            name = search_name(work.study.name, stage.plan.stage, stage.effective_target, declared)
            opened(name).describe(note, drawn)
    except DatabaseUnusable as error:
        work.app.say(f"the dashboard's notes were not written: {error}")


def watcher(app: App, study: Study) -> Progress:
    """What people see; with [notify], their command too."""
    progress = app.progress(study)
    if study.notify is None:
        return progress
    kept = {k: v for k, v in os.environ.items() if k not in NOT_FOR_TRAINERS}
    return NotifyingProgress(progress, study.name, study.notify, kept)


def _run_stage1(work: Work) -> dict[str, Any]:
    keep = getattr(work.args, "from_top", None) or work.study.stage2.from_top
    record = work.store.stage(work.study.name, "stage1")
    changed = _changed(work, record)
    stage = Stage1(work.study, keep)
    if record is None:
        schedules.announce(work.study, work.app.home, work.progress.note)
    if changed and record is not None:
        facts = judged_facts(work.study, work.store, "stage1")
        frozen.still_holds(work.study, stage.plan(facts, record.plan), facts)
    return _run(work, stage, work.study.objective.target, {}, changed=changed)


def _run_stage2(work: Work) -> dict[str, Any]:
    study, store = work.study, work.store
    first = need_stage(store, study, "stage1", "sweep stage1")
    record = store.stage(study.name, "stage2")
    k = frozen.option(work.args, record, "from_top", study.stage2.from_top)
    earlier = judged_facts(study, store, "stage1")
    changed = _changed(work, first, record)
    if record is not None:
        plan = record.plan
    else:
        plan = _design_stage2(study, earlier, k, first.effective_target)
    stage: Stage = FractionStage(study, plan, keep=study.confirm.top, earlier=earlier)
    if plan.design["kind"] in ("tpe", "gp"):
        from sweeper.search.optuna_search import sampler  # noqa: PLC0415 - a second of imports

        suggest, ahead = sampler(plan.design["kind"], study.space), len(work.executor.slots())
        stage = AdaptiveStage(study, plan, study.confirm.top, earlier, suggest, ahead)
    return _run(work, stage, plan.target, {"from_top": k}, changed=changed)


def _run_confirm(work: Work) -> dict[str, Any]:
    study, store = work.study, work.store
    first = need_stage(store, study, "stage1", "sweep stage1")
    before = need_stage(store, study, "stage2", "sweep stage2")
    record = store.stage(study.name, "confirm")
    top = frozen.option(work.args, record, "top", study.confirm.top)
    repeats = frozen.option(work.args, record, "repeats", study.confirm.repeats)
    changed = _changed(work, first, before, record)
    if record is not None:
        plan = record.plan
    else:
        facts = study_facts(study, store)
        rows = search_ranking(facts, target=before.effective_target)
        finalists = [row.point for row in rows if row.competes][:top]
        if not finalists:
            raise PlanError(
                f"{study.name}: nothing reached {before.effective_target:g}, so there is nothing to "
                "confirm; `sweep report` says which target is within reach"
            )
        plan = plan_confirm(
            study,
            finalists,
            facts.baseline(),
            repeats=repeats,
            seed=study.seed,
            target=before.effective_target,
            blocks=looks(repeats)[0],
        )
    stage = ConfirmStage(study, plan)
    options = {"top": top, "repeats": repeats}
    return _run(work, stage, before.effective_target, options, changed=changed)


def _changed(work: Work, *records: StageRecord | None) -> bool:
    """Whether the study changed after any of these plans was frozen, and --exploratory lets it.

    Raises:
        PlanChangedError: it changed, and may not.
    """
    exploratory = work.args.exploratory
    found = [frozen.has_changed(work.study, r, exploratory=exploratory) for r in records]
    if any(found):
        work.progress.note("the study changed after its plan was frozen: marked as exploratory")
    return any(found)


def _run(
    work: Work, stage: Stage, target: float, options: Mapping[str, Any], *, changed: bool
) -> dict[str, Any]:
    prepare(work, stage)
    end = run_stage(work, stage, target, options, changed=changed)
    if end.why:
        work.progress.note(end.why, "breaker" if end.ending == "breaker" else "")
    summary = _summary(work.study, end)
    work.progress.stage_ended(summary)
    return summary


def prepare(work: Work, stage: Stage) -> None:
    """Run the phases whose checkpoints a stage's trials begin with, as far as they are missing.

    Raises:
        PlanChangedError: the study changed after a phase was run.
        CheckpointUnusable: one of them ended without its last step.
    """
    planned = stage.plan(()).trials
    if stage.name == "confirm" and isinstance(stage, ConfirmStage):
        blocks = int(stage.fixed.design["blocks"])  # its looks may add to those of the first
        planned = extend_confirm(work.study, stage.fixed, blocks).trials
    wanted = starts.phase_trials(work.study, planned)
    if not wanted:
        return
    changed = _changed(work, work.store.stage(work.study.name, "prepare"))
    phases = starts.UnrankedStage(work.study, "prepare", wanted)
    starts.grow(work.store, phases)
    end = run_stage(work, phases, work.study.objective.target, {}, changed=changed)
    ended = {f.trial.id: f.counted for f in end.facts}
    for trial in wanted:
        counted = ended[trial.id]
        if counted is None:
            raise Interrupted(f"{trial.id} is not finished: {end.why}")
        whole = counted.reason is Reason.STEPS or counted.outcome is Outcome.INVALID
        if not whole:  # where a time is not believed, the checkpoint is
            raise CheckpointUnusable(
                f"{trial.id} ({trial.label}) ended otherwise ({counted.reason.value}): "
                f"{counted.message}; `sweep logs {trial.id}` has its output. After the cure, give the "
                "same command with --retry-failed"
            )


def run_stage(
    work: Work, stage: Stage, target: float, options: Mapping[str, Any], *, changed: bool
) -> StageEnd:
    """Run or resume one stage with what all stages of this command share."""
    return StageRun(
        study=work.study,
        stage=stage,
        store=work.store,
        search=work.app.search(work.study),
        executor=work.executor,
        home=work.app.home,
        lease=work.lease,
        progress=work.progress,
        target=target,
        budget=Budget(work.args.max_hours, work.args.max_trials),
        stop=work.stop,
        options=options,
        exploratory=changed,
        retry_failed=work.args.retry_failed,
        revive=work.app.revive,
    ).run()


def _summary(study: Study, end: StageEnd) -> dict[str, Any]:
    facts = StudyFacts(study, {end.record.stage: stage_facts(end.record, end.facts)})
    stopped_early = end.ending in ("budget", "breaker")
    summary = stage_summary(facts, end.record.stage, stopped_early=stopped_early)
    if end.ending == "interrupted":
        summary["exit"] = EXIT_INTERRUPTED
    return summary


def check_command(study: Study) -> None:
    """A trainer or a checkpoint that does not exist is said before anything is planned.

    Raises:
        TrainerUnusable: the command's first word is no program, or its folder is not there.
        CheckpointUnusable: the study names a checkpoint that is not there.
    """
    starts.need_files(study)
    program = study.trainer.command[0]
    if program == "{python}":
        program = sys.executable
    folder = study.folder / (study.trainer.cwd or ".")
    if not folder.is_dir():
        raise TrainerUnusable(
            f"{study.name}: trainer.cwd: got {study.trainer.cwd!r}, and {folder} is no folder; "
            "name one that is there, seen from the study's folder"
        )
    found = (
        (folder / program).is_file()
        if "/" in program and not Path(program).is_absolute()
        else shutil.which(program) is not None
    )
    if not found:
        raise TrainerUnusable(
            f"{study.name}: trainer.command: no program {program!r} "
            f"{'in ' + str(folder) if '/' in program else 'on PATH'}; "
            "check [trainer] command and cwd"
        )


def preview(
    study: Study, store: Store | None, stage: str, from_top: int | None
) -> tuple[StagePlan, StageRecord | None]:
    """The plan of a stage as frozen, or as it would be made now; runs and freezes nothing.

    Raises:
        PlanError: stage 2 before stage 1.
    """
    name: StageName = "stage1" if stage == "1" else "stage2"
    record = store.stage(study.name, name) if store else None
    if record is not None:
        return record.plan, record
    if name == "stage1":
        return plan_stage1(study, {}), None
    if store is None:
        raise PlanError(
            f"{study.name}: stage 2 is designed around the results of stage 1, and there is no "
            "database here yet; run `sweep stage1` first"
        )
    first = need_stage(store, study, "stage1", "sweep stage1")
    facts = judged_facts(study, store, "stage1")
    k = from_top or study.stage2.from_top
    return _design_stage2(study, facts, k, first.effective_target), None


def _design_stage2(
    study: Study, facts: Sequence[TrialFacts], from_top: int, target: float
) -> StagePlan:
    """The fraction, or where a sampler takes over: the region and its first trials."""
    runs = study.stage2.runs
    if study.stage2.strategy != "fraction":
        return plan_adaptive(study, facts, from_top=from_top, runs=runs, target=target)
    return plan_stage2(study, facts, from_top=from_top, runs=runs, seed=study.seed, target=target)
