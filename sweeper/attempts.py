"""One attempt's folder: what is put into it before the runner starts, what is read out when it ended.

It must not know databases, samplers or which executor carries the attempt.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from sweeper.configuration import fill_command, resolve_config, set_key
from sweeper.errors import DiskUnusable
from sweeper.events import EventError, Fold, finite, parse_line
from sweeper.executors.base import Slot
from sweeper.objective import best_value
from sweeper.paths import AttemptPaths, make_private, write_json, write_whole
from sweeper.space import Value
from sweeper.spec import AttemptOutcome, AttemptSpec, SpecError
from sweeper.study import START_FROM, Study
from sweeper.trial import AttemptFacts, DeviceSample, Outcome, Phases, PlannedTrial, Reason

MOST_SAMPLES = 1000
_FIGURES = ("utilisation", "power_w", "temperature_c", "clock_mhz")


@dataclass(frozen=True)
class Origin:
    """The checkpoint that an attempt goes on from, and which attempt of the trial left it.

    `before` is what was done before the trial itself began, where that was from a checkpoint.
    """

    attempt: int
    checkpoint: Path
    before: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Begin:
    """Where a trial begins, and what it does otherwise than its study says for all.

    It begins with `checkpoint` and `arguments` added to its command; `start` is what the study calls
    that, `of` and `attempt` are the trial that left it ("" and 0: a file). `extends`: it goes on with
    that very trial, whose curve is the first part of its own, and whose own beginning was `before`.
    `steps` replaces the limit of steps; `changes` are keys of the trainer's configuration; with
    `own_target` it goes on to `target` (None: to its last step) instead of the stage's. `sha256` is of
    the content of a file that the study names.
    """

    start: str = ""
    checkpoint: Path | None = None
    of: str = ""
    attempt: int = 0
    extends: bool = False
    before: Mapping[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    steps: int | None = None
    changes: Mapping[str, Value] = field(default_factory=dict)
    own_target: bool = False
    target: float | None = None
    sha256: str | None = None

    def document(self) -> dict[str, Any]:
        """`AttemptSpec.start_from`."""
        if self.checkpoint is None:
            return {}
        said: dict[str, Any] = {
            "start": self.start,
            "checkpoint": str(self.checkpoint),
            "of": self.of,
        }
        said |= {} if self.sha256 is None else {"sha256": self.sha256}
        offset = {"offset": dict(self.before or {})} if self.extends else {}
        return {**said, "attempt": self.attempt, "extends": self.extends, **offset}


FROM_THE_START = Begin()


def prepare(
    study: Study,
    trial: PlannedTrial,
    *,
    attempt: int,
    paths: AttemptPaths,
    slot: Slot,
    target: float | None,
    fallback: Sequence[float],
    cap_s: float | None,
    token: int,
    adjusted: Mapping[str, int] | None = None,
    cap_why: str = "",
    origin: Origin | None = None,
    begin: Begin = FROM_THE_START,
) -> Prepared:
    """Write an attempt's configuration and spec beside its run folder; `Prepared.put` makes it that.

    Nothing that an attempt has written is touched here, because whoever prepares may have lost the
    study to another orchestrator and not know it yet. `token` is the lease's; `adjusted` are keys
    that differ from the trial's point in this attempt ([on_oom]); `origin` is the checkpoint that
    it goes on from, `begin` where the trial itself began.

    Raises:
        DiskUnusable: the run folder cannot be written.
    """
    changes = dict(adjusted or {})
    steps = begin.steps or study.limits.steps
    if begin.own_target:
        target, fallback = begin.target, ()
    point = {**trial.point, **{k: v for k, v in changes.items() if k in study.space.parameters}}
    config = configuration(study, trial, begin, target=target, fallback=fallback, adjusted=changes)
    argv = fill_command(
        study,
        point,
        config=paths.config,
        events=paths.raw_events,
        run_dir=paths.folder,
        target=target,
        seed=trial.seed,
    )
    start_from = begin.document()
    if origin is not None:
        argv += _with_checkpoint(study.trainer.resume, origin.checkpoint)
        start_from |= {"offset": dict(origin.before or {})} if start_from else {}
    elif begin.checkpoint is not None:
        argv += _with_checkpoint(begin.arguments, begin.checkpoint)
    env: dict[str, str | None] = {
        **study.trainer.env,
        **slot.env,
        "SWEEP_SEED": str(trial.seed),
        "SWEEP_TARGET": None if target is None else repr(target),
        "SWEEP_MAX_STEPS": str(steps),
        "SWEEP_EVENTS": None if study.trainer.patterns else str(paths.raw_events),
        "SWEEP_RUN_DIR": str(paths.folder),
    }
    spec = AttemptSpec(
        study=study.name,
        trial=trial.id,
        attempt=attempt,
        argv=argv,
        cwd=str((study.folder / (study.trainer.cwd or ".")).resolve()),
        run_dir=str(paths.folder),
        metric=study.objective.metric,
        clock=study.objective.clock,
        target=target,
        trial_s=study.limits.trial_s,
        silence_s=study.limits.silence_s,
        startup_s=study.limits.startup_s,
        grace_s=study.limits.grace_s,
        max_steps=steps,
        env=env,
        reader="patterns" if study.trainer.patterns else "events",
        patterns=dict(study.trainer.patterns),
        cap_s=cap_s,
        cap_why=cap_why,
        device=dict(slot.device),
        adjusted=changes,
        continues=origin.attempt if origin else 0,
        start_from=start_from,
    )
    try:
        with _draft(paths, token) as draft:
            if study.trainer.config is not None:
                write_whole(draft.config, tomli_w.dumps(config), lasting=False)
            write_json(draft.spec, spec.to_json(), lasting=False)
    except OSError as error:
        raise disk_unusable(paths.folder, error) from None
    return Prepared(draft, paths)


def configuration(
    study: Study,
    trial: PlannedTrial,
    begin: Begin,
    *,
    target: float | None,
    fallback: Sequence[float] = (),
    adjusted: Mapping[str, Value] | None = None,
) -> dict[str, Any]:
    """The trainer's configuration of a trial that begins so, for a target (None: to its last step)."""
    config = resolve_config(
        study,
        trial.point,
        seed=trial.seed,
        target=target,
        fallback=fallback,
        max_steps=begin.steps or study.limits.steps,
    )
    for key, value in {**begin.changes, **(adjusted or {})}.items():
        if key != START_FROM and not study.is_frozen(key):
            set_key(config, key, value)
    return config


