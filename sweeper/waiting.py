"""Which trials of a plan are left to run, and the one to start next, followed as facts come in.

It must not know why a trial needs a run, or what the order is made of: it asks, and only again about
trials of which something is new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from sweeper.racing.changes import changed
from sweeper.trial import PlannedTrial, StagePlan, TrialFacts

Order = Callable[[Sequence[PlannedTrial], Sequence[int]], list[PlannedTrial]]
"""From all trials of a plan, and a 1 for each that could start now, to these, the next one first."""


class Waiting:
    """Trials that could start now, in their order.

    `needs_run` is asked about a trial when it has other facts than before or its run has ended, and
    about those that are run again each time: they may matter no more.
    """

    def __init__(self, needs_run: Callable[[PlannedTrial], bool], order: Order) -> None:
        self._needs_run, self._order = needs_run, order
        self._plan: StagePlan | None = None
        self._facts: Sequence[TrialFacts] = ()
        self._busy: Collection[str] = ()
        self._places: dict[str, int] = {}
        self._ready = bytearray()
        self._again: set[str] = set()
        self._line: list[PlannedTrial] = []

    def __iter__(self) -> Iterator[PlannedTrial]:
        """The next one first."""
        return (t for t in self._line if self._ready[self._places[t.id]])

    def __bool__(self) -> bool:
        return 1 in self._ready

    @property
    def again(self) -> Collection[str]:
        """Those that have run before."""
        return self._again

    def follow(
        self,
        plan: StagePlan,
        facts: Mapping[str, TrialFacts],
        busy: Collection[str],
        *,
        anew: bool,
    ) -> None:
        """Take over what is new: `busy` are running; with `anew` everybody is asked about."""
        row = list(facts.values())
        if anew or plan is not self._plan:
            self._places = {trial.id: place for place, trial in enumerate(plan.trials)}
            self._ready = bytearray(len(plan.trials))
            self._again.clear()
            new: Collection[str] = self._places
        else:
            others = {row[place].trial.id for place in changed(self._facts, row)}
            new = others.union(self._busy, busy, self._again) & self._places.keys()
        self._plan, self._facts, self._busy = plan, row, busy
        for name in new:
            trial = plan.trials[self._places[name]]
            self._put(trial, name not in busy and self._needs_run(trial), facts.get(name))
        self._line = self._order(plan.trials, self._ready)

    def add(self, again: Iterable[TrialFacts]) -> None:
        """Trials that have run and are run once more, in this order, until something is new."""
        for facts in again:
            if not self._ready[self._places[facts.trial.id]]:
                self._line.append(facts.trial)
            self._put(facts.trial, True, facts)

    def start(self, trial: PlannedTrial) -> None:
        """It waits no more; nothing new is known, so the others keep their places."""
        self._put(trial, False, None)

    def _put(self, trial: PlannedTrial, ready: bool, known: TrialFacts | None) -> None:
        self._ready[self._places[trial.id]] = ready
        if ready and known is not None and known.attempts:
            self._again.add(trial.id)
        else:
            self._again.discard(trial.id)
