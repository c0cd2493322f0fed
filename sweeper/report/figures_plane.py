"""Steps against throughput, and the same curves read at many targets.

It must not know how any number was computed: everything drawn is in the report's document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.wording import duration, significant
from sweeper.report.drawing import CLOCK_TITLE, NARROW, WIDE, Drawing, Figure, both
from sweeper.report.svg import CHARACTER_PX, Axis, dot, line, polyline, text, tick_label, x_axis

Document = Mapping[str, Any]


def plane(document: Document) -> Figure | None:
    """What a configuration needs (tokens, or steps where they are not counted) against how fast it
    is; along a diagonal the time to the target is the same.
    """
    unit = (
        "tokens"
        if all(r["tokens_to_target"] for r in document["ranking"] if r["reached"])
        else "steps"
    )
    rows = []
    for row in document["ranking"]:
        work = row[f"{unit}_to_target"]
        if row["reached"] and work and row["time_to_target_s"] > 0:
            rows.append((work, work / row["time_to_target_s"], row))
    if len(rows) < 2:
        return None
    words = (
        f"Every configuration that reached the target: {unit} that it needed (learning, fewer is to "
        f"the left) against {unit} a second (speed, faster is up). Along a diagonal the time is the "
        "same; faster lies to the upper left."
    )
    title = f"{unit.capitalize()} against throughput"
    return both("plane", title, words, lambda width: _plane(document, rows, unit, width))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max((high / low) ** 0.12, 1.06)
    return low / pad, high * pad


def _plane(
    document: Document, rows: Sequence[tuple[float, float, Any]], unit: str, width: int
) -> Drawing:
    height = 420 if width == WIDE else 340
    left, right, top, bottom = 64, width - 18, 36, height - 46
    x = Axis(*_spread([work for work, _, _ in rows]), left, right, log=True)
    y = Axis(*_spread([rate for _, rate, _ in rows]), bottom, top, log=True)
    marks = [x_axis(x, bottom, f"{unit} to the target (log)", top=top, most=5)]
    for value in y.ticks(5):
        marks += [
            line(left, y(value), right, y(value), "fig-grid"),
            text(left - 6, y(value) + 4, _short(value), "fig-tick", anchor="end"),
        ]
    marks.append(text(left - 56, top - 24, f"{unit} a second (log)", "fig-title"))
    marks += _iso_lines(x, y)
    winner = (document["winner"] or {}).get("point")
    baseline = (document["baseline"] or {}).get("point")
    named = []
    for work, rate, row in reversed(rows):
        role = (
            "winner" if row["point"] == winner else "baseline" if row["point"] == baseline else ""
        )
        title = f"{row['label']}: {duration(row['time_to_target_s'])}"
        marks.append(
            dot(x(work), y(rate), 6 if role else 4, f"fig-dot fig-{role or 'reached'}", title)
        )
        if role:
            named.append((x(work), y(rate), role))
    for at_x, at_y, role in named:
        end = at_x + (len(role) + 2) * CHARACTER_PX > right
        anchor, shift = ("end", -10) if end else ("start", 10)
        marks.append(text(at_x + shift, at_y - 7, role, f"fig-{role}-text", anchor=anchor))
    return height, marks


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.10g} M"
    return f"{value / 1e3:.10g} k" if value >= 1e4 else tick_label(value)


def _iso_lines(x: Axis, y: Axis) -> list[str]:
    """Lines of equal time: rate = work / seconds, cut at the frame, named at their upper end."""
    shortest, longest = x.low / y.high, x.high / y.low
    times = Axis(shortest, longest, 0, 1, log=True).ticks(7)
    marks: list[str] = []
    taken: list[tuple[float, float]] = []
    for seconds in times:
        begin = max(x.low, y.low * seconds)
        end = min(x.high, y.high * seconds)
        if end <= begin * 1.02:
            continue
        ends = [(x(work), y(work / seconds)) for work in (begin, end)]
        marks.append(line(*ends[0], *ends[1], "fig-iso"))
        at_x, at_y = ends[1]
        words = duration(seconds).replace(".00 s", " s").replace(".0 s", " s")
        on_top = end < x.high * 0.999
        spot = (at_x, at_y - 5) if on_top else (at_x - 3, at_y - 7)
        if any(abs(spot[0] - a) < 46 and abs(spot[1] - b) < 13 for a, b in taken):
            continue
        taken.append(spot)
        marks.append(text(*spot, words, "fig-tick fig-halo", anchor="middle" if on_top else "end"))
    return marks


def profile(document: Document) -> Figure | None:
    """Time to every target between easy and hard: whether the ranking depends on the target."""
    rows = [row for row in document["profile"] if row["fastest_s"]]
    if len(rows) < 4:
        return None
    words = (
        f"The same curves read at {len(rows)} targets, easy on the left: seconds of the fastest "
        "configuration there, of the winner and of the baseline. Where the winner's line leaves the "
        "fastest's, another configuration wins at that target. Runs stop at their target, so few "
        "reach a harder one."
    )
    title = "Performance over many targets"
    return both("profile", title, words, lambda width: _profile(document, rows, width))


def _profile(document: Document, rows: Sequence[Any], width: int) -> Drawing:
    height = 360 if width == WIDE else 320
    left, right, top, bottom = 58, width - 16, 18, height - 46
    seconds = [v for row in rows for k in ("fastest_s", "winner_s", "baseline_s") if (v := row[k])]
    log = max(seconds) > 4 * min(seconds)
    y = Axis(min(seconds) * 0.9 if log else 0.0, max(seconds) * 1.06, bottom, top, log)
    goals = [row["target"] for row in rows]
    x = Axis(max(goals), min(goals), left, right)  # a target is harder the lower it is
    marks = []
    metric = document["metric"]
    for value in Axis(min(goals), max(goals), 0, 1).ticks(4 if width == NARROW else 7):
        marks += [
            line(_down(x, value), bottom, _down(x, value), top, "fig-grid"),
            text(_down(x, value), bottom + 16, tick_label(value), "fig-tick", anchor="middle"),
        ]
    marks.append(line(left, bottom, right, bottom, "fig-axis"))
    marks.append(text(right, bottom + 33, f"target {metric}, harder to the right", "fig-title",
                      anchor="end"))  # fmt: skip
    for value in y.ticks(5):
        marks += [
            line(left, y(value), right, y(value), "fig-grid"),
            text(left - 6, y(value) + 4, tick_label(value), "fig-tick", anchor="end"),
        ]
    unit = CLOCK_TITLE[document["clock"]] + (" (log)" if log else "")
    marks.append(text(left - 50, top - 6, unit, "fig-title"))
    target = document["target"]
    marks.append(line(_down(x, target), bottom, _down(x, target), top, "fig-target"))
    label = f"target {significant(target, 6)}"
    marks.append(text(_down(x, target) - 6, bottom - 8, label, "fig-over", anchor="end"))
    for key, kind in (("baseline_s", "baseline"), ("winner_s", "winner"), ("fastest_s", "fastest")):
        points = [(_down(x, r["target"]), y(r[key])) for r in rows if r[key]]
        if len(points) > 1:
            marks.append(polyline(points, f"fig-curve fig-{kind}"))
    marks += _legend(left + 10, top + 14, rows)
    return height, marks


def _down(x: Axis, value: float) -> float:
    share = (x.low - value) / (x.low - x.high)
    return x.start_px + share * (x.end_px - x.start_px)


def _legend(x: float, y: float, rows: Sequence[Any]) -> list[str]:
    marks = []
    for key, name in (("baseline_s", "baseline"), ("winner_s", "winner"), ("fastest_s", "fastest")):
        if not any(row[key] for row in rows):
            continue
        marks += [
            line(x, y, x + 22, y, f"fig-curve fig-{name}"),
            text(x + 28, y + 4, name, f"fig-halo fig-{name}-text"),
        ]
        y += 17
    return marks
