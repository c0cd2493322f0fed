"""What every device did when, and whether it stayed the same: phases, gaps, caps, repeats.

It must not know how any number was computed: everything drawn is in the report's document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sweeper.analysis.wording import duration
from sweeper.report.drawing import NARROW, WIDE, Drawing, Figure, both
from sweeper.report.svg import CHARACTER_PX, Axis, box, dot, line, ring, text, tick_label

Document = Mapping[str, Any]
BEFORE = ("startup", "data", "compile")
LONG_GAP = 0.05
"""A pause of every device longer than this share of the busy time is drawn folded."""


@dataclass(frozen=True)
class _Folded:
    """Sweep seconds to pixels, long pauses of all devices as a narrow break."""

    spans: tuple[tuple[float, float], ...]  # when something ran
    left: float
    right: float
    fold: float = 16.0

    def __call__(self, at: float) -> float:
        busy, room = self._scale
        x = self.left
        for begin, end in self.spans:
            if at <= end:
                return x + max(0.0, at - begin) / busy * room
            x += (end - begin) / busy * room + self.fold
        return self.right

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """Busy seconds, and the pixels for them; kept, because every mark asks."""
        busy = sum(end - begin for begin, end in self.spans)
        room = self.right - self.left - self.fold * (len(self.spans) - 1)
        return max(busy, 1e-9), room

    def breaks(self) -> list[tuple[float, float]]:
        """Where a break stands, and how many seconds it leaves out."""
        pairs = zip(self.spans, self.spans[1:], strict=False)
        return [(self(first[1]) + self.fold / 2, second[0] - first[1]) for first, second in pairs]


def _spans(rows: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    times = sorted((row["began_s"], row["began_s"] + row["wall_s"]) for row in rows)
    merged: list[list[float]] = []
    busy = sum(end - begin for begin, end in times)
    for begin, end in times:
        if merged and begin - merged[-1][1] < LONG_GAP * busy:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return tuple((begin, end) for begin, end in merged)


def timeline(document: Document) -> Figure | None:
    """Attempts on every device over the sweep: what came before the first step, training and
    evaluation, the cap that each was judged against.
    """
    rows = [row for row in document["timeline"] if row["wall_s"] > 0]
    if not rows:
        return None
    devices = sorted({row["device"] for row in rows})
    shares = ", ".join(
        f"{name} {share:.0f} %" for name, share in document["phase_shares"].items() if share > 0.5
    )
    words = (
        f"{len(rows)} attempts on {len(devices)} "
        f"{'device' if len(devices) == 1 else 'devices'}: faint is start-up, data and compilation, "
        "solid is training with evaluation (grey where the target was not reached, orange where the "
        "attempt failed), empty is nothing; a tick above is the cap that it was judged against. "
        f"Of all attempts' time: {shares}."
    )
    return both("timeline", "What the devices did", words, lambda w: _timeline(rows, devices, w))


def _timeline(rows: Sequence[Any], devices: Sequence[str], width: int) -> Drawing:
    narrow = width == NARROW
    left = 8 if narrow else max(len(d) for d in devices) * CHARACTER_PX + 20
    right, lane, top = width - 8, 52 if narrow else 40, 6
    bottom = top + lane * len(devices)
    x = _Folded(_spans(rows), left, right)
    marks = []
    for place, device in enumerate(devices):
        y = top + lane * place + (18 if narrow else 8)
        if narrow:
            marks.append(text(left, y - 5, device, "fig-strong"))
        else:
            marks.append(text(left - 10, y + 16, device, "fig-strong", anchor="end"))
        marks.append(line(left, y + 24.5, right, y + 24.5, "fig-grid"))
        for row in rows:
            if row["device"] == device:
                marks += _attempt(row, x, y)
    marks.append(line(left, bottom, right, bottom, "fig-axis"))
    for at, seconds in x.breaks():
        marks += [
            line(at - 4, bottom + 5, at, bottom - 5, "fig-axis"),
            line(at, bottom + 5, at + 4, bottom - 5, "fig-axis"),
            text(at, bottom + 30, f"{duration(seconds)} nothing", "fig-tick", anchor="middle"),
        ]
    end = max(row["began_s"] + row["wall_s"] for row in rows)
    ticks = [
        tick for tick in Axis(0.0, end, 0, 1).ticks(4 if narrow else 8) if _runs(x.spans, tick)
    ]
    last = -100.0
    for tick in ticks:
        at = x(tick)
        if at - last < 56 or at > right - 20:
            continue
        last = at
        label = duration(tick) if tick >= 100 else f"{tick:.0f} s"
        marks.append(line(at, bottom, at, bottom + 4, "fig-axis"))
        marks.append(text(at, bottom + 16, label, "fig-tick", anchor="middle"))
    return bottom + 40, marks


def _runs(spans: Sequence[tuple[float, float]], at: float) -> bool:
    return any(begin <= at <= end for begin, end in spans)


def _attempt(row: Mapping[str, Any], x: _Folded, y: float) -> list[str]:
    phases, began = row["phases"], row["began_s"]
    before = sum(phases.get(name, 0.0) for name in BEFORE)
    work = phases.get("train", 0.0) + phases.get("eval", 0.0)
    # The runner's own start comes before the trainer's first phase: what no phase claims is first.
    rest = max(0.0, row["wall_s"] - sum(phases.values()))
    start = began + rest + before
    kind = {"reached": "fig-reached", "censored": "fig-missed"}.get(row["outcome"], "fig-lost")
    title = (
        f"{row['id']}{'' if row['attempt'] == 1 else ' again'}: {row['outcome']} ({row['reason']}), "
        f"{duration(row['wall_s'])}"
    )
    x0, x1, x2 = x(began), x(start), x(start + work)
    end = x(began + row["wall_s"])
    marks = [
        box(x0, y, max(0.4, x1 - x0), 24, kind="fig-before", title=title),
        box(x1, y, max(0.6, x2 - x1 - 0.4), 24, kind=f"fig-work {kind}", title=title),
    ]
    if kind == "fig-lost":
        marks.append(box(x0, y, max(1.5, end - x0), 24, kind="fig-work fig-lost", title=title))
    if row["cap_s"] and phases.get("train"):
        at = x(start + min(row["cap_s"], work * 3))
        marks.append(line(at, y - 4, at, y + 3, "fig-cap"))
    return marks


def drift(document: Document) -> Figure | None:
    """Time per token of configurations that were run more than once, over the sweep."""
    found = document["drift"]
    repeats = found["repeats"]
    if len(repeats) < 3:
        return None
    doubtful = sum(repeat["validity"] != "valid" for repeat in repeats)
    rings = f"Rings are in doubt ({doubtful}). " if doubtful else ""
    words = (
        f"Time per token of {len(repeats)} runs of configurations that were run more than once, over "
        f"their own mean: at 1 the device is the same all along. {rings}"
        f"{found['words']}"
    ).rstrip()
    return both("drift", "Did the device stay the same?", words, lambda w: _drift(repeats, w))


def _drift(repeats: Sequence[Any], width: int) -> Drawing:
    height = 280 if width == WIDE else 250
    left, right, top, bottom = 52, width - 14, 20, height - 46
    hours = max(repeat["hours"] for repeat in repeats)
    unit, scale = ("hours", 1.0) if hours > 1.5 else ("minutes", 60.0)
    x = Axis(0.0, max(hours * scale, 1e-6) * 1.02, left, right)
    ratios = [repeat["ratio"] for repeat in repeats]
    reach = max(1.05, *ratios, *(1 / r for r in ratios)) * 1.02
    y = Axis(1 / reach, reach, bottom, top, log=True)
    marks = [line(left, bottom, right, bottom, "fig-axis")]
    marks += [
        text(x(value), bottom + 16, tick_label(value), "fig-tick", anchor="middle")
        for value in x.ticks(5)
    ]
    marks.append(
        text(right, bottom + 33, f"{unit} since the first start", "fig-title", anchor="end")
    )
    for value in y.ticks(5):
        marks += [
            line(left, y(value), right, y(value), "fig-grid"),
            text(left - 6, y(value) + 4, tick_label(value), "fig-tick", anchor="end"),
        ]
    marks.append(text(left - 44, top - 8, "time per token / own mean (log)", "fig-title"))
    marks.append(line(left, y(1.0), right, y(1.0), "fig-one"))
    for repeat in repeats:
        at, title = (
            (x(repeat["hours"] * scale), y(repeat["ratio"])),
            f"{repeat['id']} {repeat['label']}",
        )
        if repeat["validity"] == "valid":
            marks.append(dot(*at, 4, "fig-dot fig-winner", title))
        else:
            marks.append(ring(*at, 4, "fig-ring fig-winner", title))
    return height, marks
