"""What an attempt runs on: taken for it alone, watched while it runs, given back as it was found.

It must not know trainers, targets or run folders' other files; without NVML it knows processors only.

Method section 7. The thresholds below were chosen, not measured: no GPU was at hand yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweeper.runner import device_locks, nvml, processes, quarantine
from sweeper.runner.device_locks import DeviceLock, LocksUnusable
from sweeper.runner.telemetry import Telemetry
from sweeper.trial import Reason

LOCK_WITHIN_S = {"cuda": 60.0, "cpu": 5.0}
"""How long a runner waits for a device that another attempt has."""
ALONE_WITHIN_S = 30.0
"""How long it waits for foreign processes to leave a GPU, and for memory that nobody shows."""
EMPTY_WITHIN_S = 15.0
"""How long a GPU's memory may take to come back to its baseline after the trainer has ended."""
MEMORY_SLACK_BYTES, MEMORY_SLACK_SHARE = 256 << 20, 0.01
SLOWED_SUSPECT, SLOWED_INVALID = 0.05, 0.25
"""Shares of looks under a thermal or hardware slowdown."""
HISTORY = 20
ENOUGH_HISTORY = 3
FOREIGN_CORE_SHARE, STEAL_SHARE = 0.10, 0.05
"""Shares of the processors' time that others, or the hypervisor, may take before times are suspect."""


class Trouble(NamedTuple):
    """Why a device cannot be used now, and how long that is worth waiting for."""

    reason: Reason
    message: str
    within_s: float


class Doubt(NamedTuple):
    """What was seen that makes a measurement invalid (with its reason) or suspect (without)."""

    message: str
    reason: Reason | None = None


def lock_names(device: Mapping[str, Any]) -> list[str]:
    """What a slot's device is locked by: GPUs by UUID, processors by number; sorted, maybe none."""
    if device.get("kind") == "cuda":
        return sorted(u for u in str(device.get("uuid", "")).split(",") if u)
    if device.get("kind") == "cpu":
        return [f"core-{core}" for core in sorted(_cores(device))]
    return []


def trouble(device: Mapping[str, Any], gpus: nvml.Gpus | None) -> str:
    """Why nothing should be started on a device that no attempt of ours has, or "".

    For whoever chooses a place: it says what the runner would find there, without waiting.
    """
    for name in lock_names(device):
        if said := quarantine.standing(name, gpus):
            return said
        holder = None if device.get("shared") else device_locks.held_by(name)
        if holder is not None:
            return f"{name} is taken by {_who(holder)}"
    if gpus is not None and device.get("kind") == "cuda":
        for uuid in lock_names(device):
            with contextlib.suppress(nvml.NvmlError):
                if pids := gpus.read(uuid).pids:
                    return f"{uuid} is used by {_name_all(pids)}"
    return ""


