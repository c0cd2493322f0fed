"""From what is known after an attempt to its one reason, with a message for people: pure rules.

It must not know processes, files or clocks; it sees the measured fold, the stop and the exit.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import NamedTuple

from sweeper.events import Fold
from sweeper.objective import crossing
from sweeper.runner.limits import Stop
from sweeper.trial import Clock, Reason

CONFIG_EXIT = 2
SHELL_SIGNAL_BASE = 128
"""A shell, or another wrapper, reports a child that died of signal n as exit code 128 + n."""

_DEVICE_OOM = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|HIP out of"
)
_HOST_OOM = re.compile(
    r"^\s*MemoryError\b|std::bad_alloc|[Cc]annot allocate memory|[Cc]an't allocate memory"
    r"|Unable to allocate .* for an array",
    re.MULTILINE,
)
_DEVICE_LOST = re.compile(
    r"CUDA error: (?:an? )?(?:unspecified launch failure|uncorrectable ECC|device-side hardware)"
    r"|GPU is lost|no CUDA-capable device is detected|Xid \(|NVML: Driver/library version mismatch"
)
# What run_failed may say of itself; any other class is a crash.
_FAILURE_CLASSES: Mapping[str, Reason] = {
    "config": Reason.CONFIG,
    "oom": Reason.OOM,
    "out_of_memory": Reason.OOM,
    "diverged": Reason.DIVERGED,
    "environment": Reason.ENVIRONMENT,
    "data": Reason.ENVIRONMENT,
    "checkpoint": Reason.ENVIRONMENT,
    "device": Reason.DEVICE,
}
# What run_finished may say of itself; anything else means that its steps are used up.
_FINISH_REASONS: Mapping[str, Reason] = {
    "cap": Reason.CAP,
    "timeout": Reason.TIMEOUT,
    "diverged": Reason.DIVERGED,
    "terminated": Reason.KILLED,
    "interrupted": Reason.KILLED,
}
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Ending(NamedTuple):
    """All that is known when every process of an attempt is gone.

    `start_error` is set when the trainer could not be started at all. `signal` is the number that
    ended the trainer, `exit_code` its status otherwise. `memory_short` says that the kernel killed
    for memory during the attempt. `bad_lines` were no events, the first for the reason `first_bad`.
    """

    metric: str
    target: float | None
    clock: Clock
    fold: Fold
    stop: Stop | None = None
    start_error: str = ""
    exit_code: int | None = 0
    signal: int | None = None
    stderr_tail: str = ""
    memory_short: bool = False
    bad_lines: int = 0
    first_bad: str = ""


class Verdict(NamedTuple):
    """The reason, and what to tell people."""

    reason: Reason
    message: str


def classify(ending: Ending) -> Verdict:
    """Why an attempt ended. What was measured comes first: a crossing counts whatever came later."""
    fold = ending.fold
    if ending.start_error:
        return Verdict(Reason.ENVIRONMENT, ending.start_error)
    if ending.target is not None and crossing(fold.curve, ending.target, ending.clock) is not None:
        return Verdict(Reason.TARGET, f"{ending.metric} reached {ending.target:g}")
    stop = None if ending.stop is not None and ending.stop.finished else ending.stop
    if stop is not None:
        return _stopped(ending, stop)
    if fold.failed is not None:
        return _failed(ending, fold.failed)
    if fold.finished is not None:
        return _finished(ending, str(fold.finished.get("reason", "")))
    if ending.signal is not None or ending.exit_code != 0:
        return _crashed(ending)
    return _left(ending)


def _stopped(ending: Ending, stop: Stop) -> Verdict:
    """The runner ended it: for its own reason, unless the measurements say more."""
    fold = ending.fold
    if stop.reason is Reason.KILLED:
        return Verdict(stop.reason, stop.message)
    if not fold.events and ending.bad_lines:
        return _garbage(ending)
    if fold.diverged:
        return Verdict(Reason.DIVERGED, f"{ending.metric} is not a finite number")
    if stop.reason is Reason.BUDGET and not fold.curve:
        return Verdict(Reason.KILLED, f"{stop.message}, before anything was measured")
    return Verdict(stop.reason, stop.message)


def _failed(ending: Ending, body: Mapping[str, object]) -> Verdict:
    """The trainer said itself that it failed."""
    name, message = str(body.get("class", "")), str(body.get("message", ""))
    reason = _FAILURE_CLASSES.get(name)
    if reason is None:
        by_text = _by_text(f"{message}\n{ending.stderr_tail}")
        reason = by_text or (Reason.CONFIG if ending.exit_code == CONFIG_EXIT else Reason.CRASHED)
    return Verdict(reason, message or f"the trainer failed: {name or 'no class given'}")


def _finished(ending: Ending, said: str) -> Verdict:
    """The trainer said itself that it finished."""
    fold = ending.fold
    if said == "target" and ending.target is not None:
        best = min((e.value for e in fold.curve if e.slice == "probe"), default=None)
        seen = "there is no evaluation" if best is None else f"its best is {best:.6g}"
        return Verdict(
            Reason.CRASHED,
            f"the trainer says that it reached the target, but no evaluation of {ending.metric!r} is "
            f"at or below {ending.target:g} ({seen})",
        )
    if fold.diverged:
        return Verdict(Reason.DIVERGED, f"{ending.metric} is not a finite number")
    reason = _FINISH_REASONS.get(said, Reason.STEPS)
    if reason is Reason.KILLED:
        return Verdict(reason, f"the trainer was told to stop from outside (it says {said!r})")
    if not fold.curve:
        return _unmeasured(ending)
    target = "" if ending.target is None else f" without reaching {ending.target:g}"
    return Verdict(reason, f"finished at step {fold.step}{target} ({said or 'no reason given'})")


def _crashed(ending: Ending) -> Verdict:
    """The trainer's process failed without a word of the protocol about it."""
    number = ending.signal
    if number is None and (ending.exit_code or 0) > SHELL_SIGNAL_BASE:
        number = (ending.exit_code or 0) - SHELL_SIGNAL_BASE
    how = _describe(ending)
    if number == signal.SIGKILL and ending.memory_short:
        return Verdict(Reason.OOM, f"{how}: the kernel killed it, the host was out of memory")
    if by_text := _by_text(ending.stderr_tail):
        return Verdict(by_text, f"{how}: {_last_line(ending.stderr_tail)}")
    if ending.fold.diverged:
        return Verdict(Reason.DIVERGED, f"{ending.metric} is not a finite number, then {how}")
    if number in _FROM_OUTSIDE:
        return Verdict(Reason.KILLED, f"{how}: killed from outside")
    if not ending.fold.events and ending.bad_lines:
        return _garbage(ending)
    last = _last_line(ending.stderr_tail)
    return Verdict(Reason.CRASHED, f"{how}: {last}" if last else f"{how}, nothing on stderr")


