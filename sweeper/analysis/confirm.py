"""Confirm: paired comparisons of the finalists and the baseline within blocks of fresh seeds.

It must not know how the finalists were found: their earlier times, picked as the fastest of many,
flatter them and never count here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.attribution import Split, difference
from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.intervals import Interval, geometric, pairs_needed, t_quantile
from sweeper.analysis.ranking import Row, Run, rank
from sweeper.analysis.wording import bracket, count, ratio
from sweeper.space import Point

ALPHA = 0.05
LOOKS = (4, 6, 8, 10)


def looks(repeats: int) -> tuple[int, ...]:
    """After how many blocks pairs are looked at: 4, 6, 8, 10 and the last (method section 6)."""
    return (*(n for n in LOOKS if n < repeats), repeats)


@dataclass(frozen=True)
class Pair:
    """The leader's and the other's run in one block; `split` is None when the other did not reach.

    `other_s` is then the time until which it was watched, and the pair a bound.
    """

    block: int
    leader_s: float
    other_s: float
    other_reached: bool
    split: Split | None


@dataclass(frozen=True)
class Contrast:
    """How much slower `other` is than `leader`: time ratios within blocks.

    `at_least`: some of the other's runs did not reach, so ratio and interval are lower bounds.
    `dropped`: blocks in which the leader itself did not reach, or one of the two has no time.
    """

    leader: Row
    other: Row
    is_baseline: bool
    is_finalist: bool
    pairs: tuple[Pair, ...]
    dropped: int
    time: Interval | None
    learning: Interval | None
    speed: Interval | None
    at_least: bool
    decided: bool
    blocks_needed: int | None

    def words(self) -> str:
        """The verdict on this pair in one sentence without its full stop."""
        name = "the baseline" if self.is_baseline else self.other.label
        n = count(len(self.pairs), "block")
        if self.time is None:
            return f"{self.leader.label} and {name} share no block in which both have a time"
        interval = bracket(self.time.low, self.time.high)
        bound = "at least " if self.at_least else ""
        measured = f"{bound}{ratio(self.time.ratio)}x {interval}".rstrip()
        if self.decided:
            return f"{self.leader.label} is {measured} faster than {name}, n = {n}"
        more = (
            f"{count(self.blocks_needed - len(self.pairs), 'more block')} would do if the spread "
            "stays as it is"
            if self.blocks_needed and self.blocks_needed > len(self.pairs)
            else "it is not known how many more blocks would do"
        )
        return (
            f"{self.leader.label} and {name} are not distinguishable at this budget: {measured}, "
            f"n = {n}; {more}"
        )


@dataclass(frozen=True)
class Confirmation:
    """All that confirm says. Intervals are at 1 - alpha, alpha = 0.05 over the planned looks."""

    rows: tuple[Row, ...]
    leader: Row
    baseline: Row | None
    contrasts: tuple[Contrast, ...]
    blocks: int
    looks: tuple[int, ...]
    alpha: float
    resolvable: float | None

    @property
    def settled(self) -> bool:
        """Whether the leader is separated from each other finalist (a mere baseline is not one)."""
        return all(c.decided for c in self.contrasts if c.is_finalist)

    @property
    def against_baseline(self) -> Contrast | None:
        """The pair that gives the speed-up."""
        return next((c for c in self.contrasts if c.is_baseline), None)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "leader": self.leader.id,
            "leader_label": self.leader.label,
            "blocks": self.blocks,
            "looks": list(self.looks),
            "confidence": 1 - self.alpha,
            "settled": self.settled,
            "resolvable_ratio": self.resolvable,
            "rows": [row.as_dict() for row in self.rows],
            "contrasts": [_contrast_dict(contrast) for contrast in self.contrasts],
        }


def confirmation(facts: StudyFacts, *, target: float | None = None) -> Confirmation | None:
    """Judge the confirm stage, or None when it has no plan or nothing in it reached the target.

    Pairs are runs of the same block. The leader is the row with the least geometric mean over the
    blocks in which every row that ever reached has a time; the fastest median where there is no
    such block.
    """
    stage = facts.stages.get("confirm")
    if stage is None:
        return None
    goal = stage.effective_target if target is None else target
    rows = rank([stage], target=goal, clock=facts.clock)
    if not rows or not any(row.reached_runs for row in rows):
        return None
    laid_out = len({trial.block for trial in stage.plan.trials})
    repeats = int(stage.plan.design.get("blocks") or laid_out)
    planned = looks(repeats)
    alpha = ALPHA / len(planned)
    leader = _leader(rows)
    baseline = _baseline(facts, stage, rows)
    finalists = {t.point for t in stage.plan.trials if "finalist" in t.groups}
    contrasts = tuple(
        _contrast(
            leader,
            row,
            alpha=alpha,
            first_look=planned[0],
            is_baseline=row is baseline,
            is_finalist=row is not baseline or row.point in finalists,
        )
        for row in rows
        if row is not leader
    )
    blocks = len({run.block for row in rows for run in row.runs})
    return Confirmation(
        rows,
        leader,
        baseline,
        contrasts,
        blocks,
        planned,
        alpha,
        _resolvable(contrasts, repeats, alpha),
    )


def _leader(rows: Sequence[Row]) -> Row:
    able = [row for row in rows if row.reached_runs]
    times = {row.id: _by_block(row) for row in able}
    shared = set.intersection(
        *({b for b, run in of_row.items() if run.time.reached} for of_row in times.values())
    )
    if not shared:
        return able[0]
    return min(
        able,
        key=lambda row: (
            not row.reached,
            math.fsum(math.log(max(times[row.id][b].time.seconds, 1e-9)) for b in shared),
        ),
    )


def _baseline(facts: StudyFacts, stage: StageFacts, rows: Sequence[Row]) -> Row | None:
    point: Point | None = facts.baseline()
    marked = {t.point for t in stage.plan.trials if "baseline" in t.groups}
    return next((row for row in rows if row.point == point or row.point in marked), None)


def _by_block(row: Row) -> Mapping[int, Run]:
    return {run.block: run for run in row.runs}


def _contrast(
    leader: Row,
    other: Row,
    *,
    alpha: float,
    first_look: int,
    is_baseline: bool,
    is_finalist: bool,
) -> Contrast:
    mine, theirs = _by_block(leader), _by_block(other)
    pairs = []
    for block in sorted(mine.keys() & theirs.keys()):
        a, b = mine[block].time, theirs[block].time
        if a.reached and a.seconds > 0 and b.seconds > 0:
            pairs.append(Pair(block, a.seconds, b.seconds, b.reached, difference(a, b)))
    dropped = len(mine.keys() | theirs.keys()) - len(pairs)
    logs = [math.log(pair.other_s / pair.leader_s) for pair in pairs]
    splits = [pair.split for pair in pairs if pair.split]
    time = geometric(logs, alpha) if logs else None
    return Contrast(
        leader,
        other,
        is_baseline,
        is_finalist,
        tuple(pairs),
        dropped,
        time,
        geometric([s.learning for s in splits], alpha) if splits else None,
        geometric([s.speed for s in splits], alpha) if splits else None,
        at_least=any(not pair.other_reached for pair in pairs),
        decided=bool(time and len(pairs) >= first_look and time.low is not None and time.low > 1),
        blocks_needed=pairs_needed(logs, alpha),
    )


def _resolvable(contrasts: Sequence[Contrast], repeats: int, alpha: float) -> float | None:
    """The smallest time ratio that `repeats` blocks would separate, at the spread seen in pairs."""
    spreads = [
        statistics.stdev(logs)
        for c in contrasts
        if len(logs := [p.split.time for p in c.pairs if p.split]) > 1
    ]
    if not spreads or repeats < 2:
        return None
    spread = statistics.fmean(spreads)
    return math.exp(t_quantile(repeats - 1, alpha) * spread / math.sqrt(repeats))


def _contrast_dict(contrast: Contrast) -> dict[str, Any]:
    return {
        "other": contrast.other.id,
        "other_label": contrast.other.label,
        "is_baseline": contrast.is_baseline,
        "words": contrast.words(),
        "decided": contrast.decided,
        "at_least": contrast.at_least,
        "dropped_blocks": contrast.dropped,
        "blocks_needed": contrast.blocks_needed,
        "time": contrast.time.as_dict() if contrast.time else None,
        "learning": contrast.learning.as_dict() if contrast.learning else None,
        "speed": contrast.speed.as_dict() if contrast.speed else None,
        "pairs": [
            {
                "block": pair.block,
                "leader_s": pair.leader_s,
                "other_s": pair.other_s,
                "other_reached": pair.other_reached,
                "ratio": pair.other_s / pair.leader_s,
            }
            for pair in contrast.pairs
        ],
    }
