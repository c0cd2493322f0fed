"""The real Postgres that the tests share: one server a worker, one fresh database a test."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from sweeper.storage import embedded


@pytest.fixture(scope="session", autouse=True)
def _own_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and workers of pytest-xdist, do not wait for one another's processors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path_factory.mktemp("locks") / "devices"))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[embedded.Server]:
    """One server (a worker of pytest-xdist has its own), started and stopped by our own module."""
    # Short, and outside of pytest's own folder, which another account (root's server) cannot reach.
    place = Path(tempfile.mkdtemp(prefix="sweep-tests-"))
    place.chmod(0o711)
    options = embedded.Options(
        settings={"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"},
        linger_s=2.0,
        state_root=place / "state",
    )
    with embedded.open_server(place / "home", purpose="tests", options=options) as server:
        yield server
    embedded.stop(place / "home")
    shutil.rmtree(place)


@pytest.fixture
def database_url(postgres: embedded.Server) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database of this test's own, dropped when it ends."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name} TEMPLATE template0")
    address, query = postgres.url.split("?", maxsplit=1)
    yield f"{address.rsplit('/', maxsplit=1)[0]}/{name}?{query}"
    _administer(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _administer(postgres: embedded.Server, statement: str) -> None:
    """Run one statement outside of a transaction."""
    connection = psycopg2.connect(postgres.url.replace("+psycopg2", "", 1))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
