"""The folder of an embedded database: its files, its locks, who holds it, what its supervisor says.

It must not know how a server is started or stopped; standard library only, because the supervisor
uses it.

Every decision rests on `flock`, never on a process id: a lock ends with the process that holds it,
however that process ended, and is seen across containers that share a kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sweeper.errors import DatabaseUnusable
from sweeper.paths import Home, make_private, write_json

LOCK_POLL_S = 0.02
LOG_MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class Folder:
    """The files of one embedded database, below `HOME/db` (mode 0700)."""

    path: Path

    @classmethod
    def of(cls, home: Path) -> Folder:
        """The folder of a home; symbolic links are resolved, so that two names are one database."""
        return cls(Path(os.path.realpath(Home(home).database)))

    @property
    def start_lock(self) -> Path:
        """Held by a command that starts or stops the server, and by a supervisor that leaves."""
        return self.path / "start.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.path / "supervisor.lock"

    @property
    def holders(self) -> Path:
        """One locked file per command that needs the server."""
        return self.path / "holders"

    @property
    def keep(self) -> Path:
        """Present between `sweep db up` and `sweep db down`."""
        return self.path / "keep.json"

    @property
    def stop_request(self) -> Path:
        """Asks the supervisor to stop the server now, whoever holds it."""
        return self.path / "stop.request"

    @property
    def state(self) -> Path:
        """What the supervisor last said (`State`)."""
        return self.path / "state.json"

    @property
    def password(self) -> Path:
        """The server's password, mode 0600."""
        return self.path / "password"

    @property
    def pointer(self) -> Path:
        """As root: where the data are, because the server's account cannot reach this folder."""
        return self.path / "cluster.json"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor did, and why."""
        return self.path / "supervisor.log"

    @property
    def server_log(self) -> Path:
        """What Postgres says."""
        return self.path / "server.log"

    def create(self) -> None:
        """Make the folder, private to this user.

        Raises:
            DatabaseUnusable: it cannot be created or written, or belongs to somebody else.
        """
        try:
            make_private(self.path)
            owner = self.path.stat().st_uid
            if owner != os.geteuid():
                raise DatabaseUnusable(
                    f"{self.path} belongs to user id {owner}, and this is user id {os.geteuid()}: "
                    "run as that user, or choose another home with --home."
                )
            self.path.chmod(0o700)
            make_private(self.holders)
        except OSError as error:
            raise DatabaseUnusable(
                f"the embedded database needs a folder at {self.path}: {error.strerror}. Make it "
                "writable, choose another home with --home, or give a server with --database."
            ) from error


# ---------------------------------------------------------------------------------------- locks


def try_lock(path: Path) -> int | None:
    """Lock a file (created when missing) for this process alone; None when somebody has it.

    Returns:
        The descriptor that carries the lock: closing it, or dying, ends the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def lock(path: Path, deadline: float) -> int:
    """Lock a file, waiting until `deadline` (on the monotonic clock).

    Raises:
        TimeoutError: somebody else held it to the end.
    """
    while True:
        descriptor = try_lock(path)
        if descriptor is not None:
            return descriptor
        if time.monotonic() >= deadline:
            raise TimeoutError(path)
        time.sleep(LOCK_POLL_S)


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock; a missing file is not locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who only look never take each other for a holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# -------------------------------------------------------------------------------------- holders


@dataclass(frozen=True)
class Holder:
    """A command that needs the server: its process, what it does, since when (UTC, ISO 8601)."""

    pid: int
    purpose: str
    since: str

    def __str__(self) -> str:
        return f"{self.purpose} (process {self.pid}, since {self.since})"


_held: set[int] = set()


def _drop_in_child() -> None:
    """A forked child is no holder: its copy, left open, would outlive the parent's lock."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)


class Hold:
    """A locked file in the holders' folder, from construction until `release` or death."""

    def __init__(self, folder: Folder, purpose: str) -> None:
        holder = Holder(os.getpid(), purpose, datetime.now(UTC).isoformat(timespec="seconds"))
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".new", dir=folder.holders)
        temporary = Path(name)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(asdict(holder)).encode())
        # It gets its name when it is locked and written: nobody ever sees it without its holder.
        self._path = temporary.with_name(f"{holder.pid}-{temporary.stem[1:]}.lock")
        temporary.rename(self._path)
        self._descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Let go; safe to repeat, and without effect in a forked child."""
        if self._descriptor not in _held:
            return
        _held.discard(self._descriptor)
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def live_holders(folder: Folder, *, remove_dead: bool = False) -> tuple[Holder, ...]:
    """Who holds the server now; files of the dead are ignored, or removed when asked."""
    living = []
    for path in sorted(folder.holders.glob("*.lock")):
        if is_locked(path):
            with contextlib.suppress(OSError, ValueError, TypeError):
                living.append(Holder(**json.loads(path.read_text(encoding="utf-8"))))
        elif remove_dead:
            path.unlink(missing_ok=True)
    return tuple(living)


# ---------------------------------------------------------------------------------------- state


@dataclass(frozen=True)
class State:
    """What a supervisor says about itself; only worth something while its lock is held.

    `phase` is preparing, starting, ready, stopping, stopped or failed; `error` belongs to failed.
    """

    phase: str
    supervisor: int
    host: str
    postmaster: int | None = None
    version: str | None = None
    data: str | None = None
    sockets: str | None = None
    error: str | None = None


def write_state(folder: Folder, state: State) -> None:
    """Write the state, whole."""
    write_json(folder.state, asdict(state))


def read_state(folder: Folder) -> State | None:
    """Read the state; None when there is none, or it is not ours to understand."""
    try:
        return State(**json.loads(folder.state.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def open_log(path: Path) -> BinaryIO:
    """A log to append to; one that has grown big becomes `NAME.1` first."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_MAX_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log, for an error message; empty when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line for line in text.splitlines()[-lines:] if line.strip())
