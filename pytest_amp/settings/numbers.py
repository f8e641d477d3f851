"""Parse a number, and refuse one that makes no sense where it is given."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import NamedTuple


class Range(NamedTuple):
    """A range of valid numbers.

    Attributes:
        low: its lower end.
        high: its upper end.
        low_included: whether the lower end itself is valid.
        high_included: whether the upper end itself is valid.
        says: what is valid, in words that go after "is not".
    """

    low: float
    high: float
    low_included: bool
    high_included: bool
    says: str

    def holds(self, value: float) -> bool:
        """Return whether `value` is finite and lies in the range."""
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return math.isfinite(value) and above and below


def number(value: object, valid: Range) -> float:
    """Parse a finite number, or its text.

    Raises:
        ValueError: it is not a number, or not in the range.
    """
    parsed = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            parsed = float(value)
    if not valid.holds(parsed):
        raise ValueError(f"{value!r} is not {valid.says}")
    return parsed
