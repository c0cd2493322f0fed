"""Everything that is read from the database: plain SQL, for whatever executes it.

It must not know transactions, connections or errors, and never imports SQLAlchemy: `status` reads
without it.

In the statements the tables are s (studies), g (stages), t (trials), a (attempts), e (evaluations).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Protocol, TypeVar

from sweeper.curve import Curve
from sweeper.storage import rows
from sweeper.storage.base import STAGES, Lease, RunningAttempt, StageRecord, no_counts
from sweeper.storage.names import SCHEMA
from sweeper.trial import (
    AttemptFacts,
    Brief,
    DeviceSample,
    Outcome,
    Phases,
    PlannedTrial,
    StageName,
    TrialFacts,
)

T = TypeVar("T")

_STAGES: Final = f"{SCHEMA}.studies s JOIN {SCHEMA}.stages g USING (study_key)"
_TRIALS: Final = f"{_STAGES} JOIN {SCHEMA}.trials t USING (stage_key)"
_ATTEMPTS: Final = f"{_TRIALS} JOIN {SCHEMA}.attempts a USING (trial_key)"
_STAGE_ORDER: Final = f"array_position(ARRAY{list(STAGES)}, g.stage)"
_CHOSEN: Final = """
    s.study = %(study)s AND (%(stage)s::text IS NULL OR g.stage = %(stage)s)
    AND (%(only)s::text[] IS NULL OR t.trial = ANY(%(only)s::text[]))
"""
_ENDED: Final = "a.outcome IS NOT NULL"

# ruff: noqa: S608 - what is put into the statements are constants
STUDIES: Final = f"SELECT study FROM {SCHEMA}.studies ORDER BY study_key"
STAGES_OF: Final = f"""
    SELECT {rows.STAGE_COLUMNS} FROM {_STAGES}
    WHERE s.study = %(study)s AND (%(stage)s::text IS NULL OR g.stage = %(stage)s)
    ORDER BY {_STAGE_ORDER}
"""
PLANNED: Final = f"""
    SELECT g.stage, {rows.TRIAL_COLUMNS} FROM {_TRIALS} WHERE {_CHOSEN}
    ORDER BY {_STAGE_ORDER}, t.position
"""
ENDED: Final = f"""
    SELECT {rows.ATTEMPT_COLUMNS}, f.document AS fingerprint
    FROM {_ATTEMPTS} LEFT JOIN {SCHEMA}.fingerprints f USING (fingerprint)
    WHERE {_CHOSEN} AND {_ENDED} ORDER BY a.attempt
"""
CURVES: Final = f"""
    SELECT e.attempt_key, {rows.CURVE_COLUMNS}
    FROM {_ATTEMPTS} JOIN {SCHEMA}.evaluations e USING (attempt_key)
    WHERE {_CHOSEN} AND {_ENDED} GROUP BY e.attempt_key
"""
BRIEF: Final = f"""
    SELECT t.trial, {rows.BRIEF_COLUMNS} FROM {_ATTEMPTS}
    WHERE s.study = %(study)s AND {_ENDED} ORDER BY a.trial_key, a.attempt
"""
# The attempt that counts, as TrialFacts.counted has it; one under way goes before all.
COUNTS: Final = f"""
    SELECT g.stage, g.state, count(g.trial_key) AS trials FROM (
        SELECT DISTINCT ON (g.stage_key, t.trial_key) g.stage, t.trial_key,
            CASE WHEN a.attempt IS NOT NULL THEN coalesce(a.outcome, 'running') END AS state
        FROM {_STAGES} LEFT JOIN {SCHEMA}.trials t USING (stage_key)
            LEFT JOIN {SCHEMA}.attempts a USING (trial_key)
        WHERE s.study = %(study)s
        ORDER BY g.stage_key, t.trial_key, a.outcome IS NULL DESC,
            a.outcome IN ('{Outcome.REACHED}', '{Outcome.CENSORED}') DESC, a.attempt DESC
    ) g GROUP BY g.stage, g.state ORDER BY {_STAGE_ORDER}
"""
RUNNING: Final = f"""
    SELECT t.trial, a.attempt, a.folder, a.slot FROM {_ATTEMPTS}
    WHERE s.study = %(study)s AND a.outcome IS NULL ORDER BY a.attempt_key
"""
HELD: Final = f"""
    SELECT holder, token, extract(epoch FROM expires_at - clock_timestamp())::float8 AS left_s
    FROM {SCHEMA}.leases WHERE study = %(study)s
"""
SAMPLES: Final = f"""
    SELECT {", ".join(f"d.{field.name}" for field in fields(DeviceSample))}
    FROM {_ATTEMPTS} JOIN {SCHEMA}.device_samples d USING (attempt_key)
    WHERE s.study = %(study)s AND t.trial = %(trial)s AND a.attempt = %(attempt)s AND {_ENDED}
