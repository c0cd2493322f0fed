"""Mixed-level fractions: which runs of a factorial tell most about the model, in which order.

It must not know what the factors mean, what a run costs, or why these factors vary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np

from sweeper.design.exchange import Point, Region, Search, as_point
from sweeper.design.model_matrix import Factor, FloatArray, IntArray, Level, ModelMatrix, Term

Assignment: TypeAlias = Mapping[str, Level]
Forbidden: TypeAlias = Callable[[Assignment], bool] | Sequence[Assignment]

ALPHA = 0.05
POWER = 0.8
_DEALS = 64


@dataclass(frozen=True)
class Run:
    """One run: a level index per factor, its block (device), and whether its point came before."""

    levels: Point
    block: int
    is_replicate: bool


@dataclass(frozen=True)
class DroppedTerm:
    """A term of the declared model that this design does not estimate, and why."""

    label: str
    reason: Literal["too few runs", "forbidden combinations"]


@dataclass(frozen=True)
class Alias:
    """Two terms and the absolute correlation of their columns over the runs, 0 to 1."""

    correlation: float
    term: str
    with_term: str


@dataclass(frozen=True)
class DetectableEffect:
    """The smallest effect of one main-effect contrast that is found with the stated power.

    The effect is the contrast's whole swing over the factor's levels: for the linear term and for
    two levels the difference between the last and the first level.
    """

    term: str
    log_effect: float

    @property
    def percent(self) -> float:
        """The effect as a change of the time itself, in percent."""
        return 100 * math.expm1(self.log_effect)


@dataclass(frozen=True)
class Fraction:
    """A designed list of runs with its properties, all known before any run.

    Args:
        kind: Every allowed point, or a D-optimal part of them.
        factors: k factors.
        runs: In the order to run them, block after block; random within a block.
        terms: Labels of the p model terms, intercept first, in order of priority.
        dropped: Terms of the declared model that could not be kept, in the order of dropping.
        d_efficiency: |X'X / n| ^ (1/p) over all n runs, replicates included, with columns for
            which the full factorial has exactly 1. Replicates and a model smaller than the
            levels allow make it differ from a fraction's usual value; it may exceed 1.
        max_alias: The largest absolute correlation over the runs between (a) two model terms
            other than the intercept, or (b) a main-effect term of the model and a term outside
            it: a two-factor interaction that was not declared (linear x linear, a categorical
            side with all its contrasts) or a dropped term. None when all are 0.
        standard_errors: Per main-effect term of the model its label and the standard error of its
            swing (largest minus smallest value of the contrast), for noise of standard deviation 1.
    """

    kind: Literal["full factorial", "d-optimal fraction"]
    factors: tuple[Factor, ...]
    runs: tuple[Run, ...]
    terms: tuple[str, ...]
    dropped: tuple[DroppedTerm, ...]
    d_efficiency: float
    max_alias: Alias | None
    standard_errors: tuple[tuple[str, float], ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """Level indices of every run, in the order of the runs."""
        return tuple(run.levels for run in self.runs)

    @property
    def assignments(self) -> tuple[dict[str, Level], ...]:
        """Level values by factor name of every run, in the order of the runs."""
        return tuple(_assignment(self.factors, point) for point in self.points)

    @property
    def blocks(self) -> tuple[tuple[Run, ...], ...]:
        """The runs by block; sizes differ by at most one."""
        count = 1 + max(run.block for run in self.runs)
        return tuple(tuple(r for r in self.runs if r.block == block) for block in range(count))

    @property
    def balance(self) -> dict[str, tuple[int, ...]]:
        """Runs at each level of each factor, replicates included."""
        return {
            factor.name: tuple(
                sum(point[place] == level for point in self.points)
                for level in range(len(factor.levels))
            )
            for place, factor in enumerate(self.factors)
        }

    @property
    def parameters(self) -> int:
        """Parameters of the model, the intercept included."""
        return len(self.terms)

    @property
    def residual_df(self) -> int:
        """Degrees of freedom left by the model (without block effects)."""
        return len(self.runs) - self.parameters

    @property
    def pure_error_df(self) -> int:
        """Degrees of freedom of the noise estimate from replicates alone."""
        return len(self.runs) - len(set(self.points))

    def detectable_effects(self, noise_sd: float) -> tuple[DetectableEffect, ...]:
        """Smallest effect found with 80 % power at 5 %, two-sided, per main-effect contrast.

        (z_0.975 + z_0.8) x standard error, the normal approximation for known noise; block effects
        and the noise's own uncertainty would make it larger.

        Args:
            noise_sd: Standard deviation of the logarithm of the time between replicates, > 0.

        Raises:
            ValueError: `noise_sd` is not a positive number.
        """
        if not (math.isfinite(noise_sd) and noise_sd > 0):
            raise ValueError(f"noise_sd = {noise_sd}: expected a finite number above 0")
        z = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)
        return tuple(
            DetectableEffect(label, z * noise_sd * se) for label, se in self.standard_errors
        )


def design_fraction(
    factors: Sequence[Factor],
    *,
    runs: int,
    incumbent: Assignment,
    interactions: Sequence[tuple[str, str]] = (),
    replicates: int = 3,
    forbidden: Forbidden = (),
    blocks: int = 1,
    seed: int = 0,
) -> Fraction:
    """Choose the runs: distinct points, the incumbent among them, and the incumbent's replicates.

    The points make the determinant of the information matrix of all runs as large as possible for
    the model of `ModelMatrix`, found by exchange from several random starts, with the counts of
    each factor's levels within 3 of each other, over all runs and over distinct points, wherever
    the allowed points permit it. More runs than allowed points: all points, and the rest are
    replicates, first of the incumbent, then spread over the points and levels run least. Regions
    of more than 4,096 combinations are never enumerated.

    A model with more parameters than distinct points, or one that the allowed points cannot tell
    apart, loses terms: the highest polynomial degrees first, within a degree from the last factor
    on, down to the quadratic ones, then declared interactions from the last on. Linear terms and
    categorical contrasts are never given up for lack of runs.

    Args:
        factors: At least one, with distinct names.
        runs: Number of runs, replicates included.
        incumbent: A level of every factor.
        interactions: Pairs of names whose linear x linear term belongs to the model.
        replicates: Runs of the incumbent beyond its first.
        forbidden: A predicate on assignments, or partial assignments; points for which it is true,
            or that agree with one of them, are left out. A partial assignment names these factors
            only; a value in it that is no level matches nothing.
        blocks: Number of devices. The runs are dealt so that differences between devices mix with
            the model as little as the best of 64 random deals allows; equal points go to
            different devices.
        seed: The same seed and arguments give the same design.

    Raises:
        ValueError: Nothing varies; an unknown name or level; a forbidden incumbent; too few runs,
            replicates or blocks out of range; factors that the allowed points cannot separate.
    """
    if not factors:
        raise ValueError("no factor varies: replicate the best points instead of designing")
    if replicates < 0 or not 1 <= blocks <= runs:
        raise ValueError(
            f"runs = {runs}, replicates = {replicates}, blocks = {blocks}: "
            "expected replicates >= 0 and 1 <= blocks <= runs"
        )
    model = ModelMatrix(factors, interactions)
    start = _incumbent(model.factors, incumbent)
    region = Region([len(f.levels) for f in model.factors], _predicate(model.factors, forbidden))
    if not region.allows(start):
        raise ValueError(f"the incumbent {dict(incumbent)} is one of the forbidden combinations")
    rng = np.random.default_rng(seed)
    enumerated = region.points
    if enumerated is not None and runs > len(enumerated):
        kept, dropped = _estimable(model, enumerated, len(enumerated), runs)
        points = _with_replicates(enumerated, start, runs, replicates, rng)
        kind: Literal["full factorial", "d-optimal fraction"] = "full factorial"
    else:
        count = runs - replicates
        known = enumerated
        if known is None:
            known = np.array([start, *region.sample(2 * len(model.terms) + 50, start, rng)])
        kept, dropped = _estimable(model, known, count, runs)
        points = _optimal(model, kept, dropped, Search(region, start, replicates, count), rng)
        kind = "d-optimal fraction"
    X = model.columns(kept, points)
    return Fraction(
        kind=kind,
        factors=model.factors,
        runs=_deal(X, points, blocks, rng),
        terms=tuple(term.label for term in kept),
        dropped=tuple(dropped.values()),
        d_efficiency=_d_efficiency(X),
        max_alias=_max_alias(model, kept, list(dropped), points),
        standard_errors=_standard_errors(model, kept, X),
    )


def _assignment(factors: Sequence[Factor], point: Point) -> dict[str, Level]:
    return {f.name: f.levels[level] for f, level in zip(factors, point, strict=True)}


def _incumbent(factors: Sequence[Factor], incumbent: Assignment) -> Point:
    """The incumbent's level indices."""
    names = {factor.name for factor in factors}
    if set(incumbent) != names:
        raise ValueError(
            f"the incumbent has the parameters {sorted(incumbent)}, expected {sorted(names)}"
        )
    for factor in factors:
        if incumbent[factor.name] not in factor.levels:
            raise ValueError(
                f"the incumbent has {factor.name} = {incumbent[factor.name]!r}, which is no level: "
                f"expected one of {list(factor.levels)}"
            )
    return tuple(factor.levels.index(incumbent[factor.name]) for factor in factors)


