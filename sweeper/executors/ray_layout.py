"""The nodes of a Ray cluster that can run trials, what kind each is, and the slots on them.

It must not know attempts. What a node is, it says itself, once, in a task of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import __version__
from sweeper.errors import DeviceUnusable, EnvironmentUnusable
from sweeper.executors.base import Slot
from sweeper.paths import make_private, write_whole

NAMESPACE = "sweep"
CONNECT_WITHIN_S = 10.0
LOOK_WITHIN_S = 60.0
NODES_EVERY_S = 2.0
SHAKY_S = 20.0
"""So long nothing is sent to a node that did not answer."""


@dataclass(frozen=True)
class Node:
    """A node that answered: what it has, and what it says of itself."""

    id: str
    name: str
    gpus: int
    cpus: int
    kind: str
    host: str
    shared: bool
    trouble: str = ""


class Layout:
    """Slots on a cluster's living nodes of one kind; nodes are looked at when they come.

    `kind` None is the only kind there is; an empty one stands for all of them (to list them). `ray` is
    the library, connected.
    """

    def __init__(
        self,
        ray: Any,
        *,
        gpus: int,
        home: Path,
        kind: str | None,
        most: int | None,
        note: Callable[[str], None],
    ) -> None:
        self._ray, self._gpus, self._home = ray, gpus, home
        self._kind, self._most, self._note = kind, most, note
        self._nodes: dict[str, Node] = {}
        self._places: dict[str, tuple[Node, int, int]] = {}
        self._shaky: dict[str, float] = {}
        self._alive: frozenset[str] = frozenset()
        self._looked_at = -1e9
        self.slots: tuple[Slot, ...] = ()
        self.kinds: tuple[str, ...] = ()
        self.refresh()

    def refresh(self, *, now: bool = False) -> None:
        """Look at the cluster again when that is due (or now): nodes that came, nodes that went.

        Raises:
            DeviceUnusable: the nodes are of several kinds, and none was named.
        """
        if not now and time.monotonic() - self._looked_at < NODES_EVERY_S:
            return
        self._looked_at = time.monotonic()
        with contextlib.suppress(self._ray.exceptions.RayError):
            rows = [row for row in self._ray.nodes() if row["Alive"]]
            alive = frozenset(row["NodeID"] for row in rows)
            new = [row for row in rows if row["NodeID"] not in self._nodes]
            if alive == self._alive and not new:
                return
            self._alive = alive
            self._nodes |= self._look_at(new)
            self.slots = self._lay_out()

    def trouble(self, slot: Slot) -> str:
        """Why nothing should be sent to a slot now, or ""."""
        if slot not in self.slots:
            return "its node has left the cluster"
        node = self._places[slot.name][0]
        if time.monotonic() - self._shaky.get(node.id, -1e9) < SHAKY_S:
            return "its node does not answer now"
        return ""

    def place(self, slot: Slot) -> tuple[Node, int, int]:
        """A slot's node, the how-manieth slot it is on its host, and how many that host has."""
        return self._places[slot.name]

    def is_alive(self, node: str) -> bool:
        """Whether the cluster still counts a node (by its id) among its own."""
        return node in self._alive

    def did_not_answer(self, node: str) -> None:
        """Send nothing to a node for a while."""
        self._shaky[node] = time.monotonic()

    def named(self, name: object) -> Node | None:
        """The node of a name, living or not."""
        return next((n for n in self._nodes.values() if n.name == name), None)

    def name_of(self, node: str) -> str:
        """What people call a node, by its id."""
        known = self._nodes.get(node)
        return known.name if known is not None else node[:8]

    def why_none(self) -> str:
        """Why there is no slot at all, in a sentence."""
        said = "; ".join(f"{n.name}: {n.trouble}" for n in self._nodes.values() if n.trouble)
        need = f"{self._gpus} GPU(s)" if self._gpus else "a processor"
        kinds = sorted({n.kind for n in self._nodes.values() if not n.trouble})
        asked = f" of kind {self._kind!r} (there are: {', '.join(kinds)})" if self._kind else ""
        return f"no node{asked} of the Ray cluster has {need} for a trial" + (
            f"; left out: {said}" if said else ""
        )

    def _look_at(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Node]:
        """Ask each of these nodes, all at once, what it is; one that cannot say is of no use."""
        from sweeper.executors.ray_node import look_at_node  # noqa: PLC0415

        mark, folder = secrets.token_hex(16), self._home / f".seen-by-{secrets.token_hex(4)}"
        make_private(self._home)
        write_whole(folder, mark, lasting=False)
        task = self._ray.remote(look_at_node)
        asked = {
            row["NodeID"]: task.options(
                num_cpus=0, max_retries=0, scheduling_strategy=only_on(row["NodeID"])
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
                    said = {"trouble": f"it cannot say what it is: {first_line(error)}"}
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

    def _room(self, node: Node) -> int:
        return node.gpus // self._gpus if self._gpus else node.cpus

    def _slot(self, node: Node, k: int, place: int, of: int) -> Slot:
        name = f"{node.name}/{'gpu' if self._gpus else 'cpu'}{k}"
        device = {
            "kind": "cuda" if self._gpus else "cpu",
            "node": node.name,
            "node_kind": node.kind,
            "slot": name,
        }
        self._places[name] = (node, place, of)
        return Slot(name, device, {})


def connect(address: str | None) -> Any:
    """The library, connected to the cluster at an address (None: RAY_ADDRESS, else this machine's).

    Raises:
        EnvironmentUnusable: Ray is not installed, or there is no cluster there.
    """
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise EnvironmentUnusable(
            "--executor ray needs Ray: pip install '.[ray]' in the clone, here and on every node"
        ) from None
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    _need_listener(where)  # Ray itself would go on trying for minutes
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _sigterm_kept():
            ray.init(address=where, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        raise EnvironmentUnusable(
            f"no Ray cluster at {where}: {first_line(error)}. Start one (`ray start --head`, see "
            "docs/scaling.md) or name it: --address HOST:PORT, RAY_ADDRESS; with "
            "RAY_AUTH_MODE=token both ends need the same token"
        ) from None
    return ray


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself, to leave at once with exit code 15; the command has its own.

    Raises:
        KeyboardInterrupt: it came while Ray had it.
    """
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def want(places: int, gpus: int) -> None:
    """Ask the cluster's autoscaler, if it has one, for so many places; 0 takes that back."""
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415

    bundle = {"GPU": gpus} if gpus else {"CPU": 1}
    with contextlib.suppress(Exception):  # a cluster of fixed size has nobody to ask
        request_resources(bundles=[bundle] * places)


def only_on(node: str) -> Any:
    """Ray's word for: on this node, or not at all."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


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


def _node(row: Mapping[str, Any], said: Mapping[str, Any]) -> Node:
    resources = row["Resources"]
    trouble = said.get("trouble", "")
    if not trouble and said["sweep"] != __version__:
        trouble = f"it has sweep {said['sweep']}, this is {__version__}: install the same"
    declared = sorted(
        k.removeprefix("accelerator_type:") for k in resources if k.startswith("accelerator_type:")
    )
    return Node(
        id=row["NodeID"],
        name=f"{row['NodeManagerAddress']}-{row['NodeID'][:6]}",
        gpus=int(resources.get("GPU", 0)),
        cpus=int(resources.get("CPU", 0)),
        kind=said.get("gpus") or ", ".join(declared) or said.get("processor", ""),
        host=said.get("host", ""),
        shared=bool(said.get("shared")),
        trouble=trouble,
    )


def first_line(error: Exception) -> str:
    """What an error of Ray's says, without the rest."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
