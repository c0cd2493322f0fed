"""A seeded monkey: while a sweep runs, it kills, stops, fills, cuts and tears what the sweep needs.

It must not know what is promised about the result; every fault is logged with its time and target.
The seed decides which faults come in which order; whom they hit depends on what runs at that moment.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from sweeper.errors import SweepError
from sweeper.runner import processes
from sweeper.storage import embedded
from tests.chaos.arena import COMPLETE, Arena

LONGEST_WAIT_S = 2.5
"""For so long a fault waits for its turn when the sweep makes no progress."""
TARGET_WITHIN_S = 10.0
"""For so long a fault waits for an attempt to be under way; most are pointless without."""
SPREAD_OVER = 0.8
"""The share of the trials over which the faults are spread; the sweep must not end before they do."""
RUN_WITHIN_S = 900.0
COLD = 0.3
"""The share of orchestrators that are told to start every trainer anew."""

# How often each fault is chosen, relative to the others.
WEIGHTS = {
    "kill_orchestrator": 16,
    "interrupt": 4,
    "interrupt_twice": 4,
    "pause_orchestrator": 5,
    "intrude": 3,
    "kill_runner": 16,
    "kill_trainer": 12,
    "kill_warm_parent": 6,
    "pause_warm_parent": 3,
    "kill_everybody": 3,
    "pause_runner": 8,
    "pause_trainer": 6,
    "tear_control": 4,
    "delete_folder": 4,
    "fill_disk": 5,
    "kill_postmaster": 5,
    "kill_backend": 4,
    "kill_supervisor": 4,
    "pause_postgres": 4,
    "cut_socket": 4,
    "crowd_database": 3,
}
TORN = (b"", b"{", b'{"v": 1, "cancel": tr', b"\xff\xfe\x00", b'{"v": 1, "cap_s": -3}', b"[1]")


@dataclass(frozen=True)
class Fault:
    """One thing that was done: when (wall clock), to whom, and for how long it lasted."""

    kind: str
    at: float
    target: str
    lasted_s: float = 0.0


@dataclass
class Monkey:
    """Runs one arena's stage to its end under `faults` faults, and remembers what it did."""

    arena: Arena
    seed: int
    faults: int
    trials: int
    say: Callable[[str], None] = lambda _: None
    done: list[Fault] = field(default_factory=list)
    gone: set[Path] = field(default_factory=set)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.main = None
        weights = dict(WEIGHTS)
        if not os.path.ismount(self.arena.home / "runs"):
            del weights["fill_disk"]
        self.order = self.draw.choices(list(weights), list(weights.values()), k=self.faults)
        for i, kind in enumerate(weights):  # each at least once, where there is room
            if len(weights) <= self.faults and kind not in self.order:
                self.order[(i * 7) % self.faults] = kind

    @property
    def counts(self) -> dict[str, int]:
        """How many faults of each kind were done."""
        return dict(sorted(Counter(f.kind for f in self.done).items()))

    def run(self) -> int:
        """All faults, and then undisturbed to the stage's end; returns the last exit code."""
        deadline = time.monotonic() + RUN_WITHIN_S
        self._start()
        while len(self.done) < self.faults and time.monotonic() < deadline:
            if self._await_turn():
                break  # it is complete: nobody is left to maltreat
            self._one(self.order[len(self.done)])
        while time.monotonic() < deadline:
            code = self._await_exit(deadline)
            if code in COMPLETE:
                return code
            self._start()
        raise AssertionError(f"the sweep did not end in {RUN_WITHIN_S:g} s (exits {self.exits})")

    # -- turns -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self.main = self.arena.start(cold=self.draw.random() < COLD)

    def _await_exit(self, deadline: float) -> int:
        try:
            code = self.main.wait(max(0.1, deadline - time.monotonic()))
        except Exception as error:
            raise AssertionError("the last orchestrator did not end") from error
        self.exits.append(code)
        return code

    def _await_turn(self) -> bool:
        """Until the sweep has gone on a little, or hangs; True when it is complete.

        Faults are spread over the trials that are left, so that none is left over at the end.
        """
        before = self.arena.outcomes()
        left = max(1, self.faults - len(self.done))
        wanted = before + max(0.0, (SPREAD_OVER * self.trials - before) / left)
        began = time.monotonic()
        while True:
            code = self.main.poll()
            if code is not None:
                self.exits.append(code)
                if code in COMPLETE:
                    return True
                self._start()
            if time.monotonic() - began >= LONGEST_WAIT_S or self.arena.outcomes() >= wanted:
                return False
            time.sleep(0.05)

    def _await_attempt(self) -> None:
        """Until a trainer runs, and a random moment longer."""
        began = time.monotonic()
        while time.monotonic() - began < TARGET_WITHIN_S and self.main.poll() is None:
            if any(running["trainer"] for _, running in self.arena.under_way()):
                break
            time.sleep(0.02)
        time.sleep(self.draw.choice((0.0, 0.0, 0.1, 0.3)))

    def _one(self, kind: str) -> None:
        if kind != "kill_orchestrator" or self.draw.random() < 0.75:  # else while it starts up
            self._await_attempt()
        at, began = time.time(), time.monotonic()
        target = getattr(self, f"_{kind}")()
        if target is None:  # nobody there: whoever is always there gets it
            kind = "kill_orchestrator"
            target = self._kill_orchestrator()
        fault = Fault(kind, at, target, time.monotonic() - began)
        self.done.append(fault)
        self.say(f"{len(self.done)}/{self.faults} {fault.kind} {fault.target}")

    # -- the orchestrator ------------------------------------------------------------------------

    def _kill_orchestrator(self) -> str:
        pid = self.main.pid
        self.main.kill()
        self.exits.append(self.main.wait())
        time.sleep(self.draw.choice((0.0, 0.0, 0.3, 1.0)))
        self._start()
        return f"process {pid}"

    def _interrupt(self, times: int = 1) -> str:
        pid = self.main.pid
        for _ in range(times):
            self.main.send_signal(signal.SIGINT)
            time.sleep(self.draw.uniform(0.1, 0.4))
        began = time.monotonic()
        while self.main.poll() is None and time.monotonic() - began < 8.0:
            time.sleep(0.05)
        if self.main.poll() is None:  # it waits for a trial that hangs: fine, but not for us
            self.main.kill()
        self.exits.append(self.main.wait())
        self._start()
        return f"process {pid}, {times} times"

    def _interrupt_twice(self) -> str:
        return self._interrupt(2)

    def _pause_orchestrator(self) -> str:
        self._freeze([self.main.pid], self.draw.uniform(0.2, 1.5))
        return f"process {self.main.pid}"

    def _intrude(self) -> str | None:
        """A second orchestrator on the same study: refused, unless the first ends meanwhile."""
        intruder = self.arena.start()
        code = intruder.wait(60)
        if code != 5 and self.main.poll() is None and code not in COMPLETE:
            return f"process {intruder.pid}: exit {code}"
        return f"process {intruder.pid}"

    # -- attempts --------------------------------------------------------------------------------

    def _somebody(self, *, trainer: bool = False) -> tuple[Path, dict[str, Any]] | None:
        known = [(f, r) for f, r in self.arena.under_way() if not trainer or r["trainer"]]
        return self.draw.choice(sorted(known, key=str)) if known else None

    def _kill_runner(self) -> str | None:
        found = self._somebody()
        if found is None:
            return None
        _kill(found[1]["pid"])
        return f"runner {found[1]['pid']} of {_name(found[0])}"

    def _kill_trainer(self) -> str | None:
        found = self._somebody(trainer=True)
        if found is None:
            return None
        _kill(found[1]["trainer"])
        return f"trainer {found[1]['trainer']} of {_name(found[0])}"

    def _kill_everybody(self) -> str:
        """Every runner and the orchestrator, at once."""
        known = self.arena.under_way()
        for _, running in known:
            _kill(running["pid"])
        return f"{len(known)} runners and {self._kill_orchestrator()}"

    def _pause_runner(self) -> str | None:
        found = self._somebody()
        if found is None:
            return None
        self._freeze([found[1]["pid"]], self.draw.uniform(0.2, 2.0))
        return f"runner {found[1]['pid']} of {_name(found[0])}"

    def _pause_trainer(self) -> str | None:
        found = self._somebody(trainer=True)
        if found is None:
            return None
        self._freeze([found[1]["trainer"]], self.draw.uniform(0.2, 2.0))
        return f"trainer {found[1]['trainer']} of {_name(found[0])}"

    def _warm_parent(self) -> int | None:
        found = [p.pid for p in self.arena.warm() if p.parent == self.main.pid]
        return self.draw.choice(sorted(found)) if found else None

    def _kill_warm_parent(self) -> str | None:
        pid = self._warm_parent()
        if pid is not None:
            _kill(pid)
        return pid and f"warm parent {pid}"

    def _pause_warm_parent(self) -> str | None:
        """Sometimes for longer than anybody waits for it."""
        pid = self._warm_parent()
        if pid is not None:
            self._freeze([pid], self.draw.choice((0.3, 1.0, 5.2)))
        return pid and f"warm parent {pid}"

    def _tear_control(self) -> str | None:
        found = self._somebody()
        if found is None:
            return None
        with contextlib.suppress(OSError):
            (found[0] / "control.json").write_bytes(self.draw.choice(TORN))
        return _name(found[0])

    def _delete_folder(self) -> str | None:
        """A run folder vanishes at once, while its trial runs."""
        found = self._somebody()
        if found is None:
            return None
        grave = self.arena.home / "runs" / f".gone-{len(self.done)}"
        self.gone.add(found[0])
        try:
            found[0].rename(grave)
        except OSError:  # it was quicker
            return None
        shutil.rmtree(grave)
        return _name(found[0])

    def _fill_disk(self) -> str:
        """Not one byte is left where the run folders are, for a moment."""
        ballast = self.arena.home / "runs" / ".ballast"
        began = time.time()
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass
        time.sleep(self.draw.uniform(0.3, 1.5))
        ballast.unlink()
        self.pauses.append((began, time.time() - began))
        return "the run folders' disk"

    # -- the database ----------------------------------------------------------------------------

    def _kill_postmaster(self) -> str | None:
        pid = embedded.status(self.arena.home).pid
        if pid is not None:
            _kill(pid)
        return pid and f"postmaster {pid}"

    def _kill_backend(self) -> str | None:
        children = self._backends()
        if not children:
            return None
        chosen = self.draw.choice(children)
        _kill(chosen)
        return f"Postgres process {chosen}"

    def _kill_supervisor(self) -> str | None:
        pid = embedded.status(self.arena.home).supervisor_pid
        if pid is not None:
            _kill(pid)
        return pid and f"supervisor {pid}"

    def _pause_postgres(self) -> str | None:
        pid = embedded.status(self.arena.home).pid
        if pid is None:
            return None
        self._freeze([pid, *self._backends()], self.draw.uniform(0.2, 2.0))
        return f"postmaster {pid} and its processes"

    def _cut_socket(self) -> str | None:
        folder = embedded.status(self.arena.home).sockets
        if folder is None:
            return None
        with contextlib.suppress(OSError):
            for path in folder.glob(".s.PGSQL.*"):
                path.unlink()
        return str(folder)

    def _crowd_database(self) -> str | None:
        """Take every connection that is left, for a moment."""
        with contextlib.ExitStack() as taken:
            count = 0  # of connections that we were given
            with contextlib.suppress(psycopg2.Error, SweepError):  # it may be on its way down
                home = self.arena.home
                server = embedded.open_server(home, purpose="a crowd", timeout_s=20)
                taken.callback(server.close)
                while count < 200:
                    url = server.url.replace("+psycopg2", "", 1)
                    taken.callback(psycopg2.connect(url, connect_timeout=2).close)
                    count += 1
            time.sleep(self.draw.uniform(0.3, 1.0))
        return f"{count} connections"

    def _backends(self) -> list[int]:
        pid = embedded.status(self.arena.home).pid
        return sorted(p.pid for p in processes.everyone() if p.parent == pid) if pid else []

    # -- signals ---------------------------------------------------------------------------------

    def _freeze(self, pids: list[int], for_s: float) -> None:
        began = time.time()
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        time.sleep(for_s)
        for pid in pids:
            _send(pid, signal.SIGCONT)
        self.pauses.append((began, time.time() - began))


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _kill(pid: int) -> None:
    _send(pid, signal.SIGKILL)


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
