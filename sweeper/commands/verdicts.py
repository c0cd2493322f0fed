"""The validity gate for people who look: which attempts it rejected or doubts, why, and what comes next.

It must not know how a verdict is reached (racing's business), and reads only what it is given.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sweeper.analysis.dataset import STAGES
from sweeper.racing.validity import Judged, doubts_of, judge, may_measure_again
from sweeper.storage.base import Readable
from sweeper.study import Study
from sweeper.trial import AttemptFacts, Outcome, Reason, TrialFacts

_FIGURES = re.compile(r"\d[\d.,]*")


def judged_trials(study: Study, store: Readable) -> Judged:
    """All trials of the ranked stages with their verdicts, as the report has them."""
    facts = [f for f in store.facts(study.name) if f.trial.stage in STAGES]
    return judge(facts, study.trust)


def validity_document(judged: Judged) -> dict[str, Any]:
    """The key `validity` of `status --json`: how many attempts count less than others, and why mostly.

    `commonest` is None where there are none; its `words` are one attempt's (`trial` says whose), and
    `attempts` had the same with other figures in it.
    """
    rejected = suspect = 0
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for facts, attempt in _attempts(judged.facts):
        if attempt.outcome is Outcome.INVALID:
            rejected += 1
        elif attempt.validity == "suspect":
            suspect += 1
        for words in reasons(attempt):
            alike[_FIGURES.sub("#", words)].append((facts.trial.id, words))
    commonest = None
    if alike:
        most = max(alike.values(), key=len)
        commonest = {"words": most[0][1], "trial": most[0][0], "attempts": len(most)}
    return {
        "rejected": rejected,
        "suspect": suspect,
        "commonest": commonest,
        "banner": judged.banner or None,
    }


def attempt_verdict(facts: TrialFacts, attempt: AttemptFacts) -> dict[str, Any]:
    """The key `verdict` of an attempt in `show --json`: what the gate says, why, and what comes next.

    `next` is None for an attempt that is valid or was never measured.
    """
    verdict = "invalid" if attempt.outcome is Outcome.INVALID else attempt.validity
    return {"verdict": verdict, "reasons": reasons(attempt), "next": _next(facts, attempt)}


def reasons(attempt: AttemptFacts) -> list[str]:
    """What speaks against an attempt, in words; none for a valid one."""
    if attempt.outcome is not Outcome.INVALID and attempt.validity == "valid":
        return []
    found = list(doubts_of(attempt))
    if not found and attempt.outcome is Outcome.INVALID:
        found = [attempt.message or attempt.reason.value]
    return found


def _next(facts: TrialFacts, attempt: AttemptFacts) -> str | None:
    if attempt.outcome is not Outcome.INVALID:
        return "it is ranked, and marked as suspect" if attempt.validity == "suspect" else None
    later = [a for a in facts.attempts if a.attempt > attempt.attempt]
    if later:
        return f"not ranked; the trial was run again as attempt {later[-1].attempt}"
    if facts.counted is not attempt:
        counted = facts.counted
        assert counted is not None
        return f"not ranked; attempt {counted.attempt} counts"
    if attempt.reason is Reason.FINGERPRINT:
        return "not ranked; give the study a new name, or rank both with [validity] mixed = true"
    if may_measure_again(facts):
        return f"not ranked; `sweep {facts.trial.stage}` runs it once more"
    return (
        "not ranked, and not run again: it was rejected twice; `sweep retry --failed` runs it again"
    )


def _attempts(facts: Sequence[TrialFacts]) -> Iterator[tuple[TrialFacts, AttemptFacts]]:
    for trial in facts:
        for attempt in trial.attempts:
            yield trial, attempt
