"""Slots on this machine, and one runner process in each: started, adopted, waited for.

It must not know what a trial is about or how it ended. Runners lead sessions of their own, so they
outlive whoever started them.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sweeper.devices import Gpu, choose_gpus, find_cores, find_gpus
from sweeper.errors import DeviceUnusable, DiskUnusable, EnvironmentUnusable
from sweeper.executors.base import Slot, Submitted
from sweeper.executors.warm import WarmParent, kept_environment
from sweeper.paths import AttemptPaths
from sweeper.runner import device_locks, nvml, processes
from sweeper.runner.device import trouble
from sweeper.spec import AttemptSpec, Running, SpecError

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
NOT_FOR_TRAINERS = ("SWEEP_DATABASE_URL", "PGPASSWORD")
"""What a runner and its trainer have no use for, and must not be able to print."""
SWEEP_WITHIN_S = 10.0
_POLL_S = 0.1


@dataclass
class _Runner:
    """A runner under way. `descriptor` is its pidfd, where there are such; ours when we started it."""

    pid: int
    submitted: Submitted
    ours: bool
    descriptor: int | None
    identity: Running | None


class LocalExecutor:
    """Runs attempts on this machine, one runner a slot.

    `own_cores` are the logical processors that no slot uses: whoever started this may keep to them.
    """

    def __init__(self, slots: Sequence[Slot], own_cores: Iterable[int] = ()) -> None:
        self._slots = tuple(slots)
        self._warm: dict[str, WarmParent] = {}
        self._given_up: list[str] = []
        self._runners: list[_Runner] = []
        self._ended: list[Running] = []
        self.own_cores: frozenset[int] = frozenset(own_cores)
        self._gpus: nvml.Gpus | None = None
        if any(slot.device.get("kind") == "cuda" for slot in self._slots):
            with contextlib.suppress(nvml.NvmlError):
                self._gpus = nvml.open_gpus()

    @classmethod
    def on_devices(
        cls,
        *,
        gpus: int,
        devices: str | None = None,
        slots: int | None = None,
        study: str = "",
    ) -> Self:
        """An executor on this machine's GPUs (`gpus` of them a slot) or, with 0, on its processors.

        `devices` narrows to indices or UUIDs; `slots` asks for so many processor slots instead of
        GPUs (default: one core each, one core left for everything else). Cores that another study
        than `study` uses now come last.

        Raises:
            DeviceUnusable: what is asked for is not there.
        """
        if slots is not None and slots < 1:
            raise DeviceUnusable(f"--slots {slots}: expected a number from 1")
        cores = find_cores()
        if slots is not None or gpus == 0:
            if devices is not None:
                asked = "--slots" if slots is not None else "[resources] gpus = 0"
                raise DeviceUnusable(f"--devices {devices}: {asked} runs on processors; drop one")
            return cls(*cpu_slots(_free_first(cores, study), slots))
        search = find_gpus()
        if not search.gpus:
            raise DeviceUnusable(
                f"no GPU: {search.why_none}. [resources] gpus = 0 in the study file, or --slots N, "
                "runs on processors"
            )
        chosen = choose_gpus(search.gpus, devices) if devices is not None else search.gpus
        return cls(*gpu_slots(chosen, gpus, cores))

    def slots(self) -> Sequence[Slot]:
        """All places, whether taken or free."""
        return self._slots

    def warm_up(
        self, module: str | None, folder: Path, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Let a warm parent per slot import a trainer's module, as found from `folder`.

        Attempts whose command is this interpreter running that module are then forked from it; for
        other commands, and without a module, only the runner is. At any fault attempts are started
        cold; `say` hears why once, and `faults` keeps it.
        """
        self._say = say
        for slot in self._slots:
            self._warm[slot.name] = WarmParent(module or "", folder, self._environment(slot))

    @property
    def faults(self) -> tuple[str, ...]:
        """Why warm parents were given up."""
        return tuple(self._given_up)

    def trouble(self, slot: Slot) -> str:
        """See `Executor.trouble`: what the runner would find there, without waiting for it."""
        return trouble(slot.device, self._gpus)

    def submit(self, spec: Path, slot: Slot) -> None:
        """Start `python -m sweeper.runner SPEC` in a slot, in a session of its own.

        Raises:
            DiskUnusable: its log cannot be created.
            EnvironmentUnusable: it cannot be started.
        """
        paths = AttemptPaths(spec.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            log = os.open(paths.runner_log, flags, 0o600)
        except OSError as error:
            raise DiskUnusable(f"{paths.runner_log}: {error.strerror}") from None
        submitted = Submitted(spec.parent, slot)
        warm = self._warm.get(slot.name)
        if warm is not None:
            forked = warm.fork(spec, paths.runner_log, self._environment(slot))
            if forked is not None:
                os.close(log)
                self._runners.append(_Runner(forked, submitted, False, _pidfd(forked), None))
                return
            self._say(f"{slot.name}: cold starts from now on: {warm.fault}")
            self._given_up.append(f"{slot.name}: {warm.fault}")
            warm.close()
            del self._warm[slot.name]
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pid = os.posix_spawn(
                sys.executable,
                runner_command(spec),
                self._environment(slot),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
            )
        except OSError as error:
            raise EnvironmentUnusable(f"the runner cannot be started: {error}") from None
        finally:
            os.close(null)
            os.close(log)
        self._runners.append(_Runner(pid, submitted, True, _pidfd(pid), None))

    def adopt(self, folder: Path) -> Slot | None:
        """Take over an attempt that an earlier orchestrator started: its slot while its runner lives.

        When its runner is gone, whatever it left running (marked with its token) is ended first, so
        that the device is free. A slot that is not among ours (other devices were asked for then) is
        made up from the attempt's spec.
        """
        identity = read_identity(folder)
        if identity is None:
            return None
        descriptor = _pidfd(identity.pid)
        if processes.lives(identity.pid, identity.start_time, identity.boot):
            submitted = Submitted(folder, self._slot_of(folder))
            self._runners.append(_Runner(identity.pid, submitted, False, descriptor, identity))
            return submitted.slot
        if descriptor is not None:
            os.close(descriptor)
        end_orphans(identity)
        return None

    def wait(self, timeout_s: float) -> Sequence[Submitted]:
        """Attempts whose runner has gone since the last call; empty at the deadline.

        A runner that died without ending its trainer (a SIGKILL) has that done for it here. What
        carries an ended attempt's token and descends from no runner (it was started by a server that
        was there before) is ended when there is nothing more urgent.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            gone = [r for r in self._runners if self._is_gone(r)]
            left_s = deadline - time.monotonic()
            if gone or left_s <= 0:
                break
            self._sweep()
            self._sleep(max(0.0, deadline - time.monotonic()))
        return [runner.submitted for runner in gone if self._let_go(runner)]

    def _let_go(self, runner: _Runner) -> bool:
        """A runner has gone; False where another has its attempt, which is waited for instead.

        That happens where a warm parent answered too late, and a second runner was started meanwhile.
        """
        self._runners.remove(runner)
        if runner.descriptor is not None:
            os.close(runner.descriptor)
        folder = runner.submitted.folder
        identity = runner.identity or read_identity(folder)
        if identity is None:
            return True
        if AttemptPaths(folder).outcome.exists():
            self._ended.append(identity)
        elif processes.lives(identity.pid, identity.start_time, identity.boot):
            other = _pidfd(identity.pid)
            self._runners.append(_Runner(identity.pid, runner.submitted, False, other, identity))
            return False
        else:
            end_orphans(identity)
        return True

    def _sweep(self) -> None:
        ended, self._ended = self._ended, []
        end_orphans(*ended)

    def _environment(self, slot: Slot) -> dict[str, str]:
        return kept_environment(NOT_FOR_TRAINERS) | dict(slot.env) | import_path()

    def close(self) -> None:
        """Forget everything without stopping what runs: runners outlive the loop."""
        self._sweep()
        for warm in self._warm.values():
            warm.close()
        self._warm.clear()
        for runner in self._runners:
            if runner.descriptor is not None:
                os.close(runner.descriptor)
        self._runners.clear()
        if self._gpus is not None:
            self._gpus.close()
            self._gpus = None

    def _slot_of(self, folder: Path) -> Slot:
        try:
            device = AttemptSpec.read(AttemptPaths(folder).spec).device
        except (OSError, SpecError):
            device = {}
        known = (s for s in self._slots if s.device == device)
        return next(known, Slot(f"adopted:{folder}", device, {}))

    def _is_gone(self, runner: _Runner) -> bool:
        if runner.ours:
            try:
                return os.waitpid(runner.pid, os.WNOHANG)[0] == runner.pid
            except ChildProcessError:  # somebody else collected it
                return True
        if runner.identity is None:  # forked from a warm parent, which the kernel collects for us
            return runner.descriptor is None or _ended(runner.descriptor)
        known = runner.identity
        return not processes.lives(known.pid, known.start_time, known.boot)

    def _sleep(self, most_s: float) -> None:
        """Until a runner ends, or so long; without pidfds in short naps."""
        descriptors = [r.descriptor for r in self._runners if r.descriptor is not None]
        if len(descriptors) < len(self._runners):
            most_s = min(most_s, _POLL_S)
        if not descriptors:
            time.sleep(most_s)
            return
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        poll.poll(most_s * 1e3)


def runner_command(spec: Path) -> list[str]:
    """The one command that every executor starts. -P keeps the working folder out of the imports."""
    return [sys.executable, "-P", "-m", "sweeper.runner", str(spec)]


def cpu_slots(cores: Sequence[int], wanted: int | None) -> tuple[tuple[Slot, ...], tuple[int, ...]]:
    """Processor slots of one core each, and the cores that are left for everything else.

    More slots than cores share them, and their devices say so.
    """
    count = max(1, len(cores) - 1) if wanted is None else wanted
    shared = count > len(cores)
    slots = tuple(
        Slot(
            name=f"cpu{i}",
            device={
                "kind": "cpu",
                "index": i,
                "cores": [cores[i % len(cores)]],
                **({"shared": True} if shared else {}),
            },
            env={"CUDA_VISIBLE_DEVICES": "", **_threads(1)},
        )
        for i in range(count)
    )
    return slots, tuple(cores[count:])


def _free_first(cores: Sequence[int], study: str) -> tuple[int, ...]:
    """Cores that no other study has, then the rest; the order among them stays.

    This study's own attempts do not count: they are there to be adopted, on the slots that they had.
    """

    def is_foreign(core: int) -> bool:
        notes = device_locks.held_by(f"core-{core}")
        said = notes.get("holder") if notes is not None else None
        return notes is not None and not (isinstance(said, dict) and said.get("study") == study)

    return tuple(sorted(cores, key=is_foreign))


def gpu_slots(
    gpus: Sequence[Gpu], each: int, cores: Sequence[int]
) -> tuple[tuple[Slot, ...], tuple[int, ...]]:
    """Slots of `each` whole GPUs and an equal share of the cores, and the core that is left.

    Raises:
        DeviceUnusable: there are fewer GPUs than one slot needs.
    """
    count = len(gpus) // each
    if count == 0:
        raise DeviceUnusable(
            f"[resources] gpus = {each}: only {len(gpus)} GPU(s) here; name fewer in the study file"
        )
    own = cores[-1:] if len(cores) > count else ()
    given = cores[: len(cores) - len(own)]
    share = max(1, len(given) // count)
    slots = []
    for i in range(count):
        mine = gpus[i * each : (i + 1) * each]
        place = sorted(given[(i * share) % len(given) :][:share])
        slots.append(
            Slot(
                name="gpu" + "+".join(str(g.index) for g in mine),
                device={
                    "kind": "cuda",
                    "uuid": ",".join(g.uuid for g in mine),
                    "index": mine[0].index,
                    "name": mine[0].name,
                    "memory_bytes": mine[0].memory_bytes,
                    "cores": place,
                },
                env={
                    "CUDA_VISIBLE_DEVICES": ",".join(g.uuid for g in mine),
                    **_threads(max(1, share // each)),  # a process for each of them
                },
            )
        )
    return tuple(slots), tuple(own)


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(THREAD_VARIABLES, str(count))


def import_path() -> dict[str, str]:
    """Where this package lies, for runners of a plain checkout, which would not find it themselves.

    Trainers inherit it, so that `{python} -m trainer` works there too; an installed package needs
    none of this.
    """
    root = str(Path(__file__).parents[2])
    elsewhere = [p for p in sys.path if p and Path(p) != Path(root)]
    others = [f for f in sys.meta_path if f is not importlib.machinery.PathFinder]
    if importlib.machinery.PathFinder.find_spec("sweeper", elsewhere) or any(
        f.find_spec("sweeper", None) for f in others
    ):
        return {}
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": root if not before else f"{root}{os.pathsep}{before}"}


def _ended(descriptor: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _pidfd(pid: int) -> int | None:
    with contextlib.suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def read_identity(folder: Path) -> Running | None:
    """Who runs, or ran, the attempt of a folder; None while nobody has said so."""
    try:
        return Running.read(AttemptPaths(folder).running)
    except (OSError, SpecError):
        return None


def end_orphans(*identities: Running) -> None:
    """End what dead runners left running. Processes of an earlier boot are gone by themselves."""
    boot = processes.boot_id()
    tokens = {identity.token for identity in identities if identity.boot == boot}
    if tokens:
        processes.kill_all(lambda: processes.marked(*tokens), within_s=SWEEP_WITHIN_S)
