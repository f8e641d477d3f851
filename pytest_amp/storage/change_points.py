"""Where a metric's history stepped: E-divisive means, with a t-test in place of permutations.

The method of Matteson and James, "A nonparametric approach for multiple change point analysis of
multivariate data" (2014), as Daly et al. (ICPE 2020) use it on performance tests and Fleming et
al., "Hunter" (ICPE 2023), made it deterministic: split where the energy statistic is largest, as
long as the two sides differ by Student's t-test, then take back, weakest first, what does not stand
beside its neighbours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

# A split is tried on evidence this weak, since others may sharpen it: of a spell that passes, one
# end alone says little.
_WEAK = 0.2
_MOST = 1000
_FAR = 5.0


@dataclass(frozen=True)
class ChangePoint:
    """A step. `index`: of the first value after it; `before`, `after`: means of the two sides."""

    index: int
    before: float
    after: float
    p_value: float

    @property
    def change(self) -> float:
        """Relative to what was before."""
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
    """The steps of a series, in its order; of a long one, of its newest 1000 values.

    `p_value`: of the t-test between a step's two sides, at most. `least_change`: relative to what
    was before, at least. `least_points`: on each side, at least. Values that are not finite are
    left out. How often flat noise raises a false alarm is in benchmarks/results/change_points.txt.
    """
    places = [place for place, value in enumerate(values) if math.isfinite(value)][-_MOST:]
    series = numpy.array([values[place] for place in places], dtype=float)
    distances = numpy.abs(series[:, None] - series[None, :])
    found = sorted(_split(series, distances, 0, max(_WEAK, p_value), least_points))
    # Without one split only its two neighbours are to be tested again.
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
    """Its p-value; that of a step which is too small to matter is worse than any."""
    size = abs(step.change)
    return step.p_value if size >= least_change else 1.0 + 1.0 / (1.0 + size)


def _split(
    series: numpy.ndarray, distances: numpy.ndarray, start: int, p_value: float, least: int
) -> Iterator[int]:
    place = _best(distances, least)
    if place is None:
        return
    sides = series[:place], series[place:]
    # As it is, for a spell that passes is no outlier; and without outliers, which hide a step.
    if min(student(*sides), student(*map(_drawn_in, sides))) > p_value:
        return
    yield start + place
    yield from _split(series[:place], distances[:place, :place], start, p_value, least)
    yield from _split(series[place:], distances[place:, place:], start + place, p_value, least)


def _step(series: numpy.ndarray, left: int, place: int, right: int) -> ChangePoint:
    before, after = _drawn_in(series[left:place]), _drawn_in(series[place:right])
    return ChangePoint(place, float(before.mean()), float(after.mean()), student(before, after))


def _best(distances: numpy.ndarray, least: int) -> int | None:
    """Where the energy distance between the two sides is largest; None in too short a series."""
    count = len(distances)
    if count < 2 * least:
        return None
    # Sums of the distances within the first n values, and from those to all from n on.
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
    """The values, those far out drawn in to five scaled median absolute deviations.

    One run on a busy machine would else hide a step for months.
    """
    middle = numpy.median(values)
    reach = _FAR * 1.4826 * numpy.median(numpy.abs(values - middle))
    return numpy.clip(values, middle - reach, middle + reach) if reach else values


def student(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """The two-sided p-value of Student's t-test, one spread for both sides.

    With few runs behind a step their own spread says little; the machine's is that of all.
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
    """The probability that Student's t is that far from 0, on either side."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularized, by its continued fraction (Abramowitz and Stegun, 26.5.8)."""
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
