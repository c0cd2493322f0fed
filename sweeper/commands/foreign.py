"""The verb that takes in results of sweeps that somebody else ran: tables, and a file that maps them.

It must not know what is concluded from them; what it records is judged like any other facts.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sweeper.analysis.verdict import verdict
from sweeper.app import App
from sweeper.commands.facts import study_facts
from sweeper.errors import EXIT_DONE, StudyError
from sweeper.space import Bool, Categorical, Float, Integer, Parameter, Point, Value
from sweeper.study import Study
from sweeper.trial import (
    OUTCOME_OF,
    AttemptFacts,
    Evaluation,
    Phases,
    PlannedTrial,
    Reason,
    StagePlan,
    TrialFacts,
)

Row = Mapping[str, str]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Results(_Part):
    """One row per trial: which column is what. `point` maps parameters of the space to columns.

    Tokens of a step are `tokens_per_step` times the column `tokens_column` (1 without one).
    """

    file: str
    id: str
    groups: str | None = None
    point: Mapping[str, str] = Field(min_length=1)
    seconds: str | None = None
    steps: str | None = None
    loss: str | None = None
    tokens_per_step: float = Field(default=1.0, gt=0)
    tokens_column: str | None = None


class CurveTable(_Part):
    """One row per evaluation. Without `seconds`, a trial's seconds are spread evenly over its steps."""

    file: str
    id: str
    step: str
    loss: str
    seconds: str | None = None


class Launches(_Part):
    """One row per launch, also of those that gave no result. `failed` maps its words to our reasons.

    `observed` names columns with figures of the device at a failure (any of other_processes, free_mib,
    requested_mib). `launcher_status` and `launcher_seconds` are what the launcher itself believed.
    """

    file: str
    id: str
    outcome: str
    failed: Mapping[str, str] = {}
    observed: Mapping[str, str] = {}
    launcher_status: str | None = None
    launcher_seconds: str | None = None


class MappingFile(_Part):
    """A whole mapping file."""

    results: Results
    curves: CurveTable | None = None
    launches: Launches | None = None


@dataclass(frozen=True)
class Tables:
    """The rows of all tables, by trial id where there are many."""

    results: Mapping[str, Row]
    curves: Mapping[str, Sequence[Row]]
    launches: Mapping[str, Row]


def import_results(args: argparse.Namespace) -> int:
    """Record foreign trials as a closed stage 1 of a study, and say what they show."""
    with App(args) as app:
        study = app.study()
        facts = read_foreign(args.mapping, study, args.data)
        store = app.store()
        with app.lease(study) as lease:
            record = store.stage(study.name, "stage1")
            if record is not None and record.plan.design.get("kind") != "imported":
                raise StudyError(
                    f"{study.name}: its stage 1 was run here; give imported results a study of their own"
                )
            store.freeze(
                _plan(study, facts),
                definition=study.definition("stage1"),
                definition_hash=study.definition_hash("stage1"),
                options={"imported": args.mapping.name},
            )
            new = sum(
                store.record(study.name, f.trial.id, a, lease=lease)
                for f in facts
                for a in f.attempts
            )
            store.close_stage(study.name, "stage1")
        found = verdict(study_facts(study, store))
        app.say(f"{len(facts)} trials, {new} of them new")
        for text in (found.sentence, *found.paragraphs):
            app.say(text)
        app.say("`sweep report` shows them whole; `sweep report --target X` judges them elsewhere.")
        document = {"study": study.name, "trials": len(facts), "new": new}
        app.out(document | {"sentence": found.sentence, "paragraphs": list(found.paragraphs)})
    return EXIT_DONE


