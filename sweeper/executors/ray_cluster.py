"""Slots on the nodes of a Ray cluster: one actor per attempt, which keeps the runner beside it.

It must not know what a trial is about. Ray places, isolates and notices lost nodes; what a loss means
and whether it is tried again is ours (no retries of Ray's), and limits are the runner's, as everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper import __version__
from sweeper.errors import DeviceUnusable, DiskUnusable, EnvironmentUnusable
from sweeper.executors.base import Slot, Submitted
from sweeper.executors.node import PARCEL_FILES
from sweeper.paths import AttemptPaths, make_private, write_whole
from sweeper.spec import AttemptSpec

NAMESPACE = "sweep"
LEASE_S = 60.0
"""How long a node that the cluster's head cannot reach goes on with what it runs."""
MARGIN_S = 10.0
"""What is added to lease and grace before an attempt on a lost node counts as ended."""
AGAIN_AFTER_S, SHAKY_S = 1.0, 20.0
NODES_EVERY_S = 2.0
LOOK_WITHIN_S = 60.0
COLLECT_WITHIN_S = 120.0
CONNECT_WITHIN_S = 10.0


@dataclass(frozen=True)
class _Node:
    """A node that answered: what it has, and what it says of itself."""

    id: str
    name: str
    gpus: int
    cpus: int
    kind: str
    host: str
    shared: bool
    trouble: str = ""


@dataclass
class _Flight:
    """An attempt on a node. `answer` is the reference to what its keeper will say next."""

    submitted: Submitted
    keeper: Any
    node: str
    shared: bool
    fence_s: float
    answer: Any = None
    heard_at: float = field(default_factory=time.monotonic)
    again_at: float = 0.0
    lost: str = ""


