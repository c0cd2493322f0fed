"""How a command gets, keeps, inspects and stops its home's database server.

It must not know how a server is run (the supervisor does), nor what is stored in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import sweeper
from sweeper.errors import DatabaseUnusable
from sweeper.paths import write_json, write_whole
from sweeper.storage.embedded import cluster as clusters
from sweeper.storage.embedded.layout import (
    Folder,
    Hold,
    Holder,
    State,
    is_locked,
    live_holders,
    lock,
    open_log,
    read_state,
    tail,
)
from sweeper.storage.embedded.options import LOCK_TAKEN, Options

POLL_S = 0.02
START_S = 90.0
STOP_S = 60.0
MOST_STARTS = 3
# The supervisor outlives its command, so it gets none of the command's other variables (secrets,
# marks by which a process tree is found).
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "XDG_RUNTIME_DIR")
DEFAULT_OPTIONS = Options()


class SecretUrl(str):
    """A URL with a password in it, for `create_engine`; its `repr` shows none."""

    __slots__ = ()

    def __repr__(self) -> str:
        scheme, rest = self.split("://", maxsplit=1)
        credentials, place = rest.split("@", maxsplit=1)
        return f"'{scheme}://{credentials.split(':', maxsplit=1)[0]}:***@{place}'"


class Server:
    """A running server, kept running for as long as this is open."""

    def __init__(self, folder: Folder, purpose: str, options: Options, timeout_s: float) -> None:
        self._folder = folder
        self._options = options
        try:
            self._hold = Hold(folder, purpose)
        except OSError as error:
            raise DatabaseUnusable(
                f"cannot write to {folder.holders}: {error.strerror}. Make room or make it "
                "writable, or choose another home with --home."
            ) from error
        try:
            # Never the short way here: the lock tells a server that stays from one that is leaving
            # because it has not seen this hold yet.
            self._use(_start(folder, options, timeout_s))
        except BaseException:
            self._hold.release()
            raise

    def ensure(self, *, timeout_s: float = START_S) -> None:
        """Start the server again should it be gone (after a `kill -9` of its supervisor, say).

        Cheap when it is there (under a millisecond), so it can be called before every connect. The
        address and the password stay the same.

        Raises:
            DatabaseUnusable: it could not be started within `timeout_s`.
        """
        self._use(_ready(self._folder) or _start(self._folder, self._options, timeout_s))

    def _use(self, state: State) -> None:
        assert state.sockets is not None
        try:
            password = self._folder.password.read_text(encoding="ascii").strip()
        except OSError as error:
            raise DatabaseUnusable(
                f"cannot read {self._folder.password}: {error.strerror}."
            ) from error
        self._url = SecretUrl(
            f"postgresql+psycopg2://{clusters.USER}:{password}@/postgres"
            f"?host={quote(state.sockets, safe='')}"
        )

    @property
    def url(self) -> str:
        """For SQLAlchemy, with the password; never print it (its `repr` is masked)."""
        return self._url

    def close(self) -> None:
        """Let go of the server; it stops a little later if nobody else holds it."""
        self._hold.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self._url!r})"


@dataclass(frozen=True)
class Status:
    """What is known about a home's server without starting it.

    `pid` is the postmaster's, as seen on `host`; `kept` means that `sweep db up` holds it;
    `size_bytes` is the data directory's; `abandoned` are root's data of earlier homes at this path,
    which may be deleted.
    """

    running: bool
    phase: str
    pid: int | None
    supervisor_pid: int | None
    host: str | None
    version: str | None
    data: Path | None
    sockets: Path | None
    holders: tuple[Holder, ...]
    kept: bool
    size_bytes: int
    error: str | None
    log: Path
    abandoned: tuple[Path, ...]


@dataclass(frozen=True)
class Stopped:
    """What `stop` did: whether no server runs now, whether one ran, and who still holds it."""

    stopped: bool
    was_running: bool
    holders: tuple[Holder, ...]


def open_server(
    home: Path,
    *,
    purpose: str,
    options: Options = DEFAULT_OPTIONS,
    timeout_s: float = START_S,
) -> Server:
    """Hold the home's database server, starting it (and creating the database) when needed.

    Args:
        home: The sweep's home folder; the database is in its `db`.
        purpose: What the command does, shown to whoever wants to stop the server.
        options: How to run the server, if this command is the one that starts it.
        timeout_s: How long to wait until it can be used.

    Raises:
        DatabaseUnusable: no Postgres here, nowhere to write, not ready in time; the message says
            what to do.
    """
    folder = Folder.of(home)
    folder.create()
    return Server(folder, purpose, options, timeout_s)


def keep_alive(
    home: Path, *, options: Options = DEFAULT_OPTIONS, timeout_s: float = START_S
) -> Status:
    """Start the server and keep it until `stop`, also when no command uses it (`sweep db up`).

    Raises:
        DatabaseUnusable: as `open_server`.
    """
    with open_server(home, purpose="sweep db up", options=options, timeout_s=timeout_s):
        folder = Folder.of(home)
        try:
            write_json(folder.keep, {"since": datetime.now(UTC).isoformat(timespec="seconds")})
        except OSError as error:
            raise DatabaseUnusable(f"cannot write {folder.keep}: {error.strerror}.") from error
        return status(home)


def stop(home: Path, *, force: bool = False, timeout_s: float = STOP_S) -> Stopped:
    """End what `keep_alive` began, and stop the server now unless somebody still holds it.

    With holders left and without `force` the server goes on, and stops when the last one is done.
    Returns only when the server is gone, or goes on.

    Raises:
        DatabaseUnusable: it did not stop in time.
    """
    folder = Folder.of(home)
    if not folder.path.is_dir():
        return Stopped(stopped=True, was_running=False, holders=())
    deadline = time.monotonic() + timeout_s
    with _start_lock(folder, deadline):
        folder.keep.unlink(missing_ok=True)
        holders = live_holders(folder)
        if not is_locked(folder.supervisor_lock):
            _clear_away(folder, deadline)
            return Stopped(stopped=True, was_running=False, holders=holders)
        if holders and not force:
            return Stopped(stopped=False, was_running=True, holders=holders)
        # A file, not a signal: it needs no process id, which might be another container's.
        write_whole(folder.stop_request, "")
        while is_locked(folder.supervisor_lock):
            if time.monotonic() >= deadline:
                raise DatabaseUnusable(
                    f"the database server did not stop in {timeout_s:.0f} s "
                    f"(log: {folder.supervisor_log})."
                )
            time.sleep(POLL_S)
        return Stopped(stopped=True, was_running=True, holders=holders)


def _clear_away(folder: Folder, deadline: float) -> None:
    """Remove the socket's folder of a supervisor that was killed, when its server is gone too."""
    state = read_state(folder)
    if state is None or state.sockets is None or not Path(state.sockets).is_dir():
        return
    try:
        os.close(lock(Path(state.sockets) / "lock", deadline))
    except TimeoutError:
        raise DatabaseUnusable(
            f"the database's supervisor is gone, and its server (process {state.postmaster}) does "
            "not end: end that process."
        ) from None
    except OSError as error:
        raise DatabaseUnusable(f"cannot look into {state.sockets}: {error.strerror}.") from error
    shutil.rmtree(state.sockets, ignore_errors=True)


