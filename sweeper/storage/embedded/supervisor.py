"""Owns one Postgres server: starts it, restarts it when it dies, stops it when nobody holds it.

It must not know SQL or SQLAlchemy, nor who the holders are: it sees locks. It runs detached, as
`python -m sweeper.storage.embedded.supervisor FOLDER`, standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sweeper.errors import DatabaseUnusable
from sweeper.storage.embedded import cluster as clusters
from sweeper.storage.embedded.binaries import CLEAN_ENVIRONMENT, Installation
from sweeper.storage.embedded.cluster import SOCKET_NAME, Cluster
from sweeper.storage.embedded.layout import (
    Folder,
    State,
    live_holders,
    lock,
    open_log,
    read_state,
    tail,
    try_lock,
    write_state,
)
from sweeper.storage.embedded.options import LOCK_TAKEN, Options, parse

TICK_S = 0.2
STARTING_TICK_S = 0.02
READY_S = 600.0  # recovery of a big log on a slow disk; commands give up sooner, and try again
LEFTOVERS_S = 20.0
STOP_S = 30.0
MOST_RESTARTS = 5
RESTARTS_WITHIN_S = 60.0

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "cluster_name": "sweep",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_parallel_workers_per_gather": "0",  # containers have little shared memory
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # a failed statement may hold a secret
}


class Supervisor:
    """One run, from the first look at the data to the end of the server."""

    def __init__(self, folder: Folder, options: Options, lock_descriptor: int) -> None:
        self.folder = folder
        self.options = options
        self._inode = os.fstat(lock_descriptor).st_ino
        self._previous = read_state(folder)
        self._state = State("preparing", 0, socket.gethostname())
        self._written: State | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._alone = False  # nobody else uses the data or the socket's folder
        self._started_at = 0.0
        self._restarts: deque[float] = deque(maxlen=MOST_RESTARTS)
        self._held_at = time.monotonic()

    def run(self) -> int:
        """Serve until nobody needs the server; the exit code is 0 unless it cannot be served."""
        signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        for number in signals:  # some may be inherited as ignored
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        error: str | None = None
        self._say(supervisor=os.getpid())
        try:
            self._prepare()
            self._start()
            while self._tick(signals):
                pass
        except DatabaseUnusable as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - a detached process has nobody to raise to
            self._log(traceback.format_exc())
            log = self.folder.supervisor_log
            error = f"the database's supervisor failed: {problem!r} (log: {log})"
        self._stop_server()
        if error is not None:
            self._log(f"failed: {error}")
        self._say(phase="failed" if error else "stopped", postmaster=None, error=error)
        return 3 if error else 0

    # ------------------------------------------------------------------------------- starting

    def _prepare(self) -> None:
        account = clusters.server_account()
        self._cluster = clusters.locate(self.folder, account, self.options.state_root)
        previous = self._previous.sockets if self._previous else None
        self._sockets = clusters.socket_folder(self.folder, account, previous)
        self._say(data=str(self._cluster.data), sockets=str(self._sockets))
        # Before anything touches the data: nobody else may have them open.
        for descriptor in self._exclude_others():
            os.close(descriptor)
        self._installation: Installation = clusters.installation_for(
            self._cluster, self.options.programs, self.options.state_root
        )
        durable = self.options.settings.get("fsync") != "off"
        clusters.ensure_data(self.folder, self._cluster, self._installation, durable=durable)
        self._say(version=self._installation.version)

    def _start(self) -> None:
        """Start the postmaster; `_tick` sees when it is ready."""
        self._say(phase="starting", postmaster=None)
        descriptors = self._exclude_others()
        try:
            # The locks say that no process of an earlier server lives, so what it left is stale,
            # whatever process has its number now.
            (self._cluster.data / "postmaster.pid").unlink(missing_ok=True)
            for stale in self._sockets.glob(f"{SOCKET_NAME}*"):
                stale.unlink()
            settings = {
                **SETTINGS,
                **self.options.settings,
                "unix_socket_directories": str(self._sockets),
            }
            command = [str(self._installation.bin / "postgres"), "-D", str(self._cluster.data)]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            with open_log(self.folder.server_log) as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=CLEAN_ENVIRONMENT,
                    pass_fds=descriptors,  # the server's processes hold the locks, each of them
                    preexec_fn=clusters.die_with_parent(signal.SIGINT),  # noqa: PLW1509 - one thread
                    **clusters.as_account(self._cluster.account),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise DatabaseUnusable(f"Postgres cannot be started: {error}.") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._started_at = time.monotonic()
        self._log(f"started Postgres {self._installation.version}, process {self._process.pid}")
        self._say(postmaster=self._process.pid)

    def _exclude_others(self) -> list[int]:
        """Lock the data and the socket's folder; what is left of an earlier server is ended."""
        deadline = time.monotonic() + LEFTOVERS_S
        # They end by themselves when their parent dies; the harder ways are for those that do not.
        steps = [(5.0, signal.SIGINT), (9.0, signal.SIGQUIT), (13.0, signal.SIGKILL)]
        began = time.monotonic()
        while True:
            locks = [try_lock(self._cluster.lock), try_lock(self._sockets / "lock")]
            held = [descriptor for descriptor in locks if descriptor is not None]
            left = server_processes(self._cluster)
            if len(held) == len(locks) and not left:
                self._alone = True
                return held
            for descriptor in held:
                os.close(descriptor)
            now = time.monotonic()
            if now >= deadline:
                raise DatabaseUnusable(
                    f"an earlier server still uses {self._cluster.data} (processes: "
                    f"{', '.join(map(str, left)) or 'not visible from here'}): end it, and try "
                    "again."
                )
            if steps and now - began >= steps[0][0]:
                number = steps.pop(0)[1]
                self._log(f"an earlier server is still there: {number.name} to {left}")
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.05)

    # ------------------------------------------------------------------------------- watching

    def _tick(self, signals: set[signal.Signals]) -> bool:
        """Wait a moment, then do what is due; False when it is time to leave."""
        assert self._process is not None
        ready = self._state.phase == "ready"
        arrived = signal.sigtimedwait(signals, TICK_S if ready else STARTING_TICK_S)
        if arrived is not None and arrived.si_signo in {signal.SIGTERM, signal.SIGINT}:
            self._log(f"stopping: {signal.Signals(arrived.si_signo).name}")
            return False
        if not self._owns_folder():
            self._log("stopping: the folder was removed")
            return False
        if self.folder.stop_request.exists():
            self._log("stopping: asked to")
            self.folder.stop_request.unlink(missing_ok=True)
            return False
        if self._process.poll() is not None:
            self._log(f"Postgres ended by itself, code {self._process.returncode}")
            self._restart()
        elif not ready:
            self._look_whether_ready()
        elif not (self._sockets / SOCKET_NAME).exists():
            self._log("the socket was removed (a cleaner of /tmp?): starting again")
            self._end_process()
            account = self._cluster.account
            self._sockets = clusters.socket_folder(self.folder, account, str(self._sockets))
            self._restart()
        if self._written != self._state:
            self._say()  # the disk was full when it was first said
        return not self._is_forsaken()

    def _look_whether_ready(self) -> None:
        assert self._process is not None
        if postmaster_status(self._cluster.data, self._process.pid) == "ready":
            self._log(f"ready after {time.monotonic() - self._started_at:.2f} s")
            self._say(phase="ready")
        elif time.monotonic() - self._started_at > READY_S:
            raise DatabaseUnusable(
                f"Postgres was not ready after {READY_S:.0f} s. Its last words:\n"
                + tail(self.folder.server_log)
            )

    def _restart(self) -> None:
        assert self._process is not None
        code = self._process.returncode
        now = time.monotonic()
        never_ready = self._state.phase == "starting" and not self._restarts
        too_often = (
            len(self._restarts) == MOST_RESTARTS and now - self._restarts[0] < RESTARTS_WITHIN_S
        )
        if never_ready or too_often:
            times = "" if never_ready else f" {MOST_RESTARTS + 1} times in a minute"
            raise DatabaseUnusable(
                f"Postgres ended{times} with code {code}. Its last words "
                f"({self.folder.server_log}):\n" + tail(self.folder.server_log)
            )
        self._restarts.append(now)
        self._start()

    def _owns_folder(self) -> bool:
        try:
            return self.folder.supervisor_lock.stat().st_ino == self._inode
        except OSError:
            return False

    def _is_forsaken(self) -> bool:
        """Whether nobody has held the server for a while, and nobody is just coming."""
        now = time.monotonic()
        if self._is_held():
            self._held_at = now
        if now - self._held_at < self.options.linger_s:
            return False
        try:
            coming = try_lock(self.folder.start_lock)
        except OSError:
            return False  # the folder is going; the next tick sees it
        if coming is None:
            return False
        if self._is_held():
            os.close(coming)
            return False
        # From here on the lock stays ours to the end: who comes now waits, and starts another.
        self._log(f"stopping: no holder for {self.options.linger_s} s")
        return True

    def _is_held(self) -> bool:
        return bool(live_holders(self.folder, remove_dead=True)) or self.folder.keep.exists()

    # ------------------------------------------------------------------------------- stopping

    def _stop_server(self) -> None:
        self._end_process()
        if self._alone:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _end_process(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._say(phase="stopping")
        began = time.monotonic()
        ways = [(signal.SIGINT, STOP_S), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)]
        # Without its folder there is nothing left to be careful with.
        for number, limit_s in ways if self._owns_folder() else ways[1:]:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit_s)
                self._log(f"stopped by {number.name} in {time.monotonic() - began:.2f} s")
                return

    # -------------------------------------------------------------------------------- telling

    def _say(self, **changes: str | int | None) -> None:
        """Change the state and write it; a full disk is tried again at the next tick."""
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]
        if not self._owns_folder():
            return
        try:
            write_state(self.folder, self._state)
            self._written = self._state
        except OSError as error:
            self._log(f"cannot write {self.folder.state}: {error}")

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError):
            stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            print(f"{stamp} [{os.getpid()}] {text}", file=sys.stderr, flush=True)  # noqa: T201


