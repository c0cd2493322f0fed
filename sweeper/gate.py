"""The validity gate as the loop sees it: facts with their verdicts, and each doubt said once.

It must not know what a verdict leads to; the rules are racing's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sweeper.racing.validity import Memory, doubts_of, judge
from sweeper.study import Validity
from sweeper.trial import Outcome, TrialFacts


class Gate:
    """Judges facts as often as they change: another run may show that an earlier one was too slow."""

    def __init__(
        self, settings: Validity, earlier: Sequence[TrialFacts], note: Callable[[str], None]
    ) -> None:
        self._settings, self._earlier, self._note = settings, earlier, note
        self._memory = Memory()
        self._said: set[tuple[str, int, Outcome] | str] = set()

    def judge(self, facts: Mapping[str, TrialFacts]) -> dict[str, TrialFacts]:
        """The same facts with their verdicts; what was recorded is not changed by them."""
        found = judge(list(facts.values()), self._settings, self._earlier, self._memory)
        for trial in found.facts:
            for attempt in trial.attempts:
                if attempt.validity != "valid":
                    doubts = "; ".join(doubts_of(attempt)) or attempt.message
                    words = f"{trial.trial.id}: {attempt.validity}: {doubts}"
                    self._say_once((trial.trial.id, attempt.attempt, attempt.outcome), words)
        if found.banner:
            self._say_once(found.banner, found.banner)
        return {f.trial.id: f for f in found.facts}

    def _say_once(self, key: tuple[str, int, Outcome] | str, words: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._note(words)
