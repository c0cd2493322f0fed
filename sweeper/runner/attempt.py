"""One attempt as named steps: claim, take the device, start, watch, end, judge, leave the outcome.

It must not know stages, the database or which executor started it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sweeper.events import Fold, strict
from sweeper.paths import AttemptPaths, write_json
from sweeper.runner import launch, memory, processes, room
from sweeper.runner.classify import Ending, Verdict, classify
from sweeper.runner.device import Device, holder
from sweeper.runner.limits import Limits, Stop
from sweeper.runner.readers import Batch, EventsReader, PatternError, PatternsReader, Reader
from sweeper.runner.recorder import Recorder
from sweeper.runner.tail import last_lines
from sweeper.spec import CANCELLED, AttemptOutcome, AttemptSpec, Control, Running, SpecError
from sweeper.trial import OUTCOME_OF, Outcome, Reason

TICK_S = 0.05
REST_WITHIN_S = 60.0
"""How long the runner reads what a flooding trainer left behind when it ended."""
CONTROL_EVERY_S = 0.5
DEVICE_EVERY_S = 0.1
REAP_EVERY_S = 1.0
LEFTOVER_GRACE_S = 2.0
"""What children of a trainer that has exited get between TERM and KILL, at most."""
KILL_WITHIN_S = 10.0
"""How long the runner goes on killing before it lists who is left."""

EXIT_DONE = 0
EXIT_SPEC = 2
EXIT_FOLDER = 74
"""The run folder is full, read-only or gone: whatever was measured could not be kept."""
EXIT_TAKEN = 75
"""Another runner has this attempt."""


class Taken(Exception):  # noqa: N818 - it reads as what it says
    """Another runner has this attempt."""


class Attempt:
    """Runs one attempt in this process; use it once, from the main thread."""

    def __init__(self, spec: AttemptSpec) -> None:
        self.spec = spec
        self.paths = AttemptPaths(Path(spec.run_dir))
        self.token = f"{spec.study}/{spec.trial}/{spec.attempt}/{os.urandom(8).hex()}"
        self.stop: Stop | None = None
        self.signals = self._patience = 0
        self.leftovers: list[int] = []
        self.recorder: Recorder | None = None
        self.reader: Reader | None = None
        self._trainer: launch.Trainer | None = None
        self._status: int | None = None
        self._adopts = False
        self._folder: os.stat_result | None = None
        self._pidfd: int | None = None
        self._control_at = self._reaped_at = -1e9
        self._refused_control = ""
        self._output_bytes = 0
        self._shortage = ""
        self._lease_seen: int | None = None
        self._cut: set[str] = set()
        self._logs: list[tuple[Path, room.Bounded]] = []
        self._reserve: room.Reserve | None = None
        self.device = Device(
            spec.device,
            token=self.token,
            holder=holder(spec.study, spec.trial, spec.attempt),
            samples=self.paths.samples,
            say=lambda text: print(f"runner: {text}", file=sys.stderr, flush=True),
        )

    def run(self) -> None:
        """All the steps, in order. The trainer is gone afterwards, whatever happened.

        Raises:
            Taken: another runner has this attempt.
            OSError: the run folder is full, read-only or gone.
        """
        self.claim()
        if self.paths.outcome.exists():
            return
        try:
            self._reserve = room.Reserve(self.paths.folder)
            self.leave_outcome(self.take_device() or self._run_trainer())
        except OSError as error:
            with contextlib.suppress(OSError):  # a full disk may still hold these few bytes
                self.leave_outcome(Verdict(Reason.ENVIRONMENT, f"the run folder failed: {error}"))
            raise
        finally:
            self.device.close()

    def _run_trainer(self) -> Verdict:
        try:
            start_error = self.start()
            if not start_error:
                self.watch()
        finally:
            self.end()
        if not start_error:
            self.read_the_rest()
        return self.judge(start_error)

    # -- the steps -------------------------------------------------------------------------------

    def claim(self) -> None:
        """Lead a session, adopt orphans, take the folder, and say who we are."""
        if os.getsid(0) != os.getpid():
            with contextlib.suppress(PermissionError):
                os.setsid()
        self._adopts = processes.become_subreaper()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)
        if self.spec.lease_s is not None:  # remote: whoever has the place next must find it empty
            processes.end_with_parent()
        folder = os.open(self.paths.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held as long as this process lives
        except BlockingIOError:
            raise Taken(f"another runner has {self.paths.folder}") from None
        except OSError:  # a file system without locks: nothing else would start two runners
            os.close(folder)
        else:
            self._folder = os.fstat(folder)
        self.started_at, self._began_at = time.time(), time.monotonic()
        self._memory_kills = memory.kills_so_far()
        self._say_who(trainer=None)

    def take_device(self) -> Verdict | None:
        """Wait until the device is ours alone, within limits; else why not."""
        if shortage := room.shortage(self.paths.folder):
            return Verdict(Reason.ENVIRONMENT, shortage)
        began_at = time.monotonic()
        while (trouble := self.device.take()) is not None:
            waited_s = time.monotonic() - began_at
            if waited_s >= trouble.within_s:
                waited = f"; waited {waited_s:.0f} s" if trouble.within_s else ""
                return Verdict(trouble.reason, trouble.message + waited)
            if stop := self._ordered() or self._called_off():
                return Verdict(stop.reason, stop.message)
            time.sleep(DEVICE_EVERY_S)
        return None

    def start(self) -> str:
        """Open the streams and start the trainer; returns why it cannot be started, or ""."""
        spec, paths = self.spec, self.paths
        self.spawned_at = time.monotonic()
        self.limits = Limits(spec, self.spawned_at)
        self.recorder = Recorder(paths.events, spec.metric, self.spawned_at, spec.start_from)
        try:
            if spec.reader == "patterns":
                self.reader = PatternsReader(spec, paths.stdout, paths.stderr)
            else:
                self.reader = EventsReader(paths.raw_events)
            reader = self.reader
            for path in (paths.stdout, paths.stderr, paths.raw_events):
                read_to = functools.partial(reader.read_to, path)
                self._logs.append((path, room.Bounded(path, read_to)))
            self._trainer = launch.start(spec, paths, self.token)
        except (launch.StartError, PatternError) as error:
            return str(error)
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(self._trainer.pid)
        self._say_who(trainer=self._trainer.pid)
        launch.step_aside(spec.device.get("cores"))
        return ""

    def watch(self) -> None:
        """Until the trainer has exited or is to be stopped: read, record, look at the limits."""
        while True:
            self._look()
            if self._status is not None:
                return
            now = time.monotonic()
            assert self.recorder is not None
            self.stop = (
                self._ordered()
                or self.limits.check(now, self.recorder.clock_at(now), self.recorder.fold)
                or self._disturbed(now)
            )
            if self.stop is not None:
                self._patience = min(self.signals, 1)  # the signal that made us stop, if any
                return
            self._pause()

    def end(self) -> None:
        """TERM to the group, grace, KILL to the group, then everything else that descends from it.

        Nothing is left out because of an error: this also runs when the run folder is gone.
        """
        if self._trainer is None:
            return
        if self._status is not None and self._adopts and not processes.have_children():
            self.device.give_back([], self._until)  # nobody descends from it: no need to look
            return
        session = self._trainer.pid
        alone = self.stop is not None and self.stop.reason is Reason.BUDGET
        grace_s = self.spec.grace_s
        if self._status is not None:
            grace_s = min(grace_s, LEFTOVER_GRACE_S)
        if self._status is None or self._members(session):
            if alone:  # a drain: the trainer decides what becomes of its own children
                self._signal_trainer(signal.SIGTERM)
            else:
                processes.send_group(session, signal.SIGTERM)
            processes.send_group(session, signal.SIGCONT)  # a stopped process cannot end itself
            self._until(lambda: self._status is not None and not self._members(session), grace_s)
        if self._members(session):
            processes.send_group(session, signal.SIGKILL)
        left = processes.kill_all(
            lambda: processes.descendants(os.getpid(), session=session, token=self.token),
            within_s=KILL_WITHIN_S,
            meanwhile=self._reap,
            gone=(lambda: not processes.have_children()) if self._adopts else None,
        )
        self._until(lambda: self._status is not None, 1.0)
        self._reap()
        self.leftovers = sorted(p.pid for p in left)
        self.device.give_back(self.leftovers, self._until)

    def read_the_rest(self) -> None:
        """What the trainer wrote before it ended and nobody has read yet."""
        assert self.reader is not None
        assert self.recorder is not None
        now = time.monotonic()
        self._take(self.reader.read(), now)
        while self.reader.behind and time.monotonic() < now + REST_WITHIN_S:
            self._take(self.reader.read(), now)
        if self.reader.behind:
            message = f"the rest was not read in {REST_WITHIN_S:g} s: too many events"
            self.recorder.warn("flood", message, now)
        else:
            self._take(self.reader.rest(), now)
        self.recorder.finish()

    def judge(self, start_error: str) -> Verdict:
        """The reason and its message, by the rules of `classify`, or a device that was not ours."""
        recorder = self.recorder
        code, number = self._exit()
        verdict = classify(
            Ending(
                metric=self.spec.metric,
                target=self.spec.target,
                clock=self.spec.clock,
                fold=recorder.fold if recorder else Fold(self.spec.metric),
                stop=self.stop,
                start_error=start_error,
                exit_code=code,
                signal=number,
                stderr_tail=last_lines(self.paths.stderr),
                memory_short=memory.kills_so_far() > self._memory_kills,
                bad_lines=recorder.bad_lines if recorder else 0,
                first_bad=recorder.first_bad if recorder else "",
            )
        )
        doubt = self.device.invalid()
        failed = OUTCOME_OF[verdict.reason] is Outcome.FAILED and verdict.reason is not Reason.OOM
        if doubt is None or doubt.reason is None or doubt.reason is verdict.reason or failed:
            return verdict
        return Verdict(doubt.reason, f"{doubt.message} (otherwise: {verdict.message})")

    def leave_outcome(self, verdict: Verdict) -> None:
        """Write the outcome, whole; its presence says that the attempt has ended.

        One that is there already (a remote attempt that was given up meanwhile) is not replaced.
        """
        self._need_folder()
        if self.paths.outcome.exists():
            return
        spec, recorder = self.spec, self.recorder
        code, number = self._exit()
        source: Literal["trainer", "runner"] = "trainer"
        if recorder is not None and recorder.clock_source is not None:
            source = recorder.clock_source
        judged_by_cap = (Reason.CAP, Reason.FORECAST)
        outcome = AttemptOutcome(
            study=spec.study,
            trial=spec.trial,
            attempt=spec.attempt,
            outcome=OUTCOME_OF[verdict.reason],
            reason=verdict.reason,
            message=verdict.message,
            exit_code=code,
            signal=number,
            started_at=self.started_at,
            ended_at=time.time(),
            wall_s=time.monotonic() - self._began_at,
            cap_s=self.stop.cap_s if self.stop and verdict.reason in judged_by_cap else None,
            clock_source=source,
            cpu_s=sum(os.times()[:4]),
            warm=isinstance(self._trainer, launch.Forked),
            stderr_tail=last_lines(self.paths.stderr),
            events=recorder.read if recorder else 0,
            ignored_events=recorder.fold.ignored + recorder.bad_lines if recorder else 0,
            leftovers=self.leftovers,
            device=spec.device,
            validity=self._validity(verdict),
            observed=self.device.facts(),
            adjusted=spec.adjusted,
        )
        document = strict(outcome.to_json())
        text = json.dumps(document, allow_nan=False) + "\n"
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            with contextlib.suppress(OSError):
                if reserve.become(self.paths.outcome, text):
                    return
            reserve.release()
        write_json(self.paths.outcome, document)

    def _validity(self, verdict: Verdict) -> Literal["valid", "suspect", "invalid"]:
        if OUTCOME_OF[verdict.reason] is Outcome.INVALID:
            return "invalid"
        return "suspect" if self.device.doubts else "valid"

    # -- what the steps are made of --------------------------------------------------------------

    def _look(self) -> None:
        """Read one bounded piece of what is new; twice a second, look at the run folder too."""
        now = time.monotonic()
        if self.reader is not None:
            self._take(self.reader.read(), now)
            grown = sum(_size(path) for path in (self.paths.stdout, self.paths.stderr))
            if grown != self._output_bytes or self.reader.behind:
                self._output_bytes = grown
                self.limits.activity(now)
        if now - self._control_at >= CONTROL_EVERY_S:
            self._control_at = now
            self._read_control(now)
            self._look_after_folder(now)
            if self.recorder is not None:
                self.recorder.flush()
        if self._exited() or now - self._reaped_at >= REAP_EVERY_S:
            self._reaped_at = now
            self._reap()

    def _take(self, batch: Batch, now: float) -> None:
        assert self.recorder is not None
        for event in batch.events:
            recorded = self.recorder.add(event, now)
            if recorded is not None:
                self.limits.event(recorded, now)
        for message in batch.bad:
            self.recorder.bad(message, now)
        self.recorder.skip(batch.skipped)

    def _read_control(self, now: float) -> None:
        """Take the loop's orders; a torn or wrong file is noted once and changes nothing."""
        try:
            self.limits.control(Control.read(self.paths.control))
        except FileNotFoundError:
            return
        except (SpecError, OSError, UnicodeDecodeError) as error:
            if str(error) != self._refused_control and self.recorder is not None:
                self._refused_control = str(error)
                self.recorder.warn("control", f"control.json ignored: {error}", now)

    def _look_after_folder(self, now: float) -> None:
        """Room on its disk, logs that grow without bound, and whether somebody still wants us.

        Raises:
            OSError: the folder was deleted or unmounted.
        """
        self._need_folder()
        self._shortage = room.shortage(self.paths.folder)
        for path, log in self._logs:
            if log.keep() and self.recorder is not None and path.name not in self._cut:
                self._cut.add(path.name)
                most = room.LOG_BYTES >> 20
                message = f"{path.name} is longer than {most} MiB: its middle is given back"
                self.recorder.warn("log", message, now)
        if self.spec.lease_s is not None:
            with contextlib.suppress(FileNotFoundError):
                seen = self.paths.lease.stat().st_mtime_ns
                if seen != self._lease_seen:
                    self._lease_seen = seen
                    self.limits.renewed(now)

    def _need_folder(self) -> None:
        """The folder that we claimed, and no other in its place.

        Raises:
            FileNotFoundError: it was deleted; its attempt may have been given up since.
        """
        if self._folder is not None:
            found = self.paths.folder.stat()
            if not os.path.samestat(found, self._folder):
                path = str(self.paths.folder)
                raise FileNotFoundError(errno.ENOENT, "deleted, and made anew by others", path)

    def _ordered(self) -> Stop | None:
        if self.signals:
            return Stop(Reason.KILLED, "the runner was told to stop from outside (TERM or INT)")
        return Stop(Reason.ENVIRONMENT, self._shortage) if self._shortage else None

    def _called_off(self) -> Stop | None:
        """Cancel and drain, while there is no trainer yet that they could reach."""
        with contextlib.suppress(SpecError, OSError, UnicodeDecodeError):
            control = Control.read(self.paths.control)
            if control.cancel:
                return Stop(Reason.KILLED, CANCELLED)
            if control.drain:
                return Stop(Reason.KILLED, "asked to stop early, before anything was measured")
        return None

    def _disturbed(self, now: float) -> Stop | None:
        """Look at the device when that is due; others on it are the end of what is measured."""
        assert self._trainer is not None
        pid = self._trainer.pid
        message = self.device.look(now, root=pid, session=pid, began_at=self._began_at)
        return Stop(Reason.SHARED_DEVICE, message) if message else None

    def _told_to_stop(self, number: int, frame: object) -> None:  # noqa: ARG002
        self.signals += 1

    def _until(self, done: Callable[[], bool], within_s: float) -> None:
        """Go on reading until something holds, a deadline passes, or we are told to hurry.

        A signal means hurry unless it is the one that made us stop.
        """
        deadline = time.monotonic() + within_s
        while not done() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # the folder may be what is gone
                self._look()
            self._reap()
            if self.signals > self._patience:
                return
            self._pause()

    def _pause(self) -> None:
        """Wait for the trainer's end or the next look, unless there is more to read."""
        if self.reader is not None and self.reader.behind:
            return
        if self._pidfd is None or self._status is not None:
            time.sleep(TICK_S)
            return
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(TICK_S * 1e3)

    def _exited(self) -> bool:
        if self._pidfd is None:
            return True  # cannot be told without asking
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _reap(self) -> None:
        """Collect every child that has ended; orphans of the trainer are our children too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._trainer is not None and pid == self._trainer.pid:
                self._status = status
                self._trainer.returncode = os.waitstatus_to_exitcode(status)

    def _exit(self) -> tuple[int | None, int | None]:
        """Exit code and signal of the trainer, one of them None."""
        if self._status is None:
            return None, None
        code = os.waitstatus_to_exitcode(self._status)
        return (None, -code) if code < 0 else (code, None)

    def _members(self, session: int) -> bool:
        """Whether anybody of the trainer's session still lives."""
        return any(p.session == session for p in processes.everyone())

    def _signal_trainer(self, number: int) -> None:
        if self._trainer is not None and self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._trainer.pid, number)

    def _say_who(self, *, trainer: int | None) -> None:
        me = processes.look_at(os.getpid())
        running = Running(
            pid=os.getpid(),
            start_time=me.start_time if me else 0,
            boot=processes.boot_id(),
            token=self.token,
            started_at=self.started_at,
            trainer=trainer,
        )
        write_json(self.paths.running, running.to_json(), lasting=False)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def run(spec: AttemptSpec) -> int:
    """Run an attempt and return this process's exit code, with a word on stderr if it is not 0."""
    attempt = Attempt(spec)
    try:
        attempt.run()
    except Taken as error:
        print(f"runner: {error}", file=sys.stderr)
        return EXIT_TAKEN
    except OSError as error:
        print(f"runner: the run folder {spec.run_dir} cannot be used: {error}", file=sys.stderr)
        return EXIT_FOLDER
    return EXIT_DONE
