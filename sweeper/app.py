"""Puts the program together: reads the environment and picks the concrete adapters, only here.

It must not know what the commands do with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sweeper import catalog
from sweeper.errors import DatabaseUnusable, DeviceUnusable, PlanError, StudyError
from sweeper.paths import Home, make_private
from sweeper.study import Study

if TYPE_CHECKING:  # what a command does not need is not imported: help and status stay quick
    from rich.console import Console

    from sweeper.executors.base import Executor
    from sweeper.progress import Progress
    from sweeper.search.base import Search
    from sweeper.storage.base import Lease, Readable, Store
    from sweeper.storage.embedded import Server
    from sweeper.sweep import Stop

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What every command takes, from the command line or the environment."""

    database: str | None
    home: Path
    json: bool
    quiet: bool
    verbose: bool
    color: bool

    @classmethod
    def read(cls, args: argparse.Namespace) -> Settings:
        """The command line wins over SWEEP_DATABASE_URL, SWEEP_HOME and NO_COLOR."""
        home = args.home or Path(os.environ.get("SWEEP_HOME") or ".sweep")
        return cls(
            database=args.database or os.environ.get("SWEEP_DATABASE_URL") or None,
            home=home.absolute(),
            json=args.json,
            quiet=args.quiet,
            verbose=args.verbose,
            color=not (args.no_color or os.environ.get("NO_COLOR")),
        )


