"""One attempt's folder: what is put into it before the runner starts, or when it is given up.

It must not know databases, samplers or which executor carries the attempt.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from sweeper.configuration import fill_command, resolve_config, set_key
from sweeper.errors import DiskUnusable
from sweeper.executors.base import Slot
from sweeper.paths import AttemptPaths, make_private, write_json, write_whole
from sweeper.readout import lost
from sweeper.space import Value
from sweeper.spec import AttemptOutcome, AttemptSpec, SpecError
from sweeper.study import START_FROM, Study
from sweeper.trial import PlannedTrial


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
    config = configuration(study, trial, begin, target=target, fallback=fallback, adjusted=changes)
    point = {**trial.point, **{k: v for k, v in changes.items() if k in study.space.parameters}}
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
        env=_environment(study, trial, slot, paths, target=target, steps=steps),
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


def _environment(
    study: Study,
    trial: PlannedTrial,
    slot: Slot,
    paths: AttemptPaths,
    *,
    target: float | None,
    steps: int,
) -> dict[str, str | None]:
    """What a trainer's environment has beyond its parent's (None: has not), as docs/protocol.md says."""
    return {
        **study.trainer.env,
        **slot.env,
        "SWEEP_SEED": str(trial.seed),
        "SWEEP_TARGET": None if target is None else repr(target),
        "SWEEP_MAX_STEPS": str(steps),
        "SWEEP_EVENTS": None if study.trainer.patterns else str(paths.raw_events),
        "SWEEP_RUN_DIR": str(paths.folder),
    }


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
