"""Work that may wait until every free slot has its next attempt: kept in order, done between ends.

It must not know what the work is; each piece must be safe to repeat, because a kill may cut it off.

What the next attempt does not depend on (records, what search is told, what people are shown) is put
here, so that a device does not wait for a database. A kill before it is done loses nothing: the run
folder says how the attempt ended, and the next command records it (reconciliation).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MOST = 256
"""Pieces of work that may wait; beyond them a slot waits for its turn, so that memory stays bounded."""


class Behind:
    """Pieces of work in the order in which they came; all from one thread."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._pieces: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def later(self, piece: Callable[[], None]) -> None:
        """Do this after everything that came before it; does the oldest now where too much waits."""
        self._pieces.append(piece)
        while len(self._pieces) > self._most:
            self.do_one()

    def do_one(self) -> None:
        """The oldest piece, if there is one; it stays the oldest where it raises."""
        if self._pieces:
            self._pieces[0]()
            self._pieces.popleft()

    def do_all(self) -> None:
        """Everything that waits."""
        while self._pieces:
            self.do_one()
