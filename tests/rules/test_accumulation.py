"""AMP213 on records at its limits, and what it leaves to others."""

from __future__ import annotations

import pytest

from pytest_amp.observations import (
    Accumulated,
    AccumulatedGradient,
    Gradient,
    GradientAtTwoScales,
    Numerics,
    Parameter,
    ScalerUse,
    TwoScales,
)
from tests.helpers.observations import findings, seen

BF16, FP16 = 2**-7, 2**-10
PLACES = {"edited_at": "a.py:1", "emptied_at": "a.py:2", "backward_at": "a.py:3"}


def gradient(fp32=0.0, amp=0.0, passes=(4, 4), ratio=1.0, cosine=1.0, share=0.5, rounding=0.0):
    return AccumulatedGradient(
        "net.weight", share, passes, (fp32, amp), ratio, cosine, rounding=rounding
    )


def heard(*gradients, steps=(1, 1), places=PLACES, **more):
    found = findings(seen(accumulated=Accumulated(gradients, **places, steps=steps), **more))
    return [each for each in found if each.code not in ("AMP108", "AMP208")]


def test_a_sum_that_lost_much_is_an_error_at_the_line_that_changed_it() -> None:
    [found] = heard(gradient(amp=0.3), gradient(amp=0.1))
    assert (found.code, found.severity, found.module) == ("AMP213", "error", "net")
    assert found.location == "a.py:1"
    assert "net.weight (and of 1 more) is not the sum of its 4 micro-batches" in found.message
    assert "off by 30%" in found.message
    assert found.evidence["off"] == [0.0, 0.3]
    assert found.evidence["micro_batches"] == [4, 4]


def test_without_a_line_that_changed_it_the_place_is_the_backward_pass() -> None:
    [found] = heard(gradient(amp=0.3), places={**PLACES, "edited_at": None})
    assert found.location == "a.py:3"


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", BF16), ("float16", FP16)])
def test_one_rounding_step_is_nothing_and_up_to_four_are_a_warning(dtype, step) -> None:
    assert heard(gradient(amp=step), dtype=dtype) == []
    [found] = heard(gradient(amp=1.01 * step), dtype=dtype)
    assert found.severity == "warning"
    [found] = heard(gradient(amp=4 * step), dtype=dtype)
    assert found.severity == "warning"
    [found] = heard(gradient(amp=4.01 * step), dtype=dtype)
    assert found.severity == "error"


@pytest.mark.parametrize(
    "healthy",
    [
        gradient(amp=0.3, rounding=0.3),  # autocast does as much
        gradient(fp32=0.0011, amp=0.3),  # on purpose: it is no sum in fp32 either
        gradient(amp=0.3, share=0.049),
        gradient(passes=(1, 1), ratio=2.0),  # AMP304's
        gradient(passes=(4, 4), ratio=2.0),
        gradient(passes=(4, 4), ratio=4.3),
        gradient(passes=(4, 4), ratio=4.0, cosine=0.94),
        gradient(passes=(4, 2)),  # of another size, and the same gradient
        gradient(passes=(4, 2), ratio=1.29, cosine=0.96),
    ],
)
def test_what_it_does_not_speak_of(healthy) -> None:
    assert heard(healthy) == []


@pytest.mark.parametrize("off", [{"ratio": 1.31}, {"ratio": 0.7}, {"cosine": 0.94}])
def test_other_micro_batches_are_told_with_their_numbers(off) -> None:
    [found] = heard(gradient(passes=(4, 1), **off))
    assert "steps on 1 micro-batch, and in fp32 on 4 micro-batches" in found.message
    assert (found.severity, found.location) == ("error", "a.py:2")
    [found] = heard(gradient(passes=(1, 4), **off))
    assert found.location == "a.py:3"  # nothing was emptied under amp


@pytest.mark.parametrize(("ratio", "how"), [(4.1, "rarely"), (0.25, "often")])
def test_a_loss_that_is_divided_in_one_arm_is_told(ratio, how) -> None:
    [found] = heard(gradient(ratio=ratio), gradient(ratio=ratio))
    assert f"divided by their number once too {how}" in found.message
    assert (found.severity, found.location) == ("error", "a.py:3")
    assert heard(gradient(ratio=ratio), gradient(ratio=1.0)) == []


def test_arms_that_took_other_steps_are_not_compared_with_each_other() -> None:
    assert heard(gradient(ratio=4.0), steps=(1, 2)) == []
    assert len(heard(gradient(amp=0.3), steps=(1, 2))) == 1  # that is each arm by itself


def test_it_comes_after_what_explains_it() -> None:
    lost = gradient(amp=0.3)
    scaled = GradientAtTwoScales(0, "net.weight", 0.5, 1.0)
    drill = TwoScales((16.0, 1.0), ("SGD",), (scaled,))

    def codes(**more):
        return [each.code for each in heard(lost, **more)]

    assert codes(two_scales=drill) == ["AMP203"]
    assert codes(amp={"scaler": ScalerUse(updates_in_midst=1)}) == ["AMP209"]
    assert codes(amp={"scaler": ScalerUse(updates_before_step=1)}) == ["AMP209"]
    assert codes(amp={"parameters": (Parameter("bfloat16", True),)}) == ["AMP102"]


def test_the_first_gradients_that_are_explained_are_not_told_again() -> None:
    first = Numerics((Gradient(0, 0.5, 4.0, 0.5, 0.5, "net.weight"),))
    assert {each.code for each in findings(seen(numerics=first))} == {"AMP302", "AMP304"}
    assert [each.code for each in heard(gradient(ratio=4.0), numerics=first)] == ["AMP213"]
    midst = seen(numerics=first, amp={"scaler": ScalerUse(updates_in_midst=1)})
    assert [each.code for each in findings(midst)] == ["AMP209"]
