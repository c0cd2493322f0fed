"""Our values as rows and documents, and back, equal.

It must not know how rows are read or written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import ColumnElement, LargeBinary, Row, func, literal
from sqlalchemy.dialects.postgresql import aggregate_order_by

from sweeper.curve import Curve
from sweeper.space import Point
from sweeper.storage.base import StageRecord, storable
from sweeper.storage.schema import PHASES, attempts, evaluations, trials
from sweeper.trial import (
    AttemptFacts,
    Evaluation,
    Lock,
    Outcome,
    Phases,
    PlannedTrial,
    Reason,
    StagePlan,
)

_PLAN_PARTS: Final = ("entries", "distinct", "depends_on", "varying", "open", "design", "notes")
_PHASE_COLUMNS: Final = tuple(f"{phase}_s" for phase in PHASES)
_PLAIN_FACTS: Final = (
    "steps",
    "tokens",
    "best_loss",
    "tokens_per_s",
    "peak_memory_bytes",
    "cap_s",
    "wall_s",
    "started_at",
    "ended_at",
    "exit_code",
)
TRIAL_COLUMNS: Final = (
    *(trials.c[n] for n in ("trial_key", "trial", "label", "groups", "point", "seed")),
    *(trials.c[n] for n in ("replicate_of", "open", "block")),
)
ATTEMPT_COLUMNS: Final = (
    *(attempts.c[n] for n in ("attempt_key", "trial_key", "attempt", "outcome", "reason")),
    *(attempts.c[n] for n in ("message", "device", "validity", "clock_source")),
    *(attempts.c[n] for n in (*_PLAIN_FACTS, *_PHASE_COLUMNS)),
)
BRIEF_COLUMNS: Final = tuple(
    attempts.c[n] for n in ("outcome", "wall_s", "best_loss", *_PHASE_COLUMNS)
)


def _packed(values: ColumnElement[Any]) -> ColumnElement[bytes]:
    """One column of a group's evaluations as one value, in their order."""
    in_order = aggregate_order_by(literal(b"", LargeBinary), evaluations.c.position)
    return func.string_agg(values, in_order, type_=LargeBinary)


# A study has a million evaluations: as rows of text, value by value, they take many times as long.
CURVE_COLUMNS: Final = (
    _packed(func.boolsend(evaluations.c.slice == "confirmation")),
    *(_packed(func.int8send(evaluations.c[n])) for n in ("step", "tokens")),
    *(_packed(func.float8send(evaluations.c[n])) for n in ("value", *_PHASE_COLUMNS)),
)
"""All evaluations of a group, for `curve_value`."""


def plan_document(plan: StagePlan) -> dict[str, Any]:
    """A plan without its trials, study, stage and target: those are columns and rows."""
    locked = {name: asdict(lock) for name, lock in plan.locked.items()}
    return {**{part: getattr(plan, part) for part in _PLAN_PARTS}, "locked": locked}


def plan_value(
    study: str, stage: Any, target: float, document: Mapping[str, Any], rows: Sequence[PlannedTrial]
) -> StagePlan:
    """The plan that `plan_document` took apart."""
    return StagePlan(
        study=study,
        stage=stage,
        target=target,
        trials=tuple(rows),
        entries=document["entries"],
        distinct=document["distinct"],
        depends_on=document["depends_on"],
        locked={name: Lock(**lock) for name, lock in document["locked"].items()},
        varying={name: tuple(levels) for name, levels in document["varying"].items()},
        open=document["open"],
        design=document["design"],
        notes=tuple(document["notes"]),
    )


def stage_value(row: Row[Any], planned: Sequence[PlannedTrial]) -> StageRecord:
    """A row of `stages` with `study`, and its trials in plan order."""
    return StageRecord(
        study=row.study,
        stage=row.stage,
        target=row.target,
        effective_target=row.effective_target,
        definition=row.definition,
        definition_hash=row.definition_hash,
        plan=plan_value(row.study, row.stage, row.target, row.plan, planned),
        options=row.options,
        exploratory=row.exploratory,
        created_at=row.created_at.timestamp(),
        closed_at=row.closed_at.timestamp() if row.closed_at else None,
    )


def trial_row(trial: PlannedTrial, position: int) -> dict[str, Any]:
    """A planned trial as a row, without its keys."""
    return {
        "trial": trial.id,
        "position": position,
        "label": storable(trial.label),
        "groups": list(trial.groups),
        "point": dict(trial.point),
        "point_id": trial.point.id,
        "seed": trial.seed,
        "replicate_of": trial.replicate_of,
        "open": list(trial.open),
        "block": trial.block,
    }


def trial_value(row: Row[Any], stage: Any) -> PlannedTrial:
    """A planned trial from TRIAL_COLUMNS."""
    return PlannedTrial(
        id=row.trial,
        stage=stage,
        label=row.label,
        groups=tuple(row.groups),
        point=Point(row.point),
        seed=row.seed,
        replicate_of=row.replicate_of,
        open=tuple(row.open),
        block=row.block,
    )


def attempt_row(facts: AttemptFacts) -> dict[str, Any]:
    """An ended attempt as a row, without its keys, fingerprint and curve."""
    return {
        "attempt": facts.attempt,
        "outcome": facts.outcome.value,
        "reason": facts.reason.value,
        "message": storable(facts.message),
        "device": dict(facts.device),
        "validity": storable(facts.validity),
        "clock_source": facts.clock_source,
        **{name: getattr(facts, name) for name in _PLAIN_FACTS},
        **_phases_row(facts.phases),
    }


def attempt_value(
    row: Row[Any], curve: Sequence[Evaluation], fingerprint: Mapping[str, Any]
) -> AttemptFacts:
    """An ended attempt from ATTEMPT_COLUMNS."""
    found = row._mapping  # noqa: SLF001 - SQLAlchemy's public name
    return AttemptFacts(
        attempt=row.attempt,
        outcome=Outcome(row.outcome),
        reason=Reason(row.reason),
        message=row.message,
        curve=curve,
        phases=Phases(*(found[name] for name in _PHASE_COLUMNS)),
        device=row.device,
        fingerprint=fingerprint,
        validity=row.validity,
        clock_source=row.clock_source,
        **{name: found[name] for name in _PLAIN_FACTS},
    )


def evaluation_row(attempt_key: int, position: int, evaluation: Evaluation) -> dict[str, Any]:
    """One place of a curve as a row."""
    return {
        "attempt_key": attempt_key,
        "position": position,
        "slice": evaluation.slice,
        "step": evaluation.step,
        "tokens": evaluation.tokens,
        "value": evaluation.value,
        **_phases_row(evaluation.clock),
    }


def curve_value(confirmations: bytes, *columns: bytes) -> Curve:
    """A curve from CURVE_COLUMNS."""
    return Curve.unpacked(bytes(confirmations), tuple(map(bytes, columns)))


def fingerprint_key(document: Mapping[str, Any]) -> str:
    """SHA-256 of the document's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(document), sort_keys=True).encode()).hexdigest()


def _phases_row(phases: Phases) -> dict[str, float]:
    return {f"{name}_s": seconds for name, seconds in phases.as_dict().items()}
