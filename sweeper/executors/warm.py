"""The executor's end of a warm parent: starts it, asks it for runners, gives up on it at any fault.

It must not know what a trial is about; where it gives up, the executor starts cold, and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sweeper.runner import processes

READY_WITHIN_S = 60.0
FORK_WITHIN_S = 5.0


class WarmParent:
    """One warm parent process; `fork` answers the process id of a runner, or None: start cold.

    `fault` says why it was given up, or is empty. The imports go on while this is being made.
    """

    def __init__(self, module: str, folder: Path, env: Mapping[str, str]) -> None:
        self.fault = ""
        self._ready = False
        self._rest = b""
        self._link, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        command = [sys.executable, "-P", "-m", "sweeper.runner.warm"]
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [*command, module, str(folder), str(descriptor)],
                env=dict(env) | {processes.MARKER: processes.ROOM_FOR_MARKER},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        except OSError as error:
            self._process = None
            self.fault = f"the warm parent cannot be started: {error}"
        finally:
            theirs.close()

    def fork(self, spec: Path, log: Path, env: Mapping[str, str]) -> int | None:
        """A runner for this spec, forked; None when there is no (longer a) warm parent."""
        if not self.fault and not self._ready:
            answer = self._answer(READY_WITHIN_S)
            self._ready = bool(answer.get("ready"))
        if self.fault or not self._ready:
            self.close()
            return None
        request = {"spec": str(spec), "log": str(log), "env": dict(env)}
        try:
            self._link.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self.fault = f"the warm parent is gone: {error}"
            return None
        pid = self._answer(FORK_WITHIN_S).get("pid")
        if not isinstance(pid, int):
            self.close()
            return None
        return pid

    def close(self) -> None:
        """Let it go; runners that it forked are not touched."""
        self._link.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
            if self._process.poll() is None:  # still importing: nobody waits for that
                self._process.kill()
                self._process.wait()
            self._process = None

    def _answer(self, within_s: float) -> dict[str, object]:
        """The next answer, or nothing, with `fault` set, when it is an error or comes too late."""
        deadline = time.monotonic() + within_s
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._link], [], [], left_s)[0]:
                self.fault = f"the warm parent gave no answer in {within_s:g} s"
                return {}
            data = self._link.recv(65536)
            if not data:
                self.fault = "the warm parent died"
                return {}
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict) or "error" in answer:
            self.fault = f"the warm parent failed: {answer}"
            return {}
        return answer


def kept_environment(without: tuple[str, ...]) -> dict[str, str]:
    """This process's environment without what a trainer has no use for."""
    return {k: v for k, v in os.environ.items() if k not in without}
