"""Attempts under way: their curves so far, and what the stage's race wants of them (control.json).

It must not know databases, samplers or executors; which rule wants what is the race's business.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sweeper import readout
from sweeper.events import finite
from sweeper.executors.base import Slot
from sweeper.paths import AttemptPaths, write_json
from sweeper.progress import Progress
from sweeper.racing.cap import UNEXPECTED, Cap
from sweeper.racing.race import Race
from sweeper.racing.standing import Standing
from sweeper.spec import Control, SpecError
from sweeper.trial import (
    AttemptFacts,
    Evaluation,
    Phases,
    PlannedTrial,
    Reason,
    StagePlan,
    TrialFacts,
)

SAME_CAP = 0.005
"""A cap that moves by less than this share is not worth a word, and left as it is where it falls."""
_ROUNDING = 1e-6
"""Caps go to the runner and back as text."""
NO_CAP_S = 1e9
"""Written where there is no bound any more: a control file cannot take a spec's cap away."""


@dataclass
class Running:
    """One attempt between begin and record.

    `cap_s` is the cap in force. `control` is what was last asked of its runner; `said` what was last
    reported about it.
    """

    trial: PlannedTrial
    attempt: int
    paths: AttemptPaths
    slot: Slot | None
    follow: readout.Follow
    cap_s: float | None = None
    control: Control = field(default_factory=Control)
    curve: list[Evaluation] = field(default_factory=list)
    said: str = ""

    def look(self, metric: str) -> Iterator[Evaluation]:
        """New probes since the last look; they are added to the curve."""
        for event in self.follow.new():
            if event.get("event") != "evaluated" or event.get("slice", "probe") != "probe":
                continue
            loss = finite((event.get("metrics") or {}).get(metric))
            if loss is not None:
                tokens = int(event.get("tokens") or 0)
                clock = Phases.from_mapping(event.get("clock") or {})
                probe = Evaluation(int(event["step"]), tokens, clock, loss)
                self.curve.append(probe)
                yield probe

    def bound(self, seconds: float | None, why: str) -> bool:
        """Ask for another cap; True when it differs from the one in force."""
        wanted, now = (NO_CAP_S if s is None else s for s in (seconds, self.cap_s))
        same = math.isclose(wanted, now, rel_tol=SAME_CAP)
        if wanted > now or not same:  # whoever is watched for too little is run again
            self.cap_s = seconds
            self._ask(replace(self.control, cap_s=wanted, cap_why=why))
        return not same

    def stop(self, why: str) -> None:
        """Ask for its end: it need not go on."""
        if not self.control.forecast:
            self._ask(replace(self.control, forecast=why))

    def drain(self) -> None:
        """Ask for its end: it counts as measured until now, and is run again by the next command."""
        if not self.control.drain:
            self._ask(replace(self.control, drain=True))

    def _ask(self, control: Control) -> None:
        with contextlib.suppress(OSError, SpecError):
            if Control.read(self.paths.control).cancel:  # `sweep cancel` has asked for more
                return
        with contextlib.suppress(OSError):  # a folder that vanished has nobody to tell
            write_json(self.paths.control, control.to_json())
            self.control = control