def _with_checkpoint(arguments: Sequence[str], checkpoint: Path) -> list[str]:
    return [word.replace("{checkpoint}", str(checkpoint)) for word in arguments]


@dataclass(frozen=True)
class Prepared:
    """All files of an attempt that is about to start, in a folder that nobody else looks into."""

    draft: AttemptPaths
    paths: AttemptPaths

    def put(self) -> Path:
        """Make it the attempt's run folder; returns the spec's path.

        A run folder that is there already is never replaced: the attempt is somebody else's.

        Raises:
            FileExistsError: there is one, or who came after us took our draft away.
            DiskUnusable: it cannot be written.
        """
        try:
            self.draft.folder.rename(self.paths.folder)
        except OSError as error:
            swept = error.errno == errno.ENOENT and self.paths.folder.parent.is_dir()
            self.drop()
            if swept or error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise FileExistsError(errno.EEXIST, "is there", str(self.paths.folder)) from None
            raise disk_unusable(self.paths.folder, error) from None
        return self.paths.spec

    def drop(self) -> None:
        """Take it away again."""
        shutil.rmtree(self.draft.folder, ignore_errors=True)


@contextlib.contextmanager
def _draft(paths: AttemptPaths, token: int) -> Iterator[AttemptPaths]:
    """An empty folder beside an attempt's, of a name that only this lease's holder uses.

    Those of earlier leases, whose holders died (or will be refused), are taken away.

    Raises:
        OSError: it cannot be made.
    """
    trial = paths.folder.parent
    # The study's folder is made when its plan is frozen. If it is gone, then so is the mount that it
    # was on, and what lies below must not be written to.
    trial.parent.stat()
    make_private(trial)
    for left in trial.glob(".draft-*"):
        of = left.name.removeprefix(".draft-")
        if of.isdigit() and int(of) <= token:
            shutil.rmtree(left, ignore_errors=True)
    draft = AttemptPaths(trial / f".draft-{token}")
    make_private(draft.folder)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise


