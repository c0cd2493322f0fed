"""A real Ray cluster on this machine, for tests and benchmarks: made-up GPUs, nodes killed at will.

It must not know sweep. Every node is `ray start` under a marker of its own, so that what belongs to
it is found and ended whatever Ray does; a token guards it, and another user's Ray is never touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

READY_WITHIN_S = 90.0
TRIES = 3
# A node is known to be dead after about ten seconds instead of a minute (defaults: 64 s).
QUICK = {
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "3000",
}


class RayNodes:
    """A head without resources, and nodes; use it as a context. `env` is what a driver needs."""

    def __init__(self, *, host: str = "127.0.0.1", wrap: Sequence[str] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets live in it
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self._mark = secrets.token_hex(8)
        self._started: list[subprocess.Popen[bytes]] = []
        self.host, self.port = host, _free_port()
        self.address = f"{host}:{self.port}"
        self.env = QUICK | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": self.address,
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_DEDUP_LOGS": "0",
        }
        self._start(
            [
                "--head",
                f"--port={self.port}",
                f"--temp-dir={self.folder}/t",
                "--include-dashboard=false",
            ],
            host,
            cpus=0,
            gpus=0,
            wrap=wrap,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(
        self, *, cpus: int = 0, gpus: int = 0, host: str | None = None, wrap: Sequence[str] = (),
        resources: str = "",
    ) -> int:  # fmt: skip
        """Another node, ready; `wrap` is a command that starts it somewhere else. Returns its number."""
        words = [f"--address={self.address}"]
        if resources:
            words.append(f"--resources={resources}")
        return self._start(words, host or self.host, cpus=cpus, gpus=gpus, wrap=wrap)

    def pids(self, node: int | None = None, *, named: str = "") -> list[int]:
        """Processes of a node (None: of all), those whose command line has a word."""
        mark = f"RAY_NODES={self._mark}-{'' if node is None else f'{node};'}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes() and (
                    named.encode() in (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                ):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def kill(self, node: int | None = None, *, named: str = "") -> int:
        """SIGKILL to all of them, at once; how many there were."""
        found = self.pids(node, named=named)
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(found)

    def close(self) -> None:
        """End everything that was ever started on these nodes."""
        deadline = time.monotonic() + 20
        while self.pids() and time.monotonic() < deadline:
            self.kill()
            time.sleep(0.1)
        for process in self._started:
            process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(
        self, words: list[str], host: str, *, cpus: int, gpus: int, wrap: Sequence[str]
    ) -> int:
        number = len(self._started)
        command = [
            *wrap, sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start",
            *words, f"--node-ip-address={host}", f"--num-cpus={cpus}", f"--num-gpus={gpus}",
            "--disable-usage-stats", "--object-store-memory=80000000", "--block",
        ]  # fmt: skip
        log = self.folder / f"node-{number}.log"
        for _ in range(TRIES):  # on a busy machine Ray's own deadlines pass at times
            with log.open("wb") as out:
                process = subprocess.Popen(
                    command,
                    env=os.environ | self.env | {"RAY_NODES": f"{self._mark}-{number};"},
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            deadline = time.monotonic() + READY_WITHIN_S
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in log.read_text(errors="replace"):
                    self._started.append(process)
                    return number
                time.sleep(0.05)
            self.kill(number)
            process.wait(20)
        said = log.read_text(errors="replace")
        self.close()
        raise RuntimeError(f"ray node {number} did not start in {TRIES} tries:\n{said}")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
