"""What is new in a row of facts: facts are frozen, so who is the same object has not changed.

It must not know what is made of it. A loop looks at thousands of trials whenever one of them has ended:
to compare who they are takes a tenth of a millisecond, to work anything out from all of them a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count
from operator import is_not


def changed(before: Sequence[object], now: Sequence[object]) -> list[int]:
    """The places where two rows have other objects, and those that only one of them has."""
    found = list(compress(count(), map(is_not, before, now)))
    found.extend(range(min(len(before), len(now)), max(len(before), len(now))))
    return found
