"""What can go wrong with a real server: each its own message, no password in it, nothing lost."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import event
from sqlalchemy.engine import make_url

from sweeper.errors import EXIT_ENVIRONMENT, DatabaseGone, DatabaseUnusable
from sweeper.space import Point
from sweeper.storage import embedded
from sweeper.storage.names import SCHEMA
from sweeper.storage.sql import open_engine, open_store
from sweeper.trial import AttemptFacts, Evaluation, Outcome, Phases, PlannedTrial, Reason, StagePlan

SECRET = "hunter2-s3cret"


def changed(url, **parts):
    query = parts.pop("query", {})
    made = make_url(url).set(**parts).update_query_dict(query)
    return made.render_as_string(hide_password=False)


def plan(*names, study="demo"):
    point = Point({"lr": 0.1})
    trials = tuple(PlannedTrial(n, "stage1", n, ("A",), point, 1) for n in names)
    return StagePlan(study, "stage1", 4.0, trials, len(trials), 1)


def freeze(store, made):
    return store.freeze(made, definition={}, definition_hash="h", options={})


def ended(evaluations=3):
    curve = tuple(Evaluation(n, n, Phases(train=n / 10), 5.0) for n in range(evaluations))
    return AttemptFacts(1, Outcome.REACHED, Reason.TARGET, curve=curve)


def refusal(use, url):
    """The message of a refused use; neither it nor its traceback has the password."""
    with pytest.raises(DatabaseUnusable) as caught:
        use()
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    shown = "".join(traceback.format_exception(caught.value))
    for secret in (SECRET, make_url(url).password):
        assert secret not in shown
        assert secret not in repr(caught.value)
    return caught.value


@pytest.fixture
def role(database_url, administer):
    """A role that is no superuser, for limits and rights; the URL that it logs in with."""
    name = f"role_{make_url(database_url).database}"
    administer(
        database_url,
        f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'",
        f"GRANT ALL ON DATABASE {make_url(database_url).database} TO {name}",
    )
    yield name, changed(database_url, username=name, password=SECRET)
    administer(database_url, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


class TestOpening:
    def test_a_refused_password(self, database_url):
        url = changed(database_url, password=SECRET)
        error = refusal(lambda: open_store(url, create=True), url)
        assert "password" in str(error)
        assert "refused" in str(error)
        assert not isinstance(error, DatabaseGone)

    def test_a_user_that_is_not_there_reads_like_a_wrong_password(self, database_url):
        url = changed(database_url, username="nobody_of_this_name", password=SECRET)
        assert "user's name" in str(refusal(lambda: open_store(url, create=False), url))

    def test_a_database_that_is_not_there(self, database_url):
        url = changed(database_url, database="no_such_database")
        error = refusal(lambda: open_store(url, create=True), url)
        assert "there is no such database; create it" in str(error)
        assert "no_such_database" in str(error)
        assert not isinstance(error, DatabaseGone)

    def test_nothing_listening(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"postgresql://me:{SECRET}@127.0.0.1:{port}/facts"
        error = refusal(lambda: open_store(url, create=False), url)
        assert "nothing listens there" in str(error)
        assert f"postgresql+psycopg2://me:***@127.0.0.1:{port}/facts" in str(error)
        assert isinstance(error, DatabaseGone)

    def test_no_socket(self, tmp_path):
        url = changed(f"postgresql://me:{SECRET}@/facts", query={"host": str(tmp_path)})
        assert isinstance(refusal(lambda: open_store(url, create=False), url), DatabaseGone)

    def test_a_server_that_accepts_and_says_nothing(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            url = f"postgresql://me:{SECRET}@127.0.0.1:{port}/facts?connect_timeout=2"
            error = refusal(lambda: open_store(url, create=False), url)
        assert "did not answer in time" in str(error)

    def test_a_name_that_no_service_knows(self):
        url = f"postgresql://me:{SECRET}@database.invalid/facts"
        assert "no host of this name" in str(refusal(lambda: open_store(url, create=False), url))

    def test_an_option_that_libpq_does_not_know(self):
        url = f"postgresql://me:{SECRET}@127.0.0.1/facts?colour=blue"
        assert "libpq does not take" in str(refusal(lambda: open_store(url, create=False), url))

    def test_no_schema_is_made_only_where_asked(self, database_url):
        error = refusal(lambda: open_store(database_url, create=False), database_url)
        assert "run `sweep db upgrade`" in str(error)
        open_store(database_url, create=True).close()
        open_store(database_url, create=False).close()

    def test_too_many_connections(self, role, database_url, administer):
        name, url = role
        administer(database_url, f"ALTER ROLE {name} CONNECTION LIMIT 1")
        held = psycopg2.connect(url.replace("+psycopg2", "", 1))
        try:
            error = refusal(lambda: open_store(url, create=False), url)
        finally:
            held.close()
        assert "no connection left" in str(error)
        assert isinstance(error, DatabaseGone)

    def test_every_wait_has_a_deadline_and_we_are_named(self, database_url):
        engine = open_engine(database_url)
        with engine.connect() as connection:
            shown = [
                connection.exec_driver_sql(f"SHOW {name}").scalar()
                for name in (
                    "application_name",
                    "statement_timeout",
                    "idle_in_transaction_session_timeout",
                )
            ]
        engine.dispose()
        assert shown == [f"sweep {os.getpid()}", "1min", "30s"]


class TestWorking:
    def test_a_full_disk_loses_nothing_and_half_a_record_is_none(self, database_url, administer):
        """The server's own error for a full disk, raised in the middle of a record's transaction."""
        store = open_store(database_url, create=True)
        freeze(store, plan("a"))
        administer(
            database_url,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' "
            "USING ERRCODE = 'disk_full'; END $$",
            f"CREATE TRIGGER full_disk BEFORE INSERT ON {SCHEMA}.evaluations "
            "FOR EACH ROW WHEN (NEW.position = 2) EXECUTE FUNCTION full_disk()",
        )
        error = refusal(lambda: store.record("demo", "a", ended()), database_url)
        assert "disk is full" in str(error)
        assert isinstance(error, DatabaseGone)
        assert store.facts("demo")[0].attempts == ()
        administer(database_url, f"DROP TRIGGER full_disk ON {SCHEMA}.evaluations")
        assert store.record("demo", "a", ended())
        assert store.facts("demo")[0].attempts == (ended(),)
        store.close()

    def test_a_right_taken_away_says_so(self, role, database_url, administer):
        _, url = role
        store = open_store(url, create=True)
        freeze(store, plan("a"))
        administer(
            database_url,
            f"ALTER TABLE {SCHEMA}.attempts OWNER TO CURRENT_USER",
        )
        error = refusal(lambda: store.record("demo", "a", ended()), url)
        assert "lacks a right" in str(error)
        store.close()

    def test_tables_taken_away_say_so(self, database_url, administer):
        store = open_store(database_url, create=True)
        administer(database_url, f"DROP SCHEMA {SCHEMA} CASCADE")
        assert "run `sweep db verify`" in str(refusal(store.studies, database_url))
        store.close()

    def test_of_many_recording_the_same_attempt_one_does(self, sql_store):
        freeze(sql_store, plan("a"))
        told, start = [], threading.Barrier(4)

        def work():
            start.wait(timeout=30)
            told.append(sql_store.record("demo", "a", ended(50)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert sorted(told) == [False, False, False, True]
        assert sql_store.facts("demo")[0].attempts == (ended(50),)

    def test_of_many_freezing_a_stage_one_does_and_all_get_it(self, sql_store):
        found, start = [], threading.Barrier(4)

        def work(name):
            start.wait(timeout=30)
            found.append(freeze(sql_store, plan(name)))

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert len(found) == 4
        assert all(record == found[0] for record in found)

    def test_facts_take_as_many_queries_for_many_trials_as_for_one(self, sql_store):
        counted = []
        for names in (["a"], [f"t{n}" for n in range(30)]):
            made = plan(*names, study=f"study{len(names)}")
            freeze(sql_store, made)
            for name in names:
                sql_store.record(made.study, name, ended())
            statements = []
            listener = lambda *arguments: statements.append(arguments[2])  # noqa: E731, B023
            event.listen(sql_store._engine, "before_cursor_execute", listener)
            assert len(sql_store.facts(made.study)) == len(names)
            event.remove(sql_store._engine, "before_cursor_execute", listener)
            counted.append(len(statements))
        assert counted == [3, 3]


RACER = """
import sys
from sweeper.errors import StudyBusy
from sweeper.storage.sql import open_store
url, name = sys.stdin.readline().strip(), sys.argv[1]
store = open_store(url, create=False)
print("ready", flush=True)
sys.stdin.readline()
try:
    print("won", store.acquire("demo", name, ttl_s=60).token)
