"""Owns the configurations that have a name of their own, so that tests and benchmarks agree on them.

It must not know data or optimizers; a study's own file spells its configuration out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.config import Model
from trainer.models import build_model


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model, the vocabulary it is meant for, and the tokens it has places for."""

    model: Model
    vocabulary: int
    context: int

    def parameter_count(self) -> int:
        """How many numbers it learns, found without allocating them."""
        with torch.device("meta"):
            model = build_model(
                self.model, vocabulary=self.vocabulary, context=self.context, seed=0
            )
        return sum(parameter.tensor.numel() for parameter in model.roled_parameters())


NAMED: Mapping[str, NamedModel] = {
    "ngpt-quickstart": NamedModel(Model(), vocabulary=256, context=64),
    "ngpt-155m": NamedModel(
        Model(layers=11, width=768, heads=6, hidden=2048, pad_vocabulary_to=128),
        vocabulary=50_257,
        context=1024,
    ),
    "gpt2-small-bytes": NamedModel(
        Model(kind="gpt2", layers=3, width=96, heads=3, hidden=384), vocabulary=256, context=64
    ),
    "gpt2-27m": NamedModel(
        Model(kind="gpt2", layers=6, width=512, heads=8, hidden=2048),
        vocabulary=16_000,
        context=128,
    ),
    "microgpt": NamedModel(
        Model(kind="microgpt", layers=1, width=16, heads=4, hidden=64), vocabulary=27, context=16
    ),
    "gpt2-124m": NamedModel(
        Model(kind="gpt2", layers=12, width=768, heads=12, hidden=3072),
        vocabulary=50_257,
        context=1024,
    ),
    "ltg-bert-base": NamedModel(
        Model(kind="ltg_bert", layers=12, width=768, heads=12, hidden=2048),
        vocabulary=16_385,  # the mask is one of them
        context=512,
    ),
}
