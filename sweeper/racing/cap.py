"""The cap: after how many seconds a trial can no longer matter (method section 4).

It must not know processes or databases; it sees a stage's standing and gives a bound with its words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sweeper.noise import PAIR_FACTOR
from sweeper.racing.standing import Standing
from sweeper.space import Point
from sweeper.study import Racing
from sweeper.trial import PlannedTrial


@dataclass(frozen=True)
class Cap:
    """A bound in seconds on the ranking clock, with the sentence that explains it.

    `base_s` is the bound without slack: a trial that was watched for less could still matter.
    """

    seconds: float
    base_s: float
    why: str


def cap(
    trial: PlannedTrial,
    standing: Standing,
    *,
    k: int,
    needed: Collection[str],
    partners: Mapping[Point, Sequence[Point]],
    racing: Racing,
) -> Cap | None:
    """Seconds after which a trial cannot matter; None while nothing can be said.

    slack x max(B_k, best time of its group where another group depends on that): B_k is the k-th
    smallest time over distinct points. An arm of a question has 2 x its partner's time instead
    (2 x B_k while no partner has reached), if that is longer. So has a repeat of a point that reached:
    to cut off the slower of two equals would make the noise, and with it the slack, look too small.

    Args:
        trial: The trial to bound.
        standing: All runs that the ranking will look at; the trial's own do not bound it further.
        k: How many points are kept.
        needed: Groups whose winner another group takes.
        partners: For each arm of a question, the points that it is compared with.
        racing: The switches, and a declared slack.
    """
    kth = standing.kth(k)
    if kth is None:
        return None
    slack = standing.slack(racing.slack)
    base, best = kth, None
    for group in needed:
        if group in trial.groups:
            best = _group_best(group, standing)
            if best is None:  # nobody in it has reached: whoever does may be its winner
                return None
            base = max(base, best)
    place = f"cannot enter the top {k}, the {ordinal(k)} best is {kth:.1f} s x {slack:.2f}"
    if best is not None and best > kth:
        place = f"cannot win its group, whose best is {best:.1f} s x {slack:.2f}, nor " + place
    seconds = slack * base
    own = standing.medians.get(trial.point)
    if racing.replicates and own is not None and PAIR_FACTOR * own > seconds:
        seconds = PAIR_FACTOR * own
        place = (
            f"cannot enter the top {k}, and has had {PAIR_FACTOR:g} x the {own:.1f} s of its "
            "point's other runs"
        )
    if racing.questions and trial.point in partners:
        partner = _fastest(partners[trial.point], standing)
        known = kth if partner is None else partner
        if PAIR_FACTOR * known > seconds:
            seconds = PAIR_FACTOR * known
            whose = f"the {ordinal(k)} best" if partner is None else "its partner in a question"
            place = (
                f"cannot enter the top {k}, and has had {PAIR_FACTOR:g} x the {known:.1f} s "
                f"of {whose}"
            )
    if seconds < racing.grace_s:
        seconds, place = racing.grace_s, f"{place} (at least {racing.grace_s:g} s, grace_s)"
    return Cap(seconds, base, place)


def _group_best(group: str, standing: Standing) -> float | None:
    return min(_times_in(group, standing), default=None)


def _times_in(group: str, standing: Standing) -> Iterator[float]:
    for run in standing.runs:
        if group in run.trial.groups and run.reached_s is not None:
            yield run.reached_s


def _fastest(points: Sequence[Point], standing: Standing) -> float | None:
    return min((standing.medians[p] for p in points if p in standing.medians), default=None)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `5th`, `11th`."""
    tail = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{tail}"
