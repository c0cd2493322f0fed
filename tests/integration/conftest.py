"""The real `sweep` as a subprocess on the real Postgres, with studies around the trivial trainer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from sweeper.runner import processes
from sweeper.storage import embedded
from sweeper.storage.sql import open_store

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "tests" / "fakes" / "trivial_trainer.py"
DEADLINE_S = 300.0

BASE = """\
[optim]
lr = 0.003

[data]
batch = 64

[model]
tau_s = {tau_s}
step_s = {step_s}
"""

# Two groups compare, one takes the best of the first: 11 entries, 9 of them distinct. The best
# configuration of all is lr = 0.01, batch = 64, and the smallest tau_s.
STUDY = """\
[study]
name = "{name}"
title = "Trivial"

[objective]
target = {target}
fallback = {fallback}

[trainer]
command = ["{{python}}", "{trainer}", "--config", "{{config}}", "--eval-every", "1"]
config = "base.toml"

[trainer.env]
TRIVIAL = "{trivial}"

[validity]
gate = false  # other tests have the same processors

[racing]
cap = {cap}

[limits]
steps = {steps}
trial_s = {trial_s}
silence_s = 30
startup_s = {startup_s}
grace_s = 1

[resources]
gpus = 0

[space."optim.lr"]
type = "float"
low = 0.001
high = 0.1
scale = "log"
levels = 3
baseline = 0.003

[space."data.batch"]
type = "int"
low = 16
high = 256
step = 16
scale = "log"
levels = 3
baseline = 64

[space."model.tau_s"]
type = "categorical"
choices = [{tau_s}, {slow_tau_s}]
baseline = {slow_tau_s}

[[stage1.group]]
name = "A"
grid = {{ "model.tau_s" = [{slow_tau_s}, {tau_s}] }}
bases = [{{ "optim.lr" = 0.003 }}, {{ "optim.lr" = 0.03 }}]

[[stage1.group]]
name = "B"
vary = {{ "data.batch" = [16, 64, 256] }}

[[stage1.group]]
name = "C"
best_of = {{ group = "A", parameters = ["model.tau_s"] }}
vary = {{ "optim.lr" = [0.001, 0.003, 0.01, 0.1] }}

[stage2]
from_top = 4
runs = 8
replicates = 1

[confirm]
top = 2
repeats = 2
"""

# Five trials: two groups, and one that takes the best of the first.
FEW_GROUPS = """\
[[stage1.group]]
name = "A"
vary = { "optim.lr" = [0.01, 0.03] }

[[stage1.group]]
name = "B"
vary = { "data.batch" = [64, 128] }

[[stage1.group]]
name = "C"
best_of = { group = "A", parameters = ["optim.lr"] }
vary = { "data.batch" = [32] }

[stage2]
from_top = 2
runs = 4
replicates = 1

[confirm]
top = 1
repeats = 2
"""


def wait_until(true: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> Any:
    """The first true answer; a failure, which says `what` was waited for, after the deadline."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.03)
    pytest.fail(f"not within {within_s} s: {what}")


@dataclass(frozen=True)
class Done:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    def json(self) -> Any:
        """The one strict JSON document on stdout."""

        def refuse(constant: str) -> None:
            pytest.fail(f"not strict JSON: {constant}")

        return json.loads(self.out, parse_constant=refuse)


