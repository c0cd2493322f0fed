"""Which measurements may be believed: a verdict per attempt, from what was recorded about its device.

It must not know how a device is watched or what is done about a verdict; facts in, facts out.

Method section 7. Every threshold is relative to what the same device did in the study's other attempts.
What it always does makes a time suspect, and never throws it away.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple, TypeAlias

from sweeper.curve import column, seconds
from sweeper.racing.changes import changed
from sweeper.study import Validity
from sweeper.trial import AttemptFacts, Outcome, Reason, TrialFacts

TAKEN_SUSPECT, TAKEN_INVALID = 0.10, 0.25
"""Shares of its processors' time that other processes and the hypervisor had."""
SLOWED_SUSPECT, SLOWED_INVALID = 0.05, 0.25
"""Shares of looks under a thermal or hardware slowdown."""
LOW_CLOCK = 0.90
"""A median clock below this share of the device's usual one is a slowdown."""
UNUSUAL = 2.0
"""So many times what the device usually shows is out of the ordinary."""
DRIFT_SUSPECT, DRIFT_INVALID = 1.25, 1.50
"""Times per token over the usual one: with a cause the first is enough, without one the second."""
LEAST_TRAIN_S = 2.0
"""Shorter runs say nothing about their pace: a step time of milliseconds is all scheduling."""
LEAST_INTERVALS = 3
HALF_INTERVALS = 8
"""A change of pace inside a run is looked for from so many evaluations on."""
CONTROL_RUNS = 3
"""A configuration that was run so often on a device is a control for the runs between its own."""
LEAST_TRIALS = 4
"""With fewer trials, `rejects nearly everything` means nothing."""


class Doubt(NamedTuple):
    """What speaks against a measurement; with a reason it is invalid, without it is suspect."""

    words: str
    reason: Reason | None = None


@dataclass(frozen=True)
class Judged:
    """Facts with every attempt's verdict in it, and what must be said about all of them together.

    An invalid attempt has outcome `invalid`, so nothing ranks it, and its trial is run once more. A
    suspect one is ranked, with its doubts in `device["observed"]["doubts"]`.
    """

    facts: tuple[TrialFacts, ...]
    banner: str = ""


def judge(
    facts: Sequence[TrialFacts], settings: Validity, earlier: Sequence[TrialFacts] = ()
) -> Judged:
    """The verdict on every attempt that measured something.

    Args:
        facts: One or more stages' trials, as recorded.
        settings: The switches.
        earlier: Facts of other stages, for what the devices usually do; they are not judged.
    """
    return Judge(settings, earlier).judge(facts)