"""


class Execute(Protocol):
    """Executes a statement in the driver's style of parameters."""

    def __call__(
        self, statement: str, values: Mapping[str, Any], *, streamed: bool = False
    ) -> Iterable[Any]:
        """The rows: tuples whose columns are attributes too; `streamed`: never all in memory."""
        ...


class Reading(ABC):
    """The reading half of a store (`Readable`), on whatever executes statements."""

    @abstractmethod
    def read(self, work: Callable[[Execute], T]) -> T:
        """What `work` makes of the rows that it asks for, in one transaction."""

    def studies(self) -> Sequence[str]:
        """See `Readable.studies`."""
        return self.read(lambda execute: [row.study for row in execute(STUDIES, {})])

    def stage(self, study: str, stage: StageName) -> StageRecord | None:
        """See `Readable.stage`."""
        found = self.read(lambda execute: stages_of(execute, study, stage))
        return found[0] if found else None

    def stages(self, study: str, *, trials: bool = True) -> Sequence[StageRecord]:
        """See `Readable.stages`."""
        return self.read(lambda execute: stages_of(execute, study, None, planned=trials))

    def samples(self, study: str, trial_id: str, attempt: int) -> Sequence[DeviceSample]:
        """See `Readable.samples`."""
        wanted = {"study": study, "trial": trial_id, "attempt": attempt}
        found = self.read(lambda execute: [DeviceSample(*row) for row in execute(SAMPLES, wanted)])
        return sorted(found, key=lambda sample: (sample.device, sample.at_s))

    def running(self, study: str) -> Sequence[RunningAttempt]:
        """See `Readable.running`."""
        return self.read(
            lambda execute: [RunningAttempt(*row) for row in execute(RUNNING, {"study": study})]
        )

    def facts(
        self,
        study: str,
        stage: StageName | None = None,
        *,
        trials: Collection[str] | None = None,
        curves: bool = True,
    ) -> Sequence[TrialFacts]:
        """See `Readable.facts`; three queries, however many trials there are."""
        return self.read(
            lambda execute: facts_of(execute, study, stage, only=trials, curves=curves)
        )

    def brief(self, study: str) -> Sequence[Brief]:
        """See `Readable.brief`; one query."""
        return self.read(lambda execute: brief_of(execute, study))

    def counts(self, study: str) -> Mapping[StageName, Mapping[str, int]]:
        """See `Readable.counts`."""
        return self.read(lambda execute: counts_of(execute, study))

    def held(self, study: str) -> Lease | None:
        """See `Readable.held`; the database's clock says what is live."""
        found = self.read(lambda execute: list(execute(HELD, {"study": study})))
        live = [Lease(study, row.token, row.holder) for row in found if row.left_s > 0]
        return live[0] if live else None


def stages_of(
    execute: Execute, study: str, stage: StageName | None, *, planned: bool = True
) -> list[StageRecord]:
    """One stage or all of a study, in order; `planned`: with their trials."""
    wanted = {"study": study, "stage": stage, "only": None}
    found = list(execute(STAGES_OF, wanted))
    of_stage: dict[str, list[PlannedTrial]] = defaultdict(list)
    for row in execute(PLANNED, wanted) if planned else ():
        of_stage[row.stage].append(rows.trial_value(row, row.stage))
    return [rows.stage_value(row, of_stage[row.stage]) for row in found]


def facts_of(
    execute: Execute,
    study: str,
    stage: StageName | None,
    *,
    only: Collection[str] | None = None,
    curves: bool = True,
) -> list[TrialFacts]:
    """Trials, then attempts, then curves: whatever is recorded between them is left for later."""
    wanted = {"study": study, "stage": stage, "only": None if only is None else list(only)}
    planned = list(execute(PLANNED, wanted))
    ended = list(execute(ENDED, wanted))
    measured: dict[int, Curve] = {}
    if curves:
        packed = execute(CURVES, wanted, streamed=True)
        measured = {key: rows.curve_value(*columns) for key, *columns in packed}
    of_trial: dict[int, list[AttemptFacts]] = defaultdict(list)
    for row in ended:
        facts = rows.attempt_value(row, measured.get(row.attempt_key, ()), row.fingerprint or {})
        of_trial[row.trial_key].append(facts)
    return [
        TrialFacts(rows.trial_value(row, row.stage), tuple(of_trial[row.trial_key]))
        for row in planned
    ]


def brief_of(execute: Execute, study: str) -> list[Brief]:
    """See `Readable.brief`."""
    return [
        Brief(name, Outcome(outcome), wall_s, best_loss, Phases(*seconds))
        for name, outcome, wall_s, best_loss, *seconds in execute(BRIEF, {"study": study})
    ]


def counts_of(execute: Execute, study: str) -> dict[StageName, dict[str, int]]:
    """See `Readable.counts`."""
    found: dict[StageName, dict[str, int]] = {}
    for row in execute(COUNTS, {"study": study}):
        found.setdefault(row.stage, no_counts())["planned"] += row.trials
        if row.state is not None:
            found[row.stage][row.state] += row.trials
    return found
