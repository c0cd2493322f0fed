"""A database role that can only read the search library's tables, made for whoever only looks at them.

It must not know who that is, nor what the tables hold.

The role is the database's own, and only this program can be it: its password is derived from the
owner's (so that two readers at once have the same) or random, goes to the server as a SCRAM verifier,
and is kept in memory alone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.extensions
from psycopg2 import sql
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from sweeper.storage.sql import open_engine
from sweeper.storage.url import parse, without_secrets

SCHEMA = "public"
"""Where the search library keeps its tables; ours are nobody's business here."""
READ_ONLY = "-cdefault_transaction_read_only=on"  # no space, which some would read as a plus
# Privileges that change something, asked for on every table of the database.
_MAY_WRITE = text(
    """
    SELECT EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT LIKE 'pg\\_%'
        AND n.nspname <> 'information_schema'
        AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    ) OR EXISTS (
        SELECT FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
        AND has_schema_privilege(oid, 'CREATE')
    ) OR (
        SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user
    )
    """
)


@dataclass(frozen=True)
class Reader:
    """A URL (with its password: never to be shown) for reading, and the role that it is for.

    Where `role` is None the URL is the owner's, whose transactions cannot write unless they are told
    to; `why` then says why there is no role.
    """

    url: str = field(repr=False)
    role: str | None
    why: str = ""


def open_reader(url: str) -> Reader:
    """Make sure of a role that can read and nothing more, and try it.

    Raises:
        DatabaseUnusable: the URL is wrong.
    """
    parsed = parse(url)
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            role, password = _make_role(connection)
        reader = _read_only(parsed.set(username=role, password=password))
        _try(reader)
    except (DBAPIError, psycopg2.Error) as error:
        return Reader(_shown(_read_only(parsed)), None, _in_words(error, parsed))
    except _TooMuch as error:
        return Reader(_shown(_read_only(parsed)), None, str(error))
    finally:
        engine.dispose()
    return Reader(_shown(reader), role)


class _TooMuch(Exception):  # noqa: N818 - it reads as what it says
    """The role may do more than read."""


def _make_role(connection: Connection) -> tuple[str, str]:
    """The role's name and password; it is made, or brought to what it should be, in one transaction."""
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor:
        cursor.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
        role = f"sweep_reader_{cursor.fetchone()[0]}"
        # two at once would change the same row of the catalogue, and one of them would fail
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (role,))
        cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,))
        make = sql.SQL("ALTER" if cursor.fetchone() is not None else "CREATE")
        password = _password(raw.info.password, role)
        verifier = psycopg2.extensions.encrypt_password(
            password, role, scope=raw, algorithm="scram-sha-256"
        )
        name, schema = sql.Identifier(role), sql.Identifier(SCHEMA)
        for statement in (
            sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(make, name, sql.Literal(verifier)),
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, name),
            sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(schema, name),
        ):
            cursor.execute(statement)
    raw.commit()
    return role, password


def _password(owners: str | None, role: str) -> str:
    if not owners:
        return secrets.token_hex(32)
    return hmac.new(owners.encode(), role.encode(), hashlib.sha256).hexdigest()


def _try(reader: URL) -> None:
    """Connect as the role, and ask what it may do.

    Raises:
        DBAPIError: it cannot connect (another way of logging in is asked of it).
        _TooMuch: it may write somewhere: everybody may (a server older than Postgres 15).
    """
    engine = open_engine(_shown(reader))
    try:
        with engine.connect() as connection:
            if connection.scalar(_MAY_WRITE):
                raise _TooMuch("in this database everybody may create or change tables")
    finally:
        engine.dispose()


def _read_only(url: URL) -> URL:
    given = url.query.get("options", "")
    before = given if isinstance(given, str) else " ".join(given)
    return url.update_query_dict({"options": f"{before} {READ_ONLY}".strip()})


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _in_words(error: DBAPIError | psycopg2.Error, url: URL) -> str:
    said = str(getattr(error, "orig", error)).strip().splitlines()
    return without_secrets(said[0] if said else type(error).__name__, url)
