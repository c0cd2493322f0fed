"""Reading facts through the driver alone: importing SQLAlchemy takes longer than most studies take.

It must not explain anything: where something is out of the ordinary, the store is asked instead,
which says in words what is wrong.
"""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ, make_dsn

from sweeper.storage.connection import deadlines, plain
from sweeper.storage.names import HEAD, SCHEMA, VERSION_TABLE
from sweeper.storage.reading import Execute, Reading

# Shorter than the store's, which waits for as long as it does after these have passed.
_CONNECT_S: Final = 3
_STATEMENT_S: Final = 20

T = TypeVar("T")


class Unusual(Exception):  # noqa: N818 - no error: another way has to be taken
    """The store must be asked instead."""


@contextlib.contextmanager
def reading(url: str) -> Iterator[Reading]:
    """The facts as they are now: one connection, one transaction, which can only read.

    Raises:
        Unusual: the URL or the database is not what is usual; also from inside the block.
    """
    try:
        with contextlib.closing(_connect(url)) as connection:
            facts = _LightReader(connection)
            facts.require_version()
            yield facts
    except psycopg2.Error:  # its words may hold a password
        raise Unusual from None


def _connect(url: str) -> Any:
    arguments = plain(url)
    if arguments is None:
        raise Unusual
    waits = deadlines(connect_s=_CONNECT_S, statement_s=_STATEMENT_S)
    connection = psycopg2.connect(make_dsn(**(waits | arguments)))
    connection.set_session(ISOLATION_LEVEL_REPEATABLE_READ, readonly=True)
    return connection


class _LightReader(Reading):
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def read(self, work: Callable[[Execute], T]) -> T:
        return work(self._execute)

    def require_version(self) -> None:
        """Unusual when the tables are not this program's."""
        query = f"SELECT max(version_num) AS version FROM {SCHEMA}.{VERSION_TABLE}"  # noqa: S608 - constants
        (row,) = self._execute(query, {})
        if row.version != HEAD:
            raise Unusual

    def _execute(
        self,
        statement: str,
        values: Mapping[str, Any],
        *,
        streamed: bool = False,  # noqa: ARG002 - who reads lightly reads little
    ) -> Iterable[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            # psycopg2.extras has a cursor for it, and imports what takes 10 ms
            row = namedtuple("row", [c.name for c in cursor.description])  # type: ignore[misc]  # noqa: PYI024
            return list(map(row._make, cursor))
