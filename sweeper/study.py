"""A study and its parts as frozen values: the question, the trainer, the limits, the stages.

It must not know that TOML, Optuna, Postgres or GPUs exist; `study_file` makes it for all others.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sweeper.space import Point, Space, Value
from sweeper.trial import Clock, StageName

START_FROM = "start_from"
"""The parameter of the space that chooses among the study's starts; it is no key of the trainer's."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    """A part of a study: it cannot change, and refuses keys that it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, strict=True, defer_build=True
    )


class Objective(Frozen):
    """What is minimised: seconds until `metric` is at or below `target`, or the final metric.

    With goal "final" every trial runs to the end of its budget. `target` is then the level to beat:
    it ends nothing and ranks nothing, but the time at which it was crossed is still told.
    """

    goal: Literal["time_to_target", "final"] = "time_to_target"
    metric: str = "val_loss"
    target: Finite
    fallback: tuple[Finite, ...] = ()
    stretch: tuple[Finite, ...] = ()
    clock: Clock = "train"

    @property
    def is_final(self) -> bool:
        """Whether the metric at the budget's end ranks, and not a time."""
        return self.goal == "final"

    def easier(self, target: float) -> tuple[float, ...]:
        """Every declared target that is easier to reach than this one, the hardest first."""
        declared = {self.target, *self.stretch, *self.fallback}
        return tuple(sorted(goal for goal in declared if goal > target))


class TrainerCommand(Frozen):
    """How a trial is started: an argument vector, never a shell.

    `config` is what the space's dotted keys point into (TOML or JSON, relative to the study's
    folder); `new_keys` allows keys of the space that it leaves out. `patterns` are regular
    expressions for a script whose output must be read, those of a ready set among them. `resume` is
    appended to the command where a trial goes on from its `{checkpoint}`; without it no trial can.
    `schedule` is a command that shows the learning rates that a `{config}` would be trained with.
    """

    command: tuple[str, ...] = Field(min_length=1)
    config: str | None = None
    new_keys: bool = False
    module: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = {}
    patterns: Mapping[str, str] = {}
    resume: tuple[str, ...] = ()
    schedule: tuple[str, ...] = ()


class Phase(Frozen):
    """A run that the study makes before its trials: the baseline with `set`, without a target.

    It is run once for each seed that needs its checkpoint, to the end of its `steps`.
    """

    steps: int = Field(gt=0)
    set: Mapping[str, Value] = {}


class Start(Frozen):
    """One way in which a trial may begin: from a checkpoint, or (with neither of both) afresh.

    The checkpoint is that of a `phase` with the trial's own seed, or a file (relative to the study's
    folder). `arguments` are added to the trainer's command and name its `{checkpoint}`; `preview`
    takes their place in `[trainer] schedule` before there is one, and may name the `{phase}`'s
    configuration (none: not known before). `steps` is the limit as the trainer counts, which may
    include steps before.
    """

    phase: str | None = None
    checkpoint: str | None = None
    arguments: tuple[str, ...] = ()
    preview: tuple[str, ...] | None = None
    steps: int | None = Field(default=None, gt=0)


class Limits(Frozen):
    """Limits of one trial.

    `trial_s` is seconds on the wall after start-up and compile are excluded: the trainer's own clock
    where it has one, and the runner's wall as a backstop.
    """

    steps: int = Field(gt=0)
    trial_s: Positive
    silence_s: Positive = 120.0
    startup_s: Positive = 600.0
    grace_s: Positive = 15.0


class Resources(Frozen):
    """Whole devices per trial; 0 means CPU only.

    `price_per_hour` is what one device (or CPU slot) costs in `currency`, for the report alone.
    """

    gpus: int = Field(default=1, ge=0)
    price_per_hour: Positive | None = None
    currency: str = "USD"


class BestOf(Frozen):
    """Take these parameters from the level that wins an earlier group."""

    group: str
    parameters: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Row:
    """One declared entry of a group, before baselines, ties and `best_of` complete it.

    `index` counts from 1 and never changes; `base` is the 0-based base that it stands on.
    `settings` is the group's own level here, `values` that level and the base together.
    """

    index: int
    base: int
    settings: Mapping[str, Value]
    values: Mapping[str, Value]


class Group(Frozen):
    """A named part of stage 1: exactly one of grid, vary and configs, crossed with bases."""

    name: str
    title: str = ""
    grid: Mapping[str, tuple[Value, ...]] = {}
    vary: Mapping[str, tuple[Value, ...]] = {}
    configs: tuple[Mapping[str, Value], ...] = ()
    bases: tuple[Mapping[str, Value], ...] = ({},)
    best_of: BestOf | None = None

    def levels(self) -> tuple[Mapping[str, Value], ...]:
        """The settings that every base is crossed with: grid cells, one-factor changes, configs."""
        if self.grid:
            cells = itertools.product(*self.grid.values())
            return tuple(dict(zip(self.grid, cell, strict=True)) for cell in cells)
        if self.vary:
            return tuple({name: v} for name, values in self.vary.items() for v in values)
        return self.configs

    def rows(self) -> Iterator[Row]:
        """Every entry, base after base."""
        pairs = itertools.product(enumerate(self.bases), self.levels())
        for index, ((base, given), settings) in enumerate(pairs, start=1):
            yield Row(index, base, settings, {**given, **settings})


