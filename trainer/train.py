"""Owns the assembly of one run from its configuration, and what is said at its start and end.

It must not know update rules or architectures; it picks them by name and hands them to the loop.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trainer.compilation import compiled, keep_compiled_code, uncompiled
from trainer.config import Config, as_dict
from trainer.continuation import Continuation
from trainer.data.batches import Audit
from trainer.data.corpora import load_corpus
from trainer.data.names import MARK, spelled
from trainer.errors import OutOfMemoryError
from trainer.evaluate import Cadence, Evaluator
from trainer.events import EventWriter
from trainer.hardware import choose_device, describe, peak_memory_bytes, use_threads, versions
from trainer.loop import StopReason, TrainingLoop
from trainer.models import LanguageModel, build_model, refuse_attention, refuse_precision
from trainer.objective import build_milestones, build_task
from trainer.optim.build import Optimizer, build_optimizer
from trainer.origin import Origin, find_origin
from trainer.roles import RoledParameter
from trainer.stopping import Patience, Progress, Smoothing, Targets, has_diverged
from trainer.summary import LossRecord, generate
from trainer.timing import PhaseClock

NO_SPLIT = (
    "no split (data.train_on_all): what is held out is trained on too, so validation losses are not "
    "those of unseen text"
)


def train(
    config: Config,
    *,
    events: EventWriter,
    clock: PhaseClock,
    progress: Progress,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
    continuation: Continuation | None = None,
) -> StopReason:
    """Run `config` to its end; emits run_started first and run_finished last.

    `progress` is kept up to date, so that the caller can say how far a failed run had come. Raises
    DataError, ConfigError (no such device), CheckpointError, DivergedError, OutOfMemoryError.
    """
    with _memory_errors_named(config):
        device = prepare_device(config, clock)
        loop, facts = build_loop(
            config,
            device,
            events=events,
            clock=clock,
            progress=progress,
            stop_requested=stop_requested,
            say=say,
            continuation=continuation or Continuation(),
        )
        events.emit("run_started", progress.step, progress.tokens, **facts)
        say(
            f"{config.model.kind}, {facts['parameter_count']:,} parameters, {device.type}; "
            f"{facts['data_source']}"
        )
        for kind, message in loop.warnings:
            events.emit("warning", progress.step, progress.tokens, kind=kind, message=message)
            say(f"warning: {message}")
        reason = loop.run()
        _finish(reason, loop, device, generated(config, loop, device))
        return reason


def build_loop(
    config: Config,
    device: torch.device,
    *,
    events: EventWriter,
    clock: PhaseClock,
    progress: Progress,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
    continuation: Continuation,
) -> tuple[TrainingLoop, dict[str, Any]]:
    """The run of `config`, ready to start, and what `run_started` tells about it."""
    with clock.during("data"):
        corpus = load_corpus(config.data)
        task = build_task(config, corpus, device)
    with clock.during("checkpoint"):
        origin = find_origin(config, continuation, corpus)
    if config.run.compile != "off":
        keep_compiled_code(config.run.compile_cache, device)
    model, optimizer, parameters = _model_and_optimizer(config, task.vocabulary, device, origin)
    callable_model, before_pass = compiled(model, config.run)
    logits = uncompiled(model.logits, config.run)
    with clock.during("data"):
        milestones, cut = build_milestones(
            config, corpus, task, logits=logits, device=device, max_steps=origin.max_steps
        )
    evaluator = Evaluator(
        callable_model, task.probe, task.confirmation, config.eval.windows_per_pass
    )
    if corpus.characters is not None:
        evaluator.count_characters(torch.from_numpy(corpus.characters))
    loop = TrainingLoop(
        model=callable_model,
        parameters=parameters,
        optimizer=optimizer,
        batches=task.batches,
        micro_batch=config.data.micro_batch,
        clip_norm=config.run.clip_norm,
        schedule=origin.schedule,
        evaluator=evaluator,
        cadence=Cadence(config.eval.every_tokens, config.eval.near, config.eval.double_after),
        targets=Targets(config.run.target, config.run.fallback_targets),
        smoothing=Smoothing(config.stop.smoothing_steps),
        patience=Patience(config.stop.patience_tokens, config.stop.min_delta),
        patience_on_validation=config.stop.watch == "validation",
        has_diverged=functools.partial(
            has_diverged, vocabulary=task.vocabulary, explosion=config.run.explosion
        ),
        max_steps=origin.max_steps,
        stop_requested=stop_requested,
        checkpoints=origin.folder,
        checkpointing=config.checkpoint,
        identity=origin.identity,
        before_pass=before_pass,
        progress=progress,
        clock=clock,
        events=events,
        say=say,
        record=LossRecord(config.summary),
        logits=logits,
        warm_evaluation=config.run.compile != "off" or device.type == "cuda",
        milestones=milestones,
    )
    facts = {
        "config": as_dict(config),
        "hardware": describe(device),
        "versions": versions(),
        "data_hash": f"sha256:{corpus.sha256}",
        "data_source": corpus.source,
        "data_audit": task.audit.as_dict() | _epochs(task.audit, config, origin),
        "scored": evaluator.scored(),
        "parameter_count": sum(parameter.tensor.numel() for parameter in parameters),
    }
    if origin.state is not None:
        loop.restore(origin.state)
    facts |= _where_it_begins(origin, progress)
    loop.warnings.extend(("damaged_checkpoint", message) for message in origin.warnings)
    loop.warnings.extend(_warnings_about_data(config, task.audit, cut))
    return loop, facts


def _model_and_optimizer(
    config: Config, vocabulary: int, device: torch.device, origin: Origin
) -> tuple[LanguageModel, Optimizer, Sequence[RoledParameter]]:
    model = build_model(
        config.model,
        vocabulary=vocabulary,
        context=config.data.context,
        seed=config.run.seed,
        precision=config.run.precision,
    ).to(device)
    parameters = model.roled_parameters()
    origin.load_weights(parameters)  # first: the optimizer projects what it is given
    optimizer = build_optimizer(
        parameters,
        config.optim,
        project_every=config.model.project_every,
        precision=config.run.precision,
        compiled=config.run.compile != "off" and device.type == "cuda",
    )
    return model, optimizer, parameters


def _where_it_begins(origin: Origin, progress: Progress) -> dict[str, Any]:
    """The schedule of the run, and the checkpoint from which it goes on, if it does."""
    facts: dict[str, Any] = {"schedule": origin.schedule.as_dict()}
    if origin.state is not None:
        facts["resumed_from"] = {
            "path": str(origin.path),
            "step": progress.step,
            "tokens": progress.tokens,
            "clock": origin.state["clock"],
        }
    return facts


def _epochs(audit: Audit, config: Config, origin: Origin) -> dict[str, float]:
    """Epochs done before this run begins, and when all its steps are done."""
    before = origin.state["progress"][0] if origin.state else 0
    size = config.data.batch_size
    return {
        "epochs_before": audit.epochs(before, size),
        "epochs_planned": audit.epochs(origin.max_steps, size),
    }


def _warnings_about_data(config: Config, audit: Audit, cut: int) -> Iterator[tuple[str, str]]:
    """Kind and message of each thing that makes losses look better, or other, than they are."""
    if config.data.train_on_all:
        yield "no_split", NO_SPLIT
    if audit.overlap:
        message = (
            f"training windows overlap by {audit.overlap} of {audit.context} tokens "
            f"(data.stride = {audit.stride}): an epoch has {audit.samples:,} samples and learns from "
            f"each token {audit.exposures:.1f} times"
        )
        yield "overlap", message
    if cut:
        yield "pairs_cut", f"{cut} sentences of pairs.path lose their beginning to data.context"


def prepare_device(config: Config, clock: PhaseClock) -> torch.device:
    """The device of the run, able to do what the configuration asks; ConfigError otherwise."""
    use_threads(config.run.threads, os.environ)
    device = choose_device(config.run.device)
    refuse_precision(config.run.precision, device)
    if config.model.attention != "auto":
        refuse_attention(config.model.attention, device, config.run.precision)
    if device.type == "cuda":
        clock.synchronize = torch.cuda.synchronize
    return device


@contextmanager
def _memory_errors_named(config: Config) -> Iterator[None]:
    """Turn every way in which an allocation fails into an OutOfMemoryError with advice."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(_advice(config, error)) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # what torch's CPU allocator says
            raise
        raise OutOfMemoryError(_advice(config, error)) from error


