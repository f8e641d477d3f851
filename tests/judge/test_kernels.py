"""The note on operators that have no fast kernel in one of the two dtypes."""

from __future__ import annotations

import pytest

from pytest_amp.judge import kernels
from pytest_amp.observations import Observations, Operators, OpRow
from tests.helpers.observations import seen


def observed(
    amp: dict[str, float],
    fp32: dict[str, float],
    device_type: str = "cpu",
    repeated: float = 1.0,
) -> Observations:
    """Seconds by operator in each arm's inspected step; its fastest took `repeated` of them."""

    def of(arm: dict[str, float], dtype: str) -> dict[str, object]:
        rows = tuple(OpRow(op, dtype, dtype, seconds=seconds) for op, seconds in arm.items())
        return {
            "operators": Operators(rows=rows),
            "fastest_step_s": repeated * sum(arm.values()),
        }

    return seen(
        amp=of(amp, "float16"),
        fp32=of(fp32, "float32"),
        dtype="float16",
        device_type=device_type,
    )


FAST = {"aten::convolution": 1e-3, "aten::convolution_backward": 2e-3, "aten::relu": 1e-3}


def test_it_names_what_takes_the_time_and_nothing_else() -> None:
    slow = {
        "aten::convolution": 0.08,
        "aten::convolution_backward": 0.15,
        "aten::relu": 0.002,
        "aten::_to_copy": 0.001,
    }
    note = kernels.without_fast_ones(observed(slow, FAST))
    assert note is not None
    assert "an amp step takes 58 times as long as the other arm's here (233 ms)" in note
    assert "no fast kernel for aten::convolution_backward and aten::convolution in float16;" in note


def test_it_speaks_of_the_fp32_arm_too() -> None:
    note = kernels.without_fast_ones(observed(FAST, {"aten::mm": 1.0}))
    assert note is not None
    assert note.startswith("an fp32 step takes 250 times")
    assert "for aten::mm in float32" in note


@pytest.mark.parametrize(
    ("amp", "device_type"),
    [
        ({"aten::convolution": 0.08}, "cpu"),  # 20 times, no more
        ({"aten::convolution": 0.0799, "aten::mm": 0.0}, "cpu"),
        ({"aten::convolution": 1.0}, "cuda"),  # whose operators return before they are done
    ],
)
def test_it_is_silent_up_to_20_times_and_where_operators_only_start(
    amp: dict[str, float], device_type: str
) -> None:
    assert kernels.without_fast_ones(observed(amp, FAST, device_type)) is None


def test_it_is_silent_of_a_step_that_nobody_waits_for() -> None:
    assert kernels.without_fast_ones(observed({"aten::mm": 0.019}, {"aten::mm": 1e-5})) is None
    assert kernels.without_fast_ones(observed({"aten::mm": 0.021}, {"aten::mm": 1e-5})) is not None


@pytest.mark.parametrize(("repeated", "told"), [(1.0, True), (0.51, True), (0.49, False)])
def test_an_inspected_step_that_was_held_up_is_not_taken_for_a_slow_kernel(
    repeated: float, told: bool
) -> None:
    seconds = observed(FAST, {"aten::mm": 0.5}, repeated=repeated)
    assert (kernels.without_fast_ones(seconds) is not None) is told


def test_it_is_silent_where_a_step_was_not_inspected() -> None:
    assert kernels.without_fast_ones(seen(amp={"operators": None})) is None