def disk_unusable(folder: Path, error: OSError) -> DiskUnusable:
    """The trouble with a folder that is to be written, in words: full, read-only, vanished."""
    what = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission denied",
        errno.ENOENT: "it is gone; is what it was on still mounted?",
    }.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
    return DiskUnusable(
        f"folder {folder}: {what}. Nothing recorded so far is lost: make room (or choose "
        "another --home), then give the same command again"
    )


def read_events(paths: AttemptPaths, metric: str) -> Fold:
    """Fold an attempt's normalised stream up to its end, or to a line that a full disk tore."""
    fold = Fold(metric)
    with contextlib.suppress(FileNotFoundError, EventError), paths.events.open("rb") as file:
        for line in file:
            if line.strip():
                fold.add(parse_line(line))
    return fold


def collect(paths: AttemptPaths, metric: str) -> AttemptFacts | None:
    """All that is known after an attempt, or None while it has no outcome.

    An outcome file that cannot be read (a torn disk) becomes a `lost` failure.
    """
    try:
        outcome = AttemptOutcome.read(paths.outcome)
    except FileNotFoundError:
        return None
    except (SpecError, OSError) as error:
        return lost(paths, f"the outcome file cannot be read: {error}")
    fold = read_events(paths, metric)
    started: Mapping[str, Any] = fold.started or {}
    curve, device = tuple(fold.curve), _device(outcome)
    spec = _spec(paths)
    former = _continued(paths, metric, started, spec)
    resumed, counts_from = started.get("resumed_from"), started.get("counts_from") or {}
    if former is not None and isinstance(resumed, Mapping):
        step = resumed["step"] - counts_from.get("step", 0)
        curve = (*(e for e in former.curve if e.step <= step), *curve)
        train_s = _train_s(resumed) - _train_s(counts_from)
        device["continues"] = {"attempt": former.attempt, "train_s": train_s}
    if spec is not None and spec.start_from:
        said = {k: v for k, v in spec.start_from.items() if k != "offset"}
        device["starts_from"] = {**said, **counts_from}
    finished: Mapping[str, Any] = fold.finished or {}
    train_s = fold.clock.train
    return AttemptFacts(
        attempt=outcome.attempt,
        outcome=outcome.outcome,
        reason=outcome.reason,
        message=outcome.message,
        curve=curve,
        phases=fold.clock,
        steps=fold.step,
        tokens=fold.tokens,
        best_loss=best_value(curve),
        tokens_per_s=fold.tokens / train_s if train_s > 0 and fold.tokens else None,
        peak_memory_bytes=_whole(finished.get("peak_memory_bytes")),
        cap_s=outcome.cap_s,
        wall_s=outcome.wall_s,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        exit_code=outcome.exit_code if outcome.signal is None else -outcome.signal,
        device=device,
        validity=outcome.validity,
        fingerprint={
            "hardware": started.get("hardware"),
            "versions": started.get("versions"),
            "data_hash": started.get("data_hash"),
            "trainer": started.get("trainer"),
        },
        clock_source=outcome.clock_source,
    )


def _spec(paths: AttemptPaths) -> AttemptSpec | None:
    try:
        return AttemptSpec.read(paths.spec)
    except (SpecError, OSError):
        return None


def _train_s(said: Mapping[str, Any]) -> float:
    return Phases.from_mapping(said.get("clock") or {}).train


