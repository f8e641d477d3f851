"""The gates: every verdict, and the sentence that says why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pytest_amp.judge import loss
from pytest_amp.judge.case import Limits
from pytest_amp.judge.gates import coverage, judge
from pytest_amp.judge.loss import draws_differ
from pytest_amp.judge.speed import estimate
from pytest_amp.observations import Observations, Operators
from tests.helpers.observations import (
    AMP,
    CURVE,
    FP32,
    IN_BF16,
    IN_FP32,
    gate,
    losses,
    scaled,
    seen,
    timing,
)  # fmt: skip

NAN, INF = math.nan, math.inf
NAMES = ["speedup", "memory_reduction", "loss_diff", "coverage", "skipped_steps"]


def test_a_healthy_step_passes_what_is_asked_and_everything_else_is_reported_ungated() -> None:
    gates = judge(seen(), Limits())
    assert [each.name for each in gates] == NAMES
    assert {each.name: each.verdict for each in gates} == {
        **dict.fromkeys(NAMES, "not_gated"),
        "loss_diff": "pass",
    }
    assert all(each.value is not None and each.reason for each in gates)
    assert not any(each.unmeasured for each in gates)


def test_all_gates_at_once_can_pass_and_can_fail() -> None:
    modest = Limits(1.2, 0.3, 0.02, 0.0, 0.9, 0)
    assert {each.verdict for each in judge(seen(), modest)} == {"pass"}
    greedy = Limits(2.0, 0.5, 0.0001, 0.0, 0.99, 0)
    skipping = seen(amp={"skipped_steps": 1}, floor={"losses": losses(*CURVE)})
    assert {each.verdict for each in judge(skipping, greedy)} == {"fail"}


# Speed.


def test_speed_passes_where_the_pairs_show_that_it_is_at_least_the_threshold() -> None:
    judged = gate("speedup", seen(), min_speedup=1.49)
    assert judged.verdict == "pass"
    assert (judged.value, judged.low, judged.high, judged.threshold) == (1.5, 1.5, 1.5, 1.49)
    assert judged.reason == "1.50x [1.50, 1.50] is at least 1.49x (12 pairs of 4-step blocks)"


def test_what_pairs_after_an_answer_show_does_not_take_it_back() -> None:
    ratios = (1.2,) * 9 + (1.4,) * 9  # nine lose, and then as many win
    judged = gate("speedup", seen(timing=timing(*ratios)), min_speedup=1.3)
    assert judged.verdict == "fail"
    assert judged.reason.endswith("(18 pairs of 4-step blocks, decided after 9)")


@pytest.mark.parametrize("threshold", [1.494, 1.5, 1.506])
def test_speed_within_half_a_percent_of_the_threshold_is_not_called(threshold) -> None:
    judged = gate("speedup", seen(), min_speedup=threshold)
    assert judged.verdict == "inconclusive"
    assert "x to within 0.50%, which the next process may see otherwise" in judged.reason


def test_speed_fails_where_the_pairs_show_that_it_is_below() -> None:
    judged = gate("speedup", seen(), min_speedup=1.6)
    assert judged.verdict == "fail"
    assert judged.reason == "1.50x [1.50, 1.50] is below 1.60x by 6.2% (12 pairs of 4-step blocks)"


def test_speed_that_the_pairs_do_not_show_is_inconclusive_with_what_would_help() -> None:
    undecided = seen(timing=timing(*(1.4, 1.6) * 20))
    judged = gate("speedup", undecided, min_speedup=1.5, max_time=20)
    assert judged.verdict == "inconclusive"
    assert judged.reason == (
        "1.50x [1.40, 1.60] can't be told from 1.50x within max_time=20 s; raise max_time, "
        "quieten the machine, or set a threshold further from the truth (40 pairs of 4-step blocks)"
    )


def test_fewer_pairs_than_can_decide_are_inconclusive_with_the_time_that_would_do() -> None:
    judged = gate(
        "speedup", seen(timing=timing(3.0, 3.0, 3.0, elapsed_s=29)), min_speedup=1.1, max_time=30
    )
    assert judged.verdict == "inconclusive"
    assert (judged.value, judged.low, judged.high) == (3.0, None, None)
    # 9 pairs of 29/3 s, and a tenth more
    assert "the fewest pairs that could decide (9) need about max_time=96" in judged.reason
    assert "raise max_time, quieten" not in judged.reason


def test_a_smaller_error_rate_asks_for_more_pairs() -> None:
    assert gate("speedup", seen(), min_speedup=1.2, error_rate=0.01).verdict == "pass"
    assert gate("speedup", seen(), min_speedup=1.2, error_rate=1e-4).verdict == "inconclusive"


def test_one_very_slow_pair_moves_neither_the_value_nor_the_verdict() -> None:
    spiked = seen(timing=timing(*(1.5,) * 14, 0.001))
    judged = gate("speedup", spiked, min_speedup=1.4)
    assert (judged.verdict, judged.value) == ("pass", 1.5)


def test_a_speed_without_a_threshold_is_reported_with_its_interval() -> None:
    judged = gate("speedup", seen())
    assert (judged.verdict, judged.threshold) == ("not_gated", None)
    assert judged.reason == "1.50x [1.50, 1.50] (12 pairs of 4-step blocks)"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"static": True}, "static run: nothing was timed"), ({}, "nothing was timed")],
)
def test_what_was_not_timed_is_not_gated(limits, reason) -> None:
    judged = gate("speedup", seen(timing=None), **limits)
    assert (judged.verdict, judged.value, judged.reason) == ("not_gated", None, reason)


def test_a_speed_of_steps_that_were_all_skipped_has_no_answer() -> None:
    nothing = seen(timing=replace(timing(), skipping_pairs=30))
    judged = gate("speedup", nothing, min_speedup=1.2)
    assert (judged.verdict, judged.value) == ("inconclusive", None)
    assert judged.reason == (
        "the GradScaler skipped steps in 30 pairs of blocks, and a skipped step has no speed"
    )
    assert gate("speedup", nothing).verdict == "not_gated"


def test_a_budget_that_went_into_skipped_steps_is_said_to_have_gone_there() -> None:
    few = seen(timing=replace(timing(1.5, 1.5), skipping_pairs=2))
    judged = gate("speedup", few, min_speedup=1.2)
    assert judged.verdict == "inconclusive"
    assert "the GradScaler skipped steps in 2 pairs of blocks" in judged.reason


def test_a_threshold_on_what_was_not_timed_is_unmeasured() -> None:
    assert gate("speedup", seen(timing=None), min_speedup=1.2).unmeasured
    assert not gate("speedup", seen(timing=None)).unmeasured
    assert estimate(None, 0.01) is None


# Memory.


def test_memory_is_gated_on_the_share_that_amp_s_peak_is_below_fp32_s() -> None:
    passed = gate("memory_reduction", seen(), min_memory_reduction=0.4)
    assert (passed.verdict, passed.value) == ("pass", 0.4)
    assert passed.reason == "40% (1000 B -> 600 B), at least 40%"
    failed = gate("memory_reduction", seen(), min_memory_reduction=0.41)
    assert failed.verdict == "fail"
    assert failed.reason == "40% (1000 B -> 600 B), below 41% by 1.0%"


def test_a_negative_threshold_allows_amp_that_much_more_memory() -> None:
    fatter = seen(amp={"peak_bytes": 1100})
    assert gate("memory_reduction", fatter, min_memory_reduction=-0.2).verdict == "pass"
    judged = gate("memory_reduction", fatter, min_memory_reduction=0.0)
    assert judged.verdict == "fail"
    assert judged.value == pytest.approx(-0.1)


def test_memory_without_a_threshold_is_reported() -> None:
    judged = gate("memory_reduction", seen())
    assert (judged.verdict, judged.reason) == ("not_gated", "40% (1000 B -> 600 B)")


NOTHING_SEEN = "no allocation was seen (a torch.profiler of the step's own would hide them all)"


@pytest.mark.parametrize(
    ("peaks", "reason"),
    [
        ((None, None), "Some CPU has no peak memory counter"),
        ((0, 0), NOTHING_SEEN),
        ((9, 0), NOTHING_SEEN),
    ],
)
def test_a_peak_that_is_unknown_or_zero_is_unmeasured_where_it_is_asked_for(peaks, reason) -> None:
    without = seen(fp32={"peak_bytes": peaks[0]}, amp={"peak_bytes": peaks[1]})
    judged = gate("memory_reduction", without, min_memory_reduction=0.2)
    assert (judged.verdict, judged.value, judged.reason) == ("not_gated", None, reason)
    assert judged.unmeasured


# The loss.


def ending(factor: float, **limits) -> tuple[str, str]:
    """Verdict and reason where amp's last losses are so many times fp32's, on a quiet floor."""
    observed = seen(
        amp={"losses": losses(*scaled(factor, last=4))}, floor={"losses": losses(*CURVE)}
    )
    judged = gate("loss_diff", observed, **{"loss_atol": 0.0, **limits})
    assert judged.value == pytest.approx(abs(factor - 1))
    return judged.verdict, judged.reason


def test_the_loss_passes_up_to_the_relative_difference_and_fails_beyond() -> None:
    assert ending(1.0199) == ("pass", "2.0% (2 -> 2.0398) is at most 2.0%")
    assert ending(1.25, max_loss_diff=0.25)[0] == "pass"  # all exact in binary
    assert ending(1.0201)[0] == "fail"
    assert ending(1.1) == (
        "fail", "10% (2 -> 2.2) is beyond 2.0%; rounding alone moves this model's loss by 0%",
    )  # fmt: skip


def test_a_lower_amp_loss_is_a_difference_too() -> None:
    assert ending(0.9)[0] == "fail"
    assert ending(0.99)[0] == "pass"


def test_the_absolute_tolerance_is_added_and_named_where_it_is_what_passes() -> None:
    assert ending(1.021, loss_atol=0.005) == (
        "pass", "2.1% (2 -> 2.042) is within loss_atol=0.005",
    )  # fmt: skip
    assert ending(1.023, loss_atol=0.005)[0] == "fail"


def test_losses_near_zero_are_held_to_the_absolute_tolerance() -> None:
    tiny = seen(fp32={"losses": losses(*(1e-4,) * 8)}, amp={"losses": losses(*(4e-3,) * 8)})
    assert gate("loss_diff", tiny).verdict == "pass"


def test_a_loss_that_is_zero_in_fp32_only_fails_and_says_by_how_much() -> None:
    zero = {"losses": losses(*(0.0,) * 8)}
    judged = gate("loss_diff", seen(fp32=zero, floor=zero, amp={"losses": losses(*(0.1,) * 8)}))
    assert (judged.verdict, judged.value) == ("fail", INF)
    assert judged.reason == (
        "0.1 (0 -> 0.1) is beyond 2.0%; rounding alone moves this model's loss by 0"
    )


def test_a_little_rounding_around_a_loss_of_zero_excuses_no_large_difference() -> None:
    zero, near = losses(*(0.0,) * 8), losses(*(0.0,) * 7, 1e-6)
    judged = gate(
        "loss_diff",
        seen(fp32={"losses": zero}, floor={"losses": near}, amp={"losses": losses(*(5.0,) * 8)}),
    )
    assert judged.verdict == "fail"


def test_no_tolerance_at_all_passes_equal_losses_only() -> None:
    same = seen(amp={"losses": losses(*CURVE)})
    assert gate("loss_diff", same, max_loss_diff=0.0, loss_atol=0.0).verdict == "pass"
    assert ending(1.0001, max_loss_diff=0.0)[0] == "fail"


def test_a_loss_without_a_threshold_is_reported() -> None:
    judged = gate("loss_diff", seen(amp={"losses": losses(*scaled(3.0))}), max_loss_diff=None)
    assert (judged.verdict, judged.threshold) == ("not_gated", None)
    assert (judged.value, judged.reason) == (2.0, "200% (2 -> 6)")


@pytest.mark.parametrize("limit", [0.02, 100, None], ids=["default", "lax", "unset"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("step", [0, 3, 7])
@pytest.mark.parametrize("fp32_too", [False, True], ids=["amp-alone", "both-arms"])
def test_an_amp_loss_that_is_not_finite_always_fails(limit, bad, step, fp32_too) -> None:
    curve = losses(*CURVE[:step], bad, *CURVE[step + 1 :])
    observed = seen(amp={"losses": curve}, fp32={"losses": curve} if fp32_too else {})
    judged = gate("loss_diff", observed, max_loss_diff=limit)
    assert judged.verdict == "fail"
    both = f", nor is fp32's at step {step + 1}: both diverge" * fp32_too
    assert judged.reason == f"the amp loss is not finite at step {step + 1}{both}"
    assert math.isnan(judged.value)


def test_curves_of_parameters_that_never_moved_say_nothing() -> None:
    observed = seen(amp={"moved": False, "skipped_steps": 8}, fp32={"moved": False})
    judged = gate("loss_diff", observed)
    assert judged.verdict == "inconclusive"
    assert judged.reason.startswith(
        "no trained parameter moved in 8 steps (the GradScaler skipped 8): nothing was trained"
    )


def test_curves_that_end_in_skipped_steps_say_nothing() -> None:
    observed = seen(amp={"moved": True, "stalled": True, "skipped_steps": 5}, fp32={"moved": True})
    judged = gate("loss_diff", observed)
    assert judged.verdict == "inconclusive"
    assert judged.reason.startswith("the GradScaler skipped 5 steps, all of the last quarter")


@pytest.mark.parametrize(("amp", "fp32"), [(False, True), (True, False)])
def test_parameters_that_move_in_one_arm_only_fail(amp, fp32) -> None:
    judged = gate("loss_diff", seen(amp={"moved": amp}, fp32={"moved": fp32}))
    still, other = ("fp32", "amp") if amp else ("amp", "fp32")
    assert judged.verdict == "fail"
    assert judged.reason == (
        f"the {still} arm's parameters never moved, where the {other} arm's did"
    )


def test_an_fp32_loss_that_is_not_finite_leaves_nothing_to_compare_with() -> None:
    judged = gate("loss_diff", seen(fp32={"losses": losses(*CURVE[:7], NAN)}))
    assert judged.verdict == "inconclusive"
    assert judged.reason == "the fp32 loss is not finite, so there is nothing to compare with"


# Several losses.


def pair(g: float, d: float, g_floor: float = 1.0, d_floor: float = 1.0, **limits):
    """The gate of a GAN's losses: how many times fp32's amp's end at, and the nudged run's."""

    def both(of_g: float, of_d: float):
        return {"losses": losses(G=scaled(of_g), D=scaled(of_d))}

    observed = seen(fp32=both(1, 1), amp=both(g, d), floor=both(g_floor, d_floor))
    return gate("loss_diff", observed, **limits)


def test_every_key_must_pass_and_the_worst_is_named() -> None:
    assert pair(1.01, 1.005).verdict == "pass"
    assert "1.0% of 'G' (2 -> 2.02)" in pair(1.01, 1.005).reason
    failed = pair(1.01, 1.1)
    assert failed.verdict == "fail"
    assert failed.value == pytest.approx(0.1)
    assert failed.reason.startswith("10% of 'D' (2 -> 2.2) is beyond 2.0%")


def test_the_worst_is_measured_against_its_own_loss_not_in_absolute_terms() -> None:
    big, small = tuple(100 * loss for loss in CURVE), CURVE
    both = {"losses": losses(G=big, D=small)}
    amp = {"losses": losses(G=tuple(1.03 * loss for loss in big), D=scaled(1.2))}
    judged = gate("loss_diff", seen(fp32=both, amp=amp, floor=both))
    assert judged.value == pytest.approx(0.2)  # 0.4 of 2, not 6 of 200


def test_a_noisy_loss_does_not_hide_another_s_failure() -> None:
    # G is off by more, but so it is from itself; D's difference is AMP's
    judged = pair(1.5, 1.1, g_floor=1.6)
    assert judged.verdict == "fail"
    assert "of 'D'" in judged.reason
    assert pair(1.5, 1.01, g_floor=1.6).verdict == "inconclusive"


def test_a_loss_that_is_not_finite_in_fp32_does_not_hide_another_s_failure() -> None:
    broken = {"losses": losses(G=(NAN,) * 8, D=CURVE)}
    amp = {"losses": losses(G=CURVE, D=scaled(1.2))}
    judged = gate("loss_diff", seen(fp32=broken, amp=amp, floor=broken))
    assert judged.verdict == "fail"
    assert "of 'D'" in judged.reason
    amp = {"losses": losses(G=CURVE, D=CURVE)}
    judged = gate("loss_diff", seen(fp32=broken, amp=amp, floor=broken))
    assert judged.verdict == "inconclusive"
    assert judged.reason.startswith("the fp32 loss of 'G' is not finite")


def test_the_key_that_is_not_finite_is_named() -> None:
    amp = {"losses": losses(G=CURVE, D=(*CURVE[:4], NAN, *CURVE[5:]))}
    both = {"losses": losses(G=CURVE, D=CURVE)}
    judged = gate("loss_diff", seen(fp32=both, amp=amp, floor=both))
    assert (judged.verdict, judged.reason) == (
        "fail",
        "the amp loss of 'D' is not finite at step 5",
    )


# The noise floor.


def drifting(amp: float, nudged: float, other_stream: bool = False, **amp_fields):
    """The gate where amp's tail and the nudged fp32 run's are so many times fp32's."""
    return gate(
        "loss_diff",
        seen(
            amp={"losses": losses(*scaled(amp, last=2)), **amp_fields},
            floor={"losses": losses(*scaled(nudged, last=2)), "other_stream": other_stream},
        ),
    )


