"""Owns the architectures, one file each, and the choice between them by name.

It must not know optimizers, data or clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Generator, Tensor

from trainer.config import Model as ModelConfig
from trainer.models.ngpt import NGPT
from trainer.roles import RoledParameter


class LanguageModel(Protocol):
    """What the loop and the optimizers need of an architecture."""

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) after `tokens` (B, T); both int64."""

    def roled_parameters(self) -> Sequence[RoledParameter]:
        """Every trainable tensor, each exactly once, with its role."""


def build_model(config: ModelConfig, *, vocabulary: int, context: int, seed: int) -> NGPT:
    """The configured architecture with weights drawn from `seed` (on the CPU, in float32)."""
    generator = Generator().manual_seed(seed)
    return NGPT(
        vocabulary=vocabulary,
        context=context,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        hidden=config.hidden,
        alpha=config.alpha,
        logit_scale=config.logit_scale,
        rope_base=config.rope_base,
        generator=generator,
    )
