"""How a trainer is started: its environment, its session, its processors, its files.

It must not know what becomes of it; a trainer that cannot be started is a message for people.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeper.paths import AttemptPaths
from sweeper.runner import processes
from sweeper.spec import AttemptSpec

KILL_ME_FIRST = 300
"""The trainer's oom_score_adj: short of memory, the kernel takes it and not what watches it."""


PRELOADED: set[str] = set()
"""Modules that this process has imported beforehand (`warm`): their trainers are forked, not started."""


class Trainer(Protocol):
    """A started trainer: a child of this process."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    returncode: int | None


@dataclass
class Forked:
    """A trainer that was forked from this process."""

    pid: int
    returncode: int | None = None


class StartError(Exception):
    """The trainer cannot be started; the message says why and what to do."""


def environment(spec: AttemptSpec, paths: AttemptPaths, token: str) -> dict[str, str]:
    """The trainer's environment: ours, the protocol's variables, the spec's, and the token.

    On several devices also MASTER_ADDR and MASTER_PORT, where its processes can meet.
    """
    wanted: dict[str, str | None] = {
        "PYTHONUNBUFFERED": "1",
        "SWEEP_EVENTS": str(paths.raw_events),
        "SWEEP_RUN_DIR": str(paths.folder),
        "SWEEP_TARGET": None if spec.target is None else repr(spec.target),
        "SWEEP_MAX_STEPS": str(spec.max_steps),
    }
    if "," in str(spec.device.get("uuid", "")):  # several processes will have to find one another
        wanted |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    wanted |= spec.env | {processes.MARKER: token}
    kept = {k: v for k, v in os.environ.items() if k not in wanted}
    return kept | {k: v for k, v in wanted.items() if v is not None}


def _free_port() -> int:
    """A port that nobody listens on now: attempts on other devices of this machine get others."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(spec: AttemptSpec, paths: AttemptPaths, token: str) -> Trainer:
    """Start the trainer in a session of its own, with its output straight into files.

    Where its module has been imported here beforehand it is forked, otherwise started anew.

    It dies with the calling thread, so that must be the runner's main thread. No shell, ever.

    Raises:
        StartError: command or folder do not exist, or may not be used.
        OSError: its log files cannot be created.
    """
    if not spec.argv:
        raise StartError("[trainer] command is empty: it cannot be started")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    runner, cores = os.getpid(), spec.device.get("cores")

    def in_child() -> None:
        processes.die_with(runner)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if cores:
            with contextlib.suppress(OSError, AttributeError, TypeError, ValueError):
                os.sched_setaffinity(0, cores)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(KILL_ME_FIRST), encoding="ascii")

    out = os.open(paths.stdout, flags, 0o600)
    err = os.open(paths.stderr, flags, 0o600)
    try:
        if spec.argv[:2] == [sys.executable, "-m"] and spec.argv[2] in PRELOADED:
            return _fork(spec, environment(spec, paths, token), in_child, out, err)
        return subprocess.Popen(
            spec.argv,
            cwd=spec.cwd,
            env=environment(spec, paths, token),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=in_child,  # noqa: PLW1509 - the runner has one thread
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise StartError(_explain(error, spec)) from None
    finally:
        os.close(out)
        os.close(err)


def _fork(
    spec: AttemptSpec, env: Mapping[str, str], in_child: Callable[[], None], out: int, err: int
) -> Forked:
    """Fork, and be `python -m MODULE ...` in the child: same session, files, folder, environment."""
    if not Path(spec.cwd).is_dir():
        raise FileNotFoundError(spec.cwd)
    pid = os.fork()
    if pid:
        return Forked(pid)
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, out), (2, err)):
            os.dup2(source, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        in_child()
        os.chdir(spec.cwd)
        processes.mark_self(env[processes.MARKER])
        os.environ.clear()
        os.environ.update(env)
        for stream in (sys.stdout, sys.stderr):  # as PYTHONUNBUFFERED would have made them
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=True)
        sys.argv = [spec.argv[2], *spec.argv[3:]]
        runpy.run_module(spec.argv[2], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            sys.stderr.write(f"{left.code}\n")
    except BaseException:  # noqa: BLE001 - what an interpreter would do at its end
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _explain(error: Exception, spec: AttemptSpec) -> str:
    command = spec.argv[0]
    if isinstance(error, OSError) and not Path(spec.cwd).is_dir():
        return f"[trainer] cwd: {spec.cwd!r} is no folder; the trainer cannot be started in it"
    if isinstance(error, FileNotFoundError) and (Path(spec.cwd) / command).is_file():
        return f"[trainer] command: the interpreter in the first line of {command!r} does not exist"
    if isinstance(error, FileNotFoundError):
        return (
            f"[trainer] command: {command!r} does not exist (looked in PATH and in {spec.cwd}); "
            "give the full path of a program, or {python} for the interpreter that runs sweep"
        )
    if isinstance(error, PermissionError):
        return (
            f"[trainer] command: {command!r} may not be executed; chmod +x, or put {{python}} first"
        )
    return f"[trainer] command: {command!r} cannot be started: {error}"


def step_aside(cores: object) -> None:
    """Keep the runner itself off the trainer's processors, if there are others, and behind it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        os.nice(5)
        others = os.sched_getaffinity(0) - set(_whole_numbers(cores))
        if others:
            os.sched_setaffinity(0, others)


def _whole_numbers(value: object) -> Mapping[int, None]:
    return dict.fromkeys(v for v in value if isinstance(v, int)) if isinstance(value, list) else {}
