"""Slots on the nodes of a Ray cluster: one actor per attempt, which keeps the runner beside it.

It must not know what a trial is about. Ray places, isolates and notices lost nodes; what a loss means
and whether it is tried again is ours (no retries of Ray's), and limits are the runner's, as everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper.errors import DeviceUnusable, DiskUnusable, EnvironmentUnusable
from sweeper.executors.base import Slot, Submitted
from sweeper.executors.node import PARCEL_FILES
from sweeper.executors.ray_layout import NAMESPACE, Layout, Node, connect, first_line, only_on, want
from sweeper.paths import AttemptPaths, make_private, write_whole
from sweeper.spec import AttemptSpec

LEASE_S = 60.0
"""How long a node that the cluster's head cannot reach goes on with what it runs."""
MARGIN_S = 10.0
"""What is added to lease and grace before an attempt on a lost node counts as ended."""
PLACE_WITHIN_S = 30.0
"""How long Ray may take to start an actor before people hear of it; it is waited for on and on."""
AGAIN_AFTER_S = 1.0
COLLECT_WITHIN_S = 120.0


@dataclass
class _Flight:
    """An attempt on a node (by its id). `answer` is the reference to what its keeper will say next.

    `heard_at` is when it last said something, `fence_s` how long after that something of it may still
    run, `longest_s` how long it can last at all; `lost` says what became of it.
    """

    submitted: Submitted
    keeper: Any
    node: str
    shared: bool
    fence_s: float
    answer: Any = None
    heard_at: float = field(default_factory=time.monotonic)
    again_at: float = 0.0
    longest_s: float = math.inf
    heard: bool = False
    waited_for: bool = False
    lost: str = ""


