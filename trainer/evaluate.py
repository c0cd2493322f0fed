"""Owns validation: the two fixed slices, and at which tokens they are looked at.

It must not know optimizers, clocks or who reads the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.contradictions import EVALUATION_HALVINGS
from trainer.roles import IGNORED, count_scored

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
    ) -> None:
        self._model = model
        self._slices = {"probe": probe, "confirmation": confirmation}
        self._characters: dict[str, int] = {}
        counts = [len(tokens) for tokens, _ in self._slices.values()]
        self._windows_per_pass = _pass_size(counts, windows_per_pass)
        # Of each pass: what its mean is over, and therefore its weight.
        self._scored = {
            name: [int(count_scored(part)) for part in torch.split(targets, self._windows_per_pass)]
            for name, (_, targets) in self._slices.items()
        }

    def count_characters(self, of_token: Tensor) -> None:
        """Tell losses per character too: `of_token` (V,) are the characters of each token.

        Only tokens that are scored count: targets of the slices. So the figure does not depend on
        how many windows a pass has, and nothing is divided by text that was left out.
        """
        for name, (_, targets) in self._slices.items():
            self._characters[name] = int(of_token[targets[targets != IGNORED].cpu()].sum())

    def scored(self) -> dict[str, dict[str, int]]:
        """Per slice, the tokens that are scored and (where counted) their characters."""
        return {
            name: {"tokens": sum(counts)}
            | ({"characters": self._characters[name]} if name in self._characters else {})
            for name, counts in self._scored.items()
        }

    def metrics(self, name: str, loss: float) -> dict[str, float]:
        """What an evaluation of the slice `name` says: nats per token, and per character if counted."""
        found = {"val_loss": loss}
        if characters := self._characters.get(name):
            found["nats_per_character"] = loss * sum(self._scored[name]) / characters
        return found

    @torch.no_grad()
    def warm_up(self) -> None:
        """One forward pass of the shape that all full passes have."""
        tokens, targets = self._slices["probe"]
        self._model(tokens[: self._windows_per_pass], targets[: self._windows_per_pass])

    @torch.no_grad()
    def loss(self, name: str) -> float:
        """Nats per scored token over the whole slice `name`, "probe" or "confirmation"."""
        tokens, targets = self._slices[name]
        counts = self._scored[name]
        parts = zip(
            torch.split(tokens, self._windows_per_pass),
            torch.split(targets, self._windows_per_pass),
            counts,
            strict=True,
        )
        total = sum(self._model(x, y).double() * count for x, y, count in parts)
        return float(total) / sum(counts)


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
