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
from sweeper.analysis.wording import bracket, count, ratio, significant
from sweeper.space import Point

ALPHA = 0.05
LOOKS = (4, 6, 8, 10)


def looks(repeats: int) -> tuple[int, ...]:
    """After how many blocks pairs are looked at: 4, 6, 8, 10 and the last (method section 6)."""
    return (*(n for n in LOOKS if n < repeats), repeats)


@dataclass(frozen=True)
class Pair:
    """The leader's and the other's run in one block; `split` is None when the other did not reach.

    Both are seconds to the target; `other` is then the time until which it was watched, and the
    pair a bound. With goal "final" both are the metric at the budget's end, and there is no split.
    """

    block: int
    leader: float
    other: float
    other_reached: bool
    split: Split | None


@dataclass(frozen=True)
class Contrast:
    """How much slower `other` is than `leader`: time ratios within blocks.

    With goal "final" the ratios are those of the final metric: how much higher `other` ends.

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
        if self.leader.by_final:
            measured = lower_by(self.time)
        if self.decided and self.leader.by_final:
            return f"{self.leader.label} ends {measured} than {name}, n = {n}"
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
    by_final = facts.study.objective.is_final
    rows = rank([stage], target=goal, clock=facts.clock, by_final=by_final)
    if not any(_exact(run, row) is not None for row in rows for run in row.runs):
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
    able = [row for row in rows if any(_exact(run, row) is not None for run in row.runs)]
    scores = {
        row.id: {run.block: s for run in row.runs if (s := _exact(run, row)) is not None}
        for row in able
    }
    shared = set.intersection(*(set(of_row) for of_row in scores.values()))
    if not shared:
        return able[0]
    return min(
        able,
        key=lambda row: (
            not row.competes,
            math.fsum(math.log(max(scores[row.id][b], 1e-9)) for b in shared),
        ),
    )


def _exact(run: Run, row: Row) -> float | None:
    """What ranks a run, where it is known: its seconds to the target, or its final metric."""
    if row.by_final:
        return run.final
    return run.time.seconds if run.time.reached else None


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
    tried = (_pair(b, mine[b], theirs[b], leader) for b in sorted(mine.keys() & theirs.keys()))
    pairs = [pair for pair in tried if pair is not None]
    dropped = len(mine.keys() | theirs.keys()) - len(pairs)
    logs = [math.log(pair.other / pair.leader) for pair in pairs]
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


def _pair(block: int, mine: Run, theirs: Run, leader: Row) -> Pair | None:
    a, b = _exact(mine, leader), _exact(theirs, leader)
    if leader.by_final:
        good = a is not None and b is not None and a > 0 and b > 0
        return Pair(block, a, b, True, None) if good and a is not None and b is not None else None
    other = theirs.time.seconds
    if a is None or a <= 0 or other <= 0:
        return None
    return Pair(block, a, other, theirs.time.reached, difference(mine.time, theirs.time))


def lower_by(interval: Interval) -> str:
    """`2.31 % lower [1.9 %, 2.7 %]` for the ratio of another's final metric to the leader's."""

    def share(value: float) -> str:
        return f"{significant(100 * (1 - 1 / value), 3)} %"

    words = f"{share(interval.ratio)} lower"
    if interval.low is None or interval.high is None:
        return words
    return f"{words} [{share(interval.low)}, {share(interval.high)}]"


def _resolvable(contrasts: Sequence[Contrast], repeats: int, alpha: float) -> float | None:
    """The smallest time ratio that `repeats` blocks would separate, at the spread seen in pairs."""
    spreads = [
        statistics.stdev(logs)
        for c in contrasts
        if len(logs := [math.log(p.other / p.leader) for p in c.pairs if p.other_reached]) > 1
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
                "leader": pair.leader,
                "other": pair.other,
                "other_reached": pair.other_reached,
                "ratio": pair.other / pair.leader,
            }
            for pair in contrast.pairs
        ],
    }
