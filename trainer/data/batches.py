"""Owns the order in which windows of tokens are seen, as a pure function of seed and step.

It must not know what the tokens mean. Sequence number i is the same for every batch size, so runs
that differ in batch size see the same data in the same order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.errors import DataError


class TrainingBatches:
    """Non-overlapping windows of the training tokens, in a new random order each epoch.

    There is no state to save or restore: `at(step)` always gives the same batch.
    """

    def __init__(self, tokens: Tensor, *, context: int, batch_size: int, seed: int) -> None:
        """`tokens` (N,) of an integer type, on the device where batches are wanted."""
        self._tokens, self._context, self._batch_size = tokens, context, batch_size
        self._seed = seed
        self._windows = (len(tokens) - 1) // context
        if self._windows < 1:
            raise DataError(
                f"the training split has {len(tokens)} tokens; expected more than "
                f"data.context = {context}"
            )
        self._within = torch.arange(context + 1, device=tokens.device)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns from."""
        return self._batch_size * self._context

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of step number `step`, counted from 0."""
        first = step * self._batch_size
        windows = [self._window(number) for number in range(first, first + self._batch_size)]
        starts = torch.tensor(windows, device=self._tokens.device) * self._context
        return _cut(self._tokens, starts, self._within)

    def _window(self, number: int) -> int:
        epoch, place = divmod(number, self._windows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = generator.permutation(self._windows)
            self._epoch = epoch
        return int(self._order[place])


def spread_windows(tokens: Tensor, *, context: int, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets (count, T) of non-overlapping windows spread evenly over `tokens` (N,).

    They are the same for every configuration and seed. DataError, which names the slice `name`,
    when the tokens do not suffice.
    """
    available = (len(tokens) - 1) // context
    if count > available:
        raise DataError(
            f"the validation split has {len(tokens)} tokens; the {name} slice needs "
            f"{count * context + 1}: lower eval.{name}_tokens, or raise data.max_bytes"
        )
    places = [index * available // count for index in range(count)]
    starts = torch.tensor(places, device=tokens.device) * context
    return _cut(tokens, starts, torch.arange(context + 1, device=tokens.device))


def on_device(tokens: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """The tokens as a tensor on `device`, in the width in which they are stored."""
    return torch.from_numpy(tokens.copy()).to(device)


def _cut(tokens: Tensor, starts: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    rows = tokens[starts[:, None] + within].long()  # (B, T + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
