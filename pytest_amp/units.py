"""Format numbers and stored texts for people.

Every figure that is shown goes through this module, so that units and digits are the same
everywhere. A figure that is not known is shown as ``-``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
NOTHING = "-"


def _three_digits(value: float) -> str:
    """Format with three significant digits and no exponent: 1.23, 12.3, 123."""
    magnitude = abs(value)
    decimals = 2 if magnitude < 9.995 else 1 if magnitude < 99.95 else 0
    return f"{value:.{decimals}f}"


def duration(seconds: float | None) -> str:
    """Format seconds in the unit that suits them: 12.3 ms."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    scale, unit = next((pair for pair in _TIMES if abs(seconds) >= pair[0] * 0.9995), _TIMES[-1])
    return f"{_three_digits(seconds / scale)} {unit}"


def size(count: float | None) -> str:
    """Format bytes in the binary unit that suits them: 412 MiB."""
    if count is None:
        return NOTHING
    scale, unit = next((pair for pair in _SIZES if abs(count) >= pair[0]), _SIZES[-1])
    return f"{count:.0f} B" if scale == 1 else f"{_three_digits(count / scale)} {unit}"


def ratio(value: float | None) -> str:
    """Format a ratio such as a speedup: 1.52x."""
    return NOTHING if value is None or not math.isfinite(value) else f"{_three_digits(value)}x"


def interval(low: float | None, high: float | None) -> str:
    """Format a confidence interval: [1.48, 1.55]. Return "" if a bound is missing."""
    if low is None or high is None:
        return ""
    return f"[{_three_digits(low)}, {_three_digits(high)}]"


def estimate(value: float | None, low: float | None, high: float | None) -> str:
    """Format a ratio with its interval, if it has one: 1.52x [1.48, 1.55]."""
    return f"{ratio(value)} {interval(low, high)}".rstrip()


def share(fraction: float | None) -> str:
    """Format a fraction as a percentage, or as a multiple from 100 on: 48%, 1.2%, 0.03%, 151x.

    Small percentages get more digits, so that a small difference does not round to nothing.
    """
    if fraction is None or not math.isfinite(fraction):
        return NOTHING
    if abs(fraction) >= 100:
        return f"{fraction:.3g}x"
    percent = 100 * fraction
    if percent == 0:
        return "0%"
    magnitude = abs(percent)
    if magnitude < 0.005:
        return "<0.01%" if percent > 0 else ">-0.01%"
    decimals = 0 if magnitude >= 9.95 else 1 if magnitude >= 0.995 else 2
    return f"{percent:.{decimals}f}%"


def signed(fraction: float | None) -> str:
    """Format a change as a percentage with its sign: +3.1%."""
    text = share(fraction)
    return f"+{text}" if fraction is not None and fraction > 0 and text[0].isdigit() else text


def number(value: float | None) -> str:
    """Format a figure with at most six significant digits and no trailing zeros."""
    return NOTHING if value is None else f"{value:.6g}"


def count(value: float | None) -> str:
    """Format how many there are with three significant digits: 512, 12.3 k, 1.24 M, 7.00 B."""
    if value is None:
        return NOTHING
    for scale, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)}{unit}"
    return f"{value:.0f}"


def printable(text: str) -> str:
    """Escape the characters that would break the line or move a terminal's cursor or colours."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def one_line(text: str) -> str:
    """Return text on one line, with single spaces in place of white space, and printable."""
    return printable(" ".join(text.split()))


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: 1 pair, 2 pairs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(items: Sequence[str]) -> str:
    """Join items as in a sentence: a, b and c."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def change(before: str, after: str) -> str:
    """Join two formatted figures, naming a shared unit only once: 16.8 -> 11.1 ms."""
    if before == after == NOTHING:
        return NOTHING
    figure, _, unit = before.partition(" ")
    return f"{figure if unit == after.partition(' ')[2] else before} -> {after}"


def power(value: float | None) -> str:
    """Format a power of two as one, as loss scales are (2^15), and any other number plainly."""
    if value is None:
        return NOTHING
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else number(value)
