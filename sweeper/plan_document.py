"""A stage's plan as a JSON document beside the run folders, so that a database can be rebuilt.

It must not know databases; what is written here equals what the store keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sweeper.space import Point
from sweeper.trial import Lock, PlannedTrial, StageName, StagePlan

VERSION = 1


@dataclass(frozen=True)
class StageDocument:
    """Everything about a stage that is not in its run folders."""

    plan: StagePlan
    definition: Mapping[str, Any]
    definition_hash: str
    options: Mapping[str, Any]
    exploratory: bool
    effective_target: float
    closed: bool

    @property
    def stage(self) -> StageName:
        """Which stage."""
        return self.plan.stage

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        plan = asdict(self.plan)
        plan["trials"] = [_trial(t) for t in self.plan.trials]
        return {
            "v": VERSION,
            "plan": plan,
            "definition": dict(self.definition),
            "definition_hash": self.definition_hash,
            "options": dict(self.options),
            "exploratory": self.exploratory,
            "effective_target": self.effective_target,
            "closed": self.closed,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StageDocument:
        """The value that `to_json` wrote.

        Raises:
            ValueError: another version, or something is missing.
        """
        if document.get("v") != VERSION:
            raise ValueError(f"v: got {document.get('v')!r}, expected {VERSION}")
        try:
            parts = dict(document["plan"])
            parts["trials"] = tuple(_planned(t) for t in parts["trials"])
            parts["locked"] = {n: Lock(**lock) for n, lock in parts["locked"].items()}
            parts["varying"] = {n: tuple(levels) for n, levels in parts["varying"].items()}
            parts["notes"] = tuple(parts["notes"])
            rest = {k: document[k] for k in document if k not in ("v", "plan")}
            return cls(plan=StagePlan(**parts), **rest)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a stage document: {error}") from None


def _trial(trial: PlannedTrial) -> dict[str, Any]:
    document = {name: getattr(trial, name) for name in PlannedTrial.__dataclass_fields__}
    return document | {
        "point": dict(trial.point),
        "groups": list(trial.groups),
        "open": list(trial.open),
    }


def _planned(document: Mapping[str, Any]) -> PlannedTrial:
    return PlannedTrial(
        **{
            **document,
            "point": Point(document["point"]),
            "groups": tuple(document["groups"]),
            "open": tuple(document["open"]),
        }
    )
