"""Our values as rows and documents, and back, equal.

It must not know how rows are read or written, and never imports SQLAlchemy: `status` reads without it.

Columns are given as SQL, of the tables s (studies), g (stages), t (trials), a (attempts) and e
(evaluations).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sweeper.curve import Curve
from sweeper.space import Point
from sweeper.storage.base import StageRecord, storable
from sweeper.storage.names import PHASES
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


def _columns(table: str, *names: str) -> str:
    return ", ".join(f"{table}.{name}" for name in names)


def _packed(values: str, name: str) -> str:
    """One column of a group's evaluations as one value, in their order."""
    return f"string_agg({values}, ''::bytea ORDER BY e.position) AS {name}"


STAGE_COLUMNS: Final = (
    "s.study, g.stage, g.target, g.effective_target, g.definition, g.definition_hash, g.plan, "
    "g.options, g.exploratory, g.created_at, g.closed_at"
)
TRIAL_COLUMNS: Final = (
    "t.trial_key, t.trial, t.label, t.groups, t.point, t.seed, t.replicate_of, t.open, t.block"
)
ATTEMPT_COLUMNS: Final = (
    "a.attempt_key, a.trial_key, a.attempt, a.outcome, a.reason, a.message, a.device, a.validity, "
    f"a.clock_source, {_columns('a', *_PLAIN_FACTS, *_PHASE_COLUMNS)}"
)
BRIEF_COLUMNS: Final = _columns("a", "outcome", "wall_s", "best_loss", *_PHASE_COLUMNS)
ATTEMPT_NAMES: Final = (
    *("trial_key", "attempt", "outcome", "reason", "message", "device", "validity", "clock_source"),
    *(*_PLAIN_FACTS, *_PHASE_COLUMNS, "fingerprint"),
)
"""What is written of an ended attempt, besides when."""
EVALUATION_TYPES: Final = {
    "slice": "text",
    **dict.fromkeys(("step", "tokens"), "bigint"),
    **dict.fromkeys(("value", *_PHASE_COLUMNS), "float8"),
}
# A study has a million evaluations: as rows of text, value by value, they take many times as long.
CURVE_COLUMNS: Final = ", ".join(
    (
        _packed("boolsend(e.slice = 'confirmation')", "confirmations"),
        *(_packed(f"int8send(e.{name})", name) for name in ("step", "tokens")),
        *(_packed(f"float8send(e.{name})", name) for name in ("value", *_PHASE_COLUMNS)),
    )
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


def stage_value(row: Any, planned: Sequence[PlannedTrial]) -> StageRecord:
    """A frozen stage from STAGE_COLUMNS, and its trials in plan order."""
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


def trial_value(row: Any, stage: Any) -> PlannedTrial:
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
    row: Any, curve: Sequence[Evaluation], fingerprint: Mapping[str, Any]
) -> AttemptFacts:
    """An ended attempt from ATTEMPT_COLUMNS."""
    return AttemptFacts(
        attempt=row.attempt,
        outcome=Outcome(row.outcome),
        reason=Reason(row.reason),
        message=row.message,
        curve=curve,
        phases=Phases(*(getattr(row, name) for name in _PHASE_COLUMNS)),
        device=row.device,
        fingerprint=fingerprint,
        validity=row.validity,
        clock_source=row.clock_source,
        **{name: getattr(row, name) for name in _PLAIN_FACTS},
    )


def curve_row(attempt_key: int, curve: Sequence[Evaluation]) -> dict[str, Any]:
    """A curve for WRITE_CURVE: a list for each column, as long as the curve."""
    kept = Curve.of(curve)
    names = {name: name.removesuffix("_s") for name in EVALUATION_TYPES}
    return {"attempt_key": attempt_key, **{n: list(kept.column(of)) for n, of in names.items()}}


def curve_value(confirmations: bytes, *columns: bytes) -> Curve:
    """A curve from CURVE_COLUMNS."""
    return Curve.unpacked(bytes(confirmations), tuple(map(bytes, columns)))


def fingerprint_key(document: Mapping[str, Any]) -> str:
    """SHA-256 of the document's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(document), sort_keys=True).encode()).hexdigest()


def _phases_row(phases: Phases) -> dict[str, float]:
    return {f"{name}_s": seconds for name, seconds in phases.as_dict().items()}