class Judge:
    """Gives verdicts on the same growing facts again and again, anew only where something is new.

    That is on the devices that something ran on meanwhile. A verdict that stays is the same object.
    """

    def __init__(self, settings: Validity, earlier: Sequence[TrialFacts] = ()) -> None:
        """See `judge`."""
        self._settings = settings
        self._earlier = earlier
        self._row: Sequence[TrialFacts] = ()
        self._runs: dict[str, list[_Run]] = defaultdict(list)
        self._fingerprinted: list[_Run] = []
        self._first: Mapping[str, Any] = _NONE
        self._doubts: dict[str, Mapping[_Key, Sequence[Doubt]]] = {}
        self._counted: dict[int, _Key] = {}
        self._given: dict[int, tuple[TrialFacts, Sequence[Sequence[Doubt]], bool, TrialFacts]] = {}

    def judge(self, facts: Sequence[TrialFacts]) -> Judged:
        """See `judge`; the answer is the same whatever was asked before."""
        if not self._settings.gate:
            return Judged(tuple(facts))
        self._take([*self._earlier, *facts])
        doubts = {key: of for found in self._doubts.values() for key, of in found.items()}
        if not doubts:
            return Judged(tuple(facts))
        count = len(self._counted)
        rejected = sum(
            self._counted.get(key[0]) == key and _rejection(of) is not None
            for key, of in doubts.items()
        )
        lenient = count >= LEAST_TRIALS and 2 * rejected > count
        banner = ""
        if lenient:
            banner = (
                f"The validity gate would reject {rejected} of {count} trials, so nothing is "
                "left out: every time is suspect. What disturbs this machine has to be found first."
            )
        judged = list(self._row)
        for place in {place for place, _ in doubts}:
            judged[place] = self._verdict(place, doubts, lenient=lenient)
        return Judged(tuple(judged[len(self._earlier) :]), banner)

    def _take(self, row: Sequence[TrialFacts]) -> None:
        """Follow what is new, and doubt anew what ran on devices for which something is."""
        news = changed(self._row, row)
        devices: set[str] = set()
        for place in news:
            if place < len(self._row):
                devices |= self._forget(place)
        for place in news:
            if place < len(row):
                devices |= self._know(place, row[place])
        self._row = row
        first = self._fingerprinted[0].attempt.fingerprint if self._fingerprinted else _NONE
        if first is not self._first:
            self._first = first
            devices |= self._runs.keys()
        for device in devices:
            history = _Device(self._runs[device], first)
            found = {run.key: history.doubts(run) for run in self._runs[device]}
            if not self._settings.pace:
                found = {key: _of_fingerprints(of) for key, of in found.items()}
            self._doubts[device] = {key: of for key, of in found.items() if of}

    def _forget(self, place: int) -> set[str]:
        devices = set()
        for run in _runs_of(place, self._row[place]):
            devices.add(_device(run.attempt))
            self._runs[_device(run.attempt)].remove(run)
            if run in self._fingerprinted:
                self._fingerprinted.remove(run)
        self._counted.pop(place, None)
        return devices

    def _know(self, place: int, facts: TrialFacts) -> set[str]:
        devices = set()
        for run in _runs_of(place, facts):
            devices.add(_device(run.attempt))
            insort(self._runs[_device(run.attempt)], run, key=_when)
            if not self._settings.mixed and any(run.attempt.fingerprint.values()):
                insort(self._fingerprinted, run, key=_when)
            if run.attempt is facts.counted and place >= len(self._earlier):
                self._counted[place] = run.key
        return devices

    def _verdict(
        self, place: int, doubts: Mapping[_Key, Sequence[Doubt]], *, lenient: bool
    ) -> TrialFacts:
        facts = self._row[place]
        of = [doubts.get((place, n), ()) for n in range(len(facts.attempts))]
        given = self._given.get(place)
        if given is None or given[0] is not facts or given[1:3] != (of, lenient):
            read = zip(facts.attempts, of, strict=True)
            judged = replace_attempts(facts, [_with(a, d, lenient=lenient) for a, d in read])
            given = self._given[place] = (facts, of, lenient, judged)
        return given[3]


def may_measure_again(facts: TrialFacts) -> bool:
    """An invalid measurement is repeated once; under another fingerprint as often as it takes."""
    invalid = [a for a in facts.attempts if a.outcome is Outcome.INVALID]
    return len(invalid) < 2 or invalid[-1].reason is Reason.FINGERPRINT