def test_a_difference_below_the_model_s_own_rounding_noise_is_inconclusive() -> None:
    judged = drifting(1.05, nudged=1.06)
    assert judged.verdict == "inconclusive"
    assert judged.reason == (
        "5.0% (2 -> 2.1) is beyond 2.0%, but rounding alone moves this model's loss by 6.0%: "
        "raise max_loss_diff"
    )
    assert drifting(1.07, nudged=1.06).verdict == "fail"


def test_a_difference_within_the_threshold_passes_whatever_the_floor() -> None:
    assert drifting(1.015, nudged=1.3).verdict == "pass"


def test_a_model_that_rounding_makes_nonfinite_is_inconclusive() -> None:
    judged = drifting(1.5, nudged=NAN)
    assert judged.verdict == "inconclusive"
    assert "moves this model's loss by inf" in judged.reason


def test_the_reason_says_when_the_floor_is_of_another_random_stream() -> None:
    judged = drifting(1.05, nudged=1.06, other_stream=True)
    assert "another random stream alone moves this model's loss by 6.0%" in judged.reason


def test_where_the_arms_drew_other_numbers_twice_the_floor_is_not_held_against_amp() -> None:
    other = {"operators": replace(IN_BF16, random_dtypes=frozenset({"bfloat16"}), draws=("[4]:2",))}
    judged = drifting(1.1, nudged=1.06, other_stream=True, **other)
    assert judged.verdict == "inconclusive"
    assert "the arms drew different random numbers" in judged.reason
    assert drifting(1.13, nudged=1.06, other_stream=True, **other).verdict == "fail"
    assert drifting(1.1, nudged=1.06).verdict == "fail"


