"""The dashboard serves what was run, to read only and to this machine only; no password is in sight."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, method, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_dashboard(sweep, wait_until):
    study = str(sweep.write(few=True))
    sweep("run", study)
    port = free_port()
    command = sweep.start("dashboard", "--port", str(port))
    words = f"http://127.0.0.1:{port}/dashboard"
    wait_until(lambda: words in command.said("out") or command.process.poll() is not None, words)

    status, body = ask(port, "GET", "/api/studies")
    assert status == 200, command.said("err")
    listed = {s["study_name"]: s for s in json.loads(body)["study_summaries"]}
    assert set(listed) == {"trivial/stage1", "trivial/stage2", "trivial/confirm"}
    number = listed["trivial/stage1"]["study_id"]
    status, body = ask(port, "GET", f"/api/studies/{number}?after=0")
    assert status == 200
    trials = json.loads(body)["trials"]
    assert len(trials) == 5
    assert {t["state"] for t in trials} == {"Complete"}
    names = {p["name"] for p in trials[0]["params"]}
    assert names == {"optim.lr", "data.batch", "model.tau_s"}

    for method in ("DELETE", "POST", "PUT", "PATCH"):
        status, _ = ask(port, method, f"/api/studies/{number}")
        assert status == 405
    assert ask(port, "GET", "/api/studies", host="evil.example")[0] == 403
    assert ask(port, "GET", "/api/studies", host=f"evil.example:{port}")[0] == 403
    assert ask(port, "GET", "/api/studies", host=f"localhost:{port}")[0] == 200
    assert ask(port, "GET", "/dashboard")[0] == 200

    refused = sweep("dashboard", "--port", str(port), exit=3)
    assert f"cannot listen on 127.0.0.1:{port}" in refused.err
    command.process.send_signal(signal.SIGTERM)
    done = command.finish()
    assert done.code == 0, done.text
    assert len(json.loads(body)["trials"]) == 5
    assert sweep("db", "verify", study).code == 0


def everybody():
    """Command line and environment of every process that we may read."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue


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
