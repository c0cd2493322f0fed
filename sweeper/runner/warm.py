"""The warm parent: imports a trainer once, then forks a runner for each spec that it is sent.

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
from typing import Any, NoReturn

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


def serve(link: socket.socket) -> None:
    """Answer requests until the other end closes."""
    with link.makefile("r", encoding="utf-8") as requests:
        for line in requests:
            try:
                request = json.loads(line)
                if (count := threads()) > 1:  # they would be missing in the child, locks and all
                    _answer(link, {"error": f"{count} threads after the imports"})
                    continue
                pid = os.fork()
            except (OSError, ValueError) as error:
                _answer(link, {"error": str(error)})
                continue
            if pid == 0:
                requests.close()
                link.close()
                _become_runner(request)
            _answer(link, {"pid": pid})


def _become_runner(request: Mapping[str, Any]) -> NoReturn:
    """In the child: be what `python -m sweeper.runner SPEC` would have been."""
    code = 1
    try:
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
