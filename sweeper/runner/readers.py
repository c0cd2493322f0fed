"""What a trainer says, as protocol events: from its event file, or from patterns on its output.

It must not know limits, outcomes or what becomes of an event.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeper.events import LARGEST, PROTOCOL_VERSION, Event, EventError, parse_line
from sweeper.runner.tail import Line, Tail
from sweeper.spec import AttemptSpec
from sweeper.trial import Phases

LONGEST_EVENT = 1 << 20
LONGEST_MATCHED = 4096
"""Bytes of an output line that patterns are tried on: what people print is shorter."""
SLOWEST_MATCH_S = 1.0
MANY_LINES = 64
_STEP = re.compile(rb'"event"\s*:\s*"step"')


class PatternError(ValueError):
    """A pattern that is not a regular expression."""


@dataclass
class Batch:
    """What one look brought: events in order, lines that were none, and how many were skipped.

    `skipped` lines are steps of a flood that nobody needs: of many in one look, only the last counts.
    """

    events: list[Event] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    skipped: int = 0


class Reader(Protocol):
    """Turns what a trainer wrote since the last look into events."""

    @property
    def behind(self) -> bool:
        """Whether the last look left something unread."""
        ...

    def read(self) -> Batch:
        """One bounded look.

        Raises:
            OSError: the run folder's disk is gone.
        """
        ...

    def rest(self) -> Batch:
        """The unfinished last line, after the trainer has ended and everything else was read."""
        ...

    def read_to(self, path: Path) -> int | None:
        """Up to which byte a file has been read; None for a file that is not its own."""
        ...


class EventsReader:
    """Protocol lines from the file that SWEEP_EVENTS names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = Tail(path, longest=LONGEST_EVENT)

    @property
    def behind(self) -> bool:
        """Whether the last look left something unread."""
        return self._tail.behind

    def read(self) -> Batch:
        """One bounded look at the event file."""
        lines = self._tail.read()
        batch = Batch()
        steps = [i for i, line in enumerate(lines) if _is_plain_step(line.text)]
        passed = set(steps[:-1]) if len(steps) > MANY_LINES else set()
        batch.skipped = len(passed)
        for i, line in enumerate(lines):
            if i not in passed:
                self._parse(line, batch)
        return batch

    def rest(self) -> Batch:
        """A last line without its end counts if it is whole otherwise; a torn one is dropped."""
        batch = Batch()
        if text := self._tail.unfinished():
            self._parse(Line(text), batch)
            batch.bad.clear()
        return batch

    def read_to(self, path: Path) -> int | None:
        """See `Reader.read_to`."""
        return self._tail.offset if path == self._path else None

    @staticmethod
    def _parse(line: Line, batch: Batch) -> None:
        if not line.text.strip():
            return
        if line.cut:
            batch.bad.append(f"a line of more than {LONGEST_EVENT} bytes: {line.text[:80]!r}")
            return
        try:
            batch.events.append(parse_line(line.text))
        except EventError as error:
            batch.bad.append(str(error))


def _is_plain_step(text: bytes) -> bool:
    """A cheap look: surely a `step` event, without parsing it."""
    return text.count(b'"event"') == 1 and _STEP.search(text) is not None


