"""The tables of our facts.

It must not know who reads or writes them; `migrations/` builds what is drawn here.

    studies -< stages -< trials -< attempts -< evaluations
                                           `-< device_samples
    leases (one row per study name)        >- fingerprints

They live in a Postgres schema of their own because Optuna keeps its tables, `studies` and `trials`
among them, in `public` of the same database. The schema is not called `sweep`: a role of that name,
the obvious one, would find it first on its search path ("$user", public), and Optuna would take our
tables for its own.

Documents are `json`, not `jsonb`: a frozen document must come back as it was frozen, and jsonb
sorts keys and turns 1e16 into a whole number (and so a point into another point). Cast for
operators: `point::jsonb @> '{"lr": 0.003}'`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)

from sweeper.storage.names import PHASES, SCHEMA

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)


def _key(name: str) -> Column[int]:
    return Column(name, BigInteger, Identity(always=True), primary_key=True)


def _of(name: str, target: str, *, key: bool = False) -> Column[Any]:
    return Column(
        name,
        ForeignKey(f"{SCHEMA}.{target}.{name}", ondelete="CASCADE"),
        primary_key=key,
        nullable=False,
    )


def _phases(*, nullable: bool) -> list[Column[float]]:
    """Cumulative seconds per phase."""
    return [Column(f"{phase}_s", Double, nullable=nullable) for phase in PHASES]


def _now() -> Column[Any]:
    return Column(
        "created_at",
        DateTime(timezone=True),
        server_default=func.clock_timestamp(),
        nullable=False,
    )


studies = Table(
    "studies",
    metadata,
    _key("study_key"),
    Column("study", Text, nullable=False, unique=True),
    _now(),
)

stages = Table(
    "stages",
    metadata,
    _key("stage_key"),
    _of("study_key", "studies"),
    Column("stage", Text, nullable=False),
    Column("target", Double, nullable=False),
    Column("effective_target", Double, nullable=False),
    Column("definition", JSON, nullable=False),
    Column("definition_hash", Text, nullable=False),
    # The plan without its trials: those are rows.
    Column("plan", JSON, nullable=False),
    Column("options", JSON, nullable=False),
    Column("exploratory", Boolean, nullable=False),
    _now(),
    Column("closed_at", DateTime(timezone=True)),
    UniqueConstraint("study_key", "stage"),
    CheckConstraint("stage IN ('prepare', 'stage1', 'stage2', 'confirm', 'extend')", name="stage"),
)

trials = Table(
    "trials",
    metadata,
    _key("trial_key"),
    _of("study_key", "studies"),
    _of("stage_key", "stages"),
    Column("trial", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("label", Text, nullable=False),
    Column("groups", ARRAY(Text), nullable=False),
    Column("point", JSON, nullable=False),
    Column("point_id", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("replicate_of", Text),
    Column("open", ARRAY(Text), nullable=False),
    Column("block", Integer, nullable=False),
    UniqueConstraint("study_key", "trial"),
    Index(None, "stage_key", "position"),
)

fingerprints = Table(
    "fingerprints",
    metadata,
    # SHA-256 of the document's canonical JSON: attempts on one machine share a row.
    Column("fingerprint", Text, primary_key=True),
    Column("document", JSON, nullable=False),
    _now(),
)

attempts = Table(
    "attempts",
    metadata,
    _key("attempt_key"),
    _of("trial_key", "trials"),
    Column("attempt", Integer, nullable=False),
    # Null where an attempt was recorded that nobody here began (a rebuilt database).
    Column("folder", Text),
    Column("slot", Text),
    Column("lease_token", BigInteger),
    _now(),
    # Null while it runs; all below is the outcome, written once.
    Column("recorded_at", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("reason", Text),
    Column("message", Text),
    *_phases(nullable=True),
    Column("steps", BigInteger),
    Column("tokens", BigInteger),
    Column("best_loss", Double),
    Column("tokens_per_s", Double),
    Column("peak_memory_bytes", BigInteger),
    Column("cap_s", Double),
    Column("wall_s", Double),
    # Unix times read where the attempt ran: not on this database's clock.
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("exit_code", Integer),
    Column("device", JSON),
    Column("fingerprint", ForeignKey(f"{SCHEMA}.fingerprints.fingerprint")),
    Column("validity", Text),
    Column("clock_source", Text),
    UniqueConstraint("trial_key", "attempt"),
    CheckConstraint("attempt > 0", name="attempt"),
    CheckConstraint(
        "outcome IN ('reached', 'censored', 'failed', 'invalid')",
        name="outcome",
    ),
    CheckConstraint(
        "(outcome IS NULL) = (recorded_at IS NULL) AND (outcome IS NULL) = (reason IS NULL)",
        name="ended",
    ),
    Index("attempts_running_idx", "trial_key", postgresql_where=text("outcome IS NULL")),
)

evaluations = Table(
    "evaluations",
    metadata,
    _of("attempt_key", "attempts", key=True),
    # Place on the curve, from 0: a trainer may evaluate one step twice.
    Column("position", Integer, primary_key=True),
    Column("slice", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    # 'NaN' where the run diverged; Postgres sorts it after every number.
    Column("value", Double, nullable=False),
    *_phases(nullable=False),
)

device_samples = Table(
    "device_samples",
    metadata,
    _of("attempt_key", "attempts", key=True),
    Column("device", Text, primary_key=True),
    # Seconds since the attempt's start, monotonic.
    Column("at_s", Double, primary_key=True),
    Column("utilisation", Double),
    Column("memory_bytes", BigInteger),
    Column("power_w", Double),
    Column("temperature_c", Double),
    Column("clock_mhz", Double),
)

leases = Table(
    "leases",
    metadata,
    # No foreign key: a study is leased before its first stage is frozen.
    Column("study", Text, primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    # Names one call of acquire, so that repeating it after a lost answer finds its own lease.
    Column("claim", Text, nullable=False),
    # On this database's clock; in the past when it was given back.
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
