"""The trainer protocol as read: parse a line, fold a stream into what was measured.

It must not know who wrote the lines or where they came from; standard library only (docs/protocol.md).
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.trial import Evaluation, Phases

PROTOCOL_VERSION = 1
LARGEST = 2**63
"""No step, token count or duration is as large as this: a database's whole numbers end here."""
PHASES = tuple(Phases().as_dict())
_NUMBERS = (float, int)  # what JSON has; true is of neither type
KNOWN_EVENTS = frozenset(
    {
        "run_started",
        "step",
        "evaluated",
        "checkpoint_saved",
        "warning",
        "run_finished",
        "run_failed",
    }
)


class EventError(ValueError):
    """A line that is not an event of a version we read."""


@dataclass(frozen=True)
class Event:
    """One protocol line. `clock` is None when a foreign writer gave none; `body` is the whole object."""

    event: str
    seq: int
    step: int
    tokens: int
    clock: Phases | None
    body: Mapping[str, Any]


def _shown(value: Any) -> str:
    """A wrong value in a message; reprlib bounds its length and depth, and its digits."""
    return reprlib.repr(value)


def _whole(body: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise EventError(f"{key}: got {_shown(value)}, expected a whole number from 0 below 2**63")
    return value


def seconds(clock: Any) -> Phases:
    """A protocol `clock`, whose known phases must be finite seconds from 0.

    Raises:
        EventError: it is no such mapping.
    """
    if not isinstance(clock, dict):
        raise EventError(f"clock: got {_shown(clock)}, expected seconds per phase")
    for phase in PHASES:
        value = clock.get(phase, 0.0)
        if type(value) not in _NUMBERS or not 0 <= value < LARGEST:
            raise EventError(f"clock.{phase}: got {_shown(value)}, expected finite seconds from 0")
    return Phases.from_mapping(clock)


def parse_line(line: str | bytes) -> Event:
    """Parse one line of an event stream.

    Raises:
        EventError: not JSON, not an object, a required key missing, or another major version.
    """
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line[:80] if isinstance(line, str) else line[:80].decode(errors="replace")
        raise EventError(f"not JSON: {shown!r} ({error})") from None
    if not isinstance(body, dict):
        raise EventError(f"got {type(body).__name__}, expected an object")
    if body.get("v") != PROTOCOL_VERSION:
        raise EventError(f"v: got {_shown(body.get('v'))}, expected {PROTOCOL_VERSION}")
    name = body.get("event")
    if not isinstance(name, str):
        raise EventError(f"event: got {_shown(name)}, expected a name")
    clock = body.get("clock")
    phases = None if clock is None else seconds(clock)
    if name == "evaluated" and not isinstance(body.get("metrics"), dict):
        raise EventError("evaluated: metrics is missing, expected metric names and numbers")
    return Event(
        event=name,
        seq=_whole(body, "seq"),
        step=_whole(body, "step"),
        tokens=_whole(body, "tokens", 0),
        clock=phases,
        body=body,
    )


def metric_value(event: Event, metric: str) -> float | None:
    """The metric in an `evaluated` event; NaN for null or non-finite, None when it is not there."""
    metrics = event.body["metrics"]
    if metric not in metrics:
        return None
    value = metrics[metric]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # a whole number of more than 308 digits
        return math.nan


@dataclass
class Fold:
    """What a stream of events amounts to so far; feed it with `add`."""

    metric: str
    curve: list[Evaluation] = field(default_factory=list)
    clock: Phases = field(default_factory=Phases)
    clock_given: bool = True
    step: int = 0
    tokens: int = 0
    started: Mapping[str, Any] | None = None
    finished: Mapping[str, Any] | None = None
    failed: Mapping[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    events: int = 0
    ignored: int = 0
    first_step_clock: Phases | None = None

    def add(self, event: Event) -> None:
        """Take one more event into account; unknown events are counted and ignored."""
        self.events += 1
        if event.event not in KNOWN_EVENTS:
            self.ignored += 1
            return
        self.step = max(self.step, event.step)
        self.tokens = max(self.tokens, event.tokens)
        if event.clock is not None:
            self.clock = event.clock
        elif event.event != "run_started":
            self.clock_given = False
        if event.event == "run_started":
            self.started = event.body
        elif event.event == "step" and self.first_step_clock is None:
            self.first_step_clock = event.clock
        elif event.event == "evaluated":
            self._evaluated(event)
        elif event.event == "warning":
            self.warnings.append(str(event.body.get("message", "")))
        elif event.event == "run_finished":
            self.finished = event.body
        elif event.event == "run_failed":
            self.failed = event.body

    def _evaluated(self, event: Event) -> None:
        value = metric_value(event, self.metric)
        if value is None:
            self.ignored += 1
            return
        slice_name = event.body.get("slice", "probe")
        self.curve.append(
            Evaluation(
                step=event.step,
                tokens=event.tokens,
                clock=event.clock or self.clock,
                value=value,
                slice="confirmation" if slice_name == "confirmation" else "probe",
            )
        )

    @property
    def diverged(self) -> bool:
        """Whether the last probe was not a finite number."""
        last = next((e for e in reversed(self.curve) if e.slice == "probe"), None)
        return last is not None and not math.isfinite(last.value)


def finite(value: object) -> float | None:
    """A finite number, or None for anything else (NaN, infinity, text, true): strict JSON's null."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def strict(value: Any) -> Any:
    """The same JSON value with null for NaN and infinity, and no text that a database refuses.

    Lone surrogates and NUL are valid in JSON and in no text column; they become U+FFFD.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        text = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
    if isinstance(value, Mapping):
        return {strict(str(key)): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


def fold_lines(lines: Iterable[str | bytes], metric: str) -> Fold:
    """Fold a whole stream; a torn last line is dropped.

    Raises:
        EventError: a line other than the last is torn or wrong; the message names its number.
    """
    fold = Fold(metric)
    pending: tuple[int, EventError] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if pending is not None:
            raise EventError(f"line {pending[0]}: {pending[1]}")
        try:
            fold.add(parse_line(line))
        except EventError as error:
            pending = (number, error)
    return fold