def _predicate(factors: Sequence[Factor], forbidden: Forbidden) -> Callable[[Point], bool]:
    if callable(forbidden):
        return lambda point: forbidden(_assignment(factors, point))
    names = [factor.name for factor in factors]
    for partial in forbidden:
        unknown = sorted(set(partial) - set(names))
        if unknown or not partial:
            raise ValueError(
                f"forbidden combination {dict(partial)}: expected at least one of the factors "
                f"{names} and no other, got {unknown or 'none'}"
            )

    def matches(point: Point) -> bool:
        assignment = _assignment(factors, point)
        return any(
            all(assignment[name] == value for name, value in partial.items())
            for partial in forbidden
        )

    return matches


def _estimable(
    model: ModelMatrix, points: IntArray, count: int, runs: int
) -> tuple[list[Term], dict[Term, DroppedTerm]]:
    """The terms that `count` of the points can estimate, by priority, and those dropped.

    A term is kept when its column adds to the span of those kept before it (Gram-Schmidt).
    """
    kept: list[Term] = []
    dropped: dict[Term, DroppedTerm] = {}
    basis = np.empty((len(points), 0))
    for term, column in zip(model.terms, model.columns(model.terms, points).T, strict=True):
        rest = column - basis @ (basis.T @ column)
        rest -= basis @ (basis.T @ rest)
        if np.linalg.norm(rest) < 1e-8 * math.sqrt(len(points)):
            dropped[term] = DroppedTerm(term.label, "forbidden combinations")
        elif len(kept) == count:
            dropped[term] = DroppedTerm(term.label, "too few runs")
        else:
            kept.append(term)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    _check_kept(model, kept, dropped, count, runs)
    return kept, dict(reversed(dropped.items()))


