"""Protocol lines to the file that SWEEP_EVENTS names, with a clock per phase; nothing without it.

It must not know whose training loop it serves; standard library only, and torch where it is imported.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

PROTOCOL_VERSION = 1
STEP_EVERY_S = 1.0
_PHASES = ("startup", "data", "compile", "train", "eval", "checkpoint", "idle")


class EventWriter:
    """Writes one run's events. Time is put to a phase by `spend`, each time since the one before.

    `target` and `max_steps` are what the runner asks for (None: it does not). Every line is written
    whole, in one call, to a file that is only appended to.
    """

    def __init__(self, metric: str, environment: Mapping[str, str] = os.environ) -> None:
        self.metric = metric
        where = environment.get("SWEEP_EVENTS")
        self.target = _number(environment.get("SWEEP_TARGET"))
        steps = _number(environment.get("SWEEP_MAX_STEPS"))
        self.max_steps = None if steps is None else int(steps)
        self.measured = self.ended = False
        self._descriptor: int | None = None
        if where and where.startswith("fd:"):
            self._descriptor = int(where[3:])
        elif where:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(where, flags, 0o600)
        self._clock = dict.fromkeys(_PHASES, 0.0)
        self._seq = 0
        self._told: set[str] = set()
        self._spent_at = time.monotonic()
        self._step_at = -math.inf

    def spend(self, phase: str, *, wait: bool = False) -> None:
        """What passed since the last call was this phase; with `wait`, also what a GPU has yet to do."""
        if wait:
            synchronise()
        now = time.monotonic()
        self._clock[phase] += now - self._spent_at
        self._spent_at = now

    def started(self, step: int, config: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """The run begins; what came before was start-up."""
        self.spend("startup")
        about = {"config": dict(config), "hardware": hardware(), "versions": dict(versions)}
        self._write("run_started", step, about)

    def step(self, step: int, figures: Mapping[str, Any], tokens: int = 0) -> None:
        """An optimizer step has been done; about one a second is written."""
        now = time.monotonic()
        if now - self._step_at >= STEP_EVERY_S:
            self._step_at = now
            self._write("step", step, figures, tokens)

    def evaluated(self, step: int, metrics: Mapping[str, Any], tokens: int = 0) -> bool:
        """A validation has ended; returns whether the metric is at or below the target.

        Where the metric is not among them, a warning says once what is.
        """
        found = {str(k): v for k, v in metrics.items() if isinstance(v, int | float)}
        if self.metric not in found:
            known = ", ".join(sorted(found)) or "nothing"
            self.warn(step, "metric", f"{self.metric!r} was not measured; there is {known}")
            return False
        self._write("evaluated", step, {"metrics": found, "slice": "probe"}, tokens)
        self.measured = self.measured or not self.ended
        return self.target is not None and float(found[self.metric]) <= self.target

    def warn(self, step: int, kind: str, message: str) -> None:
        """Something that people should know, once."""
        if message not in self._told:
            self._told.add(message)
            self._write("warning", step, {"kind": kind, "message": message})

    def finished(self, step: int, reason: str) -> None:
        """The run has ended in good order: `target`, `steps` or `terminated`."""
        self._write("run_finished", step, {"reason": reason})
        self.ended = True

    def failed(self, step: int, error: BaseException) -> None:
        """The run has ended with an error."""
        name = "oom" if "out of memory" in str(error).lower() else "crash"
        message = f"{type(error).__name__}: {error}"
        self._write("run_failed", step, {"class": name, "message": message[:2000]})
        self.ended = True

    def _write(self, event: str, step: int, more: Mapping[str, Any], tokens: int = 0) -> None:
        if self._descriptor is None or self.ended:
            return
        head = {"v": PROTOCOL_VERSION, "seq": self._seq, "event": event, "step": step}
        clock = {phase: round(seconds, 6) for phase, seconds in self._clock.items()}
        line = json.dumps(
            _strict({**head, "tokens": tokens, "clock": clock, **more}), allow_nan=False
        )
        os.write(self._descriptor, line.encode() + b"\n")
        self._seq += 1


def synchronise() -> None:
    """Wait for what a CUDA device has yet to do, where torch uses one in this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def hardware() -> dict[str, Any]:
    """The device that trains, as far as torch says."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return {"device": "cuda", "name": torch.cuda.get_device_name()}
    return {"device": "cpu", "name": platform.processor() or platform.machine()}


def version_of(*modules: str) -> dict[str, str]:
    """Versions of those that are imported."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    return {name: str(version) for name, version in found.items() if version is not None}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that JSON holds as they are, without those that look like secrets."""
    return {
        str(key): value
        for key, value in config.items()
        if isinstance(value, bool | int | float | str)
        and not any(word in str(key).lower() for word in ("token", "password", "secret", "api_key"))
    }


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _strict(value: Any) -> Any:
    """The same value, with null for what is no finite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return value
