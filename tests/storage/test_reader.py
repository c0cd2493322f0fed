"""A role that can only read what the dashboard shows, tried with a real server and real writes."""

from __future__ import annotations

import contextlib
import uuid

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from sweeper.search.dashboard import create_tables
from sweeper.storage.reader import open_reader
from sweeper.storage.sql import open_store

WRITES = (
    "INSERT INTO studies (study_name) VALUES ('forged')",
    "UPDATE studies SET study_name = 'forged'",
    "DELETE FROM studies",
    "TRUNCATE studies CASCADE",
    "DROP TABLE trials",
    "CREATE TABLE mine (one int)",
    "SET ROLE sweep",
    "SELECT * FROM sweep_facts.attempts",
)


@pytest.fixture
def url(database_url):
    """A database with our tables, and Optuna's with one study."""
    open_store(database_url, create=True).close()
    create_tables(database_url)
    with connect(database_url) as (connection, cursor):
        cursor.execute("INSERT INTO studies (study_name) VALUES ('toy/stage1')")
        connection.commit()
    return database_url


@contextlib.contextmanager
def connect(url):
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    try:
        with connection.cursor() as cursor:
            yield connection, cursor
    finally:
        connection.close()


def names(cursor):
    cursor.execute("SELECT study_name FROM studies")
    return [name for (name,) in cursor.fetchall()]


def test_the_role_can_read_and_nothing_else(url):
    """Also when it says that it wants to write: the transaction's default is only the second line."""
    reader = open_reader(url)
    assert reader.role is not None
    with connect(reader.url) as (connection, cursor):
        assert names(cursor) == ["toy/stage1"]
        for write in WRITES[:3]:
            connection.rollback()
            with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
                cursor.execute(write)
        connection.rollback()
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        connection.commit()
        for write in (*WRITES, f"ALTER ROLE {reader.role} SUPERUSER"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(write)
            connection.rollback()
    with connect(url) as (_, cursor):
        assert names(cursor) == ["toy/stage1"]


def test_readers_side_by_side_and_one_after_another(url):
    first, second = open_reader(url), open_reader(url)
    assert (first.role, first.url) == (second.role, second.url)
    with connect(first.url) as (_, one), connect(second.url) as (_, other):
        assert names(one) == names(other)


def test_no_password_is_shown(url):
    reader = open_reader(url)
    secret = make_url(reader.url).password
    assert len(secret) == 64
    assert secret != make_url(url).password
    assert secret not in repr(reader)
    with connect(url) as (_, cursor):
        cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (reader.role,))
        (kept,) = cursor.fetchone()
    assert kept.startswith("SCRAM-SHA-256$")
    assert secret not in kept


def test_where_no_role_may_be_made_transactions_cannot_write(url):
    """The owner of the tables, who may not create roles: reading goes on, and a word says why."""
    poor = f"poor_{uuid.uuid4().hex}"
    with connect(url) as (connection, cursor):
        cursor.execute(f"CREATE ROLE {poor} LOGIN PASSWORD 'poor-pw'")
        cursor.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {poor}")
        cursor.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {poor}")
        connection.commit()
    theirs = make_url(url).set(username=poor, password="poor-pw")
    reader = open_reader(theirs.render_as_string(hide_password=False))
    assert reader.role is None
    assert "permission denied" in reader.why
    assert "poor-pw" not in reader.why
    with connect(reader.url) as (_, cursor):
        assert names(cursor) == ["toy/stage1"]
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            cursor.execute("DELETE FROM studies")
    with connect(url) as (connection, cursor):
        cursor.execute(f"DROP OWNED BY {poor}; DROP ROLE {poor}")
        connection.commit()


def test_where_everybody_may_create_tables_no_role_is_trusted(url):
    """As in a database that was made before Postgres 15."""
    with connect(url) as (connection, cursor):
        cursor.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        connection.commit()
    reader = open_reader(url)
    assert reader.role is None
    assert "everybody may create" in reader.why
    with connect(reader.url) as (_, cursor), pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        cursor.execute("DELETE FROM studies")
