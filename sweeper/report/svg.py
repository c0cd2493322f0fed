"""Scales, ticks and escaped marks: what every figure is drawn with, as strings of SVG.

It must not know what a figure is about; colours are classes, so that a page can be dark or light.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

CHARACTER_PX = 7.0  # mean advance of the sans-serif text at 12 px, for fitting labels


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map from data to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands, in pixels."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low * 1e-3))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis, at most about `most` of them."""
        if self.log and self.high > 3 * self.low:
            return _log_ticks(self.low, self.high, most)
        return _linear_ticks(self.low, self.high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in marks]
        inside = [round(t, 12) for t in found if low * 0.999 <= t <= high * 1.001]
        if len(inside) <= most:
            return inside
    return inside


def number(value: float) -> str:
    """A coordinate with at most one decimal, which is sharper than a screen."""
    return f"{value:.1f}".removesuffix(".0")


def tick_label(value: float) -> str:
    """A tick as people write it."""
    return f"{value:.10g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"


def fit(text: str, width_px: float) -> str:
    """Text cut to about a width, with an ellipsis where something was cut."""
    most = max(2, int(width_px / CHARACTER_PX))
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    """One line of text; `kind` is a class."""
    where = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
    return f'<text class="fig-text {kind}" {where}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line class="{kind}" {ends}/>'


def polyline(points: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through points."""
    shown = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return f'<polyline class="{kind}" points="{shown}"/>'


def dot(x: float, y: float, radius: float, kind: str, title: str = "") -> str:
    """A disc, with words for a pointer that rests on it."""
    body = f"<title>{escape(title)}</title>" if title else ""
    where = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
    return f'<circle class="{kind}" {where}>{body}</circle>'


def ring(x: float, y: float, radius: float, kind: str, title: str = "") -> str:
    """A circle that is not filled: its class gives the stroke."""
    return dot(x, y, radius, kind, title)


def square(x: float, y: float, radius: float, kind: str) -> str:
    """A square around a point."""
    side = 1.8 * radius
    return box(x - side / 2, y - side / 2, side, side, kind=kind)


def diamond(x: float, y: float, radius: float, kind: str) -> str:
    """A square on its corner around a point."""
    far = 1.25 * radius
    corners = ((x, y - far), (x + far, y), (x, y + far), (x - far, y))
    shown = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
    return f'<polygon class="{kind}" points="{shown}"/>'


def box(x: float, y: float, width: float, height: float, *, kind: str, title: str = "") -> str:
    """A rectangle."""
    body = f"<title>{escape(title)}</title>" if title else ""
    where = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect class="{kind}" {where}>{body}</rect>'


def arrow(x: float, y: float, kind: str, size: float = 5.0) -> str:
    """A triangle that points right: at least this much."""
    corners = ((x, y - size), (x + 1.6 * size, y), (x, y + size))
    shown = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
    return f'<polygon class="{kind}" points="{shown}"/>'


def x_axis(axis: Axis, y: float, title: str, *, top: float, most: int = 6) -> str:
    """Ticks with grid lines up to `top`, and the axis title under them."""
    marks = [line(axis.start_px, y, axis.end_px, y, "fig-axis")]
    for value in axis.ticks(most):
        x = axis(value)
        marks += [
            line(x, y, x, top, "fig-grid"),
            text(x, y + 16, tick_label(value), "fig-tick", anchor="middle"),
        ]
    marks.append(text(axis.end_px, y + 33, title, "fig-title", anchor="end"))
    return "".join(marks)


def figure(
    name: str, size: tuple[float, float], title: str, description: str, marks: Sequence[str]
) -> str:
    """A whole figure with its title and its text alternative; `name` must be unique on a page, `size` is
    width and height in pixels.
    """
    return (
        f'<svg class="fig" role="img" aria-labelledby="{name}-t {name}-d" '
        f'viewBox="0 0 {number(size[0])} {number(size[1])}" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{"".join(marks)}</svg>'
    )
