"""Figures of a study with goal "final": the metric at the budget's end, and the arms step by step.

It must not know how any number was computed: everything drawn is in the report's document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.wording import significant
from sweeper.report.drawing import NARROW, Drawing, Figure, both
from sweeper.report.svg import (
    CHARACTER_PX,
    Axis,
    box,
    dot,
    fit,
    line,
    polyline,
    text,
    tick_label,
    x_axis,
)

Document = Mapping[str, Any]


def finals(document: Document, shown: Sequence[Any]) -> Figure | None:
    """The metric at the budget's end per configuration, lowest first."""
    rows = [row for row in shown if row["final"] is not None]
    if not rows:
        return None
    words = (
        f"{document['metric']} at the end of the budget, lowest first: a dot is the median of a "
        f"configuration's runs, a tick is one run. {len(rows)} of {len(document['ranking'])} "
        "configurations of stages 1 and 2 are drawn."
    )
    title = f"Final {document['metric']}"
    return both("ranking", title, words, lambda width: _finals(document, rows, width))


def _finals(document: Document, rows: Sequence[Any], width: int) -> Drawing:
    narrow = width == NARROW
    pitch, top = (34, 6) if narrow else (21, 10)
    widest = max(len(row["label"]) for row in rows) * CHARACTER_PX
    left = 8 if narrow else min(330, widest) + 16
    right, bottom = width - 84, top + pitch * len(rows) + 4
    values = [value for row in rows for value in row["finals"]]
    room = 0.05 * (max(values) - min(values)) or 0.01
    x = Axis(min(values) - room, max(values) + room, left, right)
    marks = [x_axis(x, bottom, document["metric"], top=top, most=5 if narrow else 8)]
    winner = (document["winner"] or {}).get("point")
    baseline = (document["baseline"] or {}).get("point")
    for place, row in enumerate(rows):
        y = top + pitch * place + (24 if narrow else 14)
        points = {"winner": winner, "baseline": baseline}
        role = next((name for name, point in points.items() if row["point"] == point), "")
        label = row["label"] + (f" ({role})" if role else "")
        style = f"fig-{role}-text" if role else ""
        if narrow:
            marks.append(text(left, y - 9, fit(label, right - left + 70), style))
        else:
            cut = fit(label, left - (34 if role else 14))
            marks.append(text(left - 10, y + 4, cut, style, anchor="end"))
        kind = f"fig-{role or 'reached'}"
        marks.append(line(x.start_px, y, x(row["final"]), y, f"fig-stem {kind}"))
        marks += [line(x(v), y - 5, x(v), y + 5, f"fig-run {kind}") for v in row["finals"]]
        marks.append(dot(x(row["final"]), y, 4.5, f"fig-dot {kind}", row["label"]))
        value = significant(row["final"], 5)
        marks.append(text(right + 80, y + 4, value, "fig-value", anchor="end"))
    return bottom + 40, marks


def steps(document: Document) -> Figure | None:
    """The metric of the baseline, the arms of the first group and the winner against steps."""
    table = document["steps"]
    if not table or len(table["rows"]) < 2:
        return None
    arms = ", ".join(
        f"{arm['label']} ({arm['role']}, {arm['runs']} run{'' if arm['runs'] == 1 else 's'})"
        for arm in table["arms"]
    )
    words = f"{document['metric']} by step, the mean of each arm's runs: {arms}."
    return both("steps", "The arms, step by step", words, lambda w: _steps(document, w))


def _steps(document: Document, width: int) -> Drawing:
    table = document["steps"]
    rows, arms = table["rows"], table["arms"]
    left, right, top, bottom = 56, width - 12, 10, 270
    ends = rows[-1]["values"]
    # The start of every curve is the same fast fall; the page is for what comes after it.
    high = max([max(rows[len(rows) // 6]["values"]), *ends])
    low = min(value for row in rows for value in row["values"])
    pad = 0.06 * (high - low) or 0.01
    x = Axis(0.0, rows[-1]["step"], left, right)
    y = Axis(low - pad, high + pad, bottom, top)
    clip = f"steps-{width}-clip"
    marks = [
        f'<clipPath id="{clip}">{box(left, top, right - left, bottom - top, kind="")}</clipPath>',
        x_axis(x, bottom, "steps", top=top, most=5 if width == NARROW else 9),
    ]
    for value in y.ticks(6):
        marks.append(line(left, y(value), right, y(value), "fig-grid"))
        marks.append(text(left - 8, y(value) + 4, tick_label(value), anchor="end"))
    taken: list[float] = []
    for index, arm in enumerate(arms):
        kind = arm["role"] if arm["role"] != "arm" else "reached"
        places = [(x(row["step"]), y(row["values"][index])) for row in rows]
        marks.append(f'<g clip-path="url(#{clip})">{polyline(places, f"fig-curve fig-{kind}")}</g>')
        words = fit(f"{arm['label']} {significant(ends[index], 4)}", (right - left) * 0.8)
        at = y(ends[index]) - 7
        while any(abs(at - other) < 15 for other in taken):
            at -= 15
        taken.append(at)
        style = f"fig-{kind}-text" if kind != "reached" else "fig-value"
        marks.append(text(right, at, words, style, anchor="end"))
    return bottom + 40, marks
