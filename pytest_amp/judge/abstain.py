"""Decide on no more evidence than the pairs' dependence on one another leaves standing.

The sequential test counts pairs as if each one were news. Where one arm sits in a mode for several
pairs, as under throttling, they are not: twenty pairs of one mode say what one of them says. So the
logarithm of the evidence is multiplied by a share from 0 to 1, which is estimated from the order of
the ratios alone:

    min(1, v / 0.95) ** 5 / t

- v is von Neumann's ratio: the mean square of successive differences by twice the variance. It is 1
  on average if the order says nothing, and 1 - r if successive pairs have the correlation r. The
  smaller one of the ranks' and of the values' counts, since ranks don't see a short visit to a
  second mode, and single slow pairs hide a trend from values. The power makes up for how little
  ten pairs tell of their order.
- t is the autocorrelation time, 1 + 2 * the sum of the correlations at growing distances up to the
  first that chance explains: so many pairs are as good as one.

The error rate of the sequential test holds as before, because the share is at most 1. What a mode
does that lasts for all of a run can't be seen in that run.

Sources: J. von Neumann, "Distribution of the ratio of the mean square successive difference to the
variance", Annals of Mathematical Statistics 12 (1941); R. Bartels, "The rank version of von
Neumann's ratio test for randomness", Journal of the American Statistical Association 77 (1982); C.
Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7 (1992). How they are combined is
chosen by simulation (benchmarks/error_rate.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from pytest_amp.judge import sequential

# Fewer pairs say too little of their own order.
LEAST_PAIRS = 9
_POWER = 5
_USUAL = 0.95  # a ratio of von Neumann's that takes nothing away
# Correlations count up to the first that is smaller than this many of chance's standard deviations.
_BY_CHANCE = 0.5
# At larger distances no correlations are looked for: it would take long, and change nothing.
_FARTHEST = 100
# Ratios that differ by less than 0.01% are the same: what their last digits do says nothing.
_DIGITS = 4
# A value farther from the median than this many standard deviations counts as that far away.
_OUTLYING = 6
# The median of absolute deviations of a normal distribution, by its standard deviation.
_NORMAL = 0.6745
# A float holds no smaller rate that can be divided by.
_LEAST_RATE = 1e-300


def decide(
    ratios: Sequence[float], threshold: float, error_rate: float
) -> Literal["pass", "fail"] | None:
    """Decide whether the median ratio is at least `threshold`; return None while that is open."""
    answer = sequential.decide(ratios, threshold, error_rate)
    if answer is None or len(ratios) < LEAST_PAIRS:  # with less evidence it would be open as well
        return None
    return sequential.decide(ratios, threshold, _rate(ratios, error_rate))


def interval(ratios: Sequence[float], error_rate: float) -> tuple[float, float] | None:
    """Return a confidence interval of the median ratio; None if there are too few pairs for one.

    It holds the thresholds that `decide` leaves open.
    """
    if len(ratios) < fewest_pairs(error_rate):
        return None
    return sequential.interval(ratios, _rate(ratios, error_rate))


def is_worth_a_look(pairs: int) -> bool:
    """Return whether to ask after so many pairs; among hundreds, one more changes nothing."""
    return pairs % (1 << max(0, pairs.bit_length() - 8)) == 0


def fewest_pairs(error_rate: float) -> int:
    """Return the fewest pairs after which `decide` can have an answer."""
    return max(LEAST_PAIRS, sequential.fewest_pairs(error_rate))


def _rate(ratios: Sequence[float], error_rate: float) -> float:
    """Return the error rate at which all of the evidence decides what its share does at another."""
    share = max(standing(tuple(ratios)), math.log(error_rate) / math.log(_LEAST_RATE))
    return float(error_rate ** (1 / share))


@lru_cache(maxsize=8)
def standing(ratios: tuple[float, ...]) -> float:
    """Return the share of the evidence that the order of the ratios leaves, from 0 to 1."""
    logs = [round(math.log(ratio), _DIGITS) for ratio in ratios]
    series: Sequence[Sequence[float]] = (
        sequential.ranks(logs),
        _centred(_without_outliers(logs)),
    )
    ratio = min(map(_von_neumann, series))
    return float(min(1.0, ratio / _USUAL) ** _POWER / max(map(_autocorrelation_time, series)))


def _without_outliers(logs: Sequence[float]) -> list[float]:
    """Return the values, those that lie far out moved in."""
    middle = statistics.median(logs)
    spread = statistics.median(abs(each - middle) for each in logs) / _NORMAL
    low, high = middle - _OUTLYING * spread, middle + _OUTLYING * spread
    return [min(max(each, low), high) for each in logs]


def _centred(values: Sequence[float]) -> list[float]:
    if len(set(values)) == 1:  # whose mean might not be the same to the last digit
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _von_neumann(series: Sequence[float]) -> float:
    """Return von Neumann's ratio by its mean if the order says nothing; 1 for constant values."""
    squares = sum(value * value for value in series)
    if not squares:
        return 1.0
    return sum((b - a) ** 2 for a, b in pairwise(series)) / squares / 2


def _autocorrelation_time(series: Sequence[float]) -> float:
    """Return how many of the values say as much as one independent one; at least 1."""
    pairs, time = len(series), 1.0
    squares = sum(value * value for value in series)
    for distance in range(1, min(pairs // 3, _FARTHEST + 1)):
        if not squares:
            break
        products = sum(a * b for a, b in zip(series, series[distance:], strict=False))
        correlation = products / squares * pairs / (pairs - distance)
        if correlation <= _BY_CHANCE / math.sqrt(pairs):
            break
        time += 2 * correlation
    return time
