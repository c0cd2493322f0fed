"""Owns how a comparison of arms looks: one table, and one figure of all loss curves.

It must not compute any number of the comparison, nor read events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from trainer.comparison import FinishedRun

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 34, 44
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b", "#0891b2", "#b91c1c")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 2", "6 2 1 2")

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("steps", "steps", "{:.0f}"),
    ("stable_from_step", "stable from step", "{:.0f}"),
    ("steps_to_level", "steps to val {level:g}", "{:.0f}"),
    ("sequences_to_level", "sequences to it", "{:.0f}"),
    ("train_s_to_level", "seconds to it", "{:.2f}"),
    ("loss_variance", "variance, last steps", "{:.4f}"),
    ("best_step_loss", "best loss of a step", "{:.3f}"),
    ("best_smoothed_loss", "best running mean", "{:.3f}"),
    ("final_val_loss", "final val loss", "{:.4f}"),
    ("train_s", "train s", "{:.2f}"),
    ("wall_s", "wall s", "{:.2f}"),
)


def as_markdown(document: Mapping[str, Any]) -> str:
    """The outputs with an arm a column, half widths of 95 % intervals, and generated text."""
    arms, level = document["arms"], document["level"]
    lines = [
        "| | " + " | ".join(arm["arm"] for arm in arms) + " |",
        "|---|" + "---|" * len(arms),
        "| parameters | " + " | ".join(f"{arm['parameters']:,}" for arm in arms) + " |",
        "| runs | " + " | ".join(str(arm["runs"]) for arm in arms) + " |",
        "| threads | " + " | ".join(str(arm["threads"] or "") for arm in arms) + " |",
        "| ended by | " + " | ".join(", ".join(arm["stopped_by"]) for arm in arms) + " |",
    ]
    for key, title, form in COLUMNS:
        if any(arm[key] for arm in arms):
            cells = (_cell(arm[key], form) for arm in arms)
            lines.append(f"| {title.format(level=level)} | " + " | ".join(cells) + " |")
    for key, title in (
        ("steps", "times fewer steps to it"),
        ("sequences", "times fewer sequences to it"),
        ("train_s", "times fewer seconds to it"),
    ):
        cells = (_ratio(arm["faster_than_first"][key]) for arm in arms[1:])
        lines.append(f"| {title} | 1 | " + " | ".join(cells) + " |")
    if any(arm["samples"] for arm in arms):
        lines.append("| generated | " + " | ".join(", ".join(a["samples"]) for a in arms) + " |")
    return "\n".join(lines) + "\n"


def _cell(spread: Mapping[str, Any] | None, form: str) -> str:
    if spread is None:
        return "none"
    text = form.format(spread["mean"])
    if spread["half_width_95"] is not None:
        text += " ± " + form.format(spread["half_width_95"])
    if spread["missing"]:
        text += f" ({spread['n']} of {spread['n'] + spread['missing']})"
    return text


def _ratio(value: Sequence[float] | None) -> str:
    return "not known" if value is None else "{:.2f} [{:.2f}, {:.2f}]".format(*value)


def as_svg(arms: Mapping[str, Sequence[FinishedRun]], level: float, title: str) -> str:
    """Every run's running mean of the training loss (thin) and its validation loss (thick), by step.

    A dot is where a run ended. Where runs kept no training losses, the validation curves alone.
    """
    curves = [
        (number, name, run.last.get("smoothed_losses", []), [(c[0], c[3]) for c in run.curve])
        for number, (name, runs) in enumerate(arms.items())
        for run in runs
    ]
    steps = max(run.last["step"] for runs in arms.values() for run in runs) or 1
    values = sorted(loss for _, _, _, looks in curves for _, loss in looks)
    low, high = values[0] - 0.08, values[0] + 0.85
    right, base = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + step / steps * (right - LEFT)

    def y(loss: float) -> float:
        return base - (loss - low) / (high - low) * (base - TOP)

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="18" font-size="14" fill="#111827">{escape(title)}</text>'
        f'<clipPath id="plane"><rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" '
        f'height="{base - TOP}"/></clipPath>'
    )
    tenths = range(int(low * 10) + 1, int(high * 10) + 1)
    marks = [head, *(_grid(LEFT, right, y(tenth / 10), f"{tenth / 10:.1f}") for tenth in tenths)]
    for part in range(6):
        step = round(steps * part / 5)
        marks.append(
            f'<text x="{x(step):.0f}" y="{base + 17}" text-anchor="middle" fill="#4b5563">{step}</text>'
        )
    marks.append(
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle" '
        'fill="#4b5563">steps</text><g clip-path="url(#plane)" fill="none">'
    )
    for number, _, smoothed, looks in curves:
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        for points, width, opacity in ((smoothed, 1.0, 0.22), (looks, 1.8, 0.95)):
            path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
            style = f' stroke-dasharray="{dash}"' if dash and width > 1 else ""
            marks.append(
                f'<polyline points="{path}" stroke="{colour}" stroke-width="{width}" '
                f'opacity="{opacity}"{style}/>'
            )
        end = looks[-1]
        marks.append(f'<circle cx="{x(end[0]):.1f}" cy="{y(end[1]):.1f}" r="3" fill="{colour}"/>')
    marks.append(
        f'</g><line x1="{LEFT}" x2="{right}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="#111827" '
        f'stroke-dasharray="3 4"/><text x="{LEFT + 6}" y="{y(level) + 14:.1f}" fill="#111827">'
        f"val {level:g}</text>"
    )
    return "".join([*marks, *_legend(arms, right), "</svg>\n"])


def _grid(left: float, right: float, y: float, words: str) -> str:
    return (
        f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>'
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#4b5563">{words}</text>'
    )


def _legend(arms: Mapping[str, Sequence[FinishedRun]], right: float) -> list[str]:
    marks = []
    for number, (name, runs) in enumerate(arms.items()):
        y = TOP + 16 + 18 * number
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        marks.append(
            f'<line x1="{right - 262}" x2="{right - 230}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/><text x="{right - 222}" y="{y + 4}" '
            f'fill="#111827">{escape(name)} ({len(runs)} run{"s" if len(runs) > 1 else ""})</text>'
        )
    return marks
