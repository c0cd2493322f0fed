"""Owns what a run predicts: the next token or hidden ones, as batches, slices and minimal pairs.

It must not know architectures, optimizers or the loop, which see inputs and targets alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import Config
from trainer.config import Objective as ObjectiveConfig
from trainer.data.batches import Audit, TrainingBatches, spread_windows
from trainer.data.bpe import GPT2Encoder
from trainer.data.corpora import Corpus
from trainer.data.masking import MaskedBatches, SpanMasking
from trainer.data.tokens import place_tokens
from trainer.errors import DataError
from trainer.evaluate import Windows
from trainer.pairs import Milestones, PairScorer, read_pairs

_MASKS_OF_SLICES = 20_230_317
"""Seed of what is hidden in the fixed slices: the same for every run."""


@dataclass(frozen=True, slots=True)
class Task:
    """Inputs and targets of training and of both slices; targets that are IGNORED do not count.

    `vocabulary` is the number of ids that the model must embed; `mask` the one that hides a token,
    None where nothing is hidden.
    """

    batches: TrainingBatches | MaskedBatches
    probe: Windows
    confirmation: Windows
    audit: Audit
    vocabulary: int
    mask: int | None = None


def build_task(config: Config, corpus: Corpus, device: torch.device) -> Task:
    """The configured objective on `corpus`; DataError when that is too short for the slices."""
    context = config.data.context
    padding = corpus.vocabulary if corpus.row else None
    batches = TrainingBatches(
        place_tokens(corpus.train, device, config.data.residence),
        context=context,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        stride=corpus.row or config.data.stride,
        padding=padding,
    )
    held_out = place_tokens(corpus.validation, device)
    probe, confirmation = (
        spread_windows(
            held_out,
            context=context,
            count=tokens // context,
            name=name,
            stride=corpus.row,
            padding=padding,
        )
        for name, tokens in (
            ("probe", config.eval.probe_tokens),
            ("confirmation", config.eval.confirmation_tokens),
        )
    )
    if config.objective.kind == "causal":
        return Task(batches, probe, confirmation, batches.audit, corpus.vocabulary)
    masking = SpanMasking(corpus.vocabulary, config.objective, config.run.seed)
    # What is hidden in training may be swept; what is measured must stay the same.
    fixed = SpanMasking(corpus.vocabulary, ObjectiveConfig(), _MASKS_OF_SLICES)
    return Task(
        MaskedBatches(batches, masking, config.data.batch_size),
        fixed.hide(probe[0], range(len(probe[0]))),
        fixed.hide(confirmation[0], range(len(confirmation[0]))),
        batches.audit,
        corpus.vocabulary + 1,
        masking.mask,
    )


def build_milestones(
    config: Config,
    corpus: Corpus,
    task: Task,
    *,
    logits: Callable[[Tensor], Tensor],
    device: torch.device,
    max_steps: int,
) -> tuple[Milestones | None, int]:
    """When and how minimal pairs are scored, None without `pairs.path`; how many are cut.

    DataError when they cannot be read.
    """
    pairs = config.pairs
    if pairs.path is None:
        return None, 0
    encode = corpus.encode
    if pairs.merges is not None:
        encode = _gpt2_encoder(pairs.merges, corpus.vocabulary)
    assert encode is not None  # the configuration is refused otherwise
    scorer = PairScorer(
        read_pairs(pairs.path, pairs.most),
        logits=logits,
        encode=encode,
        context=config.data.context,
        device=device,
        mask=task.mask,
        normalisation=pairs.normalisation,
    )
    steps = frozenset(max(1, round(share * max_steps)) for share in pairs.at)
    return Milestones(steps, scorer.accuracy), scorer.cut


def _gpt2_encoder(merges: str, vocabulary: int) -> Callable[[str], list[int]]:
    encoder = GPT2Encoder(Path(merges))
    if encoder.vocabulary > vocabulary:
        raise DataError(
            f"pairs.merges: {merges} has {encoder.vocabulary} ids; expected those of the shards, "
            f"data.vocabulary = {vocabulary}"
        )
    return encoder.encode
