"""Numbers as people read them: durations, ratios, percentages, counts of things.

It must not know what is being said, only how a number is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def significant(value: float, digits: int = 3) -> str:
    """A number with that many significant digits and no exponent: 0.00312, 3.12, 312, 31200."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    return f"{float(text):.0f}" if abs(value) >= 1 else f"{float(text):.15f}".rstrip("0")


def duration(seconds: float) -> str:
    """`3.12 s`, `42 s`, `12 min 30 s`, `7 h 05 min`."""
    if seconds < 9.995:  # thresholds lie where rounding would reach the next unit
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def rough(seconds: float) -> str:
    """A forecast, without decimals that it cannot have: `42 s`, `12 min 30 s`."""
    return f"{seconds:.0f} s" if seconds < 99.5 else duration(seconds)


def ratio(value: float) -> str:
    """`1.43`, `12.1`: a ratio of times."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def metric_ratio(value: float) -> str:
    """`1.0231`: a ratio of losses, where the third decimal counts."""
    return f"{value:.4f}"


def change(value: float) -> str:
    """A ratio as a change: 0.97 is `-3.0 %`, 1.5 is `+50 %`."""
    percent = 100 * (value - 1)
    return f"{percent:+.1f} %" if abs(percent) < 10 else f"{percent:+.0f} %"


def more_or_less(value: float, more: str, less: str) -> str:
    """A ratio in words: 1.5 is `50 % {more}`, 0.97 is `3.0 % {less}`."""
    percent = abs(100 * (value - 1))
    shown = f"{percent:.1f}" if percent < 10 else f"{percent:.0f}"
    return f"{shown} % {more if value >= 1 else less}"


def bracket(low: float | None, high: float | None, show: Callable[[float], str] = ratio) -> str:
    """`[1.21, 1.69]`, or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{show(low)}, {show(high)}]"


def count(number: int, thing: str) -> str:
    """`1 trial`, `3 trials`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(names: Sequence[str], most: int = 6) -> str:
    """`A`, `A and B`, `A, B and C`, `A, B, C and 9 more`."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
