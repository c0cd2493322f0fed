"""Forecasts of a running trial from its stage's own finished curves, and whether they may be trusted.

It must not fit formulas: on small-GPT curves power laws put most crossings far too late (method 4).
"""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.racing.changes import changed
from sweeper.racing.standing import Run, Standing
from sweeper.trial import Clock, Evaluation

MARGIN = 1.10
"""A trial is only said to be late when even the most hopeful forecast is so much above its cap."""
WRONG_STOPS = 1 / 20
"""The share of wrong stops that leave-one-out may show before a forecast only reports."""
EARLIEST = 0.5
"""No forecast stops a trial before this share of its cap."""


@dataclass(frozen=True)
class Track:
    """A curve as tokens, seconds and the lowest loss so far, all rising (the loss falling).

    Arrays, not to be changed: a track of every run is kept.
    """

    tokens: array[float]
    seconds: array[float]
    losses: array[float]
    gains: array[float]
    """The losses' negatives, which rise: what bisection wants."""

    @classmethod
    def of(cls, curve: Sequence[Evaluation], clock: Clock) -> Track:
        """The finite probes of a curve; steps stand for tokens where a trainer counts none."""
        tokens, seconds, losses = array("d"), array("d"), array("d")
        lowest = math.inf
        counted = any(e.tokens for e in curve)
        for probe in curve:
            if probe.slice == "probe" and math.isfinite(probe.value):
                lowest = min(lowest, probe.value)
                tokens.append(float(probe.tokens if counted else probe.step))
                seconds.append(probe.clock.seconds(clock))
                losses.append(lowest)
        return cls(tokens, seconds, losses, array("d", (-x for x in losses)))

    def until(self, place: int) -> Track:
        """The first `place` evaluations alone."""
        whole = (self.tokens, self.seconds, self.losses, self.gains)
        tokens, seconds, losses, gains = (part[:place] for part in whole)
        return Track(tokens, seconds, losses, gains)

    def tokens_at(self, loss: float) -> float | None:
        """Tokens at which the lowest loss came down to this one, interpolated; None if it never did."""
        place = bisect.bisect_left(self.gains, -loss)
        if place == len(self.losses):
            return None
        if place == 0 or self.losses[place] == loss:
            return self.tokens[place]
        high, low = self.losses[place - 1], self.losses[place]
        share = (high - loss) / (high - low)
        return self.tokens[place - 1] + share * (self.tokens[place] - self.tokens[place - 1])

    def loss_at(self, seconds: float) -> float | None:
        """The lowest loss by that time; None where the curve ends earlier."""
        if not self.seconds or self.seconds[-1] < seconds:
            return None
        place = bisect.bisect_right(self.seconds, seconds)
        return self.losses[place - 1] if place else None


@dataclass(frozen=True)
class Finished:
    """The curve of a run that reached: what others are compared with. `key` names the attempt."""

    key: str
    track: Track
    crossed_s: float


class Curves:
    """The tracks of a stage's measured runs, each made once: an ended curve never changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tracks: dict[str, Track] = {}
        self._runs: Sequence[Run] = ()
        self._finished: list[Finished | None] = []

    def tracks(self, standing: Standing) -> tuple[Track, ...]:
        """Every measured curve."""
        return tuple(self._track(r) for r in standing.runs if r.time is not None)

    def finished(self, standing: Standing) -> tuple[Finished, ...]:
        """Every run that reached and has a curve to compare with."""
        runs = standing.runs
        news = changed(self._runs, runs)
        del self._finished[len(runs) :]
        for place in (n for n in news if n < len(runs)):
            self._finished[place : place + 1] = [self._of(runs[place], standing.target)]
        self._runs = runs
        return tuple(filter(None, self._finished))

    def _of(self, run: Run, target: float) -> Finished | None:
        if run.reached_s is None:
            return None
        track = self._track(run)
        if len(track.losses) < 2 or track.tokens_at(target) is None:
            return None
        return Finished(_key(run), track, run.reached_s)

    def _track(self, run: Run) -> Track:
        key = _key(run)
        if key not in self._tracks:
            curve = run.attempt.curve if run.attempt is not None else ()
            self._tracks[key] = Track.of(curve, self._clock)
        return self._tracks[key]


def _key(run: Run) -> str:
    return f"{run.trial.id}#{run.attempt.attempt if run.attempt else 0}"


def expected_s(track: Track, finished: Sequence[Finished], target: float) -> float | None:
    """Seconds at which a trial would cross if it went on like the quickest finisher from its loss.

    From the trial's lowest loss on, each finished curve needed so many more tokens to the target; the
    fewest of these, at the trial's own speed. The hopeful end of what may happen, on purpose.
    """
    if len(track.losses) < 2 or track.tokens[-1] <= track.tokens[0]:
        return None
    speed = (track.seconds[-1] - track.seconds[0]) / (track.tokens[-1] - track.tokens[0])
    more = []
    for other in finished:
        end = other.track.tokens_at(target)
        here = other.track.tokens_at(max(track.losses[-1], target))
        if end is not None and here is not None:
            more.append(end - here)
    return track.seconds[-1] + speed * min(more) if more else None


def is_late(
    track: Track, finished: Sequence[Finished], target: float, cap_s: float
) -> float | None:
    """The hopeful forecast when even that is beyond the cap, past half of it; else None."""
    if not track.seconds or track.seconds[-1] < EARLIEST * cap_s:
        return None
    expected = expected_s(track, finished, target)
    return expected if expected is not None and expected > MARGIN * cap_s else None


@dataclass(frozen=True)
class Trust:
    """What leave-one-out showed: wrong stops among so many finished curves."""

    curves: int
    wrong: int
    wanted: int

    @property
    def granted(self) -> bool:
        """Whether a forecast may stop a trial, and not only report."""
        return self.curves >= max(1, self.wanted) and self.wrong <= WRONG_STOPS * self.curves

    def words(self) -> str:
        """`0 wrong stops in 12 finished curves`."""
        return f"{self.wrong} wrong stops in {self.curves} finished curves"


class LeaveOneOut:
    """Would finished trials have been stopped with the others as their past?

    Each is judged as if its cap had been its own crossing time: the tightest under which it must
    survive. One that survived goes on doing so: more curves make forecasts more hopeful.
    """

    def __init__(self) -> None:
        self._target = math.nan
        self._seen: set[str] = set()
        self._survived: set[str] = set()

    def trust(self, finished: Sequence[Finished], target: float, k: int) -> Trust:
        """How many of them would have been stopped wrongly; a stop is allowed from k of them on."""
        keys = {one.key for one in finished}
        if target != self._target or not self._seen <= keys:
            self._target, self._survived = target, set()
        self._seen = keys
        for place, one in enumerate(finished):
            if one.key not in self._survived:
                others = [*finished[:place], *finished[place + 1 :]]
                if not _stopped_wrongly(one, others, target):
                    self._survived.add(one.key)
        return Trust(len(finished), len(keys - self._survived), k)


def _stopped_wrongly(one: Finished, others: Sequence[Finished], target: float) -> bool:
    return any(
        one.track.seconds[n - 1] < one.crossed_s
        and is_late(one.track.until(n), others, target, one.crossed_s) is not None
        for n in range(2, len(one.track.losses) + 1)
        if one.track.seconds[n - 1] >= EARLIEST * one.crossed_s
    )
