"""The region of stage 2: the best points of stage 1, what to lock around them, what to vary how far.

It must not know which runs are then chosen in the region, or what the parameters mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sweeper.design.groups import is_forbidden
from sweeper.design.pairs import censored_s
from sweeper.errors import PlanError
from sweeper.noise import (
    PAIR_FACTOR,
    UNKNOWN_SPREAD,
    Repeats,
    known_spread,
    read_beyond,
    slack,
    spread_of_the_best,
)
from sweeper.objective import best_value, final_value, time_to_target
from sweeper.space import NUMERIC, Float, Integer, Parameter, Point, Value, show_value
from sweeper.study import Study, question_partners
from sweeper.trial import CONTROL, AttemptFacts, Lock, Outcome, TrialFacts

LEAST_FLOOR = 0.03
UNKNOWN_FINAL_SD = 0.003
"""Standard deviation of the final metric's logarithm until replicates know better: losses of equal
runs differ by parts of a percent."""
LEAST_FINAL_FLOOR = 0.003
CHANCE = 0.10
_Z_ONE_SIDED, _Z_TWO_SIDED = 1.645, 1.96


@dataclass(frozen=True)
class Measured:
    """One distinct point with all its runs. `score` is what it is ranked by, and what is compared.

    That is its time to the target: the median over its runs (of an even number the slower of the two in
    the middle, see `racing.standing`), or, where that did not reach, the time up to which none had. With
    goal "final" it is the median of the final metric, and `reached` says that most runs came to the end
    of their budget. `loss` is the lowest that any run saw.
    """

    point: Point
    trial_ids: tuple[str, ...]
    label: str
    reached: bool
    score: float
    loss: float | None


@dataclass(frozen=True)
class Top:
    """The points around which stage 2 is built, best first.

    `target` is the one that they are ranked by: the hardest of the ladder that enough of them
    reached. `flagged` says that there was none, so that some are there by loss alone. `kth` is the
    time of place k and `bound` the time that every run was given (method 4, cap); both are infinite
    where nothing is cut off.
    """

    points: tuple[Measured, ...]
    target: float
    flagged: bool
    kth: float = math.inf
    bound: float = math.inf
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Region:
    """What stage 2 varies, in the order of the space, and what it does not, with the evidence."""

    varying: Mapping[str, tuple[Value, ...]]
    locked: Mapping[str, Lock]


def measure(study: Study, facts: Sequence[TrialFacts], target: float) -> list[Measured]:
    """Every distinct point that was measured, in plan order, judged at a target.

    Points that only failed, or are forbidden, are left out.
    """
    runs: dict[Point, list[tuple[TrialFacts, AttemptFacts]]] = {}
    for fact in facts:
        attempt = fact.counted
        good = attempt is not None and attempt.outcome in (Outcome.REACHED, Outcome.CENSORED)
        if good and attempt is not None and not is_forbidden(study, fact.trial.point):
            runs.setdefault(fact.trial.point, []).append((fact, attempt))
    return [_measured(study, point, found, target) for point, found in runs.items()]


def _measured(
    study: Study, point: Point, runs: Sequence[tuple[TrialFacts, AttemptFacts]], target: float
) -> Measured:
    reached: list[float] = []
    bounds: list[float] = []
    losses: list[float] = []
    for _, attempt in runs:
        score, known = _score(study, attempt, target)
        (reached if known else bounds).append(score)
        loss = best_value(attempt.curve)
        losses.extend([] if loss is None else [loss])
    if study.objective.is_final:
        most = bool(reached) and 2 * len(reached) >= len(runs)
        middle = statistics.median(reached) if most else math.inf
    else:
        middle = statistics.median_high([*reached, *(math.inf for _ in bounds)])
        most = middle < math.inf
    return Measured(
        point=point,
        trial_ids=tuple(fact.trial.id for fact, _ in runs),
        label=runs[0][0].trial.label,
        reached=most,
        score=middle if most else max(bounds),
        loss=min(losses, default=None),
    )


def _score(study: Study, attempt: AttemptFacts, target: float) -> tuple[float, bool]:
    """What ranks an attempt, and whether it is exact; else it is at least that (method section 2)."""
    if study.objective.is_final:
        value = final_value(attempt)
        return (math.inf, False) if value is None else (value, True)
    time = time_to_target(attempt, target, study.objective.clock)
    assert time is not None
    if time.reached:
        return time.seconds, True
    return censored_s(attempt, time, study.limits.trial_s), False


def noise_sd(
    study: Study, facts: Sequence[TrialFacts], target: float, kth: float = math.inf
) -> tuple[float, int]:
    """Standard deviation of the log score between runs of one point, and its degrees of freedom.

    Pooled over points with two or more runs that reached, see `noise.spread_of_the_best` for which
    (`kth`: the time of place k); `noise.UNKNOWN_SPREAD` (of times) or `UNKNOWN_FINAL_SD` (of the final
    metric) below 4 degrees.
    """
    scores: dict[Point, list[float]] = {}
    controls = {fact.trial.point for fact in facts if CONTROL in fact.trial.groups}
    for fact in facts:
        attempt = fact.counted
        if attempt is None or attempt.outcome not in (Outcome.REACHED, Outcome.CENSORED):
            continue
        score, known = _score(study, attempt, target)
        scores.setdefault(fact.trial.point, []).append(score if known else math.inf)
    repeats = [Repeats.of(s, control=point in controls) for point, s in scores.items()]
    spread, freedom = spread_of_the_best(repeats, kth)
    unknown = UNKNOWN_FINAL_SD if study.objective.is_final else UNKNOWN_SPREAD
    return known_spread(spread, freedom, unknown=unknown), freedom


def choose_top(study: Study, facts: Sequence[TrialFacts], k: int, target: float) -> Top:
    """The k best distinct points, and ties with the k-th inside the noise up to 2k (method 5.1).

    Where fewer than k reached the target, the hardest fallback that k reached ranks them; where
    there is none, those that reached anything come first, by target and time, then the lowest loss,
    and the result is flagged.

    Raises:
        PlanError: nothing was measured yet.
    """
    easier = [] if study.objective.is_final else [f for f in study.objective.fallback if f > target]
    ladder = [target, *easier]
    judged = {goal: measure(study, facts, goal) for goal in ladder}
    if not any(m.reached or m.loss is not None for m in judged[target]):
        raise PlanError(
            f"{study.name}: nothing has been measured yet, so there is no best to go on from; "
            "run `sweep stage1` first"
        )
    for goal in ladder:
        able = sorted((m for m in judged[goal] if m.reached), key=lambda m: m.score)
        if len(able) >= k:
            kth = math.inf if study.objective.is_final else able[k - 1].score
            spread = noise_sd(study, facts, goal, kth)[0]
            limit = able[k - 1].score * math.exp(math.sqrt(2) * spread)
            # infinite for a final metric, as kth is: no trial was cut off there
            bound = kth * read_beyond(study.racing.slack or slack(spread))
            chosen = [m for m in able[: 2 * k] if m.score <= min(limit, bound)]
            notes = _top_notes(k, chosen, goal, target)
            return Top(tuple(chosen), goal, flagged=False, kth=kth, bound=bound, notes=notes)
    return _top_by_loss(judged, k)


def _top_notes(k: int, chosen: Sequence[Measured], goal: float, target: float) -> tuple[str, ...]:
    notes = []
    if goal != target:
        notes.append(f"fewer than {k} points reached {target:g}: ranked by time to {goal:g}")
    if len(chosen) > k:
        notes.append(
            f"top {k} became {len(chosen)}: the last {len(chosen) - k} are within noise of place {k}"
        )
    return tuple(notes)


def _top_by_loss(judged: Mapping[float, Sequence[Measured]], k: int) -> Top:
    """Points in the order of the hardest target that each reached, its time to it, its loss."""
    ladder = list(judged)
    reached: dict[Point, tuple[Measured, float]] = {}
    for goal in ladder:
        for m in judged[goal]:
            if m.reached:
                reached.setdefault(m.point, (m, goal))
    fast = sorted(reached.values(), key=lambda found: (ladder.index(found[1]), found[0].score))
    rest = [m for m in judged[ladder[-1]] if m.point not in reached and m.loss is not None]
    rest.sort(key=lambda m: m.loss if m.loss is not None else math.inf)
    chosen = [*(m for m, _ in fast), *rest][:k]
    goal = fast[0][1] if fast else ladder[-1]
    by_loss = sum(1 for m in chosen if not m.reached)
    note = (
        f"no target was reached by {k} points: {len(chosen) - by_loss} of the {len(chosen)} best are "
        f"ranked by time, {by_loss} by lowest loss; stage 2 aims at {goal:g}"
    )
    return Top(tuple(chosen), goal, flagged=True, notes=(note,))


def choose_region(study: Study, facts: Sequence[TrialFacts], top: Top) -> Region:
    """What varies around the top, and how far; what is locked, and why (method 5.2)."""
    evidence = _Evidence(study, facts, top)
    varying: dict[str, tuple[Value, ...]] = {}
    locked: dict[str, Lock] = {}
    for name, parameter in study.space.parameters.items():
        lock = evidence.lock(name)
        if lock is None:
            levels = evidence.levels(name, parameter)
            if len(levels) > 1:
                varying[name] = levels
                continue
            lock = Lock(levels[0], "its range around the top holds one value only")
        if lock.why:
            locked[name] = lock
    return Region(varying, locked)


class _Evidence:
    """What stage 1 says about single parameters, given the top.

    Scores count up to what every run of a point was given time for: what was cut off beyond it, or
    was not, must not make another region.
    """

    def __init__(self, study: Study, facts: Sequence[TrialFacts], top: Top) -> None:
        self._space = study.space
        self._all = measure(study, facts, top.target)
        planned = [f.trial.point for f in facts if not is_forbidden(study, f.trial.point)]
        self._planned = list(dict.fromkeys(planned))
        self._top = [m.point for m in top.points]
        self._incumbent = top.points[0].point
        self._sd = noise_sd(study, facts, top.target, top.kth)[0]
        self._final = study.objective.is_final
        self._watched = _watched(study, self._all, top)

    def lock(self, name: str) -> Lock | None:
        """The lock that the evidence supports, or None: the parameter varies."""
        seen = self._seen(name, self._planned)
        if not self._seen(name, self._top):
            return Lock(seen[0] if seen else False, "")  # inactive in every top point: no value
        value = self._incumbent.get(name, self._seen(name, self._top)[0])
        if len(seen) == 1:
            return Lock(value, f"stage 1 never varied it: {show_value(value)} everywhere")
        return self._unanimous(name) or self._inert(name, value)

    def levels(self, name: str, parameter: Parameter) -> tuple[Value, ...]:
        """The levels of a parameter that varies, in order; one level when there is no room."""
        if isinstance(parameter, NUMERIC):
            return self._numeric_levels(name, parameter)
        chosen = self._seen(name, self._top)
        if len(chosen) < 2:
            others = [m for m in self._all if name in m.point and m.point[name] not in chosen]
            others.sort(key=lambda m: m.score if _is_known(m, self._watched[m.point]) else math.inf)
            chosen += [m.point[name] for m in others[:1]]
        return tuple(c for c in parameter.choices if c in chosen)

    def _seen(self, name: str, points: Sequence[Point]) -> list[Value]:
        return list(dict.fromkeys(p[name] for p in points if name in p))

    def _unanimous(self, name: str) -> Lock | None:
        k, levels = len(self._top), self._seen(name, self._top)
        if k < 2 or len(levels) != 1 or not all(name in point for point in self._top):
            return None
        value = levels[0]
        total = len(self._planned)
        alike = sum(1 for point in self._planned if point.get(name) == value)
        chance = math.comb(alike, k) / math.comb(total, k)
        all_of = f"all {k} of the top have {show_value(value)}"
        drawn = f"{alike} of {total} points of stage 1 have it: by chance {chance:.1%}"
        if chance < CHANCE:
            return Lock(value, f"{all_of}; {drawn}")
        others = [other for other in self._seen(name, self._planned) if other != value]
        ratios = [ratio for other in others for ratio, _ in self._pairs(name, value, other)]
        if not ratios:
            return None
        effect = statistics.fmean(ratios)
        if effect + _Z_ONE_SIDED * self._sd * math.sqrt(2 / len(ratios)) >= 0:
            return None
        return Lock(
            value,
            f"{all_of} ({drawn}), and over {len(ratios)} pairs that differ in it alone it is "
            f"{-math.expm1(effect):.1%} {'lower' if self._final else 'faster'}",
        )

    def _inert(self, name: str, value: Value) -> Lock | None:
        """Whether every level is within the noise floor of the incumbent's, interval and all."""
        floor = max(LEAST_FINAL_FLOOR if self._final else LEAST_FLOOR, self._sd)
        worst, number = 0.0, 0
        for other in self._seen(name, self._planned):
            if other == value:
                continue
            pairs = self._pairs(name, value, other)
            if not pairs or not all(known for _, known in pairs):
                return None
            ratios = [ratio for ratio, _ in pairs]
            half = _Z_TWO_SIDED * self._sd * math.sqrt(2 / len(ratios))
            worst = max(worst, abs(statistics.fmean(ratios)) + half)
            number += len(ratios)
        if worst > floor:
            return None
        return Lock(
            value,
            f"inert: over {number} pairs every level is within {worst:.1%} of "
            f"{show_value(value)}, less than the noise floor of {floor:.1%}",
        )

    def _pairs(self, name: str, value: Value, other: Value) -> list[tuple[float, bool]]:
        """log(score with `value` / score with `other`) of points that differ in this alone.

        A score beyond what both were watched to counts as that; a pair of such says nothing. The
        second of each is whether neither is beyond.
        """
        by_rest: dict[tuple[tuple[str, Value], ...], list[Measured]] = {}
        for m in self._all:
            rest = tuple((n, v) for n, v in m.point.items() if n != name)
            by_rest.setdefault(rest, []).append(m)
        found = []
        for together in by_rest.values():
            for pair in _ordered(together, name, value, other):
                bound = min(self._watched[m.point] for m in pair)
                known = [_is_known(m, bound) for m in pair]
                ours, theirs = (min(m.score, bound) for m in pair)
                if any(known) and min(ours, theirs) > 0 and max(ours, theirs) < math.inf:
                    found.append((math.log(ours / theirs), all(known)))
        return found

    def _numeric_levels(self, name: str, parameter: Parameter) -> tuple[Value, ...]:
        """Evenly spaced on the scale over the top's range, widened; the incumbent's value is one."""
        assert isinstance(parameter, NUMERIC)
        places = sorted(parameter.position(v) for v in self._seen(name, self._planned))
        top = sorted(parameter.position(v) for v in self._seen(name, self._top))
        low = top[0] - _half_spacing(places, top[0], down=True)
        high = top[-1] + _half_spacing(places, top[-1], down=False)
        low = max(low, parameter.position(parameter.low))
        high = min(high, parameter.position(parameter.high))
        count = parameter.levels
        spots = [low + (high - low) * i / (count - 1) for i in range(count)]
        exact: list[Value] = sorted({parameter.value_at(spot) for spot in spots})
        short: list[Value] = sorted({_readable(parameter, spot) for spot in spots})
        levels = short if len(short) == len(exact) else exact
        here = self._incumbent.get(name)
        if here is not None and here not in levels:
            inner = levels[1:-1] or levels  # the ends carry the range, so they stay
            at = parameter.position(here)
            nearest = min(inner, key=lambda v: abs(parameter.position(v) - at))
            levels = sorted([here, *(v for v in levels if v != nearest)])
        return tuple(levels)


