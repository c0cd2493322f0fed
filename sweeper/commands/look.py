"""The verbs that look and change nothing: plan, check, show, logs, studies.

They must not know how anything is run, and never write to the database.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import attempts, catalog, starts
from sweeper.app import App
from sweeper.attempts import configuration
from sweeper.commands import schedules
from sweeper.commands.stages import check_command, preview
from sweeper.design.groups import plan_stage1
from sweeper.errors import (
    EXIT_DONE,
    DatabaseUnusable,
    DeviceUnusable,
    EnvironmentUnusable,
    StudyError,
    SweepError,
    TrainerUnusable,
)
from sweeper.events import finite
from sweeper.objective import near_misses
from sweeper.paths import AttemptPaths
from sweeper.space import Point, Value
from sweeper.storage.base import Store
from sweeper.study import Group, Study
from sweeper.trial import PlannedTrial, StagePlan, TrialFacts

CHECK_LIMIT_S = 120.0
MOST_WINNERS = 200  # combinations of group winners that `check` asks the trainer about


def plan(args: argparse.Namespace) -> int:
    """Show a stage's design, its duplicates, aliasing and cost; runs nothing."""
    with App(args) as app:
        study = app.study()
        if args.target is not None:
            objective = study.objective.model_copy(update={"target": args.target})
            study = study.model_copy(update={"objective": objective})
        store = _store_if_any(app, needed=args.stage == "2")
        chosen, record = preview(study, store, args.stage, args.from_top)
        facts = store.facts(study.name) if store else ()
        document = plan_document(study, chosen, facts)
        document["frozen"] = record is not None
        document["schedules"] = schedules.of_starts(study, app.home, args.svg)
        app.out(document)
        if not args.quiet:
            from sweeper.report import console  # noqa: PLC0415

            app.console().print(console.plan_table(document))
            for start, text in document["schedules"].items():
                app.say(f"\nschedule of {start}: {text}")
    return EXIT_DONE


def _store_if_any(app: App, *, needed: bool) -> Store | None:
    """The store, where there is one; a database that cannot be used is no error unless `needed`."""
    if not app.has_database():
        return None
    try:
        return app.store()
    except DatabaseUnusable as error:
        if needed:
            raise
        print(f"sweep: the plan as it would be made now, for {error}", file=sys.stderr)  # noqa: T201
        return None


def plan_document(study: Study, chosen: StagePlan, facts: Sequence[TrialFacts]) -> dict[str, Any]:
    """The document of `plan --json`."""
    walls = [a.wall_s for f in facts for a in f.attempts if a.wall_s]
    trial_s = statistics.median(walls) if walls else None
    worst_s = study.limits.trial_s
    return {
        "study": study.name,
        "stage": chosen.stage,
        "target": chosen.target,
        "entries": chosen.entries,
        "distinct": chosen.distinct,
        "points": [
            {
                "id": t.id,
                "label": t.label,
                "groups": list(t.groups),
                "point": dict(t.point),
                "replicate_of": t.replicate_of,
                "seed": t.seed,
                "block": t.block,
                "open": list(t.open),
            }
            for t in chosen.trials
        ],
        "locked": {n: {"value": x.value, "why": x.why} for n, x in chosen.locked.items()},
        "varying": {name: list(levels) for name, levels in chosen.varying.items()},
        "open": dict(chosen.open),
        "depends_on": dict(chosen.depends_on),
        "design": dict(chosen.design),
        "notes": list(chosen.notes),
        "forecast": {
            "trial_s": trial_s,
            "total_s": None if trial_s is None else trial_s * len(chosen.trials),
            "worst_trial_s": worst_s,
            "worst_total_s": worst_s * len(chosen.trials),
        },
    }


def check(args: argparse.Namespace) -> int:
    """Validate study, every planned configuration, data, database and devices.

    Raises:
        SweepError: the first thing that is wrong, with its exit code.
    """
    with App(args) as app:
        study = app.study()
        found: list[dict[str, Any]] = []

        def passed(what: str, text: str) -> None:
            found.append({"check": what, "ok": True, "text": text})
            app.say(f"ok    {what}: {text}")

        chosen = plan_stage1(study, {})
        passed("study", f"{chosen.entries} entries, {chosen.distinct} distinct points")
        check_command(study)
        passed("trainer", _check_trainer(study, possible_trials(study)))
        if not args.offline:
            passed("devices", ", ".join(_slots(study, args.devices)))
            store = app.store()
            planned = [t for r in store.stages(study.name) for t in r.plan.trials]
            if planned:
                passed("frozen plans", _check_trainer(study, planned))
            passed("database", f"schema up to date, {len(store.studies())} studies")
        app.out({"study": study.name, "checks": found, "exit": EXIT_DONE})
    return EXIT_DONE


