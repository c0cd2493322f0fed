"""Owns the picture of a schedule: a table and a plot, in characters or as SVG, of what is applied.

It must not know how a factor is computed; it asks the schedule step by step.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config import Optim
from trainer.schedules import Schedule

TABLE_ROWS = 20
PLOT_COLUMNS, PLOT_LINES = 64, 12
SVG_WIDTH, SVG_HEIGHT, SVG_MARGIN = 640, 240, 40


def base_rates(optim: Optim) -> dict[str, float]:
    """The configured learning rates that the optimizer in use applies, by dotted key."""
    rates: dict[str, float] = {}
    for section in dict.fromkeys((optim.kind, "adamw", "adam")):
        settings = getattr(optim, section, None)
        for name in getattr(type(settings), "__dataclass_fields__", {}):
            if name == "lr" or name.endswith("_lr"):
                rates[f"{section}.{name}"] = getattr(settings, name)
    if optim.kind != "adamw":
        rates.pop("adam.matrix_lr", None)
    common = rates.pop("adam.lr", None)
    if common is not None:
        rates = {name: common if name.startswith("adam.") else rate for name, rate in rates.items()}
    return rates


def described(schedule: Schedule, first: int, max_steps: int, rates: Mapping[str, float]) -> str:
    """Headline, table and plot of the steps from `first` to `max_steps`."""
    headline = f"{schedule.kind}, steps {first} to {max_steps - 1}; each rate is its own value"
    lines = [
        f"{headline} times the factor",
        "",
        "  ".join(["    step", "  factor", *(f"{name:>18}" for name in rates)]),
    ]
    for step in _shown_steps(schedule, first, max_steps):
        factor = schedule.at(step)
        cells = [
            f"{step:8d}",
            f"{factor:8.5f}",
            *(f"{rate * factor:18.6g}" for rate in rates.values()),
        ]
        lines.append("  ".join(cells))
    return "\n".join([*lines, "", *_plot(schedule, first, max_steps)])


def as_svg(schedule: Schedule, first: int, max_steps: int) -> str:
    """The same curve as a picture of its own."""
    width, height = SVG_WIDTH - 2 * SVG_MARGIN, SVG_HEIGHT - 2 * SVG_MARGIN
    steps = _columns(first, max_steps, width)
    span, top = max(1, max_steps - 1 - first), _top(schedule, steps)
    points = " ".join(
        f"{SVG_MARGIN + (step - first) / span * width:.1f},"
        f"{SVG_MARGIN + (1 - schedule.at(step) / top) * height:.1f}"
        for step in steps
    )
    base, right = SVG_HEIGHT - SVG_MARGIN, SVG_WIDTH - SVG_MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="currentColor">'
        f'<path d="M{SVG_MARGIN},{SVG_MARGIN}V{base}H{right}" fill="none" stroke="currentColor"/>'
        f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="2"/>'
        f'<text x="{SVG_MARGIN}" y="{SVG_MARGIN - 8}">factor {top:g} at the top; {schedule.kind}</text>'
        f'<text x="{SVG_MARGIN}" y="{base + 18}">step {first}</text>'
        f'<text x="{right}" y="{base + 18}" text-anchor="end">{max_steps - 1}</text></svg>\n'
    )


def _shown_steps(schedule: Schedule, first: int, max_steps: int) -> list[int]:
    """Evenly spread steps, and those at which something begins or ends."""
    edges = {schedule.first, schedule.first + schedule.warmup, schedule.end - schedule.decay}
    spread = set(_columns(first, max_steps, TABLE_ROWS))
    return sorted(step for step in edges | spread if first <= step < max_steps)


def _columns(first: int, max_steps: int, count: int) -> list[int]:
    last = max(first, max_steps - 1)
    count = max(1, min(count, last - first + 1))
    return [first + round(place * (last - first) / max(1, count - 1)) for place in range(count)]


def _top(schedule: Schedule, steps: list[int]) -> float:
    return max(schedule.at(step) for step in steps) or 1.0


def _plot(schedule: Schedule, first: int, max_steps: int) -> list[str]:
    steps = _columns(first, max_steps, PLOT_COLUMNS)
    top = _top(schedule, steps)
    heights = [round(schedule.at(step) / top * (PLOT_LINES - 1)) for step in steps]
    lines = []
    for level in reversed(range(PLOT_LINES)):
        label = (
            f"{top * level / (PLOT_LINES - 1):7.4f}" if level in (0, PLOT_LINES - 1) else " " * 7
        )
        marks = "".join("*" if height == level else " " for height in heights)
        lines.append(f"{label} |{marks}".rstrip())
    return [
        *lines,
        f"{'':7} +{'-' * len(steps)}",
        f"{'':9}{first}{max_steps - 1:>{len(steps) - 1}}",
    ]
