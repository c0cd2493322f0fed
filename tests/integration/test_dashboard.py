"""The dashboard serves what was run, to read only and to this machine only; no password is in sight."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import signal
import socket
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import psycopg2
import pytest
from sqlalchemy.engine import make_url

from sweeper.search.dashboard import create_tables
from sweeper.search.optuna_search import OptunaStorage
from sweeper.space import Float, Space
from sweeper.storage.reader import open_reader


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, method, path, host=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        if host is not None:
            headers["Host"] = host
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def dashboard(sweep, wait_until):
    """`dashboard(...)`: starts one; its port, and its command."""

    def start(*words):
        port = free_port()
        command = sweep.start("dashboard", "--port", str(port), *words)
        where = f"http://127.0.0.1:{port}/dashboard"
        wait_until(
            lambda: where in command.said("out") or command.process.poll() is not None, where
        )
        assert command.process.poll() is None, command.said("err")
        return port, command

    return start


def listed(port):
    status, body = ask(port, "GET", "/api/studies")
    assert status == 200
    return {s["study_name"]: s["study_id"] for s in json.loads(body)["study_summaries"]}


def end(command):
    command.process.send_signal(signal.SIGTERM)
    done = command.finish()
    assert done.code == 0, done.text


@pytest.mark.long
def test_the_dashboard(sweep, dashboard):
    study = str(sweep.write(few=True))
    sweep("run", study)
    port, command = dashboard()
    role = re.search(r"as database role (sweep_reader_\d+);", command.said("out"))[1]

    assert set(listed(port)) == {"trivial/stage1", "trivial/stage2", "trivial/confirm"}
    number = listed(port)["trivial/stage1"]
    status, body = ask(port, "GET", f"/api/studies/{number}?after=0")
    assert status == 200
    trials = json.loads(body)["trials"]
    assert len(trials) == 5
    assert {t["state"] for t in trials} == {"Complete"}
    names = {p["name"] for p in trials[0]["params"]}
    assert names == {"optim.lr", "data.batch", "model.tau_s"}
    for path in (
        "/dashboard",
        f"/dashboard/studies/{number}",
        f"/api/studies/{number}/param_importances",
    ):
        assert ask(port, "GET", path)[0] == 200

    for method in ("DELETE", "POST", "PUT", "PATCH"):
        status, _ = ask(port, method, f"/api/studies/{number}")
        assert status == 405
    assert ask(port, "GET", "/api/studies", host="evil.example")[0] == 403
    assert ask(port, "GET", "/api/studies", host=f"evil.example:{port}")[0] == 403
    assert ask(port, "GET", "/api/studies", host=f"localhost:{port}")[0] == 200

    # what it reads with is the role's, also seen from the server
    url = sweep.env["SWEEP_DATABASE_URL"]
    with contextlib.closing(psycopg2.connect(url.replace("+psycopg2", "", 1))) as owner:
        cursor = owner.cursor()
        cursor.execute("SELECT usename FROM pg_stat_activity WHERE datname = current_database()")
        assert (role,) in cursor.fetchall()
    secret = make_url(open_reader(url).url).password.encode()
    for line, _ in everybody():
        assert secret not in line
    for path in sweep.folder.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()

    refused = sweep("dashboard", "--port", str(port), exit=3)
    assert f"cannot listen on 127.0.0.1:{port}" in refused.err
    end(command)

    port, command = dashboard("--writable")
    assert "every visitor can delete studies" in command.said("out")
    assert "no accounts" in command.said("out")
    path = f"/api/studies/{number}"
    assert ask(port, "DELETE", path, host="evil.example")[0] == 403
    assert ask(port, "DELETE", path, Origin="http://evil.example")[0] == 403
    assert len(listed(port)) == 3
    assert ask(port, "DELETE", path, Origin=f"http://127.0.0.1:{port}")[0] == 204
    assert set(listed(port)) == {"trivial/stage2", "trivial/confirm"}
    end(command)
    assert sweep("db", "verify", study, exit=1).code == 1
    sweep("db", "rebuild", study)
    assert sweep("db", "verify", study).code == 0


def test_the_application_itself_cannot_write_with_the_role(sweep):
    """The second line behind the first: no guard, and still nothing is deleted or forged."""
    url = sweep.env["SWEEP_DATABASE_URL"]
    create_tables(url)
    owner, reader = OptunaStorage(url), OptunaStorage(open_reader(url).url)
    owner.open("toy/stage1", Space({"lr": Float("lr", 0.1, 1.0)}), {})
    application = optuna_dashboard.wsgi(reader.raw)

    def call(method, path, body=b"{}"):
        said = []
        environ = {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
        environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body)}
        setup_testing_defaults(environ)
        answer = b"".join(application(environ, lambda status, *_: said.append(status)))
        return int(said[-1].split()[0]), answer

    status, body = call("GET", "/api/studies")
    assert status == 200
    (study,) = json.loads(body)["study_summaries"]
    assert call("DELETE", f"/api/studies/{study['study_id']}")[0] == 500
    forged = json.dumps({"study_name": "forged", "directions": ["minimize"]}).encode()
    assert call("POST", "/api/studies", forged)[0] == 500
    assert owner.names() == ["toy/stage1"]
    owner.close()
    reader.close()


def everybody():
    """Command line and environment of every process that we may read."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    [
        "environment",
        "command line",
        pytest.param("command line with =", marks=pytest.mark.long),
    ],
)
def test_no_password_in_the_process_list(sweep, wait_until, how):
    url = sweep.env["SWEEP_DATABASE_URL"]
    password = make_url(url).password.encode()
    assert len(password) > 8
    study = str(sweep.write(few=True, trivial="", tau_s=30.0, step_s=0.02, steps=4000))
    words = ["stage1", study, "--json"]
    if how == "environment":
        command = sweep.start(*words)
    else:
        given = ["--database", url] if how == "command line" else [f"--database={url}"]
        command = sweep.start(*words, *given, SWEEP_DATABASE_URL=None)
    wait_until(lambda: " step 2: " in command.said("err"), "a trial has measured something")
    (running,) = sweep.running()
    for line, _ in everybody():
        assert password not in line
    for pid in (running["pid"], running["trainer"]):
        assert password not in Path(f"/proc/{pid}/environ").read_bytes()
    command.interrupt(until="running trials may finish")
    command.interrupt(until="ending the running trials")
    done = command.finish()
    assert done.code == 130
    text = done.text.encode()
    for path in sweep.home.rglob("*"):
        if path.is_file():
            text += path.read_bytes()
    assert password not in text
    assert not re.search(rb"postgresql(\+psycopg2)?://[^:/]+:[^*@]+@", text)