def status(home: Path) -> Status:
    """Look at a home's server; starts and changes nothing."""
    folder = Folder.of(home)
    alive = is_locked(folder.supervisor_lock)
    state = read_state(folder)
    data = Path(state.data) if state is not None and state.data is not None else None
    phase = state.phase if state is not None else "stopped"
    if not alive and phase != "failed":
        phase = "stopped"  # whatever a supervisor that was killed said last
    root = data.parent if data is not None else None
    return Status(
        running=alive and phase == "ready",
        phase=phase,
        pid=state.postmaster if alive and state else None,
        supervisor_pid=state.supervisor if alive and state else None,
        host=state.host if alive and state else None,
        version=state.version if state else None,
        data=data,
        sockets=Path(state.sockets) if alive and state and state.sockets else None,
        holders=live_holders(folder),
        kept=folder.keep.exists(),
        size_bytes=_size_bytes(data) if data is not None else 0,
        error=state.error if state else None,
        log=folder.server_log,
        abandoned=clusters.abandoned(folder, DEFAULT_OPTIONS.state_root, root),
    )


def _size_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # files come and go under a live server
                total += os.lstat(Path(place) / name).st_size
    return total


# ------------------------------------------------------------------------------------- starting


def _ready(folder: Folder) -> State | None:
    """The state of a server that accepts connections here and now; None when there is none."""
    if not is_locked(folder.supervisor_lock):
        return None
    state = read_state(folder)
    if state is None or state.phase != "ready" or state.sockets is None:
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(Path(state.sockets) / clusters.SOCKET_NAME))
        except OSError:
            return None
    return state