class App:
    """One command's adapters, opened when first used and closed together at the end."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.settings = Settings.read(args)
        self.home = Home(self.settings.home)
        self._args = args
        self._closing = contextlib.ExitStack()
        self._url: str | None = None
        self._server: Server | None = None
        self._store: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    # -- output ----------------------------------------------------------------------------------

    def console(self, *, err: bool | None = None) -> Console:
        """Where people read: stdout, or stderr when stdout carries JSON."""
        from rich.console import Console  # noqa: PLC0415

        to_stderr = self.settings.json if err is None else err
        return Console(
            stderr=to_stderr, no_color=not self.settings.color, highlight=False, soft_wrap=True
        )

    def say(self, text: str) -> None:
        """One line for people."""
        if not self.settings.quiet:
            print(text, file=sys.stderr if self.settings.json else sys.stdout, flush=True)

    def out(self, document: Any) -> None:
        """The one JSON document of `--json`, strict."""
        if self.settings.json:
            print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)  # noqa: T201

    def progress(self, study: Study | None = None) -> Progress:
        """Live on a terminal, one line per event elsewhere, nothing when quiet."""
        from sweeper.report.lines import LinesProgress, QuietProgress  # noqa: PLC0415

        if self.settings.quiet:
            return QuietProgress()
        screen = self.console()
        if screen.is_terminal and not screen.is_dumb_terminal:
            from sweeper.report.live import LiveProgress  # noqa: PLC0415

            live = LiveProgress(screen, study.limits if study else None)
            self._closing.callback(live.close)
            return live
        return LinesProgress(sys.stderr if self.settings.json else sys.stdout)

    # -- what is asked ---------------------------------------------------------------------------

    def study(self, *, quiet: bool = False) -> Study:
        """The study that the command is about, or its block; says first which it is, and why.

        Raises:
            StudyError: there is none, or it is wrong.
        """
        study, kind = self.study_of_all_kinds(quiet=quiet), self._args.node_kind
        if kind == "each":
            raise StudyError(
                "--node-kind each is for stage1, stage2, confirm and run: name one kind"
            )
        try:
            return study if kind is None else study.block(kind)
        except ValueError as error:
            raise StudyError(f"--node-kind: {error}") from None

    def study_of_all_kinds(self, *, quiet: bool = False) -> Study:
        """The study that the command is about, whatever kind of node was named."""
        chosen = catalog.choose(getattr(self._args, "study", None))
        if not quiet:
            self.say(f"study {chosen.name}: {chosen.path} ({chosen.why})")
        study = catalog.load(chosen, scale=getattr(self._args, "scale", None))
        target = getattr(self._args, "target", None)
        if target is not None and hasattr(self._args, "max_trials"):
            objective = study.objective.model_copy(update={"target": target})
            switches = ("--target", repr(target))
            study = study.model_copy(update={"objective": objective, "switches": switches})
        return study

    # -- adapters --------------------------------------------------------------------------------

    def database_url(self) -> str:
        """The database to use; starts (and holds) the embedded one when no URL was given."""
        if self._url is None:
            if self.settings.database:
                from sweeper.storage.url import normalise  # noqa: PLC0415

                self._url = normalise(self.settings.database)
            else:
                from sweeper.storage import embedded  # noqa: PLC0415

                self._make_home()
                server = embedded.open_server(
                    self.settings.home, purpose=f"sweep {self._args.verb}"
                )
                self._closing.callback(server.close)
                self._server = server
                self._url = server.url
        return self._url

    def revive(self) -> None:
        """Bring the embedded server back when it (and its supervisor) were killed."""
        if self._server is not None:
            self._server.ensure()

    def store(self, *, create: bool = False) -> Store:
        """Our tables; an embedded database brings its schema up to date by itself.

        Raises:
            DatabaseUnusable: see `sweeper.storage.sql.open_store`.
        """
        if self._store is None:
            from sweeper.storage.sql import open_store  # noqa: PLC0415

            url = self.database_url()
            self._store = open_store(url, create=create or not self.settings.database)
            self._closing.callback(self._store.close)
        return self._store

    def read(self, work: Callable[[Readable], T]) -> T:
        """What `work` makes of the facts, for a command that only reads and soon ends.

        Where all is as usual they are read without the store, whose imports take longer than a small
        study's facts; else `work` begins anew with the store, which says what is wrong.

        Raises:
            DatabaseUnusable: as `store`.
        """
        from sweeper.storage import light  # noqa: PLC0415

        if self._store is None:
            try:
                with light.reading(self.settings.database or self.database_url()) as facts:
                    return work(facts)
            except light.Unusual:
                pass
        return work(self.store())

    def has_database(self) -> bool:
        """Whether there is anything to read: a URL, or an embedded database made before."""
        return bool(self.settings.database) or self.home.database.exists()

    def search(self, study: Study, *, create: bool = True) -> Callable[[str], Search]:
        """Opens Optuna's study of a given name in the same database.

        Without `create` a study that is not there is an empty one in memory.
        """

        def open_search(name: str) -> Search:
            from sweeper.search.optuna_search import OptunaStorage  # noqa: PLC0415

            storage = OptunaStorage(self.database_url(), self.home.artifacts)
            self._closing.callback(storage.close)
            if not create and name not in storage.names():
                from sweeper.search.memory import MemorySearch  # noqa: PLC0415

                return MemorySearch()
            notes = {
                "study": study.name,
                "title": study.title,
                "metric": study.objective.metric,
                "clock": study.objective.clock,
                "shows": "seconds to the target"
                if study.objective.goal == "time_to_target"
                else study.objective.metric,
            }
            return storage.open(name, study.space, notes)

        return open_search

    def executor(self, study: Study, note: Callable[[str], None]) -> Executor:
        """The executor that was asked for, on the devices asked for.

        Beside the local one this process leaves their cores; `note` hears when a warm parent is given
        up, or a node left out.

        Raises:
            DeviceUnusable: what is asked for is not there.
            EnvironmentUnusable: no cluster where one was asked for.
        """
        if self._args.executor == "ray":
            return self._on_ray(study, note)
        from sweeper.executors.local import LocalExecutor  # noqa: PLC0415

        if self._args.address is not None or self._args.node_kind is not None:
            word = "--address" if self._args.address is not None else "--node-kind"
            raise DeviceUnusable(f"{word} is for --executor ray; drop it, or ask for that")
        executor = LocalExecutor.on_devices(
            gpus=study.resources.gpus,
            devices=self._args.devices,
            slots=self._args.slots,
            study=study.name,
        )
        self._closing.callback(executor.close)
        if not self._args.cold:
            folder = (study.folder / (study.trainer.cwd or ".")).resolve()
            executor.warm_up(study.trainer.module, folder, note)
        if executor.own_cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, executor.own_cores)
        return executor

    def node_kinds(self, study: Study) -> tuple[str, ...]:
        """Kinds of nodes of the cluster asked for that can run this study's trials."""
        from sweeper.executors.ray_cluster import kinds  # noqa: PLC0415

        self._make_home()
        return kinds(study.resources.gpus, self.home.folder, self._args.address)

    def _on_ray(self, study: Study, note: Callable[[str], None]) -> Executor:
        from sweeper.executors.ray_cluster import RayExecutor  # noqa: PLC0415

        if self._args.devices is not None:
            raise DeviceUnusable(
                "--devices names GPUs of this machine; Ray gives them out by itself (--slots N takes "
                "fewer places, --node-kind nodes of one kind)"
            )
        executor = RayExecutor(
            gpus=study.resources.gpus,
            home=self.home.folder,
            address=self._args.address,
            kind=self._args.node_kind,
            slots=self._args.slots,
            lease_s=_lease_s(),
            note=note,
        )
        self._closing.callback(executor.close)
        return executor

    @contextlib.contextmanager
    def lease(self, study: Study) -> Iterator[Lease]:
        """Hold the study's lease while the block runs.

        Raises:
            StudyBusy: another orchestrator holds it.
        """
        from sweeper.sweep import LEASE_TTL_S  # noqa: PLC0415

        store = self.store()
        held = store.held(study.name)
        if held is not None and holder_is_dead(held.holder):
            store.release(held)  # killed on this host: no need to wait until its lease ends
        lease = store.acquire(study.name, holder(), ttl_s=LEASE_TTL_S)
        try:
            yield lease
        finally:
            with contextlib.suppress(DatabaseUnusable):
                store.release(lease)

    @contextlib.contextmanager
    def interruptible(self, stop: Stop) -> Iterator[None]:
        """Ctrl-C once: no more trials; twice: end the running ones; a third time: leave at once."""

        def pressed(number: int, frame: object) -> None:  # noqa: ARG001
            stop.level += 1
            if stop.level == 1:
                self.say("stopping: running trials may finish (again: end them now)")
            elif stop.level == 2:
                self.say("ending the running trials")
            else:
                raise KeyboardInterrupt

        previous = {s: signal.signal(s, pressed) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, action in previous.items():
                signal.signal(number, action)

    def _make_home(self) -> None:
        try:
            make_private(self.settings.home)
        except OSError as error:
            raise StudyError(
                f"--home {self.settings.home}: {error.strerror}; choose a folder that can be written"
            ) from None


def _lease_s() -> float:
    """How long a node that is cut off goes on (SWEEP_RAY_LEASE_S)."""
    from sweeper.executors.ray_cluster import LEASE_S  # noqa: PLC0415

    text = os.environ.get("SWEEP_RAY_LEASE_S")
    try:
        seconds = LEASE_S if not text else float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 86400:
        raise StudyError(f"SWEEP_RAY_LEASE_S = {text!r}: expected seconds, from 1 to a day")
    return seconds


def holder() -> str:
    """Who holds a lease: host, process id and its start, so that a reused id is not taken for us."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def holder_is_dead(name: str) -> bool:
    """Whether a lease's holder was a process of this host that is gone; False when we cannot know."""
    host, _, rest = name.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not rest.isdigit() or not Path("/proc/self").exists():
        return False
    return _started(int(rest)) != name.rpartition(":")[2]


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "gone"
    return stat.rpartition(")")[2].split()[19]


def need_stage(store: Store, study: Study, stage: str, how: str) -> Any:
    """The record of a stage that must be there and closed.

    Raises:
        PlanError: it is not there, or not complete.
    """
    record = store.stage(study.name, stage)  # type: ignore[arg-type]
    if record is None:
        raise PlanError(f"{study.name}: {stage} has not been run here yet; run `{how}` first")
    if record.closed_at is None:
        raise PlanError(
            f"{study.name}: {stage} is not complete yet; `{how}` goes on where it stopped"
        )
    return record