class RayExecutor:
    """Runs attempts on a Ray cluster's nodes of one kind; a trial has whole GPUs, or a processor each.

    Where the home folder is not on a disk that the nodes share, files go there and come back through
    Ray. `note` hears what people should know.
    """

    def __init__(
        self,
        *,
        gpus: int,
        home: Path,
        address: str | None = None,
        kind: str | None = None,
        slots: int | None = None,
        lease_s: float = LEASE_S,
        place_within_s: float = PLACE_WITHIN_S,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connect, and look at every node.

        Raises:
            EnvironmentUnusable: Ray is not installed, or there is no cluster at the address.
            DeviceUnusable: no node can run anything, or they are of several kinds and none is named.
        """
        self._gpus, self._home = gpus, home
        self._most, self._lease_s, self._note = slots, lease_s, note
        self._place_within_s = place_within_s
        self._flights: dict[str, _Flight] = {}
        self._ray = connect(address)
        if slots:
            want(slots, gpus)
        self._layout = Layout(self._ray, gpus=gpus, home=home, kind=kind, most=slots, note=note)
        if not self._layout.slots:
            raise DeviceUnusable(self._layout.why_none())

    # -- the seam --------------------------------------------------------------------------------

    def slots(self) -> Sequence[Slot]:
        """All places on the nodes that are there now; nodes come and go."""
        self._layout.refresh()
        return self._layout.slots

    def trouble(self, slot: Slot) -> str:
        """See `Executor.trouble`; what the node's own devices say, its runner finds out."""
        return self._layout.trouble(slot)

    def submit(self, spec: Path, slot: Slot) -> None:
        """Send an attempt to a slot's node.

        Raises:
            EnvironmentUnusable: it needs a checkpoint, and the node has no way to it; or Ray refuses.
            DiskUnusable: its files cannot be read.
        """
        node, place, of = self._layout.place(slot)
        asked = AttemptSpec.read(spec)
        if not node.shared and (asked.start_from or asked.continues):
            raise EnvironmentUnusable(
                f"{asked.trial} goes on from a checkpoint, and {node.name} does not share "
                f"{self._home}: put --home on a disk that every node has"
            )
        try:
            files = None if node.shared else _files(spec.parent)
        except OSError as error:
            raise DiskUnusable(f"{spec.parent}: {error.strerror}") from None
        parcel = {
            "folder": str(spec.parent),
            "files": files,
            "python": sys.executable,
            "place": place,
            "of": of,
            "node": node.name,
            "lease_s": self._lease_s,
        }
        options: dict[str, Any] = {
            "name": _name(spec.parent),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": only_on(node.id),
            **({"num_gpus": self._gpus, "num_cpus": 0} if self._gpus else {"num_cpus": 1}),
        }
        from sweeper.executors.ray_node import RayKeeper  # noqa: PLC0415

        try:
            keeper = self._ray.remote(RayKeeper).options(**options).remote(parcel)
        except ValueError as error:
            raise EnvironmentUnusable(f"{asked.trial}: Ray refuses its actor: {error}") from None
        self._follow(Submitted(spec.parent, slot), keeper, node, asked)

    def adopt(self, folder: Path) -> Slot | None:
        """Take over an attempt whose keeper an earlier orchestrator started.

        Where its keeper is lost but its folder shared, it counts as running until its lease must have
        ended.
        """
        paths = AttemptPaths(folder)
        try:
            spec = AttemptSpec.read(paths.spec)
        except (OSError, ValueError):
            return None
        try:
            keeper = self._ray.get_actor(_name(folder), namespace=NAMESPACE)
        except ValueError:
            return self._outlast(paths, spec)
        node = self._layout.named(spec.device.get("node"))
        if node is None:
            return None
        known = next((s for s in self._layout.slots if s.name == spec.device.get("slot")), None)
        slot = known or Slot(f"adopted:{folder}", spec.device, {})
        self._follow(Submitted(folder, slot), keeper, node, spec)
        return slot

    def wait(self, timeout_s: float) -> Sequence[Submitted]:
        """Attempts that have ended, or that are lost and cannot be running any more."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._layout.refresh()
            gone = [f for f in list(self._flights.values()) if self._is_over(f)]
            if gone:
                return [self._let_go(flight) for flight in gone]
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return []
            waiting = [f.answer for f in self._flights.values() if f.answer is not None]
            if waiting:
                self._ray.wait(waiting, num_returns=1, timeout=min(left_s, 0.5))
            else:
                time.sleep(min(left_s, 0.1))

    def close(self) -> None:
        """Leave the cluster; keepers and their runners stay."""
        self._flights.clear()
        if self._ray.is_initialized():
            if self._most:
                want(0, self._gpus)
            self._ray.shutdown()

    # -- one attempt -----------------------------------------------------------------------------

    def _follow(self, submitted: Submitted, keeper: Any, node: Node, spec: AttemptSpec) -> None:
        lease_s = spec.lease_s or self._lease_s  # adopted: what the command before this one gave it
        fence_s = lease_s + spec.grace_s + MARGIN_S
        flight = _Flight(submitted, keeper, node.id, node.shared, fence_s)
        flight.longest_s = fence_s + spec.startup_s + spec.trial_s + spec.grace_s
        self._flights[str(submitted.folder)] = flight
        self._ask(flight)

    def _ask(self, flight: _Flight) -> None:
        """The next turn: what is wanted goes there, what is new comes back."""
        paths = AttemptPaths(flight.submitted.folder)
        control, offset = "", 0
        if not flight.shared:
            with contextlib.suppress(OSError):
                control = paths.control.read_text(encoding="utf-8")
            with contextlib.suppress(OSError):
                offset = paths.events.stat().st_size
        flight.answer = flight.keeper.turn.remote(control, offset)

    def _is_over(self, flight: _Flight) -> bool:
        if flight.lost:
            return self._is_fenced(flight)
        if flight.answer is None and time.monotonic() >= flight.again_at:
            self._ask(flight)
        if flight.answer is None or not self._ray.wait([flight.answer], timeout=0)[0]:
            return self._is_lost_in_silence(flight)
        try:
            answer = self._ray.get(flight.answer)
            flight.heard_at, flight.heard = time.monotonic(), True
            if not answer["ended"]:
                self._take(flight, answer)
                self._ask(flight)
                return False
            self._collect(flight)
        except self._ray.exceptions.RayError as error:
            if self._may_answer_yet(flight, error):
                return False
            self._layout.refresh(now=True)  # nothing more is sent there
            return self._lose(flight, _fate(error, self._layout.name_of(flight.node)))
        return True

    def _is_lost_in_silence(self, flight: _Flight) -> bool:
        """A node that is gone, that does not give the place, or that was not heard of for too long."""
        silent_s = time.monotonic() - flight.heard_at
        if not self._layout.is_alive(flight.node):
            return self._lose(flight, f"its node {self._layout.name_of(flight.node)} was lost")
        if flight.heard and silent_s > flight.longest_s:
            why = f"nothing was heard of it for {silent_s:.0f} s, longer than it may last"
            return self._lose(flight, why)
        if not flight.heard and silent_s > self._place_within_s and not flight.waited_for:
            flight.waited_for = True
            self._note(
                f"{flight.submitted.folder.parent.name}: Ray has not given it its place on "
                f"{self._layout.name_of(flight.node)} for {silent_s:.0f} s; others on the cluster may "
                "have it"
            )
        return False

    def _may_answer_yet(self, flight: _Flight, error: Exception) -> bool:
        """A node that cannot be reached right now: ask again, and send nothing else there meanwhile."""
        now = time.monotonic()
        silent = now - flight.heard_at > flight.fence_s
        if not isinstance(error, self._ray.exceptions.ActorUnavailableError) or silent:
            return False
        self._layout.did_not_answer(flight.node)
        flight.answer, flight.again_at = None, now + AGAIN_AFTER_S
        return True

    def _lose(self, flight: _Flight, why: str) -> bool:
        """Give an attempt up: over now, or when nothing of it can run any more (people hear why)."""
        flight.lost = why
        if self._is_fenced(flight):
            return True
        left_s = flight.fence_s - (time.monotonic() - flight.heard_at)
        self._note(
            f"{flight.submitted.folder.parent.name}: {why}; what still runs there ends with its lease, "
            f"which is waited for, {left_s:.0f} s at most (SWEEP_RAY_LEASE_S)"
        )
        return False

    def _is_fenced(self, flight: _Flight) -> bool:
        """Whether a lost attempt can leave nothing any more that would be counted.

        Without a shared folder nothing of it can arrive. With one, its runner may live until its lease
        has ended, unless it has left its outcome before: a node that the cluster counts as dead may
        be one that it cannot reach, and the lease file is dated by a clock that need not be ours.
        """
        if not flight.shared or AttemptPaths(flight.submitted.folder).outcome.exists():
            return True
        return time.monotonic() - flight.heard_at > flight.fence_s

    def _take(self, flight: _Flight, answer: Mapping[str, Any]) -> None:
        if flight.shared:
            return
        paths = AttemptPaths(flight.submitted.folder)
        with contextlib.suppress(OSError):  # it all comes back at the end
            if answer["running"] and not paths.running.exists():
                write_whole(paths.running, answer["running"], lasting=False)
            if answer["events"]:
                with paths.events.open("ab") as file:
                    file.write(answer["events"])

    def _collect(self, flight: _Flight) -> None:
        """Carry back what there is to carry, the outcome last, and give the device back."""
        paths = AttemptPaths(flight.submitted.folder)
        if not flight.shared and not paths.outcome.exists():
            found = self._ray.get(flight.keeper.collect.remote(), timeout=COLLECT_WITHIN_S)
            files: dict[str, bytes] = found["files"]
            for name in sorted(files, key=lambda n: n == paths.outcome.name):
                _put(paths.folder / name, files[name])
            if found["left"]:
                self._note(
                    f"{paths.folder.parent.name}: too large to carry back, and gone with its node's "
                    f"copy: {', '.join(found['left'])}"
                )
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(flight.keeper.forget.remote(), timeout=COLLECT_WITHIN_S)

    def _let_go(self, flight: _Flight) -> Submitted:
        del self._flights[str(flight.submitted.folder)]
        with contextlib.suppress(Exception):  # it may be unreachable: then its lease ends it
            self._ray.kill(flight.keeper, no_restart=True)
        return replace(flight.submitted, fate=flight.lost)

    def _outlast(self, paths: AttemptPaths, spec: AttemptSpec) -> Slot | None:
        """A place for an attempt that nobody keeps, until its runner must have ended with its lease."""
        if spec.lease_s is None or not paths.lease.exists() or paths.outcome.exists():
            return None
        slot = Slot(f"adopted:{paths.folder}", spec.device, {})
        fence_s = spec.lease_s + spec.grace_s + MARGIN_S
        flight = _Flight(Submitted(paths.folder, slot), None, "", shared=True, fence_s=fence_s)
        self._lose(flight, "its keeper was gone when the command was given again")
        self._flights[str(paths.folder)] = flight
        return slot


def kinds(gpus: int, home: Path, address: str | None) -> tuple[str, ...]:
    """The kinds of a cluster's nodes that can run trials of so many GPUs.

    Raises:
        EnvironmentUnusable, DeviceUnusable: as `RayExecutor`.
    """
    ray = connect(address)
    try:
        layout = Layout(ray, gpus=gpus, home=home, kind="", most=None, note=lambda _: None)
    finally:
        ray.shutdown()
    if not layout.slots:
        raise DeviceUnusable(layout.why_none())
    return layout.kinds


def _name(folder: Path) -> str:
    """The actor's name: every orchestrator of this home finds the attempt by it."""
    return f"sweep-{hashlib.sha256(str(folder).encode()).hexdigest()[:24]}"


def _files(folder: Path) -> dict[str, bytes]:
    return {n: (folder / n).read_bytes() for n in PARCEL_FILES if (folder / n).exists()}


def _put(path: Path, data: bytes) -> None:
    """A carried file, whole."""
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.carried")
    temporary.write_bytes(data)
    temporary.chmod(0o600)
    temporary.replace(path)


def _fate(error: Exception, node: str) -> str:
    """What became of an attempt whose keeper is gone, in a sentence."""
    kind = type(error).__name__
    if "NodeDied" in kind:
        return f"its node {node} was lost"
    if "Died" in kind or "Unavailable" in kind or "Crashed" in kind:
        return f"its worker process on {node} died ({first_line(error)})"
    return f"its keeper on {node} failed: {first_line(error)}"
