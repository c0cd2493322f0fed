"""The cells of a claims table: plain text, for a page as for markdown.

It must not know how a claim was judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.analysis.wording import significant

COLUMNS = ("claim", "stated", "its own numbers", "we measured", "verdict", "full scale")


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One claim, in the order of COLUMNS."""
    return (
        row["text"],
        "" if row["stated"] is None else f"{row['stated']:g} {row['unit']}".rstrip(),
        _own_numbers(row),
        row["measured_words"],
        row["verdict"],
        row["full_scale"],
    )


def refuted(rows: Mapping[str, Any]) -> list[str]:
    """A sentence per claim that its document's own numbers refute."""
    return [f"{row['id']}: {row['contradiction']}" for row in rows["rows"] if row["contradiction"]]


def _own_numbers(row: Mapping[str, Any]) -> str:
    if row["own_numbers_never"]:
        return "never"
    if row["own_numbers"] is None:
        return ""
    return f"{significant(row['own_numbers'], 4)} {row['unit']}".rstrip()
