"""Find where a metric's history stepped: E-divisive means with a t-test in place of permutations.

The method is that of Matteson and James, "A nonparametric approach for multiple change point
analysis of multivariate data" (2014), which Daly et al. (ICPE 2020) applied to performance tests
and Fleming et al., "Hunter" (ICPE 2023), made deterministic. The series is split where the energy
statistic is largest, for as long as the two sides differ by Student's t-test. Then the splits that
do not stand up beside their neighbours are undone, the weakest first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

# A split is tried on evidence this weak, since further splits may sharpen it: one end of a passing
# spell says little while the other end is not known.
_WEAK = 0.2
_MOST = 1000
_FAR = 5.0


@dataclass(frozen=True)
class ChangePoint:
    """A step in a series.

    Attributes:
        index: the index of the first value after the step.
        before: the mean of the values before it, outliers drawn in.
        after: the mean of the values after it, outliers drawn in.
        p_value: the p-value of the t-test between the two sides.
    """

    index: int
    before: float
    after: float
    p_value: float

    @property
    def change(self) -> float:
        """The change relative to the mean before the step."""
        if not self.before:
            return math.copysign(math.inf, self.after)
        return self.after / self.before - 1


def change_points(
    values: Sequence[float],
    *,
    p_value: float = 1e-5,
    least_change: float = 0.01,
    least_points: int = 4,
) -> tuple[ChangePoint, ...]:
    """Find the steps of a series, in order. Of a long series only the newest 1000 values are used.

    How often flat noise raises a false alarm is in benchmarks/results/change_points.txt.

    Args:
        values: the series; values that are not finite are left out.
        p_value: the largest p-value of a step.
        least_change: the smallest change of a step, relative to the mean before it.
        least_points: the fewest values on each side of a step.
    """
    places = [place for place, value in enumerate(values) if math.isfinite(value)][-_MOST:]
    series = numpy.array([values[place] for place in places], dtype=float)
    distances = numpy.abs(series[:, None] - series[None, :])
    found = sorted(_split(series, distances, 0, max(_WEAK, p_value), least_points))
    # When a split is undone, only its two neighbours have to be tested again.
    tested = functools.cache(functools.partial(_step, series))
    while found:
        edges = [0, *found, len(series)]
        steps = [tested(*sides) for sides in zip(edges, edges[1:], edges[2:], strict=False)]
        weakest = max(range(len(steps)), key=lambda each: _weakness(steps[each], least_change))
        if _weakness(steps[weakest], least_change) <= p_value:
            return tuple(
                ChangePoint(places[step.index], step.before, step.after, step.p_value)
                for step in steps
            )
        del found[weakest]
    return ()


def _weakness(step: ChangePoint, least_change: float) -> float:
    """Return the step's p-value, or more than 1 if the step is too small to matter."""
    size = abs(step.change)
    return step.p_value if size >= least_change else 1.0 + 1.0 / (1.0 + size)


def _split(
    series: numpy.ndarray, distances: numpy.ndarray, start: int, p_value: float, least: int
) -> Iterator[int]:
    place = _best(distances, least)
    if place is None:
        return
    sides = series[:place], series[place:]
    # Test the values as they are, since a passing spell is no outlier, and also with outliers drawn
    # in, since these hide a step.
    if min(student(*sides), student(*map(_drawn_in, sides))) > p_value:
        return
    yield start + place
    yield from _split(series[:place], distances[:place, :place], start, p_value, least)
    yield from _split(series[place:], distances[place:, place:], start + place, p_value, least)


def _step(series: numpy.ndarray, left: int, place: int, right: int) -> ChangePoint:
    before, after = _drawn_in(series[left:place]), _drawn_in(series[place:right])
    return ChangePoint(place, float(before.mean()), float(after.mean()), student(before, after))


def _best(distances: numpy.ndarray, least: int) -> int | None:
    """Return where the energy distance between the sides is largest; None if there are too few."""
    count = len(distances)
    if count < 2 * least:
        return None
    # For each n: the sum of the distances among the first n values, and from these to the others.
    inner = numpy.concatenate(([0.0], numpy.cumsum(numpy.tril(distances).sum(axis=1))))
    whole = inner[-1]
    across = numpy.concatenate(([0.0], numpy.cumsum(distances.sum(axis=1)))) - 2 * inner
    splits = numpy.arange(least, count - least + 1)
    left, right = splits.astype(float), (count - splits).astype(float)
    within_left = inner[splits]
    between = across[splits]
    within_right = whole - within_left - between
    energy = (
        2 * between / (left * right)
        - within_left / numpy.maximum(left * (left - 1) / 2, 1)
        - within_right / numpy.maximum(right * (right - 1) / 2, 1)
    )
    return int(splits[numpy.argmax(left * right / (left + right) * energy)])


def _drawn_in(values: numpy.ndarray) -> numpy.ndarray:
    """Draw outliers in to five scaled median absolute deviations from the median.

    Otherwise a single run on a busy machine would hide a step for months.
    """
    middle = numpy.median(values)
    reach = _FAR * 1.4826 * numpy.median(numpy.abs(values - middle))
    return numpy.clip(values, middle - reach, middle + reach) if reach else values


def student(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Return the two-sided p-value of Student's t-test with one variance for both sides.

    With few runs on a side, that side's own variance says little; the machine's noise is the same
    on both.
    """
    sizes = len(first), len(second)
    freedom = sum(sizes) - 2
    squares = float(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
    difference = abs(float(first.mean() - second.mean()))
    if not squares:
        return 0.0 if difference else 1.0
    error = math.sqrt(squares / freedom * (1 / sizes[0] + 1 / sizes[1]))
    return two_sided(difference / error, freedom)


def two_sided(t: float, freedom: float) -> float:
    """Return the probability that Student's t is at least this far from 0."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Evaluate the regularized function as a continued fraction (Abramowitz and Stegun, 26.5.8)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    numerator, denominator, value = 1.0, 0.0, 1.0
    for number in range(400):
        half = number // 2
        if number == 0:
            term = 1.0
        elif number % 2:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1 / (1 + term * denominator or 1e-300)
        numerator = 1 + term / numerator or 1e-300
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-14 and number:
            break
    return min(1.0, front * (value - 1))
