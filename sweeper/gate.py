"""The validity gate as the loop sees it: facts with their verdicts, and each doubt said once.

It must not know what a verdict leads to; the rules are racing's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sweeper.racing.changes import changed
from sweeper.racing.validity import Judge, doubts_of
from sweeper.study import Validity
from sweeper.trial import Outcome, TrialFacts


class Gate:
    """Judges facts as often as they change: another run may show that an earlier one was too slow."""

    def __init__(
        self, settings: Validity, earlier: Sequence[TrialFacts], note: Callable[[str], None]
    ) -> None:
        self._judge, self._note = Judge(settings, earlier), note
        self._judged: Sequence[TrialFacts] = ()
        self._said: set[tuple[str, int, Outcome] | str] = set()

    def judge(self, facts: Mapping[str, TrialFacts]) -> dict[str, TrialFacts]:
        """The same facts with their verdicts; what was recorded is not changed by them."""
        found = self._judge.judge(list(facts.values()))
        for place in changed(self._judged, found.facts):
            trial = found.facts[place]
            for attempt in trial.attempts:
                if attempt.validity != "valid":
                    doubts = "; ".join(doubts_of(attempt)) or attempt.message
                    words = f"{trial.trial.id}: {attempt.validity}: {doubts}"
                    self._say_once((trial.trial.id, attempt.attempt, attempt.outcome), words)
        self._judged = found.facts
        if found.banner:
            self._say_once(found.banner, found.banner)
        return dict(zip(facts, found.facts, strict=True))

    def _say_once(self, key: tuple[str, int, Outcome] | str, words: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._note(words)
