"""Trials as `sweep export --trials --format jsonl` wrote them, read back as facts.

It must not know databases; what cannot be read names its line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.analysis.dataset import UNRANKED
from sweeper.errors import StudyError
from sweeper.space import Point
from sweeper.study import Study
from sweeper.trial import (
    AttemptFacts,
    Evaluation,
    Outcome,
    Phases,
    PlannedTrial,
    Reason,
    TrialFacts,
)


def read_trials(path: Path, study: Study) -> list[TrialFacts]:
    """Every trial of an export, in its order, with its attempts, oldest first.

    Raises:
        StudyError: the file cannot be read, or a line is not of this study's space.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); name an export of trials") from None
    trials: dict[str, tuple[PlannedTrial, list[AttemptFacts]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            if document["stage"] in UNRANKED:  # phases and extensions: nothing was decided on them
                continue
            trial = _trial(document, study)
            attempt = _attempt(document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise StudyError(
                f"{path}, line {number}: {what}; expected a line of `sweep export --trials "
                f"--format jsonl` of study {study.name}"
            ) from None
        trials.setdefault(trial.id, (trial, []))[1].append(attempt)
    return [
        TrialFacts(trial, tuple(sorted(tries, key=lambda a: a.attempt)))
        for trial, tries in trials.values()
    ]


def _trial(document: Mapping[str, Any], study: Study) -> PlannedTrial:
    stage = document["stage"]
    if stage not in ("stage1", "stage2", "confirm"):
        raise ValueError(f"stage: got {stage!r}")
    block = str(document["id"]).split("-")[1] if stage == "confirm" else "0"
    return PlannedTrial(
        id=str(document["id"]),
        stage=stage,
        label=str(document["label"]),
        groups=tuple(document["groups"]),
        point=_point(document["point"], study),
        seed=int(document["seed"]),
        replicate_of=document.get("replicate_of"),
        block=int(block),
    )


def _point(values: Mapping[str, Any], study: Study) -> Point:
    for name, value in values.items():
        if name not in study.space.parameters:
            raise ValueError(f"point: {name} is no parameter of the study")
        study.space.parameters[name].coerce(value)
    return study.space.point({**study.space.baseline(), **values})


def _loss(value: Any) -> float:
    return math.nan if value is None else float(value)


def _attempt(document: Mapping[str, Any]) -> AttemptFacts:
    phases = Phases.from_mapping(document["phases"])
    share = phases.eval / phases.train if phases.train > 0 else 0.0
    confirmations = dict(document.get("confirmations", ()))  # exports of before have none
    curve: list[Evaluation] = []
    for train_s, step, tokens, loss in document["curve"]:
        # the export has train seconds alone; other phases are laid out in proportion
        clock = Phases(phases.startup, phases.data, phases.compile, train_s, share * train_s)
        curve.append(Evaluation(int(step), int(tokens), clock, _loss(loss)))
        if step in confirmations:
            value = _loss(confirmations[step])
            curve.append(Evaluation(int(step), int(tokens), clock, value, "confirmation"))
    return AttemptFacts(
        attempt=int(document.get("attempt", 1)),
        outcome=Outcome(document["outcome"]),
        reason=Reason(document["reason"]),
        message=str(document.get("message", "")),
        curve=tuple(curve),
        phases=phases,
        steps=int(document["steps"]),
        tokens=int(document["tokens"]),
        best_loss=document.get("best_loss"),
        tokens_per_s=document.get("tokens_per_s"),
        peak_memory_bytes=document.get("peak_memory_bytes"),
        cap_s=document.get("cap_s"),
        wall_s=float(document.get("wall_s", phases.seconds("wall"))),
        started_at=float(document.get("started_at", 0.0)),
        device=document.get("device") or {},
        fingerprint=document.get("fingerprint") or {},
        validity=document.get("validity", "valid"),
    )
