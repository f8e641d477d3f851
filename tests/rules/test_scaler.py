"""AMP202 to AMP208 on records: what each speaks of, what it leaves alone, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from pytest_amp.observations import (
    GradientAtTwoScales,
    Operators,
    Origin,
    Overflow,
    OverflowDrill,
    ScalerStep,
    ScalerUse,
    TwoScales,
)
from pytest_amp.results.values import Finding
from pytest_amp.rules import registry
from pytest_amp.rules.base import Raised
from pytest_amp.rules.scaler import PROTOCOL
from tests.helpers.observations import CURVE, findings, losses, seen

HIGH, LOW = 2.0**14, 2.0**10
ADAM = ("AdamW",)
IN_FP16 = Operators({"float16": 980, "float32": 20}, {"float16": 1900}, draws=("[4]:1",))


def steps(pattern, optimizer=0, scale=2.0**16):
    """A scaler's steps, "." for one that was taken and "x" for one that was skipped."""
    made = []
    for index, each in enumerate(pattern):
        made.append(ScalerStep(index, optimizer, scale, each == "x"))
        scale /= 2 if each == "x" else 1
    return tuple(made)


USE = ScalerUse(ADAM, scaled=8, updates=8, steps=steps("........"))
HEALTHY = Overflow((0,), skipped=(0,), backward=True, scale=(2.0**16, 2.0**15))


def gradient(name="0.weight", difference=0.0, ratio=1.0, noise=0.0, optimizer=0):
    return GradientAtTwoScales(optimizer, name, difference, ratio, noise)


def at_two_scales(*gradients, kinds=ADAM, **more):
    return TwoScales((HIGH, LOW), kinds, gradients, backwards=2, **more)


def overflowed(*moves, drill=(), **changes):
    return OverflowDrill(ADAM, drill or moves, (replace(HEALTHY, moves=moves, **changes),))


def observed(use=USE, operators=IN_FP16, fp32=None, **drills):
    given = {"two_scales": at_two_scales(gradient()), "overflow": overflowed(), **drills}
    amp = {"scaler": use, "operators": operators}
    return seen(fp32=fp32, amp=amp, dtype="float16", native_support=True, **given)


def said(code, case):
    """The message of the rule of that code, if it speaks; no other rule may."""
    found = findings(case)
    assert {each.code for each in found} <= {code}
    return found[0].message if found else None


def test_no_rule_speaks_of_a_scaler_that_is_used_well() -> None:
    assert findings(observed()) == ()
    assert findings(observed(two_scales=None, overflow=None)) == ()
    assert findings(observed(ScalerUse(), two_scales=None, overflow=None)) == ()


# AMP202 scaler-with-bf16


def test_a_live_scaler_over_bfloat16_is_told() -> None:
    bf16 = Operators({"bfloat16": 980, "float32": 20}, draws=("[4]:1",))
    case = replace(observed(operators=bf16), dtype="bfloat16")
    assert "has float32's range and needs none" in said("AMP202", case)
    [finding] = findings(case)
    assert finding.severity == "warning"
    idle = replace(observed(ScalerUse(), bf16), dtype="bfloat16")
    assert findings(idle) == ()


def test_a_mixture_with_float16_needs_its_scaler() -> None:
    both = Operators({"bfloat16": 500, "float16": 500}, draws=("[4]:1",))
    assert findings(observed(operators=both)) == ()


# AMP203 modified-before-unscale


def test_gradients_that_depend_on_the_scale_are_told_by_name_and_number() -> None:
    drill = at_two_scales(
        gradient("0.weight", 4e-4), gradient("0.bias"), gradient("2.weight", 0.35, 0.65)
    )
    case = observed(two_scales=drill)
    message = said("AMP203", case)
    assert "what AdamW sees depends on the loss scale: between 1024 and 16384" in message
    assert "2 of 3 gradients differ, that of 2.weight by 35%" in message
    assert "scaler.unscale_(optimizer)" in message
    [finding] = findings(case)
    assert finding.module == "2"
    assert finding.evidence["difference"] == 0.35