class Tie(Frozen):
    """`parameter` scales with `follows` by a power, where a point does not set it itself.

    Both count relative to their baselines: exponent 1 is linear, 0.5 the square root.
    """

    parameter: str
    follows: str
    exponent: Finite


class Stage1(Frozen):
    """The broad stage of declared groups."""

    group: tuple[Group, ...] = Field(min_length=1)
    duplicates: Literal["reuse", "replicate"] = "reuse"
    control_every: int = Field(default=0, ge=0)


class Stage2(Frozen):
    """The designed fraction around the top k."""

    from_top: int = Field(default=5, ge=1)
    runs: int = Field(default=36, ge=1)
    replicates: int = Field(default=3, ge=0)
    interactions: tuple[tuple[str, str], ...] = ()
    strategy: Literal["fraction", "tpe", "gp"] = "fraction"
    extra: int = Field(default=0, ge=0)


class Confirm(Frozen):
    """Fresh-seed repeats of the finalists and the baseline, interleaved in blocks."""

    top: int = Field(default=3, ge=1)
    repeats: int = Field(default=10, ge=1)


class Racing(Frozen):
    """Which rules may end a trial early (method section 4), each on its own.

    `expect` foresees the k-th best before all points have been seen (see `racing.cap`). `slack` None
    means: from the replicate spread. `grace_s` is the least cap. `late_decay` declares that losses fall
    late, so that no forecast stops a trial. `stretch` lets trials that reached go on to the next target
    of `[objective] stretch`, once the times of all are within noise of each other.
    """

    cap: bool = True
    expect: bool = True
    questions: bool = True
    replicates: bool = True
    order: bool = True
    forecast: bool = True
    rungs: bool = False
    fallback: bool = True
    stretch: bool = True
    late_decay: bool = False
    slack: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    grace_s: Positive = 1.0


class Validity(Frozen):
    """Which measurements may be believed (method section 7).

    `gate` judges every attempt: by its fingerprint and, with `pace`, by how its device was disturbed
    and how long it took (goal "final" leaves that out: no time ranks there). `mixed` lets trials of
    different hardware, versions or data be ranked together.
    """

    gate: bool = True
    pace: bool = True
    mixed: bool = False


class OnOom(Frozen):
    """When a device runs out of memory: halve one key, double the other, same effective batch."""

    micro_batch: str
    accumulation: str


class Checkpoints(Frozen):
    """Whose checkpoints stay when a stage is closed: those of its top k, of all trials, of none."""

    keep: Literal["top", "all", "none"] = "top"


class Notify(Frozen):
    """An argument vector that is started when a stage ends, stops early, or looks out of reach.

    `{event}`, `{study}`, `{stage}` and `{text}` are filled in; a JSON document is on its stdin.
    """

    command: tuple[str, ...] = Field(min_length=1)
    timeout_s: Positive = 30.0


class Question(Frozen):
    """A question that the report answers by name: levels of one parameter, all else equal.

    No `levels` means all of them; `at` restricts the answer to points with these values.
    """

    text: str
    parameter: str
    levels: tuple[Value, ...] = ()
    at: Mapping[str, Value] = {}

    def is_arm(self, point: Point) -> bool:
        """Whether the point may be one side of this question: one of its levels, and its `at`."""
        if self.parameter not in point:
            return False
        if self.levels and point[self.parameter] not in self.levels:
            return False
        return all(point.get(name) == value for name, value in self.at.items())


@dataclass(frozen=True)
class Rivals:
    """Ids of trials of which one wins for its group, which others build on: on one base of it.

    `several_bases`: the group stands on more than one, and ratios are averaged over them.
    """

    trials: frozenset[str]
    several_bases: bool


def question_partners(
    questions: Sequence[Question], points: Collection[Point]
) -> Mapping[Point, Sequence[Point]]:
    """For every point that is an arm of a declared question: the points it is compared with there.

    Two points are arms of one question when they differ in its parameter alone, and both have one of
    its levels and its `at`.
    """
    found: dict[Point, list[Point]] = {}
    for question in questions:
        arms: dict[Point, list[Point]] = {}
        for point in dict.fromkeys(points):
            if question.is_arm(point):
                rest = Point({n: v for n, v in point.items() if n != question.parameter})
                arms.setdefault(rest, []).append(point)
        for together in arms.values():
            for arm in together:
                found.setdefault(arm, []).extend(p for p in together if p != arm)
    return {arm: tuple(dict.fromkeys(others)) for arm, others in found.items() if others}


