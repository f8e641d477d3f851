"""The roofline's arithmetic, on rows whose times can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.judge import forecasts
from pytest_amp.judge.attainable import Timed, attainable
from pytest_amp.judge.devices import DEVICES
from pytest_amp.judge.roofline import (
    Ceilings,
    Curve,
    Work,
    forecast,
    kind_of,
    spent,
)
from pytest_amp.observations import Observations, Operators, OpRow, Timing
from pytest_amp.results.forecast import Forecast
from tests.helpers.observations import seen

G = 10**9
# One second for 1 GFLOP in float32 or 4 GFLOP in bfloat16, and for 1 GB.
ONE = Ceilings(
    {
        ("products", "float32"): Curve.flat(1 * G),
        ("products", "bfloat16"): Curve.flat(4 * G),
        ("convolutions", "bfloat16"): Curve.flat(8 * G),
    },
    {"float32": Curve.flat(1 * G)},
)


def product(dtype: str, gflop: float, *, gb: float = 0.0, op: str = "mm", **more: object) -> OpRow:
    return OpRow(
        f"aten::{op}", dtype, dtype, flops=int(gflop * G), moved=int(gb * G), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def other(dtype: str, gb: float, op: str = "add", **more: object) -> OpRow:
    return OpRow(f"aten::{op}", dtype, dtype, moved=int(gb * G), **more)  # type: ignore[arg-type]


def cast(gb: float, **more: object) -> OpRow:
    return OpRow("aten::_to_copy", "float32", "bfloat16", moved=int(gb * G), **more)  # type: ignore[arg-type]


# Curves


def test_a_curve_has_its_points_and_what_lies_between_them() -> None:
    curve = Curve((100.0, 10_000.0), (10.0, 1000.0))
    assert curve.seconds(100) == pytest.approx(10)
    assert curve.seconds(10_000) == pytest.approx(10)
    assert curve.seconds(1000) == pytest.approx(10)  # the rate there is 100


def test_a_smaller_call_takes_as_long_as_the_smallest_and_a_larger_one_has_the_last_rate() -> None:
    curve = Curve((100.0, 10_000.0), (10.0, 1000.0))
    assert curve.seconds(1) == curve.seconds(0) == pytest.approx(10)
    assert curve.seconds(1_000_000) == pytest.approx(1000)


# Where a step's time goes


def test_a_product_takes_its_flops_or_its_bytes_whichever_takes_longer() -> None:
    assert spent(Work([product("float32", 3, gb=1)]), ONE)[:2] == pytest.approx((3, 0))
    assert spent(Work([product("bfloat16", 3, gb=1)]), ONE)[:2] == pytest.approx((0, 1))


def test_calls_of_a_row_are_as_large_as_their_share_of_it() -> None:
    ceilings = replace(ONE, rates={("products", "float32"): Curve((1.0, G), (1.0, G))})
    assert spent(Work([product("float32", 4, count=4)]), ceilings).products == pytest.approx(4)


def test_memory_and_casts_are_told_apart_and_what_moves_nothing_takes_no_time() -> None:
    work = Work([other("bfloat16", 2), cast(0.5), OpRow("aten::view", "float32", "float32")])
    assert spent(work, replace(ONE, call_s=0.1)) == pytest.approx((0, 2, 0.5, 0))


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("mm", "products"), ("linear_backward", "products"), ("convolution", "convolutions"),
        ("convolution_backward", "convolutions backward"), ("_cudnn_rnn", "recurrence"),
        ("mkldnn_rnn_layer_backward", "recurrence backward"),
        ("_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", "attention backward"),
    ],
)  # fmt: skip
def test_each_kind_of_product_has_ceilings_of_its_own(op: str, kind: str) -> None:
    assert kind_of(OpRow(f"aten::{op}", "float32")) == kind


def test_a_kind_without_ceilings_has_those_of_matrix_products() -> None:
    assert spent(Work([product("bfloat16", 8, op="convolution")]), ONE).products == 1
    assert spent(Work([product("float32", 8, op="convolution")]), ONE).products == 8


def test_float32_is_multiplied_in_tf32_where_the_arm_does_so() -> None:
    ceilings = replace(ONE, rates={**ONE.rates, ("products", "tf32"): Curve.flat(2 * G)})
    assert spent(Work([product("float32", 4)], tf32=True), ceilings).products == 2
    assert spent(Work([product("bfloat16", 4)], tf32=True), ceilings).products == 1


def test_the_device_waits_only_for_what_the_host_does_not_do_meanwhile() -> None:
    work = Work([other("float32", 1, count=4)])
    assert spent(work, replace(ONE, call_s=0.2)).step_s == pytest.approx(1)
    late = spent(work, replace(ONE, call_s=0.5))
    assert (late.host, late.step_s) == pytest.approx((1, 2))
    one_after_the_other = spent(work, replace(ONE, call_s=0.5, overlaps=False))
    assert (one_after_the_other.host, one_after_the_other.step_s) == pytest.approx((2, 3))


def test_an_accelerators_optimizer_updates_all_parameters_in_one_call() -> None:
    work = Work([other("float32", 1, "mul_", count=100, phase="update")])
    assert spent(work, replace(ONE, call_s=2.0)).step_s == pytest.approx(2)
    assert spent(work, replace(ONE, call_s=2.0, overlaps=False)).step_s == pytest.approx(201)


def test_python_calls_no_casts() -> None:
    ceilings = replace(ONE, call_s=1.0, python_s=10.0, overlaps=False)
    assert spent(Work([cast(0.001)]), ceilings).host == pytest.approx(1)
    assert spent(Work([other("float32", 0.001)]), ceilings).host == pytest.approx(11)


# Forecasts


def test_a_forecast_is_the_range_over_all_scenarios() -> None:
    reference = Work([product("float32", 4), other("float32", 2)])
    candidate = Work([product("bfloat16", 4), other("bfloat16", 1)])
    slower = replace(ONE, rates={**ONE.rates, ("products", "bfloat16"): Curve.flat(2 * G)})
    found = forecast("X", reference, candidate, [ONE, slower])
    assert (found.low, found.high) == pytest.approx((6 / 3, 6 / 2))
    assert found.shares == pytest.approx({"products": (1 / 2 + 2 / 3) / 2, "memory": 5 / 12})
    assert found.bound == "products"


def test_a_device_without_a_dtype_has_no_forecast_in_it() -> None:
    arms = Work([product("float32", 4)]), Work([product("bfloat16", 4)])
    found = forecast("T4", *arms, DEVICES["T4"].scenarios())
    assert (found.low, found.high, found.bound) == (None, None, None)
    assert str(found) == "no forecast, because it has no fast path for bfloat16"


def test_a_dtype_whose_rate_nobody_wrote_down_is_not_called_slow() -> None:
    arms = Work([product("float64", 4)]), Work([product("float16", 4)])
    found = forecast("A100", *arms, DEVICES["A100"].scenarios())
    assert found.reason == "its rate for float64 is not known here"


def test_what_is_all_products_gains_what_the_data_sheet_says_at_most() -> None:
    arms = Work([product("float32", 1000)]), Work([product("float16", 1000)])
    found = forecast("A100", *arms, DEVICES["A100"].scenarios())
    assert (found.low, found.high) == pytest.approx((8, 16))
    with_tf32 = forecast("A100", arms[0]._replace(tf32=True), arms[1], DEVICES["A100"].scenarios())
    assert (with_tf32.low, with_tf32.high) == pytest.approx((1, 2))


def test_what_is_all_traffic_gains_what_it_moves_less() -> None:
    arms = Work([other("float32", 10)]), Work([other("float16", 5)])
    found = forecast("A100", *arms, DEVICES["A100"].scenarios())
    assert (found.low, found.high) == pytest.approx((2, 2))
    assert found.shares == pytest.approx({"memory": 1.0})


def test_what_is_all_launches_gains_nothing_and_casts_cost_it() -> None:
    tiny = {"gb": 1e-6, "count": 100}
    arms = Work([other("float32", **tiny)]), Work([other("float16", **tiny), cast(1e-6, count=100)])
    found = forecast("H100", *arms, DEVICES["H100"].scenarios())
    assert found.low == pytest.approx(0.5)
    assert found.low < found.high < 1
    assert found.bound == "host"


def test_faster_memory_and_products_never_slow_the_forecast_step() -> None:
    work = Work([product("float16", 10, gb=1), other("float16", 1), cast(0.1)])
    peaks = {name: spent(work, gpu.scenarios()[0]).step_s for name, gpu in DEVICES.items()}
    assert (
        peaks["T4"] > peaks["A10"] > peaks["A100"] > peaks["H100"] > peaks["H200"] > peaks["B200"]
    )


@pytest.mark.parametrize("name", DEVICES)
def test_a_data_sheets_figures_are_in_order(name: str) -> None:
    gpu = DEVICES[name]
    rates = [gpu.float32, gpu.tf32 or gpu.float32, gpu.half, gpu.float8 or gpu.half]
    assert rates == sorted(rates)
    assert gpu.tf32 is None or gpu.half / gpu.tf32 == pytest.approx(2, rel=0.05)
    assert gpu.float8 is None or gpu.float8 / gpu.half == pytest.approx(2, rel=0.05)


# The attainable speedup


def timed(row: OpRow, seconds: float) -> OpRow:
    return replace(row, seconds=seconds)


CPU = replace(ONE, overlaps=False)


def test_at_its_ceilings_a_product_has_the_rate_of_its_dtype_and_memory_what_it_moves_less() -> (
    None
):
    reference = Work([timed(product("float32", 4), 5.0), timed(other("float32", 2), 3.0)])
    candidate = Work([product("bfloat16", 4), other("bfloat16", 1), cast(0.25)])
    found = attainable(reference, candidate, CPU, CPU, Timed(step_s=10.0, host_s=2.0))
    # 2 s of the host, 1 s of products, half of the 3 s of memory, and casts; a tenth is granted
    assert found.high == pytest.approx(10 / (2 + 1 / 1.1 + 1.5 / 1.1 + 0.25))
    # its products lose as much as the reference's, 4 of 5 s, and 40% more; memory is 10% slower
    assert found.low == pytest.approx(10 / (2 + 1 / 0.8 / 0.6 + 3.3 + 0.25))
    assert found.shares["memory"] == pytest.approx((1.5 / 1.1) / (2 + 2.5 / 1.1 + 0.25))


def test_a_product_of_few_flops_gains_what_it_moves_less_and_no_more() -> None:
    reference = Work([timed(product("float32", 4, gb=0.8), 8.0)])  # 20 FLOPs to a number
    candidate = Work([product("bfloat16", 4, gb=0.4)])
    found = attainable(reference, candidate, CPU, CPU, Timed(8.0, 0.0))
    assert (found.low, found.high) == pytest.approx((1 / 1.1, 2 * 1.1))
    heavy = (
        Work([timed(product("float32", 4, gb=0.4), 8.0)]),
        Work([product("bfloat16", 4, gb=0.2)]),
    )
    assert attainable(*heavy, CPU, CPU, Timed(8.0, 0.0)).high == pytest.approx(8 * 1.1)


def test_products_that_run_alike_in_both_arms_take_as_long_and_other_operators_nearly() -> None:
    reference = Work([timed(product("float32", 4), 8.0), timed(other("float32", 1), 2.0)])
    found = attainable(reference, reference, CPU, CPU, Timed(10.0, 0.0))
    assert (found.low, found.high) == pytest.approx((10 / (8 + 2.2), 10 / (8 + 2 / 1.1)))


def test_an_accelerators_time_is_divided_as_the_model_has_it() -> None:
    reference = Work([timed(product("float32", 3), 9.0), timed(other("float32", 1), 0.0)])
    candidate = Work([product("bfloat16", 3), other("bfloat16", 0.5)])
    found = attainable(reference, candidate, ONE, ONE, Timed(8.0, 0.0))
    # 6 s of products, and 2 s of memory
    assert found.high == pytest.approx(8 / (3 / 4 / 1.1 + 1 / 1.1))


def test_traffic_that_the_reference_has_none_of_counts_as_much_as_it_takes() -> None:
    reference = Work([timed(product("float32", 4), 4.0)])
    candidate = Work([product("bfloat16", 4), other("bfloat16", 3)])
    found = attainable(reference, candidate, CPU, CPU, Timed(4.0, 0.0))
    assert found.high == pytest.approx(4 / (1 / 1.1 + 3 / 1.1))


def test_nothing_is_attainable_of_a_step_without_operators() -> None:
    assert attainable(Work([]), Work([]), CPU, CPU, Timed(1.0, 0.0)).reason is not None


def test_a_forecast_in_words_has_the_largest_share_first_and_leaves_out_small_ones() -> None:
    found = Forecast("A100", 1.5, 3, {"casts": 0.04, "memory": 0.36, "products": 0.6})
    assert str(found) == "1.50x to 3.00x; matrix products 60% of the step, memory traffic 36%"
    assert found.bound == "products"


# What was seen


def seen_with(fp32: Operators | None, amp: Operators | None, **other: object) -> Observations:
    return seen({"operators": fp32}, {"operators": amp}, **other)


IN_FLOAT32 = Operators(rows=(timed(product("float32", 4), 4.0), timed(other("float32", 2), 2.0)))
IN_BFLOAT16 = Operators(rows=(product("bfloat16", 4), other("bfloat16", 1)))


@pytest.mark.parametrize(
    ("fp32", "amp", "lost"),
    [
        (None, IN_BFLOAT16, "no operators were seen"),
        (IN_FLOAT32, Operators(), "no operators were seen"),
        (IN_FLOAT32, replace(IN_BFLOAT16, hidden=("a CUDA graph",)), "lacks a CUDA graph"),
        (replace(IN_FLOAT32, unknown=("my::gemm",)), IN_BFLOAT16, "lacks my::gemm"),
    ],
)
def test_there_is_no_forecast_of_what_the_record_lacks(
    fp32: Operators | None, amp: Operators | None, lost: str
) -> None:
    here, there = forecasts.not_seen(seen_with(fp32, amp)), "A100"
    assert here is not None
    assert lost in here
    (found,) = forecasts.elsewhere(seen_with(fp32, amp), [there])
    assert (found.low, found.reason) == (None, here)


def test_each_device_that_is_asked_for_has_a_forecast_in_that_order() -> None:
    found = forecasts.elsewhere(seen_with(IN_FLOAT32, IN_BFLOAT16), ["H100", "T4"])
    assert [each.device for each in found] == ["H100", "T4"]
    assert found[0].low is not None
    assert found[1].low is None


@pytest.mark.parametrize(
    ("fp32_s", "amp_s", "timed_s", "host"),
    [
        (8.0, 5.0, (7.0, 8.0, 30.0), 0.25),  # the median step of the reference
        (8.0, 5.0, (16.0,), 0.25),  # the machine is slower by the time that the steps are timed
        (8.0, 5.0, (4.0,), 0.25),  # and faster
        (12.0, 3.0, (12.0,), 1 / 12),  # it was slower for one arm: the smaller difference counts
        (8.0, 1.5, (8.0,), 0.0),  # the inspected step may take longer than a plain one
    ],
)
def test_the_hosts_share_is_what_no_operator_took_of_the_steps_beside_the_inspected_one(
    fp32_s: float, amp_s: float, timed_s: tuple[float, ...], host: float
) -> None:
    in_bfloat16 = Operators(rows=tuple(timed(row, 1.0) for row in IN_BFLOAT16.rows))
    observed = seen(
        {"operators": IN_FLOAT32, "fastest_step_s": fp32_s},
        {"operators": in_bfloat16, "fastest_step_s": amp_s},
        timing=Timing(timed_s, (1.0,) * len(timed_s), 1, "decided", 1.0),
    )
    step_s = sorted(timed_s)[len(timed_s) // 2]
    found = forecasts.here(observed, CPU, CPU)
    assert found.high is not None
    assert found.shares.get("host", 0.0) / found.high == pytest.approx(host)
    assert step_s / found.high == pytest.approx(
        host * step_s + 1 / 1.1 + (1 - host) * step_s / 3 * 0.5 / 1.1
    )


@pytest.mark.parametrize("arm", ["fp32", "amp"])
def test_nothing_is_said_of_what_is_compiled(arm: str) -> None:
    arms = {"fp32": {"operators": IN_FLOAT32}, "amp": {"operators": IN_BFLOAT16}}
    arms[arm]["compiled"] = 1
    blocks = Timing((8.0,), (1.0,), 1, "decided", 1.0)
    found = forecasts.here(seen(**arms, timing=blocks), CPU, CPU)
    assert found.reason == "what torch.compile fuses can't be seen"


def test_nothing_is_said_where_python_was_traced_and_only_then() -> None:
    plain = Timing((8.0,), (4.0,), 1, "decided", 1.0)
    traced = replace(plain, traced=True)
    found = [
        forecasts.here(seen_with(IN_FLOAT32, IN_BFLOAT16, timing=blocks), CPU, CPU)
        for blocks in (plain, traced)
    ]
    assert found[0].high is not None
    assert found[1].high is None
    assert "traced" in found[1].reason


def test_an_accelerator_waits_for_the_host_while_it_is_not_busy() -> None:
    blocks = Timing((8.0,), (4.0,), 1, "decided", 1.0, busy_s=3.0)
    found = forecasts.here(seen_with(IN_FLOAT32, IN_BFLOAT16, timing=blocks), ONE, ONE)
    # 7 s of work, two thirds of it products, which the model has at 1 s in bfloat16
    assert found.high == pytest.approx(8 / (1 + 1 / 1.1 + 7 / 3 * 0.5 / 1.1))
