"""The verbs that mend: cancel and retry, and `db verify` and `db rebuild`.

They must not know how anything is measured; what they compare are run folders, our tables and search's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper import readout, telling
from sweeper.app import App
from sweeper.commands import stages
from sweeper.commands.facts import judged_facts, study_facts
from sweeper.commands.look import find_trial
from sweeper.errors import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    DatabaseUnusable,
    EnvironmentUnusable,
    StudyError,
)
from sweeper.paths import AttemptPaths, Home, write_json
from sweeper.plan_document import StageDocument
from sweeper.search.base import Search
from sweeper.spec import Control
from sweeper.storage.base import STAGES, Store
from sweeper.study import Study
from sweeper.trial import UNRANKED, AttemptFacts, Outcome, StageName

RELATIVE = 1e-9


def cancel(args: argparse.Namespace) -> int:
    """End a running trial; it is not tried again by itself."""
    with App(args) as app:
        study = app.study(quiet=True)
        store = app.store()
        found = [r for r in store.running(study.name) if r.trial_id == args.trial]
        if not found:
            facts = find_trial(store, study, args.trial)
            state = "has ended" if facts.attempts else "has not started"
            raise StudyError(f"{study.name}: {args.trial} is not running: it {state}")
        paths = AttemptPaths(Path(found[0].folder))
        try:
            write_json(paths.control, Control(cancel=True).to_json())
        except OSError as error:
            raise EnvironmentUnusable(f"{paths.control}: {error.strerror}") from None
        limit_s = study.limits.grace_s + 15
        deadline = time.monotonic() + limit_s
        while not paths.outcome.exists():
            if time.monotonic() > deadline:
                raise EnvironmentUnusable(
                    f"{args.trial}: its runner did not end it within {limit_s:.0f} s; is it on "
                    f"another machine? see {paths.runner_log}"
                )
            time.sleep(0.1)
        app.say(f"{args.trial}: cancelled; `sweep retry --failed` would run it again")
        app.out({"trial": args.trial, "attempt": found[0].attempt, "cancelled": True})
    return EXIT_DONE


def retry(args: argparse.Namespace) -> int:
    """Run the trials of every stage once more that failed, or whose times were rejected for good."""
    with App(args) as app:
        study = app.study()
        store = app.store()
        failed = failed_stages(study, store)
    if not failed:
        app.say("no trial has failed")
        app.out({"study": study.name, "retried": [], "exit": EXIT_DONE})
        return EXIT_DONE
    args.retry_failed = True
    return stages.run_stages(args, failed)


def failed_stages(study: Study, store: Store) -> list[StageName]:
    """Stages with trials that failed for good, or whose times the validity gate has rejected.

    `extend` is left out: `sweep extend` itself is safe to repeat.
    """
    wrong = (Outcome.FAILED, Outcome.INVALID)
    found: list[StageName] = []
    for stage in (record.stage for record in store.stages(study.name, trials=False)):
        recorded = stage in UNRANKED  # where no time ranks, none is rejected
        facts = store.facts(study.name, stage) if recorded else judged_facts(study, store, stage)
        if stage != "extend" and any(f.counted and f.counted.outcome in wrong for f in facts):
            found.append(stage)
    return found


def verify(args: argparse.Namespace) -> int:
    """Cross-check run folders, our tables and Optuna's; says every difference."""
    with App(args) as app:
        study = app.study()
        store = app.store()
        problems = list(differences(study, store, app.home))
        open_search = app.search(study, create=False)
        records = store.stages(study.name)
        for record in records:
            declared = records[0].target
            name = telling.search_name(study.name, record.stage, record.target, declared)
            problems += search_differences(study, store, record.stage, open_search(name), name)
        for line in problems:
            app.say(line)
        app.say(
            f"{study.name}: {len(problems)} differences" if problems else f"{study.name}: agree"
        )
        app.out({"study": study.name, "differences": problems})
    return EXIT_SOME_FAILED if problems else EXIT_DONE


def differences(study: Study, store: Store, home: Home) -> Iterator[str]:
    """Where run folders and our tables do not agree, one sentence each."""
    metric = study.objective.metric
    known: set[tuple[str, int]] = set()
    running = {(r.trial_id, r.attempt) for r in store.running(study.name)}
    for trial in store.facts(study.name):
        for stored in trial.attempts:
            known.add((trial.trial.id, stored.attempt))
            where = f"{trial.trial.id} attempt {stored.attempt}"
            paths = home.attempt(study.name, trial.trial.id, stored.attempt)
            if not paths.folder.exists():
                yield f"{where}: recorded, and its run folder is gone"
                continue
            found = readout.collect(paths, metric)
            if found is None:
                if stored.reason.value != "lost":
                    yield f"{where}: recorded as {stored.reason.value}, and has no outcome file"
            elif (found.outcome, found.reason) != (stored.outcome, stored.reason):
                yield (
                    f"{where}: recorded as {stored.outcome.value} ({stored.reason.value}), its "
                    f"folder says {found.outcome.value} ({found.reason.value})"
                )
            elif not same_curve(found, stored):
                yield f"{where}: its recorded curve differs from its events"
    for folder in sorted(home.study(study.name).glob("*/attempt-*")):
        attempt = (folder.parent.name, int(folder.name.removeprefix("attempt-")))
        if attempt not in known and attempt not in running:
            yield f"{attempt[0]} attempt {attempt[1]}: has a run folder, and is not recorded"


