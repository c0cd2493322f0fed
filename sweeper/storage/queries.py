"""The statements that take more than a line: fences, leases, writing plans, reading facts.

It must not know transactions, retries or errors: it works on the connection it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Select, case, exists, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from sweeper.curve import Curve
from sweeper.errors import StudyBusy
from sweeper.storage import rows
from sweeper.storage.base import STAGES, Lease, StageRecord, no_counts
from sweeper.storage.schema import (
    SCHEMA,
    attempts,
    evaluations,
    fingerprints,
    leases,
    stages,
    studies,
    trials,
)
from sweeper.trial import (
    AttemptFacts,
    Brief,
    Outcome,
    Phases,
    PlannedTrial,
    StageName,
    StagePlan,
    TrialFacts,
)

STUDY_STAGES: Final = studies.join(stages, stages.c.study_key == studies.c.study_key)
STUDY_TRIALS: Final = STUDY_STAGES.join(trials, trials.c.stage_key == stages.c.stage_key)
STUDY_ATTEMPTS: Final = STUDY_TRIALS.join(attempts, attempts.c.trial_key == trials.c.trial_key)
_STAGE_ORDER: Final = case({name: place for place, name in enumerate(STAGES)}, value=stages.c.stage)
_MEASURED: Final = (Outcome.REACHED.value, Outcome.CENSORED.value)

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
HELD: Final = text(
    f"""
    SELECT holder, token, extract(epoch FROM expires_at - clock_timestamp())::float8 AS left_s
    FROM {SCHEMA}.leases WHERE study = :study
    """  # noqa: S608 - a constant
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


def read_stages(
    connection: Connection, study: str, stage: StageName | None, *, planned: bool = True
) -> list[StageRecord]:
    """One stage or all of a study, in order; `planned`: with their trials."""
    query = (
        select(studies.c.study, stages).select_from(STUDY_STAGES).where(studies.c.study == study)
    )
    if stage is not None:
        query = query.where(stages.c.stage == stage)
    found = connection.execute(query.order_by(_STAGE_ORDER)).all()
    of_stage: dict[str, list[PlannedTrial]] = defaultdict(list)
    for row in connection.execute(_planned(study, stage)) if planned else ():
        of_stage[row.stage].append(rows.trial_value(row, row.stage))
    return [rows.stage_value(row, of_stage[row.stage]) for row in found]


def _planned(study: str, stage: StageName | None) -> Select[Any]:
    query = (
        select(stages.c.stage, *rows.TRIAL_COLUMNS)
        .select_from(STUDY_TRIALS)
        .where(studies.c.study == study)
        .order_by(_STAGE_ORDER, trials.c.position)
    )
    return query if stage is None else query.where(stages.c.stage == stage)


def read_facts(
    connection: Connection,
    study: str,
    stage: StageName | None,
    *,
    only: Collection[str] | None = None,
    curves: bool = True,
) -> list[TrialFacts]:
    """Trials, then attempts, then curves: whatever is recorded between them is left for later."""
    wanted = [] if only is None else [trials.c.trial.in_(only)]
    planned = connection.execute(_planned(study, stage).where(*wanted)).all()
    chosen = [*wanted, studies.c.study == study, attempts.c.outcome.is_not(None)]
    if stage is not None:
        chosen.append(stages.c.stage == stage)
    query: Select[Any] = (
        select(*rows.ATTEMPT_COLUMNS, fingerprints.c.document.label("fingerprint"))
        .select_from(STUDY_ATTEMPTS.outerjoin(fingerprints))
        .where(*chosen)
        .order_by(attempts.c.attempt)
    )
    ended = connection.execute(query).all()
    measured: dict[int, Curve] = {}
    if curves:
        grouped: Select[Any] = (
            select(evaluations.c.attempt_key, *rows.CURVE_COLUMNS)
            .select_from(STUDY_ATTEMPTS.join(evaluations))
            .where(*chosen)
            .group_by(evaluations.c.attempt_key)
        )
        packed = connection.execute(grouped, execution_options={"yield_per": 100})
        measured = {key: rows.curve_value(*columns) for key, *columns in packed}
    of_trial: dict[int, list[AttemptFacts]] = defaultdict(list)
    for row in ended:
        facts = rows.attempt_value(row, measured.get(row.attempt_key, ()), row.fingerprint or {})
        of_trial[row.trial_key].append(facts)
    return [
        TrialFacts(rows.trial_value(row, row.stage), tuple(of_trial[row.trial_key]))
        for row in planned
    ]


def read_brief(connection: Connection, study: str) -> list[Brief]:
    """See `Store.brief`."""
    query = (
        select(trials.c.trial, *rows.BRIEF_COLUMNS)
        .select_from(STUDY_ATTEMPTS)
        .where(studies.c.study == study, attempts.c.outcome.is_not(None))
        .order_by(attempts.c.trial_key, attempts.c.attempt)
    )
    return [
        Brief(name, Outcome(outcome), wall_s, best_loss, Phases(*seconds))
        for name, outcome, wall_s, best_loss, *seconds in connection.execute(query)
    ]


def read_counts(connection: Connection, study: str) -> dict[StageName, dict[str, int]]:
    """See `Store.counts`."""
    known = select(stages.c.stage).select_from(STUDY_STAGES).where(studies.c.study == study)
    found = {name: no_counts() for name in connection.scalars(known.order_by(_STAGE_ORDER))}
    # The attempt that counts, as TrialFacts.counted has it; one under way goes before all.
    place = func.row_number().over(
        partition_by=attempts.c.trial_key,
        order_by=(
            attempts.c.outcome.is_(None).desc(),
            attempts.c.outcome.in_(_MEASURED).desc(),
            attempts.c.attempt.desc(),
        ),
    )
    ranked = (
        select(
            attempts.c.trial_key,
            func.coalesce(attempts.c.outcome, "running").label("state"),
            place.label("place"),
        )
        .select_from(STUDY_ATTEMPTS)
        .where(studies.c.study == study)
        .subquery()
    )
    first = (ranked.c.trial_key == trials.c.trial_key) & (ranked.c.place == 1)
    states = (
        select(stages.c.stage, ranked.c.state, func.count().label("trials"))
        .select_from(STUDY_TRIALS.outerjoin(ranked, first))
        .where(studies.c.study == study)
        .group_by(stages.c.stage, ranked.c.state)
    )
    for row in connection.execute(states):
        found[row.stage]["planned"] += row.trials
        if row.state is not None:
            found[row.stage][row.state] += row.trials
    return found
