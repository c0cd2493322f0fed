"""Real runners around the trivial trainer, and a look at what is left of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sweeper.paths import AttemptPaths, write_json
from sweeper.runner import processes
from sweeper.spec import AttemptOutcome, AttemptSpec, Running

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "tests" / "fakes" / "trivial_trainer.py"
DEADLINE_S = 90.0


def wait_until(true, what: str, within_s: float = DEADLINE_S) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.02)
    pytest.fail(f"not within {within_s} s: {what}")


@dataclass
class Attempt:
    """One attempt: its folder, its runner once started, what it left."""

    paths: AttemptPaths
    spec: AttemptSpec
    runner: subprocess.Popen[bytes] | None = None
    pids: list[int] = field(default_factory=list)

    def start(self) -> Attempt:
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.paths.spec, self.spec.to_json())
        self.runner = subprocess.Popen(
            [sys.executable, "-m", "sweeper.runner", str(self.paths.spec)],
            cwd=ROOT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return self

    def said(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events() if e["event"] == event]

    def events(self) -> list[dict[str, Any]]:
        if not self.paths.events.exists():
            return []
        lines = self.paths.events.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def running(self) -> Running:
        return Running.read(self.paths.running)

    def until(self, event: str) -> Attempt:
        wait_until(lambda: self.said(event), f"event {event}")
        return self

    def until_trainer(self) -> int:
        known = wait_until(
            lambda: self.paths.running.exists() and self.running().trainer, "a trainer"
        )
        assert isinstance(known, int)
        return known

    def child(self, name: str) -> int:
        """The pid of a child of the trainer, which says it in a file."""
        path = self.paths.folder / f"{name}.pid"
        return int(wait_until(lambda: path.exists() and path.read_text(), f"child {name}"))

    def exit(self) -> tuple[int, str]:
        assert self.runner is not None
        _, err = self.runner.communicate(timeout=DEADLINE_S)
        return self.runner.returncode, err.decode()

    def finish(self) -> AttemptOutcome:
        """Wait for the runner; nothing of the attempt may be alive when its outcome is there."""
        code, err = self.exit()
        assert code == 0, err
        assert err == ""
        self.assert_all_gone()
        return AttemptOutcome.read(self.paths.outcome)

    def assert_all_gone(self) -> None:
        assert processes.marked(self.running().token) == []
        for path in self.paths.folder.glob("*.pid"):
            found = processes.look_at(int(path.read_text()))
            assert found is None or found.state == "Z", path.name

    def clean(self) -> None:
        """Whatever a failed test left."""
        if self.runner is not None and self.runner.poll() is None:
            self.runner.kill()
            self.runner.communicate()
        if self.paths.running.exists():
            for process in processes.marked(self.running().token):
                processes.send(process, signal.SIGKILL)
        for path in self.paths.folder.glob("*.pid"):
            found = processes.look_at(int(path.read_text() or 0))
            if found is not None:
                processes.send(found, signal.SIGKILL)


@pytest.fixture
def attempt(tmp_path):
    """`attempt("--hang-at", "3", silence_s=1)`: a spec around the trivial trainer, not yet started."""
    made: list[Attempt] = []

    def make(*options: str, argv: list[str] | None = None, **spec: Any) -> Attempt:
        folder = tmp_path / f"run-{len(made)}"
        command = [sys.executable, "-S", str(TRAINER), *options]
        asked: dict[str, Any] = {
            "study": "tests",
            "trial": f"t{len(made)}",
            "attempt": 1,
            "argv": command if argv is None else argv,
            "cwd": str(tmp_path),
            "run_dir": str(folder),
            "metric": "val_loss",
            "clock": "train",
            "target": 2.0,
            "trial_s": 60.0,
            "silence_s": 30.0,
            "startup_s": 30.0,
            "grace_s": 0.5,
            "max_steps": 100_000,
        }
        made.append(Attempt(AttemptPaths(folder), AttemptSpec(**(asked | spec))))
        return made[-1]

    yield make
    for one in made:
        one.clean()


@pytest.fixture
def trainer_command():
    """The trivial trainer's argument vector, for tests that wrap it in another program."""
    return [sys.executable, "-S", str(TRAINER)]


@pytest.fixture
def eventually():
    """`eventually(condition, "what")`: its first true value, or a failure at the deadline."""
    return wait_until


@pytest.fixture(autouse=True)
def _no_child_is_left():
    yield
    assert not [p for p in processes.everyone() if p.parent == os.getpid() and p.state != "Z"]
