"""Owns the rules that end a run: targets with their confirmation, divergence, and steps used up.

It must not know models, clocks or torch; it sees losses and counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """How far a run has come: optimizer steps done, tokens learned from, lowest probe loss."""

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None


@dataclass(slots=True)
class Targets:
    """Which targets are still waited for; a target counts only when both slices are at or below it.

    `final` ends the run; the others are fallbacks, confirmed on the way.
    """

    final: float | None
    fallbacks: Sequence[float] = ()
    confirmed: list[float] = field(default_factory=list)

    @property
    def waiting(self) -> list[float]:
        """Targets not yet confirmed, easiest first."""
        known = {*self.fallbacks, *([] if self.final is None else [self.final])}
        return sorted(known - set(self.confirmed), reverse=True)

    @property
    def next(self) -> float | None:
        """The easiest target still waited for."""
        return next(iter(self.waiting), None)

    @property
    def reached(self) -> bool:
        """Whether the final target is confirmed."""
        return self.final is not None and self.final in self.confirmed

    def crossed(self, probe: float) -> list[float]:
        """The targets waited for that the probe is at or below."""
        return [target for target in self.waiting if probe <= target]

    def confirm(self, crossed: Sequence[float], confirmation: float) -> list[float]:
        """Those of `crossed` with which the confirmation slice agrees; they are waited for no more.

        The others are near misses: training goes on, and the next probe may cross them again.
        """
        agreed = [target for target in crossed if confirmation <= target]
        self.confirmed.extend(agreed)
        return agreed


def has_diverged(loss: float, *, vocabulary: int, explosion: float) -> bool:
    """Whether a loss (nats) is not finite, or `explosion` times worse than guessing blindly."""
    return not math.isfinite(loss) or loss > explosion * math.log(vocabulary)