@pytest.mark.parametrize(
    "drill",
    [
        pytest.param(at_two_scales(gradient(difference=9e-5)), id="rounding"),
        pytest.param(at_two_scales(gradient(difference=0.3, noise=0.05)), id="noise"),
        pytest.param(at_two_scales(gradient(difference=0.3), in_half=True), id="float16"),
        pytest.param(at_two_scales(), id="nothing seen"),
    ],
)
def test_rounding_noise_and_underflow_are_no_dependence_on_the_scale(drill) -> None:
    assert findings(observed(two_scales=drill)) == ()


def test_where_fp32_itself_is_not_reproducible_only_that_is_said() -> None:
    case = observed(
        fp32={"losses": losses(2.4, *CURVE[1:]), "start": seen().fp32.start},
        two_scales=at_two_scales(gradient(difference=0.3)),
    )
    assert {each.code for each in findings(case)} == {"AMP002"}


def test_of_several_optimizers_the_first_that_differs_is_named() -> None:
    drill = at_two_scales(
        gradient(), gradient("1.weight", 0.2, 0.9, optimizer=1), gradient("2.weight", 0.9, 0.1,
        optimizer=2), kinds=("SGD", "AdamW", "AdamW"),
    )  # fmt: skip
    message = said("AMP203", observed(two_scales=drill))
    assert "what AdamW (optimizer 2 of 3) sees" in message
    assert "1 of 1 gradients differ" in message


# AMP204 scaler-protocol

RAISED = [
    "unscale_() has already been called on this optimizer since the last update().",
    "unscale_() is being called after step().",
    "step() has already been called since the last update().",
    "No inf checks were recorded for this optimizer.",
    "No inf checks were recorded prior to update.",
    "Attempted step but _scale is None.  This may indicate your script did not use scaler.scale",
]


def of_raised(
    message: str, select: tuple[str, ...] = ("AMP",), ignore: Mapping[str, str] | None = None
) -> tuple[Finding, ...]:
    """What the rules say of an exception of a GradScaler."""
    return registry.findings(Raised(message, "train.py:12"), select, ignore or {})


def test_each_of_torchs_messages_has_a_meaning_of_its_own() -> None:
    found = [each for message in RAISED for each in of_raised(message)]
    assert len({each.message for each in found}) == len(RAISED) == len(PROTOCOL)
    assert {(each.code, each.severity, each.location) for each in found} == {
        ("AMP204", "error", "train.py:12")
    }
    assert not of_raised("Index out of range")


def test_an_update_that_comes_too_early_is_told_where_it_belongs() -> None:
    [found] = of_raised("No inf checks were recorded prior to update.")
    assert "it belongs at the end of each step, once, after the scaler.step(optimizer)" in str(
        found
    )


def test_a_model_in_half_is_told_as_such() -> None:
    [found] = of_raised("Attempting to unscale FP16 gradients.")
    assert (found.code, found.severity, found.location) == ("AMP102", "error", "train.py:12")


def test_what_is_not_selected_is_not_said_and_what_is_ignored_keeps_its_reason() -> None:
    message = RAISED[0]
    assert of_raised(message, ("AMP1",)) == ()
    [finding] = of_raised(message, ignore={"AMP204": "known"})
    assert finding.suppressed == "known"


def test_what_the_scaler_raised_after_an_overflow_is_told() -> None:
    message = said("AMP204", observed(overflow=overflowed(raised=RAISED[2])))
    assert message.startswith("after an overflow, torch raised 'step() has already")
    assert "also where a step was skipped" in message


# AMP205 scheduler-on-skipped-step


def test_a_scheduler_that_moved_in_the_overflow_drill_is_told() -> None:
    case = observed(overflow=overflowed(0))
    assert "the learning-rate scheduler of AdamW moved on a step" in said("AMP205", case)
    [finding] = findings(case)
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    "drill",
    [
        pytest.param(overflowed(drill=(0,)), id="guarded"),
        pytest.param(overflowed(0, drill=(-1,)), id="not in a normal step"),
        pytest.param(overflowed(0, drill=(0, 0)), id="once less"),
        pytest.param(overflowed(0, skipped=()), id="not skipped"),
        pytest.param(overflowed(-1), id="another optimizer's"),
    ],
)
def test_a_scheduler_that_waited_is_healthy(drill) -> None:
    assert findings(observed(overflow=drill)) == ()


