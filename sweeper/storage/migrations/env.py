"""What Alembic runs: the versions, on the connection and in the transaction that `migrate` gives.

It must not open a connection or read a file of the user's.
"""

from __future__ import annotations

from alembic import context

from sweeper.storage.names import SCHEMA, VERSION_TABLE
from sweeper.storage.schema import metadata


def _ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "schema" or name == SCHEMA


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=_ours,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
