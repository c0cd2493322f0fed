"""The live view of a stage on a terminal: what runs against the target, the top so far, what is left.

It must not know how trials are run; it holds what it was told and redraws once a second.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.analysis.wording import duration, rough, significant
from sweeper.objective import TimeToTarget, final_value
from sweeper.report.lines import ending, plain
from sweeper.study import Limits
from sweeper.trial import AttemptFacts, Outcome, PlannedTrial, Reason, StagePlan

REFRESHES_PER_S = 1  # measured with eight slots: 0.6 % of a core; twice as often 1.6 %
TOP = 5
SPARK = "▁▂▃▄▅▆▇█"
SPARK_ASCII = "_.-=*#"
SPARK_WIDTH = 16
LABELS, WIDE, MIDDLE, NARROW = 150, 110, 78, 50
"""Columns from which a line has the whole label, its sparkline, the forecast, the seconds."""
CURVES_KEPT = 30
LIKELY = 1.28  # normal quantile: four times in five the time left is within what is said


@dataclass
class _Running:
    trial: PlannedTrial
    slot: str
    started: float
    cap_s: float | None = None
    expected_s: float | None = None
    points: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, train seconds and loss of every evaluation."""

    @property
    def losses(self) -> list[float]:
        return [loss for _, _, loss in self.points]

    @property
    def train_s(self) -> float:
        return self.points[-1][1] if self.points else 0.0


@dataclass
class _Stage:
    plan: StagePlan
    done: int
    started: float
    reached: int = 0
    censored: int = 0
    failed: int = 0
    saved_s: float = 0.0
    durations: list[float] = field(default_factory=list)
    top: list[tuple[float, str]] = field(default_factory=list)
    finals: list[tuple[float, str]] = field(default_factory=list)
    curves: list[list[tuple[int, float, float]]] = field(default_factory=list)


def sparkline(
    values: Sequence[float], width: int, *, ascii_only: bool = False, floor: float | None = None
) -> str:
    """The last `width` values as bars between their lowest (or a lower `floor`) and highest."""
    bars = SPARK_ASCII if ascii_only else SPARK
    shown = [value for value in values if value == value][-width:]  # noqa: PLR0124 - drops NaN
    if not shown:
        return ""
    low = min(shown) if floor is None else min(floor, *shown)
    span = max(shown) - low
    return "".join(bars[round((v - low) / span * (len(bars) - 1)) if span else 0] for v in shown)


def expected_s(
    points: Sequence[tuple[int, float, float]],
    curves: Sequence[Sequence[tuple[int, float, float]]],
    target: float,
) -> float | None:
    """When a run would cross at its own speed, if it needed as many more steps from its loss on as
    the median of the curves that crossed; None where too little is known.
    """
    if not points or points[-1][0] <= 0:
        return None
    step, seconds, loss = points[-1]
    more = []
    for curve in curves:
        here, end = _step_at(curve, loss), _step_at(curve, target)
        if here is not None and end is not None:
            more.append(max(0.0, end - here))
    return seconds + statistics.median(more) * seconds / step if more else None


def _step_at(curve: Sequence[tuple[int, float, float]], loss: float) -> float | None:
    """The step at which a curve first came down to a loss, by a line between evaluations."""
    before: tuple[int, float] | None = None
    for step, _, value in curve:
        if value <= loss:
            if before is None or before[1] <= value:
                return float(step)
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = (step, value)
    return None


def time_left(
    durations: Sequence[float], left: int, lanes: int
) -> tuple[float, float, float] | None:
    """Seconds left, and between which they lie four times in five; None before anything ended."""
    if not durations or left < 1:
        return None
    lanes = max(1, min(lanes, left))
    middle = statistics.fmean(durations) * left / lanes
    spread = statistics.stdev(durations) if len(durations) > 1 else statistics.fmean(durations) / 2
    # the mean itself is known only so well, and every trial to come has its own time
    half = LIKELY * spread * math.sqrt(left + left**2 / len(durations)) / lanes
    return middle, max(0.0, middle - half), middle + half


