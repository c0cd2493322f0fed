"""A study file in TOML becomes a frozen Study; every error names file, line, key and what to do.

It must not know that Optuna, Postgres or GPUs exist, nor how a plan is made of the groups.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from sweeper.configuration import get_key
from sweeper.pattern_sets import SETS
from sweeper.pattern_sets import patterns as pattern_set
from sweeper.space import Value
from sweeper.study import (
    Checkpoints,
    Confirm,
    Frozen,
    Limits,
    Notify,
    Objective,
    OnOom,
    Phase,
    Question,
    Racing,
    Resources,
    Stage1,
    Stage2,
    Start,
    Study,
    Tie,
    TrainerCommand,
    Validity,
)
from sweeper.study_file.checks import problems
from sweeper.study_file.parameters import read_space
from sweeper.study_file.source import Problem, Source, nearest, show

__all__ = ["load"]

FILE = "study.toml"


class _Head(Frozen):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    seed: int = Field(default=1, ge=0, le=2**31 - 1)


class _Document(Frozen):
    """A whole study file, [scale] taken out of it."""

    study: _Head
    objective: Objective
    trainer: TrainerCommand
    limits: Limits
    resources: Resources = Resources()
    space: Mapping[str, Any] = Field(min_length=1)
    tie: tuple[Tie, ...] = ()
    forbid: tuple[Mapping[str, Value], ...] = ()
    frozen: tuple[str, ...] = ()
    question: tuple[Question, ...] = ()
    stage1: Stage1
    stage2: Stage2 = Stage2()
    confirm: Confirm = Confirm()
    racing: Racing = Racing()
    validity: Validity = Validity()
    on_oom: OnOom | None = None
    checkpoints: Checkpoints = Checkpoints()
    notify: Notify | None = None
    phase: Mapping[str, Phase] = {}
    start: Mapping[str, Start] = {}


def load(path: Path, *, scale: str | None = None) -> Study:
    """Parse a study file (or the study.toml of a folder) into a Study.

    With `scale`, the tables under `[scale.NAME]` are merged over the file first: tables key by key,
    lists and values as a whole.

    Raises:
        StudyFileError: the first thing that is wrong, with its line.
    """
    file = path / FILE if path.is_dir() else path
    source = Source.read(file, scale)
    document = _with_set(source, source.fill(_Document, dict(source.document), ()))
    if problem := next(_not_yet(document), None):
        raise source.error(problem)
    base = _read_base(source, document.trainer.config)

    def base_value(name: str) -> Value | None:
        try:
            value = get_key(base, name)
        except KeyError:
            return None
        return value if isinstance(value, bool | int | float | str) else None

    space = read_space(source, source.document["space"], base_value)
    study = Study(
        name=document.study.name,
        title=document.study.title,
        seed=document.study.seed,
        folder=file.parent,
        words=_words(file, scale),
        objective=document.objective,
        trainer=document.trainer,
        limits=document.limits,
        resources=document.resources,
        space=space,
        ties=document.tie,
        forbid=document.forbid,
        frozen=document.frozen,
        questions=document.question,
        stage1=document.stage1,
        stage2=document.stage2,
        confirm=document.confirm,
        racing=document.racing,
        validity=document.validity,
        on_oom=document.on_oom,
        checkpoints=document.checkpoints,
        notify=document.notify,
        phases=document.phase,
        starts=document.start,
        base=base,
    )
    if problem := next(problems(study), None):
        raise source.error(problem)
    return study


def _words(file: Path, scale: str | None) -> tuple[str, ...]:
    """What names a study on a command line: a built-in one's name, else its folder seen from above."""
    folder = file.resolve().parent.name
    named = folder if file.name == FILE else f"{folder}/{file.name}"
    return (named,) if scale is None else (named, "--scale", scale)


def _with_set(source: Source, document: _Document) -> _Document:
    """The patterns of the set that `[trainer.patterns] set` names, the file's own over them.

    A pattern of the file replaces the set's of its name; an empty one takes it away.
    """
    own = dict(document.trainer.patterns)
    name = own.pop("set", None)
    if name is None:
        return document
    if name not in SETS:
        raise source.error(
            Problem(
                ("trainer", "patterns", "set"),
                f"no such set: {show(name)}{nearest(name.lower(), SETS)}; known: {', '.join(SETS)}. "
                "A regular expression goes under a name of its own, such as evaluated",
            )
        )
    ready = pattern_set(name, document.objective.metric)
    merged = {key: pattern for key, pattern in {**ready, **own}.items() if pattern}
    trainer = document.trainer.model_copy(update={"patterns": merged})
    return document.model_copy(update={"trainer": trainer})


def _not_yet(document: _Document) -> Iterator[Problem]:
    """Settings of the contract that this version cannot act on: refused, never ignored."""
    if document.objective.goal == "final" and document.objective.stretch:
        yield Problem(
            ("objective", "stretch"),
            'goal = "final" runs every trial to its end, so no target is stretched; remove it',
        )
    if document.stage2.extra and document.stage2.strategy != "fraction":
        yield Problem(
            ("stage2", "extra"),
            f"got {document.stage2.extra}: {document.stage2.strategy} has no model of its own to "
            "predict from; use 0, or more runs",
        )


def _read_base(source: Source, config: str | None) -> Mapping[str, Any]:
    """The trainer's configuration that the space points into; empty without one."""
    if config is None:
        return {}
    file = source.file.parent / config
    at = ("trainer", "config")
    try:
        text = file.read_text(encoding="utf-8")
        base = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        problem = f"{show(config)}: no such file beside the study ({file})"
        raise source.error(Problem(at, problem)) from None
    except OSError as error:
        problem = f"{show(config)} cannot be read: {error.strerror}"
        raise source.error(Problem(at, problem)) from None
    except ValueError as error:  # not TOML, not JSON, not UTF-8
        kind = "JSON" if file.suffix == ".json" else "TOML"
        raise source.error(Problem(at, f"{show(config)} is not valid {kind}: {error}")) from None
    if not isinstance(base, dict):
        problem = f"{show(config)} holds {show(base)}, expected a table of sections"
        raise source.error(Problem(at, problem))
    return base
