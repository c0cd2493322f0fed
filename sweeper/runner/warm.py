"""The warm parent: imports a trainer once, then has a forked runner ready for each spec that it is sent.

It must not know what the module trains; it starts no threads, touches no device, and runs no trial.

A runner that is forked here finds the trainer's modules already imported, and forks the trainer in turn
(`launch.start`), so that the process tree, the limits and the kill ladder are those of a cold start:
the runner is still the trainer's parent, session by session. What is saved is the interpreter's start
and the imports (torch: a second and more a trial).

Protocol, over a socket that only the executor's process holds: one JSON line per request
`{"spec": path, "log": path, "env": {...}}`, one JSON line per answer: `{"ready": true}` once after the
imports, then `{"pid": n}` or `{"error": text}`. At end of file the warm parent leaves; its runners stay.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from sweeper.runner import launch, processes
from sweeper.runner.__main__ import main as run_spec


def threads() -> int:
    """Threads of this process: a fork takes along only the one that forks."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are enough
    return 1


def preload(module: str, folder: str) -> None:
    """Import the trainer as its command would find it, and let it import what it needs.

    A module that has a function `preload` is asked to import its heavy parts there. Without a module
    only runners are forked, and they start their trainers anew.
    """
    if module:
        sys.path.insert(0, folder)
        found = importlib.import_module(module)
        prepare = getattr(found, "preload", None)
        if callable(prepare):
            prepare()
        launch.PRELOADED.add(module)
    gc.collect()
    gc.freeze()  # the collector of a child must not touch, and so copy, what is shared with us


class Spare(NamedTuple):
    """A child, forked beforehand, that becomes a runner when it is told of a spec."""

    pid: int
    pipe: BinaryIO

    def tell(self, request: bytes) -> bool:
        """Use it, once; False when somebody has killed it meanwhile."""
        try:
            with self.pipe:
                self.pipe.write(request)
        except BrokenPipeError:
            return False
        return True


def fork_spare(link: socket.socket) -> Spare:
    """Fork the next runner: it waits for its request, and leaves when its parent goes without one.

    Raises:
        OSError: no fork, or there are threads, which would be missing in it, locks and all.
    """
    if (count := threads()) > 1:
        raise OSError(f"{count} threads after the imports")
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writes)
        os.close(link.detach())  # or nobody would see that the parent has gone
        _become_runner(reads)
    os.close(reads)
    return Spare(pid, os.fdopen(writes, "wb"))


def serve(link: socket.socket) -> None:
    """Answer requests until the other end closes; the next runner is ready before the last one ends."""
    with link.makefile("rb") as requests:
        ready = _prepare(link)
        for request in requests:
            try:
                answer: dict[str, Any] = {"pid": _begin(request, ready, link)}
            except OSError as error:
                answer = {"error": str(error)}
            _answer(link, answer)
            ready = _prepare(link)  # as this trial starts, and not while it trains


def _prepare(link: socket.socket) -> Spare | None:
    with contextlib.suppress(OSError):  # whoever asks for a runner hears of it
        return fork_spare(link)
    return None


def _begin(request: bytes, ready: Spare | None, link: socket.socket) -> int:
    """The runner that has been told; without a ready one it is forked now.

    Raises:
        OSError: no fork, or it died at once.
    """
    if ready is not None and ready.tell(request):
        return ready.pid
    made = fork_spare(link)
    if made.tell(request):
        return made.pid
    raise OSError("the runner died as soon as it was forked")


def _become_runner(reads: int) -> NoReturn:
    """In the child: wait for a request, then be what `python -m sweeper.runner SPEC` would have been."""
    code = 1
    try:
        with os.fdopen(reads, "rb") as pipe:
            line = pipe.read()
        if not line:  # the parent left
            os._exit(0)
        request = json.loads(line)
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for name in set(os.environ) - {processes.MARKER}:  # whose memory `mark_self` needs
            del os.environ[name]
        os.environ.update(request["env"])
        code = run_spec([request["spec"]])
    except BaseException:  # noqa: BLE001 - a forked child must never return into the parent's loop
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _answer(link: socket.socket, answer: Mapping[str, Any]) -> None:
    link.sendall(json.dumps(answer).encode() + b"\n")


def main(arguments: list[str]) -> int:
    """`python -m sweeper.runner.warm MODULE FOLDER DESCRIPTOR`."""
    module, folder, descriptor = arguments
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # runners are collected by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is the orchestrator's
    with socket.socket(fileno=int(descriptor)) as link:
        try:
            preload(module, folder)
        except BaseException as error:  # noqa: BLE001 - said, then the executor starts cold
            _answer(link, {"error": f"{type(error).__name__}: {error}"})
            return 1
        _answer(link, {"ready": True})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            serve(link)
    return 0


def fits(argv: list[str], module: str) -> bool:
    """Whether a command is this interpreter running this module: only that can be forked."""
    return argv[:3] == [sys.executable, "-m", module] and bool(Path(sys.executable).name)


if __name__ == "__main__":
    # run under its real name, so that `launch.PRELOADED` is the one the forked runner sees
    from sweeper.runner.warm import main as run

    sys.exit(run(sys.argv[1:]))