@pytest.mark.parametrize(
    ("dtypes", "fp32", "amp", "differ"),
    [
        ({"bfloat16"}, ("1",), ("2",), True),
        ({"bfloat16"}, ("1",), ("1",), False),  # as a CPU's dropout
        ({"bfloat16"}, ("1",), None, True),  # not looked at: they may
        ({"bfloat16"}, None, None, True),
        ({"float32"}, ("1",), ("2",), False),  # one stream, whatever was drawn from it
        (set(), (), (), False),
    ],
)
def test_the_arms_drew_other_numbers_where_reduced_draws_differ(dtypes, fp32, amp, differ) -> None:
    inspected = replace(IN_BF16, random_dtypes=frozenset(dtypes), draws=amp)
    arms = (
        replace(FP32, operators=replace(IN_FP32, draws=fp32)),
        replace(AMP, operators=inspected),
    )
    assert draws_differ(*arms) == differ


def test_a_step_that_was_not_inspected_drew_nothing_else() -> None:
    assert not draws_differ(FP32, replace(AMP, operators=None))


# Coverage.


def test_coverage_is_the_share_of_flops_in_the_amp_dtype() -> None:
    passed = gate("coverage", seen(), min_coverage=0.98)
    assert (passed.verdict, passed.value) == ("pass", 0.98)
    assert passed.reason == "98% of the FLOPs ran in bfloat16, at least 98%"
    failed = gate("coverage", seen(), min_coverage=0.99)
    assert failed.verdict == "fail"
    assert failed.reason == "98% of the FLOPs ran in bfloat16, below 99% by 1.0%"
    assert gate("coverage", seen()).reason == "98% of the FLOPs ran in bfloat16"


