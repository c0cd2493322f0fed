"""Draws loss against steps from the checkpoint, and the factor on the learning rates, of a real run.

    python bench/draw_continuation.py .sweep/runs/continuation-small --out docs/figures/continuation.svg

It reads the events of group A's first three trials: extended, restarted, scratch; it computes nothing
but each schedule's factor, from what `run_started` says is applied.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sweeper.paths import write_whole
from sweeper.report.svg import Axis, box, dot, figure, line, polyline, text, x_axis
from trainer.schedules import restored

WIDTH, HEIGHT, LEFT, RIGHT = 860.0, 470.0, 70.0, 690.0
ARMS = {"s1-A1": "extended", "s1-A2": "restarted", "s1-A3": "scratch"}
STYLE = """<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #222; }
.fig-tick, .fig-title { fill: #666; font-size: 11px; } .head { font-weight: 650; font-size: 14px; }
.fig-axis { stroke: #888; } .fig-grid { stroke: #ddd; } .paper { fill: #fff; }
.target { stroke: #666; stroke-dasharray: 4 3; } polyline { stroke-width: 2; }
.extended { stroke: #1f6f8b; fill: #1f6f8b; } .restarted { stroke: #b4471f; fill: #b4471f; }
.scratch { stroke: #8a8f94; fill: #8a8f94; }
text.extended, text.restarted, text.scratch { stroke: none; }
polyline.extended, polyline.restarted, polyline.scratch { fill: none; }
</style>"""


def read(folder: Path) -> dict[str, Any]:
    """Curve and schedule of a trial's last attempt."""
    events = max(folder.glob("attempt-*/events.jsonl")).read_text().splitlines()
    found = [json.loads(event) for event in events]
    started = next(e for e in found if e["event"] == "run_started")
    probes = [e for e in found if e["event"] == "evaluated" and e["slice"] == "probe"]
    return {
        "curve": [(e["step"], e["metrics"]["val_loss"]) for e in probes],
        "schedule": restored(started["schedule"]),
        "first": started.get("counts_from", {}).get("step", 0),
        "target": started["config"]["run"]["target"],
    }


def drawn(runs: dict[str, dict[str, Any]]) -> str:
    """The figure: losses above, factors below, on the same axis of steps."""
    most = max(step for run in runs.values() for step, _ in run["curve"])
    target = next(iter(runs.values()))["target"]
    steps, loss = Axis(0, most, LEFT, RIGHT), Axis(target - 0.05, 3.0, 270, 50)
    factor = Axis(0, 1.0, 420, 320)
    marks = [
        x_axis(steps, 270, "", top=50),
        x_axis(steps, 420, "steps from the checkpoint (scratch: from nothing)", top=320),
        text(10, 44, "val loss, nats per byte", "fig-title"),
        text(10, 312, "factor on the learning rates", "fig-title"),
        line(LEFT, loss(target), RIGHT, loss(target), kind="target"),
        text(LEFT - 6, loss(target) + 4, f"{target:g}", "fig-tick", anchor="end"),
    ]
    for axis, values in ((loss, (2.5, 2.75, 3.0)), (factor, (0.0, 0.5, 1.0))):
        marks += [text(LEFT - 6, axis(v) + 4, f"{v:g}", "fig-tick", anchor="end") for v in values]
    for place, (name, run) in enumerate(runs.items()):
        curve = [(s, v) for s, v in run["curve"] if v <= 3.0]
        rates = [(s, run["schedule"].at(run["first"] + s)) for s in range(0, most + 1, 4)]
        for axis, points in ((loss, curve), (factor, rates)):
            marks.append(polyline([(steps(s), axis(v)) for s, v in points], name))
        end = curve[-1]
        marks.append(dot(steps(end[0]), loss(end[1]), 4, name))
        marks.append(text(RIGHT + 14, 80 + 20 * place, f"{name}: step {end[0]}", name))
    title = "From one checkpoint: three ways to the target"
    words = "Loss and learning-rate factor against steps from the checkpoint, for three strategies."
    body = [box(0, 0, WIDTH, HEIGHT, kind="paper"), text(10, 22, title, "head"), *marks]
    whole = figure("continuation", (WIDTH, HEIGHT), title, words, body)
    return whole.replace("<title", f"{STYLE}<title", 1) + "\n"


def main() -> None:
    """Read a study's run folders, write one SVG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_whole(options.out, drawn({name: read(options.runs / t) for t, name in ARMS.items()}))


if __name__ == "__main__":
    main()
