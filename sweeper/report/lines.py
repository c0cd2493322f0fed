"""Progress as one plain line per event, for logs and pipes; and as nothing at all.

It must not know terminals or colours; no line is ever rewritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TextIO

from sweeper.analysis.wording import count, duration, significant
from sweeper.objective import TimeToTarget, final_value
from sweeper.trial import AttemptFacts, Outcome, PlannedTrial, StagePlan


def plain(text: str) -> str:
    """Text on one line, without control characters that could move a cursor."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def ending(facts: AttemptFacts, time: TimeToTarget | None) -> str:
    """How an attempt ended: `reached in 3.12 s (step 410)`, `stopped by cap ...`, `failed: ...`.

    A measured attempt without a time is one of a study with goal "final".
    """
    if time is None and (final := final_value(facts)) is not None:
        after = f"{facts.steps} steps, {duration(facts.phases.train)} of training"
        return f"ended at {significant(final, 5)} after {after}"
    if time is not None and time.reached:
        step = f" (step {time.steps:.0f})" if time.steps is not None else ""
        return f"reached the target in {duration(time.seconds)}{step}"
    best = f", best {significant(facts.best_loss, 4)}" if facts.best_loss is not None else ""
    if facts.outcome in (Outcome.REACHED, Outcome.CENSORED):
        after = duration(time.seconds if time else facts.phases.train)
        return f"did not reach it ({facts.reason.value}) after {after}{best}"
    why = f": {plain(facts.message)[:200]}" if facts.message else ""
    return f"{facts.outcome.value} ({facts.reason.value}){why}"


def saved(seconds: float | None) -> str:
    """What a rule saved, a cost with its sign; nothing where it is not known."""
    if seconds is None:
        return ""
    return f"\u2212{duration(-seconds)}" if seconds < 0 else duration(seconds)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """A stage's end in a few lines, best first."""
    counts = ", ".join(
        f"{summary[key]} {key}"
        for key in ("reached", "censored", "failed", "reused")
        if summary[key]
    )
    heading = (
        f"{summary['stage']}: {summary['planned']} planned, {summary['distinct']} distinct: "
        f"{counts or 'nothing measured'}; {duration(summary['train_s'])} of training in "
        f"{duration(summary['wall_s'])}"
    )
    lines = [heading]
    for place, row in enumerate(summary["top"], start=1):
        score = (
            significant(row["final"], 5)
            if summary["goal"] == "final"
            else duration(row["time_to_target_s"])
        )
        lines.append(f"  {place}. {plain(row['label'])}: {score}")
    closest = summary.get("closest")
    if closest and closest["best_loss"] is not None:
        lines.append(
            f"  nothing reached {significant(summary['effective_target'], 6)}; closest: "
            f"{plain(closest['label'])}, down to {significant(closest['best_loss'], 5)}"
        )
    return lines


class QuietProgress:
    """Says nothing."""

    def stage_started(self, plan: StagePlan, done: int) -> None:
        """Nothing."""

    def trial_started(self, trial: PlannedTrial, slot: str) -> None:
        """Nothing."""

    def bounded(self, trial: PlannedTrial, cap_s: float | None) -> None:
        """Nothing."""

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """Nothing."""

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """Nothing."""

    def stage_ended(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str, kind: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LinesProgress:
    """One line per event on a stream. A stream that is gone is ignored: the sweep goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total = 0
        self._before = 0
        self._ended: set[str] = set()  # a trial that is tried again counts once

    def stage_started(self, plan: StagePlan, done: int) -> None:
        """The plan's size, and how much of it is done."""
        self._total, self._before = len(plan.trials), done
        self._ended.clear()
        before = f", {done} done before" if done else ""
        target = significant(plan.target, 6)
        self._say(f"{plan.stage}: {count(self._total, 'trial')}{before}, target {target}")

    def trial_started(self, trial: PlannedTrial, slot: str) -> None:
        """Which trial, where."""
        self._say(f"{trial.id} started on {slot}: {trial.label}")

    def bounded(self, trial: PlannedTrial, cap_s: float | None) -> None:
        """Nothing: a change of it is a note."""

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """Where the curve stands."""
        self._say(f"{trial.id} step {step}: {significant(loss, 4)} after {duration(train_s)}")

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """How it ended, and how many of the plan's have."""
        self._ended.add(trial.id)
        done = self._before + len(self._ended)
        self._say(f"{trial.id} {ending(facts, time_to_target)} [{done}/{self._total}]")

    def stage_ended(self, summary: Mapping[str, Any]) -> None:
        """The counts and the top."""
        for line in summary_lines(summary):
            self._write(line)

    def note(self, text: str, kind: str = "") -> None:  # noqa: ARG002 - all kinds look alike here
        """The sentence as it is."""
        self._say(text)

    def close(self) -> None:
        """Nothing is held."""

    def _say(self, text: str) -> None:
        self._write(plain(text))

    def _write(self, line: str) -> None:
        # A reader that went away (OSError), a closed stream (ValueError), an encoding that lacks a
        # character of a label (UnicodeError, a ValueError): none of them is the sweep's business.
        with contextlib.suppress(OSError, ValueError):
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