@pytest.mark.parametrize(
    ("pattern", "moved_in", "told"),
    [
        ("xx......", range(8), "in step 1 and 1 more"),
        ("...x....", range(8), "in step 4"),
        ("xx......", range(2, 8), None),
        ("x...x...", range(2, 8), "in step 5"),  # it was made in the third
        ("x...x...", (2, 3, 5, 6, 7), None),
        (".......x", (7,), None),
        ("........", range(8), None),
        ("xxxxxxx.", (0, 3, 6), None),  # by the epoch
        ("xxxxxxxx", range(8), None),  # what it does in a normal step is not known
    ],
)
def test_skips_of_the_parity_run_with_a_move_are_told(pattern, moved_in, told) -> None:
    use = replace(USE, steps=steps(pattern), moves=tuple((step, 0) for step in moved_in))
    message = said("AMP205", observed(use))
    assert message is None if told is None else told in message


def test_a_step_of_the_experiment_that_skips_one_update_and_takes_another_may_move() -> None:
    twice = (*steps("x......."), *steps("........"))
    use = replace(USE, steps=twice, moves=tuple((step, 0) for step in range(8)))
    assert findings(observed(use)) == ()


def test_another_optimizers_scheduler_may_move_where_this_one_skipped() -> None:
    use = replace(
        USE,
        optimizers=("SGD", "AdamW"),
        steps=(*steps("x......."), *steps("........", optimizer=1)),
        moves=tuple((step, 1) for step in range(8)),
    )
    assert findings(observed(use)) == ()


# AMP206 stepped-on-overflow


def test_what_changed_on_an_overflow_is_told() -> None:
    changed = {0: ("0.weight", "exp_avg of 0.weight", "0.bias")}
    message = said("AMP206", observed(overflow=overflowed(changed=changed, recovered=False)))
    assert "AdamW stepped although an overflow had made its gradients inf" in message
    assert "0.weight (and 2 more) changed;" in message
    assert "the next loss was not finite" not in message
    ruined = overflowed(changed=changed, next_loss_finite=False)
    assert "changed; the next loss was not finite;" in said("AMP206", observed(overflow=ruined))


def test_weights_that_an_overflow_ruined_without_an_optimizer_are_told() -> None:
    ruined = overflowed(ruined=("0.weight", "0.bias"), recovered=False)
    message = said("AMP206", observed(overflow=ruined))
    assert message.startswith("after an overflow 0.weight (and 1 more) is not finite, though no")


def test_weights_that_an_overflow_ruins_a_step_later_are_told() -> None:
    message = said("AMP206", observed(overflow=overflowed(ruined_later=("0.weight",))))
    assert message.startswith("one step after an overflow 0.weight is not finite")


def test_an_overflow_that_is_hidden_from_the_scaler_is_a_warning() -> None:
    case = observed(overflow=overflowed(hidden=True, reached=()))
    assert "no optimizer saw it" in said("AMP206", case)
    [finding] = findings(case)
    assert finding.severity == "warning"


def test_what_explains_it_is_said_alone() -> None:
    clipped = at_two_scales(gradient(difference=0.9, ratio=1 / 16))
    hidden = overflowed(hidden=True, reached=())
    assert said("AMP203", observed(two_scales=clipped, overflow=hidden))
    bypassed = at_two_scales(gradient(difference=0.9, ratio=16.0))
    changed = overflowed(changed={0: ("0.weight",)})
    assert said("AMP208", observed(two_scales=bypassed, overflow=changed))


# AMP207 scale-stuck


@pytest.mark.parametrize(
    ("pattern", "scale", "told"),
    [
        ("x" * 20, 2.0**16, "the loss scale is down at 0.125, and the steps of AdamW are skipped"),
        ("." * 4 + "x" * 16, 2.0**12, "the loss scale is down at"),
        ("." + ".x" * 6, 2.0**16, "skipped 6 of 12 steps of AdamW after it had found a scale"),
    ],
)
def test_a_scale_that_is_stuck_is_told(pattern, scale, told) -> None:
    assert told in said("AMP207", observed(replace(USE, steps=steps(pattern, scale=scale))))