class Device:
    """An attempt's device; `take` until it has no trouble, `look` while it runs, then `give_back`.

    `samples` is the file that every look is added to, `say` hears what people should know.
    """

    def __init__(
        self,
        device: Mapping[str, Any],
        *,
        token: str,
        holder: Mapping[str, Any],
        samples: Path,
        say: Callable[[str], None],
    ) -> None:
        self._device, self._token, self._holder, self._say = device, token, holder, say
        self._names = lock_names(device)
        self._shared = bool(device.get("shared"))
        self._locks: list[DeviceLock] = []
        self._lease = "" if self._names else "none: the slot names no device"
        self._gpus: nvml.Gpus | None = None
        self._telemetry = "none: the slot names no device"
        if device.get("kind") == "cuda" and self._names:
            self._open_gpus()
        elif device.get("kind") == "cpu":
            self._telemetry = "kernel"
        self._idle_bytes: dict[str, int] = {}
        self._total_bytes: dict[str, int] = {}
        self._watch = Telemetry(samples)
        self.doubts: list[Doubt] = []

    # -- before ----------------------------------------------------------------------------------

    def take(self) -> Trouble | None:
        """One try at having the device alone; None when it is ours. Never waits."""
        for name in self._names:
            if said := quarantine.standing(name, self._gpus):
                return Trouble(Reason.DEVICE, said, 0.0)
        return self._lock() or self._empty()

    def _lock(self) -> Trouble | None:
        if self._locks or self._lease:
            return None
        try:
            for name in self._names:
                lock = device_locks.take(name, shared=self._shared)
                if lock is None:
                    self._unlock()
                    who = _who(device_locks.notes_of(name))
                    within_s = LOCK_WITHIN_S.get(str(self._device.get("kind")), 0.0)
                    return Trouble(Reason.DEVICE, f"{name} is taken by {who}", within_s)
                self._locks.append(lock)
        except LocksUnusable as error:
            self._unlock()
            self._lease = f"none: {error}"
            self._say(f"no exclusive lease on {', '.join(self._names)}: {error}")
            if self._device.get("kind") == "cuda":
                self.doubts.append(Doubt("nothing kept other sweeps off the device"))
            return None
        self._lease = "shared" if self._shared else "exclusive"
        if not self._shared:
            for lock in self._locks:
                self._sweep_leftovers(lock)
                holder = {**self._holder, "mark": _mark(lock.name, self._token)}
                lock.write({**lock.notes, "holder": holder})
        return None

    def _sweep_leftovers(self, lock: DeviceLock) -> None:
        """End what the attempt before left running here: its runner is gone, or we had no lock."""
        former = lock.notes.get("holder")
        mark = former.get("mark") if isinstance(former, dict) else None
        if not isinstance(mark, str):
            return

        def left() -> list[processes.Process]:
            found = ((p, processes.marker(p.pid)) for p in processes.everyone())
            return [
                p
                for p, token in found
                if token and p.pid != os.getpid() and _mark(lock.name, token) == mark
            ]

        if strays := left():
            self._say(
                f"{lock.name}: ending what an earlier attempt left: {_name_all(_ids(strays))}"
            )
            processes.kill_all(left, within_s=10.0)

    def _empty(self) -> Trouble | None:
        """Nobody else computes there, and no memory is gone that nobody shows."""
        for uuid, reading in self._readings().items():
            if reading.pids:
                message = f"{uuid} is used by {_name_all(reading.pids)}"
                return Trouble(Reason.SHARED_DEVICE, message, ALONE_WITHIN_S)
            known = [b for b in self._history(uuid, "idle_bytes") if b >= 0]
            used = reading.memory_bytes
            if used is None:
                continue
            if known and used > min(known) + self._slack(uuid):
                message = (
                    f"{uuid} has {_mib(used)} in use before the start and {_mib(min(known))} when "
                    "idle, by processes that cannot be seen from here"
                )
                return Trouble(Reason.SHARED_DEVICE, message, ALONE_WITHIN_S)
            self._idle_bytes[uuid] = used
        return None

    # -- during ----------------------------------------------------------------------------------

    def look(self, now: float, root: int, session: int, *, began_at: float) -> str:
        """A sample if one is due; returns what ends the attempt now (a foreign process), or "".

        `root` is the trainer's process, `session` its session; a foreign process must be seen in two
        looks in a row, because the driver lists one a moment longer than it lives.
        """
        if not self._watch.is_due(now):
            return ""
        at_s = now - began_at
        foreign: list[int] = []
        for uuid, reading in self._readings().items():
            strangers = [p for p in reading.pids if self._is_foreign(p, session)]
            foreign += strangers
            self._watch.gpu(uuid, reading, strangers, at_s)
        if self._device.get("kind") == "cpu":
            self._watch.cores(_cores(self._device), root, at_s)
        seen, self._watch.strangers = self._watch.strangers, set(foreign)
        if not foreign:
            return ""
        message = f"{', '.join(self._names)} is also used by {_name_all(foreign)}"
        if seen & set(foreign):
            self.doubts.append(Doubt(message, Reason.SHARED_DEVICE))
            return message
        if all(d.message != message for d in self.doubts):
            self.doubts.append(Doubt(message))
        return ""

    def _is_foreign(self, pid: int, session: int) -> bool:
        """A process of this host that is none of ours; one that cannot be seen may be our own, under
        the number that it has outside of this container.
        """
        found = processes.look_at(pid)
        ours = found is None or found.session == session or processes.has_marker(pid, self._token)
        return not ours and not _descends(pid, os.getpid())

    # -- after -----------------------------------------------------------------------------------

    def give_back(
        self, leftovers: Sequence[int], until: Callable[[Callable[[], bool], float], None]
    ) -> None:
        """After the trainer's end: memory back at its baseline, or quarantine; then the lease.

        `until(condition, seconds)` waits. `leftovers` are processes that could not be ended.
        """
        if self._locks or self._idle_bytes:
            self._wait_for_memory(leftovers, until)
            if leftovers and self._device.get("kind") == "cpu":
                for name in self._names:
                    self._quarantine(name, f"{_name_all(leftovers)} could not be ended", leftovers)
        self._judge()
        for lock in () if self._shared else self._locks:
            # what could not be ended stays marked, for the next one to try
            kept = lock.notes if leftovers else {"former": lock.notes.get("holder")}
            lock.write({**kept, **self._remember(lock.name)})

    def close(self) -> None:
        """Let go of the device: the last thing that an attempt does."""
        self._unlock()
        self._watch.close()
        if self._gpus is not None:
            self._gpus.close()

    def _wait_for_memory(
        self, leftovers: Sequence[int], until: Callable[[Callable[[], bool], float], None]
    ) -> None:
        def full() -> dict[str, nvml.Reading]:
            return {
                uuid: reading
                for uuid, reading in self._readings().items()
                if reading.pids
                or (
                    uuid in self._idle_bytes
                    and (reading.memory_bytes or 0) > self._idle_bytes[uuid] + self._slack(uuid)
                )
            }

        if not self._idle_bytes:
            return
        until(lambda: not full(), EMPTY_WITHIN_S)
        for uuid, reading in full().items():
            strangers = [p for p in reading.pids if p not in leftovers]
            if strangers:
                message = f"{uuid} is used by {_name_all(strangers)} after the trainer has ended"
                self.doubts.append(Doubt(message, Reason.SHARED_DEVICE))
                continue
            limit = self._idle_bytes[uuid] + self._slack(uuid)
            message = (
                f"{_mib(reading.memory_bytes or 0)} of its memory were in use {EMPTY_WITHIN_S:g} s "
                f"after an attempt ended, {_mib(self._idle_bytes[uuid])} before it began"
            )
            self._quarantine(uuid, message, leftovers, limit)

    def _quarantine(
        self, name: str, reason: str, pids: Sequence[int], limit: int | None = None
    ) -> None:
        try:
            path = quarantine.begin(name, reason, pids=pids, memory_below=limit, by=self._holder)
        except LocksUnusable as error:
            self._say(f"{name}: {reason}; it cannot be quarantined: {error}")
            return
        self._say(f"{name} is quarantined: {reason} ({path})")

    def _judge(self) -> None:
        watch = self._watch
        slowed = watch.slowed_share()
        if slowed is not None and slowed >= SLOWED_SUSPECT:
            usual = max(
                (sorted(h)[len(h) // 2] for h in self._slowed_before() if len(h) >= ENOUGH_HISTORY),
                default=0.0,
            )
            message = f"clocks were slowed down by heat or hardware in {slowed:.0%} of the looks"
            # What this device always does is no reason to throw every measurement away.
            worse = slowed >= SLOWED_INVALID and slowed > 2 * usual
            self.doubts.append(Doubt(message, Reason.THROTTLED if worse else None))
        foreign, steal = watch.core_shares()
        if foreign is not None and foreign > FOREIGN_CORE_SHARE:
            self.doubts.append(Doubt(f"other processes used {foreign:.0%} of its processors' time"))
        if steal is not None and steal > STEAL_SHARE:
            self.doubts.append(Doubt(f"the hypervisor took {steal:.0%} of its processors' time"))

    def _slowed_before(self) -> list[list[float]]:
        return [self._history(uuid, "slowed") for uuid in self._names]

    def invalid(self) -> Doubt | None:
        """The first thing seen that makes what was measured invalid."""
        return next((d for d in self.doubts if d.reason is not None), None)

    def facts(self) -> dict[str, Any]:
        """What was observed, as JSON values: lease, source of telemetry, shares, doubts in words."""
        found: dict[str, Any] = {"lease": self._lease or "none", "telemetry": self._telemetry}
        found |= self._watch.summary()
        if self._idle_bytes:
            found["idle_memory_bytes"] = dict(self._idle_bytes)
        if self.doubts:
            found["doubts"] = list(dict.fromkeys(d.message for d in self.doubts))
        return found

    # -- small parts -----------------------------------------------------------------------------

    def _open_gpus(self) -> None:
        try:
            self._gpus = nvml.open_gpus()
            self._total_bytes = {g.uuid: g.memory_bytes for g in self._gpus.names()}
            for uuid in self._names:
                self._gpus.read(uuid)
            self._telemetry = "nvml"
        except nvml.NvmlError as error:
            self._gpus = None
            self._telemetry = f"none: {error}"
            self._say(f"no telemetry: {error}; foreign processes and throttling are not seen")
            self.doubts = []

    def _readings(self) -> dict[str, nvml.Reading]:
        """One look at every GPU; none once the driver has stopped to answer."""
        if self._gpus is None:
            return {}
        try:
            return {uuid: self._gpus.read(uuid) for uuid in self._names}
        except nvml.NvmlError as error:
            self._gpus.close()
            self._gpus = None
            self._telemetry = f"lost: {error}"
            self._say(f"telemetry ended: {error}")
            return {}

    def _slack(self, uuid: str) -> int:
        share = int(self._total_bytes.get(uuid, 0) * MEMORY_SLACK_SHARE)
        return max(MEMORY_SLACK_BYTES, share)

    def _history(self, name: str, key: str) -> list[Any]:
        """Figures of earlier attempts on a device, since it was last booted."""
        for lock in self._locks:
            notes = lock.notes
            if lock.name == name and notes.get("boot") == processes.boot_id():
                values = notes.get(key)
                if isinstance(values, list):
                    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
        return []

    def _remember(self, name: str) -> dict[str, Any]:
        """The device's history with this attempt added."""
        found: dict[str, Any] = {"boot": processes.boot_id()}
        for key, value in (
            ("idle_bytes", self._idle_bytes.get(name)),
            ("slowed", self._watch.slowed_share(name)),
        ):
            found[key] = [*self._history(name, key), *([] if value is None else [value])][-HISTORY:]
        return found

    def _unlock(self) -> None:
        for lock in self._locks:
            lock.release()
        self._locks.clear()


def holder(study: str, trial: str, attempt: int) -> dict[str, Any]:
    """How an attempt calls itself in a lock file that everyone can read."""
    user = str(os.getuid())
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
    return {
        "pid": os.getpid(),
        "user": user,
        "study": study,
        "trial": trial,
        "attempt": attempt,
        "since": time.time(),
    }


def _who(notes: Mapping[str, Any]) -> str:
    said = notes.get("holder")
    if not isinstance(said, dict):
        return "another process"
    words = {k: str(said.get(k, "?"))[:80] for k in ("pid", "user", "study", "trial")}
    return f"process {words['pid']} of {words['user']} for {words['study']}/{words['trial']}"


def _mark(name: str, token: str) -> str:
    """An attempt's token as it stands in a device's file: it proves nothing on any other device."""
    return hashlib.sha256(f"{name}\0{token}".encode()).hexdigest()


def _name_all(pids: Sequence[int]) -> str:
    words = []
    for pid in pids[:5]:
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            name = "not visible from here"
        words.append(f"process {pid} ({name})")
    more = f" and {len(pids) - 5} more" if len(pids) > 5 else ""
    return ", ".join(words) + more


def _ids(found: Sequence[processes.Process]) -> list[int]:
    return [p.pid for p in found]


def _descends(pid: int, root: int) -> bool:
    for _ in range(64):
        found = processes.look_at(pid)
        if found is None or found.parent <= 1:
            return False
        if found.parent == root:
            return True
        pid = found.parent
    return False


def _cores(device: Mapping[str, Any]) -> list[int]:
    cores = device.get("cores")
    return [c for c in cores if isinstance(c, int)] if isinstance(cores, list) else []


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
