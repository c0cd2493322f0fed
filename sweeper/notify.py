"""Tells a command of the user's: a stage ended, the breaker stopped it, a target looks out of reach.

It must not be able to stop or delay a sweep: the command runs beside it, within a time, and what goes
wrong with it is a note.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from sweeper.objective import TimeToTarget
from sweeper.progress import Progress
from sweeper.study import Notify
from sweeper.trial import AttemptFacts, PlannedTrial, StagePlan

Event = Literal["stage_ended", "breaker", "unreachable"]
PLACES = ("event", "study", "stage", "text")
"""What stands in braces in an argument, each filled into its own argument."""
_END_WITHIN_S = 2.0


class NotifyingProgress:
    """A watcher that passes everything on to another, and starts the user's command at three events.

    The command gets one JSON object on its standard input: `event`, `study`, `stage`, `text`, and for
    the end of a stage its `summary`. Its output is not read. `environment` is all that it inherits.
    """

    def __init__(
        self, progress: Progress, study: str, settings: Notify, environment: Mapping[str, str]
    ) -> None:
        self._progress = progress
        self._study = study
        self._settings = settings
        self._environment = dict(environment)
        self._stage = ""
        self._under_way: list[threading.Thread] = []

    def stage_started(self, plan: StagePlan, done: int) -> None:
        """Passed on."""
        self._stage = plan.stage
        self._progress.stage_started(plan, done)

    def trial_started(self, trial: PlannedTrial, slot: str) -> None:
        """Passed on."""
        self._progress.trial_started(trial, slot)

    def bounded(self, trial: PlannedTrial, cap_s: float | None) -> None:
        """Passed on."""
        self._progress.bounded(trial, cap_s)

    def evaluated(self, trial: PlannedTrial, step: int, train_s: float, loss: float) -> None:
        """Passed on."""
        self._progress.evaluated(trial, step, train_s, loss)

    def trial_ended(
        self, trial: PlannedTrial, facts: AttemptFacts, time_to_target: TimeToTarget | None
    ) -> None:
        """Passed on."""
        self._progress.trial_ended(trial, facts, time_to_target)

    def stage_ended(self, summary: Mapping[str, Any]) -> None:
        """Passed on, and told."""
        self._progress.stage_ended(summary)
        best = summary.get("best")
        won = f"; fastest: {best['label']} in {best['time_to_target_s']:.4g} s" if best else ""
        text = (
            f"{summary['study']} {summary['stage']}: {summary['reached']} of "
            f"{summary['distinct']} reached {summary['effective_target']:g}{won}"
        )
        self._tell("stage_ended", text, summary)

    def note(self, text: str, kind: str = "") -> None:
        """Passed on; told when it is of a kind to be told."""
        self._progress.note(text)
        if kind == "unreachable":
            self._tell("unreachable", text)
        elif kind == "breaker":
            self._tell("breaker", text)

    def close(self) -> None:
        """Passed on, after the commands under way have had the rest of their time."""
        deadline = time.monotonic() + self._settings.timeout_s + _END_WITHIN_S
        for thread in self._under_way:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._under_way.clear()
        self._progress.close()

    def _tell(self, event: Event, text: str, summary: Mapping[str, Any] | None = None) -> None:
        words = {"event": event, "study": self._study, "stage": self._stage, "text": text}
        document = words if summary is None else words | {"summary": dict(summary)}
        thread = threading.Thread(
            target=self._run, args=(words, json.dumps(document)), daemon=True, name="notify"
        )
        thread.start()
        self._under_way.append(thread)

    def _run(self, words: Mapping[str, str], document: str) -> None:
        trouble = run_command(self._settings, words, document, self._environment)
        if trouble:
            self._progress.note(f"notify: {trouble}")


def run_command(
    settings: Notify, words: Mapping[str, str], document: str, environment: Mapping[str, str]
) -> str:
    """Start the command, give it the document, and wait; what went wrong in words, else nothing.

    When its time is over, its whole process group is killed.
    """
    command = [_filled(argument, words) for argument in settings.command]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"`{command[0]}` cannot be started ({error})"
    try:
        process.communicate(document.encode(), timeout=settings.timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_WITHIN_S)
        return f"`{command[0]}` was ended after {settings.timeout_s:g} s, its timeout_s"
    except OSError:  # it did not read what it was given: its business
        process.wait()
    if process.returncode:
        return f"`{command[0]}` ended with code {process.returncode}"
    return ""


def _filled(argument: str, words: Mapping[str, str]) -> str:
    for name in PLACES:
        argument = argument.replace(f"{{{name}}}", words[name])
    return argument
