"""Draws the figures of bench/results/search_efficiency.json as SVG files for the documentation.

Run: python bench/draw_search_efficiency.py [--results FILE] [--out DIR]

It must not compute anything: every number drawn is in the results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.paths import write_whole
from sweeper.report.svg import Axis, box, dot, figure, line, text, x_axis

HERE = Path(__file__).resolve().parent
WIDTH, LEFT, RIGHT, ROW, TOP = 860.0, 330.0, 830.0, 26.0, 44.0
STYLE = """<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #222; }
.fig-tick, .fig-title { fill: #666; font-size: 11px; } .head { font-weight: 650; font-size: 14px; }
.fig-axis { stroke: #888; } .fig-grid { stroke: #ddd; } .aim { stroke: #b4471f; stroke-dasharray: 4 3; }
.ours { fill: #1f6f8b; } .other { fill: #9aa5ab; } .bad { fill: #b4471f; } .quiet { fill: #666; }
.paper { fill: #fff; }
</style>"""

Results = Mapping[str, Any]


def page(name: str, title: str, words: str, height: float, marks: Sequence[str]) -> str:
    """A figure that stands alone: with its own colours and paper."""
    paper = box(0, 0, WIDTH, height, kind="paper")
    head = text(10, 22, title, "head")
    whole = figure(name, (WIDTH, height), title, words, [paper, head, *marks])
    return whole.replace("<title", f"{STYLE}<title", 1) + "\n"


def saved(results: Results) -> str:
    """Figure 1: what each set of rules saves, and how often it changes the answer."""
    parts = (("", results), (", wider learning rates", results["wide"]))
    groups = [
        (f"trial limit {limit}{where}", modes)
        for where, part in parts
        for limit, modes in part["figures 1 and 3: racing off and on"].items()
    ]
    height = TOP + ROW * sum(len(modes) for _, modes in groups) + 50  # "off" is the heading's row
    axis = Axis(0.0, 75.0, LEFT, RIGHT - 190)
    bottom = height - 44
    marks = [x_axis(axis, bottom, "train seconds saved, median of the sweeps, %", top=TOP)]
    marks.append(
        text(RIGHT, TOP - 4, "top 3 changed; best truly > 5 % slower", "fig-title", anchor="end")
    )
    y = TOP + 4
    for heading, modes in groups:
        marks.append(text(10, y + 14, heading, "quiet"))
        y += ROW
        for mode, found in modes.items():
            if mode == "off":
                continue
            share = 100 * found["saved_median"]
            marks += [
                text(LEFT - 8, y + 13, mode.replace(" (default)", ""), anchor="end"),
                box(axis(0), y + 3, axis(share) - axis(0), 14,
                    kind="ours" if "(default)" in mode else "other"),
                text(axis(share) + 6, y + 14, f"{share:.0f} %"),
                text(
                    RIGHT,
                    y + 14,
                    f"{found['final_top3_changed']} of {found['sweeps']}, "
                    f"{found['best_of_top3_truly_slower_by_more_than_5_percent']}",
                    "bad" if found["final_top3_changed"] else "",
                    anchor="end",
                ),
            ]  # fmt: skip
            y += ROW
    words = (
        "Bars: the share of train seconds saved by each set of rules; right: how often it changed."
    )
    return page("saved", "What racing saves, and what it changes", words, height, marks)


def found(results: Results) -> str:
    """Figure 2: seconds until a configuration within 5 % of the best was found and finished."""
    methods = results["figure 2: seconds to within 5 %"]["methods"]
    rows = sorted(methods.items(), key=lambda item: item[1]["median_s"] or 1e9)
    height = TOP + ROW * len(rows) + 50
    axis, bottom = Axis(0.0, 36.0, LEFT, RIGHT - 110), height - 44
    marks = [x_axis(axis, bottom, "virtual train seconds, median over seeds", top=TOP)]
    marks.append(text(RIGHT, TOP - 4, "seeds that found one", "fig-title", anchor="end"))
    for place, (name, of) in enumerate(rows):
        y = TOP + 4 + ROW * place
        kind = "ours" if name.startswith("two stages") else "other"
        share = f"{100 * of['found_share']:.0f} %"
        marks += [
            text(LEFT - 8, y + 13, name, anchor="end"),
            text(RIGHT, y + 13, share, "bad" if of["found_share"] < 0.95 else "", anchor="end"),
        ]
        if of["median_s"] is None:
            marks.append(text(axis(0) + 6, y + 13, "not found in most seeds", "quiet"))
            continue
        end = axis(of["median_s"])
        marks += [line(axis(0), y + 9, end, y + 9, "fig-axis"), dot(end, y + 9, 5, kind),
                  text(end + 10, y + 13, f"{of['median_s']:.1f} s")]  # fmt: skip
    words = (
        "Dots: median seconds until a configuration within 5 % of the best was found and finished."
    )
    return page(
        "found",
        "Until a configuration within 5 % of the best is found and finished",
        words,
        height,
        marks,
    )


def confirmed(results: Results) -> str:
    """Figure 4: how often confirm is right, against the fastest single run."""
    levels = results["figure 4: confirm"]
    series = (
        ("fastest_single_run_is_true_best", "fastest single run is the true best", "other"),
        ("confirm_leader_is_true_best", "confirm's leader is the true best", "ours"),
        (
            "declared_winner_is_true_best",
            "a declared winner is the true best, of those declared",
            "ours",
        ),
        ("confirm_declares_a_winner", "confirm declares a winner", "other"),
        ("two_equals_called_separated", "two equals are called separated", "bad"),
    )
    height = TOP + (ROW * len(series) + ROW) * len(levels) + 50
    axis, bottom = Axis(0.0, 100.0, LEFT, RIGHT - 40), height - 44
    marks = [x_axis(axis, bottom, "% of 100 seeds", top=TOP)]
    y = TOP + 4
    for level, of in levels.items():
        marks.append(text(10, y + 14, level.replace("%", " %"), "quiet"))
        y += ROW
        for key, words, kind in series:
            share = 100 * of[key]
            marks += [text(LEFT - 8, y + 13, words, anchor="end"),
                      box(axis(0), y + 3, max(1.0, axis(share) - axis(0)), 14, kind=kind),
                      text(axis(share) + 6, y + 14, f"{share:.0f}")]  # fmt: skip
            y += ROW
    words = "Per noise level: how often the fastest single run, and confirm, name the true best."
    return page("confirmed", "Confirm against the fastest single run", words, height, marks)


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "search_efficiency.json")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "figures")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for draw in (saved, found, confirmed):
        write_whole(options.out / f"search-{draw.__name__}.svg", draw(results))


if __name__ == "__main__":
    main()
