"""Two more stages: `prepare`, whose runs leave checkpoints, and `extend`, which goes on from them.

It must not know what came later.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "sweep_facts"


def upgrade() -> None:
    """One step forward."""
    op.drop_constraint(op.f("stages_stage_check"), "stages", schema=SCHEMA, type_="check")
    op.create_check_constraint(
        op.f("stages_stage_check"),
        "stages",
        "stage IN ('prepare', 'stage1', 'stage2', 'confirm', 'extend')",
        schema=SCHEMA,
    )
