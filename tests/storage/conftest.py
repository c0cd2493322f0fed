"""One migrated database for all tests that need only its tables, emptied after each."""

import uuid

import psycopg2
import pytest
from sqlalchemy import text

from sweeper.storage.schema import metadata
from sweeper.storage.sql import open_engine, open_store


def _administer(url, *statements):
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture(scope="session")
def administer():
    """Runs statements on a database, outside of any transaction."""
    return _administer


@pytest.fixture(scope="session")
def migrated_url(postgres):
    name = f"migrated_{uuid.uuid4().hex}"
    _administer(postgres.url, f"CREATE DATABASE {name} TEMPLATE template0")
    address, query = postgres.url.split("?", maxsplit=1)
    url = f"{address.rsplit('/', maxsplit=1)[0]}/{name}?{query}"
    open_store(url, create=True).close()
    yield url
    _administer(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sql_store(migrated_url):
    store = open_store(migrated_url, create=False)
    yield store
    store.close()
    engine = open_engine(migrated_url)
    with engine.begin() as connection:
        names = ", ".join(table.fullname for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    engine.dispose()
