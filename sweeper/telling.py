"""What the search library is told about a trial: its key, its value, its violated constraint.

It must not know which library that is; method section 2, column "In Optuna".
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from sweeper.objective import TimeToTarget, final_value, time_to_target
from sweeper.paths import AttemptPaths
from sweeper.search.base import Told
from sweeper.study import Study
from sweeper.trial import AttemptFacts, PlannedTrial, Reason, StageName

MOST_POINTS = 10  # of a curve: each is a commit
TAIL_BYTES = 16_384
NO_LOSS_VIOLATION = 1e9
SMALLEST_VIOLATION = 1e-9


def search_name(study: str, stage: StageName, target: float, declared: float) -> str:
    """`ngpt/stage1`, or `ngpt/stage1@5.5` where the stage is run at another target than declared."""
    name = f"{study}/{stage}"
    return name if target == declared else f"{name}@{target:g}"


def key(trial: PlannedTrial, attempt: int) -> str:
    """One search trial per attempt: a told value is final, so a retry needs its own."""
    return key_of(trial.id, attempt)


def key_of(trial_id: str, attempt: int) -> str:
    """`key` by ids: `s1-A3`, then `s1-A3#2`."""
    return trial_id if attempt == 1 else f"{trial_id}#{attempt}"


def attributes(trial: PlannedTrial) -> dict[str, Any]:
    """What identifies a trial for people."""
    return {
        "trial": trial.id,
        "label": trial.label,
        "groups": list(trial.groups),
        "seed": trial.seed,
    }


def told(study: Study, facts: AttemptFacts, target: float) -> Told:
    """Reached: its seconds. Censored: the cap it was judged against. Failed: None.

    With goal "final": the last metric; where the run did not come to its end, the lowest that it saw,
    with a violated constraint.

    Where steps ran out or it diverged, the trial limit stands for the cap; the violated constraint is
    best loss minus target.
    """
    described: dict[str, Any] = {
        "outcome": facts.outcome.value,
        "reason": facts.reason.value,
        "best_loss": facts.best_loss,
        "train_s": facts.phases.train,
        "steps": facts.steps,
    }
    time = time_to_target(facts, target, study.objective.clock)
    curve = _thinned(facts)
    if study.objective.is_final and time is not None:
        described |= _for_people(facts, time)
        final = final_value(facts)
        if final is not None:
            return Told(final, attributes=described, curve=curve)
        return Told(facts.best_loss, NO_LOSS_VIOLATION, described, curve)
    if time is None:
        return Told(None, attributes=described | {"message": facts.message[:500]}, curve=curve)
    described |= _for_people(facts, time)
    if time.reached:
        return Told(time.seconds, attributes=described, curve=curve)
    used_up = facts.reason in (Reason.STEPS, Reason.DIVERGED) or facts.cap_s is None
    bound = study.limits.trial_s if used_up or facts.cap_s is None else facts.cap_s
    missed = NO_LOSS_VIOLATION if facts.best_loss is None else facts.best_loss - target
    described["stopped_at_s"] = time.seconds
    return Told(bound, max(missed, SMALLEST_VIOLATION), described, curve)


def _for_people(facts: AttemptFacts, time: TimeToTarget) -> dict[str, Any]:
    """What a person who sees the trial there wants to know about it."""
    device = facts.device.get("name") or facts.device.get("kind")
    return {
        "tokens_to_target": time.tokens,
        "steps_to_target": time.steps,
        "tokens_per_s": facts.tokens_per_s,
        "cap_s": facts.cap_s,
        "validity": facts.validity,
        "device": str(device) if device else None,
    }


def _thinned(facts: AttemptFacts) -> tuple[tuple[int, float], ...]:
    """(milliseconds of training, loss): the first and the last evaluation and some between."""
    points = {
        round(1000 * e.clock.train): e.value
        for e in facts.curve
        if e.slice == "probe" and math.isfinite(e.value)
    }
    found = sorted(points.items())
    if len(found) <= MOST_POINTS:
        return tuple(found)
    last = len(found) - 1
    return tuple(found[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS))


def attached(paths: AttemptPaths) -> dict[str, str]:
    """The attempt's files that say most: its configuration, and how its output ended."""
    found = {}
    for name, path in (
        ("config.toml", paths.config),
        ("stdout-tail.txt", paths.stdout),
        ("stderr-tail.txt", paths.stderr),
    ):
        with contextlib.suppress(OSError):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
            if text.strip():
                found[name] = text
    return found
