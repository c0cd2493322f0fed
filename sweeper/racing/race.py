"""One stage's race: every rule of method section 4 behind one value, each with its switch and words.

It must not know processes, databases or plans to come; it is asked, and never acts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

from sweeper.racing.cap import Cap, Caps, Entrants, Watch
from sweeper.racing.forecast import Curves, Finished, LeaveOneOut, Track, Trust, is_late
from sweeper.racing.order import Order
from sweeper.racing.reach import fallback, reach, stretch
from sweeper.racing.rungs import cut
from sweeper.racing.standing import Standing, Times
from sweeper.study import Rivals, Study
from sweeper.trial import Evaluation, PlannedTrial, StagePlan, TrialFacts


@dataclass(frozen=True)
class Early:
    """Why a running trial need not go on, or (not `may_stop`) what would have been said."""

    why: str
    may_stop: bool


def _no_rivals(trials: Sequence[PlannedTrial]) -> Mapping[str, Sequence[Rivals]]:  # noqa: ARG001
    return {}


@dataclass
class Race:
    """Who may still matter in a stage that keeps `keep` points (None: nothing is raced).

    `rivals` says of planned trials which of them compete for being the winner that another group
    takes; `earlier` are facts of stages before, whose points compete for the same places. `ordered` lets
    waiting trials change places. `foresees`: all points are planned, so that the k-th best of them can
    be expected before they have been seen; `last` says that all have been, or will never be.
    """

    study: Study
    keep: int | None
    rivals: Callable[[Sequence[PlannedTrial]], Mapping[str, Sequence[Rivals]]] = _no_rivals
    earlier: Sequence[TrialFacts] = ()
    ordered: bool = False
    foresees: bool = True
    last: bool = field(default=False, init=False)
    _times: Times = field(init=False)
    _order: Order = field(init=False)
    _curves: Curves = field(init=False)
    _left_out: LeaveOneOut = field(init=False)
    _seen: Standing | None = field(default=None, init=False)
    _finished: tuple[Finished, ...] = field(default=(), init=False)
    _tracks: tuple[Track, ...] = field(default=(), init=False)
    _trust: Trust | None = field(default=None, init=False)
    _plan: StagePlan | None = field(default=None, init=False)
    _entrants: Entrants = field(init=False, repr=False)
    _caps: Caps | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._times = Times(self.study.objective.clock)
        self._order = Order(self.study.space.baseline(), self.study.limits.trial_s)
        self._curves = Curves(self.study.objective.clock)
        self._left_out = LeaveOneOut()

    def standing(self, facts: Sequence[TrialFacts], target: float) -> Standing:
        """All runs that compete, judged at a target."""
        return self._times.standing([*self.earlier, *facts], target)

    @property
    def active(self) -> bool:
        """Whether anything may be cut at all."""
        return self.keep is not None and self.study.objective.goal == "time_to_target"

    def cap(self, trial: PlannedTrial, standing: Standing, plan: StagePlan) -> Cap | None:
        """The bound of a trial now, or None."""
        caps = self._caps_of(standing, plan)
        return None if caps is None else caps.cap(trial)

    def watch(self, trial: PlannedTrial, standing: Standing, plan: StagePlan) -> Watch:
        """For how long a trial must have been watched, as far as is known now."""
        caps = self._caps_of(standing, plan)
        return Watch(math.inf, math.inf) if caps is None else caps.watch(trial)

    def winners_s(self, standing: Standing, plan: StagePlan) -> tuple[float, ...]:
        """See `Caps.winners_s`."""
        caps = self._caps_of(standing, plan)
        return () if caps is None else caps.winners_s()

    def _caps_of(self, standing: Standing, plan: StagePlan) -> Caps | None:
        """The caps of this standing; None where nothing is capped."""
        if self.keep is None or not self.active or not self.study.racing.cap:
            return None
        if plan is not self._plan:
            earlier = [f.trial for f in self.earlier]
            rivals = self.rivals(plan.trials)
            self._entrants = Entrants(plan.trials, earlier, self.study.questions, rivals)
            self._plan, self._caps = plan, None
        racing = self.study.racing
        expect = racing.expect and self.foresees and not self.last
        known = self._caps
        if known is None or known.standing is not standing or known.expect != expect:
            known = Caps(standing, self._entrants, self.keep, racing, expect=expect)
        self._caps = known
        return known

    def order(
        self, trials: Sequence[PlannedTrial], ready: Sequence[int], standing: Standing
    ) -> list[PlannedTrial]:
        """Of a plan's trials those that are `ready` (1, else 0), the one to start next first."""
        if not self.ordered or not self.study.racing.order:
            return list(compress(trials, ready))
        return self._order.promising_first(trials, ready, standing)

    def early(
        self, curve: Sequence[Evaluation], bound: Cap | None, standing: Standing
    ) -> Early | None:
        """Whether a running trial is already known to miss its cap: by a rung, or by forecast.

        Never where there is no cap. Rungs must be switched on. A forecast stops only where leave-one-out
        over at least k finished curves allows it, and never a schedule with a late decay.
        """
        racing = self.study.racing
        if bound is None or self.keep is None or not (racing.forecast or racing.rungs):
            return None
        track = Track.of(curve, standing.clock)
        if standing is not self._seen:
            self._seen, self._trust = standing, None
            self._finished = self._curves.finished(standing)
            self._tracks = self._curves.tracks(standing) if racing.rungs else ()
        if racing.rungs and not racing.late_decay:
            fallen = cut(track, self._finished, self._tracks, k=self.keep, cap_s=bound.seconds)
            if fallen is not None:
                words = (
                    f"rung at {fallen.at_s:.1f} s: loss {fallen.loss:.4g}, where {fallen.bar:.4g} "
                    "goes on"
                )
                return Early(words, may_stop=True)
        if not racing.forecast:
            return None
        expected = is_late(track, self._finished, standing.target, bound.seconds)
        if expected is None:
            return None
        if self._trust is None:
            self._trust = self._left_out.trust(self._finished, standing.target, self.keep)
        words = (
            f"forecast to cross at {expected:.1f} s at the earliest, its cap is "
            f"{bound.seconds:.1f} s ({self._trust.words()})"
        )
        return Early(words, may_stop=self._trust.granted and not racing.late_decay)

    def reachability(self, standing: Standing) -> str:
        """A sentence when the target looks out of reach; nothing is switched by it."""
        if not self.active or standing.medians:
            return ""
        return reach(standing).words(standing.target)

    def stretch(self, standing: Standing) -> tuple[float, str] | None:
        """The stretch target to go on to now, with the reason, or None; asked when a stage is done."""
        racing = self.study.racing
        if self.keep is None or not self.active or not racing.stretch:
            return None
        if standing.target > self.study.objective.target:  # a fallback was needed
            return None
        slack = standing.slack(racing.slack, self.keep)
        return stretch(standing, self.study.objective.stretch, self.keep, slack)

    def fallback(self, standing: Standing) -> tuple[float, str] | None:
        """The fallback target to switch to now, with the reason, or None."""
        if self.keep is None or not self.active or not self.study.racing.fallback:
            return None
        return fallback(standing, self.study.objective.fallback, self.keep)
