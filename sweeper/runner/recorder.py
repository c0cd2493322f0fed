"""The normalised event stream: every event gets a clock and a number, steps are thinned, then written.

It must not know where events come from, nor when an attempt is to stop.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sweeper.events import (
    KNOWN_EVENTS,
    LARGEST,
    PROTOCOL_VERSION,
    Event,
    EventError,
    Fold,
    seconds,
    strict,
)
from sweeper.trial import Phases

STEP_EVERY_S = 1.0
MOST_OF_A_KIND = 100_000
"""Evaluations, warnings, ... that one attempt may have: memory and disk stay bounded."""
_HEAD = frozenset({"v", "seq", "event", "step", "tokens", "clock"})
_ENDS = frozenset({"run_finished", "run_failed"})


class Before(NamedTuple):
    """What a run had done before the checkpoint that another one begins with."""

    step: int = 0
    tokens: int = 0
    clock: Phases = Phases()

    @classmethod
    def of(cls, said: object) -> Before:
        """From a trainer's `resumed_from`, or a spec's `offset`; nothing, where it is none."""
        if not isinstance(said, Mapping):
            return cls()
        step, tokens = said.get("step"), said.get("tokens")
        clock = Phases()
        with contextlib.suppress(EventError):  # a foreign trainer's idea of it
            clock = seconds(said.get("clock") or {})
        return cls(
            step if isinstance(step, int) else 0, tokens if isinstance(tokens, int) else 0, clock
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as `of` takes them."""
        return {"step": self.step, "tokens": self.tokens, "clock": self.clock.as_dict()}


