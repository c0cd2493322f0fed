"""The first tables: studies, stages, trials, attempts, curves, device samples, leases.

It must not know what came later.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "sweep_facts"


def upgrade() -> None:
    """One step forward."""
    _plans()
    _attempts()
    _curves()
    _leases()


def _phases(*, nullable: bool) -> list[sa.Column[float]]:
    names = ("startup", "data", "compile", "train", "eval", "checkpoint", "idle")
    return [sa.Column(f"{name}_s", sa.Double(), nullable=nullable) for name in names]


def _plans() -> None:
    op.create_table(
        "studies",
        sa.Column("study_key", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("study_key", name="studies_pkey"),
        sa.UniqueConstraint("study", name="studies_study_key"),
        schema=SCHEMA,
    )
    op.create_table(
        "stages",
        sa.Column("stage_key", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_key", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("target", sa.Double(), nullable=False),
        sa.Column("effective_target", sa.Double(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("definition_hash", sa.Text(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("exploratory", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "stage IN ('stage1', 'stage2', 'confirm')", name=op.f("stages_stage_check")
        ),
        sa.ForeignKeyConstraint(
            ["study_key"],
            [f"{SCHEMA}.studies.study_key"],
            name="stages_study_key_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("stage_key", name="stages_pkey"),
        sa.UniqueConstraint("study_key", "stage", name="stages_study_key_stage_key"),
        schema=SCHEMA,
    )
    op.create_table(
        "trials",
        sa.Column("trial_key", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_key", sa.BigInteger(), nullable=False),
        sa.Column("stage_key", sa.BigInteger(), nullable=False),
        sa.Column("trial", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("groups", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("point", sa.JSON(), nullable=False),
        sa.Column("point_id", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("replicate_of", sa.Text()),
        sa.Column("open", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["stage_key"],
            [f"{SCHEMA}.stages.stage_key"],
            name="trials_stage_key_fkey",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["study_key"],
            [f"{SCHEMA}.studies.study_key"],
            name="trials_study_key_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_key", name="trials_pkey"),
        sa.UniqueConstraint("study_key", "trial", name="trials_study_key_trial_key"),
        schema=SCHEMA,
    )
    op.create_index(
        "trials_stage_key_position_idx",
        "trials",
        ["stage_key", "position"],
        unique=False,
        schema=SCHEMA,
    )


def _attempts() -> None:
    op.create_table(
        "fingerprints",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("fingerprint", name="fingerprints_pkey"),
        schema=SCHEMA,
    )
    op.create_table(
        "attempts",
        sa.Column("attempt_key", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("trial_key", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("folder", sa.Text()),
        sa.Column("slot", sa.Text()),
        sa.Column("lease_token", sa.BigInteger()),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("recorded_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("message", sa.Text()),
        *_phases(nullable=True),
        sa.Column("steps", sa.BigInteger()),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("best_loss", sa.Double()),
        sa.Column("tokens_per_s", sa.Double()),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("cap_s", sa.Double()),
        sa.Column("wall_s", sa.Double()),
        sa.Column("started_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("device", sa.JSON()),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("validity", sa.Text()),
        sa.Column("clock_source", sa.Text()),
        sa.CheckConstraint(
            "outcome IN ('reached', 'censored', 'failed', 'invalid')",
            name=op.f("attempts_outcome_check"),
        ),
        sa.CheckConstraint(
            "(outcome IS NULL) = (recorded_at IS NULL) AND (outcome IS NULL) = (reason IS NULL)",
            name=op.f("attempts_ended_check"),
        ),
        sa.CheckConstraint("attempt > 0", name=op.f("attempts_attempt_check")),
        sa.ForeignKeyConstraint(
            ["fingerprint"],
            [f"{SCHEMA}.fingerprints.fingerprint"],
            name="attempts_fingerprint_fkey",
        ),
        sa.ForeignKeyConstraint(
            ["trial_key"],
            [f"{SCHEMA}.trials.trial_key"],
            name="attempts_trial_key_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("attempt_key", name="attempts_pkey"),
        sa.UniqueConstraint("trial_key", "attempt", name="attempts_trial_key_attempt_key"),
        schema=SCHEMA,
    )
    op.create_index(
        "attempts_running_idx",
        "attempts",
        ["trial_key"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("outcome IS NULL"),
    )


def _curves() -> None:
    op.create_table(
        "evaluations",
        sa.Column("attempt_key", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("slice", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        *_phases(nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_key"],
            [f"{SCHEMA}.attempts.attempt_key"],
            name="evaluations_attempt_key_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("attempt_key", "position", name="evaluations_pkey"),
        schema=SCHEMA,
    )
    op.create_table(
        "device_samples",
        sa.Column("attempt_key", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("utilisation", sa.Double()),
        sa.Column("memory_bytes", sa.BigInteger()),
        sa.Column("power_w", sa.Double()),
        sa.Column("temperature_c", sa.Double()),
        sa.Column("clock_mhz", sa.Double()),
        sa.ForeignKeyConstraint(
            ["attempt_key"],
            [f"{SCHEMA}.attempts.attempt_key"],
            name="device_samples_attempt_key_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("attempt_key", "device", "at_s", name="device_samples_pkey"),
        schema=SCHEMA,
    )


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("study", name="leases_pkey"),
        schema=SCHEMA,
    )
