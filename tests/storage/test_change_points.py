"""Where a series stepped, and where it only seems to."""

from __future__ import annotations

import itertools
import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.storage.change_points import change_points, student, two_sided

DRAW = numpy.random.default_rng(7)
NOISE = DRAW.normal(0, 0.01, 120)


def series(*levels: float, runs: int = 30) -> list[float]:
    """So many runs at each level, with noise of one percent."""
    flat = numpy.repeat(levels, runs)
    return list(flat * (1 + NOISE[: len(flat)]))


@pytest.mark.parametrize("levels", [(2.0, 1.8), (1.8, 2.0), (-1.0, -2.0), (1e-9, 2e-9), (0.0, 1.0)])
def test_a_step_is_found_where_it_is(levels: tuple[float, float]) -> None:
    [step] = change_points(series(*levels))
    assert abs(step.index - 30) <= 1
    assert step.before == pytest.approx(levels[0], abs=0.02 * max(map(abs, levels)))
    assert step.after == pytest.approx(levels[1], rel=0.02)
    assert step.p_value < 1e-5


def test_each_of_several_steps_is_found() -> None:
    steps = change_points(series(2.0, 1.8, 1.9, 2.3))
    assert [step.index for step in steps] == [30, 60, 90]
    assert [step.change for step in steps] == pytest.approx([-0.1, 0.0556, 0.2105], abs=0.01)


def test_a_spell_that_passes_has_two_ends() -> None:
    steps = change_points([*series(2.0), *series(1.5, runs=8), *series(2.0)])
    assert [step.index for step in steps] == [30, 38]


def test_a_short_spell_is_found_though_one_end_of_it_alone_says_little() -> None:
    """A split between the two ends has a p-value over 1%, and each end is beyond doubt."""
    draw = random.Random(0)
    level = [1 + 0.01 * draw.gauss(0, 1) for _ in range(30)]
    spell = [1.05 + 0.01 * draw.gauss(0, 1) for _ in range(8)]
    steps = change_points([*level[:12], *spell, *level[12:26]])
    assert [step.index for step in steps] == [12, 20]


@pytest.mark.parametrize(
    "values",
    [
        [], [1.0], [1.0, 2.0], [1.0] * 50, [0.0] * 50, [1.0] * 3 + [2.0] * 3,
        series(2.0), series(2.0, 2.0, 2.0),
        [*series(2.0), 9.0, *series(2.0)],  # an outlier
        [math.nan] * 20, [math.inf] * 20,
    ],
)  # fmt: skip
def test_what_is_flat_or_short_has_none(values: list[float]) -> None:
    assert change_points(values) == ()


@pytest.mark.parametrize("factor", [1.2, 1.5, 5.0])
def test_one_outlier_hides_no_step(factor: float) -> None:
    values = series(2.0, 1.8)
    values[10] *= factor
    [step] = change_points(values)
    assert abs(step.index - 30) <= 1
    assert step.before == pytest.approx(2.0, rel=0.01)


def test_a_change_too_small_to_matter_is_none() -> None:
    values = [1.0, 1.0001] * 20 + [1.005, 1.0051] * 20
    assert change_points(values) == ()
    assert len(change_points(values, least_change=0.004)) == 1


@pytest.mark.parametrize("least", [2.0, 3.0, 10.0])
def test_a_least_change_above_a_doubling_is_kept_to(least: float) -> None:
    values = series(1.0, 1 + 0.9 * least)
    assert change_points(values, least_change=least) == ()
    assert len(change_points(values, least_change=0.8 * least)) == 1


def test_from_zero_a_change_has_no_bound_but_a_direction() -> None:
    [up] = change_points([0.0] * 10 + [1.0] * 10)
    [down] = change_points([0.0] * 10 + [-1.0] * 10)
    assert (up.change, down.change) == (math.inf, -math.inf)


def test_one_value_may_be_a_side() -> None:
    [step] = change_points([*series(1.0), 9.0], least_points=1)
    assert step.index == 30


def test_what_is_not_finite_is_left_out_and_keeps_its_place() -> None:
    values = series(2.0, 1.8)
    gaps = [*values[:10], math.nan, *values[10:30], math.nan, math.inf, *values[30:]]
    [step] = change_points(gaps)
    assert step.index == 33


def test_of_a_long_history_the_newest_thousand_are_looked_at() -> None:
    long = [5.0] * 500 + [*(1 + DRAW.normal(0, 0.01, 600)), *(2 + DRAW.normal(0, 0.01, 400))]
    assert [step.index for step in change_points(long)] == [1100]


@given(
    st.lists(st.floats(0.5, 2.0), max_size=60),
    st.sampled_from([0.001, 0.5, 4.0, 1024.0]),
)
def test_steps_are_in_order_and_do_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    steps = change_points(values)
    places = [step.index for step in steps]
    assert places == sorted(set(places))
    edges = [0, *places, len(values)]
    assert all(b - a >= 4 for a, b in itertools.pairwise(edges)) or not places
    assert all(step.p_value <= 1e-5 for step in steps)
    assert all(abs(step.change) >= 0.01 for step in steps)
    powers = [value * unit for value in values]
    if math.log2(unit).is_integer():
        assert [step.index for step in change_points(powers)] == places


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (0.0, 5, 1.0), (2.0, 10, 0.0733880348), (12.7062047364, 1, 0.05), (0.5, 5, 0.6382988716),
        (5.0, 30, 2.3296685e-05), (40.0, 200, 2.24874e-97), (1.959964, 1e7, 0.05),
    ],
)  # fmt: skip
def test_student_s_t_has_its_known_probabilities(t: float, freedom: float, p: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(p, rel=1e-5)


def test_two_sides_without_any_spread_differ_or_do_not() -> None:
    ones, twos = numpy.ones(4), numpy.full(4, 2.0)
    assert student(ones, ones) == 1
    assert student(ones, twos) == 0