def on_two_cores() -> None:
    """Any two: then there is one slot everywhere, as on the smallest machine."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, random.sample(cores, min(2, len(cores))))


class Command:
    """A command under way: its process, and what it has said so far."""

    process: subprocess.Popen[bytes]

    def __init__(self, place: Path) -> None:
        self._place = place

    def path(self, stream: str) -> Path:
        return self._place.with_suffix(f".{stream}")

    def said(self, stream: str) -> str:
        return self.path(stream).read_text(encoding="utf-8")

    def finish(self, within_s: float = DEADLINE_S) -> Done:
        """Wait for it; no command ever ends in a traceback."""
        code = self.process.wait(within_s)
        done = Done(code, self.said("out"), self.said("err"))
        assert "Traceback" not in done.text, done.text
        return done

    def kill(self) -> None:
        """SIGKILL, and nothing more."""
        self.process.kill()
        self.process.wait()

    def interrupt(self, *, until: str) -> None:
        """Ctrl-C, and wait for its answer: a second signal of a kind is lost while one is pending."""
        self.process.send_signal(signal.SIGINT)
        wait_until(lambda: until in self.said("out") + self.said("err"), f"{until!r}")


@dataclass
class Sweep:
    """The program in a folder of its own: what a user types, and what is left on disk."""

    folder: Path
    env: dict[str, str]
    started: list[Command] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return Path(self.env["SWEEP_HOME"])

    def start(self, *words: str, wrap: Sequence[str] = (), **env: str | None) -> Command:
        """Start a command without waiting for it; it is killed at the end of the test.

        `wrap` is the beginning of a command that starts it somewhere else.
        """
        command = Command(self.folder / f"command-{len(self.started)}")
        with command.path("out").open("wb") as out, command.path("err").open("wb") as err:
            command.process = subprocess.Popen(
                [*wrap, sys.executable, "-m", "sweeper.cli", *words],
                cwd=self.folder,
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=on_two_cores,  # noqa: PLW1509 - tests have one thread
            )
        self.started.append(command)
        return command

    def __call__(self, *words: str, exit: int | None = 0, **env: str | None) -> Done:  # noqa: A002
        """Run a command to its end and expect its exit code (None: any)."""
        done = self.start(*words, **env).finish()
        assert exit is None or done.code == exit, f"exit {done.code}:\n{done.text}"
        return done

    def environment(self, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        merged = {**self.env, **(changes or {})}
        return {key: value for key, value in merged.items() if value is not None}

    def write(self, name: str = "trivial", *, few: bool = False, **values: Any) -> Path:
        """A study of three parameters in a folder of its own; `values` fill its places."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        places = {
            "name": name,
            "trainer": TRAINER,
            "trivial": "--virtual-clock",
            "target": 2.0,
            "fallback": [],
            "steps": 400,
            "trial_s": 100,
            "startup_s": 60,
            "tau_s": 1.0,
            "step_s": 0.1,
        } | values
        places.setdefault("slow_tau_s", 2 * places["tau_s"])
        # on a virtual clock it would be chance which trials end before anybody has looked at a cap
        places.setdefault("cap", str("--virtual-clock" not in places["trivial"]).lower())
        (folder / "base.toml").write_text(BASE.format(**places), encoding="utf-8")
        path = folder / "study.toml"
        text = STUDY.format(**places)
        if few:
            text = text.partition("[[stage1.group]]")[0] + FEW_GROUPS
        path.write_text(text, encoding="utf-8")
        return path

    def edit(self, path: Path, before: str, after: str) -> None:
        """Change the one place of a study file that says `before`."""
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{text.count(before)} times: {before}"
        path.write_text(text.replace(before, after), encoding="utf-8")

    def attempts(self, study: str = "trivial") -> list[Path]:
        """Run folders, in the order in which they were made."""
        found = (self.home / "runs" / study).glob("*/attempt-*")
        return sorted(found, key=lambda folder: folder.stat().st_ctime)

    def facts(self, study: Path) -> list[dict[str, Any]]:
        """Every attempt as `export --trials` gives it."""
        done = self("export", str(study), "--trials")
        return [json.loads(line) for line in done.out.splitlines()]

    def running(self, study: str = "trivial") -> list[dict[str, Any]]:
        """Attempts with a trainer and no outcome, as their running.json says it."""
        found = []
        for folder in (self.home / "runs" / study).glob("*/attempt-*"):
            if not (folder / "outcome.json").exists() and (folder / "running.json").exists():
                known = json.loads((folder / "running.json").read_text(encoding="utf-8"))
                if known["trainer"]:
                    found.append(known | {"folder": str(folder)})
        return found

    def close(self) -> None:
        """End every command, and every runner and trainer that it left."""
        for command in self.started:
            if command.process.poll() is None:
                command.process.kill()
            command.process.wait()
        for path in self.home.glob("runs/*/*/attempt-*/running.json"):
            token = json.loads(path.read_text(encoding="utf-8"))["token"]
            processes.kill_all(lambda token=token: processes.marked(token), within_s=10)


@contextlib.contextmanager
def program(folder: Path, url: str | None) -> Iterator[Sweep]:
    """The program at work in `folder`; without a URL it will start a database of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SWEEP_", "PG"))}
    env = kept | {"SWEEP_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    env["SWEEP_DEVICE_LOCKS"] = str(folder / "devices")
    sweep = Sweep(folder, env if url is None else env | {"SWEEP_DATABASE_URL": url})
    try:
        yield sweep
    finally:
        sweep.close()


@contextlib.contextmanager
def fresh_database(postgres: embedded.Server, template: str = "template0") -> Iterator[str]:
    """The URL of a new database, a copy of `template`, dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    connection = psycopg2.connect(postgres.url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        address, query = postgres.url.split("?", maxsplit=1)
        yield f"{address.rsplit('/', maxsplit=1)[0]}/{name}?{query}"
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def template(postgres: embedded.Server) -> Iterator[str]:
    """Name of a database that has sweep's tables, and nothing in them."""
    with fresh_database(postgres) as url:
        open_store(url, create=True).close()
        yield url.partition("?")[0].rpartition("/")[2]


@pytest.fixture
def sweep_without_schema(postgres: embedded.Server, tmp_path: Path) -> Iterator[Sweep]:
    """The program on an empty database."""
    with fresh_database(postgres) as url, program(tmp_path, url) as sweep:
        yield sweep


@pytest.fixture
def sweep(postgres: embedded.Server, template: str, tmp_path: Path) -> Iterator[Sweep]:
    """The program on a database that has its tables."""
    with fresh_database(postgres, template) as url, program(tmp_path, url) as sweep:
        yield sweep


@pytest.fixture
def sweep_without_database(tmp_path: Path) -> Iterator[Sweep]:
    """The program without a URL, for what must fail (or be done) before any database is needed."""
    with program(tmp_path, None) as sweep:
        yield sweep
        assert not sweep.home.exists(), "no command may have made a database"


@pytest.fixture
def sweep_of_its_own() -> Iterator[Sweep]:
    """The program with its embedded database, in a short folder that other accounts can reach."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-tests-"))
    folder.chmod(0o711)
    with program(folder, None) as sweep:
        yield sweep
        sweep("db", "down", exit=None)
        data = Path(sweep("db", "status", "--json").json()["data"] or folder / "none")
    shutil.rmtree(folder)
    if data.exists():  # root's server keeps its data elsewhere
        shutil.rmtree(data.parent)


@pytest.fixture(scope="module")
def module_sweep(
    postgres: embedded.Server, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sweep]:
    """One program and database for a whole file of tests that only look at what was run once."""
    folder = tmp_path_factory.mktemp("whole")
    with fresh_database(postgres, template) as url, program(folder, url) as sweep:
        yield sweep


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., Any]:
    """See `wait_until`."""
    return wait_until


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process is there and no zombie."""

    def is_alive(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    return is_alive
