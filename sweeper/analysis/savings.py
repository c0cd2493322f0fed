"""What each rule of racing did in a study: how often it acted, what it saved at most or cost.

It must not know how a rule decides; it reads how attempts ended, and what they were judged against.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.dataset import SEARCH_STAGES, StageFacts, StudyFacts
from sweeper.analysis.ranking import unspent_s
from sweeper.analysis.wording import count
from sweeper.objective import time_to_target
from sweeper.racing.cap import UNEXPECTED
from sweeper.racing.standing import Times
from sweeper.study import Limits, question_partners
from sweeper.trial import AttemptFacts, Reason

RUNG = ": rung at "
"""In the message of a trial that fell at a rung; the reason is the forecast's."""


@dataclass(frozen=True)
class Rule:
    """One rule: its switch in [racing], whether it is on, on how many trials it acted, what came of it.

    `saved_s` are train seconds, an upper bound for a rule that ends trials (up to the trial's limits:
    how long it would have taken to cross is what was not measured), below 0 for a rule that lets
    trials run on. None where one run cannot show it.
    """

    name: str
    switch: str
    on: bool
    trials: int
    saved_s: float | None
    words: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


def rules(facts: StudyFacts) -> tuple[Rule, ...]:
    """Every rule, in the order of the method; stages 1 and 2 together (confirm is not raced).

    None with goal "final", where every trial runs to its end.
    """
    if facts.study.objective.is_final:
        return ()
    racing = facts.study.racing
    stages = list(facts.present(SEARCH_STAGES))
    ended = [a for stage in stages for _, a in stage.measured()]
    limits = facts.study.limits
    declared = facts.study.objective.target
    cut = [a for a in ended if a.reason is Reason.CAP]
    early = [a for a in cut if UNEXPECTED in a.message]
    capped = [a for a in cut if UNEXPECTED not in a.message]
    rung = [a for a in ended if a.reason is Reason.FORECAST and RUNG in a.message]
    foreseen = [a for a in ended if a.reason is Reason.FORECAST and a not in rung]
    fell = [a for a in ended if a.reason is Reason.TARGET and _missed(a, declared, facts)]
    arms, repeats = _kept_running(facts, stages)
    carried = [a for a in ended if a.device.get("continues")]
    return (
        _ending("cap", racing.cap, capped, limits, "could not enter the top k any more"),
        _ending("expect", racing.expect, early, limits, "not expected in the top k"),
        Rule(
            "order",
            "order",
            racing.order,
            0,
            None,
            "cheap and promising first, so that caps tighten early; `sweep replay` of an export that "
            "was run without caps shows what it saves",
        ),
        _cost(
            "reopen",
            racing.cap,
            _run_again(stages),
            "run",
            "cut off and then repeated: a time that capped it became slower, or the others were not as "
            "fast as expected",
            switch="cap",
        ),
        _cost(
            "questions", racing.questions, arms, "arm", "of a question, so that it keeps its data"
        ),
        _cost(
            "replicates",
            racing.replicates,
            repeats,
            "repeat",
            "let run, so that noise is not cut off",
        ),
        _ending("forecast", racing.forecast, foreseen, limits, "forecast to miss the cap"),
        _ending("rungs", racing.rungs, rung, limits, "fell behind at equal train seconds"),
        _ending("fallback", racing.fallback, fell, limits, "stopped at a fallback target"),
        _cost(
            "stretch",
            racing.stretch,
            [a.own_train_s for a in carried],
            "trial",
            "that went on to a stretch target from its checkpoint",
        ),
    )


def _missed(attempt: AttemptFacts, target: float, facts: StudyFacts) -> bool:
    time = time_to_target(attempt, target, facts.clock)
    return time is not None and not time.reached


def _ending(
    name: str,
    on: bool,
    ended: Sequence[AttemptFacts],
    limits: Limits,
    words: str,
) -> Rule:
    saved = sum(unspent_s(a, limits) for a in ended)
    return Rule(name, name, on, len(ended), saved, f"{count(len(ended), 'trial')} {words}")


def _cost(
    name: str, on: bool, beyond: Sequence[float], thing: str, words: str, *, switch: str = ""
) -> Rule:
    what = f"{count(len(beyond), thing)} {words}"
    return Rule(name, switch or name, on, len(beyond), -sum(beyond), what)


def _run_again(stages: Sequence[StageFacts]) -> list[float]:
    """Train seconds of attempts that a cap or forecast ended, and that others of the trial followed.

    Not of those that others went on from: nothing of them was lost.
    """
    return [
        before.own_train_s
        for stage in stages
        for facts in stage.facts
        for before, after in itertools.pairwise(facts.attempts)
        if before.reason in (Reason.CAP, Reason.FORECAST) and not after.device.get("continues")
    ]


def _kept_running(
    facts: StudyFacts, stages: Sequence[StageFacts]
) -> tuple[list[float], list[float]]:
    """Seconds beyond what caps any other trial in the end: of arms of questions, and of repeats.

    An upper bound: a trial that ran before k had reached was not capped by anything yet.
    """
    study = facts.study
    arms: list[float] = []
    repeats: list[float] = []
    for stage in stages:
        standing = Times(facts.clock).standing(stage.facts, stage.effective_target)
        keep = study.stage2.from_top if stage.plan.stage == "stage1" else study.confirm.top
        kth = standing.kth(keep)
        if kth is None or not study.racing.cap:
            continue
        cap_s = kth * standing.slack(study.racing.slack, keep)
        partners = question_partners(study.questions, [t.point for t in stage.plan.trials])
        runs = Counter(trial.trial.point for trial, _ in stage.measured())
        for trial, attempt in stage.measured():
            point, beyond = trial.trial.point, attempt.phases.seconds(facts.clock) - cap_s
            if beyond > 0 and study.racing.questions and point in partners:
                arms.append(beyond)
            elif beyond > 0 and study.racing.replicates and runs[point] > 1:
                repeats.append(beyond)
    return arms, repeats