def _continued(
    paths: AttemptPaths, metric: str, started: Mapping[str, Any], spec: AttemptSpec | None
) -> AttemptFacts | None:
    """The attempt that this one went on from, if its trainer says that it did."""
    resumed = started.get("resumed_from")
    if spec is None or not isinstance(resumed, Mapping) or not _whole(resumed.get("step")):
        return None
    trial, attempt = paths.folder.parent, spec.continues
    if not attempt and spec.start_from.get("extends"):
        trial, attempt = trial.with_name(spec.start_from["of"]), spec.start_from["attempt"]
    return collect(AttemptPaths(trial / f"attempt-{attempt}"), metric) if attempt else None


def give_up(paths: AttemptPaths, message: str) -> bool:
    """Leave `lost` as the outcome of an attempt that no runner has, unless one has it after all.

    A runner that was started and only comes late (frozen, a slow disk) then finds that its attempt
    has ended; an orchestrator that only comes late finds its place taken. Returns False when a living
    runner has claimed the folder; where no folder can be made, nothing can run either.
    """
    facts = lost(paths, message)
    try:
        device = dict(AttemptSpec.read(paths.spec).device)
    except (SpecError, OSError):
        device = {}
    outcome = AttemptOutcome(
        study=paths.folder.parent.parent.name,
        trial=paths.folder.parent.name,
        attempt=facts.attempt,
        outcome=facts.outcome,
        reason=facts.reason,
        message=facts.message,
        exit_code=None,
        signal=None,
        started_at=facts.started_at,
        ended_at=facts.ended_at,
        wall_s=0.0,
        device=device,
    )
    with contextlib.suppress(OSError), contextlib.ExitStack() as held:
        if not paths.folder.exists():  # begun, and killed before there was anything to start
            with contextlib.suppress(FileExistsError), _draft(paths, 0) as draft:
                write_json(draft.outcome, outcome.to_json())
                Prepared(draft, paths).put()
        folder = os.open(paths.folder, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what a runner's claim is
        except BlockingIOError:
            return False
        if not paths.outcome.exists():
            write_json(paths.outcome, outcome.to_json())
    return True


def lost(paths: AttemptPaths, message: str) -> AttemptFacts:
    """What is known of an attempt whose runner vanished without an outcome: that it is lost."""
    try:
        spec = AttemptSpec.read(paths.spec)
        attempt = spec.attempt
        started_at = paths.spec.stat().st_mtime
    except (SpecError, OSError):
        attempt = int(paths.folder.name.removeprefix("attempt-"))
        started_at = 0.0
    return AttemptFacts(
        attempt=attempt,
        outcome=Outcome.FAILED,
        reason=Reason.LOST,
        message=message,
        started_at=started_at,
        ended_at=started_at,
    )


def _device(outcome: AttemptOutcome) -> dict[str, Any]:
    """The device, how the trainer was started, what was observed and what was adjusted for memory."""
    device = {**outcome.device, "start": "warm" if outcome.warm else "cold"}
    if outcome.observed:
        device["observed"] = dict(outcome.observed)
    if outcome.adjusted:
        device["adjusted"] = dict(outcome.adjusted)
    return device


def read_samples(paths: AttemptPaths) -> list[DeviceSample]:
    """Looks at the device while the attempt ran, at most MOST_SAMPLES of them, evenly spread."""
    found = []
    with contextlib.suppress(OSError), paths.samples.open("rb") as file:
        for line in file:
            try:
                sample = json.loads(line)
                device, at_s = str(sample["device"]), float(sample["at_s"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # torn by a full disk
            figures = {name: finite(sample.get(name)) for name in _FIGURES}
            memory = _whole(sample.get("memory_bytes"))
            found.append(DeviceSample(device, at_s, memory_bytes=memory, **figures))
    every = max(1, math.ceil(len(found) / MOST_SAMPLES))
    return found[::every]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Follow:
    """Reads what was added to an attempt's event stream since the last look.

    Used by the loop for its display only; what is recorded is read once, when the attempt has ended.
    """

    def __init__(self, paths: AttemptPaths) -> None:
        self._path = paths.events
        self._offset = 0
        self._rest = b""

    def new(self) -> list[dict[str, Any]]:
        """Whole new events; an unreadable line is skipped, a missing file has none."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(1 << 20)
        except OSError:
            return []
        self._offset += len(data)
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                found.append(event)
        return found