@dataclass
class Steering:
    """Asks a stage's race about every attempt, and hands its answers on.

    `target` is the one in force. Call `refresh` whenever facts or plan have changed.
    """

    race: Race
    progress: Progress
    target: float
    metric: str
    _standing: Standing = field(init=False)
    _plan: StagePlan = field(init=False)
    _announced: str = ""
    _asked: tuple[float, tuple[float, ...]] = (math.nan, ())

    @property
    def all_seen(self) -> bool:
        """Whether every trial has had a run that ended, so that only second ones are left to start."""
        return self.race.last

    @all_seen.setter
    def all_seen(self, seen: bool) -> None:
        self.race.last = seen

    def refresh(self, facts: Mapping[str, TrialFacts], plan: StagePlan) -> None:
        """Take new facts into account."""
        self._plan = plan
        self._standing = self.race.standing(list(facts.values()), self.target)

    def cap(self, trial: PlannedTrial) -> Cap | None:
        """The bound of a trial now."""
        return self.race.cap(trial, self._standing, self._plan)

    def order(self, trials: Sequence[PlannedTrial], ready: Sequence[int]) -> list[PlannedTrial]:
        """Of a plan's trials those that are `ready` (1, else 0), the one to start next first."""
        return self.race.order(trials, ready, self._standing)

    def reopens(self) -> bool:
        """Whether trials that have run may matter again since this was last asked.

        That is at another target, or when the winner of a group has become slower (see
        `matters_again`; who may enter the top k is asked only when nothing else is left).
        """
        winners = self.race.winners_s(self._standing, self._plan)
        before, self._asked = self._asked, (self.target, winners)
        slower = (now > then for then, now in zip(before[1], self._asked[1], strict=False))
        return before[0] != self.target or any(slower)

    def matters_again(self, trial: PlannedTrial, counted: AttemptFacts) -> bool:
        """Whether a trial that was cut off must be watched for longer than it was.

        A time that capped it is slower now, or does not count any more, or the k-th best is not as
        fast as expected. Until nothing else is left to run (`all_seen`) only the winner of a group
        counts, for which other trials wait: the k-th best may still get faster.
        """
        if counted.reason not in (Reason.CAP, Reason.FORECAST) or counted.cap_s is None:
            return False
        watch = self.race.watch(trial, self._standing, self._plan)
        least = max(watch.winner_s, watch.top_s if self.all_seen else 0.0)
        return least > counted.cap_s * (1 + _ROUNDING)

    def reopened(self, facts: TrialFacts) -> str:
        """Why a trial that was cut off is run again; nothing where it is not, or not for that."""
        counted = facts.counted
        if counted is None or not self.matters_again(facts.trial, counted):
            return ""
        bound = self.cap(facts.trial)
        how = "by a cap" if counted.reason is Reason.CAP else "early, judged by a cap"
        why = "what is known now asks for longer"
        if UNEXPECTED in counted.message:
            why = "and the others were not as fast as expected"
        now = "nothing caps it now" if bound is None else f"its cap is {bound.seconds:.1f} s now"
        what = f"it was cut off {how} of {counted.cap_s:.1f} s, {why}; {now}"
        return f"{facts.trial.id}: run again: {what}"

    def look(self, running: Running) -> None:
        """Show what an attempt has measured since, and end it where a rule already knows."""
        fresh = False
        for probe in running.look(self.metric):
            fresh = True
            self.progress.evaluated(running.trial, probe.step, probe.clock.train, probe.value)
        if not fresh or running.control.forecast:
            return
        early = self.race.early(running.curve, self.cap(running.trial), self._standing)
        if early is None:
            return
        if early.may_stop:
            running.stop(early.why)
        elif not running.said:
            running.said = early.why
            self.progress.note(f"{running.trial.id}: {early.why}; it goes on")

    def rebound(self, running: Iterable[Running]) -> None:
        """Give every attempt the cap that holds now."""
        for one in running:
            bound = self.cap(one.trial)
            if bound is None and one.cap_s is None:
                continue
            before = one.cap_s
            if one.bound(bound.seconds if bound else None, bound.why if bound else ""):
                self.progress.bounded(one.trial, one.cap_s)
                now = "none" if bound is None else f"{bound.seconds:.1f} s"
                was = "none" if before is None else f"{before:.1f} s"
                self.progress.note(f"{one.trial.id}: cap {now} (was {was})")

    def stretch(self) -> tuple[float, str] | None:
        """The stretch target to go on to now that nothing is left to run, with the reason, or None."""
        return self.race.stretch(self._standing)

    def fallback(self) -> tuple[float, str] | None:
        """The target to switch to, with the reason; announces a target that looks out of reach."""
        if not self._announced and (words := self.race.reachability(self._standing)):
            self._announced = words
            self.progress.note(words, "unreachable")
        return self.race.fallback(self._standing)
