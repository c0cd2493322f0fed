"""Owns the measurement of one configuration: speed, shares of a step, memory, time to the start.

It must not know how a step is made; it times the parts of a real run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainer.config import Checkpoint, Config, as_dict
from trainer.continuation import Continuation
from trainer.events import EventWriter
from trainer.hardware import describe, peak_memory_bytes, versions
from trainer.loop import TrainingLoop
from trainer.roles import Role, RoledParameter
from trainer.stopping import Progress
from trainer.timing import PhaseClock
from trainer.train import build_loop, prepare_device


def measure(config: Config, *, steps: int, clock: PhaseClock) -> dict[str, Any]:
    """Train `config` for `steps` steps and report, as JSON values.

    `clock` has run since the start of the process. Whole steps are timed first, undisturbed; then
    as many with a wait for the device between forward, backward and update, which gives the shares.
    Raises what a run raises.
    """
    config = dataclasses.replace(config, checkpoint=Checkpoint())  # a measurement saves nothing
    device = prepare_device(config, clock)
    loop, facts = build_loop(
        config,
        device,
        events=EventWriter(_unwritten, clock.read),
        clock=clock,
        progress=Progress(),
        stop_requested=lambda: False,
        say=_ignored,
        continuation=Continuation(),
    )
    with clock.during("compile"):
        loop.warm_up()
    loop.learn(0)
    seconds = clock.read()
    clock.enter("train")
    whole_s = _timed(lambda: [loop.learn(step) for step in range(1, steps + 1)], clock) / steps
    shares = _shares(loop, steps, clock)
    probe_s = _timed(lambda: loop.evaluator.loss("probe"), clock)
    tokens = loop.batches.tokens_per_step
    between_probes_s = config.eval.every_tokens / tokens * whole_s
    flops = flops_per_token(config, loop.parameters)
    return {
        "config": as_dict(config),
        "hardware": describe(device),
        "versions": versions(),
        "parameter_count": facts["parameter_count"],
        "steps": steps,
        "tokens_per_step": tokens,
        "start_to_first_step_s": sum(seconds.values()),
        "start_s": {phase: value for phase, value in seconds.items() if value},
        "compile_s": seconds["compile"],
        "ms_per_step": whole_s * 1e3,
        "tokens_per_s": tokens / whole_s,
        "flops_per_token": flops,
        "model_flops_per_s": flops * tokens / whole_s,
        "share_of_step": shares,
        "probe_s": probe_s,
        "eval_share_far_from_target": probe_s / (probe_s + between_probes_s),
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def flops_per_token(config: Config, parameters: Sequence[RoledParameter]) -> float:
    """Multiplications and additions of forward and backward per token, in the usual accounting.

    6 for each weight of a matrix or the head (the embedding is looked up, not multiplied), and
    6 * layers * width * context for causal attention.
    """
    multiplied = sum(
        parameter.tensor.numel()
        for parameter in parameters
        if parameter.role in (Role.MATRIX, Role.HEAD)
    )
    attention = config.model.layers * config.model.width * config.data.context
    return 6.0 * (multiplied + attention)


def _shares(loop: TrainingLoop, steps: int, clock: PhaseClock) -> dict[str, float]:
    """Parts of a step that take forward, backward and update; they add up to 1."""
    parts = {"data": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        result: list[Any] = []
        parts[part] += _timed(lambda: result.append(work()), clock)
        return result[0]

    optimizer = loop.optimizer
    for step in range(steps):
        tokens, targets = timed("data", lambda step=step: loop.batches.at(step))  # type: ignore[misc]
        optimizer.clear_gradients()
        size = loop.micro_batch or len(tokens)
        for x, y in zip(torch.split(tokens, size), torch.split(targets, size), strict=True):
            loop.before_pass()
            loss = timed("forward", lambda x=x, y=y: loop.model(x, y))  # type: ignore[misc]
            timed(
                "backward",
                lambda loss=loss: torch.autograd.backward(optimizer.scale_loss(loss)),  # type: ignore[misc]
            )

        def update(number: int = step + 1) -> None:
            optimizer.unscale_gradients()
            if loop.clip_norm:
                optimizer.clip_gradients(loop.clip_norm)
            optimizer.step(number)

        timed("optimizer", update)
    total = sum(parts.values())
    return {part: seconds / total for part, seconds in parts.items()}


def _timed(work: Callable[[], Any], clock: PhaseClock) -> float:
    clock.synchronize()
    began_at = time.monotonic()
    work()
    clock.synchronize()
    return time.monotonic() - began_at


def _unwritten(line: bytes) -> None:
    """A measurement has no reader of events."""


def _ignored(_said: str) -> None:
    """Nor one of its lines."""
