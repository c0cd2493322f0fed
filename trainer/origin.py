"""Owns where a run begins: fresh weights, another run's, or a checkpoint of its own, and to where.

It must not know how a checkpoint is written, nor how the loop takes a state over.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoint, schedules
from trainer.checkpoint import CheckpointFolder
from trainer.config import Config
from trainer.config import Schedule as ScheduleConfig
from trainer.continuation import Continuation
from trainer.data.corpora import Corpus
from trainer.errors import CheckpointError, ConfigError
from trainer.events import RUN_DIR_VARIABLE
from trainer.roles import RoledParameter
from trainer.schedules import Schedule


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run begins and what it is planned to do from there.

    `state` is the state to go on from, None for a run that begins at step 0; `weights` are those
    to begin with, None for freshly drawn ones; `path` is the file of either.
    """

    folder: CheckpointFolder
    identity: Mapping[str, Any]
    schedule: Schedule
    max_steps: int
    path: Path | None = None
    state: Mapping[str, Any] | None = None
    weights: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def load_weights(self, into: Sequence[RoledParameter]) -> None:
        """Copy the weights to begin with; CheckpointError when they are of another model."""
        if self.weights is not None and self.path is not None:
            checkpoint.load_weights(self.path, self.weights, into)


def find_origin(config: Config, continuation: Continuation, corpus: Corpus) -> Origin:
    """Read and check the checkpoint that is asked for, and plan the schedule from there.

    Raises CheckpointError (missing, cut off, of another run, past the end; or a fresh run would
    delete the checkpoints of an earlier one) and ConfigError (options that contradict).
    """
    folder = CheckpointFolder(_folder(config), config.checkpoint.keep_last)
    identity = checkpoint.identity(config, data_hash=corpus.sha256, vocabulary=corpus.vocabulary)
    warnings: list[str] = []
    path, state = _former(continuation, folder.folder, warnings)
    max_steps = continuation.extend_steps or config.run.max_steps
    weights = None
    if path is not None and state is not None:
        extended = max_steps != state["max_steps"]
        checkpoint.refuse_stranger(path, state["identity"], identity, extended=extended)
        _refuse_finished(path, state, max_steps, config.run.target)
        weights = state["weights"]
    elif named := continuation.init_from or config.run.init_from:
        path = Path(named)
        weights = checkpoint.read(path)["weights"]
    if state is None and _saves(config):
        folder.refuse_earlier_run()
    return Origin(
        folder=folder,
        identity=identity,
        schedule=_schedule(config, max_steps, state),
        max_steps=max_steps,
        path=path,
        state=state,
        weights=weights,
        warnings=tuple(warnings),
    )


def planned_schedule(
    config: Config, continuation: Continuation, after: Config | None = None
) -> tuple[Schedule, int, int]:
    """The schedule that a run would apply, its first step, and its number of steps in all.

    It reads the checkpoint that is asked for and no data. With `after`, no checkpoint is needed: the
    run goes on from where one of that configuration ends when all its steps are done.

    Raises CheckpointError (nothing is left to do, or `_former`'s) and ConfigError (contradictions).
    """
    max_steps = continuation.extend_steps or config.run.max_steps
    if after is None:
        path, state = _former(continuation, _folder(config), [])
    elif continuation.resume is not None or continuation.init_from is not None:
        raise ConfigError("--after: expected no --resume or --init-from with it; it stands for one")
    else:
        end = after.run.max_steps
        former = schedules.plan(_in_steps(after), end)
        path, state = None, {"schedule": former.as_dict(), "max_steps": end, "progress": [end]}
    first = state["progress"][0] if state else 0
    if state is not None and first >= max_steps:
        raise CheckpointError(_past_the_end(path or Path("--after"), first, max_steps))
    return _schedule(config, max_steps, state), first, max_steps


def _folder(config: Config) -> Path:
    named = config.checkpoint.folder
    return Path(named) if named else Path(os.environ.get(RUN_DIR_VARIABLE, "."), "checkpoints")


def _former(
    continuation: Continuation, folder: Path, warnings: list[str]
) -> tuple[Path | None, dict[str, Any] | None]:
    if continuation.resume is None:
        if continuation.extend_steps is not None:
            raise ConfigError("--extend-steps: expected --resume with it, to say what is extended")
        return None, None
    if continuation.init_from is not None:
        raise ConfigError("--init-from: expected no --resume with it; each brings weights")
    return checkpoint.find(continuation.resume, folder, warnings.append) or (None, None)


def _refuse_finished(
    path: Path, state: Mapping[str, Any], max_steps: int, target: float | None
) -> None:
    step = state["progress"][0]
    if step >= max_steps:
        raise CheckpointError(_past_the_end(path, step, max_steps))
    if target is not None and target in state["confirmed"]:
        raise CheckpointError(
            f"{path}: it has reached run.target = {target:g} already: nothing is left to do; "
            "expected a lower target"
        )


def _past_the_end(path: Path, step: int, max_steps: int) -> str:
    return (
        f"{path}: it is at step {step}, and the run ends after {max_steps}: nothing is left to do; "
        "--extend-steps N with a larger N goes on"
    )


def _saves(config: Config) -> bool:
    when = config.checkpoint
    return bool(when.every_steps or when.at_end or when.on_term or when.keep_best)


def _in_steps(config: Config) -> ScheduleConfig:
    """The schedule's settings with a horizon in tokens told in steps."""
    settings, data = config.schedule, config.data
    if not settings.horizon_tokens:
        return settings
    steps = math.ceil(settings.horizon_tokens / (data.batch_size * data.context))
    return dataclasses.replace(settings, horizon=steps)


def _schedule(config: Config, max_steps: int, state: Mapping[str, Any] | None) -> Schedule:
    """The former plan where a run goes on as planned, else a new one from where it stands."""
    if state is None:
        return schedules.plan(_in_steps(config), max_steps)
    former = schedules.restored(state["schedule"])
    if max_steps == state["max_steps"]:
        return former
    return schedules.replan(config.schedule, former, step=state["progress"][0], max_steps=max_steps)
