"""Repeats calls while the database is gone, so that an outage costs a sweep nothing but the wait.

It must not know what is called; every call it repeats must be safe to repeat.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from sweeper.errors import DatabaseGone, DatabaseUnusable

PATIENCE_S = 1800.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0


class Patient:
    """Stands before a store or a search: a method that raises DatabaseGone is called again.

    Waits grow from 0.2 s to 5 s; after `patience_s` the error goes through. `note` hears once that
    the database is gone, and once that it is back; `revive` may bring it back (an embedded server).
    """

    def __init__(
        self,
        target: Any,
        *,
        note: Callable[[str], None],
        revive: Callable[[], None] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._target, self._note, self._revive = target, note, revive
        self._patience_s = patience_s

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return functools.partial(self._call, found) if callable(found) else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the target itself, where it is a function."""
        return self._call(self._target, *args, **kwargs)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began_at = time.monotonic()
        wait_s = FIRST_WAIT_S
        while True:
            try:
                answer = method(*args, **kwargs)
            except DatabaseGone as error:
                left_s = self._patience_s - (time.monotonic() - began_at)
                if left_s <= 0:
                    raise
                if wait_s == FIRST_WAIT_S:
                    self._note(f"{error}; waiting for it (running trials go on)")
                time.sleep(min(wait_s, left_s))
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
                self._try_to_revive()
            else:
                if wait_s > FIRST_WAIT_S:
                    away_s = time.monotonic() - began_at
                    self._note(f"the database is back after {away_s:.0f} s")
                return answer

    def _try_to_revive(self) -> None:
        if self._revive is not None:
            try:
                self._revive()
            except DatabaseUnusable:  # still gone: the next call says so
                return
