"""What the speed gate answers where the truth is known, summed up."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pytest_amp.judge.calibration import Calibration, Row, threshold_for
from pytest_amp.observations import Timing


def timed(slower: float, pairs: int = 60, noise: float = 0.01, seed: int = 0) -> Timing:
    """Pairs whose second block is slower by this share."""
    draw = random.Random(seed)
    return Timing(
        tuple(0.01 * draw.lognormvariate(0, noise) for _ in range(pairs)),
        tuple(0.01 * (1 + slower) * draw.lognormvariate(0, noise) for _ in range(pairs)),
        4, "decided", 0.02 * pairs,
    )  # fmt: skip


def calibrated(trials: int = 20, noise: float = 0.01, pairs: int = 60) -> Calibration:
    found = Calibration((0.02, 0.05, 0.1), 0.01)
    for seed in range(trials):
        for planted in (0.0, 0.02, 0.05, 0.1):
            found.add(planted, timed(planted, pairs, noise, seed))
    return found


def row(unchanged: dict[str, int], slower: dict[str, int]) -> Row:
    return Row(0.05, 0.05, Counter(unchanged), Counter(slower), 12, 0.5)


def test_a_threshold_lies_halfway() -> None:
    assert 1 / threshold_for(0.1) == pytest.approx(threshold_for(0.1) / (1 / 1.1))
    assert threshold_for(0.0) == 1


def test_in_little_noise_each_difference_is_found_and_nothing_is_wrong() -> None:
    found = calibrated()
    two, five, ten = found.rows()
    assert five.is_found
    assert (ten.unchanged["pass"], ten.slower["fail"]) == (20, 20)
    assert sum(each.wrong for each in (two, five, ten)) == 0
    assert found.smallest_found in (two, five)
    assert ten.measured == pytest.approx(0.1, abs=0.01)
    assert ten.pairs == pytest.approx(10, abs=6)
    assert ten.seconds == pytest.approx(0.02 * ten.pairs)


def test_in_much_noise_small_differences_are_not_and_have_no_answer() -> None:
    found = calibrated(noise=0.15)
    two, _, _ = found.rows()
    assert two.unchanged["inconclusive"] + two.slower["inconclusive"] > 30
    assert two.wrong <= 1
    assert not two.is_found
    assert found.smallest_found is None
    assert found.spread == pytest.approx(0.15 * 2**0.5 * 1.35, rel=0.2)


@pytest.mark.parametrize(
    ("unchanged", "slower", "found", "wrong"),
    [
        ({"pass": 20}, {"fail": 20}, True, 0),
        ({"pass": 19, "inconclusive": 1}, {"fail": 20}, True, 0),
        ({"pass": 18, "inconclusive": 2}, {"fail": 20}, False, 0),
        ({"pass": 20}, {"fail": 18, "pass": 2}, False, 2),
        ({"pass": 17, "fail": 3}, {"fail": 20}, False, 3),
        ({"pass": 20}, {}, False, 0),
    ],
)
def test_a_difference_is_found_if_nearly_all_answers_are_right_both_ways(
    unchanged, slower, found, wrong
) -> None:
    each = row(unchanged, slower)
    assert each.is_found is found
    assert each.wrong == wrong
    assert each.right + each.wrong <= each.trials


def test_a_larger_difference_that_is_missed_speaks_against_smaller_ones() -> None:
    found = calibrated()
    found.trials[0.1] = [timed(0.0, seed=seed) for seed in range(20)]  # it was not there
    assert found.smallest_found is None


def test_a_trial_goes_on_until_it_has_the_answers_that_it_is_to_give() -> None:
    found = Calibration((0.02, 0.2), 0.01)
    short = timed(0.0, pairs=12)
    assert found.is_open(0.0, short)  # 2% is open yet
    assert not found.is_open(0.2, timed(0.2, pairs=30))
    assert found.is_open(0.2, timed(0.2, pairs=5))


def test_what_was_interrupted_shows_what_there_is() -> None:
    found = Calibration((0.02, 0.05), 0.01)
    assert found.rows() == []
    assert found.spread is None
    found.add(0.0, timed(0.0))
    assert found.rows() == []
    found.add(0.02, timed(0.02))
    (only,) = found.rows()
    assert only.trials == 2
