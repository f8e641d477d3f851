"""Loss parity: what of two loss curves is compared, and how far a model drifts from itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.judge import parity
from pytest_amp.judge.parity import TailComparison, compare, drift, noise_floor
from pytest_amp.observations import Floor, ParityRun, ScalerStep, ScalerUse, Start
from pytest_amp.results.values import tail_start
from tests.helpers.observations import losses

NAN, INF = math.nan, math.inf
finite = st.floats(-1e6, 1e6)
anything = st.floats(allow_nan=True, allow_infinity=True)


def floor(*nudged: float, before_nudge: int = 2) -> Floor:
    return Floor(losses(*nudged), Start(), before_nudge, other_stream=False)


# The tail.


@pytest.mark.parametrize(("steps", "length"), [(1, 1), (2, 1), (4, 1), (7, 1), (8, 2), (20, 5)])
def test_the_tail_is_the_last_quarter_and_at_least_one_step(steps, length) -> None:
    assert steps - tail_start(steps) == length


def test_the_tails_means_are_compared_and_nothing_before_them() -> None:
    (tail,) = compare(losses(9, 9, 9, 9, 9, 9, 1.0, 3.0), losses(5, 4, 3, 2, 1, 0, 2.0, 4.0))
    assert (tail.fp32, tail.amp) == (2.0, 3.0)
    assert tail.absolute == 1.0
    assert tail.difference == 0.5


def test_each_key_is_compared_with_its_own() -> None:
    tails = compare(losses(g=(1.0,), d=(2.0,)), losses(d=(2.5,), g=(1.0,)))
    assert {tail.key: tail.difference for tail in tails} == {"g": 0.0, "d": 0.25}


def test_an_amp_curve_that_left_the_finite_range_has_no_tail_even_if_it_came_back() -> None:
    for bad in (NAN, INF, -INF):
        (tail,) = compare(losses(*(1.0,) * 8), losses(1.0, bad, *(1.0,) * 6))
        assert math.isnan(tail.amp)
        assert tail.excess(100, 1000) == INF


def test_an_fp32_curve_counts_by_its_tail() -> None:
    (recovered,) = compare(losses(INF, *(1.0,) * 7), losses(*(1.0,) * 8))
    assert recovered.difference == 0
    (lost,) = compare(losses(*(1.0,) * 7, NAN), losses(*(1.0,) * 8))
    assert math.isnan(lost.fp32)


# What is allowed.


@given(finite, finite, st.floats(0, 10), st.floats(0, 10))
def test_up_to_one_excess_is_exactly_what_the_formula_allows(a, b, relative, atol) -> None:
    tail = TailComparison("loss", a, b)
    allowed = atol + relative * abs(b)
    assert (tail.excess(relative, atol) <= 1) == (abs(a - b) <= allowed)


@given(finite, finite)
def test_only_the_size_of_the_difference_counts(a, b) -> None:
    up, down = TailComparison("loss", b + abs(a), b), TailComparison("loss", b - abs(a), b)
    assert up.difference == pytest.approx(down.difference, rel=1e-6, abs=1e-6 / (abs(b) or 1))


def test_the_difference_is_relative_to_fp32_and_infinite_where_that_is_zero() -> None:
    assert TailComparison("loss", 1.0, 2.0).difference == 0.5
    assert TailComparison("loss", 2.0, 1.0).difference == 1.0
    assert TailComparison("loss", 1.0, -2.0).difference == 1.5
    assert TailComparison("loss", 0.1, 0.0).difference == INF
    assert TailComparison("loss", 0.0, 0.0).difference == 0.0


@given(anything, anything, st.floats(0, 10), st.floats(0, 10))
def test_the_excess_is_always_a_number_that_can_be_ordered(a, b, relative, atol) -> None:
    tail = TailComparison("loss", a, b)
    assert tail.excess(relative, atol) >= 0
    if not (math.isfinite(a) and math.isfinite(b)):
        assert tail.excess(relative, atol) == INF


# The noise floor.


def test_the_drift_is_the_largest_step_s_over_the_second_half() -> None:
    plain = losses(*(2.0,) * 8)
    assert drift(plain, floor(9, 9, 9, 9, 2.0, 2.5, 1.75, 2.0), "loss") == 0.5
    assert noise_floor(plain, floor(9, 9, 9, 9, 2.0, 2.5, 1.75, 2.0), "loss") == 0.25


def test_tails_that_meet_by_chance_do_not_hide_the_drift() -> None:
    plain, nudged = losses(*(2.0,) * 8), floor(*(2.0,) * 6, 1.0, 3.0)
    assert drift(plain, nudged, "loss") == 1.0


def test_steps_before_the_nudge_are_no_drift() -> None:
    plain = losses(1.0, 1.0, 1.0)
    assert drift(plain, floor(1.0, 5.0, 1.1, before_nudge=2), "loss") == pytest.approx(0.1)
    assert drift(plain, floor(1.0, 5.0, 5.0, before_nudge=3), "loss") == 0


def test_each_key_has_its_own_floor() -> None:
    plain = losses(g=(1.0,) * 4, d=(10.0,) * 4)
    nudged = Floor(losses(g=(1.5,) * 4, d=(10.1,) * 4), Start(), 2, other_stream=False)
    assert noise_floor(plain, nudged, "g") == pytest.approx(0.5)
    assert noise_floor(plain, nudged, "d") == pytest.approx(0.01)


@pytest.mark.parametrize("nudged", [(NAN, 2.1), (2.1, NAN), (2.1, INF), (NAN, NAN)])
def test_a_model_that_rounding_throws_out_of_the_range_has_no_bound(nudged) -> None:
    # the order of the values must not matter, as it does to max() with a NaN among them
    assert drift(losses(*(2.0,) * 4), floor(2.0, 2.0, *nudged), "loss") == INF
    assert noise_floor(losses(*(2.0,) * 4), floor(2.0, 2.0, *nudged), "loss") == INF


def test_relative_to_a_loss_of_zero_any_drift_is_infinite_and_none_is_none() -> None:
    plain = losses(*(0.0,) * 4)
    assert noise_floor(plain, floor(0, 0, 0, 1e-9), "loss") == INF
    assert noise_floor(plain, floor(0, 0, 0, 0), "loss") == 0
    assert drift(plain, floor(0, 0, 0, 1e-9), "loss") == 1e-9


# The first loss that is not finite.


@pytest.mark.parametrize(
    ("amp", "fp32", "step"),
    [
        ((1, NAN, 1, NAN), (1, 1, 1, 1), 1),
        ((INF, 1, 1, 1), (1, 1, 1, 1), 0),
        ((1, NAN, 1, NAN), (1, NAN, 1, 1), 3),
        ((1, NAN, 1, 1), (1, INF, 1, 1), None),
        ((1, 1, 1, 1), (1, NAN, 1, 1), None),
    ],
)
def test_the_first_step_that_is_not_finite_under_amp_alone(amp, fp32, step) -> None:
    assert parity.first_nonfinite(losses(*amp), losses(*fp32)) == step


def test_the_first_over_all_keys() -> None:
    healthy = losses(g=(1.0,) * 3, d=(1.0,) * 3)
    assert parity.first_nonfinite(losses(g=(1, 1, NAN), d=(1, INF, 1)), healthy) == 1


# The search for a loss scale.

# The first two steps were skipped, the others taken.
LOOKING = ScalerUse(steps=tuple(ScalerStep(step, 0, 2.0**16, step < 2) for step in range(5)))


def searched(*curve: float, again: tuple[float, ...] = ()) -> ParityRun:
    at_last_scale = losses(*again) if again else {}
    return ParityRun(losses(*curve), scaler=LOOKING, losses_at_last_scale=at_last_scale)


@pytest.mark.parametrize(
    ("curve", "first_steps"),
    [
        ((NAN, INF, 1.0, 0.9, 0.8), 2),
        ((NAN, 1.1, 1.0, 0.9, 0.8), 1),
        ((1.2, 1.1, 1.0, 0.9, 0.8), 0),
        ((1.2, 1.1, NAN, 0.9, 0.8), 0),  # that step was taken
    ],
)
def test_overflows_before_the_first_step_that_was_taken_are_looked_into(curve, first_steps) -> None:
    assert parity.overflowed_while_looking(searched(*curve)) == first_steps


def test_a_loss_that_is_finite_at_the_scale_that_was_found_takes_the_overflows_place() -> None:
    run = searched(NAN, INF, 1.0, 0.9, 0.8, again=(1.2, 1.1))
    assert parity.once_scaled(run) == losses(1.2, 1.1, 1.0, 0.9, 0.8)


def test_a_loss_that_is_not_finite_at_that_scale_either_is_no_doing_of_the_scale() -> None:
    for again in ((NAN, 1.1), ()):
        first, *_ = parity.once_scaled(searched(NAN, 1.0, 1.0, 0.9, 0.8, again=again))["loss"]
        assert math.isnan(first)
