"""The study's own questions, answered by pairs of points that differ in one parameter alone.

It must not know how the points were chosen; with fewer than three pairs an answer is "not decided".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.analysis import censored
from sweeper.analysis.attribution import Split
from sweeper.analysis.censored import ABOVE, BELOW, EXACT, NotEstimableError
from sweeper.analysis.dataset import SEARCH_STAGES, StudyFacts
from sweeper.analysis.intervals import geometric, pairs_needed
from sweeper.analysis.response import Estimate, Observed, Response, observe, pooled
from sweeper.analysis.wording import count, more_or_less
from sweeper.space import Categorical, Point, Space, Value, show_value
from sweeper.study import Question

ALPHA = 0.05
LEAST_PAIRS = 3


@dataclass(frozen=True)
class QuestionPair:
    """Two points that differ in the question's parameter alone.

    `difference` is the other's value less the reference's; where `known` is not EXACT it is a bound,
    because one of the two did not reach. `speed` is the difference of log seconds per token, `split`
    all three, where both reached.
    """

    at: str
    reference: Observed
    other: Observed
    difference: float
    known: int
    speed: float | None
    split: Split | None


@dataclass(frozen=True)
class Comparison:
    """One level against the question's reference level, over every base that has both.

    `neither`: bases in which neither reached, which say nothing about time. `needed` is how many
    pairs in all would decide, were mean and spread as they are now. time = learning x speed exactly.
    """

    parameter: str
    level: Value
    reference: Value
    pairs: tuple[QuestionPair, ...]
    neither: int
    time: Estimate | None
    learning: float | None
    speed: Estimate | None
    needed: int | None
    response: Response

    @property
    def decided(self) -> bool:
        """At least three pairs, and an interval that leaves out "no difference"."""
        return bool(self.time and len(self.pairs) >= LEAST_PAIRS and self.time.excludes_zero)

    def words(self) -> str:
        """`polar_express against newton_schulz: 3.0 % fewer tokens, ..., net 6.0 % slower [...]`."""
        name = f"{show_value(self.level)} against {show_value(self.reference)}"
        if self.time is None:
            both = f"; in {count(self.neither, 'base')} neither reached" if self.neither else ""
            return f"{name}: no pair{both}: not decided"
        parts = []
        if self.learning is not None and self.speed is not None:
            parts.append(f"{more_or_less(math.exp(self.learning), 'more', 'fewer')} tokens")
            parts.append(
                f"{more_or_less(math.exp(self.speed.value), 'more', 'less')} time per token"
            )
        net = self.response.faster_or_slower(self.time.value)
        bound = (
            "" if all(pair.known == EXACT for pair in self.pairs) else " (some pairs are bounds)"
        )
        net = f"net {net} {self.time.bracket(self.response)}".rstrip()
        parts.append(net if parts else net.removeprefix("net "))
        verdict = "decided" if self.decided else f"not decided{self._why_not()}"
        return f"{name}: {', '.join(parts)}, n = {count(len(self.pairs), 'pair')}{bound}: {verdict}"

    def _why_not(self) -> str:
        missing = (self.needed or 0) - len(self.pairs)
        if len(self.pairs) < LEAST_PAIRS:
            return f" ({LEAST_PAIRS} pairs are needed)"
        if missing > 0:
            return f" ({count(missing, 'more pair')} would do if the spread stays as it is)"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        response = self.response
        return {
            "level": self.level,
            "reference": self.reference,
            "words": self.words(),
            "decided": self.decided,
            "neither_reached": self.neither,
            "pairs_needed": self.needed,
            "time": self.time.as_dict(response) if self.time else None,
            "learning": None if self.learning is None else math.exp(self.learning),
            "speed": self.speed.as_dict(response) if self.speed else None,
            "pairs": [
                {
                    "at": pair.at,
                    "reference": list(pair.reference.ids),
                    "other": list(pair.other.ids),
                    "reference_value": response.shown(pair.reference.value),
                    "reference_reached": pair.reference.known == EXACT,
                    "other_value": response.shown(pair.other.value),
                    "other_reached": pair.other.known == EXACT,
                    "ratio": response.shown(pair.difference),
                    "bound": {EXACT: "", ABOVE: "at least", BELOW: "at most"}[pair.known],
                    "learning": math.exp(pair.split.learning) if pair.split else None,
                    "speed": None if pair.speed is None else math.exp(pair.speed),
                }
                for pair in self.pairs
            ],
        }


@dataclass(frozen=True)
class Answer:
    """A question with every comparison that the points allow, and its answer in one sentence."""

    question: Question
    comparisons: tuple[Comparison, ...]

    @property
    def decided(self) -> bool:
        """Whether any level differs from the reference for sure."""
        return any(comparison.decided for comparison in self.comparisons)

    def words(self) -> str:
        """The answer in one sentence without its full stop."""
        known = [c for c in self.comparisons if c.time is not None]
        if not known:
            return "not decided: no two points differ in this parameter alone and have a time"
        if len(self.comparisons) == 1:
            return known[0].words()
        better = [c for c in known if c.time and c.time.value < 0]
        best = min(better, key=lambda c: c.time.value if c.time else 0.0, default=None)
        if best is None:
            nearest = min(known, key=lambda c: c.time.value if c.time else 0.0)
            sure = all(c.decided for c in known)
            return (
                f"{show_value(nearest.reference)} came out best"
                f"{'' if sure else ', not decided against every level'}; next is {nearest.words()}"
            )
        first = "came out best" if len(best.pairs) >= LEAST_PAIRS else "was best where it was tried"
        return f"{show_value(best.level)} {first}; {best.words()}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "text": self.question.text,
            "parameter": self.question.parameter,
            "at": dict(self.question.at),
            "decided": self.decided,
            "words": self.words(),
            "pairs": sum(len(c.pairs) for c in self.comparisons),
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
        }


def answers(facts: StudyFacts, *, target: float | None = None) -> tuple[Answer, ...]:
    """Every declared question, answered from the points of stages 1 and 2 together."""
    goal = facts.target if target is None else target
    response = Response.of(facts.study, goal)
    points = pooled(observe(facts.present(SEARCH_STAGES), response, facts.study.limits))
    return tuple(
        Answer(question, tuple(_comparisons(question, facts.study.space, points, response)))
        for question in facts.study.questions
    )


def _comparisons(
    question: Question, space: Space, points: Mapping[Point, Observed], response: Response
) -> Iterator[Comparison]:
    bases: dict[Point, dict[Value, Observed]] = {}
    for point, seen in points.items():
        if question.is_arm(point):
            rest = Point({n: v for n, v in point.items() if n != question.parameter})
            bases.setdefault(rest, {})[point[question.parameter]] = seen
    seen_levels = {level for of_base in bases.values() for level in of_base}
    levels = _ordered(question, space, seen_levels)
    if len(levels) < 2:
        return
    baseline = space.parameters[question.parameter].baseline
    reference = baseline if baseline in levels and len(levels) > 2 else levels[0]
    others = [level for level in levels if level != reference]
    both = {o: [rest for rest, of in bases.items() if reference in of and o in of] for o in others}
    looks = max(1, sum(len(rests) > 1 for rests in both.values()))
    changing = _changing([rest for rest, of_base in bases.items() if len(of_base) > 1])
    for level in others:
        made = [
            _pair(space, rest, changing, bases[rest][reference], bases[rest][level])
            for rest in both[level]
        ]
        if not made:
            continue
        yield _compare(
            question.parameter,
            level,
            reference,
            made=made,
            response=response,
            alpha=ALPHA / looks,
        )


def _ordered(question: Question, space: Space, seen: set[Value]) -> list[Value]:
    parameter = space.parameters[question.parameter]
    if question.levels:
        return [level for level in question.levels if level in seen]
    if isinstance(parameter, Categorical):
        return [choice for choice in parameter.choices if choice in seen]
    return sorted(seen)


def _changing(rests: Sequence[Point]) -> tuple[str, ...]:
    names = dict.fromkeys(name for rest in rests for name in rest)
    return tuple(n for n in names if len({rest.get(n) for rest in rests}) > 1)


def _pair(
    space: Space, rest: Point, changing: Sequence[str], reference: Observed, other: Observed
) -> QuestionPair | None:
    known = (reference.known, other.known)
    if known == (ABOVE, ABOVE):
        return None
    difference = other.value - reference.value
    kind = EXACT if known == (EXACT, EXACT) else ABOVE if known[1] == ABOVE else BELOW
    speed = None
    if reference.speed is not None and other.speed is not None:
        speed = other.speed - reference.speed
    split = other.split - reference.split if other.split and reference.split else None
    at = space.show({name: rest[name] for name in changing if name in rest})
    return QuestionPair(at, reference, other, difference, kind, speed, split)


def _compare(
    parameter: str,
    level: Value,
    reference: Value,
    *,
    made: Sequence[QuestionPair | None],
    response: Response,
    alpha: float,
) -> Comparison:
    pairs = tuple(pair for pair in made if pair is not None)
    time = _estimate([(p.difference, p.known) for p in pairs], alpha)
    speeds = [p.speed for p in pairs if p.speed is not None]
    speed = None
    if pairs and len(speeds) == len(pairs):
        speed = _estimate([(value, EXACT) for value in speeds], alpha)
    exact = [p.difference for p in pairs if p.known == EXACT]
    return Comparison(
        parameter,
        level,
        reference,
        pairs,
        len(made) - len(pairs),
        time,
        time.value - speed.value if time and speed else None,
        speed,
        pairs_needed(exact, alpha) if len(exact) == len(pairs) else None,
        response,
    )


def _estimate(values: Sequence[tuple[float, int]], alpha: float) -> Estimate | None:
    """The mean with its interval; of too few exact values the mean of what there is, and none."""
    if not values:
        return None
    numbers = [value for value, _ in values]
    if all(known == EXACT for _, known in values):
        found = geometric(numbers, alpha)
        if found.low is None or found.high is None:
            return Estimate(numbers[0], None, None, 1, alpha, is_bounded=False)
        ends = (math.log(found.low), math.log(found.high))
        return Estimate(math.log(found.ratio), *ends, len(numbers), alpha)
    known = np.array([kind for _, kind in values], dtype=np.int8)
    try:
        model = censored.fit(np.ones((len(values), 1)), np.array(numbers), known)
    except NotEstimableError:
        mean = statistics.fmean(numbers)
        return Estimate(mean, None, None, len(values), alpha, is_bounded=False)
    low, high = model.interval(0, alpha)
    return Estimate(float(model.coefficients[0]), low, high, len(values), alpha)
