"""A study's run folders and the database that knows of them: both must be there before a stage starts.

It must not know what runs in them, or what a stage does next.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from sweeper import attempts
from sweeper.errors import DiskUnusable
from sweeper.paths import Home, make_private, write_json
from sweeper.plan_document import StageDocument
from sweeper.storage.base import StageRecord, Store
from sweeper.trial import StagePlan, TrialFacts


def need_its_database(home: Home, store: Store, plan: StagePlan) -> None:
    """A stage that has run here must not be planned anew because a database knows nothing of it.

    Raises:
        DiskUnusable: its plan and run folders are here, and the database has no such stage.
    """
    if not home.stage_document(plan.study, plan.stage).exists():
        return
    if store.stage(plan.study, plan.stage) is not None:
        return
    folder = home.study(plan.study)
    if any(next((folder / t.id).glob("attempt-*"), None) is not None for t in plan.trials):
        raise unknown(folder)


def need_them(home: Home, store: Store, study: str, facts: Collection[TrialFacts]) -> None:
    """Where trials have run, their folders must be there: else nobody could say how they ended.

    Raises:
        DiskUnusable: they are gone, as when what they are on is not mounted.
    """
    folder = home.study(study)
    if folder.is_dir():
        return
    begun = any(folder in Path(running.folder).parents for running in store.running(study))
    started = any("start" in a.device for f in facts for a in f.attempts)  # imported ones have none
    if begun or started:
        raise DiskUnusable(
            f"folder {folder}: trials of this study have run here, and it is gone; is what it was on "
            "still mounted? Nothing was started or given up. Where the folder is gone for good, or "
            f"another --home is meant: mkdir -p {shlex.quote(str(folder))}"
        )


def unknown(folder: Path) -> DiskUnusable:
    """The trouble with a folder of which the database knows nothing (it was emptied, or changed)."""
    return DiskUnusable(
        f"folder {folder}: is there, and the database knows nothing of it (another database, or an "
        "older copy of it?); nothing was touched. `sweep db rebuild` reads run folders back into the "
        "database; or choose another --home, or move the folder away"
    )


def keep_document(home: Home, record: StageRecord, plan: StagePlan) -> None:
    """The plan beside the run folders, so that `sweep db rebuild` needs nothing else.

    Raises:
        DiskUnusable: the home cannot be written.
    """
    document = StageDocument(
        plan=plan,
        definition=record.definition,
        definition_hash=record.definition_hash,
        options=record.options,
        exploratory=record.exploratory,
        effective_target=record.effective_target,
        closed=record.closed_at is not None,
    )
    path = home.stage_document(plan.study, plan.stage)
    try:
        make_private(path.parent)
        write_json(path, document.to_json())
    except OSError as error:
        raise attempts.disk_unusable(path.parent, error) from None
