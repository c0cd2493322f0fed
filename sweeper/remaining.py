"""What is left to run of a stage: trials that need a run, and those that are run once more, and why.

It must not know executors, slots or budgets: the loop says what runs, and starts what is next here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sweeper import attempts, checkpoints, oom, tries
from sweeper.objective import lowest
from sweeper.paths import Home
from sweeper.racing.validity import may_measure_again
from sweeper.records import Records
from sweeper.steering import Running, Steering
from sweeper.study import Study
from sweeper.trial import Outcome, PlannedTrial, Reason, StagePlan, TrialFacts
from sweeper.waiting import Waiting


@dataclass
class Remaining:
    """Works it out whenever facts or plan are others (`changed`), and not in between.

    `running` is the loop's own mapping of attempts under way, seen as it changes.
    """

    study: Study
    home: Home
    steering: Steering
    records: Records
    running: Mapping[str, Running]
    plan: StagePlan
    _waiting: Waiting = field(init=False)
    _to_retry: set[str] = field(default_factory=set, init=False)
    _news: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._waiting = Waiting(self._needs_run, self.steering.order)

    def changed(self, plan: StagePlan) -> None:
        """Facts or plan are others than they were."""
        self.plan, self._news = plan, True

    def retry_failed(self) -> None:
        """Let every trial that has failed for good be run once more."""
        self._to_retry = {
            name
            for name, known in self.records.judged.items()
            if known.counted is not None
            and known.counted.outcome in (Outcome.FAILED, Outcome.INVALID)
        }
        self._news = True

    def started(self, trial: PlannedTrial) -> None:
        """It has been started; nothing else is new."""
        self._to_retry.discard(trial.id)
        self._waiting.start(trial)

    def ready(self) -> Waiting:
        """Trials that could start now, the next one first; worked out only when something changed."""
        if self._news:
            self._news = False
            busy = {r.trial.id for r in self.running.values()}
            self.steering.all_seen = False
            anew = self.steering.reopens()
            self._waiting.follow(self.plan, self.records.judged, busy, anew=anew)
            if self._all_were_seen(busy):
                self.steering.all_seen = True
                self._waiting.add(self._cut_off_too_early(busy))
        return self._waiting

    def anything(self) -> bool:
        """Whether a trial could start now, or could once its plan is no longer open."""
        return bool(self.ready()) or any(t.open for t in self.plan.trials)

    def settled(self) -> list[TrialFacts]:
        """The facts, with trials that will be run again as if they had not been run yet."""
        judged = self.records.judged
        again = {*self.ready().again, *(r.trial.id for r in self.running.values())}
        tried = [judged[i] for i in again if i in judged and judged[i].attempts]
        return list({**judged, **{f.trial.id: TrialFacts(f.trial) for f in tried}}.values())

    def may_shrink(self, known: TrialFacts) -> bool:
        """Whether a trial that ran out of memory is run again with less (see `oom`)."""
        return oom.may_shrink(self.study, known.trial.point, known.attempts)

    def origin(self, known: TrialFacts, target: float) -> attempts.Origin | None:
        """The checkpoint from which a trial that reached an easier target goes on to this one."""
        return checkpoints.origin(self.study, self.home, known, target)

    # -- why a trial needs a run -----------------------------------------------------------------

    def _needs_run(self, trial: PlannedTrial) -> bool:
        if trial.open:
            return False
        known = self.records.judged.get(trial.id)
        counted = known.counted if known else None
        if known is None or counted is None or trial.id in self._to_retry:
            return True
        if counted.reason is Reason.OOM and self.may_shrink(known):
            return True
        if counted.outcome is Outcome.FAILED:
            return tries.may_try_again(known, counted)
        if counted.outcome is Outcome.INVALID:
            return may_measure_again(known)
        if counted.reason is Reason.BUDGET:
            return True
        return self.origin(known, self.records.target) is not None or self._is_too_short(known)

    def _all_were_seen(self, busy: Collection[str]) -> bool:
        """Whether every trial has had a run that ended, and nothing but second ones can follow."""
        left = itertools.chain(busy, (trial.id for trial in self._waiting))
        known = map(self.records.judged.get, left)
        seen = all(facts is not None and facts.counted is not None for facts in known)
        return seen and not any(trial.open for trial in self.plan.trials)

    def _cut_off_too_early(self, busy: Collection[str]) -> list[TrialFacts]:
        """Trials to run again because they were watched for too little (see `matters_again`).

        With [racing] order whoever had come furthest is first: its time may spare the others their
        second run.
        """
        short = [
            known
            for name, known in self.records.judged.items()
            if name not in busy and self._is_too_short(known)
        ]
        return sorted(short, key=_lowest_loss) if self.study.racing.order else short

    def _is_too_short(self, known: TrialFacts) -> bool:
        """Not where it was run again for that, and failed or was rejected for good."""
        counted = known.counted
        if counted is None or not self.steering.matters_again(known.trial, counted):
            return False
        latest = known.attempts[-1]
        if latest.reason is Reason.OOM and self.may_shrink(known):
            return True
        if latest.outcome is Outcome.FAILED:
            return tries.may_try_again(known, latest)
        return latest.outcome is not Outcome.INVALID or may_measure_again(known)


def _lowest_loss(known: TrialFacts) -> float:
    """Of the attempt that counts; infinite where it has measured none."""
    found = None if known.counted is None else lowest(known.counted)
    return math.inf if found is None else found