def _start(folder: Folder, options: Options, timeout_s: float) -> State:
    """Wait for a ready server, spawning a supervisor whenever there is none."""
    deadline = time.monotonic() + timeout_s
    starts = 0
    with _start_lock(folder, deadline):
        while True:
            alive = is_locked(folder.supervisor_lock)  # before the look: its last word counts
            state = _ready(folder)
            if state is not None:
                return state
            if not alive:
                said = read_state(folder)
                if starts and said is not None and said.phase == "failed":
                    raise DatabaseUnusable(said.error or "the database server failed")
                if starts == MOST_STARTS:
                    raise DatabaseUnusable(
                        "the database's supervisor ended without a word "
                        f"({folder.supervisor_log}):\n{tail(folder.supervisor_log)}"
                    )
                starts += 1
                _spawn(folder, options, deadline)
            elif time.monotonic() >= deadline:
                raise DatabaseUnusable(_late(folder, timeout_s))
            time.sleep(POLL_S)


def _late(folder: Folder, timeout_s: float) -> str:
    state = read_state(folder)
    text = f"the database server was not ready after {timeout_s:.0f} s"
    if state is None:
        return f"{text} (log: {folder.supervisor_log})."
    if state.phase == "ready":
        return (
            f"{text}: it runs on host {state.host}, where its socket is, and cannot be reached "
            "from here (another machine or container that shares this home?). Stop it there, or "
            "give a server with --database (SWEEP_DATABASE_URL)."
        )
    return (
        f"{text}: it is {state.phase}. After a crash it may need longer: try again. Its last words "
        f"({folder.server_log}):\n{tail(folder.server_log)}"
    )


@contextlib.contextmanager
def _start_lock(folder: Folder, deadline: float) -> Iterator[None]:
    """Be the only one who starts or stops this server."""
    try:
        descriptor = lock(folder.start_lock, deadline)
    except TimeoutError:
        raise DatabaseUnusable(
            "another command is starting or stopping the database server and did not finish in "
            f"time (log: {folder.supervisor_log}): try again."
        ) from None
    except OSError as error:
        raise DatabaseUnusable(f"cannot lock {folder.start_lock}: {error.strerror}.") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _spawn(folder: Folder, options: Options, deadline: float) -> None:
    """Start a supervisor; when this returns it holds its lock, or another one does."""
    # -P: the working folder's modules are nobody's business; ours are found where they are now.
    package_root = str(Path(sweeper.__file__).resolve().parent.parent)
    search = filter(None, [package_root, os.environ.get("PYTHONPATH")])
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(search)
    command = [
        *(sys.executable, "-P", "-m", "sweeper.storage.embedded.supervisor", str(folder.path)),
        *options.arguments(),
    ]
    try:
        with open_log(folder.supervisor_log) as log:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatabaseUnusable(f"the database's supervisor cannot be started: {error}.") from error
    if done.returncode not in {0, LOCK_TAKEN}:
        raise DatabaseUnusable(
            f"the database's supervisor failed with code {done.returncode} "
            f"({folder.supervisor_log}):\n{tail(folder.supervisor_log)}"
        )
