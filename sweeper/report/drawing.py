"""What figures share: their two widths, their record, and the plot of ratios with intervals.

It must not know what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.wording import bracket, ratio
from sweeper.report.svg import CHARACTER_PX, Axis, dot, figure, fit, line, text, x_axis

WIDE, NARROW = 860, 350
LOG_FROM = 15  # longest over shortest time from which a linear axis would hide the short ones
FARTHEST = 3  # how many times farther out than any estimate or pair an interval is still drawn
CLOCK_TITLE = {"train": "train seconds", "train+eval": "train + eval seconds", "wall": "seconds"}

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure in both widths, with the sentence that says what it shows."""

    name: str
    title: str
    caption: str
    wide: str
    narrow: str


Drawing = tuple[float, list[str]]  # height in pixels, marks


def both(name: str, title: str, caption: str, draw: Callable[[int], Drawing]) -> Figure:
    """A figure drawn at both widths."""
    drawn = []
    for width in (WIDE, NARROW):
        height, marks = draw(width)
        drawn.append(figure(f"{name}-{width}", (width, height), title, caption, marks))
    return Figure(name, title, caption, *drawn)


@dataclass(frozen=True)
class Ratio:
    """One row of a plot of ratios: the estimate, its interval, and single pairs as small dots."""

    label: str
    ratio: float
    low: float | None
    high: float | None
    decided: bool
    dots: tuple[float, ...] = ()
    at_least: bool = False
    is_open: bool = False
    pairs: int = 0
    """Bounded on one side alone: the other end of its bar is the edge."""


def ratios(
    name: str,
    title: str,
    words: str,
    rows: Sequence[Ratio],
    *,
    axis: str = "time ratio (log)",
    show: Callable[[float], str] = ratio,
) -> Figure:
    """Ratios (of times, as a rule) on a logarithmic axis around 1."""
    return both(name, title, words, lambda width: _ratio_plot(rows, width, axis, show))


def _ratio_plot(
    rows: Sequence[Ratio], width: int, axis: str, show: Callable[[float], str]
) -> Drawing:
    narrow = width == NARROW
    pitch, top = (40, 8) if narrow else (30, 10)
    widest = max(len(row.label) for row in rows) * CHARACTER_PX
    left = 12 if narrow else min(330, widest) + 20
    right = width - (14 if narrow else 170)
    bottom = top + pitch * len(rows) + 4
    core = [1.0, *(v for r in rows for v in (r.ratio, *r.dots))]
    ends = [*core, *(v for r in rows for v in (r.low, r.high) if v)]
    # One interval that is not known at all must not make all the others a point.
    low, high = max(min(ends), min(core) / FARTHEST), min(max(ends), max(core) * FARTHEST)
    pad = max(high / low, 1.02) ** 0.06
    x = Axis(low / pad, high * pad, left, right, log=True)
    marks = [x_axis(x, bottom, axis, top=top, most=6 if narrow else 9)]
    marks.append(line(x(1.0), bottom, x(1.0), top, "fig-one"))
    for place, row in enumerate(rows):
        y = top + pitch * place + (27 if narrow else 16)
        kind = "winner" if row.decided else "undecided"
        bound = "≥ " if row.at_least else ""
        value = f"{bound}{show(row.ratio)} {bracket(row.low, row.high, show)}".rstrip()
        value += f"  n = {row.pairs}" if row.pairs else ""
        if narrow:
            room = right - left - len(value) * CHARACTER_PX
            marks.append(text(left, y - 12, fit(row.label, room)))
            marks.append(text(right, y - 12, value, "fig-value", anchor="end"))
        else:
            marks.append(text(left - 12, y + 4, fit(row.label, left - 16), anchor="end"))
            marks.append(text(right + 14, y + 4, value, "fig-value"))
        if (row.low and row.high) or row.is_open:
            begin, end = (
                x(min(max(v, x.low), x.high)) for v in (row.low or x.low, row.high or x.high)
            )
            marks.append(line(begin, y, end, y, f"fig-bar fig-{kind}"))
        marks += [dot(x(value), y, 2.2, "fig-dot fig-block") for value in row.dots]
        marks.append(dot(x(row.ratio), y, 4.5, f"fig-dot fig-{kind}"))
    return bottom + 40, marks
