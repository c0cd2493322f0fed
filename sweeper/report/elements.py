"""Pieces of the page: tables a keyboard can scroll, figures for two widths, folded parts, prose.

It must not know what they say; what goes in as text is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sweeper.analysis.wording import duration, significant
from sweeper.report.drawing import Figure


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    numbers: Sequence[int] = (),
    kind: str = "",
) -> str:
    """A table in a region that a keyboard can scroll. `rows` pair a class with already escaped
    cells; `numbers` are the columns that are set flush right.
    """
    side = [' class="n"' if place in numbers else "" for place in range(len(columns))]
    head = "".join(
        f'<th scope="col"{side[i]}>{escape(name)}</th>' for i, name in enumerate(columns)
    )
    body = []
    for row_kind, cells in rows:
        shown = [f'<th scope="row"{side[0]}>{cells[0]}</th>']
        shown += [f"<td{side[i]}>{cell}</td>" for i, cell in enumerate(cells[1:], start=1)]
        body.append(f'<tr class="{row_kind}">{"".join(shown)}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def section(figure: Figure | None) -> str:
    """A figure under its own heading, or nothing."""
    if figure is None:
        return ""
    return (
        f'<section aria-labelledby="h-{figure.name}"><h2 id="h-{figure.name}">'
        f"{escape(figure.title)}</h2>{bare_figure(figure)}</section>"
    )


def bare_figure(figure: Figure | None) -> str:
    """A figure in both widths with its caption, or nothing."""
    if figure is None:
        return ""
    return (
        f'<figure><div class="wide">{figure.wide}</div><div class="narrow">{figure.narrow}</div>'
        f"<figcaption>{words(figure.caption)}</figcaption></figure>"
    )


def folded(summary: str, body: str) -> str:
    """A part that opens on demand; `body` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def words(text: str) -> str:
    """Escaped prose in which a number keeps its unit, and an interval its ends, on one line."""
    kept = re.sub(r"(?<=\d) (?=(?:s|min|h|%)(?![A-Za-z]))", "\u00a0", text)
    kept = re.sub(r"\[[-+0-9.%, \u00a0]+\]", lambda found: found[0].replace(" ", "\u00a0"), kept)
    return escape(kept)


def date(instant: str | None) -> str:
    """The day and minute of an instant."""
    return escape(f"{instant[:10]} {instant[11:16]} UTC" if instant else "")


def items(lines: Sequence[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{words(line)}</li>" for line in lines) + "</ul>"


def pre(text: str, label: str) -> str:
    """Text to copy, in a region that a keyboard can scroll."""
    return f'<pre tabindex="0" aria-label="{escape(label)}"><code>{escape(text)}</code></pre>'


def optional(value: float | None, digits: int = 4) -> str:
    """A number, or an empty cell."""
    return "" if value is None else significant(value, digits)


def seconds(row: Mapping[str, Any]) -> str:
    """Time to the target of a row, or the bound."""
    if row["reached"]:
        return duration(row["time_to_target_s"])
    return f"&gt; {duration(row['censored_at_s'])}"


def definitions(facts: Mapping[str, Any]) -> str:
    """Names and values as a definition list."""
    rows = []
    for name, value in facts.items():
        rows.append(f"<dt>{escape(str(name))}</dt><dd>{escape(_shown(value))}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _shown(value: Any) -> str:
    """A JSON value as a line of text; what is nested is taken apart."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(v)}" for key, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_shown(v) for v in value)
    return significant(value, 4) if isinstance(value, float) else str(value)
