"""Every path of a home, study, trial and attempt, and the one way to write files: whole or not.

It must not know what the files mean; standard library only, because the runner uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600


def write_whole(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write a file so that it appears whole or not at all (temp file beside it, then rename).

    Without `lasting` it need not outlive a power cut (after which it may be empty): for what nobody
    needs once the machine has stopped. Kills do it no harm either way, and the wait for the disk,
    milliseconds that a device would idle, is saved.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Any, *, lasting: bool = True) -> None:
    """Write one strict JSON document (no NaN, no Infinity), whole; `lasting` as in `write_whole`.

    It is plain ASCII, so that a path that is no valid Unicode survives too.
    """
    # a document is a tree; a search for circles costs 0.3 to 1.2 s where it has a million lists
    text = json.dumps(value, allow_nan=False, check_circular=False)
    write_whole(path, text + "\n", lasting=lasting)


def make_private(path: Path) -> Path:
    """Create a folder (and its parents) for this user only, and return it."""
    path.mkdir(mode=PRIVATE_DIR, parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class AttemptPaths:
    """The files of one attempt, all in one folder."""

    folder: Path

    @property
    def spec(self) -> Path:
        """What the runner is asked to do."""
        return self.folder / "spec.json"

    @property
    def config(self) -> Path:
        """The trainer's resolved configuration of this trial."""
        return self.folder / "config.toml"

    @property
    def raw_events(self) -> Path:
        """What a trainer that speaks the protocol writes (SWEEP_EVENTS)."""
        return self.folder / "trainer.jsonl"

    @property
    def events(self) -> Path:
        """The normalised event stream that the runner writes and everyone else reads."""
        return self.folder / "events.jsonl"

    @property
    def stdout(self) -> Path:
        """The trainer's standard output."""
        return self.folder / "stdout.log"

    @property
    def stderr(self) -> Path:
        """The trainer's standard error."""
        return self.folder / "stderr.log"

    @property
    def runner_log(self) -> Path:
        """What the runner itself has to say."""
        return self.folder / "runner.log"

    @property
    def control(self) -> Path:
        """A lowered cap, cancel or drain, written while the attempt runs."""
        return self.folder / "control.json"

    @property
    def lease(self) -> Path:
        """Touched again and again by whoever wants a remote attempt to go on (`lease_s`)."""
        return self.folder / "lease"

    @property
    def samples(self) -> Path:
        """Looks at the device while the attempt ran, one JSON line each."""
        return self.folder / "samples.jsonl"

    @property
    def running(self) -> Path:
        """Who runs this attempt (pid and start time), written by the runner first."""
        return self.folder / "running.json"

    @property
    def outcome(self) -> Path:
        """How it ended; its presence means that it has ended."""
        return self.folder / "outcome.json"


@dataclass(frozen=True)
class Home:
    """The folder that holds the embedded database, run folders and caches (`SWEEP_HOME`)."""

    folder: Path

    @property
    def database(self) -> Path:
        """The embedded database's folder."""
        return self.folder / "db"

    @property
    def artifacts(self) -> Path:
        """What the Optuna dashboard shows beside trials."""
        return self.folder / "artifacts"

    def study(self, study: str) -> Path:
        """All run folders of a study."""
        return self.folder / "runs" / study

    def attempt(self, study: str, trial: str, attempt: int) -> AttemptPaths:
        """The folder of one attempt (1-based) at a trial."""
        return AttemptPaths(self.study(study) / trial / f"attempt-{attempt}")

    def stage_document(self, study: str, stage: str) -> Path:
        """A stage's plan, kept beside its run folders so that a database can be rebuilt."""
        return self.study(study) / f"{stage}.json"

    def report(self, study: str) -> Path:
        """Where a study's report is written unless told otherwise."""
        return self.folder / "reports" / study