def _check_kept(
    model: ModelMatrix, kept: list[Term], dropped: dict[Term, DroppedTerm], count: int, runs: int
) -> None:
    lost = [term for term in dropped if term.is_main_effect and term.order == 1]
    short = [term for term in lost if dropped[term].reason == "too few runs"]
    if short:
        first_order = [t for t in kept if t.is_main_effect and t.order == 1] + short
        needed = runs - count + 1 + len(first_order)
        raise ValueError(
            f"runs = {runs} leave {max(count, 0)} distinct points, too few for the intercept and "
            f"the {len(first_order)} linear and categorical terms of {len(model.factors)} factors: "
            f"expected at least {needed} runs, or fewer replicates or factors"
        )
    for place, factor in enumerate(model.factors):
        if not any(term.is_main_effect and term.parts[0][0] == place for term in kept):
            raise ValueError(
                f"the allowed combinations cannot separate factor {factor.name!r} from the factors "
                "before it: forbid fewer combinations, or lock it"
            )


def _with_replicates(
    allowed: IntArray, incumbent: Point, runs: int, replicates: int, rng: np.random.Generator
) -> IntArray:
    """All allowed points, then replicates: of the incumbent, then where runs and levels are fewest.

    Returns shape (runs, k).
    """
    chosen = [as_point(point) for point in allowed]
    times = Counter(chosen)
    extra = [incumbent] * min(replicates, runs - len(chosen))
    others = [as_point(point) for point in rng.permutation(allowed)]
    for point in extra:
        times[point] += 1
    while len(chosen) + len(extra) < runs:
        table = np.array(chosen + extra)
        use = {p: sum(int((table[:, f] == p[f]).sum()) for f in range(len(p))) for p in others}
        extra.append(min(others, key=lambda point: (times[point], use[point])))
        times[extra[-1]] += 1
    return np.array(chosen + extra)


