"""Owns learning rate schedules: the factor on every learning rate, as a pure function of the step.

It must not know optimizers, rates in absolute terms, or torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import Schedule as ScheduleConfig
from trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Schedule:
    """One planned stretch of steps, `first` (counted from 0) to `end` (excluded).

    The factor rises linearly to `peak` over `warmup` steps (the first of them is not 0, the last is
    `peak`), then falls towards low = min(floor, peak), where it would arrive at step `end`; later
    steps stay there. With p from 0 to 1 between the end of the warm-up and `end`, it is

        constant     peak
        linear       peak + (low - peak) p
        cosine       low + (peak - low) (1 + cos(pi p)) / 2
        polynomial   low + (peak - low) (1 - p)^power
        step         max(low, peak * step_factor^(steps since the warm-up // step_every))
        wsd          peak, then linear over the last `decay` steps
    """

    kind: str
    first: int
    end: int
    warmup: int
    decay: int
    peak: float
    floor: float
    power: float
    step_every: int
    step_factor: float

    def at(self, step: int) -> float:
        """The factor of the update that follows `step` finished steps."""
        since = step - self.first
        if since < self.warmup:
            return self.peak * (since + 1) / self.warmup
        low = min(self.floor, self.peak)
        start = self.first + self.warmup
        if self.kind == "constant":
            return self.peak
        if self.kind == "step":
            drops = (step - start) // self.step_every
            return max(low, self.peak * self.step_factor**drops)
        if self.kind == "wsd":
            start = max(start, self.end - self.decay)
        p = min(1.0, max(0.0, (step - start) / max(1, self.end - start)))
        if self.kind == "cosine":
            shape = (1 + math.cos(math.pi * p)) / 2
        elif self.kind == "polynomial":
            shape = (1 - p) ** self.power
        else:  # linear, and the decay of wsd
            shape = 1 - p
        return low + (self.peak - low) * shape

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or an event."""
        return dataclasses.asdict(self)


def plan(config: ScheduleConfig, max_steps: int) -> Schedule:
    """The schedule of a run from step 0; ConfigError when the warm-up leaves no step to it."""
    end = config.horizon or max_steps
    warmup = config.warmup_steps or math.ceil(config.warmup_share * end)
    if warmup and warmup >= end:
        raise ConfigError(
            f"schedule.warmup_steps = {warmup}: expected fewer than the {end} steps of the schedule "
            "(schedule.horizon, else run.max_steps)"
        )
    return _stretch(config, first=0, end=end, warmup=warmup, peak=1.0)


def replan(config: ScheduleConfig, former: Schedule, *, step: int, max_steps: int) -> Schedule:
    """The schedule of an extension to `max_steps` in all, from `step` on.

    It begins at the factor in force (or at `schedule.restart`), without a second warm-up, and
    arrives at its floor at the new end. ConfigError when that factor is 0: nothing would be learned.
    """
    in_force = former.at(max(former.first, step - 1)) if step else former.at(0)
    peak = config.restart if config.restart is not None else in_force
    if peak <= 0:
        raise ConfigError(
            f"the schedule ({config.kind}) had come down to 0 at step {step}: an extension would "
            "learn nothing; set schedule.restart to the factor from which it shall go on"
        )
    warmup = 0
    if config.restart is None and step < former.first + former.warmup:
        # Cut off within the warm-up: finish it, towards the peak that was planned.
        warmup, step, peak = former.warmup, former.first, former.peak
    return _stretch(config, first=step, end=max_steps, warmup=warmup, peak=peak)


def restored(values: Mapping[str, Any]) -> Schedule:
    """The schedule that `as_dict` described."""
    return Schedule(**values)


def _stretch(config: ScheduleConfig, *, first: int, end: int, warmup: int, peak: float) -> Schedule:
    return Schedule(
        kind=config.kind,
        first=first,
        end=end,
        warmup=warmup,
        decay=math.ceil(config.decay_share * (end - first)),
        peak=peak,
        floor=config.floor,
        power=config.power,
        step_every=config.step_every,
        step_factor=config.step_factor,
    )