class RayExecutor:
    """Runs attempts on a Ray cluster's nodes of one kind; a trial has whole GPUs, or a processor each.

    Where the home folder is not on a disk that the nodes share, files go there and come back through
    Ray. `note` hears what people should know.
    """

    kinds: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        gpus: int,
        home: Path,
        address: str | None = None,
        kind: str | None = None,
        slots: int | None = None,
        lease_s: float = LEASE_S,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connect, and look at every node.

        Raises:
            EnvironmentUnusable: Ray is not installed, or there is no cluster at the address.
            DeviceUnusable: no node can run anything, or they are of several kinds and none is named.
        """
        self._ray = _import_ray()
        self._gpus, self._home = gpus, home
        self._kind, self._most, self._lease_s, self._note = kind, slots, lease_s, note
        self._flights: dict[str, _Flight] = {}
        self._nodes: dict[str, _Node] = {}
        self._slots: tuple[Slot, ...] = ()
        self._places: dict[str, tuple[_Node, int, int]] = {}  # of a slot: node, which, of how many
        self._shaky: dict[str, float] = {}  # nodes that did not answer, and when that was
        self._alive: frozenset[str] = frozenset()
        self._looked_at = -1e9
        self._connect(address)
        if slots:
            self._want(slots)
        self._refresh()
        if not self._slots:
            raise DeviceUnusable(self._why_none())

    # -- the seam --------------------------------------------------------------------------------

    def slots(self) -> Sequence[Slot]:
        """All places on the nodes that are there now; nodes come and go."""
        self._refresh()
        return self._slots

    def trouble(self, slot: Slot) -> str:
        """See `Executor.trouble`; what the node's own devices say, its runner finds out."""
        if slot not in self._slots:
            return "its node has left the cluster"
        node = self._places[slot.name][0]
        if time.monotonic() - self._shaky.get(node.id, -1e9) < SHAKY_S:
            return "its node does not answer now"
        return ""

    def submit(self, spec: Path, slot: Slot) -> None:
        """Send an attempt to a slot's node.

        Raises:
            EnvironmentUnusable: it needs a checkpoint, and the node has no way to it; or Ray refuses.
            DiskUnusable: its files cannot be read.
        """
        node, place, of = self._places[slot.name]
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
            "scheduling_strategy": self._only_on(node.id),
            **({"num_gpus": self._gpus, "num_cpus": 0} if self._gpus else {"num_cpus": 1}),
        }
        from sweeper.executors.ray_node import RayKeeper  # noqa: PLC0415

        try:
            keeper = self._ray.remote(RayKeeper).options(**options).remote(parcel)
        except ValueError as error:
            raise EnvironmentUnusable(f"{asked.trial}: Ray refuses its actor: {error}") from None
        self._follow(Submitted(spec.parent, slot), keeper, node, asked.grace_s)

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
        node = next((n for n in self._nodes.values() if n.name == spec.device.get("node")), None)
        if node is None:
            return None
        known = next((s for s in self._slots if s.name == spec.device.get("slot")), None)
        slot = known or Slot(f"adopted:{folder}", spec.device, {})
        self._follow(Submitted(folder, slot), keeper, node, spec.grace_s)
        return slot

    def wait(self, timeout_s: float) -> Sequence[Submitted]:
        """Attempts that have ended, or that are lost and cannot be running any more."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._refresh()
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
                self._want(0)
            self._ray.shutdown()

    # -- one attempt -----------------------------------------------------------------------------

    def _follow(self, submitted: Submitted, keeper: Any, node: _Node, grace_s: float) -> None:
        fence_s = self._lease_s + grace_s + MARGIN_S
        flight = _Flight(submitted, keeper, node.id, node.shared, fence_s)
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
            if flight.node not in self._alive:
                flight.lost = f"its node {self._node_name(flight)} was lost"
            return bool(flight.lost) and self._is_fenced(flight)
        try:
            answer = self._ray.get(flight.answer)
            flight.heard_at = time.monotonic()
            if not answer["ended"]:
                self._take(flight, answer)
                self._ask(flight)
                return False
            self._collect(flight)
        except self._ray.exceptions.RayError as error:
            if self._may_answer_yet(flight, error):
                return False
            flight.lost = _fate(error, self._node_name(flight))
            self._looked_at = -1e9  # nothing more is sent there before the cluster was asked again
            return self._is_fenced(flight)
        return True

    def _may_answer_yet(self, flight: _Flight, error: Exception) -> bool:
        """A node that cannot be reached right now: ask again, and send nothing else there meanwhile."""
        now = time.monotonic()
        silent = now - flight.heard_at > flight.fence_s
        if not isinstance(error, self._ray.exceptions.ActorUnavailableError) or silent:
            return False
        self._shaky[flight.node] = now
        flight.answer, flight.again_at = None, now + AGAIN_AFTER_S
        return True

    def _is_fenced(self, flight: _Flight) -> bool:
        """Whether a lost attempt can leave nothing any more that would be counted.

        Without a shared folder nothing of it can arrive. With one, its runner may live until its lease
        has ended, unless it has left its outcome before.
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
        flight.lost = "its keeper was gone when the command was given again"
        self._flights[str(paths.folder)] = flight
        return slot

    def _node_name(self, flight: _Flight) -> str:
        node = self._nodes.get(flight.node)
        return node.name if node is not None else flight.node[:8]

    # -- the cluster -----------------------------------------------------------------------------

    def _connect(self, address: str | None) -> None:
        where = address or os.environ.get("RAY_ADDRESS") or "auto"
        _need_listener(where)  # Ray itself would go on trying for minutes
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(
                address=where, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise EnvironmentUnusable(
                f"no Ray cluster at {where}: {_first_line(error)}. Start one (`ray start --head`, see "
                "docs/scaling.md) or name it: --address HOST:PORT, RAY_ADDRESS; with "
                "RAY_AUTH_MODE=token both ends need the same token"
            ) from None

    def _want(self, places: int) -> None:
        """Ask the cluster's autoscaler, if it has one, for so many places; 0 takes that back."""
        from ray.autoscaler.sdk import request_resources  # noqa: PLC0415

        bundle = {"GPU": self._gpus} if self._gpus else {"CPU": 1}
        with contextlib.suppress(Exception):  # a cluster of fixed size has nobody to ask
            request_resources(bundles=[bundle] * places)

    def _refresh(self) -> None:
        """Look at the cluster again when that is due: nodes that came, nodes that went."""
        now = time.monotonic()
        if now - self._looked_at < NODES_EVERY_S:
            return
        self._looked_at = now
        with contextlib.suppress(self._ray.exceptions.RayError):
            rows = [row for row in self._ray.nodes() if row["Alive"]]
            alive = frozenset(row["NodeID"] for row in rows)
            new = [row for row in rows if row["NodeID"] not in self._nodes]
            if alive == self._alive and not new:
                return
            self._alive = alive
            self._nodes |= self._look_at(new)
            self._slots = self._lay_out()

    def _look_at(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, _Node]:
        """Ask each of these nodes, all at once, what it is; one that cannot say is of no use."""
        from sweeper.executors.ray_node import look_at_node  # noqa: PLC0415

        mark, folder = secrets.token_hex(16), self._home / f".seen-by-{secrets.token_hex(4)}"
        make_private(self._home)
        write_whole(folder, mark, lasting=False)
        task = self._ray.remote(look_at_node)
        asked = {
            row["NodeID"]: task.options(
                num_cpus=0, max_retries=0, scheduling_strategy=self._only_on(row["NodeID"])
            ).remote(str(folder), mark)
            for row in rows
        }
        found = {}
        try:
            deadline = time.monotonic() + LOOK_WITHIN_S
            for row in rows:
                left_s = max(0.1, deadline - time.monotonic())
                try:
                    said = self._ray.get(asked[row["NodeID"]], timeout=left_s)
                except self._ray.exceptions.RayError as error:
                    said = {"trouble": f"it cannot say what it is: {_first_line(error)}"}
                found[row["NodeID"]] = _node(row, said)
        finally:
            with contextlib.suppress(OSError):
                folder.unlink()
        for node in found.values():
            if node.trouble:
                self._note(f"node {node.name} is left out: {node.trouble}")
        return found

    def _lay_out(self) -> tuple[Slot, ...]:
        """Slots on the living nodes of our kind, numbered through where nodes share a host."""
        usable = [n for i, n in sorted(self._nodes.items()) if i in self._alive and not n.trouble]
        able = [n for n in usable if (n.gpus // self._gpus if self._gpus else n.cpus)]
        kinds = sorted({n.kind for n in able})
        self.kinds = tuple(kinds)
        if self._kind is None and len(kinds) > 1:
            counts = ", ".join(f"{k!r} ({sum(n.kind == k for n in able)} nodes)" for k in kinds)
            raise DeviceUnusable(
                f"the cluster has nodes of {len(kinds)} kinds: {counts}. Times are compared within one "
                "kind only: --node-kind NAME for one of them, --node-kind each for all, each with the "
                "whole plan"
            )
        if self._kind is None and kinds:
            self._kind = kinds[0]  # nodes of other kinds that join later are not for this sweep
        able = [n for n in able if self._kind in ("", n.kind)]
        hosts: dict[str, int] = {}
        for node in able:
            hosts[node.host] = hosts.get(node.host, 0) + self._room(node)
        seen: dict[str, int] = {}
        slots = []
        for node in able:
            for k in range(self._room(node)):
                place = seen[node.host] = seen.get(node.host, -1) + 1
                slots.append(self._slot(node, k, place, hosts[node.host]))
        return tuple(slots[: self._most])

    def _room(self, node: _Node) -> int:
        return node.gpus // self._gpus if self._gpus else node.cpus

    def _slot(self, node: _Node, k: int, place: int, of: int) -> Slot:
        name = f"{node.name}/{'gpu' if self._gpus else 'cpu'}{k}"
        device = {
            "kind": "cuda" if self._gpus else "cpu",
            "node": node.name,
            "node_kind": node.kind,
            "slot": name,
        }
        self._places[name] = (node, place, of)
        return Slot(name, device, {})

    def _only_on(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        return NodeAffinitySchedulingStrategy(node_id=node, soft=False)

    def _why_none(self) -> str:
        said = "; ".join(f"{n.name}: {n.trouble}" for n in self._nodes.values() if n.trouble)
        need = f"{self._gpus} GPU(s)" if self._gpus else "a processor"
        kinds = sorted({n.kind for n in self._nodes.values() if not n.trouble})
        asked = f" of kind {self._kind!r} (there are: {', '.join(kinds)})" if self._kind else ""
        return f"no node{asked} of the Ray cluster has {need} for a trial" + (
            f"; left out: {said}" if said else ""
        )


def kinds(gpus: int, home: Path, address: str | None) -> tuple[str, ...]:
    """The kinds of a cluster's nodes that can run trials of so many GPUs.

    Raises:
        EnvironmentUnusable, DeviceUnusable: as `RayExecutor`.
    """
    executor = RayExecutor(gpus=gpus, home=home, address=address, kind="")
    executor.close()
    return executor.kinds


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise EnvironmentUnusable(
            "--executor ray needs Ray: pip install 'sweep-ttt[ray]', here and on every node"
        ) from None
    return ray


def _need_listener(address: str) -> None:
    """Refuse HOST:PORT at which nothing listens; other forms of an address are Ray's to judge.

    Raises:
        EnvironmentUnusable: nothing answers there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise EnvironmentUnusable(
            f"no Ray cluster at {address}: {error}. Start one (`ray start --head`, see "
            "docs/scaling.md) or name another: --address HOST:PORT, RAY_ADDRESS"
        ) from None


def _node(row: Mapping[str, Any], said: Mapping[str, Any]) -> _Node:
    resources = row["Resources"]
    trouble = said.get("trouble", "")
    if not trouble and said["sweep"] != __version__:
        trouble = f"it has sweep {said['sweep']}, this is {__version__}: install the same"
    declared = sorted(
        k.removeprefix("accelerator_type:") for k in resources if k.startswith("accelerator_type:")
    )
    return _Node(
        id=row["NodeID"],
        name=f"{row['NodeManagerAddress']}-{row['NodeID'][:6]}",
        gpus=int(resources.get("GPU", 0)),
        cpus=int(resources.get("CPU", 0)),
        kind=", ".join(declared) or said.get("kind", ""),
        host=said.get("host", ""),
        shared=bool(said.get("shared")),
        trouble=trouble,
    )


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
        return f"its worker process on {node} died ({_first_line(error)})"
    return f"its keeper on {node} failed: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
