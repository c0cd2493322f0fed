"""The live view of a stage on a terminal: what runs against the target, the top so far, what is left.

It must not know how trials are run; it holds what it was told and redraws once a second.
"""

from __future__ import annotations

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
from sweeper.objective import TimeToTarget
from sweeper.report.lines import ending, plain
from sweeper.trial import AttemptFacts, Outcome, PlannedTrial, StagePlan

REFRESHES_PER_S = 1  # measured with eight slots: 0.6 % of a core; twice as often 1.6 %
TOP = 5
SPARK = "▁▂▃▄▅▆▇█"
SPARK_ASCII = "_.-=*#"
SPARK_WIDTH = 16
WIDE, NARROW = 90, 50


@dataclass
class _Running:
    trial: PlannedTrial
    slot: str
    started: float
    step: int = 0
    train_s: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass
class _Stage:
    plan: StagePlan
    done: int
    started: float
    ended_here: int = 0
    reached: int = 0
    censored: int = 0
    failed: int = 0
    durations: list[float] = field(default_factory=list)
    top: list[tuple[float, str]] = field(default_factory=list)


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The last `width` values as bars between their own lowest and highest."""
    bars = SPARK_ASCII if ascii_only else SPARK
    shown = [value for value in values if value == value][-width:]  # noqa: PLR0124 - drops NaN
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(bars[round((v - low) / span * (len(bars) - 1)) if span else 0] for v in shown)


class LiveProgress:
    """Redraws one block at the bottom of a terminal; ends and notes scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
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

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """One more bar of the slot's sparkline."""
        with self._lock:
            running = self._running.get(trial.id)
            if running:
                running.step, running.train_s = step, train_s
                running.losses.append(loss)

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """The trial's end scrolls by; the top and the time left are brought up to date."""
        with self._lock:
            running = self._running.pop(trial.id, None)
            stage = self._stage
            if stage:
                stage.done += 1
                stage.ended_here += 1
                if running:
                    stage.durations.append(time.monotonic() - running.started)
                if time_to_target and time_to_target.reached:
                    stage.reached += 1
                    stage.top.append((time_to_target.seconds, plain(trial.label)))
                    stage.top.sort()
                elif facts.outcome is Outcome.CENSORED:
                    stage.censored += 1
                else:
                    stage.failed += 1
        good = bool(time_to_target and time_to_target.reached)
        style = "green" if good else "red" if facts.outcome is Outcome.FAILED else "dim"
        self._print(Text(f"{trial.id} {plain(ending(facts, time_to_target))}", style=style))

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
        room = max(1, (options.height or 24) - 4)
        yield self._slots(stage, width, ascii_only, room)
        left = room - len(self._running)
        if left > 1 and stage.top:
            yield _line(f"fastest so far, of {stage.reached}", "bold")
            for place, (seconds, label) in enumerate(stage.top[: min(TOP, left - 1)], start=1):
                yield _line(f" {place}  {duration(seconds):>10}  {label}", "")

    def _slots(self, stage: _Stage, width: int, ascii_only: bool, room: int) -> Table:
        table = Table.grid(padding=(0, 1), expand=False)
        overflow: Literal["crop", "ellipsis"] = "crop" if ascii_only else "ellipsis"
        table.add_column(no_wrap=True, overflow=overflow, max_width=10, style="cyan")
        table.add_column(no_wrap=True, overflow=overflow, ratio=None)
        table.add_column(no_wrap=True, justify="right")
        if width >= NARROW:
            table.add_column(no_wrap=True, justify="right")
        if width >= WIDE:
            table.add_column(no_wrap=True)
        for running in list(self._running.values())[:room]:
            loss = running.losses[-1] if running.losses else None
            name = running.trial.label if width >= WIDE else running.trial.id
            cells = [
                Text(plain(running.slot)),
                Text(plain(name)),
                Text("starting" if loss is None else _against(loss, stage.plan.target, ascii_only)),
            ]
            if width >= NARROW:
                cells.append(Text("" if loss is None else duration(running.train_s)))
            if width >= WIDE:
                cells.append(
                    Text(sparkline(running.losses, SPARK_WIDTH, ascii_only=ascii_only), "magenta")
                )
            table.add_row(*cells)
        return table

    def _left(self, stage: _Stage, total: int) -> str:
        elapsed = time.monotonic() - stage.started
        if not stage.durations or stage.done >= total:
            return f"{duration(elapsed)} so far"
        # Median of attempts times what is left over, spread over the slots that are busy now.
        lanes = max(1, len(self._running))
        left = statistics.median(stage.durations) * (total - stage.done) / lanes
        return f"about {rough(left)} left"

    def _print(self, what: Text | Table | Group) -> None:
        self._console.print(what, soft_wrap=False)


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _against(loss: float, target: float, ascii_only: bool) -> str:
    arrow = "->" if ascii_only else "→"
    return f"{significant(loss, 4)} {arrow} {significant(target, 4)}"
