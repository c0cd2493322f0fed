"""The way to the schema: whole or not at all, by one of many, never backwards, and cheap when done."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text as sql

from sweeper.errors import DatabaseUnusable
from sweeper.storage import migrate
from sweeper.storage.names import SCHEMA, VERSIONS
from sweeper.storage.schema import metadata
from sweeper.storage.sql import open_engine, open_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def engine(database_url):
    made = open_engine(database_url)
    yield made
    made.dispose()


def tables(engine):
    query = sql("SELECT table_name FROM information_schema.tables WHERE table_schema = :schema")
    with engine.connect() as connection:
        return set(connection.scalars(query, {"schema": SCHEMA}))


def test_from_nothing_to_head_and_no_further(engine):
    assert migrate.status(engine) == migrate.SchemaStatus(None, VERSIONS[-1], "none")
    with pytest.raises(DatabaseUnusable, match=r"has no tables of sweep's; run `sweep db upgrade`"):
        migrate.require(engine)
    assert migrate.upgrade(engine).state == "none"
    assert migrate.status(engine).state == "current"
    assert migrate.upgrade(engine).state == "current"
    migrate.require(engine)


def test_versions_are_the_migrations_in_order():
    scripts = ScriptDirectory.from_config(migrate.config()).walk_revisions()
    assert tuple(script.revision for script in scripts)[::-1] == VERSIONS


@pytest.mark.parametrize(
    ("current", "state"), [(None, "none"), ("1", "behind"), ("3", "current"), ("4", "ahead")]
)
def test_where_a_version_stands(current, state):
    found = migrate.SchemaStatus.of(current, ("1", "2", "3"))
    assert (found.current, found.head, found.state) == (current, "3", state)


def test_a_newer_schema_is_refused_and_left_alone(engine, database_url, administer):
    migrate.upgrade(engine)
    administer(database_url, f"UPDATE {SCHEMA}.schema_version SET version_num = '9999'")
    assert migrate.status(engine).state == "ahead"
    for use in (
        lambda: migrate.upgrade(engine),
        lambda: migrate.require(engine),
        lambda: open_store(database_url, create=True),
        lambda: open_store(database_url, create=False),
    ):
        with pytest.raises(DatabaseUnusable, match=r"9999.*up to 0002.*newer sweep") as caught:
            use()
        assert engine.url.password not in str(caught.value)


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{new}", "{old}", None, None


def upgrade():
    op.add_column("studies", sa.Column("remark", sa.Text()), schema="sweep_facts")
"""


