"""Which version the database's schema has, and the way from there to this program's.

It must not know what the tables are for; alembic is imported only when there is something to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from sweeper.errors import DatabaseUnusable
from sweeper.storage.failures import explain
from sweeper.storage.names import HEAD, SCHEMA, VERSION_TABLE, VERSIONS
from sweeper.storage.url import mask

if TYPE_CHECKING:
    from alembic.config import Config

# Any number will do that nobody else takes for an advisory lock in this database.
_LOCK: Final = 0x5357_4545_5001
_LOCK_WAIT_S: Final = 60


@dataclass(frozen=True)
class SchemaStatus:
    """`current` is the database's version (None: no schema), `head` this program's."""

    current: str | None
    head: str
    state: Literal["none", "behind", "current", "ahead"]

    @classmethod
    def of(cls, current: str | None, versions: Sequence[str] = VERSIONS) -> SchemaStatus:
        """A database's version against those that a program knows, oldest first."""
        head = versions[-1]
        if current is None:
            return cls(None, head, "none")
        if current == head:
            return cls(current, head, "current")
        return cls(current, head, "behind" if current in versions else "ahead")


def status(engine: Engine) -> SchemaStatus:
    """The schema's version, in one query.

    Raises:
        DatabaseUnusable: the database cannot be used.
    """
    try:
        with engine.connect() as connection:
            return _status(connection)
    except DBAPIError as error:
        raise explain(error, engine.url) from None


def require(engine: Engine) -> None:
    """Do nothing when the schema is this program's.

    Raises:
        DatabaseUnusable: there is none, an older or a newer one, or the database cannot be used.
    """
    found = status(engine)
    if found.state == "current":
        return
    if found.state == "ahead":
        raise _newer(engine, found)
    what = (
        "has no tables of sweep's"
        if found.current is None
        else f"has sweep's tables in version {found.current}, this program needs {found.head}"
    )
    raise DatabaseUnusable(f"database {mask(engine.url)}: it {what}; run `sweep db upgrade`")


def upgrade(engine: Engine) -> SchemaStatus:
    """Bring the schema to this program's version, whole or not at all; what it was before.

    Several commands may call this at once: one does it, the others wait for it.

    Raises:
        DatabaseUnusable: the schema is newer than this program, or the database cannot be used.
    """
    before = status(engine)
    if before.state == "current":
        return before
    if before.state == "ahead":
        raise _newer(engine, before)
    from alembic import command  # noqa: PLC0415 - 0.2 s that most commands need not pay

    try:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            before = _status(connection)
            if before.state == "ahead":
                raise _newer(engine, before)
            if before.state != "current":
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
                command.upgrade(config(connection), HEAD)
    except DBAPIError as error:
        raise explain(error, engine.url) from None
    return before


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file: the migrations of this package, on a connection.

    For developers: `command.revision(config(connection), autogenerate=True, rev_id="0002")`.
    """
    from alembic.config import Config  # noqa: PLC0415

    made = Config()
    folder = str(Path(__file__).parent / "migrations")
    made.set_main_option("script_location", folder.replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def _status(connection: Connection) -> SchemaStatus:
    """Ask for the table first: in the caller's transaction a missing one must not be an error.

    The catalogue is read as a table because to_regclass answers from a cache, which may say "none"
    to a process that has just waited for another one's migration.
    """
    here = connection.scalar(
        text("SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = :s AND tablename = :t"),
        {"s": SCHEMA, "t": VERSION_TABLE},
    )
    found = (
        connection.scalar(text(f"SELECT max(version_num) FROM {SCHEMA}.{VERSION_TABLE}"))  # noqa: S608
        if here
        else None
    )
    return SchemaStatus.of(found)


def _newer(engine: Engine, found: SchemaStatus) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"database {mask(engine.url)}: sweep's tables are in version {found.current}, and this "
        f"program knows versions up to {found.head}: a newer sweep made them; use that one, or "
        "another database"
    )