def _left(ending: Ending) -> Verdict:
    """The trainer exited 0 without saying that it finished."""
    fold = ending.fold
    if not fold.events and ending.bad_lines:
        return _garbage(ending)
    if fold.diverged:
        return Verdict(Reason.DIVERGED, f"{ending.metric} is not a finite number")
    if not fold.curve:
        return _unmeasured(ending)
    target = "" if ending.target is None else f" without reaching {ending.target:g}"
    return Verdict(Reason.STEPS, f"exited at step {fold.step}{target}")


def _garbage(ending: Ending) -> Verdict:
    return Verdict(
        Reason.CRASHED,
        f"the trainer printed garbage: expected protocol events, one JSON object a line, in the file "
        f"that SWEEP_EVENTS names; {ending.bad_lines} lines are none, the first: {ending.first_bad}",
    )


def _unmeasured(ending: Ending) -> Verdict:
    return Verdict(
        Reason.CRASHED,
        f"the trainer ended ({_describe(ending)}) without one evaluation of {ending.metric!r}; "
        "check [objective] metric, and what the trainer writes to SWEEP_EVENTS or, with "
        "[trainer.patterns], prints",
    )


def _by_text(text: str) -> Reason | None:
    if _DEVICE_OOM.search(text) or _HOST_OOM.search(text):
        return Reason.OOM
    return Reason.DEVICE if _DEVICE_LOST.search(text) else None


def _describe(ending: Ending) -> str:
    if ending.signal is None:
        return f"exit code {ending.exit_code}"
    try:
        return f"signal {signal.Signals(ending.signal).name}"
    except ValueError:
        return f"signal {ending.signal}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
