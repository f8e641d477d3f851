"""Whether differences are within a limit on average: two one-sided t tests, over seeds.

"Equivalent" is said if both tests reject: that the mean is above the limit, and that it is below
minus the limit. "Different" is said if a test rejects that the mean is within. Each answer is wrong
with probability at most `error_rate`, if the differences are about normal.

Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach",
Journal of Pharmacokinetics and Biopharmaceutics 15 (1987). The distribution function is
Abramowitz and Stegun's 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean, and the interval that it lies in.

    Attributes:
        mean: of the sample.
        low: the mean is below it with probability at most the error rate.
        high: the mean is above it with probability at most the error rate.
    """

    mean: float
    low: float
    high: float

    @property
    def least(self) -> float:
        """The least size that the mean may have."""
        return max(0.0, self.low, -self.high)

    @property
    def most(self) -> float:
        """The largest size that it may have."""
        return max(-self.low, self.high)

    def answer(self, limit: float) -> str | None:
        """Return "equivalent", "different", or None while that is open.

        Args:
            limit: what the mean may differ from 0 by, to either side.
        """
        if -limit <= self.low and self.high <= limit:
            return "equivalent"
        return "different" if self.low > limit or self.high < -limit else None


def interval(sample: Sequence[float], error_rate: float) -> Interval:
    """Return the mean of two or more numbers with its t interval."""
    mean = statistics.fmean(sample)
    half = quantile(len(sample) - 1, 1 - error_rate) * _standard_error(sample)
    return Interval(mean, mean - half, mean + half)


def wanted(sample: Sequence[float], limit: float, error_rate: float) -> int | None:
    """Return how many numbers would give an answer, if they went on like these; None if too many.

    Args:
        sample: two or more.
        limit: what the mean may differ from 0 by, to either side.
        error_rate: the bound on the probability of a wrong answer.
    """
    margin, spread = abs(limit - abs(statistics.fmean(sample))), statistics.stdev(sample)
    for count in range(len(sample) + 1, _MOST_WANTED + 1):
        if quantile(count - 1, 1 - error_rate) * spread / math.sqrt(count) <= margin:
            return count
    return None


_MOST_WANTED = 100


def _standard_error(sample: Sequence[float]) -> float:
    return statistics.stdev(sample) / math.sqrt(len(sample))


@lru_cache
def quantile(freedom: int, probability: float) -> float:
    """Return Student's t that is not exceeded with this probability, which is above one half."""
    high = 1.0
    while _distribution(high, freedom) < probability:
        high *= 2
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _distribution(middle, freedom) < probability else (low, middle)
        )
    return high


def _distribution(t: float, freedom: int) -> float:
    """Return the probability that Student's t with a whole number of degrees stays below t >= 0."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    if freedom == 1:
        total = 0.0
    for order in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (order - 1) / order
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2
