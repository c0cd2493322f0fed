"""Owns the written side of the event protocol: one strict JSON object per line, appended whole.

It must not know what an event means to its reader, nor import torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import ConfigError

PROTOCOL_VERSION = 1
EVENTS_VARIABLE = "SWEEP_EVENTS"
RUN_DIR_VARIABLE = "SWEEP_RUN_DIR"
EVENTS_FILE = "events.jsonl"


class Sink(Protocol):
    """Where finished lines go."""

    def __call__(self, line: bytes) -> None:
        """Append one line, newline included."""


class EventWriter:
    """Numbers events, stamps them with the clock, and writes each as one strict JSON line.

    `read_clock` gives the cumulative seconds per phase. Non-finite floats are written as null, and
    an event that had one is marked `"diverged": true`.
    """

    def __init__(self, sink: Sink, read_clock: Callable[[], Mapping[str, float]]) -> None:
        self._sink = sink
        self._read_clock = read_clock
        self._seq = 0

    def emit(self, event: str, step: int, tokens: int, **fields: object) -> None:
        """Write one event; OSError from the sink passes through."""
        clock = {phase: round(seconds, 6) for phase, seconds in self._read_clock().items()}
        head = {
            "v": PROTOCOL_VERSION,
            "seq": self._seq,
            "event": event,
            "step": step,
            "tokens": tokens,
            "clock": clock,
        }
        body, finite = _strict(fields)
        if not finite:
            body["diverged"] = True
        text = json.dumps({**head, **body}, allow_nan=False, separators=(",", ":"))
        self._sink(text.encode() + b"\n")
        self._seq += 1


def open_sink(environment: Mapping[str, str]) -> Sink:
    """The sink that the environment asks for: SWEEP_EVENTS, else SWEEP_RUN_DIR, else nowhere.

    SWEEP_EVENTS is a path or `fd:N`; SWEEP_RUN_DIR gets a file `events.jsonl`. Each line is one
    append to the descriptor, so a reader never sees half a line unless the disk is full.
    Raises ConfigError when it cannot be opened.
    """
    named = environment.get(EVENTS_VARIABLE)
    folder = environment.get(RUN_DIR_VARIABLE)
    if named and named.startswith("fd:"):
        return _descriptor_sink(_inherited_descriptor(named))
    if not named and not folder:
        return _nowhere
    path = Path(named) if named else Path(folder or "") / EVENTS_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        variable = EVENTS_VARIABLE if named else RUN_DIR_VARIABLE
        raise ConfigError(
            f"{variable}: events cannot be written to {path} ({error.strerror}); "
            "expected a file in an existing, writable folder"
        ) from None
    return _descriptor_sink(descriptor)


def _inherited_descriptor(named: str) -> int:
    try:
        descriptor = int(named.removeprefix("fd:"))
        os.fstat(descriptor)
    except (ValueError, OSError):
        raise ConfigError(
            f"{EVENTS_VARIABLE} = {named!r}: expected a path, or fd:N with an open descriptor"
        ) from None
    return descriptor


def _descriptor_sink(descriptor: int) -> Sink:
    def write(line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[os.write(descriptor, left) :]

    return write


def _nowhere(line: bytes) -> None:
    """Nobody asked for events; people read standard output instead."""


def _strict(value: Any) -> tuple[Any, bool]:
    """The value with null for every non-finite float, and whether all were finite."""
    if isinstance(value, float):
        return (value, True) if math.isfinite(value) else (None, False)
    if isinstance(value, Mapping):
        pairs = {key: _strict(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, all(ok for _, ok in pairs.values())
    if isinstance(value, list | tuple):
        items = [_strict(item) for item in value]
        return [item for item, _ in items], all(ok for _, ok in items)
    return value, True
