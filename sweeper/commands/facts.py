"""From the store's records to the facts that analysis reads.

It must not know SQL, and not what any verdict says.
"""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.analysis.dataset import STAGES, UNRANKED, StageFacts, StudyFacts
from sweeper.fingerprint import versions
from sweeper.racing.validity import judge
from sweeper.storage.base import StageRecord, Store
from sweeper.study import Study
from sweeper.trial import StageName, TrialFacts


def stage_facts(record: StageRecord, facts: Sequence[TrialFacts]) -> StageFacts:
    """One stage's record joined with its trials."""
    return StageFacts(
        plan=record.plan,
        facts=tuple(facts),
        effective_target=record.effective_target,
        closed=record.closed_at is not None,
        created_at=record.created_at,
        closed_at=record.closed_at,
        definition_hash=record.definition_hash,
        exploratory=record.exploratory,
        options=record.options,
    )


def study_facts(study: Study, store: Store) -> StudyFacts:
    """Every stage of a study that has a plan, with all ended attempts; ranked ones with verdicts."""
    known = store.stages(study.name)
    records = [record for record in known if record.stage in STAGES]
    recorded = [store.facts(study.name, record.stage) for record in records]
    found = judge([f for of_stage in recorded for f in of_stage], study.trust)
    judged = {f.trial.id: f for f in found.facts}
    return StudyFacts(
        study,
        {
            record.stage: stage_facts(record, [judged[f.trial.id] for f in facts])
            for record, facts in zip(records, recorded, strict=True)
        },
        versions(),
        found.banner,
        {
            record.stage: stage_facts(record, store.facts(study.name, record.stage))
            for record in known
            if record.stage in UNRANKED
        },
    )


def judged_facts(study: Study, store: Store, stage: StageName) -> Sequence[TrialFacts]:
    """One stage's trials with their verdicts, judged by themselves."""
    return judge(store.facts(study.name, stage), study.trust).facts
