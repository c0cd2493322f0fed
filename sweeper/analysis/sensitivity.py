"""Whether the verdict stands at a slightly other target, on another clock, with half the evaluations.

It must not know how a verdict is worded; it costs nothing, because curves are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from sweeper.analysis.confirm import confirmation
from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.times import SearchTimes
from sweeper.analysis.wording import ratio, significant
from sweeper.curve import Curve, column
from sweeper.space import Point
from sweeper.trial import AttemptFacts, Clock, Evaluation, TrialFacts

TARGET_SHARE = 0.01
CLOCKS: tuple[Clock, ...] = ("train", "train+eval", "wall")


class Placed(NamedTuple):
    """A configuration with its seconds to the target; infinite where it did not reach."""

    label: str
    point: Point
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether it has a time."""
        return self.seconds < math.inf


@dataclass(frozen=True)
class Variant:
    """The verdict under one change: who wins, in how many seconds, how much faster than the baseline.

    `reached` counts the rows that reached; `winner` is None where none did. `top_shared` is how many
    of the top rows are the same as without the change, of `top`.
    """

    name: str
    kind: str
    winner: Placed | None
    speedup: float | None
    reached: int
    rows: int
    same: bool
    top_shared: int
    top: int

    def words(self) -> str:
        """What it says, in one sentence without its full stop."""
        if self.winner is None:
            return f"{self.name}: none of {self.rows} reached, so nothing is said"
        who = "the same winner" if self.same else f"another winner, {self.winner.label}"
        fewer = "" if self.reached == self.rows else f", {self.reached} of {self.rows} reached"
        speed = "" if self.speedup is None else f", {ratio(self.speedup)}x against the baseline"
        return f"{self.name}: {who}{speed}, top {self.top_shared} of {self.top} the same{fewer}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "words": self.words(),
            "winner": self.winner.label if self.winner else None,
            "time_to_target_s": self.winner.seconds if self.winner else None,
            "speedup": self.speedup,
            "reached": self.reached,
            "rows": self.rows,
            "same_winner": self.same,
            "top_shared": self.top_shared,
            "top": self.top,
        }


def sensitivity(facts: StudyFacts, times: SearchTimes, *, target: float) -> tuple[Variant, ...]:
    """The verdict under every change, the unchanged one left out; `times` are those of the facts.

    None with goal "final": the last metric depends on no target, no clock and no cadence.
    """
    if facts.study.objective.is_final:
        return ()
    for placed in (_confirmed, _Searched(facts, times)):
        before = placed(facts, target)
        if before and before[0].reached:  # then like is compared with like
            return tuple(
                _variant(name, kind, changed, placed(changed, goal), before)
                for name, kind, changed, goal in _changes(facts, target)
            )
    return ()


def _changes(facts: StudyFacts, target: float) -> Iterator[tuple[str, str, StudyFacts, float]]:
    for share in (TARGET_SHARE, -TARGET_SHARE):
        goal = target + abs(target) * share
        yield f"target {significant(goal, 5)} ({100 * share:+.0f} %)", "target", facts, goal
    for clock in CLOCKS:
        if clock != facts.clock:
            objective = facts.study.objective.model_copy(update={"clock": clock})
            study = facts.study.model_copy(update={"objective": objective})
            yield f"clock {clock}", "clock", replace(facts, study=study), target
    yield "every second evaluation", "cadence", _mapped(facts, every_second), target


def every_second(curve: Sequence[Evaluation]) -> Curve:
    """The curve as half the evaluations would have shown it; its last one is always among them."""
    kinds, places = column(curve, "slice"), range(len(curve))
    if "confirmation" not in kinds:
        return Curve.of(curve).take(places[:-1:2], places[-1:])
    probes = [place for place in places if kinds[place] == "probe"]
    left_out = set(probes[1:-1:2])
    return Curve.of(curve).take([place for place in places if place not in left_out])


def _mapped(
    facts: StudyFacts, change: Callable[[Sequence[Evaluation]], Sequence[Evaluation]]
) -> StudyFacts:
    def attempt(found: AttemptFacts) -> AttemptFacts:
        return replace(found, curve=change(found.curve))

    def stage(found: StageFacts) -> StageFacts:
        trials = (TrialFacts(t.trial, tuple(map(attempt, t.attempts))) for t in found.facts)
        return replace(found, facts=tuple(trials))

    return replace(facts, stages={name: stage(found) for name, found in facts.stages.items()})


def _confirmed(facts: StudyFacts, target: float) -> Sequence[Placed]:
    """Confirm's configurations, leader first; none where it has not run."""
    found = confirmation(facts, target=target)
    if found is None:
        return ()
    rows = [found.leader, *(row for row in found.rows if row is not found.leader)]
    return [Placed(r.label, r.point, r.seconds if r.reached else math.inf) for r in rows]


class _Searched:
    """The configurations of stages 1 and 2, fastest first, then those that did not reach.

    Changes of target or clock leave the runs as they are: they are looked up once.
    """

    def __init__(self, facts: StudyFacts, times: SearchTimes) -> None:
        self._stages, self._times = facts.stages, times

    def __call__(self, facts: StudyFacts, target: float) -> Sequence[Placed]:
        times = self._times if facts.stages is self._stages else SearchTimes(facts)
        (seconds,) = times.seconds((target,), facts.clock)
        return [
            Placed(times.labels[place], times.points[place], float(seconds[place]))
            for place in np.argsort(seconds, kind="stable")
        ]


def _variant(
    name: str, kind: str, facts: StudyFacts, rows: Sequence[Placed], before: Sequence[Placed]
) -> Variant:
    winner = rows[0] if rows and rows[0].reached else None
    baseline = facts.baseline()
    other = next((row for row in rows if row.point == baseline and row.reached), None)
    speedup = None
    if (
        winner is not None
        and winner.seconds > 0
        and other is not None
        and other.point != winner.point
    ):
        speedup = other.seconds / winner.seconds
    k = min(len(before), facts.study.stage2.from_top)
    top = {row.point for row in before[:k] if row.reached}
    return Variant(
        name,
        kind,
        winner,
        speedup,
        sum(row.reached for row in rows),
        len(rows) or len(before),
        winner is not None and winner.point == before[0].point,
        len(top & {row.point for row in rows[:k] if row.reached}),
        len(top),
    )
