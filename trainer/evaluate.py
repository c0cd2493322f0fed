"""Owns validation: the two fixed slices, and at which tokens they are looked at.

It must not know optimizers, clocks or who reads the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import EVALUATION_HALVINGS

Windows = tuple[Tensor, Tensor]
"""Inputs and targets, both (N, T) int64."""


class Evaluator:
    """Mean cross-entropy on the probe (frequent) and on the confirmation slice (larger)."""

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        probe: Windows,
        confirmation: Windows,
        windows_per_pass: int,
        scored: Callable[[Tensor], int | Tensor] = Tensor.numel,
    ) -> None:
        """`scored` counts the targets that the model's mean loss is over."""
        self._model, self._scored = model, scored
        self._slices = {"probe": probe, "confirmation": confirmation}
        counts = [len(tokens) for tokens, _ in self._slices.values()]
        self._windows_per_pass = _pass_size(counts, windows_per_pass)

    @torch.no_grad()
    def warm_up(self) -> None:
        """One forward pass of the shape that all full passes have."""
        tokens, targets = self._slices["probe"]
        self._model(tokens[: self._windows_per_pass], targets[: self._windows_per_pass])

    @torch.no_grad()
    def loss(self, name: str) -> float:
        """Nats per scored token over the whole slice `name`, "probe" or "confirmation"."""
        tokens, targets = self._slices[name]
        parts = zip(
            torch.split(tokens, self._windows_per_pass),
            torch.split(targets, self._windows_per_pass),
            strict=True,
        )
        total = sum(self._model(x, y).double() * self._scored(y) for x, y in parts)
        return float(total) / float(self._scored(targets))


def _pass_size(counts: list[int], limit: int) -> int:
    """Windows per pass, so that all passes have one shape (and a compiled model one graph).

    Where no number between half the limit and the limit divides all slices, it is the limit, and
    the last pass of a slice is shorter.
    """
    for size in range(limit, limit // 2, -1):
        if not any(count % size for count in counts):
            return size
    return limit


@dataclass(frozen=True, slots=True)
class Cadence:
    """Places evaluations by tokens, on grids that lie inside one another.

    Far from the target they are `every_tokens` apart; within `near` nats of it half of that, within
    half of `near` a quarter. So every configuration is looked at at the same tokens, and more often
    where a crossing is close. The spacing doubles after each `double_after` evaluations, so their
    number grows only with the logarithm of a run's length.
    """

    every_tokens: int
    near: float
    double_after: int

    def next_after(self, tokens: int, *, done: int, distance: float | None) -> int:
        """The token count at which to evaluate next.

        `done` evaluations are behind us; `distance` is the last probe minus the next target, None
        when there is none.
        """
        spacing = self.every_tokens << (done // self.double_after)
        if distance is not None:
            halvings = sum(distance <= self.near / 2**n for n in range(EVALUATION_HALVINGS))
            spacing >>= halvings
        return (tokens // spacing + 1) * spacing