def test_another_reduced_dtype_does_not_cover() -> None:
    judged = gate("coverage", seen(dtype="float16"), min_coverage=0.5)
    assert (judged.verdict, judged.value) == ("fail", 0.0)


@pytest.mark.parametrize(
    ("fp32", "amp", "reason"),
    [
        (IN_FP32, None, "unknown: no step was inspected"),
        (
            IN_FP32, replace(IN_BF16, unknown=("aten::mystery", "aten::other")),
            "unknown: no FLOP formula for aten::mystery, aten::other",
        ),
        (
            IN_FP32, replace(IN_BF16, hidden=("a CUDA graph", "a Triton kernel")),
            "unknown: not seen: a CUDA graph, a Triton kernel",
        ),
        (
            Operators(), Operators(),
            "unknown: the step has no matmul, convolution or attention",
        ),
    ],
    ids=["not-inspected", "no-formula", "hidden", "no-flops"],
)  # fmt: skip
def test_coverage_that_is_unknown_is_not_gated_and_says_why(fp32, amp, reason) -> None:
    observed = seen(fp32={"operators": fp32}, amp={"operators": amp})
    judged = gate("coverage", observed, min_coverage=0.5)
    assert (judged.verdict, judged.value, judged.reason) == ("not_gated", None, reason)
    assert judged.unmeasured
    assert coverage(observed) is None


