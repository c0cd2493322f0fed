"""The loop that runs one stage: reconcile, ask, submit, collect, record, tell; safe to repeat.

It must not know which executor, database or sampler it was given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from sweeper import attempts, checkpoints, oom, readout, run_folders, starts, tries
from sweeper.behind import Behind
from sweeper.errors import DiskUnusable, EnvironmentUnusable, MixedFingerprints, PlanError
from sweeper.executors.base import Executor, Slot
from sweeper.gate import Gate
from sweeper.paths import Home
from sweeper.patience import Patient
from sweeper.places import Places
from sweeper.progress import Progress
from sweeper.racing.reach import effective_target
from sweeper.records import Records
from sweeper.remaining import Remaining
from sweeper.search.base import Search
from sweeper.stages import Stage
from sweeper.steering import Running, Steering
from sweeper.storage.base import Lease, StageRecord, Store
from sweeper.study import Study
from sweeper.trial import (
    UNRANKED,
    PlannedTrial,
    Reason,
    TrialFacts,
)

LEASE_TTL_S = 30.0
TICK_S = 0.2

Ending = Literal["complete", "budget", "breaker", "interrupted"]


@dataclass
class Stop:
    """Asked for from outside (signals): 1 takes no more trials, 2 ends the running ones."""

    level: int = 0


@dataclass(frozen=True)
class Budget:
    """How much one command may spend: hours of wall time, attempts started."""

    max_hours: float | None = None
    max_trials: int | None = None


@dataclass(frozen=True)
class StageEnd:
    """How running a stage ended, with its record and every fact."""

    ending: Ending
    record: StageRecord
    facts: tuple[TrialFacts, ...]
    why: str = ""


@dataclass
class StageRun:
    """Runs one stage of one study to its end; call `run` once.

    `search` opens the search library's study for an effective target; it is called late, so that
    commands that run nothing never import it. `retry_failed` runs trials that failed for good again;
    `first_rest_s` is what a trial waits before its second try.
    """

    study: Study
    stage: Stage
    store: Store
    search: Callable[[str], Search]
    executor: Executor
    home: Home
    lease: Lease
    progress: Progress
    target: float
    budget: Budget = Budget()
    stop: Stop = field(default_factory=Stop)
    options: Mapping[str, Any] = field(default_factory=dict)
    exploratory: bool = False
    retry_failed: bool = False
    revive: Callable[[], None] | None = None
    first_rest_s: float = tries.FIRST_REST_S

    def __post_init__(self) -> None:
        self.store = cast(Store, self._patient(self.store))
        self._running: dict[str, Running] = {}
        self._started = 0
        self._began_at = time.monotonic()
        self._renewed_at = self._began_at
        self._ending: Ending = "complete"
        self._why = ""
        self._trouble: EnvironmentUnusable | PlanError | None = None
        self._rest_until: dict[str, float] = {}
        self._places = Places(self.executor, self.progress.note)
        self._stale = True
        metric = self.study.objective.metric
        self._steering = Steering(self.stage.race, self.progress, self.target, metric)
        self._behind = Behind()
        validity = self.study.trust
        if self.stage.name in UNRANKED:  # a run on a busy device leaves the same checkpoint
            validity = validity.model_copy(update={"gate": False})
        self._records = Records(
            study=self.study,
            stage=self.stage.name,
            store=self.store,
            search=self._open_search,
            executor=self.executor,
            home=self.home,
            lease=self.lease,
            progress=self.progress,
            behind=self._behind,
            gate=Gate(validity, self.stage.race.earlier, self._say_later),
            target=self.target,
        )

    def run(self) -> StageEnd:
        """Run, or resume, the stage until nothing is left to do or a reason to stop.

        Raises:
            StudyBusy: the lease was lost to another orchestrator.
            EnvironmentUnusable, PlanError: after the running trials have ended and were recorded.
        """
        self._freeze()
        self._reconcile()
        self._behind.do_all()
        self._records.synchronise()
        self.progress.stage_started(self._plan, self._done())
        while True:
            self._catch_up()
            self._fill_slots()
            if not self._running and not (self._may_go_on() and self._is_to_wait()):
                if self._stretch():
                    continue
                break
            self._wait()
        self._behind.do_all()
        if self._trouble is not None:
            raise self._trouble
        return self._close()

    # -- steps, in the order of `run` ------------------------------------------------------------

    def _freeze(self) -> None:
        name = self.stage.name
        plan = self.stage.plan(())
        run_folders.need_its_database(self.home, self.store, plan)
        self._record = self.store.freeze(
            plan,
            definition=self.study.definition(name),
            definition_hash=self.study.definition_hash(name),
            options=self.options,
            exploratory=self.exploratory,
        )
        self._plan = self._record.plan
        self._records.load()
        self._remaining = Remaining(
            self.study, self.home, self._steering, self._records, self._running, self._plan
        )
        self._keep_document()
        if self.stage.keep is not None:  # an earlier command may have gone over to a fallback
            self._aim_at(self._record.effective_target)
        self._changed()
        if self.retry_failed:
            self._remaining.retry_failed()

    def _reconcile(self) -> None:
        """Attempts that an earlier orchestrator began: record, adopt, or declare lost."""
        for known in self._records.left(self._plan):
            if known.slot is not None:
                self._running[str(known.paths.folder)] = known
                self.progress.note(f"{known.trial.id}: still running, taken over")
            else:  # it has ended, or vanished without an outcome
                self._record_ended(known)

    def _catch_up(self) -> None:
        """Draw every conclusion from new facts: the target, the plan, the caps of what runs."""
        if not self._stale:
            return
        while self._stale:
            self._stale = False
            self._change_target()
            self._replan()
        self._steering.rebound(self._running.values())

    def _replan(self) -> None:
        if self._ending != "complete" or self._trouble is not None:
            return
        try:
            plan = self.stage.plan(self._remaining.settled(), self._plan)
        except PlanError as error:
            self._trouble = error
            return
        if plan == self._plan:
            self._plan = plan  # the very object, so that next time no trial is compared
        else:
            self.store.update_plan(plan)
            for words in plan.notes[len(self._plan.notes) :]:
                self.progress.note(words)
            self._plan = plan
            self._keep_document()
            self._records.follow(plan)
            self._changed()

    def _change_target(self) -> None:
        """Go over to a fallback once k trials have used up their limits and none has reached."""
        switch = self._steering.fallback() if self._ending == "complete" else None
        if switch is not None:
            self._go_over(*switch)

    def _stretch(self) -> bool:
        """Go over to a stretch target once everybody has reached and nobody is told apart by it."""
        complete = self._ending == "complete" and self._trouble is None
        found = self._steering.stretch() if complete and not self._remaining.anything() else None
        if found is None:
            return False
        goal, why = found
        able = [
            f for f in self._records.judged.values() if self._remaining.origin(f, goal) is not None
        ]
        if not able:
            what = "none of its trials left a checkpoint"
            if not self.study.trainer.resume:
                what = "[trainer] resume does not say how its trainer goes on from a checkpoint"
            self.progress.note(f"{why}; no, it stays: {what}")
            return False
        self._go_over(goal, f"{why}; {len(able)} trials go on from their checkpoints")
        return True

    def _go_over(self, target: float, why: str) -> None:
        self._aim_at(target)
        self.progress.note(why)
        self.store.set_effective_target(self.study.name, self.stage.name, target)
        self._changed()
        self._records.synchronise()

    def _aim_at(self, target: float) -> None:
        self.target = self._steering.target = self._records.target = target

    def _fill_slots(self) -> None:
        if isinstance(self._trouble, EnvironmentUnusable) or not self._may_start():
            return
        taken = {r.slot.name for r in self._running.values() if r.slot is not None}
        for slot in (s for s in self.executor.slots() if s.name not in taken):
            trial = next(filter(self._has_rested, self._remaining.ready()), None)
            if trial is None or not self._may_start():
                return
            if self._places.is_left_out(slot):
                continue
            try:
                self._start(trial, slot)
            except EnvironmentUnusable as error:
                self._trouble = error
                return

    def _may_go_on(self) -> bool:
        return self._trouble is None and self._may_start() and bool(self._remaining.ready())

    def _is_to_wait(self) -> bool:
        """With nothing running: whether a device or a trial that rests is waited for."""
        resting = any(t.id in self._rest_until for t in self._remaining.ready())
        return self._places.wait() or resting

    def _has_rested(self, trial: PlannedTrial) -> bool:
        return time.monotonic() >= self._rest_until.get(trial.id, 0.0)

    def _start(self, trial: PlannedTrial, slot: Slot) -> None:
        known = self._records.facts.get(trial.id, TrialFacts(trial))
        attempt = max((a.attempt for a in known.attempts), default=0) + 1
        paths = self.home.attempt(self.study.name, trial.id, attempt)
        bound = self._steering.cap(trial)
        judged = self._records.judged.get(trial.id, known)
        if words := self._steering.reopened(judged):
            self._say_later(words)
        origin = self._remaining.origin(judged, self.target)
        begin = starts.begin(self.study, self.home, trial, self._plan)
        if not self._record.exploratory:
            starts.need_same_file(begin, self._record.definition)
        prepared = attempts.prepare(
            self.study,
            trial,
            attempt=attempt,
            paths=paths,
            slot=slot,
            target=self._run_target(),
            fallback=self.study.objective.easier(self.target),
            cap_s=bound.seconds if bound else None,
            token=self.lease.token,
            adjusted=oom.adjusted(self.study, trial.point, known.attempts),
            cap_why=bound.why if bound else "",
            origin=origin,
            begin=begin,
        )
        self.executor.submit(self._begin(trial, attempt, prepared, slot), slot)
        self._remaining.started(trial)
        self._rest_until.pop(trial.id, None)
        self._started += 1
        self._running[str(paths.folder)] = Running(
            trial, attempt, paths, slot, readout.Follow(paths), bound.seconds if bound else None
        )
        self._behind.later(lambda: self.progress.trial_started(trial, slot.name))
        if bound is not None:
            self._behind.later(lambda: self.progress.bounded(trial, bound.seconds))
        self._behind.later(lambda: self._records.ask(trial, attempt))

    def _begin(
        self, trial: PlannedTrial, attempt: int, prepared: attempts.Prepared, slot: Slot
    ) -> Path:
        """Fenced by the lease, then in place, where nobody else's run folder gives way.

        Raises:
            StudyBusy: another orchestrator has the study.
            DiskUnusable: a run folder is there that the database knows nothing of.
        """
        folder = prepared.paths.folder
        try:
            if not folder.exists():
                self.store.begin(
                    self.study.name,
                    trial,
                    attempt,
                    folder=str(folder),
                    slot=slot.name,
                    lease=self.lease,
                )
                return prepared.put()
        except FileExistsError:
            pass  # we slept, and whoever has the study now has given this attempt up
        except BaseException:
            prepared.drop()
            raise
        prepared.drop()
        self.store.renew(self.lease, ttl_s=LEASE_TTL_S)
        raise run_folders.unknown(folder)

    def _wait(self) -> None:
        ends = self.executor.wait(0.0 if self._behind else TICK_S)
        for ended in ends:
            known = self._running.pop(str(ended.folder), None)
            if known is not None:
                self._record_ended(known, ended.fate)
        if ends:  # first of all the free slots
            return
        self._behind.do_one()
        for running in self._running.values():
            self._steering.look(running)
        now = time.monotonic()
        if now - self._renewed_at > LEASE_TTL_S / 3:
            self.store.renew(self.lease, ttl_s=LEASE_TTL_S)
            self._renewed_at = now
        self._drain_if_asked()

    def _drain_if_asked(self) -> None:
        """End what runs: it counts as measured until now, and is run again by the next command."""
        out_of_time = self.budget.max_hours is not None and self._hours() >= self.budget.max_hours
        if self.stop.level >= 2 or out_of_time:
            for running in self._running.values():
                running.drain()

    def _while_the_database_is_gone(self) -> None:
        self._drain_if_asked()
        if self.revive is not None:
            self.revive()

    def _close(self) -> StageEnd:
        if self._ending == "complete" and not self._remaining.anything():
            self._judge_target()
            self.store.close_stage(self.study.name, self.stage.name)
        record = self.store.stage(self.study.name, self.stage.name)
        assert record is not None
        self._record = record
        self._keep_document()
        if record.closed_at is not None:
            self._prune()
        ordered = [
            self._records.judged[t.id] for t in self._plan.trials if t.id in self._records.judged
        ]
        return StageEnd(self._ending, record, tuple(ordered), self._why)

    def _prune(self) -> None:
        """Give back the disk that checkpoints of trials occupy which nobody will continue."""
        if self.stage.name in UNRANKED:
            return  # others begin with these, or a person has asked for them
        facts, target = list(self._records.judged.values()), self._record.effective_target
        freed = checkpoints.prune(self.study, self.home, facts, target=target, top=self.stage.keep)
        if freed:
            self.progress.note(f"checkpoints of the others were deleted: {freed / 1e6:.0f} MB")

    # -- one attempt's end -----------------------------------------------------------------------

    def _record_ended(self, running: Running, fate: str = "") -> None:
        """Draw the conclusions that the next attempt depends on now, put off all the others."""
        try:
            facts = self._records.collect(running, fate)
        except DiskUnusable as error:
            self._trouble = error
            return
        trial = running.trial
        known = self._records.add(trial, facts)
        rest_s = tries.rest_s(known, facts.reason, self.first_rest_s)
        if rest_s is not None:  # what broke may need a moment; others go first
            self._rest_until[trial.id] = time.monotonic() + rest_s
        self._changed()
        self._behind.later(lambda: self._steering.look(running))
        judged = self._records.write_behind(running, facts)
        if facts.reason is Reason.OOM and self.study.on_oom is not None:
            words = oom.outlook(self.study, trial.point, known.attempts)
            self._say_later(f"{trial.id}: {words}")
        self._check_breaker()
        if judged.reason is Reason.FINGERPRINT:
            self._trouble = MixedFingerprints(
                f"{trial.id}: {judged.message}. Times are compared within one fingerprint only: give "
                "the study a new name, or rank them together with [validity] mixed = true"
            )

    def _check_breaker(self) -> None:
        if self._ending != "complete":
            return
        if why := tries.breaker(self._records.facts.values(), self._remaining.may_shrink):
            self._ending, self._why = "breaker", why

    def _say_later(self, words: str) -> None:
        self._behind.later(lambda: self.progress.note(words))

    # -- small questions -------------------------------------------------------------------------

    def _may_start(self) -> bool:
        if self._ending != "complete":
            return False
        if self.stop.level:
            self._ending, self._why = (
                "interrupted",
                "interrupted; the same command goes on from here",
            )
        spent = self.budget.max_hours is not None and self._hours() >= self.budget.max_hours
        used = self.budget.max_trials is not None and self._started >= self.budget.max_trials
        if (spent or used) and self._remaining.anything():
            self._ending = "budget"
            limit = "--max-hours" if spent else "--max-trials"
            self._why = f"{limit} is used up; the same command goes on from here"
        return self._ending == "complete"

    def _hours(self) -> float:
        return (time.monotonic() - self._began_at) / 3600

    def _changed(self) -> None:
        """Facts or plan are others than they were."""
        self._stale = True
        self._records.judge()
        self._steering.refresh(self._records.judged, self._plan)
        self._remaining.changed(self._plan)

    def _patient(self, target: Any) -> Patient:
        return Patient(target, note=self.progress.note, revive=self._while_the_database_is_gone)

    def _open_search(self, name: str) -> Search:
        opened = self._patient(self.search)(name)
        return cast(Search, self._patient(opened))

    def _keep_document(self) -> None:
        run_folders.keep_document(self.home, self._record, self._plan)

    def _run_target(self) -> float | None:
        return self.target if self.study.objective.goal == "time_to_target" else None

    def _done(self) -> int:
        waiting = {t.id for t in self._remaining.ready()}
        return sum(1 for t in self._plan.trials if not t.open and t.id not in waiting)

    def _judge_target(self) -> None:
        """Where nothing reached the target, the stage is judged at the tightest fallback that was."""
        effective = effective_target(self.study, list(self._records.judged.values()), self.target)
        if effective is not None:
            self.store.set_effective_target(self.study.name, self.stage.name, effective)
