"""Two one-sided t tests, and Student's distribution that they need."""

from __future__ import annotations

import random

import pytest

from pytest_amp.judge.equivalence import answer, interval, quantile, wanted


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
    for sign in (1, -1):
        differences = [sign * each for each in (0.9, 1.0, 1.1)]
        answers = [answer(differences, [limit] * 3, 0.01) for limit in (1.41, 1.39, 1.0, 0.4)]
        assert answers == ["equivalent", None, None, "different"]


def test_no_difference_is_within_no_limit_at_all() -> None:
    assert answer([0.0] * 3, [0.0] * 3, 0.01) == "equivalent"
    assert answer([0.1] * 3, [0.0] * 3, 0.01) == "different"


def test_the_size_of_a_mean_on_either_side_of_zero_and_around_it() -> None:
    above, below = interval((0.9, 1.0, 1.1), 0.01), interval((-0.9, -1.0, -1.1), 0.01)
    assert (above.least, above.most) == (above.low, above.high)
    assert (below.least, below.most) == (-below.high, -below.low)
    around = interval((-1.0, 0.0, 1.5), 0.01)
    assert around.least == 0
    assert around.most == max(-around.low, around.high)


@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize("varies", [0.0, 0.3], ids=["limits alike", "limits that vary"])
def test_an_answer_at_the_limit_is_wrong_as_rarely_as_was_asked(count, varies) -> None:
    """The limit is 2% of a loss, which differs from seed to seed."""
    draw, trials = random.Random(count), 4000
    answers = []
    for _ in range(trials):
        limits = [0.02 * (1 + varies * draw.gauss(0, 1)) for _ in range(count)]
        differences = [draw.gauss(0.02, 0.004) for _ in range(count)]
        answers.append(answer(differences, limits, 0.05))
    assert answers.count("equivalent") <= 0.0625 * trials  # 5%, and 3.6 standard errors
    assert answers.count("different") <= 0.034 * trials  # 2.5%, for one side


def test_how_many_would_give_an_answer() -> None:
    differences, limits = (0.6, 1.0, 1.2, 0.8), (1.25,) * 4
    assert answer(differences, limits, 0.01) is None
    count = wanted(differences, limits, 0.01)
    spread = 0.2581989
    assert quantile(count - 1, 0.99) * spread / count**0.5 <= 0.35
    assert quantile(count - 2, 0.99) * spread / (count - 1) ** 0.5 > 0.35
    assert wanted((0.0, 2.0), (1.0, 1.0), 0.01) is None  # it lies on the limit