def doubts_of(attempt: AttemptFacts) -> tuple[str, ...]:
    """The doubts about an attempt, in words: the runner's and the gate's."""
    observed = attempt.device.get("observed")
    found = observed.get("doubts") if isinstance(observed, Mapping) else None
    return tuple(map(str, found)) if isinstance(found, Sequence) else ()


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two fingerprints differ, in words; what only one of them knows is no difference."""
    return [
        f"{name}: {first} and {second}"
        for name, first, second in _compared(one, other)
        if first != second
    ]


def _compared(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in one.keys() & other.keys():
        first, second = one[name], other[name]
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _compared(first, second, f"{path}{name}.")
        elif first is not None and second is not None:
            yield f"{path}{name}", first, second


_NONE: Mapping[str, Any] = {}
_COMPARED = ("slowed_share", "clock_mhz", "foreign_share", "steal_share")
"""Figures that are compared with what is usual on the device."""
_Key: TypeAlias = tuple[int, int]
"""A trial's place in the row of all facts, and an attempt's among its attempts."""


def replace_attempts(facts: TrialFacts, attempts: Sequence[AttemptFacts]) -> TrialFacts:
    """The same value where no attempt changed: what was derived from them stays known."""
    same = all(new is old for new, old in zip(attempts, facts.attempts, strict=True))
    return facts if same else TrialFacts(facts.trial, tuple(attempts))


def _measured(attempt: AttemptFacts) -> bool:
    return attempt.outcome in (Outcome.REACHED, Outcome.CENSORED)


def _rejection(doubts: Sequence[Doubt]) -> Doubt | None:
    return next((d for d in doubts if d.reason is not None), None)


def _with(attempt: AttemptFacts, doubts: Sequence[Doubt], *, lenient: bool) -> AttemptFacts:
    if not doubts:
        return attempt
    rejection = None if lenient else _rejection(doubts)
    words = list(dict.fromkeys([*doubts_of(attempt), *(d.words for d in doubts)]))
    observed = {**(attempt.device.get("observed") or {}), "doubts": words}
    changed = replace(attempt, validity="suspect", device={**attempt.device, "observed": observed})
    if rejection is None or rejection.reason is None:
        return changed
    return replace(
        changed,
        validity="invalid",
        outcome=Outcome.INVALID,
        reason=rejection.reason,
        message=f"{rejection.words} (otherwise: {attempt.message or attempt.reason.value})",
    )


class _Run(NamedTuple):
    """One run of a point: which attempt of the trial in which place of the row."""

    key: _Key
    point: str
    attempt: AttemptFacts


def _runs_of(place: int, facts: TrialFacts) -> list[_Run]:
    """The attempts of a trial that measured something."""
    point = facts.trial.point.id
    return [_Run((place, n), point, a) for n, a in enumerate(facts.attempts) if _measured(a)]


def _when(run: _Run) -> tuple[float, _Key]:
    """In the order of their starts; of two at once the first in the row."""
    return run.attempt.started_at, run.key


class _Control(NamedTuple):
    """A configuration that ran often on a device: when, at what pace, and its usual pace."""

    point: str
    at: Sequence[float]
    paces: Sequence[float]
    usual: float


def _of_fingerprints(doubts: Sequence[Doubt]) -> Sequence[Doubt]:
    """Those that have nothing to do with how long a run took."""
    return tuple(d for d in doubts if d.reason is Reason.FINGERPRINT)


class _Device:
    """What one device did in all attempts of a study, in the order of their starts."""

    def __init__(self, runs: Sequence[_Run], fingerprint: Mapping[str, Any]) -> None:
        self._fingerprint = fingerprint
        at: dict[str, list[float]] = defaultdict(list)
        paces: dict[str, list[float]] = defaultdict(list)
        for run in runs:
            if (pace := _pace(run.attempt)) is not None:
                at[run.point].append(run.attempt.started_at)
                paces[run.point].append(pace)
        self._controls = [
            _Control(point, at[point], of, _lower_median(of))
            for point, of in paces.items()
            if len(of) >= CONTROL_RUNS
        ]
        self._paces = {point: sorted(of) for point, of in paces.items()}
        self._change = _lower_median([_change(run.attempt) for run in runs]) if runs else 1.0
        self._figures = {
            key: sorted(x for run in runs if (x := _figure(run.attempt, key)) is not None)
            for key in _COMPARED
        }

    def doubts(self, run: _Run) -> Sequence[Doubt]:
        """Everything that speaks against one attempt, what makes it invalid with its reason."""
        found, (_, point, attempt) = [], run
        same = self._fingerprint == attempt.fingerprint  # nearly always, and quickly seen
        if not same and (other := differences(self._fingerprint, attempt.fingerprint)):
            words = f"another fingerprint than the study's first trial: {'; '.join(sorted(other))}"
            found.append(Doubt(words, Reason.FINGERPRINT))
        drift, drift_words = self._drift(point, attempt)
        found += self._slowed(attempt, drift)
        found += self._taken(attempt, drift)
        if drift >= DRIFT_SUSPECT:
            sure = drift >= DRIFT_INVALID and _was_watched(attempt)
            found.append(Doubt(drift_words, Reason.SHARED_DEVICE if sure else None))
        elif between := self._slow_controls(point, attempt):
            found.append(Doubt(between))
        return found

    def _slowed(self, attempt: AttemptFacts, drift: float) -> Iterator[Doubt]:
        """Throttling that the device itself told of, or clocks below its usual ones."""
        share = _figure(attempt, "slowed_share") or 0.0
        if share >= SLOWED_SUSPECT:
            unusual = share > UNUSUAL * self._usual(share, "slowed_share")
            sure = unusual and (share >= SLOWED_INVALID or drift >= DRIFT_SUSPECT)
            words = f"clocks were slowed down by heat or hardware in {share:.0%} of the looks"
            yield Doubt(words, Reason.THROTTLED if sure else None)
        clock = _figure(attempt, "clock_mhz")
        if clock is not None and clock < LOW_CLOCK * (usual := self._usual(clock, "clock_mhz")):
            words = f"its clock was {clock:.0f} MHz, the device's usual one is {usual:.0f} MHz"
            yield Doubt(words, Reason.THROTTLED if drift >= DRIFT_SUSPECT else None)

    def _taken(self, attempt: AttemptFacts, drift: float) -> Iterator[Doubt]:
        """Load: processors' time that others had while it ran."""
        for key, who in (
            ("foreign_share", "other processes used"),
            ("steal_share", "the hypervisor took"),
        ):
            share = _figure(attempt, key) or 0.0
            if share < TAKEN_SUSPECT:
                continue
            unusual = share > UNUSUAL * self._usual(share, key)
            sure = unusual and (share >= TAKEN_INVALID or drift >= DRIFT_SUSPECT)
            words = f"{who} {share:.0%} of its processors' time"
            yield Doubt(words, Reason.SHARED_DEVICE if sure else None)

    def _drift(self, point: str, attempt: AttemptFacts) -> tuple[float, str]:
        """How much slower it was per token than the same configuration, or than its own other half."""
        pace = _pace(attempt)
        if pace is None:
            return 1.0, ""
        others = _lower_median_of_others(self._paces[point], pace)
        against = 1.0 if others is None else pace / others
        change, usual = _change(attempt), self._change
        if against < DRIFT_SUSPECT <= change / usual:  # alone it is weak: some do it by design
            return DRIFT_SUSPECT, (
                f"one half of it took {change:.2f} x the time per token of the other; "
                f"{usual:.2f} x is usual here"
            )
        return against, (
            f"it took {against:.2f} x the time per token of the same configuration's other runs on "
            "this device"
        )

    def _slow_controls(self, point: str, attempt: AttemptFacts) -> str:
        """A device that was slow for its control, right before and right after."""
        for control in self._controls:
            if control.point == point:
                continue
            after = bisect_right(control.at, attempt.started_at)
            if 0 < after < len(control.at):
                slower = min(control.paces[after - 1 : after + 1]) / control.usual
                if slower >= DRIFT_SUSPECT:
                    return f"the control runs around it took {slower:.2f} x their usual time"
        return ""

    def _usual(self, own: float, key: str) -> float:
        """The lower median of a figure over the device's other attempts; 0 when there is none."""
        return _lower_median_of_others(self._figures[key], own) or 0.0