def _is_known(measured: Measured, bound: float) -> bool:
    return measured.reached and measured.score <= bound


def _watched(study: Study, measured: Sequence[Measured], top: Top) -> Mapping[Point, float]:
    """The score up to which every run of a point was watched, whatever caps there were (method 4).

    That is the top's bound. An arm of a question has twice its fastest partner's time, or the k-th
    best's while none has reached: twice the smaller of them for sure.
    """
    asked = study.questions if study.racing.questions else ()
    partners = question_partners(asked, [m.point for m in measured])
    reached = {m.point: m.score for m in measured if m.reached}
    watched = {m.point: top.bound for m in measured}
    for point, others in partners.items():
        fastest = min([top.kth, *(reached[p] for p in others if p in reached)])
        watched[point] = max(top.bound, PAIR_FACTOR * fastest)
    return watched


def _readable(parameter: Float | Integer, position: float) -> Value:
    """The value at a position, a real number with three significant digits."""
    value = parameter.value_at(position)
    if isinstance(parameter, Integer):
        return value
    return min(max(float(f"{value:.3g}"), parameter.low), parameter.high)


def _half_spacing(places: Sequence[float], at: float, *, down: bool) -> float:
    """Half the distance to the next value of stage 1 outwards, else inwards, else 0."""
    below = [at - place for place in places if place < at]
    above = [place - at for place in places if place > at]
    gaps = (below or above) if down else (above or below)
    return min(gaps, default=0.0) / 2


def _ordered(
    pair: Sequence[Measured], name: str, value: Value, other: Value
) -> Iterator[tuple[Measured, Measured]]:
    ours = [m for m in pair if m.point.get(name) == value]
    theirs = [m for m in pair if m.point.get(name) == other]
    yield from ((a, b) for a in ours for b in theirs)
