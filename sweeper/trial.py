"""What a trial is, how an attempt at it ended, why, and what was measured: separate frozen values.

It must not know processes, databases or samplers; standard library only, because the runner uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:  # the runner needs no spaces, and is in a hurry
    from sweeper.space import Point, Value

Clock = Literal["train", "train+eval", "wall"]
SliceName = Literal["probe", "confirmation"]
StageName = Literal["prepare", "stage1", "stage2", "confirm", "extend"]
"""In the order in which they run; `prepare` and `extend` leave checkpoints and have no ranking."""


UNRANKED: tuple[StageName, ...] = ("prepare", "extend")
"""Stages whose times are compared with nobody's."""


class Outcome(StrEnum):
    """How an attempt ended (method section 2)."""

    REACHED = "reached"
    CENSORED = "censored"
    FAILED = "failed"
    INVALID = "invalid"


class Reason(StrEnum):
    """Why an attempt ended; each belongs to one outcome."""

    TARGET = "target"

    CAP = "cap"
    TIMEOUT = "timeout"
    STEPS = "steps"
    FORECAST = "forecast"
    BUDGET = "budget"
    DIVERGED = "diverged"

    OOM = "oom"
    CRASHED = "crashed"
    HUNG = "hung"
    KILLED = "killed"
    CONFIG = "config"
    ENVIRONMENT = "environment"
    DEVICE = "device"
    LOST = "lost"

    SHARED_DEVICE = "shared_device"
    THROTTLED = "throttled"
    FINGERPRINT = "fingerprint"


OUTCOME_OF: Mapping[Reason, Outcome] = {
    Reason.TARGET: Outcome.REACHED,
    **dict.fromkeys(
        (
            Reason.CAP,
            Reason.TIMEOUT,
            Reason.STEPS,
            Reason.FORECAST,
            Reason.BUDGET,
            Reason.DIVERGED,
        ),
        Outcome.CENSORED,
    ),
    **dict.fromkeys(
        (
            Reason.OOM,
            Reason.CRASHED,
            Reason.HUNG,
            Reason.KILLED,
            Reason.CONFIG,
            Reason.ENVIRONMENT,
            Reason.DEVICE,
            Reason.LOST,
        ),
        Outcome.FAILED,
    ),
    **dict.fromkeys((Reason.SHARED_DEVICE, Reason.THROTTLED, Reason.FINGERPRINT), Outcome.INVALID),
}


class Phases(NamedTuple):
    """Cumulative seconds per phase of an attempt, read by the trainer on a monotonic clock.

    A named tuple, as `Evaluation` is: reports hold millions of them.
    """

    startup: float = 0.0
    data: float = 0.0
    compile: float = 0.0
    train: float = 0.0
    eval: float = 0.0
    checkpoint: float = 0.0
    idle: float = 0.0

    @classmethod
    def from_mapping(cls, clock: Mapping[str, Any]) -> Phases:
        """Known phases of a protocol `clock`; unknown ones are ignored, missing ones are 0."""
        return cls(*[float(clock.get(name, 0.0)) for name in cls._fields])

    def as_dict(self) -> dict[str, float]:
        """Phase name to seconds."""
        return self._asdict()

    def seconds(self, clock: Clock) -> float:
        """Seconds on the clock that ranks: train, train+eval, or wall (all phases)."""
        if clock == "train":
            return self.train
        if clock == "train+eval":
            return self.train + self.eval
        return sum(self)


NOTHING_YET = Phases()


class Evaluation(NamedTuple):
    """One measurement of the metric on one validation slice.

    `value` is in the metric's unit (nats for a loss) and may be NaN: the run diverged.
    """

    step: int
    tokens: int
    clock: Phases
    value: float
    slice: SliceName = "probe"


CONTROL = "control"
"""The group of the baseline's repeats that a study spreads over stage 1 (`control_every`)."""


