"""The sequential sign test: its evidence, its error rate, and what it leaves undecided."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.judge.sequential import autocorrelation, decide, evidence, fewest_pairs, interval

RATE = 0.01
OPPOSITE = {"pass": "fail", "fail": "pass", None: None}

# Few distinct values, so that ties and ratios exactly at the threshold are common.
levels = st.sampled_from([0.5, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0])
ratios = st.lists(levels | st.floats(0.01, 100), min_size=1, max_size=120)
rates = st.sampled_from([1e-9, 1e-4, 0.01, 0.05, 0.25])
counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def exact(wins: int, pairs: int) -> Fraction:
    """The closed form in whole numbers."""
    above = sum(math.comb(pairs + 1, j) for j in range(wins + 1))
    return Fraction(above, (pairs + 1) * math.comb(pairs, wins))


def wins_needed(pairs: int, rate: float) -> int:
    """The fewest wins that pass: the evidence grows with the wins."""
    return bisect_left(range(pairs + 1), 1 / rate, key=lambda wins: evidence(wins, pairs))


# The evidence.


@given(counts)
def test_evidence_is_the_closed_form(count) -> None:
    assert evidence(*count) == pytest.approx(float(exact(*count)), rel=1e-12)


@pytest.mark.parametrize(
    ("wins", "pairs"), [(0, 1), (1, 1), (0, 9), (9, 9), (5, 9), (14, 20), (50, 100), (160, 200)]
)
def test_evidence_is_the_likelihood_ratio_mixed_over_a_uniform_prior(wins, pairs) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(128)  # exact for up to 255 pairs
    p = 0.75 + 0.25 * nodes  # from (-1, 1) to (1/2, 1), where the prior's density is 2
    mixture = (0.25 * weights * 2 * (2 * p) ** wins * (2 - 2 * p) ** (pairs - wins)).sum()
    assert evidence(wins, pairs) == pytest.approx(mixture, rel=1e-9)


@pytest.mark.parametrize("pairs", [1, 2, 10, 57, 200])
def test_evidence_is_a_bet_at_fair_odds(pairs) -> None:
    # at a win's probability of 1/2 its mean is 1: what makes Ville's inequality hold
    mean = sum(exact(wins, pairs) * math.comb(pairs, wins) for wins in range(pairs + 1))
    assert mean / 2**pairs == 1
    floats = (evidence(wins, pairs) * math.comb(pairs, wins) for wins in range(pairs + 1))
    assert math.fsum(floats) / 2**pairs == pytest.approx(1, rel=1e-9)


@given(counts)
def test_a_win_adds_evidence_and_a_loss_takes_some_away(count) -> None:
    wins, pairs = count
    assert evidence(wins + 1, pairs + 1) > evidence(wins, pairs) * (1 - 1e-12)
    assert evidence(wins, pairs + 1) < evidence(wins, pairs) * (1 + 1e-12)
    if wins < pairs:
        assert evidence(wins + 1, pairs) > evidence(wins, pairs)


@pytest.mark.parametrize("pairs", [2_000, 100_000])
def test_thousands_of_pairs_neither_overflow_nor_lose_digits(pairs) -> None:
    assert evidence(pairs, pairs) == math.inf
    assert 0 < evidence(0, pairs) < 2 / pairs
    half = evidence(pairs // 2, pairs)
    # there the sum is half of all 2 ** (pairs + 1) / 2 and the central binomial is known
    assert half == pytest.approx(math.sqrt(math.pi * pairs / 2) / (pairs + 1), rel=0.01)
    assert evidence(pairs // 2 + pairs // 10, pairs) > 1e6


# The decision.


def test_at_the_default_error_rate_nine_pairs_can_decide() -> None:
    assert fewest_pairs(0.01) == 9
    assert decide([2.0] * 9, 1.5, 0.01) == "pass"
    assert decide([2.0] * 8, 1.5, 0.01) is None
    assert decide([1.0] * 9, 1.5, 0.01) == "fail"
    assert decide([1.0] * 8, 1.5, 0.01) is None


@given(rates)
def test_the_fewest_pairs_are_the_first_that_decide_when_all_agree(rate) -> None:
    fewest = fewest_pairs(rate)
    assert decide([2.0] * fewest, 1.0, rate) == "pass"
    assert decide([2.0] * (fewest - 1), 1.0, rate) is None


def test_a_ratio_exactly_at_the_threshold_reaches_it() -> None:
    assert decide([1.3] * 9, 1.3, 0.01) == "pass"
    assert decide([math.nextafter(1.3, 0)] * 9, 1.3, 0.01) == "fail"


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.25])
def test_looking_after_every_pair_decides_wrongly_no_more_often_than_the_error_rate(rate) -> None:
    # exact, not simulated: all 2 ** 1000 ways in which fair pairs can fall, by dynamic programming
    fair = np.array([1.0])
    passed = failed = 0.0
    for pairs in range(1, 1001):
        fair = (np.append(fair, 0) + np.append(0, fair)) / 2
        needed = wins_needed(pairs, rate)
        passed += fair[needed:].sum()
        failed += fair[: max(0, pairs - needed + 1)].sum()
        fair[needed:] = 0
        fair[: max(0, pairs - needed + 1)] = 0
    assert rate / 3 < passed <= rate
    assert failed == pytest.approx(passed)


@given(ratios, levels, rates)
def test_the_mirror_image_is_decided_the_other_way_round(sample, threshold, rate) -> None:
    sample = [ratio for ratio in sample if abs(ratio / threshold - 1) > 1e-9]
    mirrored = [1 / ratio for ratio in sample]
    assert decide(mirrored, 1 / threshold, rate) == OPPOSITE[decide(sample, threshold, rate)]


@given(ratios, levels, rates, st.integers(-20, 20))
def test_only_the_side_of_the_threshold_counts_not_the_unit(sample, threshold, rate, power) -> None:
    unit = 2.0**power  # exact, so that no ratio changes sides by rounding
    decision = decide(sample, threshold, rate)
    assert decide([ratio * unit for ratio in sample], threshold * unit, rate) == decision
    sides = [1e6 if ratio >= threshold else 1e-6 for ratio in sample]
    assert decide(sides, threshold, rate) == decision


@given(ratios, levels, rates, st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_does_not_matter(sample, threshold, rate, order) -> None:
    shuffled = list(sample)
    order.shuffle(shuffled)
    assert decide(shuffled, threshold, rate) == decide(sample, threshold, rate)
    assert interval(shuffled, rate) == interval(sample, rate)


@given(ratios, levels, rates, st.integers(1, 60))
def test_more_pairs_of_the_same_kind_never_undo_a_decision(sample, threshold, rate, more) -> None:
    decision = decide(sample, threshold, rate)
    if decision is not None:
        same = threshold if decision == "pass" else threshold / 2
        assert decide([*sample, *[same] * more], threshold, rate) == decision


@given(ratios, rates, levels, levels)
def test_a_lower_threshold_is_passed_where_a_higher_one_is(sample, rate, one, other) -> None:
    low, high = sorted((one, other))
    if decide(sample, high, rate) == "pass":
        assert decide(sample, low, rate) == "pass"
    if decide(sample, low, rate) == "fail":
        assert decide(sample, high, rate) == "fail"


@given(ratios, levels, rates, rates)
def test_who_accepts_more_errors_gets_no_later_answer(sample, threshold, one, other) -> None:
    strict, lenient = sorted((one, other))
    decision = decide(sample, threshold, strict)
    if decision is not None:
        assert decide(sample, threshold, lenient) == decision


# The interval.


@given(ratios, levels, rates)
def test_the_interval_excludes_a_threshold_exactly_where_there_is_a_decision(
    sample, threshold, rate
) -> None:
    bounds = interval(sample, rate)
    decision = decide(sample, threshold, rate)
    if bounds is None:
        assert decision is None
        return
    low, high = bounds
    assert (decision == "pass") == (low >= threshold)
    assert (decision == "fail") == (high < threshold)


@given(ratios, rates)
def test_the_interval_holds_the_median_and_its_bounds_are_ratios_that_were_seen(
    sample, rate
) -> None:
    bounds = interval(sample, rate)
    if bounds is not None:
        assert bounds[0] <= np.median(sample) <= bounds[1]
        assert set(bounds) <= set(sample)


@given(ratios, rates)
def test_there_is_an_interval_from_the_fewest_deciding_pairs_on(sample, rate) -> None:
    assert (interval(sample, rate) is None) == (len(sample) < fewest_pairs(rate))


def test_the_interval_narrows_as_pairs_come_in() -> None:
    draw = random.Random(0)
    sample = [draw.lognormvariate(0, 0.03) for _ in range(800)]
    widths = []
    for pairs in (20, 80, 320, 800):
        low, high = interval(sample[:pairs], RATE)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.02


# How far successive pairs follow each other.


def test_independent_pairs_have_no_autocorrelation() -> None:
    draw = random.Random(0)
    assert abs(autocorrelation([draw.lognormvariate(0, 0.1) for _ in range(2000)])) < 0.05
    assert abs(autocorrelation([draw.paretovariate(0.5) for _ in range(2000)])) < 0.05


def test_a_trend_is_near_1_and_a_zigzag_near_minus_1() -> None:
    trend = [1 + i / 100 for i in range(200)]
    assert autocorrelation(trend) > 0.98
    assert autocorrelation(trend[::-1]) > 0.98
    assert autocorrelation([1.0, 2.0] * 100) < -0.98


def test_a_mode_that_an_arm_keeps_for_long_stretches_is_near_1() -> None:
    assert autocorrelation(([1.0] * 20 + [1.4] * 20) * 3) > 0.9


def test_one_very_slow_pair_does_not_hide_a_trend_nor_feign_one() -> None:
    trend = [1 + i / 100 for i in range(60)]
    trend[30] = 1e6
    assert autocorrelation(trend) > 0.8
    draw = random.Random(1)
    noise = [draw.gauss(1, 0.03) for _ in range(300)]
    noise[100] = noise[101] = 1e6
    assert abs(autocorrelation(noise)) < 0.15


@pytest.mark.parametrize("sample", [[], [1.0], [1.0, 2.0], [1.3] * 50])
def test_too_few_pairs_or_constant_ones_follow_nothing(sample) -> None:
    assert autocorrelation(sample) == 0


@given(ratios)
def test_autocorrelation_depends_on_ranks_only_and_stays_between_its_bounds(sample) -> None:
    value = autocorrelation(sample)
    assert -1 <= value <= 1
    assert autocorrelation([8 * ratio for ratio in sample]) == value
    assert autocorrelation(sample[::-1]) == pytest.approx(value, abs=1e-12)
