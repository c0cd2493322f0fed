"""When an attempt is to be stopped, and for which reason: deadlines, the cap, the target, orders.

It must not know processes or files; instants are seconds on the monotonic clock, given by the caller.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sweeper.events import Event, Fold
from sweeper.objective import crossing
from sweeper.spec import CANCELLED, AttemptSpec, Control
from sweeper.trial import Phases, Reason

CAP_BACKSTOP = 1.5
"""Past the cap by this factor, an attempt is stopped without waiting for its next evaluation."""
GO_ON_S = 1.0
"""A trainer that goes on for longer than this after its target (or divergence) is stopped."""


class Stop(NamedTuple):
    """Why the runner ends an attempt.

    `finished` says that the trainer had already ended its run by its own word, and only its
    process would not go.
    """

    reason: Reason
    message: str
    cap_s: float | None = None
    finished: bool = False


class Limits:
    """Watches one attempt's clocks; `check` says when it is over."""

    def __init__(self, spec: AttemptSpec, spawned_at: float) -> None:
        self._spec = spec
        self._spawned_at = spawned_at
        self._alive_at = spawned_at
        self._training_at: float | None = None
        self._compiled_s = 0.0
        self._evaluated_s = -math.inf
        self._control = Control()
        self._evaluation: tuple[float, int] | None = None
        self._over: tuple[float, int, Stop] | None = None
        self._finished_at: float | None = None
        self._renewed_at = spawned_at

    @property
    def cap_s(self) -> float | None:
        """The cap in force, on the ranking clock."""
        return self._spec.cap_s if self._control.cap_s is None else self._control.cap_s

    def activity(self, now: float) -> None:
        """The trainer wrote something."""
        self._alive_at = now

    def event(self, event: Event, now: float) -> None:
        """The trainer said something that counts."""
        self._alive_at = now
        clock = event.clock or Phases()
        if event.event == "run_started":
            return
        if self._training_at is None:
            self._training_at = now
            self._compiled_s = clock.compile
        if event.event == "evaluated":
            self._evaluation = (now, event.step)
            if event.body.get("slice", "probe") == "probe":
                self._evaluated_s = clock.seconds(self._spec.clock)
        elif event.event in ("run_finished", "run_failed") and self._finished_at is None:
            self._finished_at = now

    def renewed(self, now: float) -> None:
        """Somebody still wants this attempt (`lease_s`)."""
        self._renewed_at = now

    def control(self, control: Control) -> None:
        """What the loop wants now; it replaces what it wanted before."""
        self._control = control

    def check(self, now: float, clock: Phases, fold: Fold) -> Stop | None:
        """The first reason to stop, or None. `clock` is the attempt's clock at `now`."""
        if self._control.cancel:
            return Stop(Reason.KILLED, CANCELLED)
        return (
            self._measured(now, fold)
            or self._capped(clock)
            or self._out_of_time(now, clock)
            or self._forgotten(now)
            or self._silent(now)
            or self._drained()
        )

    def _measured(self, now: float, fold: Fold) -> Stop | None:
        """The target was crossed, or the metric is no number, and the trainer goes on regardless."""
        if self._evaluation is not None:
            stop = self._verdict(fold)
            if stop is None:
                self._over = None
            elif self._over is None or self._over[2].reason is not stop.reason:
                self._over = (*self._evaluation, stop)
            self._evaluation = None
        if self._over is None or self._finished_at is not None:
            return None
        since_at, step, stop = self._over
        # A trainer that stops by itself may still be confirming; a later step says that it goes on.
        goes_on = fold.step > step and now - since_at > GO_ON_S
        return stop if goes_on or self._spec.reader == "patterns" else None

    def _verdict(self, fold: Fold) -> Stop | None:
        target = self._spec.target
        if target is not None and crossing(fold.curve, target, self._spec.clock) is not None:
            return Stop(Reason.TARGET, f"{self._spec.metric} reached {target:g}")
        if fold.diverged:
            return Stop(Reason.DIVERGED, f"{self._spec.metric} is not a finite number")
        return None

    def _capped(self, clock: Phases) -> Stop | None:
        cap_s = self.cap_s
        crossed = self._over is not None and self._over[2].reason is Reason.TARGET
        if cap_s is None or crossed:
            return None
        if self._evaluated_s >= cap_s:
            why = self._control.cap_why or self._spec.cap_why
            message = f"not at the target by the cap of {cap_s:.4g} s"
            if why:
                message = f"stopped at {self._evaluated_s:.1f} s: {why}"
            return Stop(Reason.CAP, message, cap_s)
        if self._control.forecast:
            seconds = clock.seconds(self._spec.clock)
            message = f"stopped at {seconds:.1f} s: {self._control.forecast}"
            return Stop(Reason.FORECAST, message, cap_s)
        if self._training_at is not None and clock.seconds(self._spec.clock) > CAP_BACKSTOP * cap_s:
            return Stop(Reason.CAP, self._unevaluated(cap_s, clock), cap_s)
        return None

    def _unevaluated(self, cap_s: float, clock: Phases) -> str:
        """Which limit ended an attempt that was not evaluated at its cap, and what to do."""
        why = self._control.cap_why or self._spec.cap_why
        whose = ""
        if self._spec.reader == "patterns":
            whose = " by the runner's clock, as the script's output is read for none"
        return (
            f"ended by its cap of {cap_s:.4g} s{f' ({why})' if why else ''}: it trained for "
            f"{clock.seconds(self._spec.clock):.4g} s{whose}, more than {CAP_BACKSTOP:g} times the cap, "
            "without an evaluation after the cap; let the script evaluate more often, or set "
            "[racing] cap = false"
        )

    def _out_of_time(self, now: float, clock: Phases) -> Stop | None:
        spec = self._spec
        if self._training_at is None:
            if now - self._spawned_at > spec.startup_s:
                message = f"no sign of training in the first {spec.startup_s:g} s (startup_s)"
                return Stop(Reason.HUNG, message)
            return None
        spent_s = clock.seconds("wall") - clock.startup - clock.compile
        if spent_s >= spec.trial_s:
            return Stop(Reason.TIMEOUT, f"{spec.trial_s:g} s (trial_s) used up")
        wall_s = now - self._training_at - (clock.compile - self._compiled_s)
        if wall_s >= spec.trial_s + spec.grace_s:
            message = (
                f"{spec.trial_s:g} s (trial_s) used up on the wall; its clock says {spent_s:.4g}"
            )
            return Stop(Reason.TIMEOUT, message)
        return None

    def _forgotten(self, now: float) -> Stop | None:
        lease_s = self._spec.lease_s
        if lease_s is None or now - self._renewed_at <= lease_s:
            return None
        return Stop(Reason.LOST, f"its lease was not renewed for {lease_s:g} s (lease_s)")

    def _silent(self, now: float) -> Stop | None:
        spec = self._spec
        if self._finished_at is not None:
            late = now - self._finished_at > max(spec.grace_s, GO_ON_S)
            message = "did not exit after its last event"
            return Stop(Reason.HUNG, message, finished=True) if late else None
        if self._training_at is not None and now - self._alive_at > spec.silence_s:
            return Stop(Reason.HUNG, f"silent for {spec.silence_s:g} s (silence_s)")
        return None

    def _drained(self) -> Stop | None:
        return Stop(Reason.BUDGET, "asked to stop early") if self._control.drain else None
