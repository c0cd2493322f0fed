"""Owns the rules that end a run: targets with their confirmation, divergence, lost patience.

It must not know models, clocks or torch; it sees losses and counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


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


@dataclass(slots=True)
class Smoothing:
    """A running mean at first, then an exponential one with a time constant of `steps` values.

    `steps` 0 smooths nothing. Values may be numbers or 0-D tensors, which are not waited for. The
    value counts once it is `settled`: the mean of the first few losses has lucky ones too.
    """

    steps: float
    value: Any = None
    seen: int = 0

    @property
    def settled(self) -> bool:
        """Whether it has seen as many losses as its time constant."""
        return self.seen >= self.steps

    def add(self, loss: Any) -> None:
        """Take in the next loss."""
        self.seen += 1
        weight = max(1 / self.seen, 1 / self.steps) if self.steps else 1.0
        self.value = loss if self.value is None else self.value + (loss - self.value) * weight


@dataclass(slots=True)
class Patience:
    """Lost when a loss has not improved by more than `min_delta` for `tokens` tokens (0: never).

    It must be given a smoothed or a validation loss: the loss of single examples has lucky ones
    early on, which are not beaten for a long time although the model learns.
    """

    tokens: int
    min_delta: float = 0.0
    best: float | None = None
    best_at_tokens: int = 0

    def lost(self, loss: float, tokens: int) -> bool:
        """Take in the loss after `tokens` tokens; whether there is no point in going on."""
        if self.best is None or loss < self.best - self.min_delta:
            self.best, self.best_at_tokens = loss, tokens
        return self.tokens > 0 and tokens - self.best_at_tokens >= self.tokens
