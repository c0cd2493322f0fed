"""Owns the quick benchmark: a few small architectures of one size, trained on names, seed by seed.

It must not know how a run is compared; it makes runs and hands their events on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainer.comparison import FinishedRun, read_run
from trainer.config import parse
from trainer.events import EventWriter
from trainer.stopping import Progress
from trainer.timing import PhaseClock
from trainer.train import train

BATCH_SIZE = 4

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "microgpt": {"kind": "microgpt", "layers": 1, "width": 16, "heads": 4, "hidden": 64},
    "gpt2": {"kind": "gpt2", "layers": 1, "width": 16, "heads": 4, "hidden": 64},
    "ngpt": {
        "kind": "ngpt",
        "layers": 1,
        "width": 16,
        "heads": 4,
        "hidden": 42,
        "project_every": 1,
    },
}
"""About 4,200 parameters each, all under AdamW with one learning rate, so that shape alone differs."""


def quick_config(
    model: Mapping[str, Any], *, seed: int, steps: int, threads: int
) -> dict[str, Any]:
    """The configuration of one run of the benchmark."""
    rate = 0.01
    return {
        "model": dict(model),
        "optim": {
            "kind": "adamw",
            "adam": {
                **dict.fromkeys(("embedding_lr", "head_lr", "scalar_lr", "matrix_lr"), rate),
                "beta1": 0.85,
                "beta2": 0.99,
                "eps": 1e-8,
            },
        },
        "data": {
            "kind": "names",
            "context": 16,
            "batch_size": BATCH_SIZE,
            "validation_share": 0.2,
        },
        "schedule": {"kind": "linear"},
        "eval": {
            "probe_tokens": 32_768,
            "confirmation_tokens": 32_768,
            "windows_per_pass": 1024,
            "every_tokens": max(1, steps // 20) * BATCH_SIZE * 16,
            "near": 0.0,
        },
        "summary": {"losses": True, "samples": 10},
        "run": {"seed": seed, "max_steps": steps, "device": "cpu", "threads": threads},
    }


def architectures(
    *, steps: int, repeats: int, say: Callable[[str], None]
) -> dict[str, list[FinishedRun]]:
    """Finished runs by architecture, on one thread and on all cores.

    Seeds are the outer loop and arms the inner one, so that a machine that changes its speed
    changes it for all of them.
    """
    cores = len(os.sched_getaffinity(0))
    arms: dict[str, list[FinishedRun]] = {}
    for seed in range(1, repeats + 1):
        for threads in sorted({1, cores}):
            for name, model in ARCHITECTURES.items():
                arm = name if cores == 1 else f"{name}, {threads} thread{'s' * (threads > 1)}"
                config = quick_config(model, seed=seed, steps=steps, threads=threads)
                run = finished(config)
                arms.setdefault(arm, []).append(run)
                say(f"{arm}, seed {seed}: val loss {run.final_loss:.4f} in {run.train_s:.2f} s")
    return arms


def finished(raw: Mapping[str, Any]) -> FinishedRun:
    """Train in this process, from a clock that begins now."""
    lines: list[bytes] = []

    def write(line: bytes) -> None:
        lines.append(line)

    clock = PhaseClock(time.monotonic())
    train(
        parse(raw, "quick benchmark"),
        events=EventWriter(write, clock.read),
        clock=clock,
        progress=Progress(),
        stop_requested=lambda: False,
        say=_ignored,
    )
    run = read_run(map(json.loads, lines), "quick benchmark")
    assert run is not None  # a run that fails raises
    return run


def _ignored(_said: str) -> None:
    """A line for each look would bury the table."""
