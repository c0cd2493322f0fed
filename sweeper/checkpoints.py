"""Which checkpoints a trial can go on from, and which are kept when a stage is closed.

It must not know trainers: a checkpoint is what events name, called checkpoint* in a run folder.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from sweeper.attempts import Origin
from sweeper.events import EventError, parse_line
from sweeper.objective import time_to_target
from sweeper.paths import AttemptPaths, Home
from sweeper.study import Study
from sweeper.trial import Reason, TrialFacts


def prune(
    study: Study, home: Home, facts: Sequence[TrialFacts], *, target: float, top: int | None
) -> int:
    """Delete what `[checkpoints] keep` does not keep; returns the bytes that were freed.

    With "top", the counted attempts of the `top` best points are kept (None: of all points).
    """
    if study.checkpoints.keep == "all":
        return 0
    kept: set[tuple[str, int]] = set()
    if study.checkpoints.keep == "top":
        best = best_points(study, facts, target)[:top]
        kept = {
            (f.trial.id, f.counted.attempt)
            for f in facts
            if f.counted is not None and f.trial.point.id in best
        }
    freed = 0
    for trial in facts:
        for attempt in trial.attempts:
            if (trial.trial.id, attempt.attempt) not in kept:
                folder = home.attempt(study.name, trial.trial.id, attempt.attempt).folder
                freed += sum(_delete(path) for path in _checkpoints(folder))
    return freed


def origin(study: Study, home: Home, known: TrialFacts, target: float) -> Origin | None:
    """Where a trial that was stopped at an easier target can go on to this one; None if it cannot.

    Only the last attempt counts: one that failed to go on is not tried again.
    """
    counted = known.counted
    if counted is None or counted.reason is not Reason.TARGET or not study.trainer.resume:
        return None
    if counted is not known.attempts[-1] or counted.device.get("adjusted"):
        return None
    time = time_to_target(counted, target, study.objective.clock)
    if time is None or time.reached:
        return None
    path = last_checkpoint(home.attempt(study.name, known.trial.id, counted.attempt))
    before = counted.device.get("starts_from")
    return Origin(counted.attempt, path, before) if path else None


def last_checkpoint(paths: AttemptPaths) -> Path | None:
    """The last checkpoint that an attempt's trainer spoke of, if it is there."""
    found: Path | None = None
    with contextlib.suppress(FileNotFoundError, EventError), paths.events.open("rb") as file:
        for line in file:
            if b"checkpoint_saved" in line:
                named = parse_line(line).body.get("path")
                found = paths.folder / named if isinstance(named, str) else found
    return found if found is not None and found.exists() else None


def best_points(study: Study, facts: Sequence[TrialFacts], target: float) -> list[str]:
    """Ids of the points measured, best first: by their fastest time, then by their lowest loss."""
    order: dict[str, tuple[float, float]] = {}
    for trial in facts:
        attempt = trial.counted
        found = time_to_target(attempt, target, study.objective.clock) if attempt else None
        if attempt is None or found is None:
            continue
        loss = math.inf if attempt.best_loss is None else attempt.best_loss
        place = (found.seconds if found.reached else math.inf, loss)
        order[trial.trial.point.id] = min(place, order.get(trial.trial.point.id, place))
    return sorted(order, key=lambda point: order[point])


def _checkpoints(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(folder.glob("checkpoint*"))


def _delete(path: Path) -> int:
    """Delete a file or a folder (never what a link leads to); its size in bytes, as far as known."""
    size = 0
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            size = path.lstat().st_size
            path.unlink()
        else:
            inside = [p.lstat() for p in path.rglob("*") if not p.is_dir()]
            shutil.rmtree(path)
            size = sum(found.st_size for found in inside)
    return size
