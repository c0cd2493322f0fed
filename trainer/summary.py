"""Owns what a run says of itself at its end: when its loss became stable, how much it varies, names.

It must not know optimizers, clocks or how a step is made; it sees losses, and a model's logits.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.config import Summary as SummaryConfig

CURVE_POINTS = 200


@dataclass(slots=True)
class LossRecord:
    """The training loss of each step, and what is read off it (`describe`)."""

    config: SummaryConfig
    losses: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor) -> None:
        """Take in the 0-D loss of the next step, without waiting for the device."""
        if self.config.losses:
            self.losses.append(loss)

    def describe(self) -> dict[str, Any]:
        """JSON values; empty where losses were not kept, or no step was made."""
        if not self.losses:
            return {}
        losses: list[float] = torch.stack(self.losses).double().tolist()
        smoothed = running_means(losses, self.config.smoothing_steps)
        every = max(1, len(losses) // CURVE_POINTS)
        places = sorted({*range(every, len(losses) + 1, every), len(losses)})
        last = losses[-self.config.last_steps :]
        return {
            "stable_from_step": stable_from(smoothed, self.config.band),
            "loss_variance": statistics.variance(last) if len(last) > 1 else None,
            "best_step_loss": min(losses),
            "best_smoothed_loss": min(
                smoothed[min(self.config.smoothing_steps, len(losses)) - 1 :]
            ),
            "final_smoothed_loss": smoothed[-1],
            "smoothed_losses": [[step, smoothed[step - 1]] for step in places],
        }


def running_means(losses: Sequence[float], length: int) -> list[float]:
    """Of each loss and those before it, at most `length` of them, the mean."""
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    ends = range(1, len(losses) + 1)
    return [(sums[end] - sums[max(0, end - length)]) / min(end, length) for end in ends]


def stable_from(smoothed: Sequence[float], band: float) -> int:
    """The first step (from 1) after which the smoothed loss stays within `band` of its last value."""
    final, step = smoothed[-1], len(smoothed)
    while step > 1 and abs(smoothed[step - 2] - final) <= band:
        step -= 1
    return step


@torch.no_grad()
def generate(
    logits: Callable[[Tensor], Tensor],
    *,
    count: int,
    places: int,
    mark: int,
    temperature: float,
    seed: int,
    device: torch.device,
) -> list[list[int]]:
    """`count` sequences of at most `places` - 1 symbols that a model draws after `mark`.

    `logits` maps symbols (B, T) to scores (B, T, V); symbols after the next `mark` mean nothing.
    Drawn on the CPU from a generator of its own, so that a seed gives the same names anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.full((count, 1), mark, dtype=torch.int64)
    for _ in range(places - 1):
        scores = logits(symbols.to(device))[:, -1].float().cpu() / temperature
        drawn = torch.multinomial(torch.softmax(scores, -1), 1, generator=generator)
        symbols = torch.cat([symbols, drawn], dim=1)
    rows: list[list[int]] = symbols[:, 1:].tolist()
    return rows
