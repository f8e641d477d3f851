"""The promise of a timing gate, by simulation: wrong decisions are as rare as `error_rate` says."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from pytest_amp.judge import sequential

ERROR_RATE, BUDGET, TESTS = 0.01, 60, 3000
# Four standard deviations of the share of wrong ones among so many tests.
MARGIN = 4 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / TESTS)


# What the machine does to each block in turn: logarithms of a factor on its time.


def spikes(draw: random.Random) -> Iterator[float]:
    """Noise without a mean: some blocks are ten or a hundred times as slow."""
    while True:
        yield math.log(draw.paretovariate(0.8))


def modes(draw: random.Random) -> Iterator[float]:
    """The whole process is slow for a while, or slow for a part of the block where that changes."""
    slow = 0.0
    while True:
        switches = draw.random() < 0.15
        yield math.log(1 + 0.4 * (draw.random() if switches else slow)) + draw.gauss(0, 0.01)
        slow = 1 - slow if switches else slow


def waves(draw: random.Random) -> Iterator[float]:
    """Autocorrelated noise on a drift."""
    state, time = draw.gauss(0, 1), 0.0
    while True:
        state, time = 0.9 * state + math.sqrt(0.19) * draw.gauss(0, 1), time + 0.005
        yield 0.1 * state + time


def own_waves(draw: random.Random) -> Iterator[float]:
    """Successive pairs are alike, as where one arm alone is slow for a while."""
    state = draw.gauss(0, 1)
    while True:
        yield 0.1 * state
        yield 0.0
        state = 0.9 * state + math.sqrt(0.19) * draw.gauss(0, 1)


def decisions(noise, truth: float, shuffled: bool = True, tests: int = TESTS) -> dict[str, float]:
    """The shares of passes and of fails at a threshold of 1, asked after every pair."""
    draw = random.Random(0)
    answers: list[str | None] = []
    for _ in range(tests):
        blocks, ratios, answer = noise(draw), [], None
        while answer is None and len(ratios) < BUDGET:
            first, second = next(blocks), next(blocks)
            sign = draw.choice((1, -1)) if shuffled else 1
            ratios.append(truth * math.exp(sign * (first - second)))
            answer = sequential.decide(ratios, 1.0, ERROR_RATE)
        answers.append(answer)
    return {verdict: answers.count(verdict) / tests for verdict in ("pass", "fail")}


@pytest.mark.parametrize("noise", [spikes, modes, waves])
def test_at_the_threshold_each_decision_is_as_rare_as_the_error_rate(noise) -> None:
    shares = decisions(noise, truth=1.0)
    assert shares["pass"] <= ERROR_RATE + MARGIN
    assert shares["fail"] <= ERROR_RATE + MARGIN


@pytest.mark.parametrize(
    ("truth", "right", "wrong"), [(1.1, "pass", "fail"), (0.9, "fail", "pass")]
)
def test_off_the_threshold_the_right_decision_is_the_common_one(truth, right, wrong) -> None:
    shares = decisions(modes, truth, tests=200)
    assert shares[right] > 0.9
    assert shares[wrong] <= ERROR_RATE


def test_the_simulation_would_notice_pairs_that_follow_each_other() -> None:
    # outside of the promise, and the proof that the bounds above can be exceeded
    shares = decisions(own_waves, truth=1.0, shuffled=False, tests=200)
    assert shares["pass"] > 10 * ERROR_RATE
    assert shares["fail"] > 10 * ERROR_RATE


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("truth", "verdict"), [(1.5, "pass"), (1 / 1.5, "fail")])
def test_at_3_percent_noise_twelve_pairs_tell_1_5x_from_the_threshold(seed, truth, verdict) -> None:
    draw = random.Random(seed)
    ratios = [truth * math.exp(draw.gauss(0, 0.03) - draw.gauss(0, 0.03)) for _ in range(12)]
    assert sequential.decide(ratios, 1.0, ERROR_RATE) == verdict