def test_a_scale_that_does_not_go_down_any_more_is_at_its_floor() -> None:
    floor = tuple(replace(each, scale=128.0) for each in steps("xxxx"))
    message = said("AMP207", observed(replace(USE, steps=floor)))
    assert "the loss scale stays at 128 all the same: update() is not called" in message


def test_a_scaler_that_is_made_in_each_step_is_told() -> None:
    made = replace(USE, made_in_steps=8, made_at="train.py:3")
    assert "a new GradScaler was made 8 times" in said("AMP207", observed(made))
    assert findings(observed(made))[0].location == "train.py:3"
    assert said("AMP207", observed(replace(USE, made_in_steps=1))) is None


def test_a_scale_that_grows_too_soon_is_placed_where_the_scaler_is_made() -> None:
    again = steps("..x.x.x.x.")
    use = replace(USE, steps=again, made_at="train.py:3", scaled_at="train.py:9")
    [soon] = findings(observed(replace(use, growth_interval=1)))
    assert soon.location == "train.py:3"
    assert "its scale grows after every step" in soon.message
    [other] = findings(observed(replace(use, growth_interval=2000)))
    assert other.location == "train.py:9"
    assert "zero_grad() runs after a skipped step too" in other.message


def test_a_step_that_leaves_an_overflow_out_by_itself_is_a_warning() -> None:
    left_out = overflowed(left_out=True, backward_at="train.py:8")
    [finding] = findings(observed(overflow=left_out))
    assert finding.location == "train.py:8"
    assert (finding.code, finding.severity) == ("AMP207", "warning")
    assert "the GradScaler is not told" in finding.message


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [
        pytest.param("x" * 6, 2.0**16, id="still looking"),
        pytest.param("x" * 12 + "." * 8, 2.0**24, id="found"),
        pytest.param("xx.....x............", 2.0**16, id="a stray one"),
        pytest.param("..x......x..........", 2.0**16, id="two"),
        pytest.param("....x" * 5, 2.0**16, id="a short growth interval"),
        pytest.param("." * 8, 0.5, id="low and taken"),
    ],
)
def test_finding_the_scale_and_stray_overflows_are_healthy(pattern, scale) -> None:
    assert findings(observed(replace(USE, steps=steps(pattern, scale=scale)))) == ()


def test_steps_that_are_all_skipped_after_one_overflow_are_told() -> None:
    message = said("AMP207", observed(overflow=overflowed(recovered=False)))
    assert "call zero_grad() after a skipped step too" in message


# AMP208 scaler-bypassed


def test_a_step_on_scaled_gradients_is_told_by_their_ratio() -> None:
    drill = at_two_scales(
        gradient(difference=0.94, ratio=16.0), gradient("0.bias", 0.94, 15.95), gradient("2.bias")
    )
    case = observed(two_scales=drill)
    message = said("AMP208", case)
    assert message.startswith("AdamW steps on gradients that are still scaled")
    assert "that of 0.weight is 16 times as large" in message
    [finding] = findings(case)
    assert finding.evidence["ratio"] == 16


def test_a_backward_pass_from_an_unscaled_loss_is_told() -> None:
    drill = at_two_scales(gradient(difference=0.94, ratio=1 / 16), unscaled=1)
    message = said("AMP208", observed(two_scales=drill))
    assert "1 of 2 backward passes began at a loss that was not scaled" in message
    healthy = at_two_scales(gradient(), unscaled=1)  # its gradients went elsewhere
    assert findings(observed(two_scales=healthy)) == ()


def test_a_scaler_that_scales_and_never_steps_is_told_unless_the_gradients_are_right() -> None:
    use = replace(USE, steps=())
    told = said("AMP208", observed(use, two_scales=None))
    assert "scaled losses (8 times), and its step() was never called" in told
    assert said("AMP208", observed(use, two_scales=at_two_scales()))
    assert findings(observed(use)) == ()
    by_hand = replace(use, optimizers=())
    assert findings(observed(by_hand, two_scales=None)) == ()


