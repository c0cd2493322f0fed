"""Owns the assembly of one run from its configuration, and what is said at its start and end.

It must not know update rules or architectures; it picks them by name and hands them to the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trainer.config import Config, as_dict
from trainer.data.batches import TrainingBatches, on_device, spread_windows
from trainer.data.corpora import Corpus, load_corpus
from trainer.errors import OutOfMemoryError
from trainer.evaluate import Cadence, Evaluator, Windows
from trainer.events import EventWriter
from trainer.hardware import choose_device, describe, peak_memory_bytes, versions
from trainer.loop import StopReason, TrainingLoop
from trainer.models import build_model
from trainer.optim.build import build_optimizer
from trainer.stopping import Progress, Targets, has_diverged
from trainer.timing import PhaseClock


def train(
    config: Config,
    *,
    events: EventWriter,
    clock: PhaseClock,
    progress: Progress,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
) -> StopReason:
    """Run `config` to its end; emits run_started first and run_finished last.

    `progress` is kept up to date, so that the caller can say how far a failed run had come. Raises
    DataError, ConfigError (no such device), DivergedError, OutOfMemoryError.
    """
    with _memory_errors_named(config):
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        device = choose_device(config.run.device)
        if device.type == "cuda":
            clock.synchronize = torch.cuda.synchronize
        with clock.during("data"):
            corpus = load_corpus(config.data)
            batches, probe, confirmation = _slices(config, corpus, device)
        model = build_model(
            config.model,
            vocabulary=corpus.vocabulary,
            context=config.data.context,
            seed=config.run.seed,
        ).to(device)
        parameters = model.roled_parameters()
        optimizer = build_optimizer(
            parameters, config.optim, project_every=config.model.project_every
        )
        parameter_count = sum(parameter.tensor.numel() for parameter in parameters)
        events.emit(
            "run_started",
            0,
            0,
            config=as_dict(config),
            hardware=describe(device),
            versions=versions(),
            data_hash=f"sha256:{corpus.sha256}",
            data_source=corpus.source,
            parameter_count=parameter_count,
        )
        say(f"{config.model.kind}, {parameter_count:,} parameters, {device.type}; {corpus.source}")
        loop = TrainingLoop(
            model=model,
            optimizer=optimizer,
            batches=batches,
            evaluator=Evaluator(model, probe, confirmation, config.eval.windows_per_pass),
            cadence=Cadence(config.eval.every_tokens, config.eval.near, config.eval.double_after),
            targets=Targets(config.run.target, config.run.fallback_targets),
            has_diverged=functools.partial(
                has_diverged, vocabulary=corpus.vocabulary, explosion=config.run.explosion
            ),
            max_steps=config.run.max_steps,
            stop_requested=stop_requested,
            progress=progress,
            clock=clock,
            events=events,
            say=say,
        )
        reason = loop.run()
        _finish(reason, loop, device)
        return reason


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


def _slices(
    config: Config, corpus: Corpus, device: torch.device
) -> tuple[TrainingBatches, Windows, Windows]:
    """Training batches, probe and confirmation slice."""
    context = config.data.context
    batches = TrainingBatches(
        on_device(corpus.train, device),
        context=context,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
    )
    held_out = on_device(corpus.validation, device)
    probe, confirmation = (
        spread_windows(held_out, context=context, count=tokens // context, name=name)
        for name, tokens in (
            ("probe", config.eval.probe_tokens),
            ("confirmation", config.eval.confirmation_tokens),
        )
    )
    return batches, probe, confirmation


def _finish(reason: StopReason, loop: TrainingLoop, device: torch.device) -> None:
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
    )
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
