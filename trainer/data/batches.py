"""Owns the order in which windows of tokens are seen, as a pure function of seed and step.

It must not know what the tokens mean. Sequence number i is the same for every batch size, so runs
that differ in batch size see the same data in the same order.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.tokens import TokenStore
from trainer.errors import DataError
from trainer.roles import IGNORED


@dataclass(frozen=True, slots=True)
class Audit:
    """What one epoch is made of, so that nobody trains on a token far more often than they think.

    `exposures` is how often a token is learned from in an epoch, on average over all tokens;
    `max_exposures` for the token that is seen most often. Windows that do not overlap have
    samples * stride <= tokens and both at most 1.
    """

    tokens: int
    context: int
    stride: int
    samples: int
    overlap: int
    exposures: float
    max_exposures: int
    unused_tokens: int

    def as_dict(self) -> dict[str, int | float]:
        """Plain values, for an event."""
        return dataclasses.asdict(self)

    def epochs(self, steps: int, batch_size: int) -> float:
        """How often every sample has been seen, on average, after `steps` of `batch_size` of them."""
        return steps * batch_size / self.samples


def audit(tokens: int, *, context: int, stride: int) -> Audit:
    """The windows of `context` inputs and their targets that `tokens` tokens have room for."""
    samples = (tokens - 1 - context) // stride + 1 if tokens > context else 0
    # Window i predicts the tokens i * stride + 1 to i * stride + context.
    covered = (samples - 1) * min(stride, context) + context if samples else 0
    return Audit(
        tokens=tokens,
        context=context,
        stride=stride,
        samples=samples,
        overlap=max(0, context - stride),
        exposures=samples * context / max(1, tokens - 1),
        max_exposures=min(samples, -(-context // stride)),
        unused_tokens=tokens - 1 - covered if samples else tokens,
    )


class TrainingBatches:
    """Windows of the training tokens, in a new random order each epoch.

    There is no state to save or restore: `at(step)` always gives the same batch. The windows do not
    overlap unless `stride` is shorter than `context`. Tokens from `padding` on (None: no token is)
    are no targets.
    """

    def __init__(
        self,
        tokens: TokenStore,
        *,
        context: int,
        batch_size: int,
        seed: int,
        stride: int = 0,
        padding: int | None = None,
    ) -> None:
        self._tokens, self._context, self._batch_size = tokens, context, batch_size
        self._seed, self._stride = seed, stride or context
        self._padding = padding
        self.audit = audit(len(tokens), context=context, stride=self._stride)
        self._windows = self.audit.samples
        if self._windows < 1:
            raise DataError(
                f"the training split has {len(tokens)} tokens; expected more than "
                f"data.context = {context}"
            )
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns from."""
        return self._batch_size * self._context

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of step number `step`, counted from 0."""
        first, end = step * self._batch_size, (step + 1) * self._batch_size
        pieces = []
        while first < end:
            epoch, place = divmod(first, self._windows)
            piece = self._order_of(epoch)[place : place + end - first]
            pieces.append(piece)
            first += len(piece)
        windows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        rows = self._tokens.rows(windows * self._stride, self._context + 1)
        return _inputs_and_targets(rows, self._padding)

    def _order_of(self, epoch: int) -> Tensor:
        """The windows in the order of this epoch, (W,), where the tokens want their indices."""
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            order = torch.from_numpy(generator.permutation(self._windows))
            self._epoch, self._order = epoch, order.to(self._tokens.index_device)
        return self._order


def spread_windows(
    tokens: TokenStore,
    *,
    context: int,
    count: int,
    name: str,
    stride: int = 0,
    padding: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (count, T) of non-overlapping windows spread evenly over `tokens`.

    They are the same for every configuration and seed. `stride` (0: `context`) is the length of a
    row where sequences have one each. DataError, which names the slice `name`, when the tokens do
    not suffice.
    """
    stride = stride or context
    available = (len(tokens) - 1 - context) // stride + 1
    if count > available:
        raise DataError(
            f"the validation split has {len(tokens)} tokens; the {name} slice needs "
            f"{count * context + 1}: lower eval.{name}_tokens, or give more data "
            "(data.max_bytes, data.max_validation_tokens)"
        )
    places = [index * available // count for index in range(count)]
    starts = torch.tensor(places, device=tokens.index_device) * stride
    return _inputs_and_targets(tokens.rows(starts, context + 1), padding)


def _inputs_and_targets(rows: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
    """(B, T + 1) -> (B, T) each."""
    inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    if padding is None:
        return inputs, targets
    # No later input is read by a target that counts, so any symbol may stand for padding.
    return inputs.clamp(max=padding - 1), targets.masked_fill(targets >= padding, IGNORED)