def read_foreign(path: Path, study: Study, data: Path | None = None) -> list[TrialFacts]:
    """Every launch that the tables know, as facts, in the order of the launches.

    Raises:
        StudyError: the mapping or a table cannot be read, or a value is not in the study's space.
    """
    mapping = _read_mapping(path)
    folder = data or path.parent
    tables = Tables(
        {
            row[mapping.results.id]: row
            for row in _rows(folder, mapping.results.file, mapping.results.id)
        },
        _grouped(folder, mapping.curves) if mapping.curves else {},
        {
            row[mapping.launches.id]: row
            for row in _rows(folder, mapping.launches.file, mapping.launches.id)
        }
        if mapping.launches
        else {},
    )
    names = list(dict.fromkeys((*tables.launches, *tables.results)))
    trials: dict[Point, str] = {}
    found = []
    for name in names:
        row = {**tables.launches.get(name, {}), **tables.results.get(name, {})}
        try:
            point = _point(row, mapping.results.point, study)
            attempt = _attempt(name, row, mapping, tables)
        except (ValueError, KeyError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise StudyError(f"{path}: trial {name}: {what}; see [results] there") from None
        original = trials.setdefault(point, name)
        group = row.get(mapping.results.groups or "", "") or "imported"
        trial = PlannedTrial(
            id=name,
            stage="stage1",
            label=name,
            groups=(group,),
            point=point,
            seed=study.seed,
            replicate_of=None if original == name else original,
        )
        found.append(TrialFacts(trial, (attempt,)))
    return found


def _read_mapping(path: Path) -> MappingFile:
    try:
        return MappingFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as TOML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StudyError(
            f"{path}: {where}: {first['msg'].lower()}; a mapping has [results], and may have [curves] "
            "and [launches]"
        ) from None


def _rows(folder: Path, name: str, wanted: str) -> list[Row]:
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            found: list[Row] = [
                {k: "" if v is None else str(v) for k, v in row.items()} for row in rows
            ]
        else:
            found = list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise StudyError(f"{path}: cannot be read ({error}); see --data") from None
    for number, row in enumerate(found, start=1):
        if wanted not in row:
            raise StudyError(f"{path}, row {number}: no column {wanted!r}; it has {', '.join(row)}")
    return found


def _grouped(folder: Path, curves: CurveTable) -> Mapping[str, Sequence[Row]]:
    found: dict[str, list[Row]] = {}
    for row in _rows(folder, curves.file, curves.id):
        found.setdefault(row[curves.id], []).append(row)
    return found


def _point(row: Row, columns: Mapping[str, str], study: Study) -> Point:
    values: dict[str, Value] = dict(study.space.baseline())
    for name, column in columns.items():
        if name not in study.space.parameters:
            raise ValueError(f"{name!r} is no parameter of study {study.name}")
        values[name] = _value(study.space.parameters[name], row[column])
    return study.space.point(values)


def _value(parameter: Parameter, text: str) -> Value:
    if isinstance(parameter, Bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{parameter.name}: got {text!r}, expected true or false")
        return text.lower() in ("true", "1")
    if isinstance(parameter, Categorical):
        known = {str(choice): choice for choice in parameter.choices}
        if text not in known:
            raise ValueError(f"{parameter.name}: got {text!r}, expected one of {', '.join(known)}")
        return known[text]
    value = parameter.coerce(int(text) if isinstance(parameter, Integer) else float(text))
    assert isinstance(parameter, Float | Integer)
    return value


def _attempt(name: str, row: Row, mapping: MappingFile, tables: Tables) -> AttemptFacts:
    results, launches = mapping.results, mapping.launches
    device: dict[str, Any] = {}
    if launches is not None and name in tables.launches:
        launch = tables.launches[name]
        seen = {k: _number(launch[c]) for k, c in launches.observed.items() if launch[c] != ""}
        device = {"observed": seen} if seen else {}
        if launches.launcher_status and launch[launches.launcher_status]:
            device["launcher"] = {"status": launch[launches.launcher_status]}
            if launches.launcher_seconds:
                device["launcher"]["seconds"] = _number(launch[launches.launcher_seconds])
        words = launch[launches.outcome]
        if name not in tables.results:
            reason = Reason(launches.failed.get(words, Reason.CRASHED.value))
            figures = ", ".join(f"{k} {v:g}" for k, v in seen.items())
            message = f"{words}: {figures}" if figures else words
            return AttemptFacts(1, OUTCOME_OF[reason], reason, message, device=device)
    steps = int(_number(row[results.steps])) if results.steps else 0
    seconds = _number(row[results.seconds]) if results.seconds else 0.0
    per_step = results.tokens_per_step
    per_step *= _number(row[results.tokens_column]) if results.tokens_column else 1.0
    curve = _curve(tables.curves.get(name, ()), mapping.curves, steps, seconds, per_step)
    if not steps and curve:
        steps = curve[-1].step
    losses = [e.value for e in curve if math.isfinite(e.value)]
    if results.loss and row[results.loss]:
        losses.append(_number(row[results.loss]))
    tokens = round(steps * per_step)
    return AttemptFacts(
        1,
        OUTCOME_OF[Reason.STEPS],
        Reason.STEPS,
        message="imported",
        curve=curve,
        phases=Phases(train=seconds),
        steps=steps,
        tokens=tokens,
        best_loss=min(losses, default=None),
        tokens_per_s=tokens / seconds if seconds > 0 else None,
        wall_s=seconds,
        device=device,
        clock_source="runner",
    )


def _curve(
    rows: Sequence[Row], table: CurveTable | None, steps: int, seconds: float, per_step: float
) -> tuple[Evaluation, ...]:
    if table is None:
        return ()
    found = []
    for row in rows:
        step = int(_number(row[table.step]))
        at_s = _number(row[table.seconds]) if table.seconds else seconds * step / max(steps, 1)
        loss = float(row[table.loss]) if row[table.loss] else math.nan
        found.append(Evaluation(step, round(step * per_step), Phases(train=at_s), loss))
    return tuple(sorted(found, key=lambda e: e.step))


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"got {text!r}, expected a finite number from 0")
    return value


def _plan(study: Study, facts: Sequence[TrialFacts]) -> StagePlan:
    return StagePlan(
        study=study.name,
        stage="stage1",
        target=study.objective.target,
        trials=tuple(f.trial for f in facts),
        entries=len(facts),
        distinct=len({f.trial.point for f in facts}),
        design={"kind": "imported"},
        notes=("imported: nothing of it was run or timed by sweep",),
    )
