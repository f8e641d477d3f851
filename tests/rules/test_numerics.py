"""AMP302 to AMP307 on records at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.observations import (
    Departure,
    Gradient,
    ModuleOutput,
    Numerics,
    Parameter,
    StateUpdate,
    Zeroed,
)
from tests.helpers.observations import CURVE, FLOOR, IN_BF16, START, findings, losses, scaled, seen

OTHER = replace(START, parameters=("torch.float32[4]:8",))


def gradient(number=0, cosine=0.999, ratio=1.0, zeroed=0.0, share=0.5):
    return Gradient(number, cosine, ratio, zeroed, share, f"layers.{number}.weight")


def first_step(*gradients, outputs=(), **more):
    given = {"dtype": "float16", **more}
    return seen(numerics=Numerics(gradients, outputs), **given)


def output(module="layers.0", distance=0.0, largest=1.0):
    return ModuleOutput(module, distance, largest)


def heard(observed, **limits):
    # The records are bfloat16's; that float16 was asked for is AMP108's, and not looked at here.
    found = [each for each in findings(observed, **limits) if each.code != "AMP108"]
    assert len(found) <= 1, found
    return found[0] if found else None


# AMP302 gradient-underflow


def test_amp302_names_the_gradient_that_lost_most() -> None:
    found = heard(first_step(gradient(0, zeroed=0.1), gradient(1, zeroed=0.4), gradient(2)))
    assert (found.code, found.severity, found.module) == ("AMP302", "warning", "layers.1")
    assert "40% of the gradient of layers.1.weight" in found.message
    assert "(and of 1 more)" in found.message


@pytest.mark.parametrize(
    "observed",
    [
        first_step(gradient(zeroed=0.0999)),
        # What leaves fp32 going forward makes zeros by itself.
        first_step(gradient(zeroed=0.5), outputs=(output(distance=0.5),)),
        first_step(gradient(zeroed=0.5, ratio=float("inf"))),
    ],
)
def test_amp302_leaves_flipped_relus_alone(observed) -> None:
    assert heard(observed) is None


ZEROED = Zeroed("aten::clamp", None, "loss.py:7", "ClampBackward1", 1.0, 0.25)
PLACES = {"parameters": (Parameter("float32", True, "layers.0.weight", "net.py:3"),)}


def test_amp302_names_the_line_at_which_the_gradient_turned_to_zero() -> None:
    found = heard(first_step(gradient(zeroed=0.5), zeroed=ZEROED, amp=PLACES))
    assert found.location == "loss.py:7"
    assert "the gradient of aten::clamp at loss.py:7 (ClampBackward1, 100%)" in found.message


@pytest.mark.parametrize(
    ("dtype", "zeroed", "of_range"),
    [
        ("float16", None, True),
        ("float16", replace(ZEROED, expected=2**-26), True),
        ("float16", ZEROED, False),
        ("bfloat16", None, False),
        ("bfloat16", replace(ZEROED, expected=2**-26), False),
    ],
)
def test_amp302_speaks_of_range_only_where_range_is_to_blame(dtype, zeroed, of_range) -> None:
    message = heard(first_step(gradient(zeroed=0.5), zeroed=zeroed, dtype=dtype)).message
    assert ("smaller than float16 holds; scale the loss" in message) is of_range
    assert ("does not underflow: something clamps it or rounds it away" in message) is not of_range
    assert "or use bfloat16" not in message or of_range


def test_a_gradient_without_a_place_of_its_own_is_placed_where_its_parameter_is_used() -> None:
    assert heard(first_step(gradient(zeroed=0.5), amp=PLACES)).location == "net.py:3"
    assert heard(first_step(gradient(cosine=0.1), amp=PLACES)).location == "net.py:3"
    assert heard(first_step(gradient(1, cosine=0.1), amp=PLACES)).location is None


# AMP304 gradient-mismatch


@pytest.mark.parametrize(
    ("dtype", "cosine", "ratio"),
    [
        ("float16", 0.979, 1.0),
        ("float16", 0.999, 1.16),
        ("float16", 0.999, 1 / 1.16),
        ("bfloat16", 0.899, 1.0),
        ("bfloat16", 0.999, 1.31),
        ("bfloat16", 0.0, 0.0),
    ],
)
def test_amp304_speaks_beyond_the_dtypes_budget(dtype, cosine, ratio) -> None:
    found = heard(first_step(gradient(3, cosine, ratio), dtype=dtype))
    assert (found.code, found.severity, found.module) == ("AMP304", "warning", "layers.3")
    assert f"by more than {dtype} explains" in found.message


@pytest.mark.parametrize(
    ("dtype", "cosine", "ratio", "share"),
    [
        ("float16", 0.981, 1.14, 1.0),
        ("bfloat16", 0.901, 1.29, 1.0),
        ("bfloat16", 0.901, 1 / 1.29, 1.0),
        ("float16", 0.1, 9.0, 0.049),  # a tiny gradient's direction
    ],
)
def test_amp304_leaves_rounding_and_tiny_gradients_alone(dtype, cosine, ratio, share) -> None:
    assert heard(first_step(gradient(0, cosine, ratio, share=share), dtype=dtype)) is None


def test_amp304_names_the_worst_and_where_it_began() -> None:
    outputs = (output("a", 0.001), output("b", 0.5), output("c", 0.7))
    found = heard(first_step(gradient(0, 0.9), gradient(1, 0.5), outputs=outputs))
    assert found.module == "layers.1"
    assert "the first gradient of layers.1.weight is not fp32's (cosine 0.500" in found.message
    assert "going forward, b is the first to leave fp32" in found.message
    assert found.evidence["first_to_leave"] == "b"


@pytest.mark.parametrize(
    ("dtype", "distance", "leaves"),
    [
        ("float16", 16 * 2**-10, False),
        ("float16", 17 * 2**-10, True),
        ("bfloat16", 16 * 2**-7, False),
        ("bfloat16", 17 * 2**-7, True),
        ("float16", float("nan"), True),
    ],
)
def test_a_module_leaves_fp32_beyond_16_roundings(dtype, distance, leaves) -> None:
    observed = first_step(gradient(0, 0.5), outputs=(output("a", distance),), dtype=dtype)
    assert (heard(observed).evidence["first_to_leave"] == "a") is leaves


def test_gradients_are_compared_from_the_same_weights_and_numbers_only() -> None:
    wrong = Numerics((gradient(0, 0.1, zeroed=0.9),))
    drawn = {"random_dtypes": frozenset({"bfloat16"}), "draws": ("[4]:2",)}
    other_draws = replace(IN_BF16, **drawn)
    for observed in (
        seen(numerics=wrong, amp={"operators": other_draws}),
        seen(numerics=wrong, amp={"start": OTHER}),
    ):
        assert not {"AMP302", "AMP304"} & {each.code for each in findings(observed)}


# AMP303 overflow-risk


def test_amp303_names_the_module_beyond_float16() -> None:
    outputs = (output("a", largest=65505.0), output("b", largest=1e7), output("c", largest=9.0))
    found = heard(first_step(outputs=outputs))
    assert (found.code, found.severity, found.module) == ("AMP303", "warning", "b")
    assert "reach 1e+07 after b, beyond float16's 65504" in found.message


@pytest.mark.parametrize(
    "observed",
    [
        first_step(outputs=(output(largest=65504.0),)),
        first_step(outputs=(output(largest=1e7),), dtype="bfloat16"),
    ],
)
def test_amp303_leaves_the_range_and_bfloat16_alone(observed) -> None:
    assert heard(observed) is None


def test_amp303_is_silent_where_amp301_says_more() -> None:
    broken = {"losses": losses(*CURVE[:-1], float("nan"))}
    observed = first_step(outputs=(output(largest=1e7),), amp=broken)
    assert heard(observed).code == "AMP301"


# AMP305 below-noise-floor


def noisy(amp=1.03, floor=1.05):
    again = replace(FLOOR, losses=losses(*scaled(floor, last=5)))
    return replace(seen(amp={"losses": losses(*scaled(amp))}), floor=again)


def test_amp305_speaks_where_the_threshold_is_below_the_models_own_noise() -> None:
    found = heard(noisy(), max_loss_diff=0.02, loss_atol=0.0)
    assert (found.code, found.severity) == ("AMP305", "warning")
    assert "max_loss_diff=0.02 is tighter than" in found.message
    assert "(5.0% after one ulp of bfloat16" in found.message


@pytest.mark.parametrize(
    ("observed", "wanted"),
    [
        (noisy(amp=1.01), 0.02),  # passes all the same
        (noisy(amp=1.2), 0.02),  # fails beyond the floor
        (noisy(), None),
        (noisy(floor=1.001), 0.04),
    ],
)
def test_amp305_is_silent_where_the_gate_can_tell(observed, wanted) -> None:
    assert heard(observed, max_loss_diff=wanted, loss_atol=0.0) is None


# AMP307 lost-updates


def updated(*updates):
    return seen(amp={"operators": replace(IN_BF16, updates=updates)})


def update(wanted, lost, elements=1000):
    return StateUpdate("bfloat16", "train.py:7", elements, wanted, lost)


def test_amp307_speaks_of_an_update_of_which_most_is_lost() -> None:
    found = heard(updated(update(900, 0), update(1000, 970)))
    assert (found.code, found.severity, found.location) == ("AMP307", "warning", "train.py:7")
    assert "97% of the elements that this update should change stay as they were" in found.message
    assert "smaller than bfloat16 resolves" in found.message


@pytest.mark.parametrize(
    ("wanted", "lost", "speaks"),
    [
        (1000, 501, True),
        (1000, 500, False),
        (10, 10, True),  # few elements should change, and none does
        (9, 9, False),
        (0, 0, False),
    ],
)
def test_amp307_needs_a_majority_of_what_is_more_than_a_rest(wanted, lost, speaks) -> None:
    assert (heard(updated(update(wanted, lost))) is not None) is speaks


# AMP304 beside what rounding alone does.


@pytest.mark.parametrize(
    ("error", "rounding", "speaks"),
    [
        (0.44, 0.40, False),  # a batch norm, whose gradients are differences of large numbers
        (0.44, 0.10, True),
        (0.20, 0.04, True),  # a cosine of 0.98, which a fixed limit of 0.9 admits
        (0.20, 0.06, False),
        (0.14, 0.00, False),  # too little to care
    ],
)
def test_amp304_is_about_what_rounding_every_product_does_not_explain(
    error, rounding, speaks
) -> None:
    cosine = 1 - error**2 / 2  # at a ratio of 1
    known = replace(gradient(cosine=cosine), rounding=rounding)
    found = heard(first_step(known, dtype="bfloat16"))
    assert (found is not None) is speaks
    if speaks:
        assert "if fp32's products alone are rounded" in found.message
        assert found.evidence["rounding"] == rounding
        assert found.evidence["error"] == pytest.approx(error)


def test_amp302_leaves_alone_what_rounding_zeroes_as_well() -> None:
    flipped = replace(gradient(zeroed=0.12), rounding=0.0, zeroed_by_rounding=0.1)
    assert heard(first_step(flipped, dtype="bfloat16")) is None
    lost = replace(flipped, zeroed_by_rounding=0.01)
    assert heard(first_step(lost, dtype="bfloat16")).code == "AMP302"


def test_a_residue_of_sums_that_cancel_does_not_underflow() -> None:
    lost = replace(gradient(0, zeroed=0.5), rounding=1.0, zeroed_by_rounding=0.1)
    assert heard(first_step(lost, dtype="bfloat16")) is None
    assert heard(first_step(replace(lost, rounding=0.5), dtype="bfloat16")).code == "AMP302"


# AMP304 where an operator leaves fp32 by itself.


LEFT = Departure("aten::log", "loss", "loss.py:9", "bfloat16", 0.6, 0.002, 0.003)


def parted(left=LEFT, *gradients, **more):
    return seen(
        dtype="bfloat16", numerics=Numerics(gradients or (gradient(),), departure=left), **more
    )


def test_amp304_names_the_operator_that_leaves_fp32_though_all_gradients_agree() -> None:
    found = heard(parted())
    assert (found.code, found.module, found.location) == ("AMP304", "loss", "loss.py:9")
    assert found.message.startswith(
        "aten::log in loss at loss.py:9 (bfloat16) is the first to leave fp32: its output is off "
        "by 60%, and its inputs are off by 0.20%, by more than bfloat16 explains"
    )


def test_amp304_places_a_gradient_at_the_operator_that_left_fp32() -> None:
    found = heard(parted(LEFT, gradient(cosine=0.5), amp=PLACES))
    assert found.location == "loss.py:9"
    assert "the first gradient of layers.0.weight is not fp32's" in found.message
    assert "going forward, aten::log in loss at loss.py:9 (bfloat16)" in found.message


def test_amp304_names_the_product_whose_rounding_is_enough() -> None:
    left = replace(LEFT, op="aten::cos", rounding=0.5, products=("net.py:4", "net.py:2"))
    found = heard(parted(left))
    assert found.location == "net.py:4"
    assert "rounding the product at net.py:4 that it is made from is enough" in found.message


def test_amp304_says_where_on_the_way_back_gradients_leave_fp32() -> None:
    back = replace(LEFT, op="Scale", node="ScaleBackward")
    found = heard(parted(None, gradient(cosine=0.5), gradients_left=back))
    assert found.location == "loss.py:9"
    assert "going backward, the gradient of Scale in loss at loss.py:9 (ScaleBackward" in str(found)


@pytest.mark.parametrize("off", [0.1, float("inf")])
def test_amp304_leaves_alone_what_is_little_and_what_amp301_tells(off) -> None:
    assert heard(parted(replace(LEFT, off=off))) is None


def test_amp304_does_not_accuse_what_the_noise_floor_excuses() -> None:
    nudged = losses(*scaled(1.5))
    chaotic = parted(amp={"losses": losses(*scaled(1.4))}, floor={"losses": nudged})
    assert "AMP304" not in {each.code for each in findings(chaotic, max_loss_diff=0.02)}