class PatternsReader:
    """Events made from regular expressions with named groups, tried on every line of output.

    Known groups (docs/your-script.md): the metric's own name or `metric`, or `latest` where a progress
    bar shows the last value again and again; `step`, or `epoch` and `batch` of `of`; `tokens`, `loss`;
    for the train clock `train_s`, `train_ms` (cumulative) or `step_ms` (added up); `eval_s`, what an
    evaluation took. A match with the metric is an evaluation, another match with a step or a loss is
    a step. Where no pattern has a clock group, or a line that should have a cumulative one has none,
    events have no clock.

    Raises:
        PatternError: an expression cannot be compiled.
    """

    def __init__(self, spec: AttemptSpec, stdout: Path, stderr: Path) -> None:
        self._metric = spec.metric
        self._patterns: dict[str, re.Pattern[str]] = {}
        for name, pattern in spec.patterns.items():
            try:
                self._patterns[name] = re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise PatternError(f"pattern {name!r}: {pattern!r}: {error}") from None
        self._groups = {g for p in self._patterns.values() for g in p.groupindex}
        self._tails = {
            path: Tail(path, longest=LONGEST_MATCHED, returns=True) for path in (stdout, stderr)
        }
        self._seq = self._step = self._tokens = self._most = 0
        self._train_s = self._eval_s = 0.0
        self._latest: dict[str, str] = {}
        self._told: set[str] = set()
        self._stopwatch = _Stopwatch()

    @property
    def behind(self) -> bool:
        """Whether the last look left something unread."""
        return any(tail.behind for tail in self._tails.values())

    def read(self) -> Batch:
        """One bounded look at both outputs."""
        batch = Batch()
        with self._stopwatch.running():
            for tail in self._tails.values():
                for line in tail.read():
                    self._match(line.text, batch)
        return batch

    def rest(self) -> Batch:
        """The last line of each output, if it has no end."""
        batch = Batch()
        with self._stopwatch.running():
            for tail in self._tails.values():
                self._match(tail.unfinished(), batch)
        return batch

    def read_to(self, path: Path) -> int | None:
        """See `Reader.read_to`."""
        return self._tails[path].offset if path in self._tails else None

    def _match(self, text: bytes, batch: Batch) -> None:
        line = text.decode("utf-8", errors="replace")
        for name, pattern in list(self._patterns.items()):
            try:
                match = self._stopwatch.search(pattern, line)
            except _TooSlowError:
                del self._patterns[name]
                self._note(batch, f"pattern {name!r} took over {SLOWEST_MATCH_S:g} s on one line")
                continue
            if match is not None:
                self._take(name, match.groupdict(), batch)

    def _take(self, name: str, groups: Mapping[str, str | None], batch: Batch) -> None:
        try:
            numbers = {k: _number(v) for k, v in groups.items() if v is not None}
        except ValueError as error:
            self._note(batch, f"pattern {name!r}: {error}")
            return
        before = self._step
        self._step = self._step_of(numbers)
        self._tokens = _whole(numbers.get("tokens"), self._tokens)
        self._advance(numbers, self._step - before, batch)
        body: dict[str, Any] = {"v": PROTOCOL_VERSION, "seq": self._seq}
        value = self._measured(name, groups, numbers)
        if value is not None:
            body |= {"event": "evaluated", "metrics": {self._metric: value}}
        elif numbers.keys() & {"step", "batch", "loss"}:
            body |= {"event": "step"}
        else:
            return
        body |= {key: numbers[key] for key in ("loss", "eval_s") if key in numbers}
        self._seq += 1
        batch.events.append(
            Event(
                event=body["event"],
                seq=body["seq"],
                step=self._step,
                tokens=self._tokens,
                clock=self._clock(groups),
                body=body,
            )
        )

    def _measured(
        self, name: str, groups: Mapping[str, str | None], numbers: Mapping[str, float]
    ) -> float | None:
        """The metric's value in a match; None also where it is only shown once more."""
        for group in (self._metric, "metric"):
            if group in numbers:
                return numbers[group]
        shown = groups.get("latest")
        if shown is None or shown == self._latest.get(name):
            return None
        self._latest[name] = shown
        return numbers["latest"]

    def _step_of(self, numbers: Mapping[str, float]) -> int:
        """Steps done by a match's word; a bar with a smaller total than another's is not training's."""
        most = _whole(numbers.get("of"), 0)
        if "batch" in numbers:
            epoch = _whole(numbers.get("epoch"), 0)
            if epoch and not most:  # nobody knows how many were before
                return self._step
            return _whole(epoch * most + numbers["batch"], self._step)
        if most < self._most and "of" in numbers:
            return self._step
        self._most = max(self._most, most)
        return _whole(numbers.get("step"), self._step)

    def _clock(self, groups: Mapping[str, str | None]) -> Phases | None:
        cumulative = {"train_s", "train_ms"} & groups.keys()
        missing = cumulative and all(groups[name] is None for name in cumulative)
        if missing or not self._groups & {"train_s", "train_ms", "step_ms"}:
            return None
        return Phases(train=self._train_s, eval=self._eval_s)

    def _advance(self, numbers: Mapping[str, float], steps: int, batch: Batch) -> None:
        """Move the train clock by what a match says of it; a time that is no time is passed by."""
        train_s = numbers.get("train_s", numbers.get("train_ms", math.nan) / 1e3)
        if math.isfinite(train_s):
            self._train_s = max(self._train_s, train_s)
        eval_s = numbers.get("eval_s", math.nan)
        if math.isfinite(eval_s) and eval_s >= 0:
            self._eval_s += eval_s
        step_s = numbers.get("step_ms", math.nan) / 1e3
        if math.isfinite(step_s) and step_s >= 0:
            self._train_s += step_s
            if steps > 1:
                self._note(
                    batch,
                    f"step_ms was printed once for {steps} steps: the train clock adds up only what "
                    "is printed, so let the script print every step or use train_s",
                )

    def _note(self, batch: Batch, message: str) -> None:
        if message.partition(":")[0] not in self._told:
            self._told.add(message.partition(":")[0])
            batch.bad.append(message)


def _number(text: str) -> float:
    """A printed number: `1,234`, `3.2`, `nan`, `inf`.

    Raises:
        ValueError: it is none; the message quotes it.
    """
    try:
        return float(text.strip().replace(",", ""))
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None


def _whole(number: float | None, default: int) -> int:
    fits = number is not None and math.isfinite(number) and 0 <= number < LARGEST
    return int(number) if fits and number is not None else default


class _TooSlowError(Exception):
    """A regular expression was still backtracking at its time limit."""


class _Stopwatch:
    """Interrupts a regular expression that takes too long; the re module looks for signals.

    A repeated alarm rings while a look lasts, and raises only when one match has been under way for
    SLOWEST_MATCH_S: two system calls a look, none a line. Outside a main thread there is no limit.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def search(self, pattern: re.Pattern[str], line: str) -> re.Match[str] | None:
        """`pattern.search(line)`, or _TooSlowError."""
        self._since = time.monotonic()
        try:
            return pattern.search(line)
        finally:
            self._since = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the alarm ring while the block runs."""
        try:
            before = signal.signal(signal.SIGALRM, self._ring)
        except ValueError:
            yield
            return
        signal.setitimer(signal.ITIMER_REAL, SLOWEST_MATCH_S / 2, SLOWEST_MATCH_S / 2)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _ring(self, number: int, frame: object) -> None:  # noqa: ARG002
        if self._since is not None and time.monotonic() - self._since >= SLOWEST_MATCH_S:
            raise _TooSlowError