def generated(config: Config, loop: TrainingLoop, device: torch.device) -> list[str]:
    """The names that `summary.samples` asks for, drawn from `run.seed`."""
    if not config.summary.samples:
        return []
    with loop.clock.during("eval"):
        rows = generate(
            loop.logits,
            count=config.summary.samples,
            places=config.data.context,
            mark=MARK,
            temperature=config.summary.temperature,
            seed=config.run.seed,
            device=device,
        )
    return [spelled(row) for row in rows]


def _finish(
    reason: StopReason, loop: TrainingLoop, device: torch.device, samples: Sequence[str]
) -> None:
    progress, train_s = loop.progress, loop.clock.read()["train"]
    loop.events.emit(
        "run_finished",
        progress.step,
        progress.tokens,
        reason=reason,
        best_loss=progress.best_loss,
        confirmed_targets=sorted(loop.targets.confirmed, reverse=True),
        tokens_per_s=progress.tokens / train_s if train_s > 0 else None,
        peak_memory_bytes=peak_memory_bytes(device),
        **loop.record.describe(),
        **({"samples": list(samples)} if samples else {}),
    )
    if samples:
        loop.say(f"generated: {', '.join(samples)}")
    loop.say(
        f"finished ({reason}) at step {progress.step} after {train_s:.2f} s of training; "
        f"best val loss {progress.best_loss:.4f}"
    )


def _advice(config: Config, error: BaseException) -> str:
    first_line = str(error).partition("\n")[0]
    return (
        f"out of memory with data.batch_size = {config.data.batch_size} and data.context = "
        f"{config.data.context}: lower either, or the size of the model ({first_line})"
    )
