"""Which measurements may be believed: a verdict per attempt, from what was recorded about its device.

It must not know how a device is watched or what is done about a verdict; facts in, facts out.

Method section 7. Every threshold is relative to what the same device did in the study's other attempts.
What it always does makes a time suspect, and never throws it away.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

from sweeper.curve import column, seconds
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


Doubts = Mapping[int, Sequence[Doubt]]
"""By the identity of an attempt; those without any are left out."""


class Memory:
    """Doubts per device, kept until something else is known of that device.

    For who judges the same growing facts again and again; the answers are the same without it.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[_Run, ...], Mapping[str, Any], Doubts]] = {}

    def doubts(self, device: str, runs: Sequence[_Run], fingerprint: Mapping[str, Any]) -> Doubts:
        """The doubts about all runs of one device."""
        now = tuple(runs)
        before = self._known.get(device)
        if before is None or before[0] != now or before[1] is not fingerprint:
            history = _Device(now, fingerprint)
            found = {id(a): of for point, a in now if (of := history.doubts(point, a))}
            before = self._known[device] = (now, fingerprint, found)
        return before[2]


def judge(
    facts: Sequence[TrialFacts],
    settings: Validity,
    earlier: Sequence[TrialFacts] = (),
    memory: Memory | None = None,
) -> Judged:
    """The verdict on every attempt that measured something.

    Args:
        facts: One or more stages' trials, as recorded.
        settings: The switches.
        earlier: Facts of other stages, for what the devices usually do; they are not judged.
        memory: From earlier calls on fewer facts of the same study.
    """
    if not settings.gate:
        return Judged(tuple(facts))
    doubts = _doubts([*earlier, *facts], memory or Memory(), mixed=settings.mixed)
    if not settings.pace:
        doubts = _of_fingerprints(doubts)
    if not doubts:
        return Judged(tuple(facts))
    latest = [f.counted for f in facts if f.counted is not None and _measured(f.counted)]
    rejected = [a for a in latest if _rejection(doubts.get(id(a), ())) is not None]
    lenient = len(latest) >= LEAST_TRIALS and 2 * len(rejected) > len(latest)
    banner = ""
    if lenient:
        banner = (
            f"The validity gate would reject {len(rejected)} of {len(latest)} trials, so nothing is "
            "left out: every time is suspect. What disturbs this machine has to be found first."
        )
    judged = [
        replace_attempts(f, [_with(a, doubts.get(id(a), ()), lenient=lenient) for a in f.attempts])
        if any(id(a) in doubts for a in f.attempts)
        else f
        for f in facts
    ]
    return Judged(tuple(judged), banner)


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


class _Control(NamedTuple):
    """A configuration that ran often on a device: when, at what pace, and its usual pace."""

    point: str
    paces: Sequence[tuple[float, float]]
    usual: float


_Run = tuple[str, AttemptFacts]  # a point's id, and one run of it


def _of_fingerprints(doubts: Doubts) -> Doubts:
    """Those that have nothing to do with how long a run took."""
    kept = {
        of: tuple(d for d in found if d.reason is Reason.FINGERPRINT)
        for of, found in doubts.items()
    }
    return {of: found for of, found in kept.items() if found}


def _doubts(facts: Sequence[TrialFacts], memory: Memory, *, mixed: bool) -> Doubts:
    """Everything that speaks against any attempt, device by device."""
    known = [(f.trial.point.id, a) for f in facts for a in f.attempts if _measured(a)]
    known.sort(key=lambda run: run[1].started_at)
    fingerprints = (a.fingerprint for _, a in known if any(a.fingerprint.values()))
    first = _NONE if mixed else next(fingerprints, _NONE)
    by_device: dict[str, list[_Run]] = defaultdict(list)
    for run in known:
        by_device[_device(run[1])].append(run)
    found: dict[int, Sequence[Doubt]] = {}
    for device, runs in by_device.items():
        found.update(memory.doubts(device, runs, first))
    return found


class _Device:
    """What one device did in all attempts of a study, in the order of their starts."""

    def __init__(self, runs: Sequence[_Run], fingerprint: Mapping[str, Any]) -> None:
        self._runs = [attempt for _, attempt in runs]
        self._fingerprint = fingerprint
        self._by_point: dict[str, list[AttemptFacts]] = defaultdict(list)
        for point, attempt in runs:
            if _pace(attempt) is not None:
                self._by_point[point].append(attempt)
        self._controls = []
        for point, of in self._by_point.items():
            if len(of) >= CONTROL_RUNS:
                paces = [(a.started_at, p) for a in of if (p := _pace(a)) is not None]
                usual = _lower_median([p for _, p in paces])
                self._controls.append(_Control(point, paces, usual))
        self._change = _lower_median([_change(a) for a in self._runs])

    def doubts(self, point: str, attempt: AttemptFacts) -> list[Doubt]:
        """Everything that speaks against one attempt, what makes it invalid with its reason."""
        found = []
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
            unusual = share > UNUSUAL * self._usual(attempt, "slowed_share")
            sure = unusual and (share >= SLOWED_INVALID or drift >= DRIFT_SUSPECT)
            words = f"clocks were slowed down by heat or hardware in {share:.0%} of the looks"
            yield Doubt(words, Reason.THROTTLED if sure else None)
        clock = _figure(attempt, "clock_mhz")
        if clock is not None and clock < LOW_CLOCK * (usual := self._usual(attempt, "clock_mhz")):
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
            unusual = share > UNUSUAL * self._usual(attempt, key)
            sure = unusual and (share >= TAKEN_INVALID or drift >= DRIFT_SUSPECT)
            words = f"{who} {share:.0%} of its processors' time"
            yield Doubt(words, Reason.SHARED_DEVICE if sure else None)

    def _drift(self, point: str, attempt: AttemptFacts) -> tuple[float, str]:
        """How much slower it was per token than the same configuration, or than its own other half."""
        pace = _pace(attempt)
        if pace is None:
            return 1.0, ""
        runs = self._by_point[point]
        others = [p for a in runs if a is not attempt and (p := _pace(a)) is not None]
        against = pace / _lower_median(others) if others else 1.0
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
            before = [p for at, p in control.paces if at <= attempt.started_at]
            after = [p for at, p in control.paces if at > attempt.started_at]
            if before and after:
                slower = min(before[-1], after[0]) / control.usual
                if slower >= DRIFT_SUSPECT:
                    return f"the control runs around it took {slower:.2f} x their usual time"
        return ""

    def _usual(self, attempt: AttemptFacts, key: str) -> float:
        """The lower median of a figure over the device's other attempts; 0 when there is none."""
        others = (a for a in self._runs if a is not attempt)
        known = [x for a in others if (x := _figure(a, key)) is not None]
        return _lower_median(known) if known else 0.0


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
    curve, probes = attempt.curve, [kind == "probe" for kind in column(attempt.curve, "slice")]
    train = list(compress(seconds(curve, "train"), probes))
    tokens = list(compress(column(curve, "tokens"), probes))
    work = list(map(float, tokens if any(tokens) else compress(column(curve, "step"), probes)))
    return [
        (after - before) / (w1 - w0)
        for before, after, w0, w1 in zip(train, train[1:], work, work[1:], strict=False)
        if w1 > w0
    ]


def _lower_median(values: Sequence[float]) -> float:
    """Of two, the smaller: being slower is what needs a reason."""
    return sorted(values)[(len(values) - 1) // 2]
