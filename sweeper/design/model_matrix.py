"""Factors of a design, and the model terms whose effects the design is built to estimate.

It must not know which points are run, or how they are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Level: TypeAlias = float | int | str | bool
FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Factor:
    """One parameter that varies, with its levels in order.

    Args:
        name: The parameter's name, unique in a design.
        levels: At least two distinct values; a numeric factor's strictly rising or falling.
        kind: `numeric` levels have distances and get polynomial contrasts, `categorical` do not.
        scale: The scale on which the distances of a numeric factor count.

    Raises:
        ValueError: Fewer than two levels, equal levels, or a level that its scale cannot hold.
    """

    name: str
    levels: tuple[Level, ...]
    kind: Literal["numeric", "categorical"]
    scale: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise ValueError(
                f"factor {self.name!r} has {len(self.levels)} level(s), expected at least 2: "
                "lock it to its only level and leave it out of the design"
            )
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(
                f"factor {self.name!r} has equal levels {list(self.levels)}: give each level once"
            )
        if self.kind == "numeric":
            steps = [later - earlier for earlier, later in pairwise(self.coordinates)]
            if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
                raise ValueError(
                    f"factor {self.name!r} has levels {list(self.levels)}: give them in order"
                )

    @property
    def coordinates(self) -> tuple[float, ...]:
        """The levels of a numeric factor on its scale (natural logarithm for `log`)."""
        values = []
        for level in self.levels:
            if isinstance(level, str) or not math.isfinite(level):
                raise ValueError(
                    f"factor {self.name!r} is numeric, but has the level {level!r}: "
                    "expected finite numbers, or kind 'categorical'"
                )
            if self.scale == "log" and level <= 0:
                raise ValueError(
                    f"factor {self.name!r} has the level {level!r} on a log scale: "
                    "expected numbers above 0, or scale 'linear'"
                )
            values.append(math.log(level) if self.scale == "log" else float(level))
        return tuple(values)


@dataclass(frozen=True)
class Term:
    """One column of the model matrix: a product of contrasts, one per factor that it involves.

    Args:
        label: For people, for example `lr^2` or `lr x batch`.
        parts: At most two pairs (index of the factor, index of its contrast).
        order: Polynomial degree of a main effect (1 for each categorical contrast), 2 for an
            interaction.
    """

    label: str
    parts: tuple[tuple[int, int], ...]
    order: int

    @property
    def is_main_effect(self) -> bool:
        """Whether the term involves one factor only."""
        return len(self.parts) == 1


class ModelMatrix:
    """The model's terms for some factors, in order of priority, and their columns at any points.

    Main effects: orthogonal polynomials of every degree up to levels - 1 for a numeric factor,
    levels - 1 orthogonal contrasts for a categorical one. Two-factor interactions: linear x
    linear; a categorical side has no line, so all its contrasts take the place of the linear one.
    Levels 6, 5, 5, 5 with one declared interaction are 1 + (5 + 4 + 4 + 4) + 1 = 19 parameters.

    Every contrast has mean 0 and mean square 1 over its levels, so that the information matrix of
    the full factorial, divided by its number of runs, is the identity.

    Priority: intercept, linear and categorical contrasts, declared interactions, quadratic, cubic
    and higher terms; within a degree, as declared.

    Args:
        factors: k factors with distinct names.
        interactions: Declared pairs of names.

    Raises:
        ValueError: Equal names, an unknown name, or a pair that is not two different factors.
    """

    def __init__(
        self, factors: Sequence[Factor], interactions: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.factors = tuple(factors)
        self._contrasts = [_contrasts(factor) for factor in self.factors]
        parts = [(p, c) for p, table in enumerate(self._contrasts) for c in range(table.shape[1])]
        self._column = {part: 1 + column for column, part in enumerate(parts)}
        names = [factor.name for factor in self.factors]
        if len(set(names)) != len(names):
            raise ValueError(f"factors {names} do not have distinct names")
        declared = list(dict.fromkeys(self._pair(pair, names) for pair in interactions))
        mains = [term for place in range(len(names)) for term in self._main_effects(place)]
        crossed = [term for first, second in declared for term in self._cross(first, second)]
        higher = sorted((t for t in mains if t.order > 1), key=lambda term: term.order)
        self.terms: tuple[Term, ...] = (
            Term("intercept", (), 0), *(t for t in mains if t.order == 1), *crossed, *higher
        )  # fmt: skip
        self.undeclared: tuple[Term, ...] = tuple(
            term
            for second in range(len(names))
            for first in range(second)
            if (first, second) not in declared
            for term in self._cross(first, second)
        )

    def columns(self, terms: Sequence[Term], points: IntArray) -> FloatArray:
        """Model columns, shape (n, len(terms)), at points of shape (n, k) of level indices."""
        ones = np.ones((len(points), 1))
        flat = np.hstack(
            [ones, *(table[points[:, place]] for place, table in enumerate(self._contrasts))]
        )
        # Every term is the product of two columns, one or both of them the ones.
        pairs = [[self._column[part] for part in term.parts] for term in terms]
        first, second = np.array([([*pair, 0, 0])[:2] for pair in pairs]).T
        crossed: FloatArray = flat[:, first] * flat[:, second]
        return crossed

    def span(self, term: Term) -> float:
        """Largest minus smallest value of a main effect's contrast over the factor's levels."""
        ((place, contrast),) = term.parts
        return float(np.ptp(self._contrasts[place][:, contrast]))

    def _pair(self, pair: tuple[str, str], names: list[str]) -> tuple[int, int]:
        for name in pair:
            if name not in names:
                raise ValueError(
                    f"interaction {' x '.join(pair)} names {name!r}, which does not vary here: "
                    f"expected two of {', '.join(names)}"
                )
        if len(set(pair)) != 2:
            raise ValueError(f"interaction {' x '.join(pair)}: expected two different factors")
        first, second = sorted(names.index(name) for name in pair)
        return first, second

    def _main_effects(self, place: int) -> list[Term]:
        factor = self.factors[place]
        if factor.kind == "numeric":
            powers = range(1, len(factor.levels))
            labels = [factor.name if power == 1 else f"{factor.name}^{power}" for power in powers]
            orders = list(powers)
        else:
            labels = [f"{factor.name}[{level}]" for level in factor.levels[1:]]
            orders = [1] * len(labels)
        return [Term(labels[i], ((place, i),), orders[i]) for i in range(len(labels))]

    def _cross(self, first: int, second: int) -> list[Term]:
        sides = [
            [t for t in self._main_effects(place) if t.order == 1] for place in (first, second)
        ]
        return [Term(f"{a.label} x {b.label}", a.parts + b.parts, 2) for a, b in product(*sides)]


def _contrasts(factor: Factor) -> FloatArray:
    """Orthogonal contrasts, shape (levels, levels - 1), mean 0 and mean square 1 over the levels.

    Numeric: the polynomials of rising degree at the levels' own distances (Gram-Schmidt on the
    powers). Categorical: Helmert's, each level against the mean of the levels before it.
    """
    count = len(factor.levels)
    if factor.kind == "numeric":
        x = np.array(factor.coordinates)
        x = 2 * (x - x.min()) / np.ptp(x) - 1
        basis, triangle = np.linalg.qr(np.vander(x, count, increasing=True))
        basis = basis * np.sign(np.diag(triangle))
        return basis[:, 1:] * math.sqrt(count)
    helmert = np.zeros((count, count - 1))
    for column in range(count - 1):
        helmert[: column + 1, column] = -1
        helmert[column + 1, column] = column + 1
    scaled: FloatArray = helmert / np.sqrt((helmert**2).mean(axis=0))
    return scaled
