"""What the search library is told about a trial: its key, its value, its violated constraint.

It must not know which library that is; method section 2, column "In Optuna".
"""

from __future__ import annotations

from typing import Any

from sweeper.objective import time_to_target
from sweeper.search.base import Told
from sweeper.study import Study
from sweeper.trial import AttemptFacts, PlannedTrial, Reason, StageName

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
    if time is None:
        return Told(None, attributes=described | {"message": facts.message[:500]})
    if time.reached:
        return Told(time.seconds, attributes=described)
    used_up = facts.reason in (Reason.STEPS, Reason.DIVERGED) or facts.cap_s is None
    bound = study.limits.trial_s if used_up or facts.cap_s is None else facts.cap_s
    missed = NO_LOSS_VIOLATION if facts.best_loss is None else facts.best_loss - target
    described["stopped_at_s"] = time.seconds
    return Told(bound, max(missed, SMALLEST_VIOLATION), described)
