"""`status --watch`: another terminal's live view, told from the database and the run folders.

It must not write anything, and ends by itself when nobody runs the study any more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sweeper import readout
from sweeper.doctor.rounds import Rounds, rules_of
from sweeper.events import finite
from sweeper.objective import TimeToTarget, time_to_target
from sweeper.paths import AttemptPaths
from sweeper.progress import Progress
from sweeper.spec import AttemptSpec, Control, SpecError
from sweeper.steering import NO_CAP_S
from sweeper.storage.base import RunningAttempt, StageRecord, Store
from sweeper.study import Study
from sweeper.trial import AttemptFacts, PlannedTrial, TrialFacts

LOOK_EVERY_S = 1.0
IDLE_LOOKS = 3
"""So many looks without a holder and without an attempt, and watching is over."""


@dataclass
class _Followed:
    trial: PlannedTrial
    follow: readout.Follow
    paths: AttemptPaths
    cap_s: float | None = None


@dataclass
class Watch:
    """Turns what changed in a study since the last look into the events of a progress view."""

    study: Study
    store: Store
    progress: Progress
    _stage: str = ""
    _ended: dict[str, int] = field(default_factory=dict)
    _running: dict[str, _Followed] = field(default_factory=dict)
    _idle: int = 0
    _rounds: Rounds | None = None

    def until_over(self) -> None:
        """Look again and again; returns when nobody runs the study, or on Ctrl-C."""
        try:
            while self.look():
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            pass
        finally:
            self.progress.close()

    def look(self) -> bool:
        """One look; whether there may be more to see."""
        records = self.store.stages(self.study.name)
        running = {r.trial_id: r for r in self.store.running(self.study.name)}
        if records:
            self._look_at(records[-1], running)
        quiet = not running and self.store.held(self.study.name) is None
        self._idle = self._idle + 1 if quiet else 0
        return self._idle < IDLE_LOOKS and not (quiet and not records)

    def _look_at(self, record: StageRecord, running: Mapping[str, RunningAttempt]) -> None:
        trials = {trial.id: trial for trial in record.plan.trials}
        if record.stage != self._stage:
            self._begin(record)
        self._announce_ends(record)
        for trial_id, attempt in running.items():
            if trial_id not in self._running and trial_id in trials:
                paths = AttemptPaths(Path(attempt.folder))
                self._running[trial_id] = _Followed(trials[trial_id], readout.Follow(paths), paths)
                self.progress.trial_started(trials[trial_id], attempt.slot)
        for trial_id, followed in list(self._running.items()):
            if trial_id in running:
                self._follow(followed)
            else:
                del self._running[trial_id]

    def _begin(self, record: StageRecord) -> None:
        """A stage comes into view: what has ended in it before is known without a word."""
        self._stage = record.stage
        self._running.clear()
        self._ended = self._counts(record)
        self.progress.stage_started(record.plan, len(self._ended))
        remember = getattr(self.progress, "remember", None)
        if remember is None:
            return
        for facts in self._facts(record, list(self._ended)):
            if facts.counted is not None:
                found = self._time(facts.counted, record)
                remember(facts.trial, facts.counted, found, counts=False)

    def _announce_ends(self, record: StageRecord) -> None:
        now = self._counts(record)
        fresh = [i for i, attempts_made in now.items() if self._ended.get(i, 0) < attempts_made]
        for facts in self._facts(record, fresh) if fresh else ():
            attempt = facts.attempts[-1]
            found = self._time(attempt, record)
            self._running.pop(facts.trial.id, None)
            self.progress.trial_ended(facts.trial, attempt, found)
        self._ended = now

    def _time(self, attempt: AttemptFacts, record: StageRecord) -> TimeToTarget | None:
        """Nothing where every trial runs to its end."""
        objective = self.study.objective
        if objective.is_final:
            return None
        return time_to_target(attempt, record.effective_target, objective.clock)

    def _counts(self, record: StageRecord) -> dict[str, int]:
        """How many attempts of each trial of the stage have ended."""
        ids = {trial.id for trial in record.plan.trials}
        found: dict[str, int] = {}
        for ended in self.store.brief(self.study.name):
            if ended.trial_id in ids:
                found[ended.trial_id] = found.get(ended.trial_id, 0) + 1
        return found

    def _facts(self, record: StageRecord, trials: list[str]) -> list[TrialFacts]:
        return list(self.store.facts(self.study.name, record.stage, trials=trials))

    def _follow(self, followed: _Followed) -> None:
        self._examine(followed)
        metric = self.study.objective.metric
        for event in followed.follow.new():
            if event.get("event") != "evaluated" or event.get("slice", "probe") != "probe":
                continue
            loss = finite((event.get("metrics") or {}).get(metric))
            if loss is not None:
                seconds = float((event.get("clock") or {}).get("train") or 0.0)
                self.progress.evaluated(followed.trial, int(event["step"]), seconds, loss)
        cap_s = _cap_s(followed.paths)
        if cap_s != followed.cap_s:
            followed.cap_s = cap_s
            self.progress.bounded(followed.trial, cap_s)

    def _examine(self, followed: _Followed) -> None:
        """Say what the doctor finds in a running trial, each finding once."""
        if self._rounds is None:
            self._rounds = Rounds(rules_of(self.study.folder))
        trial_id = followed.trial.id
        for finding in self._rounds.look(trial_id, followed.paths.folder):
            self.progress.note(f"{trial_id}: {finding.rule}: {finding.meaning} {finding.advice}")


def _cap_s(paths: AttemptPaths) -> float | None:
    """The cap in force: what was last asked of the runner, else what it was started with."""
    caps = []
    with contextlib.suppress(OSError, SpecError):
        caps.append(Control.read(paths.control).cap_s)
    with contextlib.suppress(OSError, SpecError):
        caps.append(AttemptSpec.read(paths.spec).cap_s)
    found = next((cap for cap in caps if cap is not None), None)
    return None if found is None or found >= NO_CAP_S else found