# AMP207, where a watched step has shown what the GradScaler skips

STUCK = replace(USE, steps=steps("x" * 20))
BACKWARD = Origin(
    0, "aten::log", "head", "train.py:12", "float16", "backward", "LogBackward0",
    inputs=(0.5, 0.0), scale=2.0**16, at_one=True,
)  # fmt: skip


def stuck_at(origin, use=STUCK):
    [finding] = findings(replace(observed(use), stuck_origin=origin))
    assert (finding.code, finding.severity) == ("AMP207", "error")
    return finding


def test_a_gradient_that_no_scale_helps_is_placed() -> None:
    finding = stuck_at(BACKWARD)
    assert (finding.module, finding.location) == ("head", "train.py:12")
    assert (
        "no scale helps, since the gradient of aten::log in head at train.py:12 (LogBackward0, "
        "float16) is inf at any scale, made of 0.5 and 0: float16 rounds what is below 6e-8 to 0"
    ) in finding.message
    assert finding.evidence["at_scale_1"] is True
    assert "look for a division by zero" not in finding.message


def test_a_gradient_that_only_the_scale_makes_infinite_is_not_called_the_steps_own() -> None:
    again = replace(USE, steps=steps("." + ".x" * 6))
    message = stuck_at(replace(BACKWARD, at_one=False), again).message
    assert "is inf at a scale of 65536 and finite at 1" in message
    assert "log_softmax" not in message


def test_what_is_in_float32_there_is_not_advised_to_be_in_float32() -> None:
    message = stuck_at(replace(BACKWARD, dtype="float32")).message
    assert "it is in float32 there, so look at what its inputs are computed from" in message
    assert "keep that part in float32" not in message


@pytest.mark.parametrize(
    ("origin", "advice"),
    [
        (BACKWARD, "use log_softmax or logsigmoid"),
        (
            replace(BACKWARD, op="aten::binary_cross_entropy"),
            "use binary_cross_entropy_with_logits",
        ),
        (
            replace(BACKWARD, op="aten::div", inputs=(1e6,)),
            "keep that part and what makes its inputs",
        ),
        (replace(BACKWARD, op="aten::div"), "keep that part in float32"),
    ],
)
def test_the_advice_is_one_that_makes_the_gradient_finite(origin, advice) -> None:
    assert f"; {advice}" in stuck_at(origin).message


def test_gradients_that_kept_an_earlier_overflow_are_told() -> None:
    origin = Origin(4, "aten::add_", None, "train.py:20", phase="kept", at_one=False)
    finding = stuck_at(origin)
    assert "before the backward pass at train.py:20 added to them: call zero_grad()" in (
        finding.message
    )


def test_a_loss_that_is_not_finite_before_backward_is_told() -> None:
    forward = replace(BACKWARD, phase="forward", node=None)
    message = stuck_at(forward).message
    assert "the loss is not finite before backward: aten::log in head at train.py:12" in message


def test_a_new_scaler_in_each_step_is_why_the_scale_stays() -> None:
    floor = tuple(replace(each, scale=128.0) for each in steps("xxxx"))
    use = replace(USE, steps=floor, made_in_steps=4, made_at="train.py:3")
    made = stuck_at(replace(BACKWARD, at_one=False), use)
    assert made.location == "train.py:3"
    assert "stays at 128 all the same: a new GradScaler is made in each step" in made.message


def test_what_amp301_explains_is_left_to_it() -> None:
    nan = {"losses": losses(*(float("nan"),) * 8), "scaler": STUCK, "operators": IN_FP16}
    case = seen(amp=nan, dtype="float16", nonfinite_origin=replace(BACKWARD, phase="forward"))
    found = {each.code: each for each in findings(case)}
    assert set(found) == {"AMP207", "AMP301"}
    assert "the loss is inf or NaN before backward, and AMP301 says where" in (
        found["AMP207"].message
    )
    assert found["AMP207"].location == found["AMP301"].location == "train.py:12"
