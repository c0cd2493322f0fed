"""One trial's resolved trainer configuration, and its argument vector with every place filled.

It must not know what the trainer does with them, or where the files lie until it is told.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.space import Value
from sweeper.study import START_FROM, Study

PLACES = ("python", "config", "events", "run_dir", "target", "seed")
"""What a command may ask for in braces, besides the parameters of the space."""

_PLACE = re.compile(r"\{([^{}]*)\}")


def places(argument: str) -> list[str]:
    """Names in braces, in order; ValueError when a brace stands alone."""
    if re.search(r"[{}]", _PLACE.sub("", argument)):
        raise ValueError("a brace without its partner")
    return _PLACE.findall(argument)


def get_key(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; KeyError when there is none."""
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            raise KeyError(key)
        here = here[part]
    return here


def set_key(config: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in place, making the tables on the way."""
    *tables, last = key.split(".")
    for part in tables:
        config = config.setdefault(part, {})
    config[last] = value


def resolve_config(
    study: Study,
    point: Mapping[str, Value],
    *,
    seed: int,
    target: float | None,
    fallback: Sequence[float],
    max_steps: int,
) -> dict[str, Any]:
    """A copy of the study's base configuration for one trial; the base itself is not touched.

    The point's keys are set, then run.seed, run.target (left out when None) and run.max_steps, and
    run.fallback_targets where the base has that key. Frozen keys keep the base's value. A point that
    sets run.max_steps itself (a space may vary it) has fewer steps than the limit, never more.
    How a trial starts is no key.
    """
    config = copy.deepcopy(dict(study.base))
    own = point.get("run.max_steps", max_steps)
    assert isinstance(own, int | float)
    run: dict[str, Any] = {"run.seed": seed, "run.max_steps": min(max_steps, int(own))}
    if target is not None:
        run["run.target"] = target
    if "fallback_targets" in study.base.get("run", {}):
        easier = [value for value in fallback if target is None or value > target]
        run["run.fallback_targets"] = easier
    for key, value in {**point, **run}.items():
        if key != START_FROM and not study.is_frozen(key):
            set_key(config, key, value)
    if target is None and isinstance(config.get("run"), dict):
        config["run"].pop("target", None)
    return config


def frozen_values(study: Study) -> dict[str, Any]:
    """Every frozen key of the base with its value, a frozen table as all its keys."""
    known = list(leaves(study.base))
    return {key: get_key(study.base, key) for key in known if study.is_frozen(key)}


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of every value that is not itself a table."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def fill_command(
    study: Study,
    point: Mapping[str, Value],
    *,
    config: Path,
    events: Path,
    run_dir: Path,
    target: float | None,
    seed: int,
    python: str = sys.executable,
) -> list[str]:
    """The trainer's argument vector; every filled value stays within its argument.

    A parameter that is inactive at this point has its baseline there. Booleans read true or false.
    A target of None (goal "final") reads as the study's declared one.
    """
    filled: dict[str, object] = {
        "python": python,
        "config": config,
        "events": events,
        "run_dir": run_dir,
        "target": study.objective.target if target is None else target,
        "seed": seed,
        **study.space.baseline(),
        **point,
    }
    return [
        _PLACE.sub(lambda place: _text(filled[place[1]]), argument)
        for argument in study.trainer.command
    ]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
