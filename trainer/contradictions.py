"""Owns the rules between the keys of a configuration: what is refused although each value is fine.

It must not import torch, nor read files; it sees a configuration whose single values are good.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from trainer.settings import Problem

if TYPE_CHECKING:  # the configuration asks here, once it has been read
    from trainer.config import Config, Data, Model, Optim, Schedule

EVALUATION_HALVINGS = 2
"""How often the spacing of evaluations is halved on the way to a target."""

_READ_FROM_FILES: Mapping[str, tuple[str, ...]] = {
    "path": ("text", "bytes", "characters"),
    "train": ("shards",),
    "validation": ("shards",),
}


def contradictions(config: Config) -> Iterator[Problem]:
    """Every problem between keys; to be asked only when every single value is fine."""
    data, evaluation, run = config.data, config.eval, config.run
    yield from _model_problems(config.model, data.context)
    yield from _objective_problems(config)
    yield from _optim_problems(config.optim)
    yield from _data_problems(data)
    for name in ("probe_tokens", "confirmation_tokens"):
        tokens = getattr(evaluation, name)
        if tokens % data.context:
            yield Problem(f"eval.{name}", tokens, f"a multiple of data.context = {data.context}")
    if evaluation.confirmation_tokens < evaluation.probe_tokens:
        yield Problem(
            "eval.confirmation_tokens",
            evaluation.confirmation_tokens,
            f"at least eval.probe_tokens = {evaluation.probe_tokens}",
        )
    if evaluation.every_tokens % 2**EVALUATION_HALVINGS:
        yield Problem(
            "eval.every_tokens",
            evaluation.every_tokens,
            f"a multiple of {2**EVALUATION_HALVINGS}, because it is halved near a target",
        )
    if run.fallback_targets and run.target is None:
        yield Problem(
            "run.fallback_targets", list(run.fallback_targets), "none without a run.target"
        )
    if run.target is not None and any(easier <= run.target for easier in run.fallback_targets):
        yield Problem(
            "run.fallback_targets",
            list(run.fallback_targets),
            f"values above run.target = {run.target:g}",
        )
    yield from _schedule_problems(config.schedule)
    if config.summary.samples and data.kind != "names":
        yield Problem("summary.samples", config.summary.samples, '0 unless data.kind is "names"')
    smoothed_tokens = math.ceil(config.stop.smoothing_steps * data.batch_size * data.context)
    if config.stop.watch == "smoothed" and 0 < config.stop.patience_tokens < smoothed_tokens:
        yield Problem(
            "stop.patience_tokens",
            config.stop.patience_tokens,
            f"0, or at least {smoothed_tokens} (stop.smoothing_steps = "
            f"{config.stop.smoothing_steps:g} steps): a shorter patience ends on noise",
        )


def _model_problems(model: Model, context: int) -> Iterator[Problem]:
    if model.width % model.heads:
        yield Problem("model.heads", model.heads, f"a divisor of model.width = {model.width}")
    elif model.kind == "ngpt" and (model.width // model.heads) % 2:
        yield Problem(
            "model.heads", model.heads, f"a divisor of model.width = {model.width} into even parts"
        )
    if model.context and context > model.context:
        yield Problem("data.context", context, f"at most model.context = {model.context}")


def _objective_problems(config: Config) -> Iterator[Problem]:
    """A model that sees both sides must have something hidden from it; one that does not, cannot."""
    objective, pairs = config.objective, config.pairs
    fitting = "masked" if config.model.kind == "ltg_bert" else "causal"
    if objective.kind != fitting:
        yield Problem(
            "objective.kind",
            objective.kind,
            f'"{fitting}" when model.kind is "{config.model.kind}"',
        )
    if objective.kind == "masked" and config.run.compile == "whole":
        # As many logits as hidden tokens: a shape that changes from step to step.
        yield Problem("run.compile", "whole", '"block" or "off" when objective.kind is "masked"')
    if objective.kind == "masked" and config.data.kind == "names":
        yield Problem(
            "data.kind", "names", 'another when objective.kind is "masked": rows are padded'
        )
    if objective.random_share + objective.keep_share > 1:
        yield Problem(
            "objective.keep_share", objective.keep_share, "at most 1 less objective.random_share"
        )
    if pairs.path is None and pairs.at:
        yield Problem("pairs.at", list(pairs.at), "none without pairs.path")
    if pairs.path is not None and config.data.kind in ("characters", "names", "random", "titles"):
        yield Problem("pairs.path", pairs.path, f'none when data.kind is "{config.data.kind}"')
    shards = config.data.kind == "shards"
    if pairs.merges is not None and not shards:
        yield Problem("pairs.merges", pairs.merges, "none unless data.kind is shards")
    if pairs.path is not None and shards and pairs.merges is None:
        yield Problem("pairs.merges", None, "GPT-2's vocab.bpe, to read sentences as shards do")


def _optim_problems(optim: Optim) -> Iterator[Problem]:
    muon, sgd = optim.muon, optim.sgd
    if muon.cautious_weight_decay and muon.cautious_lambda == 0:
        yield Problem(
            "optim.muon.cautious_weight_decay",
            True,
            "false, or optim.muon.cautious_lambda above 0: with a decay of 0 it changes nothing",
        )
    if muon.cautious_weight_decay and muon.weight_decay > 0:
        yield Problem(
            "optim.muon.weight_decay", muon.weight_decay, "0 when cautious_weight_decay is true"
        )
    if muon.momentum_warmup_steps and muon.momentum_start > muon.momentum:
        yield Problem(
            "optim.muon.momentum_start",
            muon.momentum_start,
            f"at most optim.muon.momentum = {muon.momentum:g}, to which it rises",
        )
    if sgd.nesterov and not sgd.momentum:
        yield Problem("optim.sgd.nesterov", True, "false, or optim.sgd.momentum above 0")


def _data_problems(data: Data) -> Iterator[Problem]:
    if data.merges is not None and data.kind != "titles":
        yield Problem("data.merges", data.merges, 'no value unless data.kind is "titles"')
    for name, kinds in _READ_FROM_FILES.items():
        value = getattr(data, name)
        if name == "path" and data.kind in ("titles", "names"):
            continue  # every machine has docstrings and the shipped list: given or not
        if (data.kind in kinds) != (value is not None):
            only_for = " or ".join(f'"{kind}"' for kind in kinds)
            expected = (
                "a file" if data.kind in kinds else f"no value unless data.kind is {only_for}"
            )
            yield Problem(f"data.{name}", value, expected)
    if data.kind == "names" and data.stride:
        yield Problem("data.stride", data.stride, '0 when data.kind is "names", a sequence each')
    if data.micro_batch and data.batch_size % data.micro_batch:
        yield Problem(
            "data.micro_batch",
            data.micro_batch,
            f"a divisor of data.batch_size = {data.batch_size}",
        )


def _schedule_problems(schedule: Schedule) -> Iterator[Problem]:
    if schedule.warmup_steps and schedule.warmup_share:
        yield Problem(
            "schedule.warmup_share", schedule.warmup_share, "0 when schedule.warmup_steps is set"
        )
    if schedule.horizon and schedule.horizon_tokens:
        yield Problem(
            "schedule.horizon_tokens", schedule.horizon_tokens, "0 when schedule.horizon is set"
        )
    if schedule.kind == "wsd" and schedule.warmup_share + schedule.decay_share > 1:
        yield Problem(
            "schedule.decay_share",
            schedule.decay_share,
            "at most what schedule.warmup_share leaves of 1",
        )
