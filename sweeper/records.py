"""What is known of a stage's attempts: facts and verdicts, recorded first, told to search second.

It must not know what is run next, when or why: the loop asks, and draws the conclusions.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sweeper import attempts, readout, run_folders, telling
from sweeper.behind import Behind
from sweeper.curve import Curve
from sweeper.errors import EnvironmentUnusable
from sweeper.executors.base import Executor, Slot
from sweeper.gate import Gate
from sweeper.objective import TimeToTarget, time_to_target
from sweeper.paths import AttemptPaths, Home
from sweeper.progress import Progress
from sweeper.search.base import Search
from sweeper.steering import Running
from sweeper.storage.base import Lease, Store
from sweeper.study import Study
from sweeper.trial import AttemptFacts, PlannedTrial, StageName, StagePlan, TrialFacts

POLL_S = 0.2
CLAIM_WITHIN_S = 10.0
VANISHED = "its runner ended without leaving an outcome"


@dataclass
class Records:
    """One stage's facts in memory, and the way of each new one to the store, search and people.

    `facts` holds what was recorded, `judged` the same with the verdicts of the validity gate, both by
    trial id. `target` is the one in force; after another was set, call `synchronise`.
    """

    study: Study
    stage: StageName
    store: Store
    search: Callable[[str], Search]
    executor: Executor
    home: Home
    lease: Lease
    progress: Progress
    behind: Behind
    gate: Gate
    target: float
    facts: dict[str, TrialFacts] = field(default_factory=dict, init=False)
    judged: dict[str, TrialFacts] = field(default_factory=dict, init=False)
    _told: Search | None = field(default=None, init=False)
    _fingerprints: dict[str, Mapping[str, Any]] = field(default_factory=dict, init=False)

    def load(self) -> None:
        """Take over what the store has of this stage.

        Raises:
            DiskUnusable: trials have run, and their folders are gone.
        """
        for facts in self.store.facts(self.study.name, self.stage):
            kept = tuple(self._compact(attempt) for attempt in facts.attempts)
            self.facts[facts.trial.id] = TrialFacts(facts.trial, kept)
        run_folders.need_them(self.home, self.store, self.study.name, self.facts.values())

    def judge(self) -> None:
        """Every verdict anew: another run may show that an earlier one was too slow."""
        self.judged = self.gate.judge(self.facts)

    def follow(self, plan: StagePlan) -> None:
        """Every trial is known as this plan has it."""
        for trial in plan.trials:
            known = self.facts.get(trial.id)
            if known is None or known.trial != trial:
                self.facts[trial.id] = TrialFacts(trial, known.attempts if known else ())

    def synchronise(self) -> None:
        """Bring the search library up to date with our tables (record first, tell second)."""
        declared = self.study.objective.target
        self._told = self.search(
            telling.search_name(self.study.name, self.stage, self.target, declared)
        )
        for facts in self.judged.values():
            for attempt in facts.attempts:
                self._tell(facts.trial, attempt)

    # -- what an earlier orchestrator left -------------------------------------------------------

    def left(self, plan: StagePlan) -> Iterator[Running]:
        """This stage's attempts that were begun and never recorded; without a slot: they have ended.

        Raises:
            EnvironmentUnusable: a runner has one, and does not say who it is.
        """
        trials = {t.id: t for t in plan.trials}
        for begun in self.store.running(self.study.name):
            trial = trials.get(begun.trial_id)
            if trial is None:  # another stage's: its own command will look at it
                continue
            paths = self.home.attempt(self.study.name, trial.id, begun.attempt)
            # also where it has ended: what it may have left running is ended by whoever looks next
            slot = (
                self.executor.adopt(paths.folder) if paths.outcome.exists() else self._adopt(paths)
            )
            yield Running(trial, begun.attempt, paths, slot, readout.Follow(paths))

    def _adopt(self, paths: AttemptPaths) -> Slot | None:
        """The slot in which an attempt still runs; None when it does not, and never will again."""
        deadline = time.monotonic() + CLAIM_WITHIN_S
        while True:
            slot = self.executor.adopt(paths.folder)
            if slot is not None or attempts.give_up(paths, VANISHED):
                return slot
            if time.monotonic() >= deadline:
                raise EnvironmentUnusable(
                    f"{paths.folder}: a runner has it and does not say who it is (frozen?); end the "
                    "process `python -m sweeper.runner` of this folder, then give the command again"
                )
            time.sleep(POLL_S)  # it has just claimed it, and is about to say who it is

    # -- one attempt's end -----------------------------------------------------------------------

    def collect(self, running: Running, fate: str = "") -> AttemptFacts:
        """How an attempt ended, from its run folder; `fate` is what the executor knows of that.

        Raises:
            DiskUnusable: the study's folder is gone.
        """
        metric = self.study.objective.metric
        facts = readout.collect(running.paths, metric)
        folder = self.home.study(self.study.name)
        if facts is None and not folder.is_dir():  # its outcome may be there when the mount is back
            gone = FileNotFoundError(errno.ENOENT, "gone")
            raise attempts.disk_unusable(folder, gone)
        if facts is None:
            attempts.give_up(running.paths, fate or VANISHED)
            facts = readout.collect(running.paths, metric)
        return self._compact(facts or readout.lost(running.paths, fate or VANISHED))

    def _compact(self, facts: AttemptFacts) -> AttemptFacts:
        """The same facts in little memory: they are kept until the stage ends, thousands of them."""
        # nearly every attempt has the same fingerprint, read anew from its own file
        shared = self._fingerprints.setdefault(repr(facts.fingerprint), facts.fingerprint)
        return replace(facts, curve=Curve.of(facts.curve), fingerprint=shared)

    def add(self, trial: PlannedTrial, facts: AttemptFacts) -> TrialFacts:
        """Know of an ended attempt; all that is known of its trial."""
        known = self.facts.get(trial.id, TrialFacts(trial))
        if all(a.attempt != facts.attempt for a in known.attempts):
            known = self.facts[trial.id] = TrialFacts(known.trial, (*known.attempts, facts))
        return known

    def write_behind(self, running: Running, facts: AttemptFacts) -> AttemptFacts:
        """Record an added attempt first, tell second; then what people see. Returns its verdict."""
        trial, later = running.trial, self.behind.later
        judged = next(a for a in self.judged[trial.id].attempts if a.attempt == facts.attempt)
        later(lambda: self._write(running, facts))
        if self._told is not None:  # else `synchronise` is still to come
            later(lambda: self._tell(trial, judged))
        time = self._time(judged)
        later(lambda: self.progress.trial_ended(trial, judged, time))
        return judged

    def ask(self, trial: PlannedTrial, attempt: int) -> None:
        """Tell search that an attempt was begun; only after `synchronise`."""
        assert self._told is not None
        self._told.ask(telling.key(trial, attempt), trial.point, telling.attributes(trial))

    def _write(self, running: Running, facts: AttemptFacts) -> None:
        study, trial = self.study.name, running.trial
        self.store.record(study, trial.id, facts, lease=self.lease)
        if samples := readout.read_samples(running.paths):
            self.store.record_samples(study, trial.id, facts.attempt, samples)

    def _tell(self, trial: PlannedTrial, facts: AttemptFacts) -> None:
        assert self._told is not None
        self.ask(trial, facts.attempt)
        key = telling.key(trial, facts.attempt)
        paths = self.home.attempt(self.study.name, trial.id, facts.attempt)
        told = telling.told(self.study, facts, self.target)
        self._told.tell(key, replace(told, artifacts=lambda: telling.attached(paths)))

    def _time(self, facts: AttemptFacts) -> TimeToTarget | None:
        if self.study.objective.is_final:
            return None  # every trial runs to its end: there is nothing to reach
        return time_to_target(facts, self.target, self.study.objective.clock)