except StudyBusy as error:
    print("busy", error)
"""


class TestLeases:
    def test_of_two_processes_one_gets_it(self, migrated_url, sql_store):
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, f"racer-{n}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(2)
        ]
        try:
            for racer in racers:
                racer.stdin.write(f"{migrated_url}\n")
                racer.stdin.flush()
            for racer in racers:
                assert racer.stdout.readline() == "ready\n"
            for racer in racers:
                racer.stdin.write("go\n")
                racer.stdin.flush()
            said = sorted(racer.communicate(timeout=60)[0] for racer in racers)
        finally:
            for racer in racers:
                racer.kill()
                racer.wait(timeout=30)
        assert "is being run by racer-" in said[0]
        assert said[1] == "won 1\n"


@pytest.fixture
def watcher(migrated_url):
    """A plain cursor on the stores' database, in a transaction of its own."""
    connection = psycopg2.connect(migrated_url.replace("+psycopg2", "", 1))
    yield connection.cursor()
    connection.close()


OURS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name LIKE 'sweep %'"
)


class TestLostConnections:
    def test_between_two_calls_nothing_is_noticed(self, sql_store, watcher):
        freeze(sql_store, plan("a", "b"))
        lease = sql_store.acquire("demo", "me", ttl_s=60)
        for name in ("a", "b"):
            watcher.execute("SELECT pg_stat_clear_snapshot()")
            watcher.execute(OURS)
            assert watcher.fetchall()
            assert sql_store.record("demo", name, ended(), lease=lease)
        assert [f.attempts for f in sql_store.facts("demo")] == [(ended(),), (ended(),)]

    def test_in_the_middle_of_a_call_it_is_repeated_once(self, sql_store, watcher):
        freeze(sql_store, plan("a"))
        lease = sql_store.acquire("demo", "me", ttl_s=60)
        told = []
        watcher.execute(f"SELECT * FROM {SCHEMA}.leases FOR UPDATE")  # record waits for this row
        thread = threading.Thread(
            target=lambda: told.append(sql_store.record("demo", "a", ended(), lease=lease))
        )
        thread.start()
        ended_one = f"{OURS} AND wait_event_type = 'Lock'"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            # What a transaction sees of the sessions is frozen at its first look.
            watcher.execute("SELECT pg_stat_clear_snapshot()")
            watcher.execute(ended_one)
            if watcher.fetchall() == [(True,)]:
                break
            time.sleep(0.02)
        else:
            pytest.fail("no session waited for the lock")
        watcher.connection.rollback()
        thread.join(timeout=60)
        assert told == [True]
        assert sql_store.facts("demo")[0].attempts == (ended(),)

    def test_a_restarted_server_is_found_again_and_a_stopped_one_is_gone(self):
        # Outside of pytest's own folder, which another account (root's server) cannot reach.
        place = Path(tempfile.mkdtemp(prefix="sweep-restart-"))
        place.chmod(0o711)
        options = embedded.Options(
            settings={"fsync": "off"}, linger_s=60.0, state_root=place / "state"
        )
        home = place / "home"
        with embedded.open_server(home, purpose="tests", options=options) as server:
            store = open_store(server.url, create=True)
            freeze(store, plan("a"))
            lease = store.acquire("demo", "me", ttl_s=600)
            embedded.stop(home, force=True)
            error = refusal(lambda: store.record("demo", "a", ended(), lease=lease), server.url)
            assert isinstance(error, DatabaseGone)
            server.ensure()
            assert store.record("demo", "a", ended(), lease=lease)
            assert store.facts("demo")[0].attempts == (ended(),)
            store.close()
        embedded.stop(home, force=True)
        shutil.rmtree(place)
