"""The report as one JSON document: every value and sentence that the other forms show.

It must not compute a verdict: it lays out what analysis says, and markdown and HTML read nothing else.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import tomli_w

from sweeper import claims
from sweeper.analysis.claims import claims_table
from sweeper.analysis.dataset import STAGES, StageFacts, StudyFacts
from sweeper.analysis.ranking import Row, stage_summary
from sweeper.analysis.savings import rules
from sweeper.analysis.steps import step_table
from sweeper.analysis.times import SearchTimes
from sweeper.analysis.verdict import Verdict, verdict
from sweeper.configuration import frozen_values
from sweeper.curve import column, seconds
from sweeper.objective import descent, final_value, time_to_target
from sweeper.report import answers, attempts
from sweeper.space import Value
from sweeper.trial import AttemptFacts, Clock

FORMAT = 1


def document(
    facts: StudyFacts, *, target: float | None = None, generated_at: float
) -> dict[str, Any]:
    """The whole report as JSON values.

    Args:
        facts: The study.
        target: Judge at this target instead of the effective one.
        generated_at: Unix time to date the report with.
    """
    judged = verdict(facts, target=target)
    times = SearchTimes(facts)
    study = facts.study
    objective = study.objective
    return {
        "format": FORMAT,
        "generated_at": _instant(generated_at),
        "study": study.name,
        "title": study.title,
        "goal": objective.goal,
        "metric": objective.metric,
        "clock": facts.clock,
        "declared_target": objective.target,
        "fallback": list(objective.fallback),
        "target": judged.target,
        "banner": facts.banner,
        "exploratory": any(stage.exploratory for stage in facts.present()),
        "verdict": {
            "kind": judged.kind,
            "sentence": judged.sentence,
            "paragraphs": list(judged.paragraphs),
            "decided": list(judged.decided),
            "undecided": list(judged.undecided),
            "missing": list(judged.missing),
            "reachable_target": judged.reachable_target,
        },
        "winner": _winner(facts, judged.winner),
        "baseline": judged.baseline.as_dict() if judged.baseline else None,
        "speedup": judged.speedup.as_dict() if judged.speedup else None,
        "cost": judged.cost.as_dict(),
        "racing": [rule.as_dict() for rule in rules(facts)],
        "stages": [_stage(facts, stage) for stage in facts.present()],
        "ranking": [_ranked(row, place) for place, row in enumerate(judged.ranking, start=1)],
        "targets": _targets(facts, judged, times),
        "failures": [
            {
                "id": f.id,
                "stage": f.stage,
                "label": f.label,
                "outcome": f.outcome.value,
                "reason": f.reason.value,
                "message": f.message,
                "attempts": f.attempts,
            }
            for f in judged.failures
        ],
        "design": _design(facts, judged.target),
        "steps": _steps(facts, judged),
        "confirm": judged.confirmation.as_dict() if judged.confirmation else None,
        **_effects(judged),
        "noise": judged.noise.as_dict(),
        "curves": _curves(facts, judged),
        "reproduce": _reproduce(facts),
        **answers.parts(facts, judged, times),
        "claims": _claims(facts),
        "against": None,
    }


def _claims(facts: StudyFacts) -> dict[str, Any] | None:
    """The claims of the document that the study is about, where its folder has them."""
    found = claims.read(facts.study.folder)
    if found is None:
        return None
    table = claims_table(found, facts)
    return {"title": found.title, "source": found.source, "rows": table}


def _steps(facts: StudyFacts, judged: Verdict) -> dict[str, Any] | None:
    """The arms by step, where all run to the same end."""
    if not facts.study.objective.is_final:
        return None
    found = step_table(facts, judged.winner.point if judged.winner else None)
    return found.as_dict() if found else None


def _effects(judged: Verdict) -> dict[str, Any]:
    """Effects at the target, and where these are others also at the analysis target."""
    found = judged.effects
    if found is None:
        return {"effects": None, "effects_elsewhere": None}
    elsewhere = found.at_analysis if found.shown is not found.at_analysis else None
    return {
        "effects": found.shown.as_dict(),
        "effects_elsewhere": elsewhere.as_dict() if elsewhere and elsewhere.effects else None,
    }


def toml_lines(point: Mapping[str, Value]) -> str:
    """A point as TOML: dotted names become tables."""
    nested: dict[str, Any] = {}
    for name, value in point.items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tomli_w.dumps(nested)


def _instant(unix: float | None) -> str | None:
    if not unix:
        return None
    return dt.datetime.fromtimestamp(unix, dt.UTC).isoformat(timespec="seconds")


def _winner(facts: StudyFacts, row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    baseline = facts.study.space.baseline()
    names = [name for name in facts.study.space.parameters if name in row.point]
    return {
        **row.as_dict(),
        "stage": row.runs[0].stage,
        "configuration": [
            {
                "name": name,
                "value": row.point[name],
                "baseline": baseline.get(name),
                "changed": row.point[name] != baseline.get(name),
            }
            for name in names
        ],
        "toml": toml_lines({name: row.point[name] for name in names}),
        "command": facts.study.command("export", "--best") + " > best.toml",
    }


def _stage(facts: StudyFacts, stage: StageFacts) -> dict[str, Any]:
    return {
        **stage_summary(facts, stage.plan.stage),
        "closed": stage.closed,
        "created_at": _instant(stage.created_at),
        "closed_at": _instant(stage.closed_at),
        "definition_hash": stage.definition_hash,
        "exploratory": stage.exploratory,
        "notes": list(stage.plan.notes),
    }


def _ranked(row: Row, place: int) -> dict[str, Any]:
    return {
        "place": place if row.competes else None,
        **row.as_dict(),
        "ms_per_step": None if row.seconds_per_step is None else 1000 * row.seconds_per_step,
        "seconds_per_token": row.seconds_per_token,
        "finals": [run.final for run in row.runs if run.final is not None],
        "reasons": list(dict.fromkeys(run.attempt.reason.value for run in row.runs)),
        "times": [
            {"id": run.id, "seconds": run.time.seconds, "reached": run.time.reached}
            for run in row.runs
        ],
    }


def _targets(facts: StudyFacts, judged: Verdict, times: SearchTimes) -> list[dict[str, Any]]:
    """Who is fastest, and how many reach, at the judged, declared and fallback targets."""
    objective = facts.study.objective
    goals = sorted({judged.target, objective.target, *objective.fallback})
    found = []
    for goal, took in zip(goals, times.seconds(goals, facts.clock), strict=True):
        reached = int(np.isfinite(took).sum())
        first = int(took.argmin()) if reached else None
        found.append(
            {
                "target": goal,
                "reached": reached,
                "configurations": len(times),
                "fastest": None if first is None else times.labels[first],
                "time_to_target_s": None if first is None else float(took[first]),
            }
        )
    return found


def _design(facts: StudyFacts, target: float) -> dict[str, Any] | None:
    stage = facts.stages.get("stage2")
    if stage is None:
        return None
    times = {trial.trial.id: time for trial, time in stage.times(target, facts.clock)}
    ends = {trial.trial.id: final_value(attempt) for trial, attempt in stage.measured()}
    runs: list[dict[str, Any]] = []
    for planned in stage.plan.trials:
        time = times.get(planned.id)
        runs.append(
            {
                "id": planned.id,
                "replicate_of": planned.replicate_of,
                "point": dict(planned.point),
                "reached": bool(time and time.reached),
                "seconds": time.seconds if time else None,
                "final": ends.get(planned.id),
            }
        )
    levels = {
        name: list(
            dict.fromkeys([*values, *(r["point"][name] for r in runs if name in r["point"])])
        )
        for name, values in stage.plan.varying.items()
    }
    return {
        "locked": {
            name: {"value": lock.value, "why": lock.why} for name, lock in stage.plan.locked.items()
        },
        "varying": [
            {
                "name": name,
                "levels": values,
                "counts": [sum(r["point"].get(name) == v for r in runs) for v in values],
            }
            for name, values in levels.items()
        ],
        "properties": dict(stage.plan.design),
        "runs": runs,
    }


def _curves(facts: StudyFacts, judged: Verdict) -> list[dict[str, Any]]:
    winner = judged.winner.point if judged.winner else None
    baseline = judged.baseline.point if judged.baseline else None
    measured = [(stage, *of) for stage in facts.present() for of in stage.measured()]
    points = _points([attempt for _, _, attempt in measured], facts.clock)
    found = []
    for (stage, trial, attempt), of_curve in zip(measured, points, strict=True):
        point = trial.trial.point
        time = time_to_target(attempt, judged.target, facts.clock)
        found.append(
            {
                "id": trial.trial.id,
                "stage": stage.plan.stage,
                "label": trial.trial.label,
                "reason": attempt.reason.value,
                "reached": bool(time and time.reached),
                "seconds": time.seconds if time else None,
                "role": "winner"
                if point == winner
                else "baseline"
                if point == baseline
                else "other",
                "columns": ["seconds", "step", "tokens", "value"],
                "points": of_curve,
            }
        )
    return found


def _points(attempts: Sequence[AttemptFacts], clock: Clock) -> Iterator[list[list[float | int]]]:
    """The points of each curve. There may be millions, so all are rounded in one go."""
    measured = [(descent(attempt), attempt.curve) for attempt in attempts]
    stamps = (probes.of_probes(seconds(curve, clock)) for probes, curve in measured)
    values = (probes.of_probes(column(curve, "value")) for probes, curve in measured)
    at = iter(rounded(list(chain.from_iterable(stamps)), 4))
    value = iter(rounded(list(chain.from_iterable(values)), 6))
    for probes, curve in measured:
        n = len(probes.probes)
        steps, tokens = (probes.of_probes(column(curve, name)) for name in ("step", "tokens"))
        yield list(map(list, zip(islice(at, n), steps, tokens, islice(value, n), strict=True)))


def rounded(values: Sequence[float], digits: int) -> list[float]:
    """What `round` gives for each finite value, in a fraction of the time.

    The nearest whole number of decimal units, divided by the units in one, is the float nearest to
    that decimal, as it is with `round`. Where the product is too close to a half, or too large, for
    its own rounding not to matter, `round` is asked.
    """
    exact, units = np.asarray(values, dtype=float), 10.0**digits
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = exact * units
        whole = np.rint(scaled)
        sure = (np.abs(scaled - whole) < 0.499) & (np.abs(scaled) < 1e9)
    found: list[float] = (whole / units).tolist()
    for place in np.flatnonzero(~sure).tolist():
        found[place] = round(values[place], digits)
    return found


OF_ONE_ATTEMPT = ("observed", "adjusted", "continues", "starts_from")
"""What facts say of a device that another attempt on it would not share."""


def _reproduce(facts: StudyFacts) -> dict[str, Any]:
    fingerprints: dict[str, dict[str, Any]] = {}
    devices: dict[str, dict[str, Any]] = {}
    for stage in facts.present():
        for _, attempt in stage.measured():
            fingerprints.setdefault(
                repr(sorted(attempt.fingerprint.items(), key=str)), {**attempt.fingerprint}
            )
            device = {k: v for k, v in attempt.device.items() if k not in OF_ONE_ATTEMPT}
            devices.setdefault(repr(sorted(device.items(), key=str)), device)
    return {
        "commands": _commands(facts),
        "plan_hashes": {
            name: facts.stages[name].definition_hash for name in STAGES if name in facts.stages
        },
        "seed": facts.study.seed,
        "frozen": _plain(frozen_values(facts.study)),
        "versions": dict(facts.versions),
        "fingerprints": _plain(list(fingerprints.values())),
        "devices": _plain(list(devices.values())),
    }


def _commands(facts: StudyFacts) -> list[str]:
    """What was asked of every stage, and what went on afterwards, as command lines."""
    study = facts.study
    confirm = study.confirm
    declared: dict[str, dict[str, int]] = {
        "stage2": {"from_top": study.stage2.from_top},
        "confirm": {"top": confirm.top, "repeats": confirm.repeats},
    }
    switches = list(study.switches)
    if "stage1" in facts.stages:  # later stages are planned for the target that it ended with
        asked = facts.stages["stage1"].plan.target
        switches = (
            [] if asked == study.objective.target and not switches else ["--target", repr(asked)]
        )
    lines = []
    for stage in facts.present():
        words = []
        for name, value in declared.get(stage.plan.stage, {}).items():
            words += [f"--{name.replace('_', '-')}", str(stage.options.get(name) or value)]
        if stage.plan.design.get("kind") == "imported":
            lines.append(study.command("import MAPPING.toml"))
        else:
            lines.append(study.command(stage.plan.stage, *words, *switches))
    for row in attempts.extensions(facts):
        words = ["--steps", str(row["to_step"])]
        words += [] if row["until"] is None else ["--to", repr(row["until"])]
        lines.append(study.command("extend", *words, trial=row["of"]))
    return [*lines, study.command("report")]


def _plain(value: Any) -> Any:
    """JSON values only: what a fingerprint or a device says of itself may hold anything."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)
