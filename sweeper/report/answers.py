"""The parts of the report's document that answer: questions, the way, what else would change it, cost.

It must not compute a verdict: it lays out what analysis says as JSON values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.chances import chance
from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.drift import drift
from sweeper.analysis.path import path
from sweeper.analysis.prediction import best_untested, in_words
from sweeper.analysis.profile import profile
from sweeper.analysis.questions import answers
from sweeper.analysis.ranking import Row
from sweeper.analysis.response import Response, observe
from sweeper.analysis.sensitivity import sensitivity
from sweeper.analysis.times import SearchTimes
from sweeper.analysis.verdict import Verdict
from sweeper.analysis.wording import ratio
from sweeper.report import attempts
from sweeper.trial import AttemptFacts, Outcome


def parts(facts: StudyFacts, judged: Verdict, times: SearchTimes) -> dict[str, Any]:
    """Everything here by its key in the document; `times` are those of the facts."""
    target = judged.target
    return {
        "questions": [answer.as_dict() for answer in answers(facts, target=target)],
        "path": _path(facts, judged),
        "untested": _untested(facts, judged),
        "sensitivity": [v.as_dict() for v in sensitivity(facts, times, target=target)],
        "chances": _chances(facts, judged),
        "profile": [place.as_dict() for place in profile(facts, judged, times)],
        "timeline": (rows := attempts.timeline(facts)),
        "phase_shares": attempts.phase_shares(rows),
        "extensions": attempts.extensions(facts),
        "drift": drift(facts.present(), facts.clock).as_dict(),
        "spent": _spent(facts, judged),
    }


def _path(facts: StudyFacts, judged: Verdict) -> dict[str, Any] | None:
    if judged.winner is None:
        return None
    baseline = facts.study.space.baseline()
    found = path(facts, baseline, judged.winner.point, target=judged.target)
    return found.as_dict() if found else None


def _untested(facts: StudyFacts, judged: Verdict) -> dict[str, Any] | None:
    stage = facts.stages.get("stage2")
    if stage is None or judged.effects is None:
        return None
    shown = judged.effects.shown
    response = Response.of(facts.study, shown.target)
    runs = observe([stage], response, facts.study.limits)
    locked = {name: lock.value for name, lock in stage.plan.locked.items()}
    space = facts.study.space
    found = best_untested(space, locked, stage.plan.varying, runs, shown)
    if found is None:
        return None
    return {
        "words": in_words(found, response, space),
        "target": shown.target,
        "point": dict(found.point),
        "value": response.shown(found.value),
        "low": response.shown(found.low),
        "high": response.shown(found.high),
        "best_run": found.best,
        "best_run_value": response.shown(found.of_best),
        "chance": found.chance,
    }


def _chances(facts: StudyFacts, judged: Verdict) -> list[dict[str, Any]]:
    """P(reach) of the winner, the baseline, the other finalists, and of the search as a whole."""
    rows: list[tuple[str, Row]] = []
    if judged.winner:
        rows.append((judged.winner.label, judged.winner))
    for row in judged.confirmation.rows if judged.confirmation else ():
        if judged.winner is None or row.point != judged.winner.point:
            is_baseline = judged.baseline is not None and row.point == judged.baseline.point
            rows.append(("the baseline" if is_baseline else row.label, row))
    found = [
        chance(
            facts.present(), (row.point,), target=judged.target, clock=facts.clock, label=label
        ).as_dict()
        for label, row in rows
    ]
    whole = chance(
        facts.present(SEARCH_STAGES),
        (),
        target=judged.target,
        clock=facts.clock,
        label="any configuration of stages 1 and 2",
    )
    return [*found, whole.as_dict()]


def _spent(facts: StudyFacts, judged: Verdict) -> dict[str, Any]:
    """Device hours of all attempts, their price where the study has one, and where they went.

    Phases and extensions are in `hours_unranked` alone.
    """
    resources = facts.study.resources
    devices = max(1, resources.gpus)
    ended = [a for stage in facts.present() for trial in stage.facts for a in trial.attempts]
    others = [a for s in facts.unranked.values() for trial in s.facts for a in trial.attempts]
    hours = judged.cost.attempts_wall_s / 3600 * devices
    price = resources.price_per_hour
    return {
        "kind": "GPU" if resources.gpus else "CPU slot",
        "hours": hours,
        "hours_without_result": _hours(
            [a for a in ended if a.outcome in (Outcome.FAILED, Outcome.INVALID)], devices
        ),
        "hours_unranked": _hours(others, devices),
        "price_per_hour": price,
        "currency": resources.currency,
        "money": None if price is None else hours * price,
    }


def _hours(ended: Sequence[AttemptFacts], devices: int) -> float:
    return math.fsum(a.wall_s for a in ended) / 3600 * devices


# -- two sweeps ------------------------------------------------------------------------------------


def against(
    document: Mapping[str, Any], other: Mapping[str, Any], *, across: bool = False
) -> dict[str, Any]:
    """One report's document compared with another's.

    Times are set against each other only where both sweeps ran under one and the same fingerprint
    and judge the same metric at the same target; else the differences are listed, and only what does
    not depend on the device (tokens to the target) is compared. `across` compares times of different
    fingerprints all the same, and says so.
    """
    differences = _differences(document, other)
    mine, theirs = document["winner"], other["winner"]
    times = tokens = None
    if mine and theirs and not differences["question"]:
        if mine["tokens_to_target"] and theirs["tokens_to_target"]:
            tokens = theirs["tokens_to_target"] / mine["tokens_to_target"]
        if across or not differences["fingerprint"]:
            times = theirs["time_to_target_s"] / mine["time_to_target_s"]
    changed = []
    if mine and theirs:
        names = dict.fromkeys((*mine["point"], *theirs["point"]))
        changed = [
            {"name": name, "here": mine["point"].get(name), "there": theirs["point"].get(name)}
            for name in names
            if mine["point"].get(name) != theirs["point"].get(name)
        ]
    found = {
        "study": other["study"],
        "title": other["title"],
        "generated_at": other["generated_at"],
        "sentence": other["verdict"]["sentence"],
        "target": other["target"],
        "time_to_target_s": theirs["time_to_target_s"] if theirs else None,
        "winner": theirs["label"] if theirs else None,
        "time_ratio": times,
        "tokens_ratio": tokens,
        "changed": changed,
        "differences": differences,
        "cost": {key: other["cost"][key] for key in ("trials", "train_s")},
    }
    return found | {"words": _against_words(document, other, found)}


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[str]]:
    question = [
        f"{key}: {one[key]} here, {two[key]} there"
        for key in ("metric", "target", "clock")
        if one[key] != two[key]
    ]
    first, second = (_classes(d) for d in (one, two))
    names = sorted({*first, *second})
    return {
        "question": question,
        "fingerprint": [
            f"{name}: {' / '.join(first.get(name, ['nothing']))} here, "
            f"{' / '.join(second.get(name, ['nothing']))} there"
            for name in names
            if first.get(name) != second.get(name)
        ],
    }


def _classes(document: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for fingerprint in document["reproduce"]["fingerprints"]:
        for key, value in fingerprint.items():
            found.setdefault(str(key), set()).add(str(value))
    return {key: sorted(values) for key, values in found.items()}


def _against_words(
    document: Mapping[str, Any], other: Mapping[str, Any], found: Mapping[str, Any]
) -> str:
    here, there = document["study"], other["study"]
    if here == there:
        here, there = "this sweep", f"that of {str(other['generated_at'])[:16].replace('T', ' ')}"
    if found["differences"]["question"]:
        return (
            f"{here} and {there} ask different questions, so their times are not compared: "
            f"{'; '.join(found['differences']['question'])}."
        )
    if document["winner"] is None or other["winner"] is None:
        which = here if document["winner"] is None else there
        return f"{which} has no winner, so there is nothing to compare."
    tokens = (
        ""
        if found["tokens_ratio"] is None
        else f"the winner of {there} needs {ratio(found['tokens_ratio'])} times the tokens of "
        f"the winner of {here}"
    )
    if found["time_ratio"] is None:
        because = "their fingerprints differ, so times are not compared (--across does it anyway)"
        return f"{here} against {there}: {'; '.join(p for p in (tokens, because) if p)}."
    words = (
        f"{here} against {there}: the winner of {there} takes {ratio(found['time_ratio'])} times "
        f"as long as the winner of {here}"
    )
    if found["differences"]["fingerprint"]:
        words += " (across different fingerprints: not strictly comparable)"
    return (
        f"{words}{'; ' + tokens if tokens else ''}. The two were not run in blocks together: a "
        "difference of times is no verdict."
    )
