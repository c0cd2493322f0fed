"""Successive halving on the train-seconds axis: at each rung only the better third goes on.

It must not cut what may still enter the top k: whoever is level with a member of it there goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.racing.forecast import Finished, Track

KEEP = 1 / 3
RUNGS = (1 / 3, 2 / 3)
"""Shares of the cap at which losses at equal seconds are compared."""


@dataclass(frozen=True)
class Cut:
    """A trial that is cut at a rung: where, its loss, and the loss of the last one that stays."""

    at_s: float
    loss: float
    bar: float


def cut(
    track: Track,
    finished: Sequence[Finished],
    tracks: Sequence[Track],
    *,
    k: int,
    cap_s: float,
) -> Cut | None:
    """Whether a trial falls at the last rung that it has passed (Li et al. 2018, on seconds).

    It falls when its lowest loss by then is outside the best third of the stage's curves, and above
    that of every one of the k fastest.

    Args:
        track: The running trial's curve.
        finished: Curves that reached.
        tracks: All curves of the stage that lasted so long, reached or not.
        k: How many points are kept.
        cap_s: The cap in force.
    """
    passed = [
        share * cap_s for share in RUNGS if track.seconds and track.seconds[-1] >= share * cap_s
    ]
    if not passed:
        return None
    at_s = passed[-1]
    mine = track.loss_at(at_s)
    known = sorted(loss for t in tracks if (loss := t.loss_at(at_s)) is not None)
    fastest = sorted(finished, key=lambda f: f.crossed_s)[:k]
    # one that had crossed by then has no loss there: it is better than any
    top = [loss for f in fastest if (loss := f.track.loss_at(at_s)) is not None]
    if mine is None or len(fastest) < k or len(known) < 2 * k:
        return None
    bar = max([known[int(KEEP * len(known))], *top])
    return Cut(at_s, mine, bar) if mine > bar else None
