"""One training run as its event stream tells it: reports, evaluations, plan, clock, end.

It must not know rules; it reads files and changes none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.errors import StudyError
from sweeper.events import Event, EventError, finite, parse_line
from sweeper.paths import AttemptPaths
from sweeper.trial import Phases


@dataclass(frozen=True)
class Report:
    """One `step` event: numbers that a trainer left out are None. `lr` is the largest of its groups."""

    step: int
    tokens: int
    clock: Phases
    loss: float | None
    lr: float | None
    grad_norm: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class Measured:
    """One `evaluated` event; numbers that are not finite are left out."""

    step: int
    tokens: int
    slice: str
    metrics: Mapping[str, float]


@dataclass
class RunLog:
    """A run so far; `name` is a trial's id or a file's name, `outcome` the runner's word at its end."""

    name: str
    reports: list[Report] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    started: Mapping[str, Any] = field(default_factory=dict)
    finished: Mapping[str, Any] | None = None
    failed: Mapping[str, Any] | None = None
    outcome: Mapping[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    clock: Phases = field(default_factory=Phases)
    step: int = 0
    tokens: int = 0
    unreadable: int = 0

    @property
    def over(self) -> bool:
        """Whether the run has ended, well or not."""
        return bool(self.finished or self.failed or self.outcome)

    @property
    def steps_before(self) -> int:
        """Steps of the run whose checkpoint this one began with; this one's count is without them."""
        return int(self._before("step"))

    @property
    def tokens_before(self) -> int:
        """Tokens of that run."""
        return int(self._before("tokens"))

    def _before(self, what: str) -> float:
        counts_from = self.started.get("counts_from")
        found = counts_from.get(what) if isinstance(counts_from, Mapping) else None
        return finite(found) or 0.0

    def setting(self, key: str) -> Any:
        """The value of a dotted key of the trainer's configuration; None where it is not told."""
        found: Any = self.started.get("config")
        for part in key.split("."):
            if not isinstance(found, Mapping):
                return None
            found = found.get(part)
        return found

    def series(self, of: str, slice_name: str = "probe") -> list[tuple[int, float]]:
        """(step, value) of "loss", "lr", "grad_norm", "tokens_per_s" or of a metric, in order."""
        if of in ("loss", "lr", "grad_norm", "tokens_per_s"):
            found = ((report.step, getattr(report, of)) for report in self.reports)
            return [(step, value) for step, value in found if value is not None]
        return [
            (m.step, m.metrics[of])
            for m in self.measured
            if of in m.metrics and m.slice in (slice_name, "pairs")
        ]

    @property
    def metric(self) -> str:
        """The name of what validation measures: the first metric of the first probe."""
        probes = (m for m in self.measured if m.slice == "probe")
        return next((name for m in probes for name in m.metrics), "val_loss")


def read_run(place: Path, name: str | None = None) -> RunLog:
    """The run of an attempt's folder, or of a file of events, as far as it has come.

    Raises:
        StudyError: there is nothing to read, or no line of it is an event.
    """
    paths = AttemptPaths(place)
    file = place
    if place.is_dir():
        file = next((f for f in (paths.events, paths.raw_events) if f.exists()), paths.events)
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise StudyError(
            f"{file}: cannot be read ({error.strerror}); expected a file of events, or a run folder"
        ) from None
    trial = place.parent.name if place.name.startswith("attempt-") else place.name
    log = from_lines(lines, name or trial)
    if place.is_dir():
        log.outcome = _document(paths.outcome)
    if log.unreadable and not (log.started or log.reports or log.measured):
        raise StudyError(
            f"{file}: no line of it is an event of the protocol (docs/protocol.md); expected "
            "events.jsonl or trainer.jsonl of a run"
        )
    return log


def from_lines(lines: Iterable[bytes | str], name: str) -> RunLog:
    """The run that a stream of events tells; lines that are none are counted in `unreadable`.

    The last line of a run that goes on may be torn: it counts as nothing.
    """
    log = RunLog(name)
    texts = [line for line in lines if line.strip()]
    for number, line in enumerate(texts, start=1):
        try:
            _add(log, parse_line(line))
        except EventError:
            log.unreadable += number < len(texts) or len(texts) == 1
    return log


def _add(log: RunLog, event: Event) -> None:
    body = event.body
    log.step, log.tokens = max(log.step, event.step), max(log.tokens, event.tokens)
    log.clock = event.clock or log.clock
    if event.event == "run_started":
        log.started = body
    elif event.event == "step":
        numbers = {key: finite(body.get(key)) for key in ("loss", "grad_norm", "tokens_per_s")}
        report = Report(event.step, event.tokens, log.clock, lr=_rate(body.get("lr")), **numbers)
        log.reports.append(report)
    elif event.event == "evaluated":
        found = {str(key): finite(value) for key, value in body["metrics"].items()}
        metrics = {key: value for key, value in found.items() if value is not None}
        slice_name = str(body.get("slice", "probe"))
        log.measured.append(Measured(event.step, event.tokens, slice_name, metrics))
    elif event.event == "warning":
        log.warnings.append(str(body.get("kind", "")))
    elif event.event == "run_finished":
        log.finished = body
    elif event.event == "run_failed":
        log.failed = body


def _rate(value: Any) -> float | None:
    """One learning rate, or the largest of several groups."""
    if not isinstance(value, Mapping):
        return finite(value)
    return max((r for r in map(finite, value.values()) if r is not None), default=None)


def _document(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