def test_an_older_schema_is_migrated_with_what_is_in_it(engine, database_url, administer, tmp_path):
    """By the next version of the program, which is this one with one more migration."""
    old, new = VERSIONS[-1], f"{int(VERSIONS[-1]) + 1:04d}"
    package = tmp_path / "sweeper"
    shutil.copytree(ROOT / "sweeper", package, ignore=shutil.ignore_patterns("__pycache__"))
    names = package / "storage" / "names.py"
    text = names.read_text(encoding="utf-8")
    assert text.count(f'"{old}")') == 1
    names.write_text(text.replace(f'"{old}")', f'"{old}", "{new}")'), encoding="utf-8")
    step = package / "storage" / "migrations" / "versions" / f"v{new}_remark.py"
    step.write_text(NEXT.format(old=old, new=new), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SWEEP_")}
    environment |= {"SWEEP_DATABASE_URL": database_url, "PYTHONPATH": str(tmp_path)}

    def sweep(*words):
        command = [sys.executable, "-m", "sweeper.cli", *words, "--home", str(tmp_path / "home")]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    migrate.upgrade(engine)
    administer(database_url, f"INSERT INTO {SCHEMA}.studies (study) VALUES ('kept')")
    refused = sweep("status", "quickstart")
    assert refused.returncode == 3
    assert f"in version {old}, this program needs {new}" in refused.stderr
    assert "sweep db upgrade" in refused.stderr
    done = sweep("db", "upgrade", "--json")
    assert json.loads(done.stdout) == {"before": old, "after": new}, done.stderr
    with engine.connect() as connection:
        rows = connection.execute(sql(f"SELECT study, remark FROM {SCHEMA}.studies")).all()
    assert [tuple(row) for row in rows] == [("kept", None)]
    with pytest.raises(DatabaseUnusable, match=rf"{new}.*newer sweep"):
        open_store(database_url, create=True)


def test_many_at_once_make_it_once(database_url):
    before, start = [], threading.Barrier(4)

    def work():
        engine = open_engine(database_url)
        start.wait(timeout=60)
        before.append(migrate.upgrade(engine).state)
        engine.dispose()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert sorted(before) == ["current", "current", "current", "none"]


def test_a_step_that_fails_leaves_nothing(engine, database_url, administer):
    administer(database_url, f"CREATE SCHEMA {SCHEMA}", f"CREATE TABLE {SCHEMA}.leases (x int)")
    with pytest.raises(DatabaseUnusable, match="already exists") as caught:
        migrate.upgrade(engine)
    assert engine.url.password not in str(caught.value)
    assert tables(engine) == {"leases"}
    administer(database_url, f"DROP TABLE {SCHEMA}.leases")
    migrate.upgrade(engine)


def test_a_role_without_rights_is_told_so(engine, database_url, administer):
    role = f"{engine.url.database}_poor"
    administer(database_url, f"CREATE ROLE {role} LOGIN PASSWORD 'poor-pw'")
    try:
        poor = open_engine(
            engine.url.set(username=role, password="poor-pw").render_as_string(hide_password=False)
        )
        with pytest.raises(DatabaseUnusable, match="lacks a right"):
            migrate.upgrade(poor)
        poor.dispose()
    finally:
        administer(database_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_alembic_finds_no_difference_to_the_tables_drawn(engine):
    migrate.upgrade(engine)
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
        "version_table_schema": SCHEMA,
        "version_table": migrate.VERSION_TABLE,
        "compare_type": True,
        "compare_server_default": True,
    }
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


CATALOGUE = """
SELECT conrelid::regclass::text || ' ' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = '{schema}'::regnamespace
UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = '{schema}'
UNION ALL SELECT table_name || '.' || column_name, concat_ws(' ', ordinal_position, data_type,
    udt_name, is_nullable, column_default, is_identity, identity_generation)
FROM information_schema.columns WHERE table_schema = '{schema}'
"""


def test_the_server_finds_no_difference_either(engine):
    """Checks and partial indexes too, which Alembic does not compare."""

    def catalogue(connection):
        rows = connection.execute(sql(CATALOGUE.format(schema=SCHEMA)))
        return {tuple(row) for row in rows if migrate.VERSION_TABLE not in row[0]}

    migrate.upgrade(engine)
    with engine.begin() as connection:
        migrated = catalogue(connection)
        connection.execute(sql(f"DROP SCHEMA {SCHEMA} CASCADE"))
        connection.execute(sql(f"CREATE SCHEMA {SCHEMA}"))
        metadata.create_all(connection)
        drawn = catalogue(connection)
    assert migrated == drawn
    assert len(drawn) > 100


def test_a_schema_that_is_there_costs_no_alembic(migrated_url):
    program = (
        "import sys; from sweeper.storage.sql import open_store\n"
        "open_store(sys.stdin.read(), create=True).close()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('alembic', 'optuna')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=migrated_url,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_optuna_lives_beside_us_also_for_a_role_named_like_the_program(engine, database_url):
    import optuna

    assert engine.url.username == "sweep"
    store = open_store(database_url, create=True)
    storage = optuna.storages.RDBStorage(database_url)
    study = optuna.create_study(storage=storage, study_name="demo/stage1")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert list(store.studies()) == []
    assert study.best_value == 1.0
    with engine.connect() as connection:
        query = sql(
            "SELECT table_schema FROM information_schema.tables WHERE table_name = 'trials'"
        )
        assert set(connection.scalars(query)) == {"public", SCHEMA}
    store.close()
    storage.remove_session()
    storage.engine.dispose()