# Skipped steps.


@pytest.mark.parametrize(
    ("skipped", "limit", "verdict", "reason"),
    [
        (0, 0, "pass", "the GradScaler skipped 0 steps, at most 0"),
        (2, 2, "pass", "the GradScaler skipped 2 steps, at most 2"),
        (1, 0, "fail", "the GradScaler skipped 1 step, more than 0"),
        (7, None, "not_gated", "the GradScaler skipped 7 steps"),
    ],
)
def test_skipped_steps_are_counted(skipped, limit, verdict, reason) -> None:
    judged = gate("skipped_steps", seen(amp={"skipped_steps": skipped}), max_skipped_steps=limit)
    assert (judged.verdict, judged.value, judged.reason) == (verdict, skipped, reason)


def test_a_skipped_step_is_no_divergence_of_the_loss() -> None:
    assert gate("loss_diff", seen(amp={"skipped_steps": 5})).verdict == "pass"


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("memory_reduction", {"min_memory_reduction": 0.4}),
        ("coverage", {"min_coverage": 0.98}),
        ("skipped_steps", {"max_skipped_steps": 3}),
    ],
)
def test_what_is_exactly_at_a_threshold_has_met_it(name: str, limits: dict[str, float]) -> None:
    observed = seen(amp={"skipped_steps": 3})
    found = gate(name, observed, **limits)
    assert found.value == found.threshold
    assert found.verdict == "pass"


