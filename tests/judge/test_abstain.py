"""How much of the evidence the order of the pairs leaves standing, and what is decided on that."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.judge import abstain, sequential

RATE = 0.01

levels = st.sampled_from([0.5, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0])
ratios = st.lists(levels | st.floats(0.01, 100), min_size=1, max_size=80)


def noise(pairs: int, seed: int = 0, size: float = 0.03) -> list[float]:
    draw = random.Random(seed)
    return [draw.lognormvariate(0, size) for _ in range(pairs)]


def waves(pairs: int, rho: float, seed: int = 0) -> list[float]:
    """Successive pairs are alike, as where one arm is slow for a while."""
    draw, state, found = random.Random(seed), 0.0, []
    state = draw.gauss(0, 1)
    for _ in range(pairs):
        found.append(math.exp(0.05 * state))
        state = rho * state + math.sqrt(1 - rho * rho) * draw.gauss(0, 1)
    return found


def modes(pairs: int, lasts: int, seed: int = 0) -> list[float]:
    """One arm is slower by 5% in one of two modes, each kept for so many pairs."""
    return [
        each * (1.05 if index // lasts % 2 else 1.0)
        for index, each in enumerate(noise(pairs, seed, 0.01))
    ]


# What is left of the evidence.


@given(ratios)
def test_a_share_lies_between_0_and_1_forwards_and_backwards(sample) -> None:
    share = abstain.standing(tuple(sample))
    assert 0 <= share <= 1
    reordered = tuple(reversed(sample))
    assert abstain.standing(reordered) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("size", [0.001, 0.03, 0.3])
def test_of_independent_pairs_most_of_it_stands(size) -> None:
    shares = [abstain.standing(tuple(noise(40, seed, size))) for seed in range(200)]
    assert np.median(shares) > 0.7
    assert np.percentile(shares, 10) > 0.3


def test_of_heavy_tailed_pairs_as_much() -> None:
    draw = random.Random(0)
    shares = [
        abstain.standing(tuple(draw.paretovariate(0.8) for _ in range(40))) for _ in range(200)
    ]
    assert np.median(shares) > 0.7


@pytest.mark.parametrize("pairs", [10, 12, 40, 200])
def test_pairs_that_are_equal_say_what_they_say(pairs) -> None:
    assert abstain.standing((1.02,) * pairs) == 1
    assert abstain.standing(tuple(2 + 1e-9 * index for index in range(pairs))) == 1


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(modes(60, 10), id="modes"),
        pytest.param(modes(60, 10)[::-1], id="modes backwards"),
        pytest.param([1 + index / 100 for index in range(40)], id="a trend"),
        pytest.param(waves(120, 0.9), id="waves"),
        pytest.param([*noise(13), *(1.3 * each for each in noise(3))], id="a short visit"),
        pytest.param([*([1.0] * 5), *([1.4] * 5)] * 3, id="modes without noise"),
    ],
)
def test_of_pairs_that_follow_each_other_little_stands(sample) -> None:
    assert abstain.standing(tuple(sample)) < 0.25


def test_pairs_that_avoid_each_other_lose_nothing() -> None:
    assert abstain.standing((1.0, 1.4) * 20) == 1


@pytest.mark.parametrize(("rho", "time"), [(0.5, 3), (0.9, 19)])
def test_the_autocorrelation_time_is_that_of_theory(rho, time) -> None:
    found = [
        abstain._autocorrelation_time(np.log(waves(2000, rho, seed)).tolist()) for seed in range(10)
    ]
    assert np.median(found) == pytest.approx(time, rel=0.25)


# The decision.


def test_nine_pairs_are_the_fewest_that_decide() -> None:
    assert abstain.fewest_pairs(RATE) == abstain.fewest_pairs(0.25) == 9
    assert abstain.fewest_pairs(1e-4) == sequential.fewest_pairs(1e-4) > 9
    assert abstain.decide([2.0] * 9, 1.5, RATE) == "pass"
    assert abstain.decide([1.0] * 9, 1.5, RATE) == "fail"
    assert abstain.decide([2.0] * 8, 1.5, RATE) is None
    assert abstain.decide([2.0] * 8, 1.5, 0.25) is None


@given(ratios, levels, st.sampled_from([1e-4, 0.01, 0.25]))
def test_what_is_decided_is_what_the_sequential_test_decides(sample, threshold, rate) -> None:
    answer = abstain.decide(sample, threshold, rate)
    assert answer in (None, sequential.decide(sample, threshold, rate))


@given(ratios, levels, st.sampled_from([1e-4, 0.01, 0.25]))
def test_the_interval_excludes_a_threshold_exactly_where_there_is_a_decision(
    sample, threshold, rate
) -> None:
    bounds, answer = abstain.interval(sample, rate), abstain.decide(sample, threshold, rate)
    if bounds is None:
        assert answer is None
        return
    assert (answer == "pass") == (bounds[0] >= threshold)
    assert (answer == "fail") == (bounds[1] < threshold)


def test_the_interval_is_wider_where_pairs_follow_each_other_and_none_where_they_hardly_vary() -> (
    None
):
    sample = waves(300, 0.3, seed=1)
    shuffled = random.Random(0).sample(sample, len(sample))
    (low, high), fair = abstain.interval(sample, RATE), abstain.interval(shuffled, RATE)
    assert high / low > fair[1] / fair[0]
    assert abstain.interval(modes(60, 10), RATE) is None


def test_thousands_of_pairs_that_follow_each_other_decide_nothing() -> None:
    trend = tuple(1.2 + 1e-4 * index for index in range(3000))
    assert sequential.decide(trend, 1.1, RATE) == "pass"
    assert abstain.standing(trend) < 1e-4
    assert abstain.decide([1.0] * 1500 + [2.0] * 1500, 1.5, RATE) is None


def test_looks_get_rarer_as_pairs_get_many() -> None:
    looks = [pairs for pairs in range(1, 4001) if abstain.is_worth_a_look(pairs)]
    assert looks[:255] == list(range(1, 256))
    assert len(looks) < 1000
    assert all(later - earlier <= max(1, later / 64) for earlier, later in pairwise(looks))


# How often that is wrong.


def wrong(draw_ratios, tests: int, budget: int = 60) -> float:
    """The share of tests with an answer, although the true ratio is the threshold."""
    answered = 0
    for seed in range(tests):
        sample = draw_ratios(budget, seed)
        answered += any(abstain.decide(sample[:pairs], 1.0, RATE) for pairs in range(9, budget + 1))
    return answered / tests


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7])
def test_waves_are_seldom_taken_for_an_answer(rho) -> None:
    alone = sum(
        any(sequential.decide(sample[:pairs], 1.0, RATE) for pairs in range(9, 61))
        for sample in (waves(60, rho, seed) for seed in range(300))
    )
    found = wrong(lambda pairs, seed: waves(pairs, rho, seed), 300)
    assert found <= 0.07  # 2 * 2% wanted: more than that of 300 has a probability below 1%
    assert alone / 300 > (0.03 if rho == 0.3 else 0.1)


def test_a_clear_answer_takes_little_longer() -> None:
    def pairs_needed(seed: int) -> int:
        sample = [1.5 * each for each in noise(100, seed, 0.042)]
        return next(n for n in range(9, 101) if abstain.decide(sample[:n], 1.0, RATE))

    needed = [pairs_needed(seed) for seed in range(200)]
    assert np.median(needed) <= 1.3 * 9
    assert np.percentile(needed, 95) < 40
