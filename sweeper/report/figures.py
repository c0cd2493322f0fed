"""The report's figures as SVG strings, each drawn for a wide page and for a phone.

It must not know how any number was computed: everything drawn is in the report's document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.wording import duration, metric_ratio, significant
from sweeper.report.drawing import (
    CLOCK_TITLE,
    LOG_FROM,
    NARROW,
    WIDE,
    Drawing,
    Figure,
    Ratio,
    both,
    ratios,
)
from sweeper.report.figures_answers import effects, path, questions
from sweeper.report.figures_devices import drift, timeline
from sweeper.report.figures_final import finals, steps
from sweeper.report.figures_plane import plane, profile
from sweeper.report.svg import (
    CHARACTER_PX,
    Axis,
    arrow,
    box,
    dot,
    fit,
    line,
    polyline,
    text,
    x_axis,
)
from sweeper.space import show_value

MOST_ROWS = 36
MOST_CURVES = 300  # more are one grey area, and a page that no browser likes

Document = Mapping[str, Any]


def figures(document: Document) -> list[Figure]:
    """All figures that the document has data for, in the order in which they are read."""
    drawn = (
        curves(document),
        questions(document),
        path(document),
        ranking(document),
        steps(document),
        plane(document),
        confirm(document),
        effects(document),
        design(document),
        profile(document),
        timeline(document),
        drift(document),
    )
    return [figure for figure in drawn if figure]


# -- loss against seconds --------------------------------------------------------------------------


def curves(document: Document) -> Figure | None:
    """Loss against seconds for every measured trial, the target, the winner and the baseline."""
    runs = [run for run in document["curves"] if len(run["points"]) > 1]
    if not runs:
        return None
    reached = sum(run["reached"] for run in runs)
    target = significant(document["target"], 6)
    shown = _shown(runs)
    words = (
        f"{document['metric']} of {len(runs)} trials against {CLOCK_TITLE[document['clock']]}; "
        f"{reached} crossed {target}, broken lines did not."
    )
    if len(shown) < len(runs):
        words += f" {len(shown)} are drawn: winner, baseline, and an even sample by time."
    title = f"{document['metric']} against seconds"
    return both("curves", title, words, lambda width: _curves(document, shown, width))


def _shown(runs: Sequence[Any]) -> Sequence[Any]:
    """All runs or, of too many, those with a role and an even sample of the others by time."""
    if len(runs) <= MOST_CURVES:
        return runs
    named = [run for run in runs if run["role"] != "other"][:MOST_CURVES]
    others = sorted(
        (run for run in runs if run["role"] == "other"),
        key=lambda run: (not run["reached"], run["seconds"]),
    )
    room = MOST_CURVES - len(named)
    return [*named, *(others[i * (len(others) - 1) // max(1, room - 1)] for i in range(room))]


def _curves(document: Document, runs: Sequence[Any], width: int) -> Drawing:
    height = 400 if width == WIDE else 330
    left, right, top, bottom = 46, width - 14, 14, height - 46
    target = document["target"]
    every = [point[3] for run in runs for point in run["points"]]
    first = sorted(run["points"][0][3] for run in runs)[len(runs) // 2]
    # The start of every curve is the same fast fall; the page is for the part near the target.
    high = max(target + 0.6 * max(first - target, 0.0), sorted(every)[len(every) // 3])
    low = min(target, *every)
    low -= 0.14 * (high - low)
    y = Axis(low, high, bottom, top)
    ends = [run["points"][-1][0] for run in runs if run["points"][-1][0] > 0]
    times = [run["seconds"] for run in runs if run["reached"]]
    log = bool(times) and max(ends) > LOG_FROM * min(times)
    early = [p[0] for run in runs for p in run["points"] if p[0] > 0]
    begin = max(min(early), min(times) / 10) if log else 0.0
    x = Axis(begin, max(ends) * 1.02, left, right, log)
    seconds = CLOCK_TITLE[document["clock"]] + (" (log)" if log else "")
    marks = [x_axis(x, bottom, seconds, top=top, most=8 if width == WIDE else 5)]
    for value in y.ticks(6):
        marks += [
            line(left, y(value), right, y(value), "fig-grid"),
            text(left - 6, y(value) + 4, f"{value:.10g}", "fig-tick", anchor="end"),
        ]
    clip = f"curves-{width}-clip"
    marks.append(
        f'<clipPath id="{clip}"><rect x="{left}" y="{top}" width="{right - left}" '
        f'height="{bottom - top}"/></clipPath><g clip-path="url(#{clip})">'
    )
    order = {"other": 0, "baseline": 1, "winner": 2}
    for run in sorted(runs, key=lambda r: (order[r["role"]], r["reached"])):
        kind = run["role"] if run["role"] != "other" else "reached" if run["reached"] else "missed"
        points = [(x(p[0]), y(p[3])) for p in run["points"] if p[0] > 0 or not log]
        marks.append(polyline(points, f"fig-curve fig-{kind}"))
        if run["reached"]:
            end = f"{run['label']}: {duration(run['seconds'])}"
            radius = 3.5 if run["role"] != "other" else 2
            marks.append(dot(x(run["seconds"]), y(target), radius, f"fig-dot fig-{kind}", end))
    marks.append("</g>")
    marks += [
        line(left, y(target), right, y(target), "fig-target"),
        text(left + 4, y(target) - 6, f"target {significant(target, 6)}", "fig-over"),
        *_curve_labels(document, x, y(target) + 17, right),
    ]
    return height, marks


def _curve_labels(document: Document, x: Axis, y: float, right: float) -> list[str]:
    """Direct labels under the crossings; the second goes one line lower where they would touch."""
    marks, taken = [], -math.inf
    for role in ("winner", "baseline"):
        row = document[role]
        if row is None or not row["reached"]:
            continue
        seconds = row["time_to_target_s"]
        words = f"{role} {duration(seconds)}"
        half = len(words) * CHARACTER_PX / 2
        at = min(max(x(seconds), x.start_px + half), right - half)
        marks.append(
            text(
                at, y + (15 if at - half < taken else 0), words, f"fig-{role}-text", anchor="middle"
            )
        )
        taken = at + half + 4
    return marks


# -- ranking ---------------------------------------------------------------------------------------


def ranking(document: Document) -> Figure | None:
    """Time to the target per configuration, fastest first; those that did not reach are arrows."""
    rows = document["ranking"]
    if not rows:
        return None
    if document["goal"] == "final":
        return finals(document, rows[:MOST_ROWS])
    shown = rows[:MOST_ROWS]
    missed = sum(not row["reached"] for row in rows)
    words = (
        f"{len(rows)} configurations of stages 1 and 2, fastest first; a dot is the median of its "
        f"runs, a tick is one run, an arrow ran at least that long without reaching the target "
        f"({missed})."
    )
    if len(rows) > len(shown):
        words += f" The first {len(shown)} are drawn; the table has all."
    title = "Time to the target"
    return both("ranking", title, words, lambda width: _ranking(document, shown, width))


def _ranking(document: Document, rows: Sequence[Any], width: int) -> Drawing:
    narrow = width == NARROW
    pitch, top = (34, 6) if narrow else (21, 10)
    widest = max(len(row["label"]) for row in rows) * CHARACTER_PX
    left = 8 if narrow else min(330, widest) + 16
    right = width - 84
    bottom = top + pitch * len(rows) + 4
    values = [t["seconds"] for row in rows for t in row["times"] if t["seconds"] > 0]
    log = bool(values) and max(values) > LOG_FROM * min(values)
    x = Axis(min(values) * 0.9 if log else 0.0, max(values or [1.0]) * 1.02, left, right, log)
    seconds = CLOCK_TITLE[document["clock"]] + (" (log)" if log else "")
    marks = [x_axis(x, bottom, seconds, top=top, most=5 if narrow else 8)]
    winner = (document["winner"] or {}).get("point")
    baseline = (document["baseline"] or {}).get("point")
    for place, row in enumerate(rows):
        y = top + pitch * place + (24 if narrow else 14)
        role = (
            "winner" if row["point"] == winner else "baseline" if row["point"] == baseline else ""
        )
        kind = role or ("reached" if row["reached"] else "missed")
        label = row["label"] + (f" ({role})" if role else "")
        style = f"fig-{role}-text" if role else ""
        if narrow:
            marks.append(text(left, y - 9, fit(label, right - left + 70), style))
        else:
            room = left - (34 if role else 14)  # bold is wider
            marks.append(text(left - 10, y + 4, fit(label, room), style, anchor="end"))
        marks += _ranked(row, x, y, kind, right)
    return bottom + 40, marks


def _ranked(row: Any, x: Axis, y: float, kind: str, right: float) -> list[str]:
    seconds = row["time_to_target_s"] if row["reached"] else row["censored_at_s"]
    at = x(seconds) if seconds > 0 else x.start_px
    marks = [line(x.start_px, y, at, y, f"fig-stem fig-{kind}")]
    if row["reached"]:
        if len(row["times"]) > 1:
            marks += [
                line(x(t["seconds"]), y - 5, x(t["seconds"]), y + 5, f"fig-run fig-{kind}")
                for t in row["times"]
                if t["reached"] and t["seconds"] > 0
            ]
        marks.append(dot(at, y, 4.5, f"fig-dot fig-{kind}", row["label"]))
        words = duration(seconds)
    else:
        marks.append(arrow(at, y, f"fig-arrow fig-{kind}"))
        words = f"> {duration(seconds)}"
    return [*marks, text(right + 80, y + 4, words, "fig-value", anchor="end")]


# -- ratios with intervals -------------------------------------------------------------------------


def confirm(document: Document) -> Figure | None:
    """Each other's time over the leader's, block by block, with the interval of the mean."""
    found = document["confirm"]
    if not found or not found["contrasts"]:
        return None
    rows = [
        Ratio(
            "baseline" if c["is_baseline"] else c["other_label"],
            c["time"]["ratio"],
            c["time"]["low"],
            c["time"]["high"],
            c["decided"],
            tuple(pair["ratio"] for pair in c["pairs"]),
            c["at_least"],
        )
        for c in found["contrasts"]
        if c["time"]
    ]
    if not rows:
        return None
    final = document["goal"] == "final"
    what = str(document["metric"]) if final else "time"
    words = (
        f"{what.capitalize()} over the {what} of {found['leader_label']} in the same block: small "
        f"dots are blocks, the bar is the geometric mean's {100 * found['confidence']:.4g} % "
        "interval; a bar that crosses 1 is not decided."
    )
    title = "Confirm: pairs within blocks"
    if final:
        axis = f"{what} ratio (log)"
        return ratios("confirm", title, words, rows, axis=axis, show=metric_ratio)
    return ratios("confirm", title, words, rows)


# -- the stage-2 design ----------------------------------------------------------------------------


def design(document: Document) -> Figure | None:
    """Levels by runs, fastest run first: which levels the fast runs share can be read along a row."""
    found = document["design"]
    if not found or not found["runs"] or not found["varying"]:
        return None
    runs = sorted(
        found["runs"],
        key=_best_first if document["goal"] != "final" else _lowest_first,
    )
    repeats = sum(run["replicate_of"] is not None for run in runs)
    words = (
        f"{len(runs)} runs ({repeats} of them repeats) of {len(found['varying'])} varying "
        "parameters, one column a run, fastest on the left; shades follow the order of levels. "
        "Counts show the balance."
    )
    title = "The stage-2 design, ordered by its result"
    return both("design", title, words, lambda width: _design(found, runs, width))


def _best_first(run: Mapping[str, Any]) -> tuple[bool, float]:
    return not run["reached"], math.inf if run["seconds"] is None else run["seconds"]


def _lowest_first(run: Mapping[str, Any]) -> float:
    return math.inf if run["final"] is None else run["final"]


def _design(found: Mapping[str, Any], runs: Sequence[Any], width: int) -> Drawing:
    narrow = width == NARROW
    names = [v["name"].rsplit(".", 1)[-1] for v in found["varying"]]
    left = 8 if narrow else max(len(n) for n in names) * CHARACTER_PX + 22
    right = width - 8
    cell = min(34.0, (right - left) / len(runs))
    pitch, y, marks = (62 if narrow else 54), 8.0, []
    for varying, short in zip(found["varying"], names, strict=True):
        levels = varying["levels"]
        head = y + 12
        if narrow:
            marks.append(text(left, head, short, "fig-strong"))
            head += 16
        else:
            marks.append(text(left - 12, head + 19, short, "fig-strong", anchor="end"))
        legend = "  ·  ".join(
            f"{show_value(v)} ×{n}" for v, n in zip(levels, varying["counts"], strict=True)
        )
        marks.append(text(left, head, fit(legend, right - left), "fig-tick"))
        for column, run in enumerate(runs):
            value = run["point"].get(varying["name"])
            place = levels.index(value) if value in levels else None
            shade = "none" if place is None else round(5 * place / max(1, len(levels) - 1))
            shown = "" if value is None else show_value(value)
            x = left + column * cell
            marks.append(
                box(x, head + 6, cell - 1.5, 18, kind=f"fig-cell fig-level-{shade}",
                    title=f"{run['id']}: {short} = {shown}")
            )  # fmt: skip
            if len(shown) * CHARACTER_PX + 2 < cell:
                over = "fig-on-dark" if isinstance(shade, int) and shade >= 3 else "fig-on-light"
                marks.append(
                    text(x + cell / 2, head + 19, shown, f"fig-small {over}", anchor="middle")
                )
        y += pitch
    marks += _design_times(runs, left, y, cell)
    return y + 34, marks


def _design_times(runs: Sequence[Any], left: float, y: float, cell: float) -> list[str]:
    """The first and the last time that was reached, and where the runs that did not reach begin."""
    reached = [run for run in runs if run["reached"]]
    marks = []
    if reached:
        marks.append(text(left, y + 12, duration(reached[0]["seconds"]), "fig-value"))
    if len(reached) > 1:
        end = left + len(reached) * cell
        words = duration(reached[-1]["seconds"])
        marks.append(text(end, y + 12, words, "fig-value", anchor="end"))
    if len(reached) < len(runs):
        x = left + len(reached) * cell
        words = f"not reached: {len(runs) - len(reached)}"
        anchor = "start" if len(reached) < len(runs) / 2 else "end"
        marks.append(text(x, y + 28, words, "fig-tick", anchor=anchor))
    return marks