def _device(attempt: AttemptFacts) -> str:
    """What an attempt ran on; its own observations do not belong to the name."""
    if "device" not in attempt.derived:
        names = [attempt.device.get(key) for key in ("kind", "node", "uuid", "cores", "index")]
        attempt.derived["device"] = repr(names)
    name: str = attempt.derived["device"]
    return name


def _was_watched(attempt: AttemptFacts) -> bool:
    """Whether our runner measured it. Foreign results have times that nobody vouches for."""
    return _figure(attempt, "samples") is not None


def _figure(attempt: AttemptFacts, key: str) -> float | None:
    observed = attempt.device.get("observed")
    value = observed.get(key) if isinstance(observed, Mapping) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]


def _pace(attempt: AttemptFacts) -> float | None:
    """Median train seconds per token (per step, where none are counted) between evaluations.

    None for a run that is too short to say, or whose micro batch was changed for its memory.
    """
    return _pace_and_change(attempt)[0]


def _change(attempt: AttemptFacts) -> float:
    """The slower half's median time per token over the faster half's; 1 for a short run."""
    return _pace_and_change(attempt)[1]


def _pace_and_change(attempt: AttemptFacts) -> tuple[float | None, float]:
    if "pace" not in attempt.derived:
        rates = _rates(attempt)
        pace, change = None, 1.0
        long = attempt.phases.train >= LEAST_TRAIN_S
        if long and len(rates) >= LEAST_INTERVALS and not attempt.device.get("adjusted"):
            pace = statistics.median(rates) or None
        if long and len(rates) >= HALF_INTERVALS:
            half = len(rates) // 2
            sides = sorted((statistics.median(rates[:half]), statistics.median(rates[half:])))
            change = sides[1] / sides[0] if sides[0] > 0 else 1.0
        attempt.derived["pace"] = pace, change
    known: tuple[float | None, float] = attempt.derived["pace"]
    return known


def _rates(attempt: AttemptFacts) -> list[float]:
    curve = attempt.curve
    train, tokens, work = seconds(curve, "train"), column(curve, "tokens"), column(curve, "step")
    kinds = column(curve, "slice")
    if "confirmation" in kinds:
        probes = [kind == "probe" for kind in kinds]
        train, tokens, work = (list(compress(found, probes)) for found in (train, tokens, work))
    if any(tokens):
        work = tokens
    return [
        (after - before) / (w1 - w0)
        for before, after, w0, w1 in zip(train, train[1:], work, work[1:], strict=False)
        if w1 > w0
    ]


def _lower_median(values: Sequence[float]) -> float:
    """Of two, the smaller: being slower is what needs a reason."""
    return sorted(values)[(len(values) - 1) // 2]


def _lower_median_of_others(ascending: Sequence[float], own: float) -> float | None:
    """Of all values but one's own; None when there are no others."""
    if len(ascending) < 2:
        return None
    place = (len(ascending) - 2) // 2
    return ascending[place if place < bisect_left(ascending, own) else place + 1]
