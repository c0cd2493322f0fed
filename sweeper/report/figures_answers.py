"""The figures that answer: the questions' pairs, effects split in two, the way to the winner.

It must not know how any number was computed: everything drawn is in the report's document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.wording import bracket, change, duration, ratio, significant
from sweeper.report.drawing import FARTHEST, NARROW, Drawing, Figure, Ratio, both, ratios
from sweeper.report.svg import (
    CHARACTER_PX,
    Axis,
    box,
    diamond,
    dot,
    fit,
    line,
    square,
    text,
    x_axis,
)
from sweeper.space import show_value

Document = Mapping[str, Any]
PARTS = (("learning", "tokens"), ("speed", "per token"), ("time", "time"))


def questions(document: Document) -> Figure | None:
    """Every comparison that a question asks for: its pairs, its mean and interval."""
    rows = []
    for question in document["questions"]:
        short = question["parameter"].rsplit(".", 1)[-1]
        for found in question["comparisons"]:
            time = found["time"]
            if time is None or "ratio" not in time:
                continue
            name = f"{short}: {show_value(found['level'])} / {show_value(found['reference'])}"
            open_end = time["confidence"] is not None and None in (time["low"], time["high"])
            rows.append(
                Ratio(
                    name,
                    time["ratio"],
                    time["low"],
                    time["high"],
                    found["decided"],
                    tuple(pair["ratio"] for pair in found["pairs"]),
                    is_open=open_end,
                    pairs=len(found["pairs"]),
                )
            )
    if not rows:
        return None
    words = (
        "Time at the first level over time at the second, all else equal: small dots are the pairs, "
        "the large dot is their geometric mean with its interval. Below 1 the first level is faster; "
        "blue is decided, which takes at least three pairs."
    )
    return ratios("questions", "The questions, pair by pair", words, rows)


def effects(document: Document) -> Figure | None:
    """Each effect of stage 2 in its two parts: tokens to the target, and time per token."""
    found = document["effects"]
    if not found or not found["effects"] or "ratio" not in found["effects"][0]:
        return None
    rows = found["effects"]
    split = all(row["learning"] and row["speed"] for row in rows)
    parts = PARTS if split else PARTS[2:]
    words = (
        f"Stage 2, to {significant(found['target'], 5)}: the second level over the first, all else "
        f"equal, from {found['runs']} runs that crossed and {found['not_crossed']} bounds; bars are "
        "95 % intervals, and one that crosses 1 is not decided."
    )
    if split:
        words += (
            " Time (dot) is tokens to the target (square: learning) times time per token "
            "(diamond: speed), exactly."
        )
    return both("effects", "Effects on time, split into learning and speed" if split else
                "Effects on time", words, lambda width: _effects(rows, parts, width))  # fmt: skip


def _effects(rows: Sequence[Any], parts: Sequence[tuple[str, str]], width: int) -> Drawing:
    narrow = width == NARROW
    labels = [_label(row) for row in rows]
    pitch = 18 * len(parts) + (26 if narrow else 12)
    left = 12 if narrow else min(300, max(map(len, labels)) * CHARACTER_PX) + 20
    right = width - (96 if narrow else 190)
    top = 10
    bottom = top + pitch * len(rows) + 2
    x = _ratio_axis([_part(row, key) for row in rows for key, _ in parts], left, right)
    marks = [x_axis(x, bottom, "ratio (log)", top=top, most=5 if narrow else 8)]
    marks.append(line(x(1.0), bottom, x(1.0), top, "fig-one"))
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + pitch * place + (12 if narrow else 16)
        if narrow:
            marks.append(text(left, y, fit(label, right - left + 80)))
            y += 17
        else:
            marks.append(text(left - 12, y + 4, fit(label, left - 16), anchor="end"))
        for key, name in parts:
            marks += _one_part(_part(row, key), key, name, decided=row["decided"], x=x, y=y,
                               right=right, narrow=narrow)  # fmt: skip
            y += 18
    return bottom + 40, marks


def _part(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row if key == "time" else row[key]
    return found


def _ratio_axis(parts: Sequence[Mapping[str, Any]], left: float, right: float) -> Axis:
    core = [1.0, *(part["ratio"] for part in parts)]
    ends = [*core, *(v for part in parts for v in (part["low"], part["high"]) if v)]
    low, high = max(min(ends), min(core) / FARTHEST), min(max(ends), max(core) * FARTHEST)
    pad = max(high / low, 1.02) ** 0.06
    return Axis(low / pad, high * pad, left, right, log=True)


def _one_part(
    part: Mapping[str, Any],
    key: str,
    name: str,
    *,
    decided: bool,
    x: Axis,
    y: float,
    right: float,
    narrow: bool,
) -> list[str]:
    kind = {"learning": "learning", "speed": "speed"}.get(key, "winner" if decided else "undecided")
    ends = (part["low"] or x.low, part["high"] or x.high)
    begin, end = (x(min(max(v, x.low), x.high)) for v in ends)
    mark = {"learning": square, "speed": diamond}.get(key, dot)
    value = change(part["ratio"])
    words = f"{value} {name}" if narrow else f"{value} {name} {bracket(part['low'], part['high'])}"
    return [
        line(begin, y, end, y, f"fig-bar fig-thin fig-{kind}"),
        mark(x(part["ratio"]), y, 4.5, f"fig-dot fig-{kind}"),
        text(right + (6 if narrow else 12), y + 4, fit(words, 92 if narrow else 190), "fig-tick"),
    ]


def _label(effect: Mapping[str, Any]) -> str:
    levels = f"{show_value(effect['from'])} → {show_value(effect['to'])}"
    name = effect["parameter"].rsplit(".", 1)[-1]
    return f"{name} {levels}{', middle / ends' if effect['term'] == 'quadratic' else ''}"


def path(document: Document) -> Figure | None:
    """From the baseline's seconds to the winner's, one parameter at a time."""
    found = document["path"]
    if not found or "sec" not in _unit(document):
        return None
    expected = sum(not step["measured"] for step in found["steps"])
    words = (
        f"From the baseline to the winner, one parameter at a time, in seconds of stages 1 and 2; "
        f"the one that saves most goes first. {len(found['steps']) - expected} of "
        f"{len(found['steps'])} steps were measured; pale ones nobody ran: they are what "
        "the main effects of all runs expect."
    )
    return both("path", "From the baseline to the winner", words, lambda w: _path(found, w))


def _unit(document: Document) -> str:
    return "seconds" if document["goal"] == "time_to_target" else str(document["metric"])


def _path(found: Mapping[str, Any], width: int) -> Drawing:
    narrow = width == NARROW
    bars = _bars(found)
    pitch, top = (42, 8) if narrow else (28, 8)
    left = 12 if narrow else min(300, max(len(b[0]) for b in bars) * CHARACTER_PX) + 20
    right = width - (14 if narrow else 120)
    bottom = top + pitch * len(bars) + 2
    most = max(max(b[1], b[2]) for b in bars)
    x = Axis(0.0, most * 1.04, left, right)
    marks = [x_axis(x, bottom, "seconds", top=top, most=5 if narrow else 8)]
    for place, (label, before, after, kind, words) in enumerate(bars):
        y = top + pitch * place + (22 if narrow else 6)
        begin, end = sorted((x(before), x(after)))
        if narrow:
            marks.append(text(left, y - 6, fit(label, right - left - len(words) * CHARACTER_PX)))
            marks.append(text(right, y - 6, words, "fig-value", anchor="end"))
        else:
            marks.append(text(left - 12, y + 13, fit(label, left - 16), anchor="end"))
            marks.append(text(right + 12, y + 13, words, "fig-value"))
        marks.append(
            box(begin, y, max(end - begin, 1.5), 16, kind=f"fig-step fig-{kind}", title=label)
        )
        if place + 1 < len(bars):
            marks.append(line(x(after), y + 16, x(after), y + pitch, "fig-join"))
    return bottom + 40, marks


def _bars(found: Mapping[str, Any]) -> list[tuple[str, float, float, str, str]]:
    """Label, seconds before and after, class and words of every bar."""
    bars = [("baseline", 0.0, found["start"], "baseline", duration(found["start"]))]
    at = found["start"]
    for step in found["steps"]:
        to = "off" if step["to"] is None else show_value(step["to"])
        name = f"{step['parameter'].rsplit('.', 1)[-1]} → {to}"
        better = "gain" if step["value"] <= at else "loss"
        kind = better if step["measured"] else f"{better} fig-expected"
        bars.append((name, at, step["value"], kind, f"{change(step['change'])}"))
        at = step["value"]
    if abs(found["unexplained"] - 1) > 1e-9:
        rest = "gain" if found["end"] <= at else "loss"
        bars.append(("not explained", at, found["end"], rest, f"× {ratio(found['unexplained'])}"))
    bars.append(("winner", 0.0, found["end"], "winner", duration(found["end"])))
    return bars