def possible_trials(study: Study) -> list[PlannedTrial]:
    """Stage 1 with every winner that a group could have: one trial for each point that may come up.

    Beyond MOST_WINNERS combinations, every group's winners are tried with the others' first ones.
    """
    groups = {group.name: group for group in study.stage1.group}
    sources = dict.fromkeys(g.best_of.group for g in study.stage1.group if g.best_of is not None)
    winners = {name: _possible_winners(groups[name]) for name in sources}
    combinations: list[dict[str, Mapping[str, Value]]]
    if math.prod(len(found) for found in winners.values()) <= MOST_WINNERS:
        combinations = [
            dict(zip(winners, chosen, strict=True))
            for chosen in itertools.product(*winners.values())
        ]
    else:
        combinations = [{name: one} for name, found in winners.items() for one in found]
    trials: dict[Point, PlannedTrial] = {}
    for combination in combinations:
        for trial in plan_stage1(study, combination).trials:
            trials.setdefault(trial.point, trial)
    return list(trials.values())


def _possible_winners(group: Group) -> list[Mapping[str, Value]]:
    """The levels of a group, or one level of each parameter where each has its own winner."""
    if not group.vary:
        return list(group.levels())
    choices = itertools.islice(itertools.product(*group.vary.values()), MOST_WINNERS)
    return [dict(zip(group.vary, chosen, strict=True)) for chosen in choices]


def _slots(study: Study, devices: str | None) -> list[str]:
    from sweeper.executors.local import LocalExecutor  # noqa: PLC0415

    executor = LocalExecutor.on_devices(gpus=study.resources.gpus, devices=devices, slots=None)
    try:
        troubles = [(slot.name, executor.trouble(slot)) for slot in executor.slots()]
        if all(why for _, why in troubles):
            said = "; ".join(f"{name}: {why}" for name, why in troubles)
            raise DeviceUnusable(f"{study.name}: no device is free: {said}")
        return [f"{name} (left out: {why})" if why else name for name, why in troubles]
    finally:
        executor.close()


def _check_trainer(study: Study, trials: Sequence[PlannedTrial]) -> str:
    """Ask the trainer itself about every planned configuration, in one process.

    Raises:
        TrainerUnusable: it cannot be asked.
        StudyError: it refuses configurations; names them all.
    """
    if study.trainer.module is None:
        return "not importable, so its configurations are first seen when they run"
    goal = study.objective
    phases = [starts.phase_trial(study, name, study.seed) for name in study.phases]
    configs = [
        configuration(study, t, attempts.FROM_THE_START, target=goal.target, fallback=goal.fallback)
        for t in trials
    ] + [
        configuration(study, t, starts.phase_begin(study, t.groups[0]), target=None) for t in phases
    ]
    trials = [*trials, *phases]
    refused: dict[str, list[PlannedTrial]] = {}
    answers = _ask_trainer(study, configs)
    for trial, problems in zip(trials, answers, strict=True):
        for problem in problems if isinstance(problems, list) else [problems]:
            refused.setdefault(_in_words(problem), []).append(trial)
    if refused:
        number = len({trial.point for found in refused.values() for trial in found})
        raise StudyError(
            f"{study.name}: the trainer refuses {number} of {len(configs)} configurations:"
            + "".join(
                f"\n  {words}\n    in {', '.join(dict.fromkeys(t.id for t in found))}, "
                f"for example {found[0].point.show()}"
                for words, found in refused.items()
            )
        )
    return f"{len(configs)} configurations accepted by `{study.trainer.module}`"


