"""What is read out of an attempt's folder: while it runs for display, once it has ended as facts.

It must not know databases, or who put the attempt there; nothing here writes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from sweeper.events import EventError, Fold, finite, parse_line
from sweeper.objective import best_value
from sweeper.paths import AttemptPaths
from sweeper.spec import AttemptOutcome, AttemptSpec, SpecError
from sweeper.trial import AttemptFacts, DeviceSample, Outcome, Phases, Reason

MOST_SAMPLES = 1000
_FIGURES = ("utilisation", "power_w", "temperature_c", "clock_mhz")


def read_events(paths: AttemptPaths, metric: str) -> Fold:
    """Fold an attempt's normalised stream up to its end, or to a line that a full disk tore."""
    fold = Fold(metric)
    with contextlib.suppress(FileNotFoundError, EventError), paths.events.open("rb") as file:
        for line in file:
            if line.strip():
                fold.add(parse_line(line))
    return fold


def collect(paths: AttemptPaths, metric: str) -> AttemptFacts | None:
    """All that is known after an attempt, or None while it has no outcome.

    An outcome file that cannot be read (a torn disk) becomes a `lost` failure.
    """
    try:
        outcome = AttemptOutcome.read(paths.outcome)
    except FileNotFoundError:
        return None
    except (SpecError, OSError) as error:
        return lost(paths, f"the outcome file cannot be read: {error}")
    fold = read_events(paths, metric)
    started: Mapping[str, Any] = fold.started or {}
    curve, device = tuple(fold.curve), _device(outcome)
    spec = _spec(paths)
    former = _continued(paths, metric, started, spec)
    resumed, counts_from = started.get("resumed_from"), started.get("counts_from") or {}
    if former is not None and isinstance(resumed, Mapping):
        step = resumed["step"] - counts_from.get("step", 0)
        curve = (*(e for e in former.curve if e.step <= step), *curve)
        train_s = _train_s(resumed) - _train_s(counts_from)
        device["continues"] = {"attempt": former.attempt, "train_s": train_s}
    if spec is not None and spec.start_from:
        said = {k: v for k, v in spec.start_from.items() if k != "offset"}
        device["starts_from"] = {**said, **counts_from}
    finished: Mapping[str, Any] = fold.finished or {}
    train_s = fold.clock.train
    return AttemptFacts(
        attempt=outcome.attempt,
        outcome=outcome.outcome,
        reason=outcome.reason,
        message=outcome.message,
        curve=curve,
        phases=fold.clock,
        steps=fold.step,
        tokens=fold.tokens,
        best_loss=best_value(curve),
        tokens_per_s=fold.tokens / train_s if train_s > 0 and fold.tokens else None,
        peak_memory_bytes=_whole(finished.get("peak_memory_bytes")),
        cap_s=outcome.cap_s,
        wall_s=outcome.wall_s,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        exit_code=outcome.exit_code if outcome.signal is None else -outcome.signal,
        device=device,
        validity=outcome.validity,
        fingerprint={
            "hardware": started.get("hardware"),
            "versions": started.get("versions"),
            "data_hash": started.get("data_hash"),
            "trainer": started.get("trainer"),
        },
        clock_source=outcome.clock_source,
    )


def lost(paths: AttemptPaths, message: str) -> AttemptFacts:
    """What is known of an attempt whose runner vanished without an outcome: that it is lost."""
    try:
        spec = AttemptSpec.read(paths.spec)
        attempt = spec.attempt
        started_at = paths.spec.stat().st_mtime
    except (SpecError, OSError):
        attempt = int(paths.folder.name.removeprefix("attempt-"))
        started_at = 0.0
    return AttemptFacts(
        attempt=attempt,
        outcome=Outcome.FAILED,
        reason=Reason.LOST,
        message=message,
        started_at=started_at,
        ended_at=started_at,
    )


def read_samples(paths: AttemptPaths) -> list[DeviceSample]:
    """Looks at the device while the attempt ran, at most MOST_SAMPLES of them, evenly spread."""
    found = []
    with contextlib.suppress(OSError), paths.samples.open("rb") as file:
        for line in file:
            try:
                sample = json.loads(line)
                device, at_s = str(sample["device"]), float(sample["at_s"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # torn by a full disk
            figures = {name: finite(sample.get(name)) for name in _FIGURES}
            memory = _whole(sample.get("memory_bytes"))
            found.append(DeviceSample(device, at_s, memory_bytes=memory, **figures))
    every = max(1, math.ceil(len(found) / MOST_SAMPLES))
    return found[::every]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Follow:
    """Reads what was added to an attempt's event stream since the last look.

    Used by the loop for its display only; what is recorded is read once, when the attempt has ended.
    """

    def __init__(self, paths: AttemptPaths) -> None:
        self._path = paths.events
        self._offset = 0
        self._rest = b""

    def new(self) -> list[dict[str, Any]]:
        """Whole new events; an unreadable line is skipped, a missing file has none."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(1 << 20)
        except OSError:
            return []
        self._offset += len(data)
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                found.append(event)
        return found


def _spec(paths: AttemptPaths) -> AttemptSpec | None:
    try:
        return AttemptSpec.read(paths.spec)
    except (SpecError, OSError):
        return None


def _train_s(said: Mapping[str, Any]) -> float:
    return Phases.from_mapping(said.get("clock") or {}).train


def _continued(
    paths: AttemptPaths, metric: str, started: Mapping[str, Any], spec: AttemptSpec | None
) -> AttemptFacts | None:
    """The attempt that this one went on from, if its trainer says that it did."""
    resumed = started.get("resumed_from")
    if spec is None or not isinstance(resumed, Mapping) or not _whole(resumed.get("step")):
        return None
    trial, attempt = paths.folder.parent, spec.continues
    if not attempt and spec.start_from.get("extends"):
        trial, attempt = trial.with_name(spec.start_from["of"]), spec.start_from["attempt"]
    return collect(AttemptPaths(trial / f"attempt-{attempt}"), metric) if attempt else None


def _device(outcome: AttemptOutcome) -> dict[str, Any]:
    """The device, how the trainer was started, what was observed and what was adjusted for memory."""
    device = {**outcome.device, "start": "warm" if outcome.warm else "cold"}
    if outcome.observed:
        device["observed"] = dict(outcome.observed)
    if outcome.adjusted:
        device["adjusted"] = dict(outcome.adjusted)
    return device
