"""A search that remembers points and values in memory: for tests, and where nothing is stored yet.

It must not know processes, limits or targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.search.base import Known, Told
from sweeper.space import Point


class MemorySearch:
    """Search in memory; what was told is in `told`, what was asked in `points`."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self.told: dict[str, Told] = {}

    def ask(self, trial_id: str, point: Point, attributes: Mapping[str, Any]) -> None:  # noqa: ARG002
        """See `Search.ask`."""
        self.points.setdefault(trial_id, point)

    def tell(self, trial_id: str, told: Told) -> None:
        """See `Search.tell`."""
        if trial_id not in self.points:
            raise KeyError(trial_id)
        self.told.setdefault(trial_id, told)

    def known(self) -> Mapping[str, Known]:
        """See `Search.known`."""
        found: dict[str, Known] = {}
        for key in self.points:
            told = self.told.get(key)
            if told is None:
                found[key] = Known("running", None)
            else:
                found[key] = Known("failed" if told.value is None else "complete", told.value)
        return found

    def describe(self, note: str, plots: Mapping[str, Mapping[str, Any]]) -> None:
        """Nobody looks at it."""
