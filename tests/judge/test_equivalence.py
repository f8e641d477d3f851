"""Two one-sided t tests, and Student's distribution that they need."""

from __future__ import annotations

import random

import pytest

from pytest_amp.judge.equivalence import interval, quantile, wanted


@pytest.mark.parametrize(
    ("freedom", "probability", "t"),
    [
        (1, 0.99, 31.8205), (2, 0.99, 6.9646), (3, 0.99, 4.5407), (4, 0.99, 3.7469),
        (5, 0.95, 2.0150), (9, 0.975, 2.2622), (19, 0.99, 2.5395), (30, 0.999, 3.3852),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(freedom, probability, t) -> None:
    assert quantile(freedom, probability) == pytest.approx(t, abs=5e-5)


def test_an_answer_needs_the_whole_interval_on_one_side() -> None:
    found = interval((0.9, 1.0, 1.1), 0.01)
    assert found.mean == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((0.5979, 1.4021), abs=1e-4)
    assert found.answer(1.5) == "equivalent"
    assert found.answer(1.0) is None
    assert found.answer(0.5) == "different"
    below = interval((-0.9, -1.0, -1.1), 0.01)
    assert [below.answer(limit) for limit in (1.5, 1.0, 0.5)] == ["equivalent", None, "different"]


def test_the_size_of_a_mean_on_either_side_of_zero_and_around_it() -> None:
    above, below = interval((0.9, 1.0, 1.1), 0.01), interval((-0.9, -1.0, -1.1), 0.01)
    assert (above.least, above.most) == (above.low, above.high)
    assert (below.least, below.most) == (-below.high, -below.low)
    around = interval((-1.0, 0.0, 1.5), 0.01)
    assert around.least == 0
    assert around.most == max(-around.low, around.high)


@pytest.mark.parametrize(("mean", "wrong"), [(1.0, "equivalent"), (1.0, "different")])
@pytest.mark.parametrize("count", [3, 5, 10])
def test_an_answer_at_the_limit_is_wrong_as_rarely_as_was_asked(count, mean, wrong) -> None:
    draw = random.Random(count)
    trials = 4000
    answers = [
        interval([draw.gauss(mean, 0.2) for _ in range(count)], 0.05).answer(1.0)
        for _ in range(trials)
    ]
    assert answers.count(wrong) <= 0.0625 * trials  # 5%, and 3.6 standard errors


def test_how_many_would_give_an_answer() -> None:
    sample = (0.6, 1.0, 1.2, 0.8)
    assert interval(sample, 0.01).answer(1.25) is None
    count = wanted(sample, 1.25, 0.01)
    spread = 0.2581989
    assert quantile(count - 1, 0.99) * spread / count**0.5 <= 0.35
    assert quantile(count - 2, 0.99) * spread / (count - 1) ** 0.5 > 0.35
    assert wanted((0.0, 2.0), 1.0, 0.01) is None  # it lies on the limit
