"""The cap: after how many seconds a trial can no longer matter (method section 4).

It must not know processes or databases; it sees a stage's standing and gives a bound with its words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from sweeper.noise import PAIR_FACTOR, read_beyond
from sweeper.racing.standing import Standing
from sweeper.study import Question, Racing, Rivals, question_partners
from sweeper.trial import CONTROL, PlannedTrial

UNEXPECTED = "not expected in the top"
"""How the words of a cap begin that comes from the expected k-th best."""


@dataclass(frozen=True)
class Cap:
    """A bound in seconds on the ranking clock, with the sentence that explains it."""

    seconds: float
    why: str


class Watch(NamedTuple):
    """For how many seconds a trial must have been watched, so that no answer depends on its cap.

    `winner_s` is what the winner of its group asks for, which other groups build on; `top_s` the top
    k and what is read off the stage. Infinite where nothing may cut it off, 0 where nothing asks.
    """

    winner_s: float
    top_s: float


class Entrants:
    """Who takes part in a plan, whoever stands where: partners in questions, rivals, repeats."""

    def __init__(
        self,
        planned: Sequence[PlannedTrial],
        earlier: Sequence[PlannedTrial],
        questions: Sequence[Question],
        rivals: Mapping[str, Sequence[Rivals]],
    ) -> None:
        """`earlier` are trials of stages before, whose points compete for the same places."""
        decided = [trial for trial in planned if not trial.open]
        runs = Counter(trial.point for trial in (*earlier, *decided))
        self.points = len({trial.point for trial in (*earlier, *planned)})
        self.repeated = frozenset(point for point, count in runs.items() if count > 1)
        self.controls = frozenset(t.point for t in decided if CONTROL in t.groups)
        self.partners = question_partners(questions, [trial.point for trial in decided])
        self.rivals = rivals


class Caps:
    """The caps of all trials at one standing, where k points are kept.

    A bound is slack x the k-th smallest time over distinct points (B_k), or of the best time among the
    trial's rivals where another group builds on the winner, if that is longer. With `expect` B_k is
    foreseen: ceil(k x seen / all) of the k places are expected among the points that have been seen,
    so the time of the next place (from the 2nd on, or of the last that is known) stands for B_k. Whoever
    was watched for less than the last bounds ask for is run again (`watch`): only the order of work
    changes, no answer.

    An arm of a question has 2 x its partner's time, if that is longer (2 x B_k while no partner has
    reached). So has a repeat of a point whose first run is within the bound: to cut off the slower of
    two equals would make the noise, and with it the slack, look too small. A control's point is not cut
    off until one run of it has ended, and has 2 x that one's time.
    """

    def __init__(
        self,
        standing: Standing,
        entrants: Entrants,
        k: int,
        racing: Racing,
        *,
        expect: bool,
    ) -> None:
        self.standing, self.expect = standing, expect
        self._entrants, self._k, self._racing = entrants, k, racing
        self._slack = standing.slack(racing.slack, k)
        self._kth = self._known = standing.kth(k)
        self._place = f"cannot enter the top {k}"
        self._bound = f"the {ordinal(k)} best is {self._kth or 0:.1f} s x {self._slack:.2f}"
        if expect:
            self._foresee()

    def _foresee(self) -> None:
        """Let the place after the expected one stand for the k-th, where that is shorter."""
        k, seen, points = self._k, self.standing.seen, self._entrants.points
        # who was cut off may be one of the k: until all have been seen, nobody waits for that
        rank = min(math.ceil(k * seen / points) + 1, len(self.standing.fastest))
        if seen >= points or not 2 <= rank < k:
            return
        self._kth = self.standing.fastest[rank - 1]
        self._place = f"{UNEXPECTED} {k} after {seen} of {points} points"
        self._bound = f"the {ordinal(rank)} best is {self._kth:.1f} s x {self._slack:.2f}"

    def cap(self, trial: PlannedTrial) -> Cap | None:
        """Seconds after which a trial cannot matter; None while nothing can be said."""
        rivals_of = self._entrants.rivals.get(trial.id, ())
        if self._kth is None or self._is_to_measure(trial):
            return None
        seconds, why = self._slack * self._kth, f"{self._place}, {self._bound}"
        for rivals in rivals_of:
            best, factor = self._best(rivals), self._slack
            if best == math.inf:  # whoever reaches may be the winner
                return None
            whose = "whose best"
            if rivals.several_bases:
                factor, whose = PAIR_FACTOR, "whose best on this base"
            if factor * best > seconds:
                seconds = factor * best
                why = f"cannot win its group, {whose} is {best:.1f} s x {factor:.2f}; {self._place}"
        for longer, whose in self._comparisons(trial):
            if PAIR_FACTOR * longer > seconds:
                seconds = PAIR_FACTOR * longer
                why = f"{self._place}, and has had {PAIR_FACTOR:g} x the {longer:.1f} s of {whose}"
        if seconds < self._racing.grace_s:
            seconds = self._racing.grace_s
            why = f"{why} (at least {seconds:g} s, grace_s)"
        return Cap(seconds, why)

    def watch(self, trial: PlannedTrial) -> Watch:
        """For how long a trial must have been watched, by what is known now and nothing expected."""
        rivals = self._entrants.rivals.get(trial.id, ())
        winner = max(map(self._winner_s, rivals), default=0.0)
        if self._known is None or self._is_to_measure(trial):
            return Watch(winner, math.inf)
        top = read_beyond(self._slack) * self._known
        first, partner = self._first(trial), self._partner(trial)
        if partner is not None:
            top = max(top, PAIR_FACTOR * min(self._known, partner))
        if first <= self._known or (first < math.inf and trial.point in self._entrants.controls):
            top = max(top, PAIR_FACTOR * first)
        return Watch(winner, top)

    def winners_s(self) -> tuple[float, ...]:
        """What `Watch.winner_s` is made of: where none of it has risen, nobody's has."""
        return tuple(map(self._best, dict.fromkeys(chain(*self._entrants.rivals.values()))))

    def _comparisons(self, trial: PlannedTrial) -> list[tuple[float, str]]:
        """Times of single runs that a trial is compared with, and whose they are."""
        assert self._kth is not None
        found = []
        first, partner = self._first(trial), self._partner(trial)
        near = first <= self._slack * self._kth
        if near or (first < math.inf and trial.point in self._entrants.controls):
            found.append((first, "its point's first run"))
        if partner is not None and partner < math.inf:
            found.append((partner, "its partner in a question"))
        elif partner is not None:
            found.append((self._kth, "that place, while no partner in a question has reached"))
        return found

    def _best(self, rivals: Rivals) -> float:
        """Infinite while none of them has reached: whoever does may be the winner."""
        reached = self.standing.reached
        return min((reached[i] for i in rivals.trials if i in reached), default=math.inf)

    def _winner_s(self, rivals: Rivals) -> float:
        """The fastest wins; over several bases ratios are averaged, and read up to twice the best."""
        return self._best(rivals) * (PAIR_FACTOR if rivals.several_bases else 1.0)

    def _first(self, trial: PlannedTrial) -> float:
        """The time of its point's first run, for a repeat; infinite where it did not reach."""
        if not self._racing.replicates or trial.point not in self._entrants.repeated:
            return math.inf
        return self.standing.first.get(trial.point, math.inf)

    def _is_to_measure(self, trial: PlannedTrial) -> bool:
        """Whether its time is what controls are compared with: no run of its point has ended yet."""
        return trial.point in self._entrants.controls and trial.point not in self.standing.first

    def _partner(self, trial: PlannedTrial) -> float | None:
        """The fastest partner's time, for an arm of a question; infinite while none has reached."""
        partners = self._entrants.partners.get(trial.point)
        if not partners or not self._racing.questions:
            return None
        medians = self.standing.medians
        return min((medians[p] for p in partners if p in medians), default=math.inf)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `5th`, `11th`."""
    tail = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{tail}"
