"""Owns the choice between architectures by name; each has one file of its own.

It must not know optimizers, data or clocks. A new architecture is a file with a class that has what
`LanguageModel` asks for, an entry in `_BUILDERS`, and its name among the choices of `model.kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Generator, Tensor, nn

from trainer.config import Model as ModelConfig
from trainer.errors import ConfigError
from trainer.models.attention import refuse_attention
from trainer.models.gpt2 import GPT2
from trainer.models.ltg_bert import LTGBert
from trainer.models.microgpt import MicroGPT
from trainer.models.ngpt import NGPT
from trainer.models.precision import DTYPES, refuse_precision
from trainer.roles import RoledParameter

__all__ = ["LanguageModel", "build_model", "refuse_attention", "refuse_precision"]

Network = NGPT | GPT2 | MicroGPT | LTGBert


class LanguageModel(Protocol):
    """What the loop and the optimizers need of an architecture."""

    blocks: nn.ModuleList

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T); both int64.

        Targets that are `roles.IGNORED` do not count.
        """

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V): scores of what follows each token, or stands in its place."""

    def roled_parameters(self) -> Sequence[RoledParameter]:
        """Every trainable tensor, each exactly once, with its role."""


def build_model(
    config: ModelConfig, *, vocabulary: int, context: int, seed: int, precision: str = "fp32"
) -> Network:
    """The configured architecture with float32 weights drawn from `seed` on the CPU.

    It embeds `vocabulary` tokens rounded up to a multiple of `model.pad_vocabulary_to`, has places
    for `model.context` tokens (0: for `context`), and computes in `precision`. ConfigError when the
    heads do not divide the width or `context` tokens do not fit.
    """
    if config.width % config.heads:
        raise ConfigError(
            f"model.heads = {config.heads}: expected a divisor of model.width = {config.width}"
        )
    places = config.context or context
    if context > places:
        raise ConfigError(
            f"data.context = {context}: expected at most model.context = {places}, the places that "
            "the model has"
        )
    shape: dict[str, Any] = {
        "vocabulary": -(-vocabulary // config.pad_vocabulary_to) * config.pad_vocabulary_to,
        "context": places,
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "hidden": config.hidden,
        "compute_dtype": None if precision == "fp32" else DTYPES[precision],
        "generator": Generator().manual_seed(seed),
    }
    return _BUILDERS[config.kind](config, shape)


def _ngpt(config: ModelConfig, shape: Mapping[str, Any]) -> NGPT:
    return NGPT(
        alpha=config.alpha,
        logit_scale=config.logit_scale,
        rope_base=config.rope_base,
        attention=config.attention,
        **shape,
    )


def _gpt2(config: ModelConfig, shape: Mapping[str, Any]) -> GPT2:
    return GPT2(attention=config.attention, **shape)


def _microgpt(config: ModelConfig, shape: Mapping[str, Any]) -> MicroGPT:
    return MicroGPT(attention=config.attention, **shape)


def _ltg_bert(config: ModelConfig, shape: Mapping[str, Any]) -> LTGBert:
    return LTGBert(position_buckets=config.position_buckets, **shape)


_BUILDERS: Mapping[str, Callable[[ModelConfig, Mapping[str, Any]], Network]] = {
    "ngpt": _ngpt,
    "gpt2": _gpt2,
    "microgpt": _microgpt,
    "ltg_bert": _ltg_bert,
}
