"""The store in this process's memory: for tests of the loop, and for plans that are only tried out.

It must not be used where facts are to outlive the process; its leases run on this process's clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeper.errors import DatabaseUnusable, StudyBusy
from sweeper.storage.base import (
    STAGES,
    Lease,
    RunningAttempt,
    StageRecord,
    json_text,
    no_counts,
    storable,
)
from sweeper.trial import (
    AttemptFacts,
    Brief,
    DeviceSample,
    PlannedTrial,
    StageName,
    StagePlan,
    TrialFacts,
)

_Attempt = tuple[str, int]


@dataclass(frozen=True)
class _Held:
    token: int
    holder: str
    until: float


class MemoryStore:
    """Store in memory; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stages: dict[str, dict[StageName, StageRecord]] = {}
        self._running: dict[str, dict[_Attempt, RunningAttempt]] = {}
        self._ended: dict[str, dict[_Attempt, AttemptFacts]] = {}
        self._samples: dict[tuple[str, str, int], dict[tuple[str, float], DeviceSample]] = {}
        self._leases: dict[str, _Held] = {}

    def studies(self) -> Sequence[str]:
        """See `Readable.studies`."""
        return list(self._stages)

    def freeze(
        self,
        plan: StagePlan,
        *,
        definition: Mapping[str, Any],
        definition_hash: str,
        options: Mapping[str, Any],
        exploratory: bool = False,
    ) -> StageRecord:
        """See `Store.freeze`."""
        with self._lock:
            stages = self._stages.get(plan.study, {})
            if plan.stage in stages:
                if exploratory:
                    stages[plan.stage] = replace(stages[plan.stage], exploratory=True)
                return stages[plan.stage]
            ids = [t.id for s in stages.values() for t in s.plan.trials]
            ids += [trial.id for trial in plan.trials]
            if len(set(ids)) < len(ids):
                raise ValueError(f"study {plan.study}, {plan.stage}: a trial id is used twice")
            record = StageRecord(
                study=plan.study,
                stage=plan.stage,
                target=plan.target,
                effective_target=plan.target,
                definition=json.loads(json_text(definition)),
                definition_hash=definition_hash,
                plan=plan,
                options=json.loads(json_text(options)),
                exploratory=exploratory,
                created_at=time.time(),
                closed_at=None,
            )
            self._stages.setdefault(plan.study, {})[plan.stage] = record
            return record

    def stage(self, study: str, stage: StageName) -> StageRecord | None:
        """See `Readable.stage`."""
        return self._stages.get(study, {}).get(stage)

    def stages(self, study: str, *, trials: bool = True) -> Sequence[StageRecord]:
        """See `Readable.stages`."""
        with self._lock:
            found = self._stages.get(study, {})
            records = [found[name] for name in STAGES if name in found]
            return records if trials else [_without_trials(record) for record in records]

    def update_plan(self, plan: StagePlan) -> None:
        """See `Store.update_plan`."""
        with self._lock:
            record = self.stage(plan.study, plan.stage)
            if record is None:
                raise ValueError(f"study {plan.study} has no {plan.stage} to update")
            new = {trial.id: trial for trial in plan.trials}
            tried = {name for name, _ in (*self._of(plan.study), *self._begun(plan.study))}
            for old in record.plan.trials:
                if old.id not in new:
                    raise ValueError(f"study {plan.study}: trial {old.id} is not in the new plan")
                same = (old.point, old.seed) == (new[old.id].point, new[old.id].seed)
                if old.id in tried and not same:
                    raise ValueError(
                        f"study {plan.study}: trial {old.id} was tried and has changed"
                    )
            others = (s for s in self._stages[plan.study].values() if s.stage != plan.stage)
            taken = {trial.id for stage in others for trial in stage.plan.trials}
            if len(new) < len(plan.trials) or taken & set(new):
                raise ValueError(f"study {plan.study}, {plan.stage}: a trial id is used twice")
            self._replace(replace(record, plan=plan, target=plan.target))

    def set_effective_target(self, study: str, stage: StageName, target: float) -> None:
        """See `Store.set_effective_target`."""
        with self._lock:
            if record := self.stage(study, stage):
                self._replace(replace(record, effective_target=target))

    def close_stage(self, study: str, stage: StageName) -> None:
        """See `Store.close_stage`."""
        with self._lock:
            record = self.stage(study, stage)
            if record is not None and record.closed_at is None:
                self._replace(replace(record, closed_at=time.time()))

    def begin(
        self, study: str, trial: PlannedTrial, attempt: int, *, folder: str, slot: str, lease: Lease
    ) -> None:
        """See `Store.begin`."""
        with self._lock:
            self._fence(study, lease)
            self._must_know(study, trial.id)
            if (trial.id, attempt) not in self._of(study):
                begun = RunningAttempt(trial.id, attempt, folder, slot)
                self._begun(study)[trial.id, attempt] = begun

    def record(
        self, study: str, trial_id: str, facts: AttemptFacts, *, lease: Lease | None = None
    ) -> bool:
        """See `Store.record`."""
        with self._lock:
            if lease is not None:
                self._fence(study, lease)
            self._must_know(study, trial_id)
            key = (trial_id, facts.attempt)
            if key in self._of(study):
                return False
            self._begun(study).pop(key, None)
            self._of(study)[key] = replace(
                facts,
                message=storable(facts.message),
                validity=storable(facts.validity),
                device=json.loads(json_text(facts.device)),
                fingerprint=json.loads(json_text(facts.fingerprint)),
            )
            return True

    def record_samples(
        self, study: str, trial_id: str, attempt: int, samples: Sequence[DeviceSample]
    ) -> None:
        """See `Store.record_samples`."""
        with self._lock:
            if (trial_id, attempt) not in self._of(study):
                raise ValueError(f"study {study}: {trial_id} attempt {attempt} is not recorded")
            kept = self._samples.setdefault((study, trial_id, attempt), {})
            for sample in samples:
                kept.setdefault((sample.device, sample.at_s), sample)

    def samples(self, study: str, trial_id: str, attempt: int) -> Sequence[DeviceSample]:
        """See `Readable.samples`."""
        with self._lock:
            kept = self._samples.get((study, trial_id, attempt), {})
            return [sample for _, sample in sorted(kept.items(), key=lambda item: item[0])]

    def running(self, study: str) -> Sequence[RunningAttempt]:
        """See `Readable.running`."""
        with self._lock:
            return list(self._begun(study).values())

    def facts(
        self,
        study: str,
        stage: StageName | None = None,
        *,
        trials: Collection[str] | None = None,
        curves: bool = True,
    ) -> Sequence[TrialFacts]:
        """See `Readable.facts`."""
        with self._lock:
            ended: dict[str, list[AttemptFacts]] = {}
            for (trial_id, _), facts in sorted(self._of(study).items(), key=lambda item: item[0]):
                kept = facts if curves else replace(facts, curve=())
                ended.setdefault(trial_id, []).append(kept)
            return [
                TrialFacts(trial, tuple(ended.get(trial.id, ())))
                for record in self.stages(study)
                if stage in (None, record.stage)
                for trial in record.plan.trials
                if trials is None or trial.id in trials
            ]

    def brief(self, study: str) -> Sequence[Brief]:
        """See `Readable.brief`."""
        return [
            Brief(f.trial.id, a.outcome, a.wall_s, a.best_loss, a.phases)
            for f in self.facts(study)
            for a in f.attempts
        ]

    def counts(self, study: str) -> Mapping[StageName, Mapping[str, int]]:
        """See `Readable.counts`."""
        with self._lock:
            found = {record.stage: no_counts() for record in self.stages(study)}
            begun = {trial_id for trial_id, _ in self._begun(study)}
            for facts in self.facts(study):
                counts = found[facts.trial.stage]
                counts["planned"] += 1
                if facts.trial.id in begun:
                    counts["running"] += 1
                elif facts.counted is not None:
                    counts[facts.counted.outcome.value] += 1
            return found

    def acquire(self, study: str, holder: str, *, ttl_s: float) -> Lease:
        """See `Store.acquire`."""
        with self._lock:
            held = self._leases.get(study)
            now = time.monotonic()
            if held is not None and held.until > now:
                raise StudyBusy(
                    f"study {study} is being run by {held.holder}, whose lease ends in "
                    f"{held.until - now:.0f} s unless it is renewed"
                )
            token = held.token + 1 if held else 1
            self._leases[study] = _Held(token, storable(holder), now + ttl_s)
            return Lease(study, token, storable(holder))

    def held(self, study: str) -> Lease | None:
        """See `Readable.held`."""
        with self._lock:
            held = self._leases.get(study)
            live = held is not None and held.until > time.monotonic()
            return Lease(study, held.token, held.holder) if held is not None and live else None

    def renew(self, lease: Lease, *, ttl_s: float) -> None:
        """See `Store.renew`."""
        with self._lock:
            self._fence(lease.study, lease)
            until = time.monotonic() + ttl_s
            self._leases[lease.study] = replace(self._leases[lease.study], until=until)

    def release(self, lease: Lease) -> None:
        """See `Store.release`."""
        with self._lock:
            held = self._leases.get(lease.study)
            if held is not None and held.token == lease.token:
                self._leases[lease.study] = _Held(held.token + 1, held.holder, 0.0)

    def close(self) -> None:
        """See `Store.close`; the facts stay as long as this value."""

    def _begun(self, study: str) -> dict[_Attempt, RunningAttempt]:
        return self._running.setdefault(study, {})

    def _of(self, study: str) -> dict[_Attempt, AttemptFacts]:
        return self._ended.setdefault(study, {})

    def _replace(self, record: StageRecord) -> None:
        self._stages[record.study][record.stage] = record

    def _must_know(self, study: str, trial_id: str) -> None:
        known = (t.id for s in self._stages.get(study, {}).values() for t in s.plan.trials)
        if trial_id not in known:
            raise DatabaseUnusable(f"memory: it does not know trial {trial_id} of study {study}")

    def _fence(self, study: str, lease: Lease) -> None:
        held = self._leases.get(lease.study)
        if study != lease.study or held is None or held.token != lease.token:
            raise StudyBusy(f"study {study}: the lease of {lease.holder} is lost")


def _without_trials(record: StageRecord) -> StageRecord:
    return replace(record, plan=replace(record.plan, trials=()))
