"""Reading without SQLAlchemy: the same URLs, nothing written, and the store's words where it cannot."""

import argparse
import socket
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import psycopg2 as dialect
from sqlalchemy.engine import make_url

from sweeper.app import App
from sweeper.errors import DatabaseUnusable
from sweeper.storage import light
from sweeper.storage.connection import plain
from sweeper.storage.names import SCHEMA
from sweeper.storage.sql import open_store
from sweeper.storage.url import normalise

SECRET = "hunter2-s3cret"
parts = st.text("ab1%4:/?@,.[] +=&_-ü\n", max_size=6)


@given(
    st.sampled_from(["postgresql", "postgres", "postgresql+psycopg2"]), parts, parts, parts, parts
)
@example("postgresql", "me:p%40+w@", "db.example:5433", "facts", "sslmode=prefer&x=a+b")
@example("postgresql", "me:@", "", "facts", "host=%2Frun%2Fa%20b")
@example("postgresql", "me@", "h", "facts", "host=a:1")
@example("postgresql", "me@", "h", "facts", "host=a,b")
@example("postgresql", "me@", "", "facts", "host=/run&port=5499")
@example("postgresql", "me@", "h", "facts", "a=1&a=2")
@example("postgresql", "", "h", "a%41", "")
def test_a_plain_url_says_what_sqlalchemy_reads_in_it(scheme, user, host, database, query):
    url = f"{scheme}://{user}{host}/{database}?{query}"
    found = plain(url)
    if found is not None:
        _, expected = dialect.dialect().create_connect_args(make_url(normalise(url)))
        assert found == {name: str(value) for name, value in expected.items()}


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12))
def test_any_password_may_stand_in_a_plain_url(password):
    url = f"postgresql+psycopg2://me:{quote(password, safe='')}@/postgres?host=%2Ftmp%2Fa-b_1"
    expected = {"user": "me", "password": password, "dbname": "postgres", "host": "/tmp/a-b_1"}
    assert plain(url) == expected


def test_it_cannot_write(migrated_url):
    with pytest.raises(light.Unusual), light.reading(migrated_url) as facts:
        facts.read(lambda execute: execute(f"DELETE FROM {SCHEMA}.studies", {}))


def test_every_wait_has_a_deadline(migrated_url):
    with light.reading(migrated_url) as facts:
        names = ("statement_timeout", "idle_in_transaction_session_timeout")
        shown = [facts.read(lambda execute, n=n: execute(f"SHOW {n}", {})[0][0]) for n in names]
    assert shown == ["20s", "30s"]


def test_it_sees_one_moment(migrated_url, sql_store, administer):
    with light.reading(migrated_url) as facts:
        assert facts.studies() == []
        administer(migrated_url, f"INSERT INTO {SCHEMA}.studies (study) VALUES ('demo')")
        assert facts.studies() == []
    assert sql_store.studies() == ["demo"]


def test_no_password_is_in_what_it_says(database_url):
    url = make_url(database_url).set(password=SECRET).render_as_string(hide_password=False)
    with pytest.raises(light.Unusual) as caught, light.reading(url):
        pass
    assert caught.value.__suppress_context__
    assert str(caught.value) == ""


def app(url, home):
    words = {"home": home, "database": url, "json": True, "quiet": True, "verbose": False}
    return App(argparse.Namespace(**words, no_color=True, verb="status"))


def words_of(use):
    with pytest.raises(DatabaseUnusable) as caught:
        use()
    assert SECRET not in str(caught.value)
    return type(caught.value), str(caught.value)


def without_tables(url, administer):
    return url


def with_tables_of(version):
    def make(url, administer):
        open_store(url, create=True).close()
        administer(url, f"UPDATE {SCHEMA}.schema_version SET version_num = '{version}'")
        return url

    return make


def without_a_table(url, administer):
    open_store(url, create=True).close()
    administer(url, f"DROP TABLE {SCHEMA}.studies CASCADE")
    return url


def changed(**parts):
    return lambda url, _: make_url(url).set(**parts).render_as_string(hide_password=False)


def nobody_listens(url, administer):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"postgresql://me:{SECRET}@127.0.0.1:{free.getsockname()[1]}/facts"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (changed(password=SECRET), "was refused"),
        (changed(database="nowhere"), "no such database"),
        (changed(drivername="postgresql+asyncpg"), "expected psycopg2"),
        (lambda url, _: f"{url}&colour=blue", "libpq does not take"),
        (lambda url, _: f"not a {url}", "expected postgresql://"),
        (nobody_listens, "nothing listens there"),
        (without_tables, "it has no tables of sweep's"),
        (with_tables_of("0001"), "in version 0001, this program needs"),
        (with_tables_of("9999"), "a newer sweep made them"),
        (without_a_table, "run `sweep db verify`"),
    ],
)
def test_what_is_wrong_is_said_as_the_store_says_it(database_url, administer, tmp_path, make, said):
    url = make(database_url, administer)
    kind, words = words_of(lambda: open_store(url, create=False).studies())
    with app(url, tmp_path) as opened:
        assert words_of(lambda: opened.read(lambda facts: facts.studies())) == (kind, words)
    assert said in words


def test_where_the_connection_breaks_the_store_goes_on(database_url, tmp_path, administer):
    open_store(database_url, create=True).close()
    administer(database_url, f"INSERT INTO {SCHEMA}.studies (study) VALUES ('demo')")
    seen = []

    def work(facts):
        seen.append(type(facts).__name__)
        if len(seen) == 1:
            administer(
                database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                "datname = current_database() AND application_name LIKE 'sweep %'",
            )
        return facts.studies()

    with app(database_url, tmp_path) as opened:
        assert opened.read(work) == ["demo"]
    assert len(set(seen)) == 2


def test_a_store_that_is_open_is_used(database_url, tmp_path):
    open_store(database_url, create=True).close()
    with app(database_url, tmp_path) as opened:
        store = opened.store()
        assert opened.read(lambda facts: facts) is store
