"""Search for the D-optimal subset of a region of level combinations, by exchanging points.

It must not know what the factors are, or what becomes of the points that it finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from sweeper.design.model_matrix import FloatArray, IntArray

Point: TypeAlias = tuple[int, ...]
Columns: TypeAlias = Callable[[IntArray], FloatArray]

# Regions up to this size are enumerated, and every allowed point is a candidate in every exchange;
# in larger ones the candidates are the points that differ from the present one in one level.
ENUMERATED = 4096
BALANCE = 3
_STARTS = 6
_PASSES = 40
_RIDGE = 1e-5  # keeps a start with a singular information matrix comparable to others
_IMBALANCE_COST = 1e3  # in units of log determinant: no gain in it buys one count of imbalance
_LEAST_GAIN = 1e-7


class Region:
    """The allowed combinations of levels, enumerated when there are at most `ENUMERATED` in all.

    Args:
        shape: Number of levels of each of k factors.
        forbidden: Says whether a point (one level index per factor) may not be run.
    """

    def __init__(self, shape: Sequence[int], forbidden: Callable[[Point], bool]) -> None:
        self.shape = tuple(shape)
        self._forbidden = forbidden
        self._known: dict[Point, bool] = {}
        self.points: IntArray | None = None
        if math.prod(self.shape) <= ENUMERATED:
            every = np.indices(self.shape).reshape(len(self.shape), -1).T
            self.points = every[[self.allows(as_point(point)) for point in every]]

    def allows(self, point: Point) -> bool:
        """Whether the point may be run; each point is asked for once."""
        if point not in self._known:
            self._known[point] = not self._forbidden(point)
        return self._known[point]

    def candidates(self, point: IntArray) -> IntArray:
        """Points to exchange `point` for, shape (m, k); not all need be allowed."""
        if self.points is not None:
            return self.points
        moves = []
        for place, count in enumerate(self.shape):
            moved = np.repeat(point[None], count, axis=0)
            moved[:, place] = np.arange(count)
            moves.append(moved)
        return np.concatenate(moves)

    def sample(self, count: int, start: Point, rng: np.random.Generator) -> list[Point]:
        """Up to `count` distinct allowed points other than `start`, in random order.

        Fewer only when the region has no more, or so few that they were not found: uniform draws
        come first, then a walk over single-level changes from the points known so far.
        """
        if self.points is not None:
            every = [as_point(point) for point in rng.permutation(self.points)]
            return [point for point in every if point != start][:count]
        found = {start: None}  # a dictionary, not a set: its order is the same in every process
        for drawn in rng.integers(0, self.shape, size=(20 * count + 100, len(self.shape))):
            if len(found) > count:
                break
            if self.allows(as_point(drawn)):
                found[as_point(drawn)] = None
        frontier = list(found)
        while frontier and len(found) <= count:
            here = frontier.pop(int(rng.integers(len(frontier))))
            for near in rng.permutation(self.candidates(np.array(here))):
                if as_point(near) not in found and self.allows(as_point(near)):
                    found[as_point(near)] = None
                    frontier.append(as_point(near))
        return list(found)[1 : count + 1]


@dataclass(frozen=True)
class Search:
    """One problem: which `count` distinct points, the incumbent among them, are D-optimal.

    Args:
        region: Where points may lie.
        incumbent: The point that must be in the design.
        replicates: Further runs of the incumbent, part of the information matrix and the balance.
        count: Number of distinct points.
    """

    region: Region
    incumbent: Point
    replicates: int
    count: int

    def best(self, columns: Columns, rng: np.random.Generator) -> IntArray:
        """The best design of several random starts, shape (count, k), the incumbent first.

        Args:
            columns: Model matrix (m, p) of points (m, k).
            rng: Source of the starts.

        Raises:
            ValueError: The region has too few allowed points, or they were not found.
        """
        designs = [self._ascend(columns, rng) for _ in range(_STARTS)]
        return max(designs, key=lambda design: self._value(columns, design))

    def _value(self, columns: Columns, design: IntArray) -> float:
        """Log determinant of all runs' information, less the cost of imbalance."""
        excess = sum(self._excess(each, place) for place, each in enumerate(self._counts(design)))
        information = self._information(columns(design))
        return float(np.linalg.slogdet(information)[1]) - _IMBALANCE_COST * excess

    def _ascend(self, columns: Columns, rng: np.random.Generator) -> IntArray:
        """Exchange points of a random design one at a time until none gains.

        Fedorov's exchange where the region is enumerated, coordinate exchange (Meyer and
        Nachtsheim 1995) where it is not.
        """
        others = self.region.sample(self.count - 1, self.incumbent, rng)
        if len(others) < self.count - 1:
            raise ValueError(
                f"only {1 + len(others)} allowed points were found where {self.count} are needed: "
                "forbid fewer combinations, or ask for fewer runs"
            )
        design = np.array([self.incumbent, *others])
        X = columns(design)
        inverse = self._inverse(X)
        every = self.region.points
        every_columns = None if every is None else columns(every)
        for _ in range(_PASSES):
            changed = False
            for row in 1 + rng.permutation(len(design) - 1):
                candidates = self.region.candidates(design[row])
                matrix = columns(candidates) if every_columns is None else every_columns
                gain = self._gains(inverse, X[row], matrix)
                gain -= _IMBALANCE_COST * self._imbalances(design, int(row), candidates)
                chosen = self._first_allowed(design, candidates, gain)
                if chosen is not None:
                    design[row], X[row] = candidates[chosen], matrix[chosen]
                    inverse = self._inverse(X)
                    changed = True
            if not changed:
                break
        return design

    def _gains(self, inverse: FloatArray, present: FloatArray, matrix: FloatArray) -> FloatArray:
        """Gain in log determinant when each candidate's columns replace the present row, (m,).

        By the matrix determinant lemma for one row out and one row in (Fedorov 1972).
        """
        out = inverse @ present
        leverage = np.einsum("ij,ij->i", matrix @ inverse, matrix)
        ratio = (1 + leverage) * (1 - present @ out) + (matrix @ out) ** 2
        gain: FloatArray = np.log(np.maximum(ratio, 1e-300))
        return gain

    def _imbalances(self, design: IntArray, row: int, candidates: IntArray) -> FloatArray:
        """Imbalance with each candidate in the place of the row, less the present one, (m,)."""
        change = np.zeros(len(candidates))
        for place, counts in enumerate(self._counts(design)):
            present = int(design[row, place])
            counts[present] -= 1
            if self._excess(counts, place, BALANCE - 1) == 0:
                continue  # one more anywhere stays within the bound
            after = []
            for level in range(len(counts)):
                counts[level] += 1
                after.append(self._excess(counts, place))
                counts[level] -= 1
            change += (np.array(after) - after[present])[candidates[:, place]]
        return change

    def _first_allowed(
        self, design: IntArray, candidates: IntArray, gain: FloatArray
    ) -> int | None:
        """The candidate with the largest gain of those allowed and not in the design, if any gains.

        The predicate is asked only for candidates that would be taken: it may be slow.
        """
        present = set(map(tuple, design.tolist()))
        while gain[best := int(np.argmax(gain))] > _LEAST_GAIN:
            point = as_point(candidates[best])
            if point not in present and self.region.allows(point):
                return best
            gain[best] = -np.inf
        return None

    def _information(self, X: FloatArray) -> FloatArray:
        information: FloatArray = X.T @ X + self.replicates * np.outer(X[0], X[0])
        return information + _RIDGE * np.eye(X.shape[1])

    def _inverse(self, X: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.inv(self._information(X)), dtype=np.float64)

    def _counts(self, design: IntArray) -> list[list[int]]:
        """Distinct points at each level of each factor."""
        return [
            np.bincount(design[:, place], minlength=levels).tolist()
            for place, levels in enumerate(self.region.shape)
        ]

    def _excess(self, counts: list[int], place: int, bound: int = BALANCE) -> int:
        """Counts by which a factor is out of balance, over distinct points and over all runs."""
        runs = counts.copy()
        runs[self.incumbent[place]] += self.replicates
        return sum(max(0, max(each) - min(each) - bound) for each in (counts, runs))


def as_point(row: IntArray) -> Point:
    """A row of level indices as a tuple of plain integers."""
    return tuple(row.tolist())
