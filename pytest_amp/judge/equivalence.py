"""Whether differences are within a limit on average: two one-sided t tests, over seeds.

"Equivalent" is said if one test rejects that the mean is above the limit, and the other that it is
below minus the limit. "Different" is said if a test rejects that the mean is within. The limit may
be another for each difference, as a share of a loss is: each is held against its own. An answer is
wrong with probability at most `error_rate`, if the differences are about normal.

Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach",
Journal of Pharmacokinetics and Biopharmaceutics 15 (1987). The distribution function is
Abramowitz and Stegun's 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

_MOST_WANTED = 100


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


def interval(sample: Sequence[float], error_rate: float, count: int | None = None) -> Interval:
    """Return the mean of two or more finite numbers with its t interval.

    Args:
        sample: the numbers.
        error_rate: the probability that is left on each side.
        count: of how many numbers these are an example; by default of as many as there are.
    """
    count = count or len(sample)
    mean = statistics.fmean(sample)
    half = quantile(count - 1, 1 - error_rate) * statistics.stdev(sample) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def answer(
    differences: Sequence[float],
    limits: Sequence[float],
    error_rate: float,
    count: int | None = None,
) -> Literal["equivalent", "different"] | None:
    """Return whether the mean difference is within its limits; None while that is open.

    Args:
        differences: two or more.
        limits: what each may differ from 0 by, to either side.
        error_rate: the bound on the probability of each wrong answer.
        count: of how many differences these are an example; by default of as many as there are.
    """
    above = [each - limit for each, limit in zip(differences, limits, strict=True)]
    below = [each + limit for each, limit in zip(differences, limits, strict=True)]
    if interval(above, error_rate, count).high <= 0 and interval(below, error_rate, count).low >= 0:
        return "equivalent"
    each_side = error_rate / 2
    if interval(above, each_side, count).low > 0 or interval(below, each_side, count).high < 0:
        return "different"
    return None


def wanted(differences: Sequence[float], limits: Sequence[float], error_rate: float) -> int | None:
    """Return how many differences like these would give an answer; None if a hundred would not."""
    counts = range(len(differences) + 1, _MOST_WANTED + 1)
    return next((n for n in counts if answer(differences, limits, error_rate, n)), None)


@lru_cache
def quantile(freedom: int, probability: float) -> float:
    """Return Student's t that is not exceeded with this probability, which is above one half."""
    high = 1.0
    while _distribution(high, freedom) < probability:
        high *= 2
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        is_below = _distribution(middle, freedom) < probability
        low, high = (middle, high) if is_below else (low, middle)
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
