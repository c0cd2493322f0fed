"""Figures of the report as plotly documents, for pages that draw with plotly (the Optuna dashboard).

It must not know how any number was computed: it reads the report's document alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.wording import duration, significant
from sweeper.report.drawing import CLOCK_TITLE
from sweeper.space import show_value

Document = Mapping[str, Any]
MOST_POINTS = 24  # a page stores a figure in pieces of 2 kB, one commit each
COLOURS = {"winner": "#0a5fa8", "baseline": "#191d21", "other": "#9aa5b0"}


def plots(document: Document) -> dict[str, dict[str, Any]]:
    """By a name that may be an HTML id: whatever the document has data for."""
    found = {
        "sweep-curves": _curves(document),
        "sweep-ranking": _ranking(document),
        "sweep-questions": _questions(document),
    }
    return {name: figure for name, figure in found.items() if figure["data"]}


def _figure(
    data: Sequence[Mapping[str, Any]], title: str, x: str, y: str, **layout: Any
) -> dict[str, Any]:
    return {
        "data": list(data),
        "layout": {
            "title": {"text": title, "font": {"size": 15}},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}, **layout.pop("yaxis", {})},
            "showlegend": False,
            **layout,
        },
    }


def _curves(document: Document) -> dict[str, Any]:
    data = []
    order = {"other": 0, "baseline": 1, "winner": 2}
    for run in sorted(document["curves"], key=lambda run: order[run["role"]]):
        points = _thinned(run["points"])
        if len(points) < 2:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{run['id']} {run['label']}"[:80],
                "x": [float(f"{point[0]:.4g}") for point in points],
                "y": [float(f"{point[3]:.5g}") for point in points],
                "line": {
                    "color": COLOURS[run["role"]],
                    "width": 1 if run["role"] == "other" else 2.5,
                    "dash": "solid" if run["reached"] else "dot",
                },
            }
        )
    target = document["target"]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": target, "y1": target,
            "line": {"color": "#b34a00"}}  # fmt: skip
    title = f"{document['metric']} against seconds, target {significant(target, 6)}"
    unit = CLOCK_TITLE[document["clock"]]
    return _figure(data, title, unit, document["metric"], shapes=[line] if data else [])


def _thinned(points: Sequence[Any]) -> Sequence[Any]:
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _ranking(document: Document) -> dict[str, Any]:
    rows = document["ranking"][:40]
    winner = (document["winner"] or {}).get("point")
    baseline = (document["baseline"] or {}).get("point")
    times = [r["time_to_target_s"] if r["reached"] else r["censored_at_s"] for r in rows]
    kinds = [
        "winner" if r["point"] == winner else "baseline" if r["point"] == baseline else "other"
        for r in rows
    ]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [float(f"{seconds:.4g}") for seconds in times],
        "y": [f"{place}. {r['label']}"[:36] for place, r in enumerate(rows, start=1)],
        "text": [
            duration(s) if r["reached"] else f"> {duration(s)}, not reached"
            for r, s in zip(rows, times, strict=True)
        ],
        "marker": {
            "color": [COLOURS[kind] for kind in kinds],
            "opacity": [1.0 if r["reached"] else 0.35 for r in rows],
        },
    }
    title = "Time to the target (pale: not reached by then)"
    unit = CLOCK_TITLE[document["clock"]]
    return _figure([bars] if rows else [], title, unit, "",
                   yaxis={"autorange": "reversed", "automargin": True})  # fmt: skip


def _questions(document: Document) -> dict[str, Any]:
    found = [
        (_name(q, c), c)
        for q in document["questions"]
        for c in q["comparisons"]
        if c["time"] and "ratio" in c["time"]
    ]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [c["time"]["ratio"] for _, c in found],
        "y": [name for name, _ in found],
        "text": [c["words"] for _, c in found],
        "marker": {
            "size": 11,
            "color": [COLOURS["winner" if c["decided"] else "other"] for _, c in found],
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_reach(c["time"], "high") for _, c in found],
            "arrayminus": [_reach(c["time"], "low") for _, c in found],
        },
    }
    one = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": 1,
        "x1": 1,
        "line": {"dash": "dash"},
    }
    title = "Questions: time ratio, blue is decided"
    return _figure([dots] if found else [], title, "ratio", "", shapes=[one],
                   yaxis={"automargin": True})  # fmt: skip


def _reach(time: Mapping[str, Any], side: str) -> float:
    return 0.0 if time[side] is None else abs(time[side] - time["ratio"])


def _name(question: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    levels = f"{show_value(comparison['level'])} / {show_value(comparison['reference'])}"
    return f"{question['parameter'].rsplit('.', 1)[-1]}: {levels}"