def _optimal(
    model: ModelMatrix,
    kept: list[Term],
    dropped: dict[Term, DroppedTerm],
    search: Search,
    rng: np.random.Generator,
) -> IntArray:
    """All runs of the best design, shape (runs, k), the incumbent's replicates last.

    Terms that no balanced design of this size can estimate move from `kept` to `dropped`.
    """
    while True:
        design = search.best(lambda points: model.columns(kept, points), rng)
        if np.linalg.matrix_rank(model.columns(kept, design)) == len(kept):
            return np.concatenate([design, np.repeat(design[:1], search.replicates, axis=0)])
        last = kept.pop()
        dropped[last] = DroppedTerm(last.label, "too few runs")
        _check_kept(model, kept, dropped, search.count, search.count + search.replicates)


def _deal(
    X: FloatArray, points: IntArray, blocks: int, rng: np.random.Generator
) -> tuple[Run, ...]:
    """Deal the runs into blocks, in random order within each; X has their model columns (n, p).

    Of the random deals the one with the largest determinant of model and block effects together.
    """
    times = Counter(as_point(point) for point in points)
    best: tuple[float, list[list[int]]] | None = None
    for _ in range(_DEALS if blocks > 1 else 1):
        shuffled = [int(i) for i in rng.permutation(len(points))]
        first = {as_point(points[i]): rank for rank, i in reversed(list(enumerate(shuffled)))}
        # Equal points come next to each other, the most frequent first, so that they are dealt to
        # different blocks; every other point keeps its random place.
        shuffled.sort(key=lambda i: (-times[as_point(points[i])], first[as_point(points[i])]))
        deal = [shuffled[block::blocks] for block in rng.permutation(blocks)]
        member = np.zeros((len(points), blocks))
        for block, rows in enumerate(deal):
            member[rows, block] = 1
        together = np.column_stack([X, member[:, 1:]])
        spread = float(np.linalg.slogdet(together.T @ together)[1])
        if best is None or spread > best[0]:
            best = (spread, deal)
    assert best is not None
    seen: set[Point] = set()
    dealt = []
    for block, rows in enumerate(best[1]):
        for row in rng.permutation(rows):
            point = as_point(points[row])
            dealt.append(Run(point, block, is_replicate=point in seen))
            seen.add(point)
    return tuple(dealt)


def _d_efficiency(X: FloatArray) -> float:
    log_determinant = float(np.linalg.slogdet(X.T @ X)[1])
    return math.exp(log_determinant / X.shape[1]) / len(X)


def _standard_errors(
    model: ModelMatrix, kept: list[Term], X: FloatArray
) -> tuple[tuple[str, float], ...]:
    variance = np.diag(np.linalg.inv(X.T @ X))
    return tuple(
        (term.label, math.sqrt(float(variance[column])) * model.span(term))
        for column, term in enumerate(kept)
        if term.is_main_effect
    )


def _max_alias(
    model: ModelMatrix, kept: list[Term], dropped: list[Term], points: IntArray
) -> Alias | None:
    inside = [term for term in kept if term.parts]
    outside = [*model.undeclared, *dropped]
    X = model.columns([*inside, *outside], points)
    X = X - X.mean(axis=0)
    norms = np.linalg.norm(X, axis=0)
    X = X / np.where(norms > 1e-9, norms, np.inf)  # a column that is constant here aliases nothing
    correlation = np.abs(X[:, : len(inside)].T @ X)
    correlation[correlation < 1e-9] = 0  # orthogonal but for rounding
    for row, term in enumerate(inside):
        correlation[row, : row + 1] = 0
        if not term.is_main_effect:
            correlation[row, len(inside) :] = 0
    if not correlation.any():
        return None
    row, column = divmod(int(np.argmax(correlation)), correlation.shape[1])
    labels = [term.label for term in (*inside, *outside)]
    return Alias(min(1.0, float(correlation[row, column])), labels[row], labels[column])
