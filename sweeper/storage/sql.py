"""The store on Postgres: every method one transaction, every write safe to repeat.

It must not know what a good result is, nor how facts are read (reading.py does).

Because every write may be repeated, an operation whose connection broke (a restarted server) or
whose transaction lost against another is tried once more at once; longer outages are the
caller's to wait for (DatabaseGone).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sweeper.errors import DatabaseGone, DatabaseUnusable, StudyBusy
from sweeper.storage import migrate, queries, rows
from sweeper.storage.base import Lease, StageRecord, json_text, storable
from sweeper.storage.connection import STATEMENT_S, deadlines
from sweeper.storage.failures import explain, lost_connection, undone_by_conflict
from sweeper.storage.reading import HELD, Execute, Reading, stages_of
from sweeper.storage.schema import (
    device_samples,
    stages,
    studies,
    trials,
)
from sweeper.storage.url import mask, parse
from sweeper.trial import AttemptFacts, DeviceSample, PlannedTrial, StageName, StagePlan

_BATCH: Final = 100  # rows at a time, where all of them would be too much memory

T = TypeVar("T")


def open_engine(url: str) -> Engine:
    """An engine with deadlines on connecting, on statements and on silence, and a small pool.

    Raises:
        DatabaseUnusable: the URL is wrong; nothing is connected yet.
    """
    parsed = parse(url)
    return create_engine(
        parsed,
        pool_pre_ping=True,
        pool_size=2,
        max_overflow=4,
        pool_timeout=STATEMENT_S,
        connect_args={k: v for k, v in deadlines().items() if k not in parsed.query},
        json_serializer=json_text,
        json_deserializer=json.loads,
        hide_parameters=True,
    )


def open_store(url: str, *, create: bool) -> SqlStore:
    """The store in this database; `create` makes or upgrades its tables (an embedded database).

    Raises:
        DatabaseUnusable: the URL is wrong, the database cannot be used, or its schema is not this
            program's (without `create`: also when there is none, or an older one).
    """
    engine = open_engine(url)
    try:
        if create:
            migrate.upgrade(engine)
        else:
            migrate.require(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)


class SqlStore(Reading):
    """Store on a Postgres whose schema is this program's; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, work: Callable[[Execute], T]) -> T:
        """See `Reading.read`."""
        return self._run(lambda connection: work(_executing(connection)))

    def freeze(
        self,
        plan: StagePlan,
        *,
        definition: Mapping[str, Any],
        definition_hash: str,
        options: Mapping[str, Any],
        exploratory: bool = False,
    ) -> StageRecord:
        """See `Store.freeze`."""
        values = {
            "stage": plan.stage,
            "target": plan.target,
            "effective_target": plan.target,
            "definition": dict(definition),
            "definition_hash": definition_hash,
            "plan": rows.plan_document(plan),
            "options": dict(options),
            "exploratory": exploratory,
        }

        def work(connection: Connection) -> StageRecord:
            connection.execute(upsert(studies).values(study=plan.study).on_conflict_do_nothing())
            study_key = queries.study_key(connection, plan.study)
            # Whoever comes second waits here for the first, and then finds its stage.
            stage_key = connection.scalar(
                upsert(stages)
                .values(study_key=study_key, **values)
                .on_conflict_do_nothing()
                .returning(stages.c.stage_key)
            )
            if stage_key is not None:
                queries.write_trials(connection, plan, study_key, stage_key)
            elif exploratory:
                mine = (stages.c.study_key == study_key) & (stages.c.stage == plan.stage)
                connection.execute(update(stages).where(mine).values(exploratory=True))
            return stages_of(_executing(connection), plan.study, plan.stage)[0]

        return self._run(work)

    def update_plan(self, plan: StagePlan) -> None:
        """See `Store.update_plan`."""

        def work(connection: Connection) -> None:
            found = connection.execute(
                select(stages.c.stage_key, stages.c.study_key)
                .select_from(queries.STUDY_STAGES)
                .where(studies.c.study == plan.study, stages.c.stage == plan.stage)
                .with_for_update(of=stages)
            ).one_or_none()
            if found is None:
                raise ValueError(f"study {plan.study} has no {plan.stage} to update")
            queries.check_update(connection, plan, found.stage_key)
            connection.execute(
                update(stages)
                .where(stages.c.stage_key == found.stage_key)
                .values(plan=rows.plan_document(plan), target=plan.target)
            )
            queries.write_trials(connection, plan, found.study_key, found.stage_key)

        self._run(work)

    def set_effective_target(self, study: str, stage: StageName, target: float) -> None:
        """See `Store.set_effective_target`."""
        self._update_stage(study, stage, {"effective_target": target})

    def close_stage(self, study: str, stage: StageName) -> None:
        """See `Store.close_stage`."""
        closed_at = func.coalesce(stages.c.closed_at, func.clock_timestamp())
        self._update_stage(study, stage, {"closed_at": closed_at})

    def begin(
        self, study: str, trial: PlannedTrial, attempt: int, *, folder: str, slot: str, lease: Lease
    ) -> None:
        """See `Store.begin`."""
        row = {"study": study, "trial": trial.id, "attempt": attempt}
        row |= {"folder": folder, "slot": slot, "token": lease.token}

        def work(connection: Connection) -> None:
            # one statement, because a device waits for it; nothing written: find out why
            if lease.study != study or connection.scalar(queries.BEGIN, row) is None:
                queries.fence(connection, study, lease)
                self._trial_key(connection, study, trial.id)

        self._run(work)

    def record(
        self, study: str, trial_id: str, facts: AttemptFacts, *, lease: Lease | None = None
    ) -> bool:
        """See `Store.record`."""

        def work(connection: Connection) -> bool:
            if lease is not None:
                queries.fence(connection, study, lease)
            row = rows.attempt_row(facts) | {
                "trial_key": self._trial_key(connection, study, trial_id),
                "fingerprint": queries.keep_fingerprint(connection, facts.fingerprint),
            }
            attempt_key = connection.scalar(queries.RECORD, row)
            if attempt_key is None:
                return False
            if facts.curve:
                curve = rows.curve_row(attempt_key, facts.curve)
                connection.execute(queries.WRITE_CURVE, curve)
            return True

        return self._run(work)

    def record_samples(
        self, study: str, trial_id: str, attempt: int, samples: Sequence[DeviceSample]
    ) -> None:
        """See `Store.record_samples`."""

        def work(connection: Connection) -> None:
            key = connection.scalar(queries.attempt_key(study, trial_id, attempt))
            if key is None:
                raise ValueError(f"study {study}: {trial_id} attempt {attempt} is not recorded")
            values = [
                {"attempt_key": key, **asdict(s), "device": storable(s.device)} for s in samples
            ]
            if values:
                connection.execute(upsert(device_samples).on_conflict_do_nothing(), values)

        self._run(work)

    def acquire(self, study: str, holder: str, *, ttl_s: float) -> Lease:
        """See `Store.acquire`; the database's clock says what is live."""
        holder = storable(holder)
        row = {"study": study, "holder": holder, "claim": uuid.uuid4().hex, "ttl_s": ttl_s}

        def work(connection: Connection) -> Lease:
            token = connection.scalar(queries.ACQUIRE, row)
            if token is not None:
                return Lease(study, token, holder)
            held = connection.exec_driver_sql(HELD, {"study": study}).one()
            raise StudyBusy(
                f"study {study} is being run by {held.holder}, whose lease ends in "
                f"{max(held.left_s, 0):.0f} s unless it is renewed; wait for it, or see "
                f"`sweep status {study}`"
            )

        return self._run(work)

    def renew(self, lease: Lease, *, ttl_s: float) -> None:
        """See `Store.renew`."""
        row = {"study": lease.study, "token": lease.token, "ttl_s": ttl_s}

        def work(connection: Connection) -> None:
            if connection.execute(queries.RENEW, row).rowcount == 0:
                queries.fence(connection, lease.study, lease)

        self._run(work)

    def release(self, lease: Lease) -> None:
        """See `Store.release`; the token moves on, so that the lease is good for nothing more."""
        row = {"study": lease.study, "token": lease.token}
        self._run(lambda connection: connection.execute(queries.RELEASE, row))

    def close(self) -> None:
        """See `Store.close`."""
        self._engine.dispose()

    def _update_stage(self, study: str, stage: StageName, values: Mapping[str, Any]) -> None:
        key = select(studies.c.study_key).where(studies.c.study == study).scalar_subquery()
        statement = update(stages).where(stages.c.study_key == key, stages.c.stage == stage)
        self._run(lambda connection: connection.execute(statement.values(values)))

    def _trial_key(self, connection: Connection, study: str, trial_id: str) -> int:
        query = select(trials.c.trial_key).select_from(trials.join(studies))
        query = query.where(studies.c.study == study, trials.c.trial == trial_id)
        key: int | None = connection.scalar(query)
        if key is None:
            raise DatabaseUnusable(
                f"database {mask(self._engine.url)}: it does not know trial {trial_id} of study "
                f"{study}: it was emptied or replaced since the stage was frozen; put it back, or "
                "run `sweep db rebuild`"
            )
        return key

    def _run(self, work: Callable[[Connection], T]) -> T:
        """Work in a transaction of its own; once more at once where a repeat may help."""
        try:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not lost_connection(error) and not undone_by_conflict(error):
                    raise
            with self._engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            raise explain(error, self._engine.url) from None
        except PoolTimeout:
            raise DatabaseGone(
                f"database {mask(self._engine.url)}: no connection was free for {STATEMENT_S} s: "
                "it does not answer the others"
            ) from None


def _executing(connection: Connection) -> Execute:
    """What `reading` needs of a connection."""

    def execute(
        statement: str, values: Mapping[str, Any], *, streamed: bool = False
    ) -> Iterable[Any]:
        options = {"yield_per": _BATCH} if streamed else {}
        return connection.exec_driver_sql(statement, values, execution_options=options)

    return execute
