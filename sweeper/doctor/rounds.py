"""Looks at running trials again and again, and says each finding once.

It must not know who listens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sweeper.doctor import rules as rule_files
from sweeper.doctor.rules import Finding, Rule
from sweeper.doctor.run_log import read_run
from sweeper.errors import StudyError

EVERY_S = 5.0
"""Seconds between two looks at one run: its whole stream is read each time."""


def rules_of(folder: Path) -> tuple[Rule, ...]:
    """The built-in rules and those beside a study's file.

    Raises:
        StudyError: the study's own rules are wrong.
    """
    own = folder / rule_files.FILE
    further = [rule_files.load(own)] if own.is_file() else []
    return rule_files.joined(rule_files.built_in(), *further)


@dataclass
class Rounds:
    """What has been said about which run, and when each was last looked at."""

    rules: Iterable[Rule]
    every_s: float = EVERY_S
    _said: set[tuple[str, str]] = field(default_factory=set)
    _looked_at: dict[str, float] = field(default_factory=dict)

    def look(self, name: str, place: Path) -> list[Finding]:
        """Findings about the run in the folder `place` that were not given before; none too often."""
        now = time.monotonic()
        if now - self._looked_at.get(name, -self.every_s) < self.every_s:
            return []
        self._looked_at[name] = now
        try:
            found = rule_files.diagnose(read_run(place, name), self.rules).findings
        except StudyError:  # it has not written an event yet
            return []
        fresh = [finding for finding in found if (name, finding.rule) not in self._said]
        self._said.update((name, finding.rule) for finding in fresh)
        return fresh
