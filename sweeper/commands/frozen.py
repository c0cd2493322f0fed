"""What a stage was frozen with against what the study and the command line say now.

It must not know how a plan is made or run; it names the differences and refuses, or lets them pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.errors import PlanChangedError
from sweeper.storage.base import StageRecord
from sweeper.study import Study
from sweeper.trial import StagePlan, TrialFacts

SHOWN = 6
NEW_NAME = "give the study a new name"


def has_changed(study: Study, record: StageRecord | None, *, exploratory: bool) -> bool:
    """Whether the study differs from what a stage was frozen on; only `exploratory` lets it.

    Raises:
        PlanChangedError: it differs, and `exploratory` is not set; or nothing can go on with it.
    """
    if record is None or record.definition_hash == study.definition_hash(record.stage):
        return False
    now = study.definition(record.stage)
    changes = differences(record.definition, now)
    said = "; ".join(changes[:SHOWN]) + (
        f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    )
    changed = f"{study.name}: the study changed after its {record.stage} plan was frozen: {said}"
    if not exploratory:
        raise PlanChangedError(
            f"{changed}. Undo the change, {NEW_NAME}, or use --exploratory (which every report will "
            "show)"
        )
    if _kinds(record.definition) != _kinds(now):
        raise PlanChangedError(
            f"{changed}. With other parameters, types or choices its trials cannot stand beside new "
            f"ones, not even as --exploratory: undo that change, or {NEW_NAME}"
        )
    return True


def still_holds(study: Study, plan: StagePlan, facts: Sequence[TrialFacts]) -> None:
    """Nothing when a changed plan keeps every trial, and those that ran as they ran.

    Raises:
        PlanChangedError: it does not.
    """
    now = {trial.id: trial for trial in plan.trials}
    for fact in facts:
        old, new = fact.trial, now.get(fact.trial.id)
        if new is None:
            what = "is not in the changed plan"
        elif fact.attempts and (new.point, new.seed) != (old.point, old.seed):
            what = f"ran as {old.point.show()}, and the changed plan has {new.point.show()} there"
        else:
            continue
        raise PlanChangedError(
            f"{study.name}: {old.id} {what}; --exploratory can add to a plan and not rewrite it: "
            f"undo that change, or {NEW_NAME}"
        )


def option(args: argparse.Namespace, record: StageRecord | None, name: str, default: int) -> int:
    """What the command line asks for, else what the plan was frozen with, else the study's.

    Raises:
        PlanChangedError: the command line asks for something else than the frozen plan.
    """
    asked: int | None = getattr(args, name, None)
    frozen = record.options.get(name) if record else None
    if frozen is None:
        return asked or default
    if asked is not None and asked != frozen:
        flag = "--" + name.replace("_", "-")
        assert record is not None
        raise PlanChangedError(
            f"{record.study}: {record.stage} was planned with {flag} {frozen}, got {asked}; "
            f"use {flag} {frozen}, or a new study name for another design"
        )
    return int(frozen)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Every place where two JSON values differ, one phrase each: `limits.steps: 400 -> 200`."""
    if before == after:
        return []
    if isinstance(before, list) and isinstance(after, list):
        one, other = _by_name(before), _by_name(after)
        if one is None or other is None:
            return [f"{path}: {_short(before)} -> {_short(after)}"]
        return differences(one, other, path)
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [f"{path}: {_short(before)} -> {_short(after)}"]
    found: list[str] = []
    for key in sorted({*before, *after}):
        place = f"{path}.{key}" if path else str(key)
        if key not in before:
            found.append(f"{place} is new ({_short(after[key])})")
        elif key not in after:
            found.append(f"{place} is gone (was {_short(before[key])})")
        else:
            found += differences(before[key], after[key], place)
    return found


def _by_name(values: Sequence[Any]) -> Mapping[str, Any] | None:
    """A list of named tables (groups) by their names; other lists are compared as a whole."""
    named = {v["name"]: v for v in values if isinstance(v, Mapping) and "name" in v}
    return named if len(named) == len(values) else None


def _kinds(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    return {n: (p["type"], p.get("choices")) for n, p in definition["space"].items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
