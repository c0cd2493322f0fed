"""The writing statements that take more than a line: fences, leases, plans.

It must not know transactions, retries or errors: it works on the connection it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Select, exists, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from sweeper.errors import StudyBusy
from sweeper.storage import rows
from sweeper.storage.base import Lease
from sweeper.storage.names import SCHEMA
from sweeper.storage.schema import attempts, fingerprints, leases, stages, studies, trials
from sweeper.trial import StagePlan

STUDY_STAGES: Final = studies.join(stages, stages.c.study_key == studies.c.study_key)
STUDY_TRIALS: Final = STUDY_STAGES.join(trials, trials.c.stage_key == stages.c.stage_key)
STUDY_ATTEMPTS: Final = STUDY_TRIALS.join(attempts, attempts.c.trial_key == trials.c.trial_key)

_LIVE: Final = "clock_timestamp() + make_interval(secs => :ttl_s)"
ACQUIRE: Final = text(
    f"""
    INSERT INTO {SCHEMA}.leases AS held (study, token, holder, claim, expires_at)
    VALUES (:study, 1, :holder, :claim, {_LIVE})
    ON CONFLICT (study) DO UPDATE
    SET token = held.token + 1, holder = excluded.holder, claim = excluded.claim,
        expires_at = excluded.expires_at
    WHERE held.expires_at <= clock_timestamp() OR held.claim = excluded.claim
    RETURNING token
    """  # noqa: S608 - constants
)
RENEW: Final = text(
    f"UPDATE {SCHEMA}.leases SET expires_at = {_LIVE} WHERE study = :study AND token = :token"  # noqa: S608 - constants
)
RELEASE: Final = text(
    f"""
    UPDATE {SCHEMA}.leases SET token = token + 1, expires_at = to_timestamp(0)
    WHERE study = :study AND token = :token
    """  # noqa: S608 - a constant
)

BEGIN: Final = text(
    f"""
    INSERT INTO {SCHEMA}.attempts AS begun (trial_key, attempt, folder, slot, lease_token)
    SELECT t.trial_key, :attempt, :folder, :slot, held.token
    FROM {SCHEMA}.trials t JOIN {SCHEMA}.studies s USING (study_key),
        (SELECT token FROM {SCHEMA}.leases WHERE study = :study AND token = :token FOR SHARE) held
    WHERE s.study = :study AND t.trial = :trial
    ON CONFLICT (trial_key, attempt) DO UPDATE
    SET folder = excluded.folder, slot = excluded.slot, lease_token = excluded.lease_token
    WHERE begun.outcome IS NULL
    RETURNING attempt_key
    """  # noqa: S608 - a constant
)

_ENDED = upsert(attempts).values(recorded_at=func.clock_timestamp())
RECORD: Final = _ENDED.on_conflict_do_update(
    index_elements=["trial_key", "attempt"],
    set_={name: _ENDED.excluded[name] for name in (*rows.ATTEMPT_NAMES, "recorded_at")},
    where=attempts.c.outcome.is_(None),
).returning(attempts.c.attempt_key)
"""Made once: to put it together takes as long as to run it."""

# A hundred rows of values, each with its own parameters, take ten times as long to write.
_EVALUATION: Final = ", ".join(rows.EVALUATION_TYPES)
_COLUMNS: Final = ", ".join(f"CAST(:{n} AS {of}[])" for n, of in rows.EVALUATION_TYPES.items())
WRITE_CURVE: Final = text(
    f"""
    INSERT INTO {SCHEMA}.evaluations (attempt_key, position, {_EVALUATION})
    SELECT :attempt_key, place - 1, {_EVALUATION}
    FROM unnest({_COLUMNS}) WITH ORDINALITY AS curve ({_EVALUATION}, place)
    """  # noqa: S608 - constants
)


def fence(connection: Connection, study: str, lease: Lease) -> None:
    """Hold the study's lease still until this transaction ends, if it is still this one."""
    query = select(leases.c.token, leases.c.holder).where(leases.c.study == lease.study)
    held = connection.execute(query.with_for_update(read=True)).one_or_none()
    if study == lease.study and held is not None and held.token == lease.token:
        return
    by = f"{held.holder} has had it since" if held else "the database knows of none"
    raise StudyBusy(
        f"study {study}: the lease of {lease.holder} (number {lease.token}) is lost, {by}; this "
        f"process stops, and what it started goes on: see `sweep status {study}`"
    )


def study_key(connection: Connection, study: str) -> int:
    """The key of a study that is there."""
    query = select(studies.c.study_key).where(studies.c.study == study)
    key: int = connection.execute(query).scalar_one()
    return key


def write_trials(connection: Connection, plan: StagePlan, study_key: int, stage_key: int) -> None:
    """Add or replace the trials of a plan; ValueError for an id that is used twice in the study."""
    if not plan.trials:
        return
    keys = {"study_key": study_key, "stage_key": stage_key}
    written = [keys | rows.trial_row(trial, place) for place, trial in enumerate(plan.trials)]
    names = [trial.id for trial in plan.trials]
    elsewhere = select(trials.c.trial).where(
        trials.c.study_key == study_key, trials.c.stage_key != stage_key, trials.c.trial.in_(names)
    )
    if len(set(names)) < len(names) or connection.execute(elsewhere).first():
        raise ValueError(f"study {plan.study}, {plan.stage}: a trial id is used twice")
    statement = upsert(trials)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["study_key", "trial"],
            set_={n: statement.excluded[n] for n in written[0] if n not in ("study_key", "trial")},
        ),
        written,
    )


def check_update(connection: Connection, plan: StagePlan, stage_key: int) -> None:
    """ValueError when a trial is gone from the new plan, or one that was tried has changed."""
    tried = exists().where(attempts.c.trial_key == trials.c.trial_key).label("tried")
    query = select(trials.c.trial, trials.c.point_id, trials.c.seed, tried)
    new = {trial.id: (trial.point.id, trial.seed) for trial in plan.trials}
    for row in connection.execute(query.where(trials.c.stage_key == stage_key)):
        if row.trial not in new:
            raise ValueError(f"study {plan.study}: trial {row.trial} is not in the new plan")
        if row.tried and new[row.trial] != (row.point_id, row.seed):
            raise ValueError(f"study {plan.study}: trial {row.trial} was tried and has changed")


def attempt_key(study: str, trial_id: str, attempt: int) -> Select[tuple[int]]:
    """The key of an attempt that has ended, if there is one."""
    return (
        select(attempts.c.attempt_key)
        .select_from(STUDY_ATTEMPTS)
        .where(studies.c.study == study, trials.c.trial == trial_id)
        .where(attempts.c.attempt == attempt, attempts.c.outcome.is_not(None))
    )


def keep_fingerprint(connection: Connection, document: Mapping[str, Any]) -> str | None:
    """The key of a fingerprint, written once; None for an empty one."""
    if not document:
        return None
    key = rows.fingerprint_key(document)
    connection.execute(
        upsert(fingerprints)
        .values(fingerprint=key, document=dict(document))
        .on_conflict_do_nothing()
    )
    return key