class LiveProgress:
    """Redraws one block at the bottom of a terminal; ends and notes scroll by above it."""

    def __init__(self, console: Console, limits: Limits | None = None) -> None:
        self._console = console
        self._limits = limits
        self._lock = threading.RLock()
        self._running: dict[str, _Running] = {}
        self._stage: _Stage | None = None
        self._live: Live | None = None

    def stage_started(self, plan: StagePlan, done: int) -> None:
        """Begin (or go on) drawing; a plan that was made anew keeps what is known."""
        with self._lock:
            self._stage = _Stage(plan, done, time.monotonic())
            self._running.clear()
            if self._live is None:
                self._live = Live(
                    self,
                    console=self._console,
                    refresh_per_second=REFRESHES_PER_S,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()

    def trial_started(self, trial: PlannedTrial, slot: str) -> None:
        """A line for the slot."""
        with self._lock:
            self._running[trial.id] = _Running(trial, slot, time.monotonic())

    def bounded(self, trial: PlannedTrial, cap_s: float | None) -> None:
        """The cap beside the slot's seconds."""
        with self._lock:
            if trial.id in self._running:
                self._running[trial.id].cap_s = cap_s

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """One more bar of the slot's sparkline, and another forecast."""
        with self._lock:
            running = self._running.get(trial.id)
            if running and self._stage:
                running.points.append((step, train_s, loss))
                target = self._stage.plan.target
                running.expected_s = expected_s(running.points, self._stage.curves, target)

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """The trial's end scrolls by; the top and the time left are brought up to date."""
        self.remember(trial, facts, time_to_target)
        good = bool(time_to_target and time_to_target.reached)
        style = "green" if good else "red" if facts.outcome is Outcome.FAILED else "dim"
        self._print(Text(f"{trial.id} {plain(ending(facts, time_to_target))}", style=style))

    def remember(
        self,
        trial: PlannedTrial,
        facts: AttemptFacts,
        time_to_target: TimeToTarget | None,
        *,
        counts: bool = True,
    ) -> None:
        """Take a trial's end into account without a word; not `counts`: `done` has it already."""
        with self._lock:
            self._running.pop(trial.id, None)
            stage = self._stage
            if stage is None:
                return
            stage.done += counts
            stage.durations.append(facts.wall_s)
            if time_to_target and time_to_target.reached:
                stage.reached += 1
                stage.top.append((time_to_target.seconds, plain(trial.label)))
                stage.top.sort()
                curve = [(e.step, e.clock.train, e.value) for e in facts.curve]
                stage.curves = [*stage.curves, curve][-CURVES_KEPT:]
            elif time_to_target is None and (final := final_value(facts)) is not None:
                stage.finals.append((final, plain(trial.label)))
                stage.finals.sort()
            elif facts.outcome is Outcome.CENSORED:
                stage.censored += 1
                stage.saved_s += self._saved_s(facts)
            else:
                stage.failed += 1

    def _saved_s(self, facts: AttemptFacts) -> float:
        """At most what racing has saved by this stop: up to the trial's limit, as the summary has it."""
        if self._limits is None or facts.reason not in (Reason.CAP, Reason.FORECAST):
            return 0.0
        limit, train = self._limits.trial_s, facts.phases.train
        if facts.steps:
            limit = min(limit, train / facts.steps * self._limits.steps)
        return max(0.0, limit - train)

    def stage_ended(self, summary: Mapping[str, Any]) -> None:
        """Stop drawing and leave the summary's table."""
        from sweeper.report.console import summary_table  # noqa: PLC0415 - it imports this module

        self.close()
        self._print(summary_table(summary))

    def note(self, text: str, kind: str = "") -> None:  # noqa: ARG002 - all kinds look alike here
        """The sentence scrolls by above the view."""
        self._print(Text(plain(text), style="yellow"))

    def close(self) -> None:
        """Stop drawing; the terminal is as before."""
        with self._lock:
            live, self._live = self._live, None
        if live:
            live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The view at this moment, at most as wide and as high as the terminal."""
        with self._lock:
            if self._stage is None:
                return
            yield from self._draw(self._stage, options)

    def _draw(self, stage: _Stage, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = options.max_width, options.ascii_only
        total = len(stage.plan.trials)
        dot = " - " if ascii_only else " · "
        parts = [
            f"{stage.plan.stage} {stage.done}/{total}",
            f"target {significant(stage.plan.target, 6)}",
            f"{stage.reached} reached",
        ]
        parts += [f"{stage.censored} stopped"] if stage.censored else []
        parts += [f"{stage.failed} failed"] if stage.failed else []
        parts.append(self._left(stage, total))
        yield _line(dot.join(part for part in parts if part), "bold")
        bar = Table.grid()
        bar.add_row(ProgressBar(total=max(1, total), completed=stage.done, width=min(width, 60)))
        yield bar
        room = max(1, (options.height or options.size.height) - 4)
        yield self._slots(stage, width, ascii_only, room)
        left = room - len(self._running)
        words = self._to_beat(stage)
        if words and left > 0:
            yield _line(dot.join(words), "")
            left -= 1
        if left > 1 and stage.finals:
            yield _line(f"best so far, of {len(stage.finals)}", "bold")
            for place, (final, label) in enumerate(stage.finals[: min(TOP, left - 1)], start=1):
                yield _line(f" {place}  {significant(final, 5):>10}  {label}", "")
        if left > 1 and stage.top:
            yield _line(f"fastest so far, of {stage.reached}", "bold")
            for place, (seconds, label) in enumerate(stage.top[: min(TOP, left - 1)], start=1):
                yield _line(f" {place}  {duration(seconds):>10}  {label}", "")

    def _to_beat(self, stage: _Stage) -> list[str]:
        words = [f"to beat: {duration(stage.top[0][0])}"] if stage.top else []
        if stage.saved_s:
            words.append(f"racing has saved at most {duration(stage.saved_s)}")
        return words

    def _slots(self, stage: _Stage, width: int, ascii_only: bool, room: int) -> Table:
        table = Table.grid(padding=(0, 1), expand=False)
        overflow: Literal["crop", "ellipsis"] = "crop" if ascii_only else "ellipsis"
        table.add_column(no_wrap=True, overflow=overflow, max_width=10, style="cyan")
        table.add_column(no_wrap=True, overflow=overflow, ratio=None)
        table.add_column(no_wrap=True, justify="right")
        for least in (NARROW, MIDDLE):
            if width >= least:
                table.add_column(no_wrap=True, justify="right")
        if width >= WIDE:
            table.add_column(no_wrap=True)
        target = stage.plan.target
        for running in list(self._running.values())[:room]:
            loss = running.losses[-1] if running.points else None
            name = running.trial.label if width >= MIDDLE else running.trial.id
            if width >= LABELS:
                name = f"{running.trial.id} {name}"
            cells = [
                Text(plain(running.slot)),
                Text(plain(name)),
                Text("starting" if loss is None else _against(loss, target, ascii_only)),
            ]
            if width >= NARROW:
                cells.append(Text("" if loss is None else _of_cap(running)))
            if width >= MIDDLE:
                cells.append(_forecast(running, ascii_only=ascii_only))
            if width >= WIDE:
                spark = sparkline(running.losses, SPARK_WIDTH, ascii_only=ascii_only, floor=target)
                cells.append(Text(spark, "magenta"))
            table.add_row(*cells)
        return table

    def _left(self, stage: _Stage, total: int) -> str:
        left = time_left(stage.durations, total - stage.done, len(self._running))
        if left is None:
            return f"{duration(time.monotonic() - stage.started)} so far"
        middle, low, high = left
        return f"{rough(middle)} left ({rough(low)} to {rough(high)})"

    def _print(self, what: Text | Table | Group) -> None:
        self._console.print(what, soft_wrap=False)


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _against(loss: float, target: float, ascii_only: bool) -> str:
    arrow = "->" if ascii_only else "→"
    return f"{significant(loss, 4)} {arrow} {significant(target, 4)}"


def _of_cap(running: _Running) -> str:
    """`3.12 s`, or `3.12 s of 5.17 s` where a cap is in force."""
    cap = "" if running.cap_s is None else f" of {duration(running.cap_s)}"
    return f"{duration(running.train_s)}{cap}"


def _forecast(running: _Running, *, ascii_only: bool) -> Text:
    """When it should cross; in red where that is beyond its cap."""
    if running.expected_s is None:
        return Text("")
    late = running.cap_s is not None and running.expected_s > running.cap_s
    about = "~" if ascii_only else "≈"
    return Text(f"{about} {duration(running.expected_s)}", "red" if late else "green")
