"""The verb that says where a study stands; people give it often, so it imports and reads little.

It must not know how anything is run, and never writes to the database.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sweeper.app import App
from sweeper.commands.verdicts import judged_trials, validity_document
from sweeper.errors import EXIT_DONE
from sweeper.objective import final_value, time_to_target
from sweeper.storage.base import Readable, RunningAttempt
from sweeper.study import Study
from sweeper.trial import UNRANKED, Brief, Outcome, TrialFacts

MEASURED = (Outcome.REACHED, Outcome.CENSORED)
MOST_CANDIDATES = 50  # curves that are read
MOST_JUDGED = 500  # attempts: the gate compares all curves, and this verb is to stay quick


def status(args: argparse.Namespace) -> int:
    """Where every stage stands, without reading a single curve that it does not need."""
    with App(args) as app:
        study = app.study(quiet=args.json)
        if args.watch and app.has_database():
            from sweeper.commands.watch import Watch  # noqa: PLC0415

            Watch(study, app.store(), app.progress(study)).until_over()
        look = partial(_look, study)
        document, running = app.read(look) if app.has_database() else look(None)
        document["findings"] = _findings(study, running) if running else []
        app.out(document)
        if not args.json:
            from sweeper.report import console  # noqa: PLC0415

            app.console().print(console.status_table(document))
            for found in document["findings"]:
                app.say(f"{found['trial']}: {found['rule']}: {found['meaning']}")
            if document["findings"]:
                app.say("`sweep doctor TRIAL` says what to change")
    return EXIT_DONE


def _look(study: Study, store: Readable | None) -> tuple[dict[str, Any], Sequence[RunningAttempt]]:
    """The document, and the attempts that run now."""
    document = status_document(study, store)
    if store is None or not any(stage["running"] for stage in document["stages"]):
        return document, []
    return document, store.running(study.name)


def _findings(study: Study, running: Sequence[RunningAttempt]) -> list[dict[str, Any]]:
    """What the doctor finds in the trials that run now."""
    from sweeper.doctor.rounds import Rounds, rules_of  # noqa: PLC0415

    rounds = Rounds(rules_of(study.folder))
    return [
        {"trial": attempt.trial_id, **finding.as_dict()}
        for attempt in running
        for finding in rounds.look(attempt.trial_id, Path(attempt.folder))
    ]


def status_document(study: Study, store: Readable | None) -> dict[str, Any]:
    """The document of `status --json`."""
    empty: dict[str, Any] = {
        "study": study.name, "stages": [], "incumbent": None, "eta_s": None, "validity": None,
    }  # fmt: skip
    if store is None:
        return empty
    records = store.stages(study.name, trials=False)
    if not records:
        return empty
    counts = store.counts(study.name)
    stages = []
    left = 0
    for record in records:
        found = counts.get(record.stage, {})
        done = sum(found.get(k, 0) for k in ("reached", "censored", "failed", "invalid"))
        planned = found.get("planned", 0)
        stages.append(
            {
                "stage": record.stage,
                "planned": planned,
                "done": done,
                **{k: found.get(k, 0) for k in ("running", "reached", "censored", "failed")},
                "invalid": found.get("invalid", 0),
                "target": record.target,
                "effective_target": record.effective_target,
                "closed": record.closed_at is not None,
            }
        )
        if record.closed_at is None:
            left += planned - done
    best: dict[str, Any] | None = None
    is_final = study.objective.is_final
    target = records[-1].effective_target
    every: dict[str, Brief] = {}
    briefs = store.brief(study.name)
    for ended in briefs:  # of each trial the one that counts
        before = every.get(ended.trial_id)
        if ended.outcome in MEASURED or before is None or before.outcome not in MEASURED:
            every[ended.trial_id] = ended
    walls = [ended.wall_s for ended in every.values()]
    judged = judged_trials(study, store) if len(briefs) <= MOST_JUDGED else None
    candidates: Sequence[TrialFacts]
    if judged is not None:  # a time that was rejected is nobody's best
        candidates = judged.facts
    else:
        candidates = store.facts(study.name, trials=_shortest(every.values(), target, study))
    for facts in candidates:
        attempt = facts.counted
        if attempt is None or facts.trial.stage in UNRANKED:
            continue
        if is_final:
            final = final_value(attempt)
            if final is not None and (best is None or final < best["final"]):
                best = {
                    "id": facts.trial.id,
                    "label": facts.trial.label,
                    "time_to_target_s": None,
                    "final": final,
                    "point": dict(facts.trial.point),
                }
            continue
        found_time = time_to_target(attempt, target, study.objective.clock)
        if found_time is None or not found_time.reached:
            continue
        if best is None or found_time.seconds < best["time_to_target_s"]:
            best = {
                "id": facts.trial.id,
                "label": facts.trial.label,
                "time_to_target_s": found_time.seconds,
                "point": dict(facts.trial.point),
            }
    eta = left * statistics.median(walls) if walls and left else None
    return {
        "study": study.name,
        "stages": stages,
        "incumbent": best,
        "eta_s": eta,
        "validity": validity_document(judged) if judged is not None else None,
    }


def _shortest(every: Iterable[Brief], target: float, study: Study) -> list[str]:
    """The trials among which the incumbent is: the shortest of those whose loss was low enough.

    A run ends soon after its target, so that what it took in all tells the fast from the slow; the
    margin is for runs that went on to a harder target than the one they are judged at.
    """
    clock = study.objective.clock
    if study.objective.is_final:
        losses = [(e.best_loss, e.trial_id) for e in every if e.best_loss is not None]
        return [trial_id for _, trial_id in sorted(losses)[:MOST_CANDIDATES]]
    low = [
        (ended.phases.seconds(clock), ended.trial_id)
        for ended in every
        if ended.best_loss is not None and ended.best_loss <= target
    ]
    return [trial_id for _, trial_id in sorted(low)[:MOST_CANDIDATES]]
