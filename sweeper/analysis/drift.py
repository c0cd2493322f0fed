"""Whether the device stayed the same over a sweep: repeats of one configuration against each other.

It must not decide whether a measurement is valid: it shows what facts hold.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.dataset import StageFacts
from sweeper.analysis.intervals import t_quantile
from sweeper.analysis.wording import change, count
from sweeper.space import Point
from sweeper.trial import AttemptFacts, Clock, PlannedTrial

_NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Repeat:
    """One run of a configuration that was run more than once, on the same device.

    `hours` counts from the sweep's first start; `speed` is its log seconds per token (per step where
    tokens are not counted) less the mean of its configuration's runs.
    """

    id: str
    label: str
    device: str
    hours: float
    speed: float
    validity: str


@dataclass(frozen=True)
class Drift:
    """Repeats over time, with the trend of time per token, and what was said of every attempt.

    `per_hour` is the slope in log time per token per hour, with its 95 % interval; None with fewer
    than four repeats. `validity` counts the measured attempts by verdict, `doubts`
    what raised one, its numbers left out.
    """

    repeats: tuple[Repeat, ...]
    span_h: float
    per_hour: float | None
    low: float | None
    high: float | None
    validity: dict[str, int]
    doubts: dict[str, int]

    def words(self) -> str:
        """What repeats show, and how many attempts are doubted, in one or two sentences."""
        parts = []
        if self.per_hour is not None and self.low is not None and self.high is not None:
            whole = [
                math.exp(slope * self.span_h) for slope in (self.per_hour, self.low, self.high)
            ]
            size, low, high = map(change, whole)
            kind = "no drift is seen" if self.low <= 0 <= self.high else "the device drifted"
            parts.append(
                f"Over the sweep, time per token of equal configurations changed by {size} "
                f"[{low}, {high}] ({count(len(self.repeats), 'repeat')}): {kind}."
            )
        doubted = {kind: n for kind, n in self.validity.items() if kind != "valid"}
        if doubted:
            total = sum(self.validity.values())
            shown = ", ".join(f"{n} {kind}" for kind, n in doubted.items())
            parts.append(f"Of {count(total, 'measured attempt')}, {shown}.")
        return " ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "words": self.words(),
            "span_h": self.span_h,
            "per_hour": None if self.per_hour is None else math.expm1(self.per_hour),
            "low": None if self.low is None else math.expm1(self.low),
            "high": None if self.high is None else math.expm1(self.high),
            "over_sweep": [
                math.exp(slope * self.span_h)
                for slope in (self.per_hour, self.low, self.high)
                if slope is not None
            ],
            "validity": self.validity,
            "doubts": self.doubts,
            "repeats": [{**vars(r), "ratio": math.exp(r.speed)} for r in self.repeats],
        }


def device_of(attempt: AttemptFacts) -> str:
    """The device of an attempt in a word: `GPU-1a2b`, `gpu0`, `cpu0`."""
    device = attempt.device
    if device.get("slot"):
        return str(device["slot"])
    kind, index = device.get("kind"), device.get("index")
    if kind is not None:
        return f"{kind}{'' if index is None else index}"
    return str(device.get("name") or "device")


def drift(stages: Iterable[StageFacts], clock: Clock) -> Drift:
    """Of all measured attempts of the stages."""
    found: list[tuple[PlannedTrial, AttemptFacts]] = [
        (trial.trial, attempt) for stage in stages for trial, attempt in stage.measured()
    ]
    first = min((a.started_at for _, a in found), default=0.0)
    span = max((a.started_at for _, a in found), default=0.0) - first
    speeds: dict[tuple[Point, str], list[tuple[PlannedTrial, AttemptFacts, float]]] = {}
    for trial, attempt in found:
        work, spent = attempt.tokens or attempt.steps, attempt.phases.seconds(clock)
        if work and spent > 0:
            key = (trial.point, device_of(attempt))
            speeds.setdefault(key, []).append((trial, attempt, math.log(spent / work)))
    repeats = []
    for (_, device), runs in speeds.items():
        if len(runs) < 2:
            continue
        mean = statistics.fmean(speed for _, _, speed in runs)
        repeats += [
            Repeat(
                trial.id,
                runs[0][0].label,
                device,
                (attempt.started_at - first) / 3600,
                speed - mean,
                attempt.validity,
            )
            for trial, attempt, speed in runs
        ]
    repeats.sort(key=lambda repeat: repeat.hours)
    slope = _slope(repeats)
    doubts = Counter(
        _NUMBER.sub("…", str(doubt))
        for _, a in found
        for doubt in (a.device.get("observed") or {}).get("doubts", ())
    )
    return Drift(
        tuple(repeats),
        span / 3600,
        *slope,
        dict(Counter(a.validity for _, a in found)),
        dict(doubts.most_common()),
    )


def _slope(repeats: Sequence[Repeat]) -> tuple[float | None, float | None, float | None]:
    """Least squares of centred speed on centred time within configurations, with a t-interval."""
    groups: dict[tuple[str, str], list[Repeat]] = {}
    for repeat in repeats:
        groups.setdefault((repeat.label, repeat.device), []).append(repeat)
    pairs = []
    for runs in groups.values():
        middle = statistics.fmean(run.hours for run in runs)
        pairs += [(run.hours - middle, run.speed) for run in runs]
    degrees = len(pairs) - len(groups) - 1
    spread = math.fsum(x * x for x, _ in pairs)
    if degrees < 2 or spread <= 0:
        return None, None, None
    slope = math.fsum(x * y for x, y in pairs) / spread
    residual = math.fsum((y - slope * x) ** 2 for x, y in pairs) / degrees
    half = t_quantile(degrees, 0.05) * math.sqrt(residual / spread)
    return slope, slope - half, slope + half
