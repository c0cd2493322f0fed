"""An attempt's keeper on another machine: starts its runner there, renews its lease, carries its files.

It must not know the cluster that put it there: plain values go in and come out, so that all of it can
be tried without one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper import __version__
from sweeper.devices import find_cores, find_gpus
from sweeper.executors.local import (
    NOT_FOR_TRAINERS,
    cpu_slots,
    end_orphans,
    gpu_slots,
    import_path,
    read_identity,
    runner_command,
)
from sweeper.executors.warm import kept_environment
from sweeper.fingerprint import machine
from sweeper.paths import AttemptPaths, make_private, write_json, write_whole
from sweeper.spec import AttemptSpec

TURN_S = 1.0
"""How long a turn waits for the end of the attempt before it says what is new."""
PIECE_BYTES = 1 << 20
"""So much of the event stream goes back in one turn."""
CARRY_BYTES = 256 << 20
"""A run folder without a shared disk goes back through memory: this much of it, small files first."""
RENEWALS = 6
"""The lease is renewed so many times in its length."""
PARCEL_FILES = ("spec.json", "config.toml")
NOT_CARRIED = (*PARCEL_FILES, "lease", "control.json")
NOT_FROM_NODES = (*NOT_FOR_TRAINERS, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def look(folder: str, mark: str) -> dict[str, Any]:
    """What a node says of itself; `mark` is the content of a file that shows a shared folder.

    `gpus` are the names of all its GPUs, "" where no driver shows one; `host` is its own name.
    """
    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # a task without GPUs is shown none
    try:
        gpus = find_gpus().gpus
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    try:
        shared = Path(folder).read_text(encoding="ascii") == mark
    except (OSError, ValueError):
        shared = False
    return {
        "sweep": __version__,
        "host": socket.gethostname(),
        "gpus": ", ".join(sorted({g.name for g in gpus})),
        "processor": str(machine()["processor"]),
        "shared": shared,
    }


class Keeper:
    """One attempt on this node. Its runner dies (by TERM, which ends the trainer) with this process.

    `parcel` has `folder` (the attempt's run folder where it was planned), `files` (name: bytes of what
    stands in it; None where that very folder is here too), `python` (the interpreter that it names),
    `gpus` (ids of those given to it; empty: processors), `place` and `of` (the how-manieth of
    how many attempts at once on this host), `node` (its name) and `lease_s`. `reaches` returns when the
    cluster's head has answered, and raises or hangs when it has not.

    Raises:
        OSError: the run folder cannot be written.
        SpecError: the spec cannot be read.
    """

    def __init__(self, parcel: Mapping[str, Any], reaches: Callable[[], object]) -> None:
        self._parcel, self._lease_s = parcel, float(parcel["lease_s"])
        self._shared = parcel["files"] is None
        self.paths = AttemptPaths(
            Path(parcel["folder"]) if self._shared else _own_folder(str(parcel["folder"]))
        )
        self._control = ""
        self._read = 0
        if not self._shared:
            self._unpack(parcel["files"])
        spec = self._at_home(AttemptSpec.read(self.paths.spec))
        write_json(self.paths.spec, spec.to_json(), lasting=False)
        self._renew()
        self._runner = self._start()
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(self._runner.pid)
        self._done = threading.Event()
        threading.Thread(target=self._renew_while, args=(reaches,), daemon=True).start()

    # -- what the executor asks ------------------------------------------------------------------

    def turn(self, control: str, offset: int, most_s: float = TURN_S) -> dict[str, Any]:
        """Pass on what is wanted (control.json's text), and say what is new after at most `most_s`.

        Answers `ended` (the runner has gone), `device` (what the attempt got here) and, without a shared
        folder, `events` (bytes of events.jsonl from `offset`) and `running` (running.json's text).
        """
        self._renew()
        if control and control != self._control and not self._shared:
            write_whole(self.paths.control, control, lasting=False)
            self._control = control
        ended = self._wait(most_s)
        answer: dict[str, Any] = {"ended": ended, "device": self.device}
        if not self._shared:
            answer["events"] = _piece(self.paths.events, offset)
            answer["running"] = _text(self.paths.running)
        return answer

    def collect(self) -> dict[str, Any]:
        """`files`: every file of the run folder by its relative name; `left`: what was too large."""
        found = sorted(
            (p for p in self.paths.folder.rglob("*") if p.is_file() and not p.is_symlink()),
            key=lambda p: p.stat().st_size,
        )
        files, left, total = {}, [], 0
        for path in found:
            name = str(path.relative_to(self.paths.folder))
            if name in NOT_CARRIED or path.name.startswith("."):
                continue
            total += path.stat().st_size
            if total > CARRY_BYTES:
                left.append(name)
            else:
                files[name] = path.read_bytes()
        return {"files": files, "left": left}

    def forget(self) -> None:
        """What was carried back is not needed here any more."""
        self._done.set()
        if not self._shared:
            shutil.rmtree(self.paths.folder, ignore_errors=True)

    @property
    def ended(self) -> bool:
        """Whether the runner has gone."""
        return self._runner.poll() is not None

    # -- what it is made of ----------------------------------------------------------------------

    def _unpack(self, files: Mapping[str, bytes]) -> None:
        """The attempt's files here, with this folder's path where they name the one of their plan."""
        shutil.rmtree(self.paths.folder, ignore_errors=True)
        make_private(self.paths.folder)
        there, here = str(self._parcel["folder"]), str(self.paths.folder)
        for name, data in files.items():
            text = data.decode().replace(json.dumps(there)[1:-1], json.dumps(here)[1:-1])
            write_whole(self.paths.folder / name, text, lasting=False)

    def _at_home(self, spec: AttemptSpec) -> AttemptSpec:
        """The spec as it is to be run here: this node's device, interpreter and lease."""
        device, env = self._place()
        self.device = {**spec.device, **device, "node": self._parcel["node"]}
        argv = [sys.executable if word == self._parcel["python"] else word for word in spec.argv]
        return replace(
            spec, device=self.device, env={**spec.env, **env}, argv=argv, lease_s=self._lease_s
        )

    def _place(self) -> tuple[dict[str, Any], dict[str, str]]:
        ids, place, of = list(self._parcel["gpus"]), self._parcel["place"], self._parcel["of"]
        cores = find_cores()
        if not ids:
            slot = cpu_slots(cores, max(of, place + 1))[0][place]
            return dict(slot.device), dict(slot.env)
        share = max(1, len(cores) // of)
        mine = [cores[(place * share + i) % len(cores)] for i in range(share)]
        if gpus := _given(ids):
            slot = gpu_slots(gpus, len(gpus), mine)[0][0]
            return {**slot.device, "cores": sorted(mine)}, dict(slot.env)
        # GPUs that the cluster counts and no driver shows: told apart by the names that it gave them
        names = ",".join(f"{self._parcel['node']}-{i}" for i in ids)
        device = {"kind": "cuda", "uuid": names, "index": _index(ids[0]), "cores": sorted(mine)}
        if of > len(cores):
            device["shared"] = True
        env = dict(cpu_slots(cores, 1)[0][0].env)
        return device, env | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, ids))}

    def _start(self) -> subprocess.Popen[bytes]:
        """The runner, in a session of its own. Having a lease, it has the kernel end it when we end."""
        log = os.open(
            self.paths.runner_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            return subprocess.Popen(
                runner_command(self.paths.spec),
                env=kept_environment(NOT_FROM_NODES) | import_path(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _wait(self, most_s: float) -> bool:
        """Whether the runner has gone within so long; what it left running is ended then."""
        if not self.ended:
            poll = select.poll()
            if self._pidfd is not None:
                poll.register(self._pidfd, select.POLLIN)
            poll.poll(most_s * 1e3)
        if not self.ended:
            return False
        identity = read_identity(self.paths.folder)
        if identity is not None:
            end_orphans(identity)
        return True

    def _renew(self) -> None:
        with contextlib.suppress(OSError):  # a folder that is gone ends the attempt by itself
            self.paths.lease.touch(0o600)
            os.utime(self.paths.lease)

    def _renew_while(self, reaches: Callable[[], object]) -> None:
        """Renew the lease as long as the head answers: a node that is cut off ends what it runs."""
        while not self._done.wait(self._lease_s / RENEWALS):
            with contextlib.suppress(Exception):
                reaches()
                self._renew()

    _pidfd: int | None = None


def _own_folder(planned: str) -> Path:
    """Where an attempt lives on a node that does not have its run folder: this user's, by its name."""
    digest = hashlib.sha256(planned.encode()).hexdigest()[:16]
    root = Path(tempfile.gettempdir()) / f"sweep-{os.getuid()}"
    make_private(root)
    if root.stat().st_uid != os.getuid() or root.is_symlink():
        raise PermissionError(f"{root} belongs to somebody else")
    return root / digest


def _given(ids: Sequence[str]) -> tuple[Any, ...]:
    """This node's GPUs of these ids (indices or UUIDs), in their order; none without a driver."""
    visible = {str(g.index): g for g in find_gpus().gpus} | {g.uuid: g for g in find_gpus().gpus}
    found = tuple(visible[i] for i in map(str, ids) if i in visible)
    return found if len(found) == len(ids) else ()


def _index(name: str) -> int:
    return int(name) if str(name).isdigit() else 0


def _piece(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except OSError:
        return b""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