class Study(Frozen):
    """One question, whole.

    `folder` is where its file lives, `words` name it on a command line, its scale and block too
    (none: its name), `switches` are what else the command line changed in it; `base` is the trainer
    configuration that the space's keys point into (empty when the trainer has none).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    folder: Path
    words: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    objective: Objective
    trainer: TrainerCommand
    limits: Limits
    resources: Resources = Resources()
    space: Space
    ties: tuple[Tie, ...] = ()
    forbid: tuple[Mapping[str, Value], ...] = ()
    frozen: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    stage1: Stage1
    stage2: Stage2 = Stage2()
    confirm: Confirm = Confirm()
    racing: Racing = Racing()
    validity: Validity = Validity()
    on_oom: OnOom | None = None
    checkpoints: Checkpoints = Checkpoints()
    notify: Notify | None = None
    phases: Mapping[str, Phase] = {}
    starts: Mapping[str, Start] = {}
    seed: int = 1
    base: Mapping[str, Any] = {}

    def block(self, kind: str) -> Study:
        """Its block on nodes of one kind: a study of its own, so that no time meets another kind's.

        Raises:
            ValueError: the kind has no letter or digit to be named by.
        """
        word = "-".join(re.findall(r"[a-z0-9]+", kind.lower()))[:32].strip("-")
        if not word:
            raise ValueError(f"got {kind!r}, expected a name with letters or digits")
        return self.model_copy(
            update={
                "name": f"{self.name[: 63 - len(word)]}-{word}",
                "words": (*(self.words or (self.name,)), "--node-kind", kind),
            }
        )

    def command(self, verb: str, *options: str, trial: str = "") -> str:
        """A command line about this very study, or about a trial of it, for a shell."""
        named = [trial, "--study"] if trial else []
        return shlex.join(["sweep", *verb.split(), *named, *(self.words or (self.name,)), *options])

    @property
    def trust(self) -> Validity:
        """Its validity rules, without those of pace where no time ranks."""
        if not self.objective.is_final:
            return self.validity
        return self.validity.model_copy(update={"pace": False})

    def checkpoint_of(self, start: str) -> Path | None:
        """The file that a start names, from the root; None where it names none."""
        named = self.starts[start].checkpoint
        return None if named is None else (self.folder / named).resolve()

    def is_frozen(self, key: str) -> bool:
        """Whether a dotted key is frozen, itself or within a frozen table."""
        return any(key == frozen or key.startswith(f"{frozen}.") for frozen in self.frozen)

    def definition(self, stage: StageName) -> dict[str, Any]:
        """What a stage's plan is frozen on, as JSON values.

        Everything that could change its points or what its times mean. Titles, questions and later
        stages are left out, and with them the number of levels, which only stage 2 uses. A checkpoint
        file is there with its content's hash: another file under its name is another start.
        """
        unused = {"name"} if stage == "stage2" else {"name", "levels"}
        parts: dict[str, Any] = {
            "objective": self.objective.model_dump(mode="json", exclude={"fallback", "stretch"}),
            "trainer": self.trainer.model_dump(
                mode="json", exclude={"module", "resume", "schedule"}
            ),
            "limits": self.limits.model_dump(mode="json", include={"steps", "trial_s"}),
            "resources": self.resources.model_dump(mode="json", include={"gpus"}),
            "space": {
                name: {"type": type(parameter).__name__.lower()}
                | {k: v for k, v in vars(parameter).items() if k not in unused}
                for name, parameter in self.space.parameters.items()
            },
            "ties": [tie.model_dump(mode="json") for tie in self.ties],
            "forbid": [dict(f) for f in self.forbid],
            "frozen": list(self.frozen),
            "base": self.base,
            "seed": self.seed,
        }
        for name, tables in (("phase", self.phases), ("start", self.starts)):
            if tables:
                parts[name] = {
                    key: table.model_dump(mode="json", exclude={"preview"})
                    for key, table in tables.items()
                }
        for key in self.starts:
            if (path := self.checkpoint_of(key)) is not None:
                parts["start"][key]["sha256"] = content_sha256(path)
        if stage == "stage1":
            parts["stage1"] = self.stage1.model_dump(mode="json")
        elif stage == "stage2":
            parts["stage2"] = self.stage2.model_dump(mode="json")
        plain: dict[str, Any] = json.loads(json.dumps(parts, default=_plain, sort_keys=True))
        return plain

    def definition_hash(self, stage: StageName) -> str:
        """SHA-256 of the definition's canonical JSON, 64 hexadecimal digits."""
        text = json.dumps(self.definition(stage), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def content_sha256(path: Path) -> str | None:
    """SHA-256 of a file's content, 64 hexadecimal digits; None where it cannot be read.

    A file of the same size and times as before is not read again.
    """
    try:
        found = path.stat()
        seen = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return _content_sha256(path, *seen)
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _content_sha256(path: Path, *_seen: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return str(value)
