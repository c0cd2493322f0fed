"""What a runner is asked to do and what it answers: the two JSON documents of an attempt.

It must not know stages, Optuna, the database or which executor carries it; standard library only.
"""

from __future__ import annotations

import functools
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from sweeper.trial import Clock, Outcome, Reason

SPEC_VERSION = 1
LARGEST = 2**63
"""No number in these documents is as large as this."""
CANCELLED = "cancelled"
"""The message of an attempt that was ended by `sweep cancel`: it is not tried again by itself."""


class SpecError(ValueError):
    """A spec or outcome document that is not of this version or lacks something."""


class _Document:
    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the version."""
        return {"v": SPEC_VERSION, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Parse and check a document; unknown keys are refused.

        Raises:
            SpecError: another version, an unknown key, a missing one, or a value of another kind.
        """
        if not isinstance(document, dict) or document.get("v") != SPEC_VERSION:
            raise SpecError(f"{cls.__name__}: expected an object with v = {SPEC_VERSION}")
        values = {k: v for k, v in document.items() if k != "v"}
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise SpecError(f"{cls.__name__}: unknown key {unknown[0]!r}")
        for key, value in values.items():
            if not _fits(value, _kinds(cls)[key]):  # type: ignore[arg-type]
                kind = str(cls.__dataclass_fields__[key].type)  # type: ignore[attr-defined]
                shown = reprlib.repr(value)
                raise SpecError(f"{cls.__name__}: {key}: got {shown}, expected {kind}")
        try:
            return cls(**values)
        except TypeError as error:
            raise SpecError(f"{cls.__name__}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a document from a file.

        Raises:
            SpecError: not JSON or not this document.
            OSError: the file cannot be read.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{path}: {error}") from None


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's declared kind; numbers must be finite."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if origin in (dict, Mapping):
        items = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in items)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float)
        return number and not isinstance(value, bool) and -LARGEST < value < LARGEST
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, str) and value in [str(member) for member in kind]
    return kind is Any or isinstance(value, kind)


@dataclass(frozen=True)
class AttemptSpec(_Document):
    """One attempt, complete: a runner needs nothing else.

    `argv` is the trainer's argument vector with everything filled in; `env` is added to the
    inherited environment (None removes a variable). `reader` says what the trainer speaks: `events`
    (protocol lines in trainer.jsonl, SWEEP_EVENTS) or `patterns` (regular expressions on its output).
    Limits are seconds: `startup_s` from spawn to the first event after run_started, then `trial_s`
    on the clock of the trainer (all phases but startup and compile) or of the runner, with the wall
    as a backstop, `silence_s` without an event or output, `grace_s` between TERM and KILL, `cap_s` on
    the ranking clock (why, in words: `cap_why`). The run is stopped at `target`. `device["cores"]`,
    where given, are the logical processors that the trainer is kept on. `lease_s` is set for remote
    attempts only: the attempt ends when the file `lease` in its folder has not been touched for so
    long. `adjusted` are keys of the trainer's configuration whose values differ from the point's
    ([on_oom]). `continues` is the attempt of the same trial whose checkpoint it goes on from, or 0.
    `start_from`, where not empty, says which checkpoint the trial began with: `start` (its name in the
    study), `checkpoint` (path), `of` and `attempt` (the trial that left it, "" and 0 for a file, which
    has the `sha256` of its content), and `extends` (whether it goes on with that very trial). Steps,
    tokens and clock count from there: what the trainer says it resumed from is taken off, or `offset`
    (`step`, `tokens`, `clock`) where given.
    """

    study: str
    trial: str
    attempt: int
    argv: list[str]
    cwd: str
    run_dir: str
    metric: str
    clock: Clock
    target: float | None
    trial_s: float
    silence_s: float
    startup_s: float
    grace_s: float
    max_steps: int
    env: dict[str, str | None] = field(default_factory=dict)
    reader: Literal["events", "patterns"] = "events"
    patterns: dict[str, str] = field(default_factory=dict)
    cap_s: float | None = None
    cap_why: str = ""
    lease_s: float | None = None
    device: dict[str, Any] = field(default_factory=dict)
    adjusted: dict[str, Any] = field(default_factory=dict)
    continues: int = 0
    start_from: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttemptOutcome(_Document):
    """How an attempt ended, written last and whole; what was measured is in events.jsonl.

    `started_at` and `ended_at` are Unix times for people, `wall_s` is monotonic. `cap_s` is the cap
    in force when it was stopped for one, or forecast to miss it. `warm`: the trainer was forked from a
    warm parent.
    `cpu_s` is what the runner and all that it collected, the trainer too, used of processors.
    `stderr_tail` keeps the last lines for a failure's message.
    `observed` is what was seen on the device (lease, telemetry, shares, doubts in words); any doubt
    makes `validity` suspect. `adjusted` repeats the spec's.
    """

    study: str
    trial: str
    attempt: int
    outcome: Outcome
    reason: Reason
    message: str
    exit_code: int | None
    signal: int | None
    started_at: float
    ended_at: float
    wall_s: float
    cap_s: float | None = None
    clock_source: Literal["trainer", "runner"] = "trainer"
    warm: bool = False
    cpu_s: float | None = None
    stderr_tail: str = ""
    events: int = 0
    ignored_events: int = 0
    leftovers: list[int] = field(default_factory=list)
    device: Mapping[str, Any] = field(default_factory=dict)
    validity: Literal["valid", "suspect", "invalid"] = "valid"
    observed: Mapping[str, Any] = field(default_factory=dict)
    adjusted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Turn names read from JSON into their enums."""
        object.__setattr__(self, "outcome", Outcome(self.outcome))
        object.__setattr__(self, "reason", Reason(self.reason))


@dataclass(frozen=True)
class Control(_Document):
    """What the loop wants of a running attempt; a new file replaces the old one whole.

    `cap_s` replaces the cap of the spec, `cap_why` its reason. `forecast`, when not empty, says why the
    attempt need not go on: it is ended now (censored, forecast). `cancel` ends the attempt now (failed,
    killed). `drain` asks the trainer to stop by itself (TERM) and counts what it measured (censored,
    budget).
    """

    cap_s: float | None = None
    cap_why: str = ""
    forecast: str = ""
    cancel: bool = False
    drain: bool = False

    def __post_init__(self) -> None:
        """Refuse what a torn or foreign file may hold."""
        number = isinstance(self.cap_s, int | float) and not isinstance(self.cap_s, bool)
        if self.cap_s is not None and not (number and 0 <= self.cap_s < math.inf):
            raise SpecError(f"Control: cap_s: got {self.cap_s!r}, expected seconds or null")
        for key in ("cancel", "drain"):
            if not isinstance(value := getattr(self, key), bool):
                raise SpecError(f"Control: {key}: got {value!r}, expected true or false")
        for key in ("cap_why", "forecast"):
            if not isinstance(value := getattr(self, key), str):
                raise SpecError(f"Control: {key}: got {value!r}, expected words")


@dataclass(frozen=True)
class Running(_Document):
    """Who runs an attempt: a process that can be told from a later one of the same id.

    `start_time` is in clock ticks since boot and `boot` names the boot. `token` is what every process
    of the attempt carries in its environment (SWEEP_ATTEMPT). `trainer` is the trainer's process id
    once it has one.
    """

    pid: int
    start_time: int
    boot: str
    token: str
    started_at: float
    trainer: int | None = None