class Recorder:
    """Writes events.jsonl and folds it as it goes.

    Instants are seconds on the monotonic clock, given by the caller. A writer that gives a clock by
    its first step or evaluation is believed; for any other the clock is the runner's: `startup` up to
    that event, `train` since then, less what evaluations took by the writer's word (`eval_s`).

    `start_from` (see `AttemptSpec`): the attempt began with another run's checkpoint, whose steps,
    tokens and seconds are not its own and are taken off every event.
    """

    def __init__(
        self,
        path: Path,
        metric: str,
        spawned_at: float,
        start_from: Mapping[str, Any] | None = None,
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self.fold = Fold(metric)
        self.bad_lines = 0
        self.first_bad = ""
        self.read = 0
        self.clock_source: Literal["trainer", "runner"] | None = None
        self._spawned_at = spawned_at
        self._start_from = start_from or {}
        self._before: Before | None = None
        self._training_at: float | None = None
        self._stamped_at = spawned_at
        self._eval_s = self._longest_eval_s = 0.0
        self._trainers_clock: Phases | None = None
        self._seq = 0
        self._held: Event | None = None
        self._step_written_at: float | None = None
        self._kinds: Counter[str] = Counter()
        self._out = bytearray()

    def clock_at(self, now: float) -> Phases:
        """The attempt's clock at an instant: the trainer's latest word, or the runner's reading.

        What may be an evaluation under way, of which the writer will only say later how long it took
        (`eval_s`), is not counted as training yet: a cap must not fall for it.
        """
        clock = self._read(now)
        if self.clock_source == "runner" and self._longest_eval_s:
            doubtful_s = min(self._longest_eval_s, now - self._stamped_at)
            return clock._replace(train=clock.train - doubtful_s, eval=clock.eval + doubtful_s)
        return clock

    def _read(self, now: float) -> Phases:
        if self.clock_source == "runner" and self._training_at is not None:
            startup_s = self._training_at - self._spawned_at
            train_s = now - self._training_at - self._eval_s
            return Phases(startup=startup_s, train=train_s, eval=self._eval_s)
        return self._trainers_clock or Phases(startup=now - self._spawned_at)

    def add(self, event: Event, now: float) -> Event | None:
        """Take one event into account; returns it as recorded, or None if it is ignored.

        Raises:
            OSError: the stream cannot be written.
        """
        self.read += 1
        name = event.event
        if name not in KNOWN_EVENTS:
            self.fold.add(event)
            return None
        if name not in _ENDS and name != "step":
            self._kinds[name] += 1
            if self._kinds[name] > MOST_OF_A_KIND:
                self.fold.ignored += 1
                if self._kinds[name] == MOST_OF_A_KIND + 1:
                    self.warn("flood", f"more than {MOST_OF_A_KIND} {name} events: ignored", now)
                return None
        stamped = self._stamp(self._counted_from_the_start(event), now)
        self.fold.add(stamped)
        if name == "step" and not self._step_is_due(now):
            self._held = stamped
        else:
            self._write(stamped)
            if name == "step":
                self._step_written_at = now
        return stamped

    def skip(self, count: int) -> None:
        """Steps of a flood that nobody looked at."""
        self.read += count
        self.fold.events += count

    def bad(self, message: str, now: float) -> None:
        """A line that is no event: counted, and the first few are warned about."""
        self.bad_lines += 1
        self.first_bad = self.first_bad or message
        if self.bad_lines <= 10:
            self.warn("protocol", message, now)

    def warn(self, kind: str, message: str, now: float) -> None:
        """Record a warning of the runner's own.

        Raises:
            OSError: the stream cannot be written.
        """
        body = {"kind": kind, "message": message, "by": "runner"}
        clock = self.clock_at(now)
        event = Event("warning", 0, self.fold.step, self.fold.tokens, clock, body)
        self.fold.warnings.append(message)
        self._write(event)

    def flush(self) -> None:
        """Bring what was recorded to the file.

        Raises:
            OSError: the disk is full or gone.
        """
        while self._out:
            written = os.write(self._descriptor, self._out)
            del self._out[:written]

    def finish(self) -> None:
        """Write the step that thinning held back, so that the stream ends where the trainer did.

        Raises:
            OSError: the disk is full or gone.
        """
        if self._held is not None:
            self._write(self._held)
        self.flush()

    def _counted_from_the_start(self, event: Event) -> Event:
        """The event without what another run did before its checkpoint."""
        if not self._start_from:
            return event
        body = event.body
        if event.event == "run_started" and self._before is None:
            self._before = Before.of(self._start_from.get("offset", body.get("resumed_from")))
            body = {**body, "counts_from": self._before.as_dict()}
        before = self._before or Before()
        clock = event.clock
        if clock is not None:
            own = (max(0.0, s - was) for s, was in zip(clock, before.clock, strict=True))
            clock = Phases(*own)
        step, tokens = max(0, event.step - before.step), max(0, event.tokens - before.tokens)
        return replace(event, step=step, tokens=tokens, clock=clock, body=body)

    def _stamp(self, event: Event, now: float) -> Event:
        if self.clock_source is None and event.event in ("step", "evaluated"):
            given = event.clock or self._trainers_clock
            self.clock_source = "trainer" if given else "runner"
            self._training_at = self._stamped_at = now
        if event.clock is not None and self.clock_source != "runner":
            self._trainers_clock = event.clock
            return event
        if self.clock_source == "runner":
            self._take_off(event, now)
        return Event(event.event, event.seq, event.step, event.tokens, self._read(now), event.body)

    def _take_off(self, event: Event, now: float) -> None:
        """An evaluation's own time is off the train clock: at most what passed since the last event."""
        said = event.body.get("eval_s") if event.event == "evaluated" else None
        if isinstance(said, int | float) and not isinstance(said, bool) and 0 < said < LARGEST:
            took_s = min(said, now - self._stamped_at)
            self._eval_s += took_s
            self._longest_eval_s = max(self._longest_eval_s, took_s)
        self._stamped_at = now

    def _step_is_due(self, now: float) -> bool:
        return self._step_written_at is None or now - self._step_written_at >= STEP_EVERY_S

    def _write(self, event: Event) -> None:
        self._held = None  # what is written now is later than the step that was held back
        head = {"v": PROTOCOL_VERSION, "seq": self._seq, "event": event.event}
        head |= {"step": event.step, "tokens": event.tokens}
        clock = (event.clock or Phases()).as_dict()
        head["clock"] = {phase: round(seconds, 6) for phase, seconds in clock.items()}
        rest: dict[str, Any] = {k: v for k, v in event.body.items() if k not in _HEAD}
        try:
            line = json.dumps(head | strict(rest), allow_nan=False, separators=(",", ":"))
        except RecursionError:
            line = json.dumps(head, allow_nan=False, separators=(",", ":"))
        self._seq += 1
        self._out += line.encode() + b"\n"
        if len(self._out) > 1 << 16:
            self.flush()