def test_a_loss_exactly_as_far_off_as_rounding_moves_it_is_no_answer() -> None:
    """2 against 2.5, where fp32 alone goes from 2 to 2.5: exact in binary."""
    flat = {"losses": losses(*(2.0,) * 8)}
    half = {"losses": losses(2.0, 2.0, *(2.5,) * 6)}
    observed = seen(fp32=flat, amp={"losses": losses(*(2.5,) * 8)}, floor=half)
    assert gate("loss_diff", observed, max_loss_diff=0.02).verdict == "inconclusive"
    less = seen(fp32=flat, amp={"losses": losses(*(2.51,) * 8)}, floor=half)
    assert gate("loss_diff", less, max_loss_diff=0.02).verdict == "fail"


# Losses near zero: the default loss_atol reaches no further than rounding does.

SMALL = losses(*(1e-4 / step for step in range(1, 9)))
DEFAULT = {"loss_atol_is_chosen": False}


def small(times: float, rounding: float | None = 1e-5, **other: Any) -> Observations:
    """An amp loss that is `times` that of fp32, and what rounding adds to that."""
    curve = SMALL["loss"]
    rounded = None if rounding is None else losses(*(loss + rounding for loss in curve))
    return seen(
        fp32={"losses": SMALL},
        amp={"losses": losses(*(times * loss for loss in curve))},
        floor={"losses": SMALL},
        rounded=rounded,
        **other,
    )


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(1.01, "pass"), (2.0, "pass"), (3.0, "pass"), (3.5, "fail"), (99, "fail")],
)
def test_a_small_loss_may_differ_by_three_times_what_rounding_does(times, verdict) -> None:
    judged = gate("loss_diff", small(times), **DEFAULT)
    assert judged.verdict == verdict
    if times > 1.1:
        assert "3 times what rounding every product to bfloat16 does" in judged.reason


def test_a_loss_atol_that_was_chosen_is_what_it_says() -> None:
    judged = gate("loss_diff", small(30.0), loss_atol=0.005)
    assert judged.verdict == "pass"
    assert "within loss_atol=0.005" in judged.reason


def test_rounding_that_does_more_than_loss_atol_raises_no_allowance() -> None:
    assert gate("loss_diff", small(30.0, rounding=1.0), **DEFAULT).verdict == "pass"
    bounded = gate("loss_diff", small(30.0, rounding=1.0), loss_atol=1e-5, **DEFAULT)
    assert bounded.verdict == "fail"


@pytest.mark.parametrize(
    ("times", "limits", "rests"),
    [
        (3.0, DEFAULT, True),
        (1.01, DEFAULT, False),  # passes without it
        (1e6, DEFAULT, False),  # fails all the same
        (3.0, {}, False),  # chosen
        (3.0, {**DEFAULT, "max_loss_diff": None}, False),
    ],
)
def test_what_rounding_does_is_measured_only_if_the_verdict_rests_on_it(
    times, limits, rests
) -> None:
    observed = small(times, rounding=None)
    assert loss.rests_on_loss_atol(observed, Limits(**limits)) is rests
