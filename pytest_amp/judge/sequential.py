"""The sequential sign test, which decides timing gates after as few pairs as possible.

A pair of blocks is a win if its ratio reaches the threshold. Under the hypothesis that the median
ratio is below the threshold, a win has probability at most 1/2 given the earlier pairs, whatever
the noise looks like. The evidence against the hypothesis is an e-value, which may be looked at
after every pair: by Ville's inequality, the probability that it ever reaches 1 / `error_rate` is at
most `error_rate`.

Source: Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", Annals of Statistics 49 (2021); Ville, "Etude critique de la notion de collectif"
(1939).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Literal

# The terms rise and then fall. One that is this much smaller than the sum no longer changes it.
_NEGLIGIBLE = 1e-17


def evidence(wins: int, pairs: int) -> float:
    """Return the e-value of `wins` among `pairs` against a win's probability being at most 1/2.

    It is the likelihood ratio of p to 1/2, mixed over a uniform prior of p on (1/2, 1). The
    integral has a closed form: the sum over j from 0 to wins of C(pairs + 1, j), divided by (pairs
    + 1) * C(pairs, wins). It is infinite if it exceeds what a float holds.
    """
    # C(pairs + 1, j) / C(pairs, wins) from j = wins down, each term computed from the last.
    term = (pairs + 1) / (pairs + 1 - wins)
    total = term
    for j in range(wins, 0, -1):
        term *= j / (pairs + 2 - j)
        total += term
        if term < _NEGLIGIBLE * total:
            break
    return total / (pairs + 1)


def decide(
    ratios: Sequence[float], threshold: float, error_rate: float
) -> Literal["pass", "fail"] | None:
    """Decide whether the median ratio is at least `threshold`; return None while that is open.

    Ask after every pair and stop at the first answer. A wrong "pass" and a wrong "fail" then each
    have probability at most `error_rate`.
    """
    pairs = len(ratios)
    wins = sum(ratio >= threshold for ratio in ratios)
    if evidence(wins, pairs) >= 1 / error_rate:
        return "pass"
    if evidence(pairs - wins, pairs) >= 1 / error_rate:
        return "fail"
    return None


def fewest_pairs(error_rate: float) -> int:
    """Return the fewest pairs after which the test can decide: 9 at an error rate of 0.01."""
    return next(pairs for pairs in count(1) if evidence(pairs, pairs) >= 1 / error_rate)


def interval(ratios: Sequence[float], error_rate: float) -> tuple[float, float] | None:
    """Return a confidence interval of the median ratio; None if there are too few pairs for one.

    It holds the thresholds that the pairs leave undecided, so it excludes exactly those for which
    `decide` has an answer. Each bound is wrong with probability at most `error_rate`, even if the
    pairs themselves determined when to stop.
    """
    pairs = len(ratios)
    needed = bisect_left(
        range(pairs + 1), 1 / error_rate, key=lambda wins: evidence(wins, pairs)
    )  # fmt: skip
    if needed > pairs:
        return None
    ordered = sorted(ratios)
    return ordered[pairs - needed], ordered[needed - 1]


def autocorrelation(ratios: Sequence[float]) -> float:
    """Return the rank correlation of successive ratios, from -1 to 1; near 0 if pairs are fair.

    Ranks are used because one slow pair must not hide that all others follow one another. The
    result is 0 for fewer than three ratios, and if all are equal.

    Source: Wald and Wolfowitz, "An exact test for randomness in the non-parametric case based on
    serial correlation", Annals of Mathematical Statistics 14 (1943).
    """
    pairs = len(ratios)
    if pairs < 3:
        return 0.0
    distances = ranks(ratios)
    spread = sum(rank * rank for rank in distances)
    if not spread:
        return 0.0
    return sum(a * b for a, b in pairwise(distances)) / spread


def ranks(values: Sequence[float]) -> list[int]:
    """Return twice each rank's distance from the mean rank; equal values share their mean rank."""
    ordered, count = sorted(values), len(values)
    return [bisect_left(ordered, value) + bisect_right(ordered, value) - count for value in values]