def _ask_trainer(study: Study, configs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What `python -m MODULE check --stdin` says to each configuration: nothing, or its problems.

    Raises:
        TrainerUnusable: it cannot be started, or gives no such answer.
    """
    from sweeper.executors.local import NOT_FOR_TRAINERS  # noqa: PLC0415

    command = [sys.executable, "-m", str(study.trainer.module), "check", "--stdin"]
    said = ""
    try:
        done = subprocess.run(
            command,
            input=json.dumps(configs),
            capture_output=True,
            text=True,
            timeout=CHECK_LIMIT_S,
            cwd=study.folder,
            env={k: v for k, v in os.environ.items() if k not in NOT_FOR_TRAINERS},
            check=False,
        )
        said = done.stderr
        answers = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        answers, said = None, said or str(error)
    if not isinstance(answers, list) or len(answers) != len(configs):
        last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
        raise TrainerUnusable(
            f"{study.name}: trainer.module: `{' '.join(command[1:])}` gave no usable answer"
            + "".join(f": {line}" for line in last)
            + "; correct [trainer] module, or leave it out"
        )
    return answers


def _in_words(problem: Any) -> str:
    message = problem.get("message") if isinstance(problem, Mapping) else problem
    return str(message or problem)


def find_trial(store: Store, study: Study, trial_id: str) -> TrialFacts:
    """A trial by its id.

    Raises:
        StudyError: no such trial; names the nearest.
    """
    import difflib  # noqa: PLC0415

    found = store.facts(study.name, trials=[trial_id])
    if found:
        return found[0]
    every = [t.id for record in store.stages(study.name) for t in record.plan.trials]
    near = difflib.get_close_matches(trial_id, every, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = f" ({len(every)} trials here, for example {every[0]})" if every else ""
    raise StudyError(f"{study.name}: no trial {trial_id!r}{known}{hint}")


def show(args: argparse.Namespace) -> int:
    """One trial: configuration, curve, why it ended."""
    with App(args) as app:
        study = app.study(quiet=args.json)
        store = app.store()
        facts = _judged(study, store, find_trial(store, study, args.trial))
        record = store.stage(study.name, facts.trial.stage)
        target = record.effective_target if record else study.objective.target
        about = record.plan.design.get("about", {}) if record else {}
        document = trial_document(study, facts, target, about.get(facts.trial.id))
        app.out(document)
        if not args.json:
            from sweeper.report import console  # noqa: PLC0415

            app.console().print(console.show_trial(document))
    return EXIT_DONE


def _judged(study: Study, store: Store, facts: TrialFacts) -> TrialFacts:
    """A trial with the validity gate's verdicts; it compares it with every other one."""
    from sweeper.commands.verdicts import judged_trials  # noqa: PLC0415

    every = judged_trials(study, store).facts
    return next((f for f in every if f.trial.id == facts.trial.id), facts)


def trial_document(
    study: Study, facts: TrialFacts, target: float, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document of `show --json`: the trial and each of its attempts; `about` an extension."""
    from sweeper.commands.output import attempt_document  # noqa: PLC0415
    from sweeper.commands.verdicts import attempt_verdict  # noqa: PLC0415

    trial = facts.trial
    return {
        "study": study.name,
        "stage": trial.stage,
        "id": trial.id,
        "label": trial.label,
        "groups": list(trial.groups),
        "point": dict(trial.point),
        "seed": trial.seed,
        "replicate_of": trial.replicate_of,
        "target": target,
        "attempts": [
            attempt_document(study, trial, a, target, about)
            | {
                "verdict": attempt_verdict(facts, a),
                "near_misses": [
                    [probe.clock.train, probe.step, probe.value, finite(value)]
                    for probe, value in near_misses(a.curve, target)
                ],
            }
            for a in facts.attempts
        ],
    }


def logs(args: argparse.Namespace) -> int:
    """The output of a trial's last attempt; `-f` goes on until it has ended."""
    with App(args) as app:
        study = app.study(quiet=True)
        folders = sorted(
            (app.home.study(study.name) / args.trial).glob("attempt-*"),
            key=lambda folder: int(folder.name.removeprefix("attempt-")),
        )
        if not folders:
            find_trial(app.store(), study, args.trial)  # says when there is no such trial
            raise EnvironmentUnusable(f"{args.trial}: has no run folder under {app.home.folder}")
        if app.settings.json:
            app.out({"trial": args.trial, "folder": str(folders[-1]), **_output(folders[-1])})
        else:
            _follow(folders[-1], follow=args.follow)
    return EXIT_DONE


def _output(folder: Path) -> dict[str, str]:
    paths = AttemptPaths(folder)
    return {
        name: path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for name, path in (("stdout", paths.stdout), ("stderr", paths.stderr))
    }


def _follow(folder: Path, *, follow: bool) -> None:
    offsets: dict[str, int] = {"stdout.log": 0, "stderr.log": 0}
    while True:
        ended = (folder / "outcome.json").exists()
        for name, offset in offsets.items():
            path = folder / name
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
                offsets[name] += len(data)
                os.write(sys.stdout.fileno(), data)
        if ended or not follow:
            return
        time.sleep(0.2)


def studies(args: argparse.Namespace) -> int:
    """The built-in studies."""
    with App(args) as app:
        listed: list[Mapping[str, Any]] = []
        for name in catalog.names():
            try:
                study = catalog.load(catalog.choose(name))
                title, problem = study.title, None
            except SweepError as error:
                title, problem = "", str(error)
            listed.append({"name": name, "title": title, "problem": problem})
            app.say(f"{name:14} {title or problem}")
        app.out({"studies": listed})
    return EXIT_DONE
