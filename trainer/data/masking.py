"""Owns which tokens of a sequence are hidden, by whole spans, as a pure function of seed and number.

It must not know models or the order of the data. Sources: SpanBERT, arXiv 1907.10529 (spans), BERT,
arXiv 1810.04805 (hidden, replaced or kept), LTG-BERT, arXiv 2303.09859 (one choice for a span).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import Objective
from trainer.data.batches import TrainingBatches
from trainer.roles import IGNORED

_STREAM = 7_331
"""Keeps the random numbers of masks apart from those of the order of the data."""

_LONGEST = 10
"""Lengths of spans are taken modulo this."""

Uniform = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SpanMasking:
    """Hides about `settings.mask_share` of the tokens of each sequence, span by span.

    A sequence is cut into spans whose lengths are geometric, modulo 10 and at least 1, the first one
    cut at a random place; spans are taken in random order until as many tokens are hidden as a
    binomial draw says (at least 1), the last one cut to fit. A whole span becomes the mask, or
    random tokens, or stays as it is: each place of it is scored in every case. The mask is the id
    after the last of the `vocabulary`.
    """

    vocabulary: int
    settings: Objective
    seed: int

    @property
    def mask(self) -> int:
        """The id that hides a token."""
        return self.vocabulary

    def hide(self, tokens: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of `tokens` (B, T) int64, sequences `numbers` of the run.

        The targets are IGNORED where nothing is scored. Sequence number i has the same places
        whatever batch it is in.
        """
        settings, time = self.settings, tokens.shape[1]
        draws = np.stack([self._draw(number, time) for number in numbers])  # (B, 5 T + 1)
        of_length, of_span, of_fate, of_token, of_count = np.split(draws[:, :-1], 5, axis=1)
        spans = _spans(of_length, draws[:, -1], settings.span_stop)  # (B, T)
        order = np.argsort(np.take_along_axis(of_span, spans, 1), axis=1, kind="stable")
        count = np.maximum(1, (of_count < settings.mask_share).sum(axis=1))  # binomial, (B,)
        hidden = np.zeros(spans.shape, bool)
        np.put_along_axis(hidden, order, np.arange(time) < count[:, None], 1)
        fate = np.take_along_axis(of_fate, spans, 1)
        given = torch.from_numpy((of_token * self.vocabulary).astype(np.int64))
        given[torch.from_numpy(fate >= settings.random_share)] = self.mask
        kept = fate >= 1 - settings.keep_share
        changed = torch.from_numpy(hidden & ~kept).to(tokens.device)
        scored = torch.from_numpy(hidden).to(tokens.device)
        inputs = torch.where(changed, given.to(tokens.device), tokens)
        return inputs, torch.where(scored, tokens, IGNORED)

    def _draw(self, number: int, time: int) -> Uniform:
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAM, number]))
        return generator.random(5 * time + 1)


def _spans(of_length: Uniform, of_offset: Uniform, stop: float) -> npt.NDArray[np.int64]:
    """The number of the span that each place lies in, (B, T), from uniform draws (B, T) and (B,)."""
    with np.errstate(divide="ignore"):  # a stop of 1 is log 0: every span is one token
        geometric = 1 + np.floor(np.log1p(-of_length) / np.log1p(-stop)).astype(np.int64)
    lengths = np.maximum(1, geometric % _LONGEST)
    ends = (
        np.cumsum(lengths, axis=1) - np.floor(of_offset * lengths[:, 0]).astype(np.int64)[:, None]
    )
    begins = np.zeros_like(ends)
    rows, columns = np.nonzero(ends < of_length.shape[1])
    begins[rows, ends[rows, columns]] = 1
    return np.cumsum(begins, axis=1)


class MaskedBatches:
    """The batches of `base` with places hidden in their inputs instead of shifted targets."""

    def __init__(self, base: TrainingBatches, masking: SpanMasking, batch_size: int) -> None:
        self._base, self._masking, self._batch_size = base, masking, batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step reads; it learns from those of them that are hidden."""
        return self._base.tokens_per_step

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of step number `step`, counted from 0."""
        first = step * self._batch_size
        tokens, _ = self._base.at(step)
        return self._masking.hide(tokens, range(first, first + self._batch_size))