def postmaster_status(data: Path, pid: int) -> str | None:
    """What the postmaster of this process id says in its pid file: starting, ready, stopping."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    if len(lines) < 8 or lines[0].strip() != str(pid):  # it grows line by line
        return None
    return lines[7].strip()


def server_processes(cluster: Cluster) -> list[int]:
    """Processes that live in the data directory, as all of a server's do; none without /proc."""
    data = os.path.realpath(cluster.data)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((entry / "cwd").readlink()) == data:
                found.append(int(entry.name))
    return found


def main(arguments: list[str]) -> int:
    """Take the supervisor's lock, detach, serve.

    The process that was started ends at once: 0 when a detached one has taken over and holds the
    lock, `LOCK_TAKEN` when another supervisor is there.
    """
    path, options = parse(arguments)
    folder = Folder(path)
    os.umask(0o077)
    try:
        descriptor = lock(folder.supervisor_lock, time.monotonic() + 2.0)
    except TimeoutError:
        return LOCK_TAKEN
    supervisor = Supervisor(folder, options, descriptor)
    # Before the parent ends: whoever sees the lock sees a state of this run.
    write_state(folder, State("preparing", 0, socket.gethostname()))
    folder.stop_request.unlink(missing_ok=True)
    if os.fork():
        os._exit(0)
    os.setsid()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
