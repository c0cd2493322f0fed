"""The answer to a COMMIT that never arrives: the work is done, nobody knows, and it is asked again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psycopg2
import pytest

from sweeper.errors import DatabaseGone
from sweeper.patience import Patient
from sweeper.search.base import Told
from sweeper.search.optuna_search import OptunaStorage
from sweeper.space import Float, Point, Space
from tests.chaos.proxy import LosingProxy

SPACE = Space({"lr": Float("lr", 0.001, 0.1, scale="log")})
POINT = Point({"lr": 0.01})


@pytest.fixture
def proxy(database_url):
    with tempfile.TemporaryDirectory(prefix="sweep-proxy-") as folder:
        one = LosingProxy(database_url, Path(folder))
        yield one
        one.close()


@pytest.fixture
def storage(proxy):
    opened = OptunaStorage(proxy.url)
    yield opened
    opened.close()


def states(url):
    """The state of every Optuna trial by attempt key, as a list of pairs."""
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT a.value_json, t.state::text FROM trials t JOIN trial_user_attributes a "
                "USING (trial_id) WHERE a.key = 'sweep:attempt' ORDER BY t.trial_id"
            )
            return [(key.strip('"'), state.rpartition(".")[2]) for key, state in cursor.fetchall()]
    finally:
        connection.close()


def patient(search):
    return Patient(search, note=lambda _: None, patience_s=60)


def test_a_point_that_was_registered_without_an_answer_is_there_once(proxy, storage, database_url):
    search = patient(storage.open("toy/stage1", SPACE, {}))
    proxy.lose_answer_to(b"COMMIT")
    search.ask("s1-A1", POINT, {})
    assert proxy.lost == 1
    search.tell("s1-A1", Told(3.0))
    again = storage.open("toy/stage1", SPACE, {})
    assert again.known()["s1-A1"].value == 3.0
    finished = [key for key, state in states(database_url) if state == "COMPLETE"]
    assert finished == ["s1-A1"]
    assert len([key for key, _ in states(database_url) if key == "s1-A1"]) == 1
    assert [s for _, s in states(database_url) if s == "RUNNING"] == []


@pytest.mark.parametrize("value", [3.0, None])
def test_a_value_that_was_told_without_an_answer_may_be_told_again(proxy, storage, value):
    search = patient(storage.open("toy/stage1", SPACE, {}))
    search.ask("s1-A1", POINT, {})
    proxy.lose_answer_to(b"COMMIT", after=b"UPDATE trials")
    search.tell("s1-A1", Told(value))
    assert proxy.lost == 1
    known = storage.open("toy/stage1", SPACE, {}).known()["s1-A1"]
    assert known.value == value
    assert known.state == ("failed" if value is None else "complete")


def test_a_study_that_cannot_be_opened_now_is_waited_for(proxy, storage):
    proxy.lose_answer_to(b"BEGIN")
    with pytest.raises(DatabaseGone):
        storage.open("toy/stage1", SPACE, {})
    storage.open("toy/stage1", SPACE, {})
