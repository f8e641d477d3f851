"""Two forward passes aligned: the first operator that leaves the reference by itself."""

from __future__ import annotations

import math

import pytest

from pytest_amp.judge.alignment import departure, distance
from pytest_amp.observations import Computed

ONE = (1.0, 1.0)


def ran(op, out, *inputs, line=1, shape=(4,), **more):
    return Computed(f"aten::{op}", shape, "bfloat16", None, f"net.py:{line}", out, inputs, **more)


def off(by):
    """A sample that is off by that share of the norm of `ONE`."""
    return (1.0, 1.0 + by)


@pytest.mark.parametrize(
    ("expected", "found", "apart"),
    [
        (ONE, ONE, 0.0),
        (ONE, off(0.25), 0.25),
        ((2.0, 2.0), (2.0, 1.0), 0.5),
        (ONE, (math.inf, 1.0), math.inf),
        (ONE, (math.nan, math.nan), math.inf),
        (ONE, (1.0, 1.0, 1.0), math.inf),
        ((math.inf, 1.0), ONE, 0.0),
        ((0.0, 0.0), ONE, 0.0),
        ((), ONE, 0.0),
        (ONE, (), 0.0),
    ],
)
def test_distance_is_in_proportion_and_0_where_nothing_can_be_said(expected, found, apart) -> None:
    assert distance(expected, found) == pytest.approx(apart)


def test_the_first_operator_that_leaves_is_found_not_one_that_follows() -> None:
    fp32 = [ran("mm", ONE), ran("log", ONE, ONE, line=2), ran("sum", ONE, ONE, line=3)]
    amp = [
        ran("mm", off(0.003)),
        ran("log", off(0.5), off(0.003), line=2, made_at=("net.py:9",)),
        ran("sum", off(0.5), off(0.5), line=3),
    ]
    left = departure(fp32, amp, "bfloat16")
    assert (left.op, left.location, left.made_at) == ("aten::log", "net.py:2", ("net.py:9",))
    assert (left.off, left.inputs_off) == pytest.approx((0.5, 0.003))


@pytest.mark.parametrize(
    ("op", "difference", "is_noise"),
    [
        ("sub", 1e-7, True), ("rsub", 1e-7, True), ("add_", 1e-7, True),
        ("sub", 1e-5, False),  # more than float32 rounds off
        ("mul", 1e-7, False),  # a small factor
    ],
)  # fmt: skip
def test_what_float32_rounds_off_is_no_value_to_leave(op, difference, is_noise) -> None:
    fp32 = [ran(op, (difference, difference), ONE, (1.0,))]
    amp = [ran(op, (3 * difference, 3 * difference), ONE, (1.0,))]
    assert (departure(fp32, amp, "bfloat16") is None) is is_noise


@pytest.mark.parametrize(
    ("out", "inputs"),
    [
        (off(0.05), [ONE]),  # the rounding of bfloat16
        (off(0.5), [off(0.2)]),  # what its inputs do
        (off(0.5), [ONE, (1.0, 9.0)]),  # of any of them
        (off(0.5), []),  # it has others
    ],
)
def test_an_operator_that_only_passes_on_what_it_was_given_is_not_it(out, inputs) -> None:
    fp32 = [ran("exp", ONE, *([ONE] * max(1, len(inputs))))]
    assert departure(fp32, [ran("exp", out, *inputs)], "bfloat16") is None


def test_float16_allows_less() -> None:
    fp32, amp = [ran("exp", ONE, ONE)], [ran("exp", off(0.05), ONE)]
    assert departure(fp32, amp, "float16") is not None


def test_what_rounding_the_products_does_excuses_an_operator() -> None:
    fp32, amp = [ran("sub", ONE, ONE)], [ran("sub", off(0.18), ONE)]
    rounded = [ran("sub", off(0.05), ONE)]
    assert departure(fp32, amp, "bfloat16", rounded) is None
    assert departure(fp32, amp, "bfloat16", [ran("sub", off(0.04), ONE)]) is not None


def test_but_only_up_to_a_fifth() -> None:
    fp32, amp = [ran("sub", ONE, ONE)], [ran("sub", off(0.21), ONE)]
    assert departure(fp32, amp, "bfloat16", amp) is not None


def test_a_product_whose_rounding_alone_does_it_is_the_place() -> None:
    """The phases of a rotary embedding, which is another position's once they are rounded."""
    fp32 = [ran("cos", ONE, ONE)]
    amp = [ran("cos", off(1.2), off(0.003), products=("net.py:3",))]
    left = departure(fp32, amp, "bfloat16", [ran("cos", off(1.3), off(0.003))])
    assert (left.location, left.place) == ("net.py:1", "net.py:3")
    left = departure(fp32, amp, "bfloat16", fp32)
    assert (left.location, left.place) == ("net.py:1", "net.py:1")


def test_operators_that_only_one_arm_has_are_passed_over() -> None:
    fp32 = [ran("mm", ONE, ONE), ran("log", ONE, ONE)]
    amp = [
        ran("add", off(9.0), ONE, line=7),
        ran("mm", ONE, ONE),
        ran("clamp", off(9.0), ONE, line=8),
        ran("log", off(0.5), ONE),
    ]
    assert departure(fp32, amp, "bfloat16").op == "aten::log"


@pytest.mark.parametrize("change", [{"line": 2}, {"shape": (8,)}])
def test_another_line_or_shape_is_another_operator(change) -> None:
    fp32, amp = [ran("log", ONE, ONE)], [ran("log", off(0.5), ONE, **change)]
    assert departure(fp32, amp, "bfloat16") is None