@dataclass(frozen=True)
class PlannedTrial:
    """A point with a seed, in its stage, before anything ran.

    `id` is unique within a study and stable (`s1-A3`, `s2-07`, `c-02-1`). `open` names parameters
    whose value is only assumed until an earlier group has a winner: such a trial is not ready.
    `replicate_of` is the id of the trial whose point this one repeats on purpose.
    """

    id: str
    stage: StageName
    label: str
    groups: tuple[str, ...]
    point: Point
    seed: int
    replicate_of: str | None = None
    open: tuple[str, ...] = ()
    block: int = 0


@dataclass(frozen=True)
class Lock:
    """A parameter that stage 2 does not vary: its value, and the evidence."""

    value: Value
    why: str


@dataclass(frozen=True)
class StagePlan:
    """A fixed list of trials chosen before any result of their stage (or group).

    `entries` counts declared rows, `distinct` different points. `design` holds the printed properties
    of a designed stage (kind, runs, d_efficiency, max_alias, balance, ...), JSON values only.
    """

    study: str
    stage: StageName
    target: float
    trials: tuple[PlannedTrial, ...]
    entries: int
    distinct: int
    depends_on: Mapping[str, str] = field(default_factory=dict)
    locked: Mapping[str, Lock] = field(default_factory=dict)
    varying: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    open: Mapping[str, Value] = field(default_factory=dict)
    design: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttemptFacts:
    """All that is known after one try at a trial; verdicts are computed from it, never stored in it.

    `cap_s` is the seconds on the ranking clock that the attempt was judged against when it was
    stopped (None when nothing capped it). `started_at` and `ended_at` are Unix times, for people;
    `wall_s` is a monotonic duration. `device` and `fingerprint` describe where it ran; `device` also
    has what was `observed` there (a mapping), which keys were `adjusted` for its memory, and which
    attempt it `continues` from its checkpoint (curve and clock then include that one's), and which
    checkpoint it `starts_from` (steps, tokens and clock count from there). `validity`
    is valid, suspect or invalid; what raised a doubt stands in `device["observed"]["doubts"]`.
    """

    attempt: int
    outcome: Outcome
    reason: Reason
    message: str = ""
    curve: Sequence[Evaluation] = ()
    phases: Phases = NOTHING_YET
    steps: int = 0
    tokens: int = 0
    best_loss: float | None = None
    tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    cap_s: float | None = None
    wall_s: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    exit_code: int | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    validity: str = "valid"
    clock_source: Literal["trainer", "runner"] = "trainer"

    @property
    def own_train_s(self) -> float:
        """Train seconds of this attempt alone: one that went on from a checkpoint had some before."""
        continued = self.device.get("continues")
        return self.phases.train - (continued["train_s"] if continued else 0.0)

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """Room for what is computed from this value again and again (times to targets); no fact."""
        return {}


class Brief(NamedTuple):
    """The little of an ended attempt that says how a stage stands: thousands are read in no time."""

    trial_id: str
    outcome: Outcome
    wall_s: float
    best_loss: float | None
    phases: Phases


@dataclass(frozen=True)
class DeviceSample:
    """One look at a device while an attempt ran, `at_s` seconds (monotonic) after its start.

    `utilisation` is a share, 0 to 1; a figure that the device does not have is None.
    """

    device: str
    at_s: float
    utilisation: float | None = None
    memory_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None


@dataclass(frozen=True)
class TrialFacts:
    """A planned trial with every attempt that has ended, oldest first."""

    trial: PlannedTrial
    attempts: tuple[AttemptFacts, ...] = ()

    @property
    def counted(self) -> AttemptFacts | None:
        """The attempt that counts: the last that was measured, else the last failure, else None."""
        for attempt in reversed(self.attempts):
            if attempt.outcome in (Outcome.REACHED, Outcome.CENSORED):
                return attempt
        return self.attempts[-1] if self.attempts else None
