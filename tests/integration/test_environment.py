"""Databases and devices that cannot be used: each its own message, exit 3, and no password anywhere."""

from __future__ import annotations

import socket
from urllib.parse import quote

import pytest
from sqlalchemy.engine import make_url

from sweeper.devices import find_cores
from sweeper.runner import device_locks

PASSWORD = "hunter2-S3kr1t"
VERBS = (("stage1",), ("status",), ("check",))


def refused(sweep, url, said, *, verbs=VERBS):
    study = str(sweep.write())
    for words in verbs:
        done = sweep(*words, study, exit=3, SWEEP_DATABASE_URL=url)
        for word in said:
            assert word in done.err
        for text in (PASSWORD, quote(PASSWORD, safe="")):
            assert text not in done.text
    assert sweep.attempts() == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("not-a-url", ["database URL", "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"]),
        (f"mysql://me:{PASSWORD}@host/db", ["Postgres", "mysql://me:***@host/db"]),
        ("sqlite:///sweep.db", ["Postgres", "no second storage engine"]),
        (f"postgresql://me:{PASSWORD}@127.0.0.1:5432", ["without a database"]),
        (f"postgresql://me:{PASSWORD}@@127.0.0.1/db", ["%40"]),
        (f"postgresql+asyncpg://me:{PASSWORD}@127.0.0.1/db", ["asyncpg", "psycopg2"]),
    ],
)
def test_a_wrong_url(sweep_without_database, url, said):
    refused(sweep_without_database, url, said, verbs=(("stage1",),))


@pytest.mark.long
def test_a_host_that_nobody_knows(sweep_without_database):
    url = f"postgresql://me:{PASSWORD}@no-such-host.invalid/db"
    said = ["no host of this name", "me:***@no-such-host.invalid"]
    refused(sweep_without_database, url, said)


def test_a_host_where_nothing_listens(sweep_without_database):
    with socket.socket() as taken:  # bound and not listening: a port that refuses
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/db"
        refused(sweep_without_database, url, ["nothing listens there"])


@pytest.mark.long
def test_a_password_that_is_refused(sweep_without_schema):
    sweep = sweep_without_schema
    url = make_url(sweep.env["SWEEP_DATABASE_URL"]).set(password=PASSWORD)
    refused(
        sweep,
        url.render_as_string(hide_password=False),
        ["the password (or the user's name) was refused"],
    )


def test_a_database_that_is_not_there(sweep_without_schema):
    sweep = sweep_without_schema
    url = make_url(sweep.env["SWEEP_DATABASE_URL"]).set(database="nowhere")
    refused(
        sweep,
        url.render_as_string(hide_password=False),
        ["there is no such database"],
        verbs=(("run",),),
    )


@pytest.mark.long
def test_a_database_without_tables(sweep_without_schema):
    sweep = sweep_without_schema
    study = str(sweep.write())
    for words in (("run",), ("status",), ("plan", "--stage", "2"), ("export", "--best")):
        done = sweep(*words, study, exit=3)
        assert "it has no tables of sweep's; run `sweep db upgrade`" in done.err
    assert sweep.attempts() == []
    planned = sweep("plan", study, "--json")  # needs no database, and says what it could not ask
    assert planned.json()["frozen"] is False
    assert "sweep db upgrade" in planned.err
    assert sweep("db", "status", "--json").json()["schema"]["state"] == "none"
    sweep("db", "upgrade")
    assert sweep("stage1", study, "--max-trials", "1", "--json", exit=6).json()["reached"] == 1


@pytest.mark.parametrize("step", ["up", "down"])
def test_the_embedded_database_is_not_asked_for(sweep_without_schema, step):
    done = sweep_without_schema("db", step, exit=2)
    assert "is about the embedded database, and a URL was given" in done.err


def test_devices_that_are_not_there(sweep):
    study = sweep.write()
    done = sweep("stage1", str(study), "--devices", "0", exit=3)
    assert "--devices 0" in done.err
    done = sweep("check", str(study), "--devices", "0", exit=3)
    assert "--devices 0" in done.err
    assert sweep.attempts() == []


def test_a_study_for_gpus_without_a_gpu(sweep):
    study = sweep.write()
    sweep.edit(study, "gpus = 0", "gpus = 1")
    env = {"CUDA_VISIBLE_DEVICES": ""}
    done = sweep("stage1", str(study), exit=None, **env)
    if done.code == 3:
        assert "no GPU" in done.err
        assert "--slots N" in done.err
    assert sweep("stage1", str(study), "--slots", "2", "--max-trials", "2", exit=6)


@pytest.mark.long
def test_every_device_is_taken(sweep, monkeypatch):
    """By somebody else, as the locks that all users share say it: `check` does not call that fine."""
    study = str(sweep.write())
    monkeypatch.setenv("SWEEP_DEVICE_LOCKS", sweep.env["SWEEP_DEVICE_LOCKS"])
    locks = [device_locks.take(f"core-{core}") for core in find_cores()]
    for lock in locks:
        lock.write({"holder": {"pid": 7, "user": "ann", "study": "hers", "trial": "s1-A1"}})
    done = sweep("check", study, "--json", exit=3)
    assert "taken by process 7 of ann" in done.json()["error"]
    for lock in locks:
        lock.release()
    assert sweep("check", study, "--json").json()["exit"] == 0