def same_curve(one: AttemptFacts, other: AttemptFacts) -> bool:
    """Whether two attempts measured the same, evaluation by evaluation."""
    if len(one.curve) != len(other.curve):
        return False
    return all(
        (a.step, a.tokens, a.slice) == (b.step, b.tokens, b.slice)
        and (a.value == b.value or (math.isnan(a.value) and math.isnan(b.value)))
        and math.isclose(a.clock.train, b.clock.train, rel_tol=RELATIVE)
        for a, b in zip(one.curve, other.curve, strict=True)
    )


def _rejected(study: Study, store: Store, stage: StageName) -> set[tuple[str, int]]:
    """Attempts that the validity gate rejects, whether it knows this stage alone or all of them."""
    every = study_facts(study, store).stages.get(stage)
    judged = [*judged_facts(study, store, stage), *(every.facts if every is not None else ())]
    return {
        (trial.trial.id, attempt.attempt)
        for trial in judged
        for attempt in trial.attempts
        if attempt.outcome is Outcome.INVALID
    }


def search_differences(
    study: Study, store: Store, stage: StageName, search: Search, name: str
) -> Iterator[str]:
    """Where our tables and Optuna's study of a stage do not agree, one sentence each."""
    record = store.stage(study.name, stage)
    assert record is not None
    known = dict(search.known())
    rejected = _rejected(study, store, stage)
    for trial in store.facts(study.name, stage):
        for stored in trial.attempts:
            key = telling.key(trial.trial, stored.attempt)
            seen = known.pop(key, None)
            told = telling.told(study, stored, record.target)
            if seen is None:
                yield f"{key}: recorded, and Optuna's {name} does not have it"
            elif told.value is None and seen.state != "failed":
                yield f"{key}: failed, and Optuna's {name} says {seen.state}"
            elif seen.state == "failed" and (trial.trial.id, stored.attempt) in rejected:
                continue  # Optuna has the validity gate's verdict, our tables what was measured
            elif told.value is not None and (
                seen.state != "complete"
                or seen.value is None
                or not math.isclose(seen.value, told.value, rel_tol=RELATIVE)
            ):
                yield f"{key}: {told.value!r} s, and Optuna's {name} has {seen.state} {seen.value!r}"
    begun = {telling.key_of(r.trial_id, r.attempt) for r in store.running(study.name)}
    for key in sorted(set(known) - begun):
        yield f"{key}: Optuna's {name} has it ({known[key].state}), and it is not recorded"


def rebuild(args: argparse.Namespace) -> int:
    """Make our tables from the run folders, and Optuna's studies from our tables."""
    with App(args) as app:
        study = app.study()
        store = app.store(create=True)
        if store.stages(study.name):
            app.say(f"{study.name}: has its stages; only what is missing is added")
        added = 0
        for stage in STAGES:
            path = app.home.stage_document(study.name, stage)
            if path.exists():
                added += _rebuild_stage(study, store, app.home, _read_document(path))
        open_search = app.search(study)
        records = store.stages(study.name)
        for record in records:
            declared = records[0].target
            name = telling.search_name(study.name, record.stage, record.target, declared)
            search = open_search(name)
            for trial in store.facts(study.name, record.stage):
                for stored in trial.attempts:
                    key = telling.key(trial.trial, stored.attempt)
                    search.ask(key, trial.trial.point, telling.attributes(trial.trial))
                    search.tell(key, telling.told(study, stored, record.target))
        app.say(f"{study.name}: {added} attempts added from run folders")
        app.out({"study": study.name, "added": added})
    return EXIT_DONE


def _read_document(path: Path) -> StageDocument:
    try:
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return StageDocument.from_json(document)
    except (OSError, ValueError) as error:
        raise DatabaseUnusable(f"{path}: cannot be read back ({error})") from None


def _rebuild_stage(study: Study, store: Store, home: Home, document: StageDocument) -> int:
    plan = document.plan
    store.freeze(
        plan,
        definition=document.definition,
        definition_hash=document.definition_hash,
        options=document.options,
        exploratory=document.exploratory,
    )
    added = 0
    for trial in plan.trials:
        folders = (home.study(study.name) / trial.id).glob("attempt-*")
        for folder in sorted(folders, key=lambda f: int(f.name.removeprefix("attempt-"))):
            paths = AttemptPaths(folder)
            facts = readout.collect(paths, study.objective.metric)
            if facts is None:
                facts = readout.lost(paths, "it had no outcome at a rebuild")
            added += store.record(study.name, trial.id, facts)
            samples = readout.read_samples(paths)
            store.record_samples(study.name, trial.id, facts.attempt, samples)
    if document.effective_target != plan.target:
        store.set_effective_target(study.name, plan.stage, document.effective_target)
    if document.closed:
        store.close_stage(study.name, plan.stage)
    return added
