"""Attempts one by one: what each began with, where its seconds went, and what extensions came to.

It must not compute a verdict: it lays out facts as JSON values, and those as cells of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.drift import device_of
from sweeper.analysis.wording import duration, significant
from sweeper.trial import AttemptFacts, Phases

PHASE_COLUMNS = ("trial", "attempt", "ended by", "begins with", *Phases._fields, "wall")
EXTENSION_COLUMNS = (
    "extension", "goes on with", "from step", "to step", "until", "ended by", "steps", "best before",
    "best", "train",
)  # fmt: skip


def begins_with(attempt: AttemptFacts, about: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The checkpoint that an attempt's trial began with, or None; `about` is the plan's of an extension.

    `start` is its name in the study, `of` and `attempt` are the trial that left it (a file: None, and
    the `sha256` of its content), `step` is the trainer's own count there (None: only weights were
    taken, and it counts from 0), `extends` says whether it goes on with that very trial.
    """
    said = attempt.device.get("starts_from")
    if not about and not isinstance(said, Mapping):
        return None
    known: Mapping[str, Any] = {**(said or {}), **(about or {})}
    return {
        "start": known.get("start") or None,
        "of": known.get("of") or None,
        "attempt": known.get("attempt") or None,
        "step": known.get("from_step", known.get("step")),
        "sha256": known.get("sha256"),
        "extends": bool(about),
    }


def about_of(stage: StageFacts, trial_id: str) -> Mapping[str, Any] | None:
    """What the plan of extensions keeps about one of them; None for any other trial."""
    found: Mapping[str, Any] | None = stage.plan.design.get("about", {}).get(trial_id)
    return found or None


def timeline(facts: StudyFacts) -> list[dict[str, Any]]:
    """Every ended attempt, of phases and extensions too: its device, when it began, its seconds."""
    found = [
        (stage, trial.trial.id, attempt)
        for stage in facts.every()
        for trial in stage.facts
        for attempt in trial.attempts
        if attempt.started_at
    ]
    first = min((attempt.started_at for _, _, attempt in found), default=0.0)
    return [
        {
            "id": trial,
            "attempt": attempt.attempt,
            "stage": stage.plan.stage,
            "device": device_of(attempt),
            "began_s": round(attempt.started_at - first, 3),
            "wall_s": round(attempt.wall_s, 3),
            "phases": {k: round(v, 3) for k, v in attempt.phases.as_dict().items() if v},
            "outcome": attempt.outcome.value,
            "reason": attempt.reason.value,
            "cap_s": attempt.cap_s,
            "validity": attempt.validity,
            "begins_with": begins_with(attempt, about_of(stage, trial)),
        }
        for stage, trial, attempt in sorted(found, key=lambda f: f[2].started_at)
    ]


def phase_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Per cent of all attempts' time on the wall by phase, from the rows of the timeline."""
    wall_s = sum(row["wall_s"] for row in rows)
    seconds: dict[str, float] = {}
    for row in rows if wall_s > 0 else ():
        for name, value in row["phases"].items():
            seconds[name] = seconds.get(name, 0.0) + value
    return {name: 100 * value / wall_s for name, value in seconds.items()}


def extensions(facts: StudyFacts) -> list[dict[str, Any]]:
    """Every trial that `sweep extend` made: which one it goes on with, how far, and what came of it.

    Steps as the trainer counts; `train_s` are the extension's own seconds.
    """
    stage = facts.unranked.get("extend")
    if stage is None:
        return []
    former = {
        (trial.trial.id, attempt.attempt): attempt
        for other in facts.every()
        for trial in other.facts
        for attempt in trial.attempts
    }
    found = []
    for trial in stage.facts:
        about, counted = about_of(stage, trial.trial.id) or {}, trial.counted
        before = former.get((about.get("of", ""), about.get("attempt", 0)))
        found.append(
            {
                "id": trial.trial.id,
                **{key: about.get(key) for key in ("of", "attempt", "from_step")},
                "to_step": about.get("steps"),
                "until": about.get("target"),
                "reason": counted.reason.value if counted else None,
                "steps": counted.steps if counted else None,
                "best_before": before.best_loss if before else None,
                "best": counted.best_loss if counted else None,
                "train_s": counted.own_train_s if counted else None,
            }
        )
    return found


def phase_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the timeline as plain text, for PHASE_COLUMNS; an empty phase took no time."""
    origin = row["begins_with"]
    named = "" if origin is None else str(origin["of"] or origin["start"])
    if origin is not None and origin["step"]:
        named += f" at step {origin['step']}"
    phases = (row["phases"].get(name) for name in Phases._fields)
    return (
        row["id"], str(row["attempt"]), row["reason"], named,
        *("" if seconds is None else duration(seconds) for seconds in phases),
        duration(row["wall_s"]),
    )  # fmt: skip


def extension_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """An extension as plain text, for EXTENSION_COLUMNS."""
    return (
        row["id"], str(row["of"]),
        *("" if row[key] is None else str(row[key]) for key in ("from_step", "to_step")),
        _loss(row["until"]), row["reason"] or "not run",
        "" if row["steps"] is None else str(row["steps"]),
        _loss(row["best_before"]), _loss(row["best"]),
        "" if row["train_s"] is None else duration(row["train_s"]),
    )  # fmt: skip


def _loss(value: float | None) -> str:
    return "" if value is None else significant(value, 5)
